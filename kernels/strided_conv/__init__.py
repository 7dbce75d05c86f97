"""The 2^3 convolutions between two levels, and their gradients."""

from wsegpc_jax.kernels.strided_conv.api import (
  IMPLEMENTATIONS,
  strided_backward,
  strided_conv,
  transposed_backward,
  transposed_conv,
)

__all__ = [
  "IMPLEMENTATIONS",
  "strided_backward",
  "strided_conv",
  "transposed_backward",
  "transposed_conv",
]
