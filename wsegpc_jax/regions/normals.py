"""Normals of a point cloud by local plane fits.

Dimension letters: N points, V viewpoints.
"""

import numpy as np
from scipy.spatial import cKDTree

from wsegpc_jax.types import DataError

_CHUNK = 16384  # rows a pass: a chunk of 16 neighbours takes about 20 MB
_HORIZONTAL = 0.7  # |n_z| above which a surface counts as horizontal
_CEILING_BAND = 0.2  # metres below the top in which a surface faces down
_MIN_CEILING = 1.8  # metres; lower clouds are cut off below their ceiling


def estimate_normals(
  coord: np.ndarray,
  *,
  neighbors: int = 16,
  viewpoints: np.ndarray | None = None,
) -> np.ndarray:
  """Fits a plane to the nearest neighbours of each point.

  The sign is the side of the nearest viewpoint when there are viewpoints.
  Without them it is a guess for rooms with z up: horizontal surfaces face up
  (the topmost ones of a cloud high enough to have a ceiling face down), the
  others face the middle of the cloud.

  Args:
    coord: float [N, 3], metres, z up.
    neighbors: points of a local fit, the point itself included; at least 3.
    viewpoints: float [V, 3], camera centres in the frame of `coord`.

  Returns:
    float32 [N, 3] of unit length, also where the neighbours lie on a line or
    in one place.

  Raises:
    DataError: on wrong shapes or values that are not finite.
  """
  coord = _checked(coord, "coord")
  if neighbors < 3:
    raise DataError(f"neighbors: expected at least 3, got {neighbors}")
  if not len(coord):
    return np.zeros((0, 3), np.float32)
  if viewpoints is not None:
    viewpoints = _checked(viewpoints, "viewpoints")
    if not len(viewpoints):
      viewpoints = None

  tree = cKDTree(coord)
  k = min(neighbors, len(coord))
  normal = np.empty((len(coord), 3))
  for start in range(0, len(coord), _CHUNK):
    rows = slice(start, start + _CHUNK)
    _, index = tree.query(coord[rows], k=k, workers=-1)
    near = coord[index.reshape(-1, k)]
    near = near - near.mean(axis=1, keepdims=True)
    _, vector = np.linalg.eigh(np.einsum("nki,nkj->nij", near, near))
    normal[rows] = vector[:, :, 0]
    # No direction at all: eigh would give an arbitrary axis.
    normal[rows][(near == 0).all(axis=(1, 2))] = (0.0, 0.0, 1.0)

  away = np.sum(normal * _facing(coord, normal, viewpoints), axis=1) < 0
  normal[away] *= -1
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  return normal.astype(np.float32)


def _facing(coord, normal, viewpoints):
  """Directions [N, 3], not normalised, that the normals should agree with."""
  if viewpoints is not None:
    _, nearest = cKDTree(viewpoints).query(coord, workers=-1)
    return viewpoints[nearest] - coord
  low, high = np.percentile(coord, (1, 99), axis=0)
  facing = (low + high) / 2 - coord
  horizontal = np.abs(normal[:, 2]) > _HORIZONTAL
  facing[horizontal] = (0.0, 0.0, 1.0)
  if high[2] - low[2] > _MIN_CEILING:
    top = horizontal & (coord[:, 2] > high[2] - _CEILING_BAND)
    facing[top] = (0.0, 0.0, -1.0)
  return facing


def _checked(value, name):
  value = np.asarray(value, np.float64)
  if value.ndim != 2 or value.shape[1] != 3:
    raise DataError(f"{name}: expected shape [N, 3], got {value.shape}")
  if not np.isfinite(value).all():
    raise DataError(f"{name}: expected finite values, got NaN or infinity")
  return value
