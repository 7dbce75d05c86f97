"""XLA's own segment reductions: scatters, told that the rows are sorted."""

import jax
from jaxtyping import Array, Float, Int32


def segment_sum(
  x: Float[Array, "m c"], segment: Int32[Array, " m"], num_segments: int
) -> Float[Array, "s c"]:
  """out[s] = sum of the rows with segment s."""
  return jax.ops.segment_sum(
    x, segment, num_segments=num_segments, indices_are_sorted=True
  )


def segment_max(
  x: Float[Array, "m c"], segment: Int32[Array, " m"], num_segments: int
) -> Float[Array, "s c"]:
  """out[s] = maximum of the rows with segment s; -inf without any."""
  return jax.ops.segment_max(
    x, segment, num_segments=num_segments, indices_are_sorted=True
  )
