"""Submanifold convolutions over the pairs of voxels that exist, for CPUs.

Of the 27 neighbours of a voxel on a surface about half exist, in a laser scan
a sixth; a dense table multiplies by all of them. Here the rows of a level are
cut into tiles. Within a tile the (row, tap) pairs that exist are listed tap by
tap and each list is filled up to whole blocks, so that a block of rows is
gathered and multiplied by the one matrix of its tap. The products of a tile
stay in a buffer of cache size, from which every row of the output gathers and
adds up its own. The number of blocks is a loop bound, not a shape: any map is
exact, and nothing is scattered.

Blocks that are filled up read some row that exists, and what they give is read
by no one; in the weight gradient it is multiplied by zero.
"""

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt16

TILE = 2048  # rows a tile, at most
BLOCK = 256  # pairs of one tap that are multiplied at once
# Rows of zeros that are multiplied with every block. The buffer of a block is
# larger than what is gathered for it, so that XLA writes into it instead of
# making a new array: that it would do with all threads of the pool, and for so
# little work waking them takes longer than they save.
_SPARE = 8
# From so many channels on, the left side of the weight gradient's products is
# written out transposed. XLA would hand products with a transposed side to
# other threads, one by one; with fewer channels it does not.
_WIDE = 64


@flax.struct.dataclass
class Pairs:
  """The existing (row, tap) pairs of a table [M, K], by tile, tap and row.

  L tiles of T rows, L T >= M; S = K ceil(T / BLOCK) blocks have room for
  every pair of a tile.

  Attributes:
    rows: uint16 [L, S BLOCK], the row within the tile of each pair; T for
      what fills up a block. (int32 if K is so large that uint16 is too small.)
    taps: int32 [L, S], the tap of each block.
    blocks: int32 [L], how many blocks there are.
    slots: uint16 [L, T, K], where the product of a pair lies in `rows`;
      S BLOCK if there is no such pair.
  """

  rows: UInt16[Array, "l s_block"] | Int32[Array, "l s_block"]
  taps: Int32[Array, "l s"]
  blocks: Int32[Array, " l"]
  slots: UInt16[Array, "l t k"] | Int32[Array, "l t k"]


