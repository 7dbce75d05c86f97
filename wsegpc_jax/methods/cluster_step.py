"""One step of within-class clustering, from embeddings to losses and memory.

The parts are `anchor_sampling`, `sinkhorn`, `losses.within_class` and
`cluster_memory`; here they are put together as Cluster3DSeg does (Feng et al.,
ICCV 2023, arXiv 2307.14605). Pure functions of `ClusterSettings`.

Dimension letters: M voxel rows, A anchors, E channels, C classes, K clusters a
class, Q queue slots a cluster.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.losses import within_class
from wsegpc_jax.losses.contrastive import l2_normalize
from wsegpc_jax.losses.within_class import Anchors
from wsegpc_jax.methods import anchor_sampling, cluster_memory, sinkhorn
from wsegpc_jax.methods.cluster_memory import ClusterMemory
from wsegpc_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
  """Numbers of the clustering.

  The released code takes 100 anchors a step, 5 of each of 19 classes: fewer
  than clusters, so that two of them rarely share one and contrast between
  anchors has no positives. The default, 100 of each class, is enough for 40
  clusters: nine anchors in ten have a positive.

  Attributes:
    clusters: of each class, K.
    short_classes: classes with `short_clusters` clusters only: rare ones. Of
      SemanticKITTI's the paper's code means 6 and 7 (bicyclist, motorcyclist).
    short_clusters: see there.
    max_samples: anchors a step.
    max_views: anchors a class and step, V.
    sharpness: exponent of the kernel of the assignment.
    temperature, base_temperature: of the contrast, see `losses.within_class`.
    center_keep: share of a centre kept at each update.
    queue_slots: past anchors of each cluster, Q.
    max_enqueue: new ones a step.
    compat: "" for the fixed behaviour. "reference" reproduces faults of the
      released code: the queue stores mixed vectors, not anchors, skips two
      sub-classes and restarts at its end; slots that were never written count
      as positives; an anchor is its own negative; classes with few clusters
      use one. Its numbers are those of `reference_settings`.
  """

  clusters: int = 40
  short_classes: tuple[int, ...] = ()
  short_clusters: int = 10
  max_samples: int = 2000
  max_views: int = 100
  sharpness: float = 25.0
  temperature: float = 0.1
  base_temperature: float = 2.0
  center_keep: float = 0.9999
  queue_slots: int = 50
  max_enqueue: int = 10
  compat: str = ""

  def __post_init__(self):
    if self.compat not in ("", "reference"):
      raise ValueError(
        f"compat={self.compat!r} is unknown; expected '' or 'reference'"
      )
    for name in ("clusters", "short_clusters", "max_views", "max_enqueue"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    if self.max_enqueue > self.queue_slots:
      raise ValueError(
        f"max_enqueue={self.max_enqueue} does not fit into "
        f"queue_slots={self.queue_slots}"
      )


def reference_settings(**changes) -> ClusterSettings:
  """The released code: its faults, and its numbers for SemanticKITTI.

  There classes 7 and 8, motorcyclist and road, are the short ones.
  """
  released = {"short_classes": (7, 8), "max_samples": 100}
  return ClusterSettings(**{**released, "compat": "reference", **changes})


def check_classes(settings: ClusterSettings, num_classes: int) -> None:
  """Refuses settings that do not fit the classes.

  Raises:
    ValueError: some class could get no anchor, or a short one does not exist.
  """
  if settings.max_samples < num_classes:
    raise ValueError(
      f"max_samples={settings.max_samples} leaves none of {num_classes} "
      "classes an anchor; expected at least one for each"
    )
  if any(not 0 <= c < num_classes for c in settings.short_classes):
    raise ValueError(
      f"short_classes={settings.short_classes}; expected classes in 0.."
      f"{num_classes - 1}"
    )


def cluster_mask(
  settings: ClusterSettings, num_classes: int
) -> Bool[np.ndarray, "c k"]:
  """The clusters that each class has."""
  size = np.full(num_classes, settings.clusters)
  short = list(settings.short_classes)
  size[short] = min(settings.short_clusters, settings.clusters)
  return np.arange(settings.clusters) < size[:, None]


def draw_anchors(
  key: jax.Array,
  memory: ClusterMemory,
  batch: Batch,
  predicted: Int32[Array, " m"],
  embedding: Float[Array, "m e"],
  *,
  settings: ClusterSettings,
  axis_name: str,
) -> tuple[Anchors, Bool[Array, " c"]]:
  """Anchors of all devices with their clusters, and the classes present.

  A gradient flows into the embeddings of this device's anchors only, see
  `anchor_sampling.gather_anchors`.
  """
  num_classes = memory.centers.shape[0]
  sample = anchor_sampling.sample_anchors(
    key,
    batch,
    predicted,
    num_classes=num_classes,
    max_samples=settings.max_samples,
    max_views=settings.max_views,
    axis_name=axis_name,
  )
  wide = jnp.promote_types(embedding.dtype, jnp.float32)
  feature = anchor_sampling.gather_anchors(
    embedding.astype(wide), sample, axis_name=axis_name
  )
  # A dead row (all zero after a ReLU) has no direction to be turned; without
  # this its gradient would be 1e12 times too large.
  alive = (feature * feature).sum(-1, keepdims=True) > 1e-24
  feature = l2_normalize(jnp.where(alive, feature, 0))
  cosine = jnp.einsum(
    "cve,cke->cvk",
    jax.lax.stop_gradient(feature),
    memory.centers,
    precision=jax.lax.Precision.HIGHEST,
  )
  own = jnp.asarray(cluster_mask(settings, num_classes))
  cluster = sinkhorn.assign_clusters(
    cosine, sample.mask, own, sharpness=settings.sharpness
  )
  if settings.compat:
    # The released code asks as much mass of each of the few clusters as of
    # many; its iteration overflows and leaves the first one.
    cluster = jnp.where(own.all(1)[:, None], cluster, 0)
  label = jnp.arange(num_classes, dtype=jnp.int32)[:, None]
  label = jnp.broadcast_to(label, cluster.shape)
  anchors = Anchors(feature, label, cluster, sample.mask)
  return _compact(anchors, settings.max_samples), sample.present


def _compact(anchors, limit):
  """Anchors [C, V] as one list: the existing ones first, at most `limit`."""
  anchors = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), anchors)
  order = jnp.argsort(~anchors.mask, stable=True)[:limit]
  return jax.tree.map(lambda a: a[order], anchors)


def contrast(
  memory: ClusterMemory,
  anchors: Anchors,
  present: Bool[Array, " c"],
  *,
  settings: ClusterSettings,
) -> dict[str, Float[Array, ""]]:
  """ "queue_loss", "batch_loss" and "center_loss", against the old memory."""
  scale = {
    "temperature": settings.temperature,
    "base_temperature": settings.base_temperature,
  }
  own = jnp.asarray(cluster_mask(settings, present.shape[0]))
  slots = cluster_memory.filled_slots(memory)
  if settings.compat:
    slots = jnp.broadcast_to(own[:, :, None], slots.shape)
  batch, _ = within_class.batch_loss(
    anchors, self_is_negative=bool(settings.compat), **scale
  )
  return {
    "queue_loss": within_class.queue_loss(
      anchors, memory.queue, slots, **scale
    ),
    "batch_loss": batch,
    "center_loss": within_class.center_loss(
      anchors, memory.centers, own & present[:, None], **scale
    ),
  }


def measures(
  memory: ClusterMemory,
  anchors: Anchors,
  present: Bool[Array, " c"],
  *,
  settings: ClusterSettings,
) -> dict[str, Float[Array, ""]]:
  """How well the clustering is fed.

  Returns:
    "anchors": how many; "with_positive": the fraction of them that share their
    cluster with another one; "cluster_entropy": of the anchors' spread over
    the clusters of a class, as a fraction of an even spread's, mean over the
    classes present; "queue_filled": the fraction of slots written before.
  """
  own = cluster_mask(settings, present.shape[0])
  number = cluster_memory.count_members(
    anchors, num_classes=present.shape[0], clusters=settings.clusters
  )
  total = anchors.mask.sum()
  shared = jnp.where(number > 1, number, 0).sum()
  p = number / jnp.maximum(number.sum(1, keepdims=True), 1)
  entropy = -jax.scipy.special.xlogy(p, p).sum(1)
  entropy /= np.log(np.maximum(own.sum(1), 2)).astype(np.float32)
  slots = int(own.sum()) * memory.queue.shape[2]
  return {
    "anchors": total.astype(jnp.float32),
    "with_positive": shared / jnp.maximum(total, 1),
    "cluster_entropy": jnp.where(present, entropy, 0).sum()
    / jnp.maximum(present.sum(), 1),
    "queue_filled": memory.filled.sum() / slots,
  }


def update_memory(
  key: jax.Array,
  memory: ClusterMemory,
  anchors: Anchors,
  *,
  settings: ClusterSettings,
) -> ClusterMemory:
  """Centres and queues after the step, without a trace of its gradient."""
  anchors = jax.lax.stop_gradient(anchors)
  centers = cluster_memory.update_centers(
    memory.centers, anchors, keep=settings.center_keep
  )
  memory = cluster_memory.enqueue(
    key,
    memory,
    anchors,
    max_enqueue=settings.max_enqueue,
    compat=bool(settings.compat),
  )
  return memory.replace(centers=centers)
