"""Fusing posed depth images to one surface.

Dimension letters: N points.
"""

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from wsegpc_jax.interop.capture import Camera, Source, load_posed
from wsegpc_jax.types import DataError

_EDGE = 0.05  # relative jump in depth next to which depth is not trusted
_REACH = 3  # voxels before and behind a surface that a frame votes for
_MERGE_ROWS = 4_000_000
# Voxels are counted from the middle of a box of 2^21 a side.
_MIDDLE = 1 << 20


def fuse(
  sources: list[Source],
  camera: Camera,
  *,
  voxel: float = 0.02,
  max_depth: float = 3.0,
) -> dict[str, np.ndarray | None]:
  """Fuses depth images to the surface that they agree on.

  Each frame votes, for the voxels near what it sees, how far they are before or
  behind the surface; points lie where the mean changes sign (Curless and Levoy,
  SIGGRAPH 1996). Averaging points instead would leave a crust as thick as the
  noise. Pixels next to a jump in depth are left out: they lie between surfaces.

  Args:
    sources: the frames.
    camera: of all frames.
    voxel: edge of a voxel, metres.
    max_depth: metres; what is measured beyond is left out.

  Returns:
    coord float32 [N, 3], color uint8 [N, 3], about one point in each voxel that
    the surface crosses; normal and label are None.

  Raises:
    DataError: an image cannot be read, or nothing is nearer than `max_depth`.
  """
  parts, rows = [], 0
  for source in tqdm(sources, desc="fusing", unit="frame"):
    parts.append(_votes(load_posed(source, camera, "depth"), voxel, max_depth))
    rows += len(parts[-1][0])
    if rows > _MERGE_ROWS:
      parts = [_sum_rows(*map(np.concatenate, zip(*parts, strict=True)))]
      rows = len(parts[0][0])
  key, total = _sum_rows(*map(np.concatenate, zip(*parts, strict=True)))
  points = _crossings(key, total[:, 1:] / total[:, :1], voxel)
  if not len(points):
    raise DataError(
      f"{sources[0].depth.parent}: no surface nearer than {max_depth} m,"
      f" expected depth in units of 1/{camera.depth_scale:g} m"
    )
  return {
    "coord": points[:, :3].astype(np.float32),
    "color": np.rint(points[:, 3:]).astype(np.uint8),
    "normal": None,
    "label": None,
  }


def _votes(frame, voxel, max_depth):
  """Keys of voxels, and rows of weight and weighted distance and colour."""
  depth = frame.depth.astype(np.float64)
  jump = ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3)
  good = (depth > 0) & (depth < max_depth) & (jump < _EDGE * depth)
  row, column = np.nonzero(good)
  fx, fy, cx, cy = frame.intrinsics
  ray = np.stack([(column - cx) / fx, (row - cy) / fy, np.ones(len(row))], 1)
  turn, origin = frame.pose[:3, :3], frame.pose[:3, 3]
  ray = ray @ turn.T
  key = []
  for step in range(-_REACH, _REACH + 1):
    place = ray * (depth[good] + step * voxel)[:, None] + origin
    key.append(_distinct(_key(place, voxel)))
  key = _distinct(np.concatenate(key))
  # The distance is that of the voxel's centre, along the optical axis.
  x, y, z = ((_centers(key, voxel) - origin) @ turn).T
  z = np.maximum(z, voxel)
  place = np.stack([y / z * fy + cy, x / z * fx + cx])
  pixel = np.rint(place).astype(np.int64)
  seen = ((pixel >= 0) & (pixel < np.array([depth.shape]).T)).all(axis=0)
  key, z, place, pixel = key[seen], z[seen], place[:, seen], pixel[:, seen]
  # Inverse depth is linear in the pixels of a plane.
  inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
  inverse = ndimage.map_coordinates(inverse, place, order=1, mode="nearest")
  near = good[tuple(pixel)] & (inverse > 0)
  distance = 1 / inverse[near] - z[near]
  color = frame.color[tuple(pixel[:, near])]
  values = np.column_stack([np.ones(len(distance)), distance, color])
  values /= z[near, None] ** 2  # the noise of depth grows with its square
  close = np.abs(distance) < _REACH * voxel
  return key[near][close], values[close]


def _crossings(key, mean, voxel):
  """Surface points and colours [n, 6], averaged in each voxel.

  `mean` has distance and colour of the voxels `key`, which are sorted.
  """
  distance = mean[:, 0]
  found = []
  for axis in range(3):
    next_key = key + (1 << 21 * (2 - axis))
    index = np.minimum(np.searchsorted(key, next_key), len(key) - 1)
    a, b = distance, distance[index]
    # A larger step is that from behind one surface to before the next.
    cross = (key[index] == next_key) & ((a < 0) != (b < 0))
    cross &= np.abs(a - b) < _REACH * voxel
    i, j = np.flatnonzero(cross), index[cross]
    share = (a[i] / (a[i] - a[j]))[:, None]
    values = np.column_stack([_centers(key[i], voxel), mean[i, 1:]])
    others = np.column_stack([_centers(key[j], voxel), mean[j, 1:]])
    found.append(values + share * (others - values))
  found = np.concatenate(found)
  ones = np.ones((len(found), 1))
  _, total = _sum_rows(_key(found[:, :3], voxel), np.hstack([found, ones]))
  return total[:, :6] / total[:, 6:]


def _key(points, voxel):
  x, y, z = np.floor(points.T / voxel).astype(np.int64) + _MIDDLE
  return (x << 42) + (y << 21) + z


def _centers(key, voxel):
  cell = np.stack([key >> 42, key >> 21, key], axis=1) & ((1 << 21) - 1)
  return (cell - _MIDDLE + 0.5) * voxel


def _distinct(key):
  """Sorted keys, each once; numpy's unique hashes them, which takes longer."""
  key = np.sort(key)
  return key[np.diff(key, prepend=key[:1] - 1) > 0]


def _sum_rows(key, values):
  """Adds up the rows of equal keys; the keys come out sorted."""
  if not len(key):
    return key, values
  order = np.argsort(key, kind="stable")
  key, values = key[order], values[order]
  first = np.flatnonzero(np.diff(key, prepend=key[:1] - 1))
  return key[first], np.add.reduceat(values, first, axis=0)