def tiling(m: int) -> tuple[int, int]:
  """(number of tiles, rows each) for M rows; even tiles where there are."""
  for size in range(min(m, TILE), TILE // 2, -1):
    if m % size == 0:
      return m // size, size
  count = max(1, -(-m // TILE))
  return count, -(-m // count)


def _tiles_of(a: Array, fill: int = 0) -> Array:
  """[L, T, ...] of [M, ...], filled up with `fill`."""
  count, size = tiling(a.shape[0])
  widths = ((0, count * size - a.shape[0]),) + ((0, 0),) * (a.ndim - 1)
  a = jnp.pad(a, widths, constant_values=fill)
  return a.reshape(count, size, *a.shape[1:])


def find_pairs(table: Int32[Array, "m k"]) -> Pairs:
  """The pairs of a table whose entry M means none; under jit."""
  m, taps = table.shape
  table = _tiles_of(table, m)
  tiles, size, _ = table.shape
  room = -(-size // BLOCK)  # blocks that a tap may need
  exists = table < m
  rank = jnp.cumsum(exists, 1, dtype=jnp.int32)  # from 1
  blocks = -(-rank[:, -1] // BLOCK)  # [L, K]
  ends = jnp.cumsum(blocks, 1, dtype=jnp.int32)
  starts = (ends - blocks) * BLOCK
  none = taps * room * BLOCK
  slots = jnp.where(exists, starts[:, None] + rank - 1, none)
  dtype = jnp.uint16 if none < 1 << 16 else jnp.int32
  # One more place, for all that does not exist.
  place = slots + jnp.arange(tiles)[:, None, None] * (none + 1)
  row = jnp.arange(size, dtype=dtype)[None, :, None]
  row = jnp.broadcast_to(row, table.shape)
  rows = jnp.full(tiles * (none + 1), size, dtype)
  rows = rows.at[place.reshape(-1)].set(row.reshape(-1), mode="drop")
  rows = rows.reshape(tiles, none + 1)[:, :-1]
  number = jnp.arange(taps * room, dtype=jnp.int32)
  block_taps = (number[None, :, None] >= ends[:, None]).sum(-1, dtype=jnp.int32)
  return Pairs(
    rows=rows,
    taps=jnp.minimum(block_taps, taps - 1),
    blocks=ends[:, -1],
    slots=slots.astype(dtype),
  )


def _take(x: Array, index: Array) -> Array:
  index = index.astype(jnp.uint32)
  return jnp.take(x, index, axis=0, mode="clip")


def _sum_of_products(products: Array, slots: Array) -> Array:
  """[T, D]: of each row, the sum of its products."""
  # A gather a tap, added as they are read: one pass, and no [T, K, D].
  total = _take(products, slots[:, 0])
  for k in range(1, slots.shape[1]):
    total = total + _take(products, slots[:, k])
  return total


def _accumulator(x: Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)


def _zeros_after(x: Array, shape: tuple[int, ...], dtype) -> Array:
  """Zeros that exist once x does.

  Constant ones of all layers would be made, and kept, from the beginning.
  """
  zero = (x[:1, :1].sum() > 0).astype(dtype) * 0
  return jnp.full(shape, zero)


def _room(pairs: Pairs, channels: int) -> tuple[int, int]:
  return pairs.rows.shape[1] + _SPARE, channels


def _block_of(x: Array) -> Array:
  return _zeros_after(x, (BLOCK + _SPARE, x.shape[1]), x.dtype)


def _by_tile(table: Array, pairs: Pairs) -> tuple:
  blocks = pairs.rows.reshape(*pairs.taps.shape, BLOCK)
  return _tiles_of(table), blocks, pairs.taps, pairs.blocks, pairs.slots


def forward(
  x: Float[Array, "m c"],
  table: Int32[Array, "m k"],
  pairs: Pairs,
  weight: Float[Array, "k c d"],
) -> Float[Array, "m d"]:
  """out[i] = sum over k of x[table[i, k]] @ weight[k]."""
  m, d = x.shape[0], weight.shape[2]
  dtype = _accumulator(x)

  def tile(state, args):
    sources, rows, taps, blocks, slots = args
    sources = jnp.pad(sources, ((0, 1), (0, 0)))

    def block(b, state):
      products, gathered = state
      k = taps[b]
      found = _take(x, sources[rows[b].astype(jnp.int32), k])
      gathered = lax.dynamic_update_slice_in_dim(gathered, found, 0, 0)
      product = jnp.matmul(gathered, weight[k], preferred_element_type=dtype)
      # The next block overwrites what is spare.
      products = lax.dynamic_update_slice_in_dim(
        products, product, b * BLOCK, 0
      )
      return products, gathered

    state = lax.fori_loop(0, blocks, block, state)
    return state, _sum_of_products(state[0], slots).astype(x.dtype)

  state = _zeros_after(x, _room(pairs, d), dtype), _block_of(x)
  out = lax.scan(tile, state, _by_tile(table, pairs))[1]
  return out.reshape(-1, d)[:m]


def symmetric_backward(
  x: Float[Array, "m c"],
  table: Int32[Array, "m k"],
  pairs: Pairs,
  weight: Float[Array, "k c d"],
  cotangent: Float[Array, "m d"],
) -> tuple[Float[Array, "m c"], Float[Array, "k c d"]]:
  """Both gradients, dW in float32 or wider, when the table is symmetric.

  Symmetric: table[i, k] = j exactly if table[j, K - 1 - k] = i. So one gather
  of the cotangent serves both, as in `kernels.gather_conv`.
  """
  m, c = x.shape
  dtype = _accumulator(x)
  mirrored = weight[::-1].transpose(0, 2, 1)

  def tile(state, args):
    x_tile, (sources, rows, taps, blocks, slots) = args
    sources = jnp.pad(sources, ((0, 1), (0, 0)))
    x_tile = jnp.pad(x_tile, ((0, 1), (0, 0)))

    def block(b, state):
      products, dw, gathered, columns = state
      k, row = taps[b], rows[b].astype(jnp.int32)
      found = _take(cotangent, sources[row, k])
      gathered = lax.dynamic_update_slice_in_dim(gathered, found, 0, 0)
      product = jnp.matmul(gathered, mirrored[k], preferred_element_type=dtype)
      products = lax.dynamic_update_slice_in_dim(
        products, product, b * BLOCK, 0
      )
      own = _take(x_tile, row)
      if c < _WIDE:
        own = jnp.pad(own, ((0, _SPARE), (0, 0))).T
      else:
        own = columns = lax.dynamic_update_slice_in_dim(columns, own.T, 0, 1)
      part = jnp.matmul(own, gathered, preferred_element_type=dtype)
      dw = lax.dynamic_update_index_in_dim(dw, dw[k] + part, k, 0)
      return products, dw, gathered, columns

    state = lax.fori_loop(0, blocks, block, state)
    return state, _sum_of_products(state[0], slots).astype(x.dtype)

  state = (
    _zeros_after(cotangent, _room(pairs, c), dtype),
    _zeros_after(cotangent, weight.shape, dtype),
    _block_of(cotangent),
    _block_of(x).T if c >= _WIDE else (),
  )
  args = _tiles_of(x), _by_tile(table, pairs)
  (_, dw, *_), dx = lax.scan(tile, state, args)
  return dx.reshape(-1, c)[:m], dw[::-1]
