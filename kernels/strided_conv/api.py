"""The public operations, with `implementation=` to choose who computes them.

    strided_conv:     out[p] = sum_k x[children[p, k]] @ weight[k]
    transposed_conv:  out[i] = x[parent[i]] @ weight[octant[i]]

`children` [P, K] and (`parent`, `octant`) [M] say the same thing twice:
children[parent[i], octant[i]] = i. So the transpose of either is a gather, and
nothing is scattered. An index that is not a row reads a row of zeros. Like
those of `gather_conv` these are the pieces of custom VJPs, not meant to be
differentiated themselves.
"""

from jaxtyping import Array, Float, Int32

from wsegpc_jax.kernels.gather_conv import (
  IMPLEMENTATIONS,
  check_operands,
  choose_implementation,
  gather_conv,
  gather_conv_weight_gradient,
)
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles
from wsegpc_jax.kernels.strided_conv import reference, xla

__all__ = [
  "IMPLEMENTATIONS",
  "strided_backward",
  "strided_conv",
  "transposed_backward",
  "transposed_conv",
]


def strided_conv(
  x: Float[Array, "m c"],
  children: Int32[Array, "p k"],
  weight: Float[Array, "k c d"],
  *,
  tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> Float[Array, "p d"]:
  """out[p] = sum over k of x[children[p, k]] @ weight[k].

  Args:
    x: fine rows.
    children: rows of x, by coarse row and octant.
    weight: one matrix an octant.
    tiles: `row_tiles` of the children, which "pallas" otherwise makes.
    implementation: "reference", "xla", "pallas", or None for the best.

  Raises:
    ValueError: shapes do not agree, or an unknown implementation.
  """
  return gather_conv(
    x, children, weight, tiles=tiles, implementation=implementation
  )


def transposed_conv(
  x: Float[Array, "p c"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
  *,
  tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> Float[Array, "m d"]:
  """out[i] = x[parent[i]] @ weight[octant[i]]; zero without a parent.

  Args:
    x: coarse rows.
    parent: row of x of each fine row; p and more are none, as are negative ones.
    octant: which of the K matrices, 0 .. K - 1.
    weight: one matrix an octant.
    implementation: as for `strided_conv`.

  Raises:
    ValueError: shapes do not agree, or an unknown implementation.
  """
  check_operands(x, weight)
  if parent.ndim != 1 or parent.shape != octant.shape:
    raise ValueError(
      f"parent and octant must be [M] both, got {list(parent.shape)} and "
      f"{list(octant.shape)}"
    )
  match choose_implementation(implementation):
    case "xla":
      return xla.transposed_conv(x, parent, octant, weight)
    case "reference":
      return reference.transposed_conv(x, parent, octant, weight)
    case "pallas":
      # Imported late: Pallas is slow to import and needed on GPUs only.
      from wsegpc_jax.kernels.strided_conv import pallas_triton

      return pallas_triton.transposed_conv(
        x, parent, octant, weight, tiles=tiles
      )


def strided_backward(
  x: Float[Array, "m c"],
  children: Int32[Array, "p k"],
  parent: Int32[Array, " m"],
  octant: Int32[Array, " m"],
  weight: Float[Array, "k c d"],
  cotangent: Float[Array, "p d"],
  *,
  children_tiles: RowTiles | None = None,
  octant_tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "m c"], Float[Array, "k c d"]]:
  """(dx, dW) of `strided_conv`; dW is float32 or wider.

  Raises:
    ValueError: shapes do not agree, or an unknown implementation.
  """
  check_operands(x, weight, cotangent)
  dx = transposed_conv(
    cotangent,
    parent,
    octant,
    weight.transpose(0, 2, 1),
    tiles=octant_tiles,
    implementation=implementation,
  )
  dw = gather_conv_weight_gradient(
    x,
    children,
    cotangent,
    taps=weight.shape[0],
    tiles=children_tiles,
    implementation=implementation,
  )
  return dx, dw


def transposed_backward(
  x: Float[Array, "p c"],
  children: Int32[Array, "p k"],
  weight: Float[Array, "k c d"],
  cotangent: Float[Array, "m d"],
  *,
  children_tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "p c"], Float[Array, "k c d"]]:
  """(dx, dW) of `transposed_conv`; dW is float32 or wider.

  Raises:
    ValueError: shapes do not agree, or an unknown implementation.
  """
  check_operands(x, weight, cotangent)
  dx = strided_conv(
    cotangent,
    children,
    weight.transpose(0, 2, 1),
    tiles=children_tiles,
    implementation=implementation,
  )
  # dW[k] = sum over parents of x^T cotangent[child k].
  dw = gather_conv_weight_gradient(
    cotangent,
    children,
    x,
    taps=weight.shape[0],
    tiles=children_tiles,
    implementation=implementation,
  )
  return dx, dw.transpose(0, 2, 1)
