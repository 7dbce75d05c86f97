"""Neighbour gather fused with the matrix product, as Pallas (Triton) kernels.

A program owns a tile of rows and a tile of channels; it reads the neighbours
where they lie, so the gathered [M, K C] matrix never reaches memory. A bit
mask a tile says which taps any of its rows has; the others are skipped.
Ragged edges (rows, channels that are no power of two) are masked, so x and the
weight are not copied to pad them. float32 products are TF32 on a GPU unless
`jax_default_matmul_precision` is "highest".

Without a GPU the kernels run in Pallas's interpret mode: right, but slow.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

try:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton as plgpu
except ImportError:  # the lowering is deprecated: some jax will not have it
  pl = plgpu = None

# True once the kernels have been compiled and measured on a GPU; until then
# `implementation=None` never picks them.
MEASURED: bool = False

ROWS = 64  # rows a tile
_WORD = 32  # taps a word of the bit mask, as many as uint32 has bits
_PROGRAMS = 1024  # wanted of the weight gradient, some for every core of a GPU


def _block(size: int, largest: int) -> int:
  """The block of a channel axis: least padding first, then the largest."""
  # Triton multiplies matrices whose sides are powers of two, at least 16.
  blocks = [16]
  while blocks[-1] < largest:
    blocks.append(2 * blocks[-1])
  return min(blocks, key=lambda b: (-(-size // b) * b, -b))


def _accumulator(dtype) -> jnp.dtype:
  return jnp.promote_types(dtype, jnp.float32)


def _interpret(interpret: bool | None) -> bool:
  if pl is None:
    raise ValueError(
      "implementation='pallas' needs the Triton lowering of Pallas, which jax "
      f"{jax.__version__} does not have; use implementation='xla'"
    )
  if interpret is not None:
    return interpret
  if jax.default_backend() == "tpu":
    raise ValueError(
      "implementation='pallas' is a Triton kernel, which cannot run on a TPU; "
      "use implementation='xla'"
    )
  return jax.default_backend() != "gpu"


def _call(kernel, *operands, name, grid, shape, dtype, interpret) -> Array:
  if not interpret:
    # jax 0.11 and later warn at every lowering. Lowering comes after tracing,
    # when the caller's jit has left this function, so no context manager here
    # would last long enough; the filter hides this one message.
    warnings.filterwarnings(
      "ignore", "The Pallas Triton backend is deprecated", DeprecationWarning
    )
  return pl.pallas_call(
    kernel,
    grid=grid,
    out_shape=jax.ShapeDtypeStruct(shape, dtype),
    interpret=interpret,
    name=name,
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
  )(*operands)


def _plan_tiles(
  table: Int32[Array, "m k"], n: int, tiles: int
) -> tuple[Array, Array]:
  """The table by tap, int32 [K, tiles * ROWS], and the live taps of each tile.

  Bit k % 32 of word [tile, k // 32] of the second, uint32, is set if a row of
  the tile has tap k. Rows of padding have none.
  """
  m, taps = table.shape
  table = table.astype(jnp.int32)
  table = jnp.pad(table, ((0, tiles * ROWS - m), (0, 0)), constant_values=-1)
  exists = (table >= 0) & (table < n)
  live = exists.reshape(tiles, ROWS, taps).any(1)
  words = -(-taps // _WORD)
  live = jnp.pad(live, ((0, 0), (0, words * _WORD - taps)))
  bits = live.reshape(tiles, words, _WORD).astype(jnp.uint32)
  bits = bits << jnp.arange(_WORD, dtype=jnp.uint32)
  # By tap, the rows of a tile are consecutive in memory.
  return table.T, bits.sum(-1, dtype=jnp.uint32)


def _range(block, size: int) -> Array:
  return block * size + jnp.arange(size, dtype=jnp.int32)


def _load(ref, rows, columns, live) -> Array:
  """ref[rows, columns] where `live` and the column exists, else zero."""
  mask = live[:, None] & (columns < ref.shape[-1])[None]
  return plgpu.load(ref.at[rows[:, None], columns[None]], mask=mask, other=0.0)


def _if_live(live_ref, tile, k, function, total) -> Array:
  """function(total) if any row of the tile has tap k, else total."""
  word = plgpu.load(live_ref.at[tile, k >> 5])
  bit = (word >> (k & (_WORD - 1)).astype(jnp.uint32)) & jnp.uint32(1)
  return lax.cond(bit != 0, function, lambda total: total, total)


def _forward_kernel(
  x_ref, table_ref, live_ref, weight_ref, out_ref, *, block_c, block_d
):
  n, c = x_ref.shape
  taps = table_ref.shape[0]
  m, d = out_ref.shape
  tile = pl.program_id(0)
  rows = _range(tile, ROWS)
  columns = _range(pl.program_id(1), block_d)

  def add_tap(k, total):
    source = plgpu.load(table_ref.at[k, rows])
    exists = (source >= 0) & (source < n)

    def add_block(block, total):
      channels = _range(block, block_c)
      gathered = _load(x_ref, source, channels, exists)
      # The weight is [K C, D] here.
      weight = _load(weight_ref, k * c + channels, columns, channels < c)
      return total + jnp.dot(
        gathered, weight, preferred_element_type=total.dtype
      )

    return lax.fori_loop(0, pl.cdiv(c, block_c), add_block, total)

  def step(k, total):
    k = jnp.asarray(k, jnp.int32)
    return _if_live(live_ref, tile, k, functools.partial(add_tap, k), total)

  total = jnp.zeros((ROWS, block_d), _accumulator(weight_ref.dtype))
  total = lax.fori_loop(0, taps, step, total)
  plgpu.store(
    out_ref.at[rows[:, None], columns[None]],
    total.astype(out_ref.dtype),
    mask=(rows < m)[:, None] & (columns < d)[None],
  )


def gather_conv(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  weight: Float[Array, "k c d"],
  *,
  interpret: bool | None = None,
) -> Float[Array, "m d"]:
  """out[i] = sum over taps k of x[table[i, k]] @ weight[k].

  Args:
    x: input rows.
    table: rows of x; any value outside 0 .. n - 1 reads a row of zeros.
    weight: one matrix a tap.
    interpret: None runs the kernel on a GPU and interprets it elsewhere.

  Raises:
    ValueError: on a TPU, or under a jax without the Triton lowering.
  """
  interpret = _interpret(interpret)
  (n, c), (m, taps), d = x.shape, table.shape, weight.shape[2]
  if 0 in (n, c, m, taps, d):
    return jnp.zeros((m, d), x.dtype)
  dtype = jnp.promote_types(x.dtype, weight.dtype)
  tiles = pl.cdiv(m, ROWS)
  block_c = _block(c, 32 if dtype.itemsize >= 4 else 64)
  # Every block of outputs gathers anew: better padding than a second one.
  block_d = max(16, min(128, 1 << (d - 1).bit_length()))
  by_tap, live = _plan_tiles(table, n, tiles)
  return _call(
    functools.partial(_forward_kernel, block_c=block_c, block_d=block_d),
    x.astype(dtype),
    by_tap,
    live,
    weight.astype(dtype).reshape(taps * c, d),
    name="gather_conv",
    grid=(tiles, pl.cdiv(d, block_d)),
    shape=(m, d),
    dtype=x.dtype,
    interpret=interpret,
  )


def _weight_gradient_kernel(
  x_ref, table_ref, live_ref, g_ref, out_ref, *, block_c, block_d
):
  n, c = x_ref.shape
  m, d = g_ref.shape
  tiles = live_ref.shape[0] // out_ref.shape[0]  # a split
  k, split = pl.program_id(0), pl.program_id(3)
  channels = _range(pl.program_id(1), block_c)
  columns = _range(pl.program_id(2), block_d)

  def add_tile(rows, total):
    source = plgpu.load(table_ref.at[k, rows])
    exists = (source >= 0) & (source < n)
    gathered = _load(x_ref, source, channels, exists)
    g = _load(g_ref, rows, columns, exists)
    return total + jnp.dot(gathered.T, g, preferred_element_type=total.dtype)

  def step(t, total):
    tile = split * tiles + jnp.asarray(t, jnp.int32)
    rows = _range(tile, ROWS)
    return _if_live(live_ref, tile, k, functools.partial(add_tile, rows), total)

  total = jnp.zeros((block_c, block_d), out_ref.dtype)
  total = lax.fori_loop(0, tiles, step, total)
  plgpu.store(
    out_ref.at[split, k, channels[:, None], columns[None]],
    total,
    mask=(channels < c)[:, None] & (columns < d)[None],
  )


def weight_gradient(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  cotangent: Float[Array, "m d"],
  *,
  interpret: bool | None = None,
) -> Float[Array, "k c d"]:
  """dW[k] = sum over i of x[table[i, k]]^T cotangent[i], float32 or wider.

  The rows are split; every split writes its own sum and XLA adds them up, so
  the result does not depend on the order in which programs run.

  Arguments and errors as for `gather_conv`.
  """
  interpret = _interpret(interpret)
  (n, c), (m, taps), d = x.shape, table.shape, cotangent.shape[1]
  dtype = jnp.promote_types(x.dtype, cotangent.dtype)
  if 0 in (n, c, m, taps, d):
    return jnp.zeros((taps, c, d), _accumulator(dtype))
  # Larger float32 blocks spill registers where products are not TF32.
  largest = 32 if dtype.itemsize >= 4 else 64
  block_c, block_d = _block(c, largest), _block(d, largest)
  grid = (taps, pl.cdiv(c, block_c), pl.cdiv(d, block_d))
  tiles = pl.cdiv(m, ROWS)
  splits = min(tiles, pl.cdiv(_PROGRAMS, grid[0] * grid[1] * grid[2]))
  tiles = pl.cdiv(tiles, splits) * splits  # those beyond the end are dead
  by_tap, live = _plan_tiles(table, n, tiles)
  partial = _call(
    functools.partial(
      _weight_gradient_kernel, block_c=block_c, block_d=block_d
    ),
    x.astype(dtype),
    by_tap,
    live,
    cotangent.astype(dtype),
    name="gather_conv_weight_gradient",
    grid=(*grid, splits),
    shape=(splits, taps, c, d),
    dtype=_accumulator(dtype),
    interpret=interpret,
  )
  return partial.sum(0)
