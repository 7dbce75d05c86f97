"""Sums, means and maxima over sorted segments of rows."""

from wsegpc_jax.kernels.segment_sum.api import (
  IMPLEMENTATIONS,
  KINDS,
  segment_reduce,
)

__all__ = ["IMPLEMENTATIONS", "KINDS", "segment_reduce"]
