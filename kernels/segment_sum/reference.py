"""The definition: a row belongs to a segment or it does not.

Slow and obvious; every other implementation is tested against it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def segment_sum(
  x: Float[Array, "m c"], segment: Int32[Array, " m"], num_segments: int
) -> Float[Array, "s c"]:
  """out[s] = sum of the rows with segment s."""
  member = segment[None] == jnp.arange(num_segments)[:, None]
  return jnp.where(member[..., None], x[None], 0).sum(1)


def segment_max(
  x: Float[Array, "m c"], segment: Int32[Array, " m"], num_segments: int
) -> Float[Array, "s c"]:
  """out[s] = maximum of the rows with segment s; -inf without any."""
  member = segment[None] == jnp.arange(num_segments)[:, None]
  return jnp.where(member[..., None], x[None], -jnp.inf).max(
    1, initial=-jnp.inf
  )
