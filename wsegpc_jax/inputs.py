"""From a configuration to the data that the programs read."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import writers
from wsegpc_jax.data import (
  batching,
  cache,
  layouts,
  lidar_samples,
  samples,
  semantic_kitti,
)
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.lidar_samples import LidarSettings
from wsegpc_jax.data.samples import Sample, SampleSettings
from wsegpc_jax.files import NUMPY_READING
from wsegpc_jax.sparse.voxelize import Voxels, voxelize
from wsegpc_jax.types import DataError, Frame, Scene

_DATA_RECORD = "data.json"


def open_data(config: ConfigDict) -> Dataset:
  """Opens config.data.root, after writing rooms there if it asks to.

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
  elif data.synthetic.train > 0:
    from wsegpc_jax.data import synthetic

    synthetic.write_rooms(
      data.root,
      train=data.synthetic.train,
      val=data.synthetic.val,
      seed=data.synthetic.seed,
      image_size=tuple(data.synthetic.image_size),
      # As the command writes, unless more are wanted.
      views=max(data.num_views, 6),
      workers=max(data.threads, 1),
    )
  try:
    dataset = layouts.open_dataset(
      data.root, data.format, **_layout_options(config)
    )
  except DataError as error:
    if Path(data.root).is_dir():
      raise
    raise DataError(
      f"no data set at config.data.root={str(data.root)!r}: {error}\n"
      f"{data.how_to_get}".rstrip()
    ) from error
  return cache.cached(dataset, data.cache) if data.cache else dataset


def _layout_options(config: ConfigDict) -> dict:
  data = config.data
  if data.format == "scannet":
    return {"align": data.axis_align}
  if data.format != "semantic_kitti":
    return {}
  chosen = {split: scans for split, scans in data.scans.items() if scans}
  return {
    "label_map": data.label_map,
    "splits": chosen or None,
    "past_scans": data.past_scans,
  }


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


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Makes the samples that config.data.sensor asks for."""

  settings: SampleSettings | LidarSettings

  @property
  def has_images(self) -> bool:
    return isinstance(self.settings, SampleSettings)

  def training(
    self,
    dataset: Dataset,
    name: str,
    rng: np.random.Generator,
    *,
    labels: Callable[[Scene], np.ndarray] | None = None,
    others: tuple[str, ...] = (),
  ) -> Sample:
    """See `samples.training_sample` and `lidar_samples.training_sample`."""
    if isinstance(self.settings, LidarSettings):
      return lidar_samples.training_sample(
        dataset, name, rng, self.settings, labels=labels
      )
    return samples.training_sample(
      dataset, name, rng, self.settings, labels=labels, others=others
    )

  def evaluation(self, scene: Scene, frames: tuple[Frame, ...] = ()) -> Sample:
    """A whole scene with its inverse map; a laser scan has no frames."""
    if isinstance(self.settings, LidarSettings):
      return lidar_samples.evaluation_sample(scene, self.settings)
    return samples.evaluation_sample(scene, frames, self.settings)

  def voxelize(self, coord: np.ndarray) -> Voxels:
    """The voxels of an evaluation sample of points [N, 3]."""
    if isinstance(self.settings, LidarSettings):
      return lidar_samples.voxelize_scan(coord, self.settings.voxel_size)
    return voxelize(coord, self.settings.voxel_size)


def sampler(config: ConfigDict, *, slots: int = 1) -> Sampler:
  """How samples are made, for `slots` scenes a device.

  No training sample gets more voxels than its share of the largest bucket, or,
  joined to another one, half of it.
  """
  data, images = config.data, config.method == "wsegpc"
  share = data.largest_bucket // slots // (2 if data.mix3d else 1)
  most = min(data.max_voxels or share, share)
  if data.sensor == "lidar":
    return Sampler(
      LidarSettings(voxel_size=data.voxel_size, max_voxels=most, cap=data.cap)
    )
  return Sampler(
    SampleSettings(
      voxel_size=data.voxel_size,
      num_views=data.num_views if images else 0,
      image_size=tuple(data.image_size),
      link_tolerance=data.link_tolerance or None,
      teacher=images,
      drop_probability=data.drop_probability,
      max_rotation=data.max_rotation,
      max_voxels=most,
      mix3d=data.mix3d,
      num_pairs=data.num_pairs,
      compat=config.compat == "reference",
    )
  )


def layout(config: ConfigDict, *, slots: int) -> batching.Layout:
  """What a device's share has room for; slots = scenes a device."""
  data, images = config.data, config.method == "wsegpc"
  lidar = data.sensor == "lidar"
  return batching.Layout(
    buckets=batching.geometric_buckets(
      data.smallest_bucket, data.largest_bucket, data.bucket_ratio
    ),
    slots=slots,
    num_views=data.num_views if images else 0,
    image_size=tuple(data.image_size) if images else (0, 0),
    num_pairs=data.num_pairs if images else 0,
    channels=lidar_samples.CHANNELS if lidar else samples.CHANNELS,
    level_ratios=tuple(data.level_ratios),
  )


def label_source(
  config: ConfigDict, dataset: Dataset
) -> Callable[[Scene], np.ndarray] | None:
  """Where training labels come from: None = the scene's own.

  Raises:
    DataError: the folder of pseudo-labels is not there.
  """
  if config.method == "wsegpc":
    return None
  if not config.data.labels_from:
    for name in split_scenes(dataset, config.data.train_split):
      if not dataset.has_labels(name):
        raise DataError(
          f"{dataset.root}: scene {name} has no labels: without "
          "config.data.labels_from every training scene needs them"
        )
    other = config.data.train_label_map
    if config.data.format == "semantic_kitti" and other:
      return semantic_kitti.labels_of(dataset, other)
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
    with NUMPY_READING, np.load(path, allow_pickle=False) as archive:
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
