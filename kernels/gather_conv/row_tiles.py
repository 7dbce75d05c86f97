"""Which rows and taps each program of a kernel visits.

Rows are cut into tiles. A tile visits the taps that any of its rows has; on
the noisy surfaces that scanners give, almost any 64 neighbouring rows have all
27 among them, though a row has 14. So rows are first sorted by the bits of
their taps, within blocks so large that a tile's neighbours still lie close
together (implicit GEMM as in TorchSparse++, Tang et al., MICRO 2023). This
depends on the table only: in one jit, all layers over a table share it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

# Rows that are sorted together: their features fit a GPU's second-level cache.
SORT_BLOCK = 1 << 16
_KEY_BITS = 32
_MOST_TAPS = 27  # that a key of 32 bits holds beside the number of its block


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["rows", "index", "taps", "number"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class RowTiles:
  """T tiles of R rows over a table with K taps.

  Attributes:
    rows: int32 [T, R], the rows of the table in each tile; M for padding.
    index: int32 [T, K, R], the table by tile and tap; -1 where none.
    taps: int32 [T, K], taps that any row of the tile has, in order, first.
    number: int32 [T], how many these are.
  """

  rows: Int32[Array, "t r"]
  index: Int32[Array, "t k r"]
  taps: Int32[Array, "t k"]
  number: Int32[Array, " t"]


def can_sort(taps: int) -> bool:
  """Whether rows of so many taps can be sorted by them."""
  return taps <= _MOST_TAPS


def mask_order(exists: Array, *, block: int = SORT_BLOCK) -> Array:
  """Rows sorted by their taps within blocks: int32 [M], a permutation.

  Args:
    exists: bool [M, K], K at most 27.
    block: rows of a block; more if 32 bits cannot number the blocks.
  """
  m, taps = exists.shape
  spare = _KEY_BITS - taps
  block = max(block, -(-m // (1 << min(spare, 30))))
  bit = jnp.left_shift(jnp.uint32(1), jnp.arange(taps, dtype=jnp.uint32))
  key = jnp.where(exists, bit, jnp.uint32(0)).sum(1, dtype=jnp.uint32)
  rows = jnp.arange(m, dtype=jnp.int32)
  if m > block:
    key = key | (rows // block).astype(jnp.uint32) << taps
  return jax.lax.sort((key, rows), num_keys=1, is_stable=True)[1]


def live_first(live: Array) -> tuple[Array, Array]:
  """(the positions of True in each row, in order, first; their number)."""
  order = jnp.argsort(~live, axis=1, stable=True).astype(jnp.int32)
  return order, live.sum(1, dtype=jnp.int32)


def row_tiles(
  table: Int32[Array, "m k"], n: int, *, rows: int, by_mask: bool
) -> RowTiles:
  """The tiles of a table whose entries outside 0 .. n - 1 mean "none".

  Args:
    table: rows of the input, by row of the output and tap; M, K > 0.
    n: rows of the input.
    rows: rows of a tile.
    by_mask: sort the rows by their taps first; needs `can_sort`.
  """
  m, taps = table.shape
  tiles = -(-m // rows)
  table = table.astype(jnp.int32)
  exists = (table >= 0) & (table < n)
  table = jnp.where(exists, table, -1)
  order = mask_order(exists) if by_mask else jnp.arange(m, dtype=jnp.int32)
  if by_mask:
    table = table[order]
  pad = tiles * rows - m
  order = jnp.pad(order, (0, pad), constant_values=m).reshape(tiles, rows)
  table = jnp.pad(table, ((0, pad), (0, 0)), constant_values=-1)
  index = table.reshape(tiles, rows, taps).transpose(0, 2, 1)
  live, number = live_first((index >= 0).any(2))
  return RowTiles(order, index, live, number)
