"""Between the finest voxels of a plan, taken as points, and a coarser level.

The point branch of SPVCNN (Tang et al., ECCV 2020) carries one feature a
finest voxel and exchanges it with the pyramid. Conventions are torchsparse's,
for level l with stride s = 2^l and a point at integer coordinates c:

    to voxels: the mean over the points with floor(c / s) = v
    to points: trilinear between the voxels floor(c / s) + {0, 1}^3, each of
        which holds its value at its *corner* v, not at its centre as in
        `interpolate.trilinear_map`; weights of voxels that do not exist are
        dropped and the others renormalised

At level 0 both are the identity. The parents and children of the plan lead
from a level to the next, so values and gradients are gathers only, one of
eight children or corners after the other: all at once, as `pool` has them,
would take gigabytes for the hundreds of channels and the hundred thousand
points that are exchanged here.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from wsegpc_jax.sparse import interpolate
from wsegpc_jax.sparse.integers import no_gradient
from wsegpc_jax.sparse.plan import Level, Plan

_CORNERS = np.array(list(itertools.product((0, 1), repeat=3)), np.int32)
_TAP = np.array([1, 3, 9])  # of an offset d in -1..1: (d + 1) @ _TAP


def ancestor_rows(plan: Plan, level: int) -> Int32[Array, " m"]:
  """Row at `level` of the voxel that holds each finest one.

  The level's capacity for padding, and where the voxel has no room there.
  """
  return _ancestors(level, plan.levels)


def trilinear_map(plan: Plan, level: int) -> interpolate.PointMap:
  """Rows and weights [M, 8] by which `trilinear_to_points` reads."""
  return _map(level, plan.levels)


def mean_to_voxels(
  x: Float[Array, "m c"], plan: Plan, level: int
) -> Float[Array, "p c"]:
  """Mean over the finest voxels in every voxel of `level`; padding gets 0.

  Sums are taken in float32 or wider.
  """
  if level == 0:
    return jnp.where(plan.levels[0].valid[:, None], x, 0)
  ones = jnp.ones((x.shape[0], 1), jnp.int32)
  number = _descendants(level, ones, plan.levels)
  total = _sum_to_voxels(level, x.astype(_wide(x)), plan.levels)
  return (total / jnp.maximum(number, 1)).astype(x.dtype)


def trilinear_to_points(
  x: Float[Array, "p c"], plan: Plan, level: int
) -> Float[Array, "m c"]:
  """Features of `level` read at every finest voxel; padding gets 0.

  Sums are taken in float32 or wider.
  """
  if level == 0:
    return jnp.where(plan.levels[0].valid[:, None], x, 0)
  return _read(level, x.astype(_wide(x)), plan.levels).astype(x.dtype)


def _wide(x: Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)


def _reader(x: Array) -> Callable[[Array], Array]:
  """rows -> x[rows], zeros for a row beyond the last."""
  padded = jnp.pad(x, ((0, 1), (0, 0)))  # here, not once a loop
  return lambda rows: jnp.take(padded, rows, axis=0, mode="clip")


def _sum_of_eight(term: Callable[..., Array], *tables: Array) -> Array:
  """Sum of term(column of every table [., 8]), a column after the other."""

  def add(total, columns):
    return total + term(*columns), None

  columns = tuple(table.T for table in tables)
  shape = jax.eval_shape(term, *(c[0] for c in columns))
  zero = jnp.zeros(shape.shape, shape.dtype)
  return jax.lax.scan(add, zero, columns)[0]


def _ancestors(level: int, levels: tuple[Level, ...]) -> Array:
  rows = jnp.arange(levels[0].capacity, dtype=jnp.int32)
  for fine, coarse in zip(levels[:level], levels[1:], strict=False):
    # Padding, and what has no room at a level, has no parent above either.
    rows = jnp.take(jnp.append(fine.parent, coarse.capacity), rows, mode="clip")
  return jnp.where(levels[0].valid, rows, levels[level].capacity)


def _map(level: int, levels: tuple[Level, ...]) -> interpolate.PointMap:
  coarse, stride = levels[level], 2**level
  neighbors = jnp.pad(
    coarse.neighbors, ((0, 1), (0, 0)), constant_values=coarse.capacity
  )
  rows = neighbors[_ancestors(level, levels)][:, (_CORNERS + 1) @ _TAP]
  # In integers, so that points far from the origin lose nothing.
  inside = levels[0].coords[:, None, 1:] & (stride - 1)
  weights = jnp.where(_CORNERS > 0, inside, stride - inside).prod(-1)
  weights = jnp.where(rows < coarse.capacity, weights, 0)
  # The voxel that holds the point exists and has a weight of at least one.
  total = jnp.maximum(weights.sum(1, keepdims=True), 1)
  return interpolate.PointMap(rows, weights / total)


def _descendants(level: int, x: Array, levels: tuple[Level, ...]) -> Array:
  """Sums over the finest voxels in every voxel, a level after the other."""
  for fine in levels[:level]:
    x = _sum_of_eight(_reader(x), fine.children)
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_to_voxels(level: int, x: Array, levels: tuple[Level, ...]) -> Array:
  return _descendants(level, x, levels)


def _sum_forward(level, x, levels):
  return _descendants(level, x, levels), levels


def _sum_backward(level, levels, g):
  return _reader(g)(_ancestors(level, levels)), no_gradient(levels)


_sum_to_voxels.defvjp(_sum_forward, _sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(level: int, x: Array, levels: tuple[Level, ...]) -> Array:
  point_map, read = _map(level, levels), _reader(x)

  def share(rows, weights):
    return read(rows) * weights[:, None].astype(x.dtype)

  return _sum_of_eight(share, point_map.rows, point_map.weights)


def _read_forward(level, x, levels):
  return _read(level, x, levels), levels


def _read_backward(level, levels, g):
  # A voxel is corner o of the points in the voxel at -o from it. So for each
  # corner: weighted sums over the points of every voxel, then one gather.
  weights = _map(level, levels).weights
  rows = levels[level].neighbors[:, (1 - _CORNERS) @ _TAP]

  def share(weights, rows):
    weighted = g * weights[:, None].astype(g.dtype)
    return _reader(_descendants(level, weighted, levels))(rows)

  return _sum_of_eight(share, weights, rows), no_gradient(levels)


_read.defvjp(_read_forward, _read_backward)
