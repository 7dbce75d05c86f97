"""Morton (Z-order) keys of voxel coordinates, on the host and on the device.

In Morton order neighbours lie close in memory and the children of a coarse
voxel are consecutive, so a pyramid needs no `unique`. Bit i of x, y, z goes to
bits 3i+2, 3i+1, 3i of the key: x is the highest.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Int64, UInt32

HOST_BITS = 21  # bits an axis of the 63-bit host key
_LANE_BITS = 10  # bits an axis of one 30-bit device lane
# Device keys cover coordinates in [-LIMIT, LIMIT); a multiple of 16, so that
# the offset moves no voxel to another coarse cell.
LIMIT = 1 << 29


def _spread(v, constants):
  for shift, mask in constants:
    v = (v | (v << shift)) & mask
  return v


_SPREAD_64 = tuple(
  (np.int64(s), np.int64(m))
  for s, m in (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
  )
)
_SPREAD_32 = (
  (16, 0x030000FF),
  (8, 0x0300F00F),
  (4, 0x030C30C3),
  (2, 0x09249249),
)


def morton_key(coords: Int[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
  """63-bit Morton keys of coordinates in 0 .. 2^21 - 1 (numpy).

  Raises:
    ValueError: a coordinate is outside that range.
  """
  coords = np.asarray(coords, np.int64)
  if coords.size and (coords.min() < 0 or coords.max() >= 1 << HOST_BITS):
    raise ValueError(
      f"voxel coordinates must lie in 0..{(1 << HOST_BITS) - 1}, got "
      f"{coords.min()}..{coords.max()}"
    )
  x, y, z = (_spread(coords[:, i], _SPREAD_64) for i in range(3))
  return (x << np.int64(2)) | (y << np.int64(1)) | z


def morton_order(coords: Int[np.ndarray, "n 4"]) -> Int64[np.ndarray, " n"]:
  """Rows by scene, then in Morton order; coordinates in [-2^29, 2^29)."""
  coords = np.asarray(coords, np.int64)
  if not len(coords):
    return np.zeros(0, np.int64)
  xyz, scene = coords[:, 1:], coords[:, 0]
  # Alike in order, as a multiple of the largest power of two is taken off.
  base = (xyz + LIMIT) >> HOST_BITS
  if scene.max() == scene.min() and (base == base[0]).all():
    key = morton_key((xyz + LIMIT) & ((1 << HOST_BITS) - 1))
    return np.argsort(key)
  low = morton_key((xyz + LIMIT) & ((1 << HOST_BITS) - 1))
  return np.lexsort((low, morton_key(base), scene))


def morton_lanes(
  coords: Int32[Array, "n 3"],
) -> tuple[UInt32[Array, " n"], ...]:
  """Morton keys as three uint32 lanes, most significant first (jax).

  Exact for coordinates in [-2^29, 2^29), without 64-bit integers.
  """
  biased = (coords + jnp.int32(LIMIT)).astype(jnp.uint32)
  lanes = []
  for lane in (2, 1, 0):
    bits = (biased >> (lane * _LANE_BITS)) & jnp.uint32((1 << _LANE_BITS) - 1)
    constants = [(s, jnp.uint32(m)) for s, m in _SPREAD_32]
    x, y, z = (_spread(bits[:, i], constants) for i in range(3))
    lanes.append((x << 2) | (y << 1) | z)
  return tuple(lanes)
