"""Sparse convolutions as pure functions of (features, weights, plan).

Forward and backward are gathers and matrix products; nothing is scattered.
Rows of padding give zero, and their cotangents are ignored by construction:
no table points to them. Weight layout and tap order: `wsegpc_jax.sparse.plan`.

Numbers: sums have an order that the plan fixes, so a compiled program gives the
same bits whenever it runs on a given machine; but not "reference" on a GPU, which
scatters. Another bucket, tile or number of threads may sum in another order and
so change rounding, no more. Where products are exact, on a CPU or under
`jax.default_matmul_precision("highest")`, float32 outputs and gradients are
within 2e-6 of the largest of those in float64, whichever implementation
computes them; bfloat16 ones within 1e-2 (`tests/sparse`). A GPU's default for
float32 is TF32 or, in a tile with `split`, 16 bits of each factor.
"""

import functools

import jax
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels import gather_conv as ops
from wsegpc_jax.kernels import strided_conv as strided_ops
from wsegpc_jax.kernels.gather_conv import xla
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles
from wsegpc_jax.sparse import checks
from wsegpc_jax.sparse import pairs as pairs_lib
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse.integers import no_gradient
from wsegpc_jax.sparse.plan import Level, Plan


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _symmetric(lookup, implementation, x, weight, rows, tables, tiles):
  return ops.gather_conv(
    x,
    rows,
    weight,
    tables=tables,
    lookup=lookup,
    tiles=tiles,
    implementation=implementation,
  )


def _symmetric_forward(lookup, implementation, x, weight, rows, tables, tiles):
  out = _symmetric(lookup, implementation, x, weight, rows, tables, tiles)
  return out, (x, weight, rows, tables, tiles)


def _symmetric_backward(lookup, implementation, saved, cotangent):
  x, weight, rows, tables, tiles = saved
  dx, dw = ops.symmetric_backward(
    x,
    rows,
    weight,
    cotangent,
    tables=tables,
    lookup=lookup,
    tiles=tiles,
    implementation=implementation,
  )
  return dx, dw.astype(weight.dtype), *map(no_gradient, (rows, tables, tiles))


_symmetric.defvjp(_symmetric_forward, _symmetric_backward)


@jax.custom_vjp
def _over_pairs(x, weight, table, pairs):
  return pairs_lib.forward(x, table, pairs, weight)


def _over_pairs_forward(x, weight, table, pairs):
  return _over_pairs(x, weight, table, pairs), (x, weight, table, pairs)


def _over_pairs_backward(saved, cotangent):
  x, weight, table, pairs = saved
  dx, dw = pairs_lib.symmetric_backward(x, table, pairs, weight, cotangent)
  return dx, dw.astype(weight.dtype), no_gradient(table), no_gradient(pairs)


_over_pairs.defvjp(_over_pairs_forward, _over_pairs_backward)


def _tiles(level: Level, name: str) -> RowTiles | None:
  """The row tiles of one of the level's tables, if the plan made any."""
  return None if level.tiles is None else getattr(level.tiles, name)


def submanifold_conv(
  x: Float[Array, "m c"],
  weight: Float[Array, "k c d"],
  where: Level | Int32[Array, "m k"],
  *,
  implementation: str | None = None,
) -> Float[Array, "m d"]:
  """Submanifold convolution over a stored, symmetric neighbour table.

  Args:
    x: features of the level's voxels.
    weight: one matrix a tap.
    where: a level, whose 27 neighbours are used; or a `plan.neighbor_table` of
      any odd size and dilation.
    implementation: "pairs" multiplies by the pairs of `Level.pairs` only; the
      others are those of `wsegpc_jax.kernels.gather_conv`. None: pairs where
      the level has them, otherwise the best of the others.

  Raises:
    ValueError: shapes do not agree, or the implementation is unknown or needs
      what the level has not.
  """
  level = where if isinstance(where, Level) else None
  table = where if level is None else level.neighbors
  checks.check_rows(x, table.shape[0], "given")
  if weight.shape[0] != table.shape[1]:
    raise ValueError(
      f"weight has {weight.shape[0]} taps, the table {table.shape[1]}"
    )
  pairs = None if level is None else level.pairs
  if implementation == "pairs" and pairs is None:
    raise ValueError(
      "implementation='pairs' needs a level with pairs: one of a plan built "
      f"with pairs=True, of at least {plan_lib.MIN_ROWS_OF_PAIRS} rows"
    )
  if pairs is not None and implementation in (None, "pairs"):
    ops.check_operands(x, weight)
    return _over_pairs(x, weight, table, pairs)
  tiles = None if level is None else _tiles(level, "neighbors")
  return _symmetric(
    xla.stored_table, implementation, x, weight, table, None, tiles
  )


