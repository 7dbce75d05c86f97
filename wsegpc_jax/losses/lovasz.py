"""Lovasz-softmax (Berman et al., CVPR 2018, arXiv 1705.08790).

A convex surrogate of 1 - IoU, averaged over the classes present. For a class,
the errors |[y = c] - p_c| of all voxels in descending order are weighted by
what each one adds to the Jaccard loss of those before it. The weights are
constants of the gradient.

The loss is one of the whole batch, over all devices: an average of per-device
losses is another number, because a class that is rare on a device counts there
as much as where it is common. So every device ranks the errors of all devices
(gathered: K floats a voxel) and keeps the weights of its own voxels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def lovasz_softmax(
  logits: Float[Array, "m k"],
  label: Int32[Array, " m"],
  mask: Bool[Array, " m"],
  *,
  axis_name: str | None = None,
) -> Float[Array, ""]:
  """This device's share of the loss of the whole batch.

  The shares of all devices add up to the loss, and the gradients of the shares
  to its gradient. Without any valid voxel the loss is 0.

  Args:
    logits: of this device's voxels; padding may hold anything finite.
    label: class of each voxel; read where mask is True.
    mask: voxels that count (labelled and no padding).
    axis_name: device axis; None = this device alone.
  """
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  probabilities = jax.nn.softmax(logits.astype(dtype))
  classes = jnp.arange(logits.shape[-1])
  foreground = (label == classes[:, None]) & mask  # [k, m]
  error = jnp.abs(foreground - probabilities.T)

  ranked = jax.lax.stop_gradient(jnp.where(mask, error, -1))
  everyone, own = (ranked, foreground), None
  if axis_name is not None:
    everyone = jax.lax.all_gather(everyone, axis_name, axis=1, tiled=True)
    own = jax.lax.axis_index(axis_name)
  weights = jax.lax.map(lambda x: _jaccard_weights(*x), everyone)
  if own is not None:
    rows = logits.shape[0]
    weights = jax.lax.dynamic_slice_in_dim(weights, own * rows, rows, axis=1)
  present = everyone[1].any(1).sum()
  total = (jnp.where(mask, error, 0) * weights).sum()
  return total / jnp.maximum(present, 1)


def _jaccard_weights(
  error: Float[Array, " n"], foreground: Bool[Array, " n"]
) -> Float[Array, " n"]:
  """What each voxel adds to the Jaccard loss; -1 in `error` = not there.

  With F foreground voxels in total, f of them and b of the background up to
  and with this voxel, the Jaccard loss is 1 - (F - f) / (F + b). Its increment
  has a closed form for either kind of voxel, which unlike the difference of
  two losses keeps its digits in float32.
  """
  n = error.shape[0]
  # Stable: of equal errors the first row counts first, on any devices.
  negative, order = jax.lax.sort(
    (-error, jnp.arange(n, dtype=jnp.int32)), num_keys=1, is_stable=True
  )
  there = negative <= 0
  hit = foreground[order]
  total = foreground.sum()
  left = (total - jnp.cumsum(hit)).astype(error.dtype)
  union = (total + jnp.cumsum(there & ~hit)).astype(error.dtype)
  union = jnp.maximum(union, 1)
  added = jnp.where(hit, 1 / union, left / union / jnp.maximum(union - 1, 1))
  # A class that is absent everywhere adds nothing.
  added = jnp.where(there & (total > 0), added, 0)
  return jnp.zeros(n, error.dtype).at[order].set(added, unique_indices=True)
