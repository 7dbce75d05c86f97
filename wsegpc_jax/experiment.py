"""From a configuration to the pieces that the programs share."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import writers
from wsegpc_jax.data import assets, batching, pipeline
from wsegpc_jax.data.samples import SampleSettings
from wsegpc_jax.methods import common
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import ARCHITECTURES, MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.parallel import AXIS, RUNNERS
from wsegpc_jax.types import DataError, Scene

_CLASSES = "classes.json"
METHODS = ("wsegpc", "segmentation")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Steps of a run; `eval_every` is 0 for a run without evaluations."""

  steps_per_epoch: int
  total_steps: int
  eval_every: int


def check_config(config: ConfigDict) -> None:
  """Refuses values that no program can run with.

  Raises:
    DataError: names the field and what was expected.
  """

  def expect(field, value, choices):
    if value not in choices:
      raise DataError(
        f"config.{field}={value!r}; expected one of "
        f"{', '.join(repr(c) for c in choices)}"
      )

  expect("method", config.method, METHODS)
  expect("compat", config.compat, ("", "reference"))
  expect("dtype", config.dtype, ("float32", "bfloat16"))
  expect("parallel", config.parallel, RUNNERS)
  expect("model.arch", config.model.arch, tuple(ARCHITECTURES))
  expect("model.image_depth", config.model.image_depth, (18, 34, 50, 101))
  expect("eval.weights", config.eval.weights, ("teacher", "student"))
  expect("eval.superpoints", config.eval.superpoints, ("none", "mean", "half"))
  expect("eval.checkpoint", config.eval.checkpoint, ("best", "latest"))
  expect("eval.export", config.eval.export, ("", "scannet"))
  positive = {
    "data.voxel_size": config.data.voxel_size,
    "train.batch_size": config.train.batch_size,
    "train.epochs": config.train.epochs,
    "train.loop": config.train.loop,
    "train.log_every": config.train.log_every,
    "model.width": config.model.width,
    "model.image_width": config.model.image_width,
    "data.smallest_bucket": config.data.smallest_bucket,
  }
  if config.method == "wsegpc":
    positive["data.num_views"] = config.data.num_views
  for field, value in positive.items():
    if not value > 0:
      raise DataError(f"config.{field}={value!r}; expected a positive number")
  if config.data.largest_bucket < config.data.smallest_bucket:
    raise DataError(
      f"config.data.largest_bucket={config.data.largest_bucket}; expected at "
      f"least config.data.smallest_bucket={config.data.smallest_bucket}"
    )


def open_data(config: ConfigDict) -> assets.Dataset:
  """Opens config.data.root, after writing box rooms there if it asks to.

  Raises:
    DataError: the data set is not there, or not as documented.
  """
  data = config.data
  if data.box_rooms.train > 0:
    from wsegpc_jax.data import box_rooms

    box_rooms.write_rooms(
      data.root,
      train=data.box_rooms.train,
      val=data.box_rooms.val,
      seed=data.box_rooms.seed,
      image_size=tuple(data.box_rooms.image_size),
      views=max(data.num_views, 1),
    )
  if not (Path(data.root) / "dataset.json").is_file():
    raise DataError(
      f"no data set at config.data.root={str(data.root)!r}: expected the file "
      f"{Path(data.root) / 'dataset.json'} and one folder a scene "
      f"(docs/assets.md).\n{data.how_to_get}".rstrip()
    )
  return assets.open_dataset(data.root)


def write_classes(workdir: str, classes: tuple[str, ...]) -> None:
  """Keeps the class names with the run: predicting needs no data set."""
  writers.write_json(Path(workdir) / _CLASSES, list(classes))


def read_classes(workdir: str) -> tuple[str, ...]:
  """Class names of the run in a working directory.

  Raises:
    DataError: it holds none.
  """
  path = Path(workdir) / _CLASSES
  try:
    return tuple(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError) as error:
    raise DataError(
      f"{path} cannot be read: expected the working directory of a training "
      f"run ({error})"
    ) from error


def split_scenes(dataset: assets.Dataset, split: str) -> tuple[str, ...]:
  """Scenes of a split.

  Raises:
    DataError: the split does not exist or is empty.
  """
  scenes = dataset.splits.get(split, ())
  if not scenes:
    raise DataError(
      f"{dataset.root / 'dataset.json'}: split {split!r} has no scenes; it "
      f"has {', '.join(dataset.splits) or 'no splits'}"
    )
  return tuple(scenes)


def schedule(config: ConfigDict, num_scenes: int) -> Schedule:
  """Steps of the run that trains on this many scenes."""
  train = config.train
  epoch = pipeline.steps_per_epoch(
    num_scenes, loop=train.loop, batch_size=train.batch_size
  )
  total = train.total_steps or epoch * train.epochs
  every = epoch if train.eval_every == 0 else max(train.eval_every, 0)
  return Schedule(epoch, total, every)


