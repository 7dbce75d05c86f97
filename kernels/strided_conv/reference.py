"""The definition: every fine row takes its own matrix of its parent's row.

Slow and obvious; every other implementation is tested against it. The strided
convolution, the transpose, is `gather_conv` over the table of children.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def transposed_conv(
  x: Float[Array, "p c"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
) -> Float[Array, "m d"]:
  """out[i] = x[parent[i]] @ weight[octant[i]]."""
  p = x.shape[0]
  exists = (parent >= 0) & (parent < p)
  padded = jnp.pad(x, ((0, 1), (0, 0)))
  out = jnp.einsum(
    "mc,mcd->md",
    padded[jnp.where(exists, parent, p)],
    weight[octant],
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )
  return jnp.where(exists[:, None], out, 0).astype(x.dtype)
