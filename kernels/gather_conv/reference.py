"""The definition: gather, multiply and `segment_sum` over (in, out, tap) pairs.

Slow and obvious; every other implementation is tested against it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def gather_conv(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  weight: Float[Array, "k c d"],
) -> Float[Array, "m d"]:
  """out[i] = sum over taps k of x[table[i, k]] @ weight[k]."""
  n, (m, taps) = x.shape[0], table.shape
  source = table.reshape(-1)
  target = jnp.repeat(jnp.arange(m), taps)
  tap = jnp.tile(jnp.arange(taps), m)
  exists = (source >= 0) & (source < n)
  padded = jnp.pad(x, ((0, 1), (0, 0)))
  gathered = padded[jnp.where(exists, source, n)]
  product = jnp.einsum(
    "pc,pcd->pd",
    gathered,
    weight[tap],
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )
  out = jax.ops.segment_sum(product, target, num_segments=m)
  return out.astype(x.dtype)


def weight_gradient(
  x: Float[Array, "n c"],
  table: Int32[Array, "m k"],
  cotangent: Float[Array, "m d"],
) -> Float[Array, "k c d"]:
  """dW[k] = sum over i of x[table[i, k]]^T cotangent[i]."""
  n, taps = x.shape[0], table.shape[1]
  exists = (table >= 0) & (table < n)
  padded = jnp.pad(x, ((0, 1), (0, 0)))
  gathered = padded[jnp.where(exists, table, n)]
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  products = jnp.einsum(
    "mkc,md->mkcd", gathered, cotangent, preferred_element_type=dtype
  )
  products = jnp.where(exists[..., None, None], products, 0)
  tap = jnp.tile(jnp.arange(taps), table.shape[0])
  return jax.ops.segment_sum(
    products.reshape(-1, *products.shape[2:]), tap, num_segments=taps
  )
