"""Neighbour gather fused with a matrix product: the sparse convolution."""

from wsegpc_jax.kernels.gather_conv.api import (
  IMPLEMENTATIONS,
  check_operands,
  choose_implementation,
  gather_conv,
  gather_conv_weight_gradient,
  symmetric_backward,
)

__all__ = [
  "IMPLEMENTATIONS",
  "check_operands",
  "choose_implementation",
  "gather_conv",
  "gather_conv_weight_gradient",
  "symmetric_backward",
]
