"""Cluster3DSeg (Feng et al., ICCV 2023, arXiv 2307.14605).

A segmentation network learns from full labels by cross-entropy and
Lovasz-softmax, and its features by within-class clustering: each class has
clusters whose centres move slowly; a sample of voxels, the anchors, is assigned
to the clusters of their class, evenly; an anchor is then contrasted with past
anchors, with the other anchors and with the centres. Nothing of this takes part
in prediction.

Everything here is a pure function of (state, one device's batch). The anchors
are one pool over all devices: each device holds the whole clustering loss and
differentiates it by its own voxels. Cross-entropy and Lovasz-softmax are each
device's share over counts of all devices. The gradients add up either way.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from wsegpc_jax.losses import classification
from wsegpc_jax.losses.lovasz import lovasz_softmax
from wsegpc_jax.methods import cluster_memory, cluster_step, common
from wsegpc_jax.methods.cluster_step import ClusterSettings
from wsegpc_jax.models import initialize
from wsegpc_jax.types import IGNORE_LABEL, Batch, TrainState

Metrics = dict[str, Float[Array, ""]]
FEATURE_SOURCES = ("bottleneck", "decoder")
# Numbers fed to `fold_in`: one stream a use.
_SAMPLING, _QUEUE, _DROPOUT = range(3)


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Weights of the loss terms; a term of weight 0 is left out."""

  ce: float = 1.0
  lovasz: float = 1.0
  cluster: float = 1.0

  def __post_init__(self):
    weights = (self.ce, self.lovasz, self.cluster)
    if min(weights) < 0 or max(weights) == 0:
      raise ValueError(
        f"loss weights {weights}; expected none below 0 and one above"
      )


