"""The transposed convolution by the kernel of `gather_conv`.

Each fine row has one of eight taps, the parent through its octant. Sorted by
tap, nearly all tiles have rows of one octant: the one matrix product that they
need is the one they do, and nothing but the result is written.
"""

from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels.gather_conv import pallas_triton, tile_table
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles
from wsegpc_jax.kernels.strided_conv.tables import octant_table


def transposed_conv(
  x: Float[Array, "p c"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
  *,
  tiles: RowTiles | None = None,
  tile: tile_table.Tile | None = None,
  interpret: bool | None = None,
) -> Float[Array, "m d"]:
  """out[i] = x[parent[i]] @ weight[octant[i]].

  `tiles` are those of `octant_table`; other arguments and errors as for `gather_conv.pallas_triton`.
  """
  table = octant_table(parent, octant, weight.shape[0])
  return pallas_triton.gather_conv(
    x, table, weight, tiles=tiles, tile=tile, interpret=interpret
  )
