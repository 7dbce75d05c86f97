"""Scene-level and point-wise classification losses.

Every function returns a sum over this device's share. A step divides by a
count summed over all devices, so that the shares add up to the loss of the
global batch however uneven they are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def multilabel_soft_margin_sum(
  logits: Float[Array, "b k"],
  tags: Bool[Array, "b k"],
  mask: Bool[Array, " b"],
) -> Float[Array, ""]:
  """Multi-label soft margin of scene logits, summed over valid scenes.

  Mean over classes of -[y log s(x) + (1 - y) log s(-x)], s the sigmoid.
  """
  losses = -jnp.where(
    tags, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  )
  return jnp.where(mask, losses.mean(-1), 0).sum()


def cross_entropy_sum(
  logits: Float[Array, "*n k"],
  label: Int32[Array, "*n"],
  mask: Bool[Array, "*n"],
) -> Float[Array, ""]:
  """Cross-entropy summed over the rows where mask is True."""
  label = jnp.where(mask, label, 0)
  log_p = jax.nn.log_softmax(logits)
  # One-hot rather than take_along_axis: its gradient needs no scatter.
  hot = label[..., None] == jnp.arange(logits.shape[-1])
  chosen = jnp.where(hot, log_p, 0).sum(-1)
  return -jnp.where(mask, chosen, 0).sum()
