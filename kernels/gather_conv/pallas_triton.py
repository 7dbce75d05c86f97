"""Neighbour gather fused with the matrix product, as Pallas (Triton) kernels.

A program owns a tile of rows and a block of channels; it reads the neighbours
where they lie, so the gathered [M, K C] matrix never reaches memory, and
visits only the taps that its rows have (`row_tiles`). Ragged edges (rows,
channels that are no power of two) are masked, so x and the weight are not
copied to pad them. float32 products are TF32 on a GPU unless
`jax_default_matmul_precision` is "highest".

Without a GPU the kernels run in Pallas's interpret mode: right, but slow.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels import pallas_gpu
from wsegpc_jax.kernels.gather_conv import tile_table
from wsegpc_jax.kernels.gather_conv.row_tiles import (
  RowTiles,
  can_sort,
  live_first,
  row_tiles,
)
from wsegpc_jax.kernels.pallas_gpu import pl, plgpu

# True once the kernels have been compiled and measured on a GPU; until then
# `implementation=None` never picks them.
MEASURED: bool = False

_PROGRAMS = 2048  # wanted of the weight gradient, some for every core of a GPU


def tiles_of(
  table: Int32[Array, "m k"], n: int, tile: tile_table.Tile
) -> RowTiles:
  """The row tiles that a kernel of this tile visits."""
  by_mask = tile.by_mask and can_sort(table.shape[1])
  return row_tiles(table, n, rows=tile.rows, by_mask=by_mask)


def _forward_kernel(
  x_ref,
  rows_ref,
  index_ref,
  taps_ref,
  number_ref,
  weight_ref,
  out_ref,
  *,
  tile: tile_table.Tile,
  block_c: int,
  block_d: int,
):
  n, c = x_ref.shape
  m, d = out_ref.shape
  blocks_c, blocks_d = pl.cdiv(c, block_c), pl.cdiv(d, block_d)
  t = lax.div(pl.program_id(0), jnp.int32(blocks_d))
  columns = pallas_gpu.block_range(
    lax.rem(pl.program_id(0), jnp.int32(blocks_d)), block_d
  )
  within = jnp.arange(tile.rows, dtype=jnp.int32)

  def source_of(step):
    k = plgpu.load(taps_ref.at[t, lax.div(step, jnp.int32(blocks_c))])
    return k, plgpu.load(index_ref.at[t, k, within])

  def add(step, k, source, total):
    channels = pallas_gpu.block_range(
      lax.rem(step, jnp.int32(blocks_c)), block_c
    )
    gathered = pallas_gpu.load(x_ref, source, channels, source >= 0)
    live = pallas_gpu.inside(channels, c)
    if tile.transposed:  # the weight is [K D, C] here, else [K C, D]
      live = pallas_gpu.inside(columns, d)
      weight = pallas_gpu.load(weight_ref, k * d + columns, channels, live).T
    else:
      weight = pallas_gpu.load(weight_ref, k * c + channels, columns, live)
    return total + jnp.dot(gathered, weight, preferred_element_type=total.dtype)

  total = jnp.zeros(
    (tile.rows, block_d), pallas_gpu.accumulator(weight_ref.dtype)
  )
  steps = plgpu.load(number_ref.at[t]) * blocks_c
  if tile.ahead:
    # What the next step reads is looked up a step ahead of its use.
    def body(step, carry):
      total, k, source = carry
      following = source_of(jnp.minimum(step + 1, steps - 1))
      return add(step, k, source, total), *following

    first = source_of(jnp.int32(0))
    total, *_ = lax.fori_loop(jnp.int32(0), steps, body, (total, *first))
  else:
    total = lax.fori_loop(
      jnp.int32(0),
      steps,
      lambda step, total: add(step, *source_of(step), total),
      total,
    )
  rows = plgpu.load(rows_ref.at[t, within])
  pallas_gpu.store(
    out_ref, rows, columns, total.astype(out_ref.dtype), rows < m
  )


def of_tiles(
  x: Float[Array, "n c"],
  tiles: RowTiles,
  weight: Float[Array, "k c d"],
  *,
  m: int,
  tile: tile_table.Tile,
  interpret: bool,
) -> Float[Array, "m d"]:
  """`gather_conv` over tiles that exist; M, N, C, D > 0."""
  c, (taps, _, d) = x.shape[1], weight.shape
  dtype = jnp.promote_types(x.dtype, weight.dtype)
  block_c = pallas_gpu.block(c, tile.block_c)
  block_d = pallas_gpu.block(d, tile.block_d)
  weight = weight.astype(dtype)
  if tile.transposed:
    weight = weight.transpose(0, 2, 1)
  return pallas_gpu.call(
    functools.partial(
      _forward_kernel, tile=tile, block_c=block_c, block_d=block_d
    ),
    x.astype(dtype),
    tiles.rows,
    tiles.index,
    tiles.taps,
    tiles.number,
    weight.reshape(taps * weight.shape[1], weight.shape[2]),
    name="gather_conv",
    programs=tiles.rows.shape[0] * pl.cdiv(d, block_d),
    out=jax.ShapeDtypeStruct((m, d), x.dtype),
    warps=tile.warps,
    stages=tile.stages,
    interpret=interpret,
  )


def gather_conv(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  weight: Float[Array, "k c d"],
  *,
  tile: tile_table.Tile | None = None,
  interpret: bool | None = None,
) -> Float[Array, "m d"]:
  """out[i] = sum over taps k of x[table[i, k]] @ weight[k].

  Args:
    x: input rows.
    table: rows of x; any value outside 0 .. n - 1 reads a row of zeros.
    weight: one matrix a tap.
    tile: None takes that of `tile_table` for this shape.
    interpret: None runs the kernel on a GPU and interprets it elsewhere.

  Raises:
    ValueError: on a TPU, or under a jax without the Triton lowering.
  """
  interpret = pallas_gpu.interpreted(interpret)
  (n, c), (m, taps), d = x.shape, table.shape, weight.shape[2]
  if 0 in (n, c, m, taps, d):
    return jnp.zeros((m, d), x.dtype)
  dtype = jnp.promote_types(x.dtype, weight.dtype)
  tile = tile or tile_table.choose("forward", c, d, dtype=dtype)
  tiles = tiles_of(table, n, tile)
  return of_tiles(x, tiles, weight, m=m, tile=tile, interpret=interpret)


def _weight_gradient_kernel(
  x_ref,
  rows_ref,
  index_ref,
  tiles_ref,
  number_ref,
  g_ref,
  out_ref,
  *,
  tile: tile_table.Tile,
  block_c: int,
  block_d: int,
):
  c, d = x_ref.shape[1], g_ref.shape[1]
  splits, taps = out_ref.shape[:2]
  blocks_c, blocks_d = pl.cdiv(c, block_c), pl.cdiv(d, block_d)
  # Programs of the same rows run side by side: what one reads, all need.
  program = pl.program_id(0)
  j = lax.rem(program, jnp.int32(blocks_d))
  program = lax.div(program, jnp.int32(blocks_d))
  i = lax.rem(program, jnp.int32(blocks_c))
  program = lax.div(program, jnp.int32(blocks_c))
  k = lax.rem(program, jnp.int32(taps))
  split = lax.div(program, jnp.int32(taps))
  channels = pallas_gpu.block_range(i, block_c)
  columns = pallas_gpu.block_range(j, block_d)
  within = jnp.arange(tile.rows, dtype=jnp.int32)
  number = plgpu.load(number_ref.at[k])
  share = lax.div(number + (splits - 1), jnp.int32(splits))
  first = jnp.minimum(split * share, number)
  last = jnp.minimum(first + share, number)

  def look_up(step):
    t = plgpu.load(tiles_ref.at[k, step])
    source = plgpu.load(index_ref.at[t, k, within])
    return source, plgpu.load(rows_ref.at[t, within])

  def add(source, rows, total):
    exists = source >= 0
    gathered = pallas_gpu.load(x_ref, source, channels, exists)
    # A row that reads nothing adds zero, whatever its cotangent is.
    g = pallas_gpu.load(g_ref, rows, columns, exists)
    return total + jnp.dot(gathered.T, g, preferred_element_type=total.dtype)

  total = jnp.zeros((block_c, block_d), out_ref.dtype)
  if tile.ahead:

    def body(step, carry):
      total, source, rows = carry
      following = look_up(jnp.minimum(step + 1, last - 1))
      return add(source, rows, total), *following

    # Where there is nothing to visit, what is looked up is not used.
    start = look_up(jnp.minimum(first, jnp.maximum(number - 1, 0)))
    total, *_ = lax.fori_loop(first, last, body, (total, *start))
  else:
    total = lax.fori_loop(
      first, last, lambda step, total: add(*look_up(step), total), total
    )
  plgpu.store(
    out_ref.at[split, k, channels[:, None], columns[None]],
    total,
    mask=(channels < c)[:, None] & (columns < d)[None],
  )


def weight_gradient_of_tiles(
  x: Float[Array, "n c"],
  tiles: RowTiles,
  cotangent: Float[Array, "m d"],
  *,
  tile: tile_table.Tile,
  interpret: bool,
) -> Float[Array, "k c d"]:
  """`weight_gradient` over tiles that exist; M, N, C, D > 0."""
  c, d, taps = x.shape[1], cotangent.shape[1], tiles.taps.shape[1]
  dtype = jnp.promote_types(x.dtype, cotangent.dtype)
  visited, number = live_first((tiles.index >= 0).any(2).T)
  block_c = pallas_gpu.block(c, tile.block_c)
  block_d = pallas_gpu.block(d, tile.block_d)
  blocks = taps * pl.cdiv(c, block_c) * pl.cdiv(d, block_d)
  splits = min(tiles.rows.shape[0], pl.cdiv(_PROGRAMS, blocks))
  partial = pallas_gpu.call(
    functools.partial(
      _weight_gradient_kernel, tile=tile, block_c=block_c, block_d=block_d
    ),
    x.astype(dtype),
    tiles.rows,
    tiles.index,
    visited,
    number,
    cotangent.astype(dtype),
    name="gather_conv_weight_gradient",
    programs=blocks * splits,
    out=jax.ShapeDtypeStruct(
      (splits, taps, c, d), pallas_gpu.accumulator(dtype)
    ),
    warps=tile.warps,
    stages=tile.stages,
    interpret=interpret,
  )
  return partial.sum(0)


def weight_gradient(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  cotangent: Float[Array, "m d"],
  *,
  tile: tile_table.Tile | None = None,
  interpret: bool | None = None,
) -> Float[Array, "k c d"]:
  """dW[k] = sum over i of x[table[i, k]]^T cotangent[i], float32 or wider.

  The tiles that have a tap are split; every split writes its own sum and XLA
  adds them up, so the result does not depend on the order in which programs
  run.

  Arguments and errors as for `gather_conv`.
  """
  interpret = pallas_gpu.interpreted(interpret)
  (n, c), (m, taps), d = x.shape, table.shape, cotangent.shape[1]
  dtype = jnp.promote_types(x.dtype, cotangent.dtype)
  if 0 in (n, c, m, taps, d):
    return jnp.zeros((taps, c, d), pallas_gpu.accumulator(dtype))
  tile = tile or tile_table.choose("weight_gradient", c, d, dtype=dtype)
  tiles = tiles_of(table, n, tile)
  return weight_gradient_of_tiles(
    x, tiles, cotangent, tile=tile, interpret=interpret
  )
