"""From a configuration to the pieces that the programs share."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import writers
from wsegpc_jax.data import batching, cache, layouts, pipeline, test_time
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.samples import SampleSettings
from wsegpc_jax.kernels import gather_conv
from wsegpc_jax.methods import common
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import ARCHITECTURES, MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.parallel import AXIS, RUNNERS
from wsegpc_jax.types import DataError, Scene

_DATA_RECORD = "data.json"
# Fields that another program on a run's working directory may see changed.
NOT_OF_THE_NETWORK = (
  "eval",
  "init_checkpoint",
  "init_from",
  "loss",
  "parallel",
  "seed",
  "train",
  "data.box_rooms",
  "data.bucket_ratio",
  "data.cache",
  "data.drop_probability",
  "data.format",
  "data.how_to_get",
  "data.labels_from",
  "data.largest_bucket",
  "data.max_rotation",
  "data.max_voxels",
  "data.mix3d",
  "data.num_pairs",
  "data.prefetch",
  "data.root",
  "data.smallest_bucket",
  "data.threads",
  "data.train_split",
  "model.image_weights",
  "model.implementation",
)
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
  expect("data.format", config.data.format, layouts.LAYOUTS)
  expect("model.arch", config.model.arch, tuple(ARCHITECTURES))
  expect("model.image_depth", config.model.image_depth, (18, 34, 50, 101))
  expect("eval.weights", config.eval.weights, ("teacher", "student"))
  expect("eval.superpoints", config.eval.superpoints, ("none", "mean", "half"))
  expect("eval.tta", config.eval.tta, tuple(test_time.SETS))
  expect("eval.checkpoint", config.eval.checkpoint, ("best", "latest"))
  expect("eval.export", config.eval.export, ("", "scannet"))
  expect("init_checkpoint", config.init_checkpoint, ("best", "latest"))
  expect(
    "model.implementation",
    config.model.implementation,
    ("", *gather_conv.IMPLEMENTATIONS),
  )
  positive = {
    "data.voxel_size": config.data.voxel_size,
    "train.batch_size": config.train.batch_size,
    "train.epochs": config.train.epochs,
    "train.loop": config.train.loop,
    "train.log_every": config.train.log_every,
    "model.width": config.model.width,
    "model.image_width": config.model.image_width,
    "data.smallest_bucket": config.data.smallest_bucket,
    "loss.temperature": config.loss.temperature,
    "train.lr": config.train.lr,
    "data.image_size": min(config.data.image_size),
  }
  not_negative = {
    **{f"loss.{k}": v for k, v in config.loss.items()},
    "ema_keep": config.ema_keep,
    "train.total_steps": config.train.total_steps,
    "train.checkpoint_every": config.train.checkpoint_every,
    "train.patience": config.train.patience,
    "train.power": config.train.power,
    "train.momentum": config.train.momentum,
    "train.weight_decay": config.train.weight_decay,
    "eval.max_scenes": config.eval.max_scenes,
    "data.max_voxels": config.data.max_voxels,
    "data.num_pairs": config.data.num_pairs,
    "data.num_views": config.data.num_views,
    "data.threads": config.data.threads,
    "data.link_tolerance": config.data.link_tolerance,
  }
  if config.method == "wsegpc":
    positive["data.num_views"] = config.data.num_views
  for field, value in positive.items():
    if not value > 0:
      raise DataError(f"config.{field}={value!r}; expected a positive number")
  for field, value in not_negative.items():
    if not value >= 0:
      raise DataError(f"config.{field}={value!r}; expected at least 0")
  for field, value in (
    ("ema_keep", config.ema_keep),
    ("data.drop_probability", config.data.drop_probability),
    ("data.mix3d", config.data.mix3d),
  ):
    if not 0 <= value <= 1:
      raise DataError(f"config.{field}={value!r}; expected 0 to 1")
  if not config.data.bucket_ratio > 1:
    raise DataError(
      f"config.data.bucket_ratio={config.data.bucket_ratio!r}; expected more "
      "than 1"
    )
  if config.data.largest_bucket < config.data.smallest_bucket:
    raise DataError(
      f"config.data.largest_bucket={config.data.largest_bucket}; expected at "
      f"least config.data.smallest_bucket={config.data.smallest_bucket}"
    )


def open_data(config: ConfigDict) -> Dataset:
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
  try:
    dataset = layouts.open_dataset(data.root, data.format)
  except DataError as error:
    if Path(data.root).is_dir():
      raise
    raise DataError(
      f"no data set at config.data.root={str(data.root)!r}: {error}\n"
      f"{data.how_to_get}".rstrip()
    ) from error
  return cache.cached(dataset, data.cache) if data.cache else dataset


def write_data_record(
  workdir: str, dataset: Dataset, scenes: tuple[str, ...]
) -> None:
  """Keeps with the run what it was trained on.

  Predicting needs no data set then, and one that has changed is noticed.
  """
  record = {"classes": list(dataset.classes), "train_scenes": list(scenes)}
  writers.write_json(Path(workdir) / _DATA_RECORD, record)


def read_classes(workdir: str) -> tuple[str, ...]:
  """Class names of the run in a working directory.

  Raises:
    DataError: it holds none.
  """
  return tuple(_read_data_record(workdir)["classes"])


def check_same_data(
  workdir: str, dataset: Dataset, scenes: tuple[str, ...] | None = None
) -> None:
  """Refuses a data set other than the one a run was trained on.

  Args:
    workdir: of the run.
    dataset: its classes must be the run's, in their order.
    scenes: its training scenes; None = not compared.

  Raises:
    DataError: names what differs.
  """
  record = _read_data_record(workdir)
  where = f"{dataset.root} is not what {workdir} was trained on"
  if record["classes"] != list(dataset.classes):
    raise DataError(
      f"{where}: its classes are {', '.join(dataset.classes)}, the run's "
      f"{', '.join(record['classes'])}"
    )
  if scenes is not None and record["train_scenes"] != list(scenes):
    differing = sorted(set(record["train_scenes"]) ^ set(scenes))
    raise DataError(
      f"{where}: its training scenes differ ({', '.join(differing[:3])}); "
      "use another working directory"
    )


def _read_data_record(workdir: str) -> dict:
  path = Path(workdir) / _DATA_RECORD
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise DataError(
      f"{path} cannot be read: expected the working directory of a training "
      f"run ({error})"
    ) from error


def split_scenes(dataset: Dataset, split: str) -> tuple[str, ...]:
  """Scenes of a split.

  Raises:
    DataError: the split does not exist or is empty.
  """
  scenes = dataset.splits.get(split, ())
  if not scenes:
    raise DataError(
      f"{dataset.root}: split {split!r} has no scenes; it "
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


def sample_settings(config: ConfigDict, *, slots: int = 1) -> SampleSettings:
  """How training samples are made, for `slots` scenes a device.

  No scene gets more voxels than its share of the largest bucket, or, joined to
  another one, half of it.
  """
  data, images = config.data, config.method == "wsegpc"
  share = data.largest_bucket // slots // (2 if data.mix3d else 1)
  return SampleSettings(
    voxel_size=data.voxel_size,
    num_views=data.num_views if images else 0,
    image_size=tuple(data.image_size),
    link_tolerance=data.link_tolerance or None,
    teacher=images,
    drop_probability=data.drop_probability,
    max_rotation=data.max_rotation,
    max_voxels=min(data.max_voxels or share, share),
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
  config: ConfigDict, dataset: Dataset
) -> Callable[[Scene], np.ndarray] | None:
  """Where training labels come from: None = the scene's own.

  Raises:
    DataError: the folder of pseudo-labels is not there.
  """
  if config.method != "segmentation":
    return None
  if not config.data.labels_from:
    for name in split_scenes(dataset, config.data.train_split):
      if not dataset.has_labels(name):
        raise DataError(
          f"{dataset.root}: scene {name} has no labels: without "
          "config.data.labels_from every training scene needs them"
        )
    return None
  folder = Path(config.data.labels_from)
  if not folder.is_dir():
    raise DataError(
      f"config.data.labels_from={str(folder)!r} is not a folder; expected "
      "<scene>.npz files with pred_label, as --mode=label of stage 2 writes"
    )
  for name in split_scenes(dataset, config.data.train_split):
    if not (folder / f"{name}.npz").is_file():
      raise DataError(
        f"{folder / name}.npz not found: expected pseudo-labels of every "
        "training scene, as --mode=label of stage 2 writes them"
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
