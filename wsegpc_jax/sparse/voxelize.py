"""Points to voxels on the host (numpy)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int32

from wsegpc_jax.sparse import morton
from wsegpc_jax.types import DataError

# Strides of a five-level pyramid; a grid origin is a multiple of the largest,
# so that moving a scene by a multiple of 16 voxels changes nothing.
ALIGNMENT = 16


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


def voxelize(
  coord: Float[np.ndarray, "n 3"],
  voxel_size: float,
  *,
  shift: np.ndarray | None = None,
  levels: int = 5,
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
  if not np.isfinite(coord).all():
    raise DataError("coord must be finite, got NaN or infinity")
  if not voxel_size > 0:
    raise DataError(f"voxel_size must be positive, got {voxel_size}")
  if not len(coord):
    none = np.zeros(0, np.int32)
    return Voxels(np.zeros((0, 3), np.int32), none, none, (0,) * levels)
  grid = np.floor(coord.astype(np.float64) / voxel_size)
  extent = float((grid.max(0) - grid.min(0)).max())
  if extent >= (1 << morton.HOST_BITS) - ALIGNMENT:
    raise DataError(
      f"coord spans {extent:.0f} voxels of {voxel_size} m, more than "
      f"{1 << morton.HOST_BITS}: are the coordinates in metres?"
    )
  # Float arithmetic is exact here up to 2^53 voxels from the origin.
  if shift is not None:
    grid = grid + np.asarray(shift, np.float64)
  origin = np.floor(grid.min(0) / ALIGNMENT) * ALIGNMENT
  grid = (grid - origin).astype(np.int64)
  key = morton.morton_key(grid)
  unique, first, inverse = np.unique(
    key, return_index=True, return_inverse=True
  )
  counts = [len(unique)]
  for level in range(1, levels):
    coarse = unique >> (3 * level)
    counts.append(1 + int(np.count_nonzero(coarse[1:] != coarse[:-1])))
  return Voxels(
    coords=grid[first].astype(np.int32),
    first=first.astype(np.int32),
    inverse=inverse.reshape(-1).astype(np.int32),
    level_counts=tuple(counts),
  )
