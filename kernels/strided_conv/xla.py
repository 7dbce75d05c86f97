"""All octants of every parent in one matrix product, then a gather."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def transposed_conv(
  x: Float[Array, "p c"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
) -> Float[Array, "m d"]:
  """out[i] = x[parent[i]] @ weight[octant[i]]."""
  p, (taps, c, d) = x.shape[0], weight.shape
  flat = weight.transpose(1, 0, 2).reshape(c, taps * d)
  product = (x @ flat).reshape(p * taps, d)
  product = jnp.pad(product, ((0, 1), (0, 0)))
  exists = (parent >= 0) & (parent < p)
  index = jnp.where(exists, parent * taps + octant, p * taps)
  return jnp.take(product, index, axis=0, mode="clip")
