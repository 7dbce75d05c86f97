"""Reading voxel features at points: nearest and trilinear.

A voxel with integer coordinate v covers [v, v + 1) and holds its value at its
centre v + 0.5. Trilinear weights of voxels that do not exist are dropped and
the others renormalised (as in ocnn and torchsparse).
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from wsegpc_jax.sparse import hashing


@flax.struct.dataclass
class PointMap:
  """Which voxels a point reads, with which weights; built once, used often.

  Attributes:
    rows: int32 [P, J], voxel rows; the number of voxels means none.
    weights: float32 [P, J], sum to 1, or to 0 where no voxel exists.
  """

  rows: Int32[Array, "p j"]
  weights: Float[Array, "p j"]


def _find(table, scene, corner):
  p, j, _ = corner.shape
  scene = jnp.broadcast_to(scene[:, None, None], (p, j, 1))
  queries = jnp.concatenate([scene, corner], -1).astype(jnp.int32)
  return hashing.find_rows(table, queries.reshape(-1, 4)).reshape(p, j)


def nearest_map(
  points: Float[Array, "p 3"],
  scene: Int32[Array, " p"],
  table: hashing.HashTable,
) -> PointMap:
  """The voxel that contains each point.

  Args:
    points: in voxel units, the frame of the table's coordinates.
    scene: scene of each point; -1 for padding.
    table: `hashing.build_table` of the voxels.
  """
  corner = jnp.floor(points).astype(jnp.int32)[:, None]
  rows = _find(table, scene, corner)
  return PointMap(rows, (rows < table.coords.shape[0]).astype(points.dtype))


def trilinear_map(
  points: Float[Array, "p 3"],
  scene: Int32[Array, " p"],
  table: hashing.HashTable,
) -> PointMap:
  """The up to eight voxels around each point; arguments as `nearest_map`."""
  low = jnp.floor(points - 0.5)
  fraction = points - 0.5 - low
  offsets = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1)
  offsets = jnp.asarray(offsets.reshape(8, 3))
  rows = _find(table, scene, low.astype(jnp.int32)[:, None] + offsets)
  weights = jnp.where(offsets, fraction[:, None], 1 - fraction[:, None])
  weights = jnp.where(rows < table.coords.shape[0], weights.prod(-1), 0)
  total = weights.sum(1, keepdims=True)
  weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0)
  return PointMap(rows, weights.astype(points.dtype))


def interpolate(
  x: Float[Array, "m c"], point_map: PointMap
) -> Float[Array, "p c"]:
  """Weighted sum of the voxel features that each point reads."""
  padded = jnp.pad(x, ((0, 1), (0, 0)))
  gathered = jnp.take(padded, point_map.rows, axis=0, mode="clip")
  return (gathered * point_map.weights[..., None].astype(x.dtype)).sum(1)
