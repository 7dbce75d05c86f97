"""Batch normalisation over the valid rows of all devices.

Padded batches hold a different number of valid rows on every device, so
statistics are weighted by rows: the sums are reduced, never the means. The
backward pass is written out, in two passes over x and the cotangent: it keeps x
as it came, in its own dtype, and C numbers, where autodiff would keep several
arrays in float32.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


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
    if not train:
      wide = _cleared(x, valid)
      mean, var = (
        running.value.astype(wide.dtype)
        for running in (running_mean, running_var)
      )
      factor = jax.lax.rsqrt(var + self.epsilon) * scale.astype(wide.dtype)
      y = (wide - mean) * factor + bias.astype(wide.dtype)
      return jnp.where(valid, y, 0).astype(dtype)

    # While initialising no axis is bound.
    axis_name = None if self.is_initializing() else self.axis_name
    y, *statistics = _normalize(
      axis_name, self.epsilon, dtype, x, valid, scale, bias
    )
    if not self.is_initializing():
      mean, var, count = statistics
      kept = jnp.where(count > 0, self.momentum, 1.0)
      unbiased = var * (count / jnp.maximum(count - 1, 1))
      for running, new in (running_mean, mean), (running_var, unbiased):
        moved = kept * running.value + (1 - kept) * new
        running.value = moved.astype(stats_dtype)
    return y


def _cleared(x: Array, valid: Array) -> Array:
  """x in float32 or wider, zero in padded rows."""
  # Cleared before any arithmetic: NaN * 0 in a gradient is still NaN.
  x = jnp.where(valid, x, 0)
  return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _sum(value: Array, axis_name: str | None) -> Array:
  """Over devices."""
  return value if axis_name is None else jax.lax.psum(value, axis_name)


def _batch_statistics(x, valid, axis_name):
  """Mean and biased variance [C] of the valid rows, and their number."""
  # Rows are counted in integers: float32 stops at 2^24 of them.
  rows_per_entry = x.size // max(valid.size * x.shape[-1], 1)
  axes = tuple(range(x.ndim - 1))
  count = _sum(jnp.sum(valid, dtype=jnp.int32) * rows_per_entry, axis_name)
  divisor = jnp.maximum(count, 1).astype(x.dtype)
  mean = _sum(jnp.sum(x, axes), axis_name) / divisor
  deviation = jnp.where(valid, x - mean, 0)
  var = _sum(jnp.sum(jnp.square(deviation), axes), axis_name) / divisor
  return mean, var, count.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _normalize(
  axis_name: str | None,
  epsilon: float,
  dtype: Any,
  x: Float[Array, "*n c"],
  valid: Bool[Array, "..."],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
) -> tuple[Float[Array, "*n c"], Array, Array, Array]:
  """(y, mean, biased variance, rows); no gradient flows through the last three.

  With x' = (x - mean) / sqrt(variance + epsilon), y = scale x' + bias and N
  rows on all devices, the gradient for the cotangent g of y is (arXiv
  1502.03167, section 3)

      dbias = sum g,   dscale = sum g x',
      dx = scale / sqrt(variance + epsilon) (g - (dbias + x' dscale) / N)

  with the sums of all devices in dx, and of the own rows in the others. Under
  `shard_map` that needs check_vma=False, as in `parallel`.
  """
  return _forward(axis_name, epsilon, dtype, x, valid, scale, bias)[0]


def _forward(axis_name, epsilon, dtype, x, valid, scale, bias):
  wide = _cleared(x, valid)
  mean, var, count = _batch_statistics(wide, valid, axis_name)
  inverse = jax.lax.rsqrt(var + epsilon)
  factor = inverse * scale.astype(wide.dtype)
  y = (wide - mean) * factor + bias.astype(wide.dtype)
  y = jnp.where(valid, y, 0).astype(dtype)
  return (y, mean, var, count), (x, valid, scale, mean, inverse, count)


def _backward(axis_name, epsilon, dtype, saved, cotangents):
  del epsilon, dtype
  x, valid, scale, mean, inverse, count = saved
  normal = (_cleared(x, valid) - mean) * inverse
  g = _cleared(cotangents[0], valid).astype(normal.dtype)
  axes = tuple(range(x.ndim - 1))
  own = jnp.stack([jnp.sum(g, axes), jnp.sum(g * normal, axes)])
  of_bias, of_scale = _sum(own, axis_name) / jnp.maximum(count, 1)
  factor = inverse * scale.astype(normal.dtype)
  dx = (g - of_bias - normal * of_scale) * factor
  # Of a single row it is zero. It has no variance, and without this the factor
  # would make much of rounding.
  dx = jnp.where(valid & (count > 1), dx, 0)
  of_valid = np.zeros(valid.shape, jax.dtypes.float0)
  of_bias, of_scale = own.astype(scale.dtype)
  return dx.astype(x.dtype), of_valid, of_scale, of_bias


_normalize.defvjp(_forward, _backward)
