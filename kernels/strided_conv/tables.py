"""The transposed convolution as a table of one tap a row."""

import jax.numpy as jnp
from jaxtyping import Array, Int32


def octant_table(
  parent: Int32[Array, " m"], octant: Int32[Array, " m"], taps: int = 8
) -> Int32[Array, "m k"]:
  """table[i, octant[i]] = parent[i], and -1 elsewhere."""
  own = octant[:, None] == jnp.arange(taps, dtype=octant.dtype)
  return jnp.where(own, parent[:, None], -1)
