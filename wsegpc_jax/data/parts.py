"""Scenes too large for the largest bucket, cut into overlapping parts."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from wsegpc_jax.types import DataError, Scene

MARGIN = 2.0  # metres around a part's core that the network sees as well
_SMALLEST = 0.5  # metres; a core is not cut further


@dataclasses.dataclass(frozen=True)
class Part:
  """Points that are predicted together.

  Attributes:
    points: int64 [P], rows of the scene.
    core: int64 [Q], positions in `points` whose prediction counts; the cores
      of all parts contain every point of the scene once.
  """

  points: np.ndarray
  core: np.ndarray


def split(
  coord: np.ndarray, *, fits: Callable[[np.ndarray], bool]
) -> Iterator[Part]:
  """Cuts a scene along x and y until every part fits, margin included.

  Args:
    coord: float32 [N, 3], metres.
    fits: whether points [P, 3] fit into one batch.

  Raises:
    DataError: a column of half a metre and its margin does not fit.
  """
  low, high = coord[:, :2].min(0), coord[:, :2].max(0)
  yield from _split(coord, low, high, np.ones(len(coord), bool), fits)


def _split(coord, low, high, inside, fits) -> Iterator[Part]:
  near = (coord[:, :2] >= low - MARGIN) & (coord[:, :2] <= high + MARGIN)
  points = np.flatnonzero(near.all(1))
  if not inside.any():
    return
  if fits(coord[points]):
    yield Part(points, np.flatnonzero(inside[points]))
    return
  axis = int(np.argmax(high - low))
  if high[axis] - low[axis] < _SMALLEST:
    raise DataError(
      f"a part of the scene at {low.tolist()} m does not fit into the largest "
      "bucket; raise config.data.largest_bucket or config.data.voxel_size"
    )
  middle = (low[axis] + high[axis]) / 2
  left = coord[:, axis] < middle
  upper, lower = high.copy(), low.copy()
  upper[axis] = lower[axis] = middle
  yield from _split(coord, low, upper, inside & left, fits)
  yield from _split(coord, lower, high, inside & ~left, fits)


def take(scene: Scene, points: np.ndarray) -> Scene:
  """The scene with some of its points only."""
  optional = {
    name: value if value is None else value[points]
    for name, value in (
      ("label", scene.label),
      ("superpoint", scene.superpoint),
    )
  }
  return dataclasses.replace(
    scene,
    coord=scene.coord[points],
    color=scene.color[points],
    normal=scene.normal[points],
    **optional,
  )
