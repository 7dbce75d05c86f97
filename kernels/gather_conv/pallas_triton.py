"""Neighbour gather fused with the matrix product, as Pallas (Triton) kernels.

A program owns a tile of rows and a block of channels; it reads the neighbours
where they lie, so the gathered [M, K C] matrix never reaches memory, and
visits only the taps that its rows have (`row_tiles`). Ragged edges (rows,
channels that are no power of two) are masked, so x and the weight are not
copied to pad them. float32 products are at least as exact as TF32 on a GPU,
and exact if `jax_default_matmul_precision` is "highest".

Without a GPU the kernels run in Pallas's interpret mode: right, but slow.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels import pallas_gpu
from wsegpc_jax.kernels.gather_conv import row_tiles, tile_table
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles
from wsegpc_jax.kernels.pallas_gpu import pl, plgpu

# Whether `implementation=None` picks the kernels on a GPU. The convolution and
# its gradients alone were measured on one (an H200: `tile_table` has the tiles
# that were fastest), a whole training step with them was not: until it is,
# they run only where they are asked for.
PREFERRED: bool = False

_PROGRAMS = 2048  # wanted of the weight gradient, some for every core of a GPU


def tiles_of(
  table: Int32[Array, "m k"],
  n: int,
  tile: tile_table.Tile,
  tiles: RowTiles | None = None,
) -> RowTiles:
  """The row tiles that a kernel of this tile visits.

  Args:
    table: rows of the input, by row of the output and tap.
    n: rows of the input.
    tile: what the kernel is compiled with.
    tiles: tiles of the same table, used if they are of a fitting size.
  """
  if tiles is not None and tile.by_mask and tiles.size % tile.rows == 0:
    return row_tiles.cut(tiles, tile.rows)
  return row_tiles.row_tiles(table, n, rows=tile.rows, by_mask=tile.by_mask)


def split_in_two(x: Float[Array, "*n c"]) -> Float[Array, "*n 2 c"]:
  """bfloat16 high and low parts, whose sum has 16 bits of a float32."""
  # Not by astype, which the compiler may leave out: it allows itself to be
  # more precise than it was told.
  high = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
  low = jnp.where(jnp.isfinite(high), x - high, 0)
  return jnp.stack([high, low], -2).astype(jnp.bfloat16)


def _parts(split: bool) -> list[tuple[int, int]]:
  """Which part of one operand meets which of the other."""
  return [(0, 0), (0, 1), (1, 0)] if split else [(0, 0)]


def _splits(tile: tile_table.Tile, dtype) -> bool:
  return tile.split and dtype == jnp.float32


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
  c: pallas_gpu.Blocks,
  d: pallas_gpu.Blocks,
  split: bool,
):
  m = out_ref.shape[0]
  parts = 2 if split else 1
  t = lax.div(pl.program_id(0), jnp.int32(d.count))
  columns = d.at(lax.rem(pl.program_id(0), jnp.int32(d.count)))
  within = jnp.arange(tile.rows, dtype=jnp.int32)

  def source_of(step):
    k = plgpu.load(taps_ref.at[t, lax.div(step, jnp.int32(c.count))])
    return k, plgpu.load(index_ref.at[t, k, within])

  def load_weight(k, part, channels, column):
    if tile.transposed:  # the weight is [K parts D, C] here
      first = (k * parts + part) * d.size
      rows, live = column
      loaded = pallas_gpu.load(
        weight_ref, first + rows, channels[0], live, channels[1]
      )
      return loaded.T
    first = (k * parts + part) * c.size
    rows, live = channels
    return pallas_gpu.load(weight_ref, first + rows, column[0], live, column[1])

  def add(step, k, source, totals):
    totals = list(totals)
    for channels in c.at(lax.rem(step, jnp.int32(c.count))):
      places, exists = channels
      gathered = [
        pallas_gpu.load(
          x_ref, source, places + part * c.size, source >= 0, exists
        )
        for part in range(parts)
      ]
      for i, column in enumerate(columns):
        weight = [load_weight(k, p, channels, column) for p in range(parts)]
        for a, b in _parts(split):
          totals[i] += jnp.dot(
            gathered[a], weight[b], preferred_element_type=totals[i].dtype
          )
    return tuple(totals)

  dtype = pallas_gpu.accumulator(weight_ref.dtype)
  totals = tuple(jnp.zeros((tile.rows, width), dtype) for width in d.widths)
  steps = plgpu.load(number_ref.at[t]) * c.count
  if tile.ahead:
    # What the next step reads is looked up a step ahead of its use.
    def body(step, carry):
      totals, k, source = carry
      following = source_of(jnp.minimum(step + 1, steps - 1))
      return add(step, k, source, totals), *following

    first = source_of(jnp.int32(0))
    totals, *_ = lax.fori_loop(jnp.int32(0), steps, body, (totals, *first))
  else:
    totals = lax.fori_loop(
      jnp.int32(0),
      steps,
      lambda step, totals: add(step, *source_of(step), totals),
      totals,
    )
  rows = plgpu.load(rows_ref.at[t, within])
  for (column, exists), total in zip(columns, totals, strict=True):
    total = total.astype(out_ref.dtype)
    pallas_gpu.store(out_ref, rows, column, total, rows < m, exists)


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
  (n, c), d = x.shape, weight.shape[2]
  out, dtype = x.dtype, jnp.promote_types(x.dtype, weight.dtype)
  x, weight = x.astype(dtype), weight.astype(dtype)
  if tile.transposed:
    weight = weight.transpose(0, 2, 1)
  split = _splits(tile, dtype)
  if split:
    x = split_in_two(x).reshape(n, 2 * c)
    # [K, 2, rows, columns]: the parts before the rows.
    weight = split_in_two(weight).swapaxes(1, 2)
  blocks_c = pallas_gpu.blocks(c, tile.block_c, unpadded=tile.unpadded)
  blocks_d = pallas_gpu.blocks(d, tile.block_d, unpadded=tile.unpadded)
  return pallas_gpu.call(
    functools.partial(
      _forward_kernel, tile=tile, c=blocks_c, d=blocks_d, split=split
    ),
    x,
    tiles.rows,
    tiles.index,
    tiles.taps,
    tiles.number,
    weight.reshape(-1, weight.shape[-1]),
    name="gather_conv",
    programs=tiles.rows.shape[0] * blocks_d.count,
    out=jax.ShapeDtypeStruct((m, d), out),
    warps=tile.warps,
    stages=tile.stages,
    interpret=interpret,
  )


def gather_conv(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  weight: Float[Array, "k c d"],
  *,
  tiles: RowTiles | None = None,
  tile: tile_table.Tile | None = None,
  interpret: bool | None = None,
) -> Float[Array, "m d"]:
  """out[i] = sum over taps k of x[table[i, k]] @ weight[k].

  Args:
    x: input rows.
    table: rows of x; any value outside 0 .. n - 1 reads a row of zeros.
    weight: one matrix a tap.
    tiles: `row_tiles` of the table, if they exist.
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
  tiles = tiles_of(table, n, tile, tiles)
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
  c: pallas_gpu.Blocks,
  d: pallas_gpu.Blocks,
  group: int,
  split: bool,
):
  splits, taps = out_ref.shape[:2]
  groups, parts = taps // group, 2 if split else 1
  # Programs of the same rows run side by side: what one reads, all need.
  program = pl.program_id(0)
  columns = d.at(lax.rem(program, jnp.int32(d.count)))
  program = lax.div(program, jnp.int32(d.count))
  channels = c.at(lax.rem(program, jnp.int32(c.count)))
  program = lax.div(program, jnp.int32(c.count))
  own = lax.rem(program, jnp.int32(groups))
  share_index = lax.div(program, jnp.int32(groups))
  within = jnp.arange(tile.rows, dtype=jnp.int32)
  number = plgpu.load(number_ref.at[own])
  share = lax.div(number + (splits - 1), jnp.int32(splits))
  first = jnp.minimum(share_index * share, number)
  last = jnp.minimum(first + share, number)

  def look_up(step):
    t = plgpu.load(tiles_ref.at[own, step])
    sources = tuple(
      plgpu.load(index_ref.at[t, own * group + i, within]) for i in range(group)
    )
    return sources, plgpu.load(rows_ref.at[t, within])

  def add(sources, rows, totals):
    # A row that reads nothing adds zero, whatever its cotangent is.
    live = functools.reduce(jnp.logical_or, [s >= 0 for s in sources])
    g = [
      [
        pallas_gpu.load(g_ref, rows, places + part * d.size, live, exists)
        for part in range(parts)
      ]
      for places, exists in columns
    ]
    totals, place = list(totals), 0
    for source, (places, exists) in itertools.product(sources, channels):
      gathered = [
        pallas_gpu.load(
          x_ref, source, places + part * c.size, source >= 0, exists
        )
        for part in range(parts)
      ]
      for j in range(len(columns)):
        for a, b in _parts(split):
          totals[place] += jnp.dot(
            gathered[a].T, g[j][b], preferred_element_type=out_ref.dtype
          )
        place += 1
    return tuple(totals)

  totals = tuple(
    jnp.zeros((i, j), out_ref.dtype)
    for _, i, j in itertools.product(range(group), c.widths, d.widths)
  )
  if tile.ahead:

    def body(step, carry):
      totals, sources, rows = carry
      following = look_up(jnp.minimum(step + 1, last - 1))
      return add(sources, rows, totals), *following

    # Where there is nothing to visit, what is looked up is not used.
    start = look_up(jnp.minimum(first, jnp.maximum(number - 1, 0)))
    totals, *_ = lax.fori_loop(first, last, body, (totals, *start))
  else:
    totals = lax.fori_loop(
      first, last, lambda step, totals: add(*look_up(step), totals), totals
    )
  written = itertools.product(range(group), channels, columns)
  for (i, rows, column), total in zip(written, totals, strict=True):
    mask = pallas_gpu.mask_of(rows[1], column[1])
    if mask is not None:
      mask = jnp.broadcast_to(mask, total.shape)
    k = own * group + i
    place = out_ref.at[share_index, k, rows[0][:, None], column[0][None]]
    plgpu.store(place, total, mask=mask)


