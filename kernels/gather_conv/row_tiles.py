"""Which rows and taps each program of a kernel visits.

Rows are cut into tiles. A tile visits the taps that any of its rows has; on
the noisy surfaces that scanners give, almost any 64 neighbouring rows have all
27 among them, though a row has 14. So rows are first sorted by their taps,
within blocks so large that a tile's neighbours still lie close together
(implicit GEMM as in TorchSparse++, Tang et al., MICRO 2023). The order is that
of a Gray code, in which successive sets of taps differ little, with the taps
farthest from the centre, which decide the most, as its first digits.

This depends on the table only: a plan holds the tiles of its tables, and all
layers over them share these.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

ROWS = 128  # rows of a tile, unless a kernel wants others
# Rows that are sorted together: their features fit a GPU's second-level cache.
SORT_BLOCK = 1 << 16
# Taps that one program of the weight gradient may take: lists of the tiles to
# visit exist for these.
GROUPS = (1, 3)
_KEY_BITS = 32
_MOST_TAPS = 27  # that a key of 32 bits holds beside the number of its block


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["rows", "index", "taps", "number", "visits"],
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
    visits: for each of GROUPS that divides K, by the number G of taps in a
      group: int32 [K / G, T], tiles that have any tap of the group, in order,
      first; and int32 [K / G], how many these are.
  """

  rows: Int32[Array, "t r"]
  index: Int32[Array, "t k r"]
  taps: Int32[Array, "t k"]
  number: Int32[Array, " t"]
  visits: dict[int, tuple[Array, Array]]

  @property
  def size(self) -> int:
    return self.rows.shape[1]


def can_sort(taps: int) -> bool:
  """Whether rows of so many taps can be sorted by them."""
  return taps <= _MOST_TAPS


def _digits(taps: int) -> np.ndarray:
  """The digit of each tap in the key that rows are sorted by."""
  if taps != 27:
    return np.arange(taps, dtype=np.uint32)
  offsets = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), 1) - 1
  order = np.argsort(np.abs(offsets).sum(1), kind="stable")
  return np.argsort(order).astype(np.uint32)


def mask_order(
  exists: Bool[Array, "m k"], *, block: int = SORT_BLOCK
) -> Int32[Array, " m"]:
  """Rows sorted by their taps within blocks: a permutation.

  Args:
    exists: which taps each row has, K at most 27.
    block: rows of a block; more if 32 bits cannot number the blocks.
  """
  m, taps = exists.shape
  spare = _KEY_BITS - taps
  block = max(block, -(-m // (1 << min(spare, 30))))
  digit = jnp.left_shift(jnp.uint32(1), jnp.asarray(_digits(taps)))
  key = jnp.where(exists, digit, jnp.uint32(0)).sum(1, dtype=jnp.uint32)
  for shift in (1, 2, 4, 8, 16):  # the position of the key in the Gray code
    key = key ^ (key >> shift)
  rows = jnp.arange(m, dtype=jnp.int32)
  if m > block:
    key = key | (rows // block).astype(jnp.uint32) << taps
  return jax.lax.sort((key, rows), num_keys=1, is_stable=True)[1]


def live_first(live: Array) -> tuple[Array, Array]:
  """(the positions of True in each row, in order, first; their number)."""
  order = jnp.argsort(~live, axis=1, stable=True).astype(jnp.int32)
  return order, live.sum(1, dtype=jnp.int32)


def _tiles(order: Array, index: Array) -> RowTiles:
  """From rows and indices by tile, with what follows from them."""
  has = (index >= 0).any(2)
  taps = has.shape[1]
  visits = {
    group: live_first(has.reshape(-1, taps // group, group).any(2).T)
    for group in GROUPS
    if taps % group == 0
  }
  return RowTiles(order, index, *live_first(has), visits)


def row_tiles(
  table: Int32[Array, "m k"],
  n: int,
  *,
  rows: int = ROWS,
  by_mask: bool = True,
  block: int = SORT_BLOCK,
) -> RowTiles:
  """The tiles of a table whose entries outside 0 .. n - 1 mean "none".

  Args:
    table: rows of the input, by row of the output and tap; M, K > 0.
    n: rows of the input.
    rows: rows of a tile.
    by_mask: sort the rows by their taps first, if `can_sort`.
    block: rows that are sorted together.
  """
  m, taps = table.shape
  by_mask = by_mask and can_sort(taps)
  tiles = -(-m // rows)
  table = table.astype(jnp.int32)
  exists = (table >= 0) & (table < n)
  table = jnp.where(exists, table, -1)
  order = jnp.arange(m, dtype=jnp.int32)
  if by_mask:
    order = mask_order(exists, block=block)
    table = table[order]
  pad = tiles * rows - m
  order = jnp.pad(order, (0, pad), constant_values=m).reshape(tiles, rows)
  table = jnp.pad(table, ((0, pad), (0, 0)), constant_values=-1)
  return _tiles(order, table.reshape(tiles, rows, taps).transpose(0, 2, 1))


def cut(tiles: RowTiles, rows: int) -> RowTiles:
  """The same rows in the same order, in tiles of `rows`, a divisor of R."""
  if rows == tiles.size:
    return tiles
  count, taps, size = tiles.index.shape
  index = tiles.index.reshape(count, taps, size // rows, rows)
  index = index.transpose(0, 2, 1, 3).reshape(-1, taps, rows)
  return _tiles(tiles.rows.reshape(-1, rows), index)
