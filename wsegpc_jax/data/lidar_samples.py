"""From a laser scan to one training or evaluation sample (numpy, ragged).

Source: Tang et al., "Searching Efficient 3D Architectures with Sparse
Point-Voxel Convolution", ECCV 2020, and its official code. A voxel holds the
points that round to it; its features are the place in metres of its first
point, as augmented, and that point's remission.

Dimension letters: N points of a scan, M voxels.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.samples import Sample, VoxelSample
from wsegpc_jax.sparse.voxelize import Voxels, voxelize
from wsegpc_jax.types import IGNORE_LABEL, DataError, Scene

CHANNELS = 4  # x, y, z, remission


@dataclasses.dataclass(frozen=True)
class LidarSettings:
  """How a sample is made.

  Attributes:
    voxel_size: edge of a voxel, metres.
    max_voxels: most voxels of a training sample; None = all. Evaluation always
      has all.
    cap: which voxels stay when there are more: "random" ones, as in the
      published code, or the "nearest" ones to a random one, seen from above,
      which keeps their density.
    rotate: whether training samples are turned about z by a random angle.
    scales: training samples are scaled by a factor in between.
  """

  voxel_size: float = 0.05
  max_voxels: int | None = 80_000
  cap: Literal["random", "nearest"] = "random"
  rotate: bool = True
  scales: tuple[float, float] = (0.95, 1.05)

  def __post_init__(self):
    if self.cap not in ("random", "nearest"):
      raise DataError(f'cap={self.cap!r}: expected "random" or "nearest"')
    if self.max_voxels is not None and self.max_voxels < 1:
      raise DataError(f"max_voxels={self.max_voxels}: expected at least 1")


def training_sample(
  dataset: Dataset,
  name: str,
  rng: np.random.Generator,
  settings: LidarSettings,
  *,
  labels: Callable[[Scene], np.ndarray] | None = None,
) -> Sample:
  """A turned and scaled sample of one scan, of at most `max_voxels` voxels.

  Args:
    dataset: where the scan is.
    name: the scene.
    rng: source of all randomness.
    settings: see there.
    labels: gives the labels to train on; None = the scene's own.

  Raises:
    DataError: a file of the scene is at fault, or it has no remission.
  """
  scene = dataset.load_scene(name)
  label = scene.label if labels is None else labels(scene)
  coord = scene.coord
  if settings.rotate:
    coord = turn(coord, rng.uniform(0, 2 * np.pi))
  coord = coord * np.float32(rng.uniform(*settings.scales))
  voxels = voxelize_scan(coord, settings.voxel_size)
  kept = np.arange(len(voxels.coords))
  most = settings.max_voxels
  if most is not None and len(kept) > most:
    if settings.cap == "random":
      kept = rng.choice(len(kept), most, replace=False)
    else:
      plan = voxels.coords[:, :2].astype(np.int64)
      away = np.square(plan - plan[rng.integers(len(plan))]).sum(1)
      kept = np.argpartition(away, most - 1)[:most]
    kept.sort()  # Morton order
  return _sample(scene, coord, label, voxels, kept)


def evaluation_sample(scene: Scene, settings: LidarSettings) -> Sample:
  """A sample of a whole scan, with its inverse map.

  Raises:
    DataError: the scan is too wide (see `voxelize`), or has no remission.
  """
  voxels = voxelize_scan(scene.coord, settings.voxel_size)
  kept = np.arange(len(voxels.coords))
  sample = _sample(scene, scene.coord, scene.label, voxels, kept)
  return dataclasses.replace(sample, inverse=voxels.inverse)


def turn(coord: np.ndarray, angle: float) -> np.ndarray:
  """Points float32 [N, 3], turned about z, counterclockwise from above."""
  cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  x, y, z = coord.T
  return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], 1)


def voxelize_scan(coord: np.ndarray, voxel_size: float) -> Voxels:
  """Voxels by rounding, floor(coord / voxel_size + 1/2), see `voxelize`."""
  return voxelize(coord.astype(np.float64) + voxel_size / 2, voxel_size)


def _sample(scene, coord, label, voxels, kept) -> Sample:
  if scene.intensity is None:
    raise DataError(
      f"scene {scene.name} has no intensity, expected a laser scan"
    )
  first = voxels.first[kept]
  features = np.concatenate([coord[first], scene.intensity[first, None]], 1)
  if label is None:
    label = np.full(len(coord), IGNORE_LABEL, np.int32)
  coords, counts = voxels.coords, voxels.level_counts
  if len(kept) < len(coords):
    coords = coords[kept]
    counts = _level_counts(coords, len(counts))
  return Sample(
    name=scene.name,
    student=VoxelSample(coords, features.astype(np.float32), counts),
    label=label[first].astype(np.int32),
    tags=scene.tags,
  )


def _level_counts(coords: np.ndarray, levels: int) -> tuple[int, ...]:
  """Voxels of each level above voxels in Morton order."""
  counts = []
  for level in range(levels):
    coarse = coords >> level
    new = (coarse[1:] != coarse[:-1]).any(1)
    counts.append(1 + int(np.count_nonzero(new)))
  return tuple(counts)