def _stem_table(rows, tables):
  """The 5^3 neighbourhood of a tile of voxels, from the coarser level."""
  parent, octant = rows
  parent_neighbors, children, capacity = tables
  return plan_lib.neighbors_from_parent(
    parent,
    octant,
    parent_neighbors,
    children,
    size=5,
    capacity=capacity.shape[0],
  )


def stem_conv(
  x: Float[Array, "m c"],
  weight: Float[Array, "125 c d"],
  plan: Plan,
  *,
  implementation: str | None = None,
) -> Float[Array, "m d"]:
  """The 5^3 submanifold convolution of the finest level.

  Its 125-tap table is looked up tile by tile and never stored, so it is no
  work for the kernels of "pallas", which read stored tables: XLA does it.

  Raises:
    ValueError: the plan has one level only, or shapes do not agree.
  """
  if len(plan.levels) < 2:
    raise ValueError("the 5^3 convolution needs a plan of at least two levels")
  if weight.shape[0] != 125:
    raise ValueError(f"weight must have 125 taps, got {weight.shape[0]}")
  fine, coarse = plan.levels[:2]
  checks.check_rows(x, fine.capacity, "finest")
  # The capacity travels as the length of an array: a table of `lookup` holds
  # arrays only.
  tables = (coarse.neighbors, fine.children, fine.coords)
  if implementation == "pallas":
    implementation = "xla"
  return _symmetric(
    _stem_table,
    implementation,
    x,
    weight,
    (fine.parent, fine.octant),
    tables,
    None,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _down(implementation, x, weight, fine):
  return strided_ops.strided_conv(
    x,
    fine.children,
    weight,
    tiles=_tiles(fine, "children"),
    implementation=implementation,
  )


def _down_forward(implementation, x, weight, fine):
  return _down(implementation, x, weight, fine), (x, weight, fine)


def _down_backward(implementation, saved, cotangent):
  x, weight, fine = saved
  dx, dw = strided_ops.strided_backward(
    x,
    fine.children,
    fine.parent,
    fine.octant,
    weight,
    cotangent,
    children_tiles=_tiles(fine, "children"),
    octant_tiles=_tiles(fine, "octants"),
    implementation=implementation,
  )
  return dx, dw.astype(weight.dtype), no_gradient(fine)


_down.defvjp(_down_forward, _down_backward)


def strided_conv(
  x: Float[Array, "m c"],
  weight: Float[Array, "8 c d"],
  fine: Level,
  *,
  implementation: str | None = None,
) -> Float[Array, "p d"]:
  """2^3 convolution with stride 2, from a level to the next coarser one."""
  checks.check_has_coarser(fine)
  checks.check_rows(x, fine.capacity, "fine")
  return _down(implementation, x, weight, fine)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _up(implementation, x, weight, fine):
  return strided_ops.transposed_conv(
    x,
    fine.parent,
    fine.octant,
    weight,
    tiles=_tiles(fine, "octants"),
    implementation=implementation,
  )


def _up_forward(implementation, x, weight, fine):
  return _up(implementation, x, weight, fine), (x, weight, fine)


def _up_backward(implementation, saved, cotangent):
  x, weight, fine = saved
  dx, dw = strided_ops.transposed_backward(
    x,
    fine.children,
    weight,
    cotangent,
    children_tiles=_tiles(fine, "children"),
    implementation=implementation,
  )
  return dx, dw.astype(weight.dtype), no_gradient(fine)


_up.defvjp(_up_forward, _up_backward)


def transposed_conv(
  x: Float[Array, "p c"],
  weight: Float[Array, "8 c d"],
  fine: Level,
  *,
  implementation: str | None = None,
) -> Float[Array, "m d"]:
  """2^3 transposed convolution with stride 2, back to the finer level."""
  checks.check_has_coarser(fine)
  checks.check_rows(x, fine.children.shape[0], "coarse")
  if weight.shape[0] != 8:
    raise ValueError(f"weight must have 8 taps, got {weight.shape[0]}")
  return _up(implementation, x, weight, fine)
