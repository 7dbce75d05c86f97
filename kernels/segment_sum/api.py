"""The public operation, with `implementation=` to choose who computes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels.gather_conv import (
  IMPLEMENTATIONS,
  choose_implementation,
)
from wsegpc_jax.kernels.segment_sum import reference, xla

__all__ = ["IMPLEMENTATIONS", "KINDS", "segment_reduce"]

KINDS = ("sum", "mean", "max")


def _module(implementation: str | None):
  match choose_implementation(implementation):
    case "xla":
      return xla
    case "reference":
      return reference
    case "pallas":
      # Imported late: Pallas is slow to import and needed on GPUs only.
      from wsegpc_jax.kernels.segment_sum import pallas_triton

      return pallas_triton


def segment_reduce(
  x: Float[Array, "m c"],
  segment: Int32[Array, " m"],
  *,
  num_segments: int,
  kind: str = "sum",
  longest: int | None = None,
  implementation: str | None = None,
) -> Float[Array, "s c"]:
  """Sum, mean or maximum of the rows of each segment; zero for an empty one.

  Differentiable in x; rows that share a maximum share its gradient equally.
  Sums are taken in float32 or wider, the result has the type of x. "pallas"
  gives the same bits in every run; "xla" on a GPU adds atomically.

  Args:
    x: rows, sorted by segment.
    segment: of each row, ascending; a value outside 0 .. num_segments - 1
      belongs to none. If they do not ascend, the result is undefined.
    num_segments: S, static.
    kind: "sum", "mean" or "max".
    longest: rows of the longest segment, if known; "pallas" then needs fewer
      passes. The result is undefined where a segment is longer.
    implementation: "reference", "xla", "pallas", or None for the best.

  Raises:
    ValueError: shapes do not agree, or an unknown kind or implementation.
  """
  if x.ndim != 2 or segment.shape != x.shape[:1]:
    raise ValueError(
      f"x must be [M, C] and segment [M], got {list(x.shape)} and "
      f"{list(segment.shape)}"
    )
  if kind not in KINDS:
    raise ValueError(
      f"kind={kind!r} is unknown; expected one of {', '.join(map(repr, KINDS))}"
    )
  name = choose_implementation(implementation)
  return _reduce(num_segments, kind, longest, name, x, segment)


def _numbers(segment: Array, num_segments: int) -> Array:
  bounds = jnp.arange(num_segments + 1, dtype=segment.dtype)
  return jnp.diff(jnp.searchsorted(segment, bounds)).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _reduce(num_segments, kind, longest, implementation, x, segment):
  module = _module(implementation)
  options = {"longest": longest} if implementation == "pallas" else {}
  number = _numbers(segment, num_segments)[:, None]
  if kind == "max":
    out = module.segment_max(x, segment, num_segments, **options)
    return jnp.where(number > 0, out, 0).astype(x.dtype)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  if implementation != "pallas":  # that one widens as it reads
    x, dtype = x.astype(wide), x.dtype
  else:
    dtype = x.dtype
  out = module.segment_sum(x, segment, num_segments, **options)
  if kind == "mean":
    out = out / jnp.maximum(number, 1).astype(wide)
  return out.astype(dtype)


def _forward(num_segments, kind, longest, implementation, x, segment):
  out = _reduce(num_segments, kind, longest, implementation, x, segment)
  kept = (x, out) if kind == "max" else None
  return out, (kept, segment)


def _backward(num_segments, kind, longest, implementation, saved, g):
  kept, segment = saved
  exists = (segment >= 0) & (segment < num_segments)
  row = jnp.where(exists, segment, num_segments)

  def of_rows(a):
    padded = jnp.pad(a, ((0, 1), (0, 0)))
    return jnp.take(padded, row, axis=0, mode="clip")

  if kind == "max":
    x, out = kept
    hit = (x == of_rows(out)) & exists[:, None]
    ones = hit.astype(jnp.promote_types(x.dtype, jnp.float32))
    share = _reduce(num_segments, "sum", longest, implementation, ones, segment)
    dx = of_rows(g / jnp.maximum(share, 1).astype(g.dtype))
    dx = jnp.where(hit, dx, 0)
  else:
    if kind == "mean":
      number = _numbers(segment, num_segments)[:, None]
      g = g / jnp.maximum(number, 1).astype(g.dtype)
    dx = of_rows(g)
  return dx, np.zeros(segment.shape, jax.dtypes.float0)


_reduce.defvjp(_forward, _backward)
