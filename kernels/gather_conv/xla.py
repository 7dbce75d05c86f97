"""Row tiles: gather the neighbours of some rows, one matrix product each.

On a CPU this is the fastest of the formulations that XLA offers, and it runs
on every platform. No product is scattered: gradients are gathers, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# Rows of a tile. On a CPU its gathered rows should stay in the cache; a GPU
# wants work enough for all its cores.
TILE = 1024
GPU_TILE = 1 << 15

# From the tile's share of `rows` and the whole of `tables` to int32 [T, K].
Lookup = Callable[[PyTree, PyTree], Array]


def stored_table(rows: Array, tables: None) -> Array:
  """The lookup of a table that exists in memory: its rows."""
  del tables
  return rows


def _accumulator(dtype) -> jnp.dtype:
  return jnp.promote_types(dtype, jnp.float32)


def _tiles(m: int, tile: int | None) -> tuple[int, int]:
  """(number of tiles, rows each), the fewest rows of padding."""
  if tile is None:
    tile = GPU_TILE if jax.default_backend() == "gpu" else TILE
  count = max(1, -(-m // tile))
  return count, -(-m // count)


def _split(tree: PyTree, count: int, size: int) -> PyTree:
  def split(a):
    # Rows of padding repeat the last row; what they give is cut off, or, in
    # the weight gradient, multiplied by zero.
    a = jnp.pad(
      a, ((0, count * size - a.shape[0]),) + ((0, 0),) * (a.ndim - 1), "edge"
    )
    return a.reshape(count, size, *a.shape[1:])

  return jax.tree.map(split, tree)


def _with_zero_row(x: Array) -> Array:
  return jnp.pad(x, ((0, 1), (0, 0)))


def _gather(padded: Array, index: Array) -> Array:
  """[T, K C] of the rows `index` [T, K]; an index of no row gives zeros."""
  t, k = index.shape
  index = index.astype(jnp.uint32)  # negative ones lie beyond the end, too
  return jnp.take(padded, index, axis=0, mode="clip").reshape(t, -1)


def _reads(index: Array, n: int) -> Array:
  """[T]: whether any index of a row is one of n rows."""
  return ((index >= 0) & (index < n)).any(1)


def forward(
  x: Float[Array, "n c"],
  rows: PyTree,
  tables: PyTree,
  weight: Float[Array, "k c d"],
  *,
  lookup: Lookup = stored_table,
  tile: int | None = None,
) -> Float[Array, "m d"]:
  """out[i] = sum over k of x[table[i, k]] @ weight[k], table by `lookup`."""
  m = jax.tree.leaves(rows)[0].shape[0]
  taps, c, d = weight.shape
  if m == 0:
    return jnp.zeros((0, d), x.dtype)
  padded, flat = _with_zero_row(x), weight.reshape(taps * c, d)

  def one_tile(tile_rows):
    gathered = _gather(padded, lookup(tile_rows, tables))
    out = jnp.matmul(
      gathered, flat, preferred_element_type=_accumulator(x.dtype)
    )
    return out.astype(x.dtype)

  count, size = _tiles(m, tile)
  if count == 1:  # no loop: it would only cost compile time
    return one_tile(rows)
  out = jax.lax.map(one_tile, _split(rows, count, size))
  return out.reshape(count * size, d)[:m]


def weight_gradient(
  x: Float[Array, "n c"],
  rows: PyTree,
  tables: PyTree,
  cotangent: Float[Array, "m d"],
  *,
  taps: int,
  lookup: Lookup = stored_table,
  tile: int | None = None,
) -> Float[Array, "k c d"]:
  """dW[k] = sum over i of x[table[i, k]]^T cotangent[i]."""
  c, (m, d) = x.shape[1], cotangent.shape
  dtype = _accumulator(x.dtype)
  if m == 0:
    return jnp.zeros((taps, c, d), dtype)
  padded = _with_zero_row(x)
  count, size = _tiles(m, tile)

  def add(total, args):
    tile_rows, g, live = args
    index = lookup(tile_rows, tables)
    gathered = _gather(padded, index)
    # A row that reads nothing adds zero, whatever its cotangent is.
    live = live & _reads(index, x.shape[0])
    g = jnp.where(live[:, None], g, 0)
    return total + jnp.matmul(gathered.T, g, preferred_element_type=dtype), None

  total = jnp.zeros((taps * c, d), dtype)
  if count == 1:
    total, _ = add(total, (rows, cotangent, jnp.ones(m, bool)))
  else:
    live = jnp.arange(count * size).reshape(count, size) < m
    split = (_split(rows, count, size), _split(cotangent, count, size), live)
    total, _ = jax.lax.scan(add, total, split)
  return total.reshape(taps, c, d)


def symmetric_backward(
  x: Float[Array, "n c"],
  rows: PyTree,
  tables: PyTree,
  weight: Float[Array, "k c d"],
  cotangent: Float[Array, "n d"],
  *,
  lookup: Lookup = stored_table,
  tile: int | None = None,
) -> tuple[Float[Array, "n c"], Float[Array, "k c d"]]:
  """Both gradients of a symmetric map from one gather of the cotangent.

  The map is symmetric when table[i, k] = j exactly if table[j, K-1-k] = i, as
  in every submanifold convolution. Then the cotangent's neighbours through
  the same table serve the input gradient (with mirrored, transposed weights)
  and the weight gradient.
  """
  n, c = x.shape
  taps, _, d = weight.shape
  dtype = _accumulator(x.dtype)
  if n == 0:
    return jnp.zeros_like(x), jnp.zeros(weight.shape, dtype)
  padded = _with_zero_row(cotangent)
  mirrored = weight[::-1].transpose(0, 2, 1).reshape(taps * d, c)
  count, size = _tiles(n, tile)

  def add(total, args):
    tile_rows, x_tile, live = args
    index = lookup(tile_rows, tables)
    gathered = _gather(padded, index)
    live = live & _reads(index, n)
    dx = jnp.matmul(gathered, mirrored, preferred_element_type=dtype)
    x_tile = jnp.where(live[:, None], x_tile, 0)
    total = total + jnp.matmul(x_tile.T, gathered, preferred_element_type=dtype)
    return total, dx.astype(x.dtype)

  total = jnp.zeros((c, taps * d), dtype)
  if count == 1:
    total, dx = add(total, (rows, x, jnp.ones(n, bool)))
  else:
    live = jnp.arange(count * size).reshape(count, size) < n
    split = (_split(rows, count, size), _split(x, count, size), live)
    total, dx = jax.lax.scan(add, total, split)
  dw = total.reshape(c, taps, d).transpose(1, 0, 2)[::-1]
  return dx.reshape(count * size, c)[:n], dw
