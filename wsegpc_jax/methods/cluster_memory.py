"""What clustering remembers: centres of clusters and queues of past anchors.

Both are replaced, never differentiated. Every device makes the same update
from the anchors of all devices, so the copies stay equal.

Dimension letters: A anchors, E channels, C classes, K clusters a class, Q queue
slots a cluster.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.losses.contrastive import l2_normalize
from wsegpc_jax.losses.within_class import Anchors
from wsegpc_jax.types import IGNORE_LABEL


@flax.struct.dataclass
class ClusterMemory:
  """Kept in `TrainState.memory` and checkpointed with it.

  Attributes:
    centers: float32 [C, K, E], unit length.
    queue: float32 [C, K, Q, E], unit length; random where not filled.
    pointer: int32 [C, K], slot that is written next.
    filled: int32 [C, K], slots written so far, at most Q; the first ones.
  """

  centers: Float[Array, "c k e"]
  queue: Float[Array, "c k q e"]
  pointer: Int32[Array, "c k"]
  filled: Int32[Array, "c k"]


def init_memory(
  seed: int, *, num_classes: int, clusters: int, slots: int, channels: int
) -> ClusterMemory:
  """Random unit vectors and empty queues, numpy arrays on the host."""
  rng = np.random.default_rng([seed, 0])

  def unit(*shape):
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  return ClusterMemory(
    centers=unit(num_classes, clusters, channels),
    queue=unit(num_classes, clusters, slots, channels),
    pointer=np.zeros((num_classes, clusters), np.int32),
    filled=np.zeros((num_classes, clusters), np.int32),
  )


def filled_slots(memory: ClusterMemory) -> Bool[Array, "c k q"]:
  """The slots that hold an anchor of an earlier step."""
  return jnp.arange(memory.queue.shape[2]) < memory.filled[..., None]


def count_members(
  anchors: Anchors, *, num_classes: int, clusters: int
) -> Int32[Array, "c k"]:
  """Anchors of each sub-class."""
  hot = _one_hot(anchors, num_classes, clusters)
  return hot.sum(0, dtype=jnp.int32).reshape(num_classes, clusters)


def update_centers(
  centers: Float[Array, "c k e"], anchors: Anchors, *, keep: float
) -> Float[Array, "c k e"]:
  """Moves centres by 1 - keep towards the mean of their anchors, to length 1.

  A centre without anchors stays exactly as it is.
  """
  c, k, e = centers.shape
  hot = _one_hot(anchors, c, k).astype(centers.dtype)
  # A product rather than a scattered sum: its order, and so a run that is
  # continued, does not change.
  total = jnp.matmul(
    hot.T, anchors.feature, precision=jax.lax.Precision.HIGHEST
  )
  number = hot.sum(0)[:, None]
  mean = total / jnp.maximum(number, 1)
  old = centers.reshape(c * k, e)
  moved = l2_normalize(keep * old + (1 - keep) * mean)
  return jnp.where(number > 0, moved, old).reshape(c, k, e)


def enqueue(
  key: jax.Array,
  memory: ClusterMemory,
  anchors: Anchors,
  *,
  max_enqueue: int = 10,
  compat: bool = False,
) -> ClusterMemory:
  """Writes up to `max_enqueue` random anchors of each sub-class, oldest out.

  Args:
    key: of the step, the same on all devices.
    memory: before the step.
    anchors: of the step, as unit vectors.
    max_enqueue: a sub-class and step; at most Q.
    compat: writes what the released code writes. Near the end of a queue it
      overwrites the last slots and starts again at the first. Sub-classes 0
      and 255 are skipped. And what is stored are not anchors: their array
      [A, E] is read as if it were [E, A], and of its columns the first few
      are taken, as many as the sub-class has anchors, in random order.
  """
  c, k, q, e = memory.queue.shape
  sub_classes = c * k
  own = _sub_class(anchors, k, sub_classes)
  if compat:
    skipped = (own == 0) | (own == IGNORE_LABEL)
    own = jnp.where(skipped, sub_classes, own)
  hot = own[:, None] == jnp.arange(sub_classes)
  number = jnp.minimum(hot.sum(0, dtype=jnp.int32), max_enqueue)

  slots = jnp.arange(own.shape[0], dtype=jnp.int32)
  draw = jax.random.bits(key, own.shape)
  group, _, member = jax.lax.sort((own, draw, slots), num_keys=2)
  rank = slots - jnp.searchsorted(group, group, side="left")

  pointer = memory.pointer.reshape(-1)
  after = (pointer + number) % q
  start = pointer
  if compat:
    over = pointer + number > q
    start = jnp.where(over, q - number, pointer)
    after = jnp.where(over, 0, after)
    stored = _released_columns(anchors, own, member)
  else:
    stored = anchors.feature[member]
  slot = (jnp.take(start, group, mode="clip") + rank) % q
  # Those beyond the limit, and empty anchors, are dropped.
  group = jnp.where(rank < max_enqueue, group, sub_classes)
  queue = memory.queue.reshape(sub_classes, q, e)
  queue = queue.at[group, slot].set(stored, mode="drop")
  filled = jnp.minimum(memory.filled.reshape(-1) + number, q)
  return memory.replace(
    queue=queue.reshape(c, k, q, e),
    pointer=after.reshape(c, k),
    filled=filled.reshape(c, k),
  )


def _released_columns(anchors, own, member):
  """What the released code stores in place of each member [A, E].

  The place of a member among those of its sub-class is the column; over
  members in random order the columns are in random order, too.
  """
  a, e = anchors.feature.shape
  _, in_order = jax.lax.sort(
    (own, jnp.arange(a, dtype=jnp.int32)), num_keys=1, is_stable=True
  )
  sorted_own = own[in_order]
  first = jnp.searchsorted(sorted_own, sorted_own, side="left")
  place = jnp.arange(a, dtype=jnp.int32) - first
  column = jnp.zeros(a, jnp.int32).at[in_order].set(place)[member]
  # Empty slots come last: the array that was read has mask.sum() rows.
  flat = jnp.arange(e) * anchors.mask.sum() + column[:, None]
  return jnp.take(anchors.feature.reshape(-1), flat, mode="clip")


def _sub_class(anchors, clusters, none):
  """Number of each anchor's sub-class [A]; `none` for an empty slot."""
  own = anchors.label * clusters + anchors.cluster
  return jnp.where(anchors.mask, own, none)


def _one_hot(anchors, num_classes, clusters):
  """Membership bool [A, C K]."""
  sub_classes = num_classes * clusters
  own = _sub_class(anchors, clusters, sub_classes)
  return own[:, None] == jnp.arange(sub_classes)
