"""Batch normalisation over the valid rows of all devices.

Padded batches hold a different number of valid rows on every device, so
statistics are weighted by rows: the sums are reduced, never the means.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MaskedBatchNorm(nn.Module):
  """Synchronised batch norm (arXiv 1502.03167) that leaves padding out.

  Rows are normalised by their biased variance, while the running variance
  keeps the unbiased one, as torch does; a single row has only the biased one.
  Statistics are computed in two passes, in float32 or wider.

  Attributes:
    momentum: share of the running statistics kept at each step (0.9 here is
      0.1 in torch's sense).
    epsilon: added to the variance.
    axis_name: device axis to reduce over; None = this device alone.
    dtype: dtype of the output; None = that of x.
    param_dtype: dtype of `scale` and `bias`; the running statistics use it too
      unless it is narrower than float32.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> jax.Array:
    """Normalises x; with `train` also moves the running statistics.

    Args:
      x: float [..., C]; padded rows may hold anything, also NaN.
      mask: bool, valid rows: the leading axes of x without C, or the first few
        of them (x [B, H, W, C] with mask [B]).
      train: statistics of the batch (True) or the running ones (False). With
        True the collection "batch_stats" must be mutable. A batch without any
        valid row on any device leaves it unchanged.

    Returns:
      `dtype` [..., C], zero in padded rows.

    Raises:
      ValueError: mask is not bool or does not fit the leading axes of x.
    """
    if mask.dtype != jnp.bool_:
      raise ValueError(f"mask must be bool, not {mask.dtype}")
    if mask.ndim >= x.ndim or mask.shape != x.shape[: mask.ndim]:
      raise ValueError(
        f"mask {mask.shape} does not fit the leading axes of x {x.shape}"
      )
    channels = x.shape[-1]
    stats_dtype = jnp.promote_types(jnp.float32, self.param_dtype)
    running_mean = self.variable(
      "batch_stats", "mean", jnp.zeros, (channels,), stats_dtype
    )
    running_var = self.variable(
      "batch_stats", "var", jnp.ones, (channels,), stats_dtype
    )
    scale = self.param(
      "scale", nn.initializers.ones, (channels,), self.param_dtype
    )
    bias = self.param(
      "bias", nn.initializers.zeros, (channels,), self.param_dtype
    )

    dtype = x.dtype if self.dtype is None else self.dtype
    valid = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    # Cleared before any arithmetic: NaN * 0 in a gradient is still NaN.
    x = jnp.where(valid, x, 0)
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))

    if train:
      mean, var, count = self._batch_statistics(x, valid)
      if not self.is_initializing():
        kept = jnp.where(count > 0, self.momentum, 1.0)
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        for running, new in (running_mean, mean), (running_var, unbiased):
          moved = kept * running.value + (1 - kept) * new
          running.value = moved.astype(stats_dtype)
    else:
      mean = running_mean.value.astype(x.dtype)
      var = running_var.value.astype(x.dtype)

    factor = jax.lax.rsqrt(var + self.epsilon) * scale.astype(x.dtype)
    y = (x - mean) * factor + bias.astype(x.dtype)
    return jnp.where(valid, y, 0).astype(dtype)

  def _batch_statistics(self, x, valid):
    """Mean and biased variance [C] of the valid rows, and their number."""
    # Rows are counted in integers: float32 stops at 2^24 of them.
    rows_per_entry = x.size // max(valid.size * x.shape[-1], 1)
    axes = tuple(range(x.ndim - 1))
    count = self._reduce(jnp.sum(valid, dtype=jnp.int32) * rows_per_entry)
    total = self._reduce(jnp.sum(x, axes))
    divisor = jnp.maximum(count, 1).astype(x.dtype)
    mean = total / divisor
    deviation = jnp.where(valid, x - mean, 0)
    var = self._reduce(jnp.sum(jnp.square(deviation), axes)) / divisor
    return mean, var, count.astype(x.dtype)

  def _reduce(self, value):
    """Sum over devices; none while initialising, where no axis is bound."""
    if self.axis_name is None or self.is_initializing():
      return value
    return jax.lax.psum(value, self.axis_name)
