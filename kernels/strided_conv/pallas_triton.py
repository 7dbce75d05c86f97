"""The transposed convolution by the kernel of `gather_conv`.

Each fine row has one of eight taps, the parent through its octant. Sorted by
tap, nearly all tiles have rows of one octant: the one matrix product that they
need is the one they do, and nothing but the result is written.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels.gather_conv import pallas_triton, tile_table


def transposed_conv(
  x: Float[Array, "p c"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
  *,
  tile: tile_table.Tile | None = None,
  interpret: bool | None = None,
) -> Float[Array, "m d"]:
  """out[i] = x[parent[i]] @ weight[octant[i]].

  `tile`, `interpret` and errors as for `gather_conv.pallas_triton`.
  """
  own = octant[:, None] == jnp.arange(weight.shape[0], dtype=octant.dtype)
  table = jnp.where(own, parent[:, None], -1)
  return pallas_triton.gather_conv(
    x, table, weight, tile=tile, interpret=interpret
  )