def weight_gradient_of_tiles(
  x: Float[Array, "n c"],
  tiles: RowTiles,
  cotangent: Float[Array, "m d"],
  *,
  tile: tile_table.Tile,
  interpret: bool,
) -> Float[Array, "k c d"]:
  """`weight_gradient` over tiles that exist; M, N, C, D > 0."""
  (n, c), (m, d), taps = x.shape, cotangent.shape, tiles.taps.shape[1]
  dtype = jnp.promote_types(x.dtype, cotangent.dtype)
  x, cotangent = x.astype(dtype), cotangent.astype(dtype)
  split = _splits(tile, dtype)
  if split:
    x = split_in_two(x).reshape(n, 2 * c)
    cotangent = split_in_two(cotangent).reshape(m, 2 * d)
  group = tile.group if taps % tile.group == 0 else 1
  visited, number = tiles.visits[group]
  blocks_c = pallas_gpu.blocks(c, tile.block_c, unpadded=tile.unpadded)
  blocks_d = pallas_gpu.blocks(d, tile.block_d, unpadded=tile.unpadded)
  blocks = taps // group * blocks_c.count * blocks_d.count
  splits = min(tiles.rows.shape[0], pl.cdiv(_PROGRAMS, blocks))
  partial = pallas_gpu.call(
    functools.partial(
      _weight_gradient_kernel,
      tile=tile,
      c=blocks_c,
      d=blocks_d,
      group=group,
      split=split,
    ),
    x,
    tiles.rows,
    tiles.index,
    visited,
    number,
    cotangent,
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
  tiles: RowTiles | None = None,
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
  tiles = tiles_of(table, n, tile, tiles)
  return weight_gradient_of_tiles(
    x, tiles, cotangent, tile=tile, interpret=interpret
  )
