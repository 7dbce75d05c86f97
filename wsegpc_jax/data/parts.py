"""Scenes too large for the largest bucket, cut into overlapping parts.

A scene is cut between columns of 16 x 16 voxels of its own grid. The pyramid is
aligned to 16 voxels, so no voxel of any level lies in two columns: a part has
the very voxels of the whole scene, each with the same first point, and what it
takes up is a sum over its columns. Nothing is voxelised again to find that out.

Dimension letters: N points, M voxels, C columns, L pyramid levels.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from wsegpc_jax.sparse.voxelize import ALIGNMENT, Voxels
from wsegpc_jax.types import DataError, Scene

logger = logging.getLogger(__name__)

# Voxels computed for each voxel of the scene, at most, to have a wider margin.
_MOST_WORK = 8.0
_NARROWEST = 2  # columns; a margin is never narrower, whatever it costs


@dataclasses.dataclass(frozen=True)
class Part:
  """Points that are predicted together.

  Attributes:
    points: int64 [P], rows of the scene, ascending.
    core: int64 [Q], positions in `points` whose prediction counts; the cores
      of all parts contain every point of the scene once.
  """

  points: np.ndarray
  core: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Occupied columns: place int64 [C, 2]; counts int64 [C, L] of voxels."""

  place: np.ndarray
  counts: np.ndarray


def split(voxels: Voxels, *, room: Sequence[int], reach: int) -> Iterator[Part]:
  """Cuts a scene along x and y until every part fits, margin included.

  Each part sees more than its core, on all sides: with a margin as wide as the
  network's receptive field, its core is predicted as in the whole scene. Where
  that would take more than eight times the voxels of the scene, or would not
  fit at all, the margin is narrower, at least 32 voxels.

  Args:
    voxels: of the whole scene, as `voxelize` without a shift gives them.
    room: voxels at strides 1, 2, 4, ... that one part may have.
    reach: voxels from a voxel to the farthest that its prediction depends on.

  Raises:
    DataError: 16 x 16 voxels and the narrowest margin do not fit.
  """
  room = np.asarray(room)
  if (np.asarray(voxels.level_counts) <= room).all():
    every = np.arange(len(voxels.inverse))
    return iter([Part(every, every)])
  columns, of_voxel = _columns(voxels, len(room))
  regions, margin = _regions(columns, room, reach)
  found = f"{len(regions)} parts with margins of {margin * ALIGNMENT} voxels"
  return _points_of(
    regions, of_voxel[voxels.inverse], f"{found} (receptive field: {reach})"
  )


def _points_of(regions, of_point, message) -> Iterator[Part]:
  """The points of each part, given the column of each point [N]."""
  logger.info("%s", message)
  order = np.argsort(of_point, kind="stable")
  starts = np.searchsorted(
    of_point, np.arange(of_point.max() + 2), sorter=order
  )
  for own, near in regions:
    rows = [order[starts[c] : starts[c + 1]] for c in near]
    inside = np.repeat(np.isin(near, own), [len(r) for r in rows])
    points = np.concatenate(rows)
    # In the scene's order, whose first point represents a voxel.
    ascending = np.argsort(points)
    yield Part(points[ascending], np.flatnonzero(inside[ascending]))


def _columns(voxels, levels) -> tuple[_Columns, np.ndarray]:
  """The occupied columns, and the column of each voxel [M]."""
  place = voxels.coords[:, :2].astype(np.int64) // ALIGNMENT
  key, of_voxel = np.unique(
    place[:, 0] << 32 | place[:, 1], return_inverse=True
  )
  counts = np.empty((len(key), levels), np.int64)
  for level in range(levels):
    # In Morton order the voxels of a coarser one follow each other.
    coarse = voxels.coords >> level
    new = np.ones(len(coarse), bool)
    new[1:] = (coarse[1:] != coarse[:-1]).any(1)
    counts[:, level] = np.bincount(of_voxel[new], minlength=len(key))
  place = np.stack([key >> 32, key & 0xFFFFFFFF], 1)
  return _Columns(place, counts), of_voxel


def _regions(columns, room, reach) -> tuple[list, int]:
  """(own, near) columns of each part, and the margin, in columns."""
  widest = -(-reach // ALIGNMENT)
  budget = _MOST_WORK * columns.counts[:, 0].sum()
  for margin in range(max(widest, _NARROWEST), _NARROWEST, -1):
    found = _cut(columns, room, margin, budget)
    if found is not None:
      return found, margin
  return _cut(columns, room, _NARROWEST, None), _NARROWEST


def _cut(columns, room, margin, budget) -> list | None:
  """Cuts the plan of a scene in two, again and again, until all parts fit.

  Returns:
    (own, near) columns of each part; None if they have more voxels than the
    budget or one column and its margin does not fit. Without a budget that
    raises DataError.
  """
  everything = np.arange(len(columns.place))
  waiting, found, work = [(everything, everything)], [], 0
  while waiting:
    own, near = waiting.pop()
    place = columns.place[own]
    low, high = place.min(0), place.max(0)
    beside = columns.place[near]
    seen = (beside >= low - margin) & (beside <= high + margin)
    near = near[seen.all(1)]
    need = columns.counts[near].sum(0)
    if (need <= room).all():
      found.append((own, near))
      work += need[0]
      if budget is not None and work > budget:
        return None
      continue
    axis = int(np.argmax(high - low))
    if high[axis] == low[axis]:
      if budget is not None:
        return None
      level = int(np.argmax(need > room))
      raise DataError(
        f"a part of {ALIGNMENT} x {ALIGNMENT} voxels and a margin of "
        f"{margin * ALIGNMENT} has {need[level]} voxels at stride "
        f"{2**level}, the largest bucket has room for {room[level]}; raise "
        "config.data.largest_bucket"
      )
    upper = place[:, axis] > (low[axis] + high[axis]) // 2
    waiting += [(own[upper], near), (own[~upper], near)]
  return found


def take(scene: Scene, points: np.ndarray) -> Scene:
  """The scene with some of its points only."""
  fields = ("coord", "color", "normal", "label", "superpoint", "intensity")
  arrays = {name: getattr(scene, name) for name in fields}
  return dataclasses.replace(
    scene,
    **{k: v if v is None else v[points] for k, v in arrays.items()},
  )