@dataclasses.dataclass(frozen=True)
class Clustering:
  """The method: networks, an optimiser and numbers.

  The state's variables are the network's own, with the head's under
  "projection" beside them; `memory` holds the clusters. Without clustering
  neither exists.

  Attributes:
    model: gives (logits, features); features are a dict of FEATURE_SOURCES, or
      one array, which counts as the decoder's. May use dropout.
    projection: head from features [M, F] and mask [M] to embeddings [M, E].
    optimizer: one for both.
    weights: of the loss terms.
    settings: of the clustering.
    feature_source: features that are clustered. From the bottleneck (as in the
      released code) decoder and classifier get no gradient of it.
    seed: of sampling and dropout.
  """

  model: nn.Module
  projection: nn.Module
  optimizer: optax.GradientTransformation
  weights: LossWeights = LossWeights()
  settings: ClusterSettings = ClusterSettings()
  feature_source: str = "bottleneck"
  seed: int = 0

  def __post_init__(self):
    if self.feature_source not in FEATURE_SOURCES:
      raise ValueError(
        f"feature_source={self.feature_source!r} is unknown; expected one of "
        f"{', '.join(FEATURE_SOURCES)}"
      )

  def init(self, seed: int, batch: Batch) -> TrainState:
    """A fresh state. The network's part does not depend on the clustering.

    Raises:
      ValueError: the settings do not fit the classes or the network.
    """
    view = batch.student
    plan = jax.eval_shape(common.build_plan, view)
    variables = initialize.init_variables(
      self.model, seed, view.features, plan, train=False
    )
    params, stats = variables["params"], variables.get("batch_stats", {})
    memory = None
    if self.weights.cluster:
      out = jax.eval_shape(
        lambda x, p: self.model.apply(variables, x, p, train=False),
        view.features,
        plan,
      )
      memory, head = self._init_clustering(
        seed, self._source(out[1]), batch.tags.shape[-1]
      )
      params = {**params, "projection": head["params"]}
      stats = {**stats, "projection": head.get("batch_stats", {})}
    return TrainState(
      step=np.zeros((), np.int32),
      params=params,
      batch_stats=stats,
      opt_state=common.init_optimizer(self.optimizer, params),
      memory=memory,
    )

  def train_step(
    self, state: TrainState, batch: Batch, *, axis_name: str
  ) -> tuple[TrainState, Metrics]:
    """One step of one device; its peers run the same over `axis_name`.

    Metrics: "accuracy", "grad_norm", "loss" and its weighted terms "ce",
    "lovasz", "cluster"; of clustering also the unweighted "queue_loss",
    "batch_loss", "center_loss" and `cluster_step.measures`.
    """
    mask = common.valid_rows(batch.student) & (batch.label != IGNORE_LABEL)
    count = jax.lax.psum(mask.sum().astype(jnp.float32), axis_name)
    count = common.denominators(count)

    def loss_fn(params):
      logits, embedding, stats = self._forward(state, params, batch, axis_name)
      correct = (mask & (logits.argmax(-1) == batch.label)).sum() / count
      shares = {}
      if self.weights.ce:
        total = classification.cross_entropy_sum(logits, batch.label, mask)
        shares["ce"] = self.weights.ce * (total / count)
      if self.weights.lovasz:
        loss = lovasz_softmax(logits, batch.label, mask, axis_name=axis_name)
        shares["lovasz"] = self.weights.lovasz * loss
      total = sum(shares.values())
      pooled, anchors, present = {}, None, None
      if self.weights.cluster:
        anchors, present = cluster_step.draw_anchors(
          self._key(state.step, _SAMPLING),
          state.memory,
          batch,
          logits.argmax(-1),
          embedding,
          settings=self.settings,
          axis_name=axis_name,
        )
        pooled = cluster_step.contrast(
          state.memory, anchors, present, settings=self.settings
        )
        pooled["cluster"] = 0.5 * self.weights.cluster * sum(pooled.values())
        total += pooled["cluster"]
      aux = {"accuracy": correct, **shares}, pooled, anchors, present
      return total, (stats, aux)

    gradients, (batch_stats, aux) = jax.grad(loss_fn, has_aux=True)(
      state.params
    )
    shares, pooled, anchors, present = aux
    gradients, metrics = jax.lax.psum((gradients, shares), axis_name)
    # Losses of the pool of anchors are whole on every device already.
    metrics |= pooled
    terms = ("ce", "lovasz", "cluster")
    metrics["loss"] = sum(metrics[k] for k in terms if k in metrics)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    memory = state.memory
    if anchors is not None:
      metrics |= cluster_step.measures(
        memory, anchors, present, settings=self.settings
      )
      memory = cluster_step.update_memory(
        self._key(state.step, _QUEUE), memory, anchors, settings=self.settings
      )
    state = common.apply_gradients(
      self.optimizer, state, gradients, batch_stats
    )
    return state.replace(memory=memory), metrics

  def predict(self, variables: dict, batch: Batch) -> dict[str, Array]:
    """Logits in evaluation mode: "logits_3d" [M, K]."""
    own = {name: _split(tree)[0] for name, tree in variables.items()}
    logits, _ = self.model.apply(
      own,
      batch.student.features,
      common.build_plan(batch.student, self.model),
      train=False,
    )
    return {"logits_3d": logits}

  def _init_clustering(self, seed, features, num_classes):
    """The memory and the head's variables."""
    settings = self.settings
    cluster_step.check_classes(settings, num_classes)
    mask = jax.ShapeDtypeStruct(features.shape[:1], jnp.bool_)
    # Another seed than the network's, whose layers may have the same names.
    head = initialize.init_variables(
      self.projection, seed + 1, features, mask, train=False
    )
    embedding = jax.eval_shape(
      lambda x, m: self.projection.apply(head, x, m, train=False),
      features,
      mask,
    )
    memory = cluster_memory.init_memory(
      seed,
      num_classes=num_classes,
      clusters=settings.clusters,
      slots=settings.queue_slots,
      channels=embedding.shape[-1],
    )
    return memory, head

  def _source(self, features):
    if not isinstance(features, dict):
      features = {"decoder": features}
    if self.feature_source not in features:
      raise ValueError(
        f"the network gives no {self.feature_source} features; expected "
        f"feature_source to be one of {', '.join(features)}"
      )
    return features[self.feature_source]

  def _key(self, step, use):
    return jax.random.fold_in(
      jax.random.fold_in(jax.random.key(self.seed), step), use
    )

  def _forward(self, state, params, batch, axis_name):
    """Logits, embeddings (None without clustering), new batch statistics."""
    own, head = _split(params)
    own_stats, head_stats = _split(state.batch_stats)
    dropout = jax.random.fold_in(
      self._key(state.step, _DROPOUT), jax.lax.axis_index(axis_name)
    )
    (logits, features), new = self.model.apply(
      {"params": own, "batch_stats": own_stats},
      batch.student.features,
      common.build_plan(batch.student, self.model),
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": dropout},
    )
    stats = new.get("batch_stats", {})
    if head is None:
      return logits, None, stats
    embedding, new = self.projection.apply(
      {"params": head, "batch_stats": head_stats},
      self._source(features),
      common.valid_rows(batch.student),
      train=True,
      mutable=["batch_stats"],
    )
    stats = {**stats, "projection": new.get("batch_stats", {})}
    return logits, embedding, stats


def _split(tree: dict) -> tuple[dict, dict | None]:
  """The network's variables, and the head's if there is one."""
  own = {k: v for k, v in tree.items() if k != "projection"}
  return own, tree.get("projection")
