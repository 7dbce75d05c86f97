"""Points to voxels on the host (numpy)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int32, Int64, Shaped

from wsegpc_jax.sparse import morton
from wsegpc_jax.types import DataError

# Strides of a five-level pyramid; a grid origin is a multiple of the largest,
# so that moving a scene by a multiple of 16 voxels changes nothing.
ALIGNMENT = 16
LEVELS = 5


@dataclasses.dataclass(frozen=True)
class Voxels:
  """The occupied voxels of N points, in Morton order.

  Attributes:
    coords: int32 [M, 3], not negative, unique.
    first: int32 [M], the first point of each voxel, which represents it.
    inverse: int32 [N], the voxel of each point.
    level_counts: voxels at strides 1, 2, 4, 8, 16.
  """

  coords: Int32[np.ndarray, "m 3"]
  first: Int32[np.ndarray, " m"]
  inverse: Int32[np.ndarray, " n"]
  level_counts: tuple[int, ...]


def bounds(a: Shaped[np.ndarray, "n c"]) -> tuple[np.ndarray, np.ndarray]:
  """Smallest and largest value [C] of each of a few columns; N > 0.

  numpy's reduction over the first axis of a narrow array takes many times as
  long.
  """
  columns = [a[:, i] for i in range(a.shape[1])]
  return (
    np.array([column.min() for column in columns], a.dtype),
    np.array([column.max() for column in columns], a.dtype),
  )


def unique_keys(
  key: Int64[np.ndarray, " n"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`np.unique(key, return_index=True, return_inverse=True)`, faster.

  Keys and their places are sorted as one integer where 63 bits have room for
  both: without a comparison function, and so by the processor's wide sort.

  Args:
    key: [N], not negative; N > 0.

  Returns:
    The M different keys, ascending; [M], the first place of each; [N], which of
    them every key is.
  """
  bits = len(key).bit_length()
  if int(key.max()) >> (63 - bits):
    return np.unique(key, return_index=True, return_inverse=True)
  both = (key << np.int64(bits)) | np.arange(len(key))
  both.sort()
  place = both & np.int64((1 << bits) - 1)
  key = both >> np.int64(bits)
  is_first = np.ones(len(key), bool)
  np.not_equal(key[1:], key[:-1], out=is_first[1:])
  inverse = np.empty(len(key), np.int64)
  inverse[place] = np.cumsum(is_first) - 1
  return key[is_first], place[is_first], inverse


def voxelize(
  coord: Float[np.ndarray, "n 3"],
  voxel_size: float,
  *,
  shift: np.ndarray | None = None,
  levels: int = LEVELS,
) -> Voxels:
  """Puts points into cubic voxels, `floor(coord / voxel_size) + shift`.

  Args:
    coord: [N, 3], metres. N may be 0.
    voxel_size: edge of a voxel, metres.
    shift: integers [3] added to the voxel coordinates (augmentation).
    levels: number of pyramid levels whose sizes are counted.

  Raises:
    DataError: not [N, 3], not finite, or wider than 2^21 voxels an axis.
  """
  coord = np.asarray(coord)
  if coord.ndim != 2 or coord.shape[1] != 3:
    raise DataError(f"coord must be [N, 3], got {list(coord.shape)}")
  if not voxel_size > 0:
    raise DataError(f"voxel_size must be positive, got {voxel_size}")
  if not len(coord):
    none = np.zeros(0, np.int32)
    return Voxels(np.zeros((0, 3), np.int32), none, none, (0,) * levels)
  # Axis by axis, where numpy is several times faster than across them.
  grid = np.array(coord.T, np.float64, order="C")  # a copy in any case
  grid /= voxel_size
  low, high = grid.min(1), grid.max(1)
  if not np.isfinite([low, high]).all():
    raise DataError("coord must be finite, got NaN or infinity")
  low, high = np.floor(low), np.floor(high)
  np.floor(grid, out=grid)
  extent = float((high - low).max())
  if extent >= (1 << morton.HOST_BITS) - ALIGNMENT:
    raise DataError(
      f"coord spans {extent:.0f} voxels of {voxel_size} m, more than "
      f"{1 << morton.HOST_BITS}: are the coordinates in metres?"
    )
  # Float arithmetic is exact here up to 2^53 voxels from the origin.
  shift = np.zeros(3) if shift is None else np.asarray(shift, np.float64)
  origin = np.floor((low + shift) / ALIGNMENT) * ALIGNMENT
  grid += (shift - origin)[:, None]
  grid = grid.astype(np.int64)
  unique, first, inverse = unique_keys(morton.morton_key(grid.T))
  counts = [len(unique)]
  for level in range(1, levels):
    coarse = unique >> (3 * level)
    counts.append(1 + int(np.count_nonzero(coarse[1:] != coarse[:-1])))
  return Voxels(
    coords=np.stack([axis[first] for axis in grid], 1).astype(np.int32),
    first=first.astype(np.int32),
    inverse=inverse.astype(np.int32),
    level_counts=tuple(counts),
  )
