"""Sorted segments as a tree of gathers, without atomics.

A segment is a range of rows. Ranges are cut into pieces of at most PIECE rows;
a program reduces a block of pieces, each by reading its rows one after the
other, side by side. The pieces of a segment are a range again, so the same
kernel reduces those, until a segment is one piece: a scene of a million rows
takes four passes, the second of which reads a PIECE-th of the rows. The order
of every sum is fixed by the ranges: the result is the same in every run.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels import pallas_gpu
from wsegpc_jax.kernels.pallas_gpu import pl, plgpu

PIECE = 32  # rows that one place of a program reads, at most
_PIECES = 32  # of a program
_CHANNELS = 64  # of a program, at most


def _kernel(
  x_ref, start_ref, length_ref, out_ref, *, block_c: int, maximum: bool
):
  pieces, c = out_ref.shape
  blocks_c = pl.cdiv(c, block_c)
  place = pallas_gpu.block_range(
    lax.div(pl.program_id(0), jnp.int32(blocks_c)), _PIECES
  )
  channels = pallas_gpu.block_range(
    lax.rem(pl.program_id(0), jnp.int32(blocks_c)), block_c
  )
  exists = place < pieces
  start = plgpu.load(start_ref.at[place], mask=exists, other=0)
  length = plgpu.load(length_ref.at[place], mask=exists, other=0)
  initial = -jnp.inf if maximum else 0.0

  def add(j, total):
    live = j < length
    mask = jnp.broadcast_to(
      pallas_gpu.mask_of(live, pallas_gpu.inside(channels, c)), total.shape
    )
    rows = plgpu.load(
      x_ref.at[(start + j)[:, None], channels[None]], mask=mask, other=initial
    ).astype(total.dtype)
    return jnp.maximum(total, rows) if maximum else total + rows

  total = jnp.full((_PIECES, block_c), initial, out_ref.dtype)
  total = lax.fori_loop(jnp.int32(0), jnp.max(length), add, total)
  inside = pallas_gpu.inside(channels, c)
  pallas_gpu.store(out_ref, place, channels, total, exists, inside)


def _reduce(x, start, length, *, maximum, interpret):
  """[P, C]: each piece, x[start : start + length], reduced; float32 or wider."""
  (pieces,), c = start.shape, x.shape[1]
  block_c = pallas_gpu.block(c, _CHANNELS)
  programs = pl.cdiv(pieces, _PIECES) * pl.cdiv(c, block_c)
  return pallas_gpu.call(
    functools.partial(_kernel, block_c=block_c, maximum=maximum),
    x,
    start,
    length,
    name="segment_reduce",
    programs=programs,
    out=jax.ShapeDtypeStruct((pieces, c), pallas_gpu.accumulator(x.dtype)),
    warps=4,
    stages=2,
    interpret=interpret,
  )


def cut(
  offsets: Int32[Array, " s1"], pieces: int
) -> tuple[Array, Array, Array]:
  """Ranges cut into pieces of at most PIECE rows.

  Args:
    offsets: range s is offsets[s] .. offsets[s + 1].
    pieces: how many there are at most, with ranges of no piece.

  Returns:
    (start [P], length [P] of every piece, offsets [S + 1] of the ranges
    counted in pieces); pieces that are none have length 0.
  """
  number = -(-jnp.diff(offsets) // PIECE)
  zero = jnp.zeros(1, jnp.int32)
  of_pieces = jnp.concatenate([zero, jnp.cumsum(number, dtype=jnp.int32)])
  place = jnp.arange(pieces, dtype=jnp.int32)
  owner = jnp.searchsorted(of_pieces[1:], place, side="right")
  owner = jnp.minimum(owner, len(number) - 1).astype(jnp.int32)
  start = offsets[owner] + (place - of_pieces[owner]) * PIECE
  length = jnp.clip(offsets[owner + 1] - start, 0, PIECE)
  return start, length, of_pieces


def _segments(
  x: Array,
  segment: Array,
  num_segments: int,
  *,
  longest: int | None,
  maximum: bool,
  interpret: bool | None,
) -> Array:
  interpret = pallas_gpu.interpreted(interpret)
  m, c = x.shape
  initial = -jnp.inf if maximum else 0.0
  if 0 in (m, c, num_segments):
    dtype = pallas_gpu.accumulator(x.dtype)
    return jnp.full((num_segments, c), initial, dtype)
  bounds = jnp.arange(num_segments + 1, dtype=segment.dtype)
  offsets = jnp.searchsorted(segment, bounds).astype(jnp.int32)
  reduce = functools.partial(_reduce, maximum=maximum, interpret=interpret)
  longest = m if longest is None else min(longest, m)
  while longest > PIECE:
    m = num_segments + m // PIECE
    start, length, offsets = cut(offsets, m)
    x = reduce(x, start, length)
    longest = -(-longest // PIECE)
  return reduce(x, offsets[:-1], jnp.diff(offsets))


def segment_sum(
  x: Float[Array, "m c"],
  segment: Int32[Array, " m"],
  num_segments: int,
  *,
  longest: int | None = None,
  interpret: bool | None = None,
) -> Float[Array, "s c"]:
  """out[s] = sum of the rows with segment s, in float32 or wider.

  Args:
    x: rows, sorted by segment.
    segment: of each row, ascending; outside 0 .. num_segments - 1 for none.
    num_segments: S, static.
    longest: rows of the longest segment, if known: fewer passes.
    interpret: None runs the kernel on a GPU and interprets it elsewhere.

  Raises:
    ValueError: on a TPU, or under a jax without the Triton lowering.
  """
  return _segments(
    x,
    segment,
    num_segments,
    longest=longest,
    maximum=False,
    interpret=interpret,
  )


def segment_max(
  x: Float[Array, "m c"],
  segment: Int32[Array, " m"],
  num_segments: int,
  *,
  longest: int | None = None,
  interpret: bool | None = None,
) -> Float[Array, "s c"]:
  """out[s] = maximum of the rows with segment s; -inf without any.

  Arguments and errors as for `segment_sum`.
  """
  return _segments(
    x,
    segment,
    num_segments,
    longest=longest,
    maximum=True,
    interpret=interpret,
  )
