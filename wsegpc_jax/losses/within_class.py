"""Contrast between anchors and the sub-classes that clustering found.

The losses of Cluster3DSeg (Feng et al., ICCV 2023, arXiv 2307.14605). A
sub-class is one cluster of one class. An anchor is pulled towards what shares
its sub-class and pushed from everything else, other clusters of its own class
included. For anchor i, with s_ij = <x_i, y_j> / temperature:

  l_i = mean over positives p of softplus(log sum_{negatives j} e^{s_ij} - s_ip)

and a loss is (temperature / base_temperature) times the mean of l_i over the
anchors that have a positive; 0 if none has.

Dimension letters: A anchors, E channels, C classes, K clusters a class, Q queue
slots a cluster.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

# The logarithm of an empty sum, as a number that has a gradient.
_NOTHING = -1e30


@flax.struct.dataclass
class Anchors:
  """The voxels that are contrasted: the same on every device.

  Attributes:
    feature: float32 [A, E], unit length (or zero).
    label: int32 [A], class.
    cluster: int32 [A], cluster within the class.
    mask: bool [A], False for an empty slot.
  """

  feature: Float[Array, "a e"]
  label: Int32[Array, " a"]
  cluster: Int32[Array, " a"]
  mask: Bool[Array, " a"]


def masked_logsumexp(
  x: Float[Array, "*n k"], mask: Bool[Array, "*n k"]
) -> Float[Array, "*n"]:
  """log sum exp over the last axis where mask is True; -1e30 if nowhere."""
  some = mask.any(-1)
  # Where nothing is left everything is summed instead and then not used: the
  # gradient of an all-masked sum would be NaN.
  total = jax.nn.logsumexp(x, axis=-1, where=mask | ~some[..., None])
  return jnp.where(some, total, _NOTHING)


def batch_loss(
  anchors: Anchors,
  *,
  temperature: float = 0.1,
  base_temperature: float = 2.0,
  self_is_negative: bool = False,
) -> tuple[Float[Array, ""], Bool[Array, " a"]]:
  """Anchors against each other; gradients flow into both sides.

  Args:
    anchors: all of them.
    temperature, base_temperature: see the module.
    self_is_negative: counts an anchor among its own negatives, as the released
      code does: a constant that only dampens the loss.

  Returns:
    The loss, and which anchors have a positive.
  """
  x = anchors.feature
  logits = _products(x, x) / temperature
  pair = anchors.mask[:, None] & anchors.mask[None]
  itself = jnp.eye(x.shape[0], dtype=bool)
  same = anchors.label[:, None] == anchors.label[None]
  same &= anchors.cluster[:, None] == anchors.cluster[None]
  positive = pair & same & ~itself
  negative = pair & ~same
  if self_is_negative:
    negative |= pair & itself
  each = _mean_over_positives(
    logits, positive, masked_logsumexp(logits, negative)
  )
  taking_part = positive.any(1)
  scale = temperature / base_temperature
  return scale * _mean(each, taking_part), taking_part


def center_loss(
  anchors: Anchors,
  centers: Float[Array, "c k e"],
  mask: Bool[Array, "c k"],
  *,
  temperature: float = 0.1,
  base_temperature: float = 2.0,
) -> Float[Array, ""]:
  """Anchors against centres; the one of its own sub-class is the positive.

  Args:
    anchors: all of them.
    centers: unit length; no gradient flows into them.
    mask: centres to contrast with: those of the classes present.
    temperature, base_temperature: see the module.
  """
  c, k, e = centers.shape
  contrast = jax.lax.stop_gradient(centers).reshape(c * k, e)
  logits = _products(anchors.feature, contrast) / temperature
  own = _sub_class(anchors, k)[:, None] == jnp.arange(c * k)
  own &= anchors.mask[:, None]
  negative = mask.reshape(-1) & ~own
  each = _mean_over_positives(logits, own, masked_logsumexp(logits, negative))
  return temperature / base_temperature * _mean(each, anchors.mask)


def queue_loss(
  anchors: Anchors,
  queue: Float[Array, "c k q e"],
  mask: Bool[Array, "c k q"],
  *,
  temperature: float = 0.1,
  base_temperature: float = 2.0,
  chunk: int = 128,
) -> Float[Array, ""]:
  """Anchors against the voxels of earlier steps.

  An anchor whose sub-class has nothing in the queue is left out.

  Args:
    anchors: all of them.
    queue: unit length; no gradient flows into them.
    mask: slots that hold something.
    temperature, base_temperature: see the module.
    chunk: anchors at a time; bounds the memory to chunk C K Q numbers.
  """
  c, k, q, e = queue.shape
  queue = jax.lax.stop_gradient(queue).reshape(c * k, q, e)
  mask = mask.reshape(c * k, q)

  # Recomputed in the backward pass, so that one chunk is held at a time.
  @jax.checkpoint
  def some_anchors(x, own, live):
    logits = _products(x, queue.reshape(-1, e)) / temperature
    other = own[:, None] != jnp.arange(c * k)
    negative = (other[:, :, None] & mask).reshape(logits.shape)
    positive = mask[own] & live[:, None]
    near = jnp.einsum(
      "ae,aqe->aq", x, queue[own], precision=jax.lax.Precision.HIGHEST
    )
    each = _mean_over_positives(
      near / temperature, positive, masked_logsumexp(logits, negative)
    )
    return each, positive.any(1)

  own = jnp.where(anchors.mask, _sub_class(anchors, k), 0)
  number = anchors.mask.shape[0]
  chunk = min(chunk, number)
  parts = -(-number // chunk)

  def split(a):
    padding = [(0, parts * chunk - number)] + [(0, 0)] * (a.ndim - 1)
    return jnp.pad(a, padding).reshape(parts, chunk, *a.shape[1:])

  each, taking_part = jax.lax.map(
    lambda part: some_anchors(*part),
    jax.tree.map(split, (anchors.feature, own, anchors.mask)),
  )
  scale = temperature / base_temperature
  return scale * _mean(each.reshape(-1), taking_part.reshape(-1))


def _sub_class(anchors, clusters):
  return anchors.label * clusters + anchors.cluster


def _products(x, y):
  """Cosines [A, J]; divided by a small temperature, rounding would show."""
  return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _mean_over_positives(logits, positive, negatives):
  """l_i [A]: logits [A, P] of what positive [A, P] marks, negatives [A]."""
  losses = jax.nn.softplus(negatives[:, None] - logits)
  number = jnp.maximum(positive.sum(1), 1)
  return jnp.where(positive, losses, 0).sum(1) / number


def _mean(each, mask):
  return jnp.where(mask, each, 0).sum() / jnp.maximum(mask.sum(), 1)