def sample_settings(config: ConfigDict) -> SampleSettings:
  """How training samples are made."""
  data, images = config.data, config.method == "wsegpc"
  return SampleSettings(
    voxel_size=data.voxel_size,
    num_views=data.num_views if images else 0,
    image_size=tuple(data.image_size),
    link_tolerance=data.link_tolerance or None,
    teacher=images,
    drop_probability=data.drop_probability,
    max_rotation=data.max_rotation,
    max_voxels=data.max_voxels,
    mix3d=data.mix3d,
    num_pairs=data.num_pairs,
    compat=config.compat == "reference",
  )


def layout(config: ConfigDict, *, slots: int) -> batching.Layout:
  """What a device's share has room for; slots = scenes a device."""
  data, images = config.data, config.method == "wsegpc"
  return batching.Layout(
    buckets=batching.geometric_buckets(
      data.smallest_bucket, data.largest_bucket, data.bucket_ratio
    ),
    slots=slots,
    num_views=data.num_views if images else 0,
    image_size=tuple(data.image_size) if images else (0, 0),
    num_pairs=data.num_pairs if images else 0,
  )


def build_method(
  config: ConfigDict, num_classes: int, steps: Schedule
) -> WSegPC | Segmentation:
  """The method that config.method names, with its networks."""
  model, dtype = config.model, jnp.dtype(config.dtype)
  net_3d = MinkUNet(
    arch=model.arch,
    num_classes=num_classes,
    width=model.width,
    axis_name=AXIS,
    dtype=dtype,
    implementation=model.implementation or None,
  )
  train = config.train
  optimizer = common.sgd(
    train.lr,
    steps.total_steps,
    momentum=train.momentum,
    weight_decay=train.weight_decay,
    power=train.power,
  )
  if config.method == "segmentation":
    return Segmentation(net_3d, optimizer)
  net_2d = DilatedResNet(
    depth=model.image_depth,
    num_classes=num_classes,
    width=model.image_width,
    axis_name=AXIS,
    dtype=dtype,
  )
  _, planes, expansion = ARCHITECTURES[model.arch]
  features_3d = max(1, planes[-1] * model.width // 32) * expansion
  features_2d = 8 * model.image_width * (4 if model.image_depth >= 50 else 1)
  names = {f.name for f in dataclasses.fields(LossWeights)}
  weights = {k: v for k, v in config.loss.items() if k in names}
  return WSegPC(
    model=TwoBranchNet(net_3d, net_2d, features_2d, features_3d),
    optimizer=optimizer,
    weights=LossWeights(**weights),
    temperature=config.loss.temperature,
    p_cutoff=config.loss.p_cutoff,
    ema_keep=config.ema_keep,
    compat_steps=steps.steps_per_epoch if config.compat else None,
  )


def label_source(
  config: ConfigDict, dataset: assets.Dataset
) -> Callable[[Scene], np.ndarray] | None:
  """Where training labels come from: None = the scene's own.

  Raises:
    DataError: the folder of pseudo-labels is not there.
  """
  if config.method != "segmentation" or not config.data.labels_from:
    return None
  folder = Path(config.data.labels_from)
  if not folder.is_dir():
    raise DataError(
      f"config.data.labels_from={str(folder)!r} is not a folder; expected "
      "<scene>.npz files with pred_label, as --mode=label of stage 2 writes"
    )
  return lambda scene: read_labels(folder, scene, len(dataset.classes))


def read_labels(folder: Path, scene: Scene, num_classes: int) -> np.ndarray:
  """Pseudo-labels int32 [N] of a scene.

  Raises:
    DataError: the file is missing or damaged, or does not fit the scene.
  """
  path = folder / f"{scene.name}.npz"
  if not path.is_file():
    raise DataError(f"{path} not found, expected the scene's pseudo-labels")
  try:
    with np.load(path, allow_pickle=False) as archive:
      label = archive["pred_label"].astype(np.int32).reshape(-1)
  except KeyError as error:
    raise DataError(f"{path} has no array pred_label") from error
  except Exception as error:  # zipfile and numpy raise many kinds
    raise DataError(f"{path} cannot be read: {error}") from error
  if len(label) != len(scene.coord):
    raise DataError(
      f"{path}: pred_label has {len(label)} entries, scene {scene.name} has "
      f"{len(scene.coord)} points"
    )
  wrong = label[(label < 0) | ((label >= num_classes) & (label != 255))]
  if len(wrong):
    raise DataError(
      f"{path}: pred_label holds {wrong[0]}, expected 0..{num_classes - 1} "
      "or 255"
    )
  return label
