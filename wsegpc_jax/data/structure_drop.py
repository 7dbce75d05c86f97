"""Removing structures and distant points from a scan before training on it.

Source: Duan et al., "High-quality Pseudo-labeling for Point Cloud Segmentation
with Scene-level Annotation", TPAMI 2025, and its official code.

Dimension letters: N points, K classes.
"""

import numpy as np

from wsegpc_jax.sparse.voxelize import bounds
from wsegpc_jax.types import NO_REGION

# Axis and whether its upper end: left, right, back, front.
_WALL_SIDES = ((0, False), (0, True), (1, False), (1, True))


def drop_structures(
  coord: np.ndarray,
  superpoint: np.ndarray,
  tags: np.ndarray,
  rng: np.random.Generator,
  *,
  floor_class: int,
  wall_class: int,
  ceiling_class: int | None = None,
  probability: float = 0.5,
  margin: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
  """Removes floor, walls and ceiling, each with a probability of its own.

  The floor is the superpoint with most points less than `margin` above the
  bottom of the scan; the ceiling is its counterpart at the top, the walls those
  at the four sides, unless they are the floor or the ceiling. Whatever is found
  there goes as a whole, so superpoints have to be coarse: the floor one of
  them, and each wall.

  Points without a superpoint are never removed and never counted. A structure
  of which nothing is found keeps its tag. If no point were left, the scan and
  its tags stay as they are.

  Args:
    coord: float32 [N, 3], metres, z up, walls along x and y: axis-aligned.
    superpoint: int32 [N] from 0, NO_REGION = none.
    tags: bool [K], the classes that occur in the scan.
    rng: source of all randomness.
    floor_class: index of the floor in `tags`.
    wall_class: index of the wall in `tags`.
    ceiling_class: index of the ceiling in `tags`; None leaves ceilings alone.
    probability: how often each structure is removed.
    margin: how near a structure is to its side of the bounding box, metres.

  Returns:
    keep: bool [N], the points that stay.
    tags_3d: bool [K], the tags of what stays, for the 3D branch only: images
      still show what was removed.
  """
  removals = [(floor_class, ((2, False),)), (wall_class, _WALL_SIDES)]
  if ceiling_class is not None:
    removals.append((ceiling_class, ((2, True),)))
  # Drawn for all, so that what one finds does not move another's draw.
  chosen = rng.random(len(removals)) < probability

  # On a side without a wall, the floor is the largest: it would go while its
  # tag stays.
  ends = ((2, False),) if ceiling_class is None else ((2, False), (2, True))
  flat = _largest_at_sides(coord, superpoint, ends, margin)

  keep = np.ones(len(coord), bool)
  tags_3d = np.array(tags, bool)
  for (label, sides), is_chosen in zip(removals, chosen, strict=True):
    if not is_chosen:
      continue
    found = _largest_at_sides(coord, superpoint, sides, margin)
    if label == wall_class:
      found = [region for region in found if region not in flat]
    if found:
      keep &= ~np.isin(superpoint, found)
      tags_3d[label] = False
  if not keep.any():
    return np.ones(len(coord), bool), np.array(tags, bool)
  return keep, tags_3d


def crop_nearest_half(
  coord: np.ndarray,
  rng: np.random.Generator,
  *,
  max_voxels: int,
  voxel_size: float,
) -> np.ndarray:
  """Halves a scan around random points until it has few enough voxels.

  While the points fill more than `max_voxels` voxels, one of them is drawn and
  the half of the points nearest to it stays.

  Args:
    coord: float32 [N, 3], metres.
    rng: source of all randomness.
    max_voxels: most voxels that may be left, at least 1.
    voxel_size: edge of a voxel, metres.

  Returns:
    int64 [n], indices of the points that stay, ascending: the first point of a
    voxel is still the first.

  Raises:
    ValueError: `max_voxels` is below 1.
  """
  if max_voxels < 1:
    raise ValueError(f"max_voxels must be at least 1, got {max_voxels}")
  indices = np.arange(len(coord))
  while _count_voxels(coord[indices], voxel_size) > max_voxels:
    center = coord[indices[rng.integers(len(indices))]]
    distance = np.square(coord[indices] - center).sum(axis=1)
    half = len(indices) // 2
    indices = np.sort(indices[np.argpartition(distance, half)[:half]])
  return indices


def _largest_at_sides(
  coord: np.ndarray,
  superpoint: np.ndarray,
  sides: tuple[tuple[int, bool], ...],
  margin: float,
) -> list[int]:
  """The largest superpoint near each side of the bounding box, where any is."""
  found = []
  has_region = superpoint > NO_REGION
  if not has_region.any():
    return found
  for axis, is_upper in sides:
    place = coord[:, axis]
    if is_upper:
      near = place > place.max() - margin
    else:
      near = place < place.min() + margin
    names, counts = np.unique(superpoint[near & has_region], return_counts=True)
    if len(names):
      found.append(int(names[counts.argmax()]))
  return found


def _count_voxels(coord: np.ndarray, voxel_size: float) -> int:
  if not len(coord):
    return 0
  cell = np.floor(coord.astype(np.float64) / voxel_size).astype(np.int64)
  low, high = bounds(cell)
  cell -= low
  extent = [int(size) + 1 for size in high - low]
  if extent[0] * extent[1] * extent[2] > np.iinfo(np.int64).max:
    return len(np.unique(cell, axis=0))
  # Sorting is many times faster than np.unique, which hashes integers.
  key = (cell[:, 0] * extent[1] + cell[:, 1]) * extent[2] + cell[:, 2]
  key.sort()
  return 1 + np.count_nonzero(key[1:] != key[:-1])
