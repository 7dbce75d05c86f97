"""WSegPC, stages 1 and 2 (Duan et al., TPAMI 2025, arXiv 2506.23227).

Two networks learn from scene tags: CAM losses in both branches, CMG
(contrastive distillation between linked voxels and pixels) and RPC (an EMA
teacher's region-wise pseudo-labels). Stage 1 has no RPC; CAM alone has no CMG
either.

Everything here is a pure function of (state, one device's batch). Sums over
`axis_name` follow one rule: each device's loss is its own numerator over the
count of all devices, and gradients are summed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from wsegpc_jax import schedules
from wsegpc_jax.losses import classification, contrastive, region_point
from wsegpc_jax.methods import common, gradients
from wsegpc_jax.models import initialize, remat
from wsegpc_jax.models.dilated_resnet import sample_bilinear
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.sparse import pool
from wsegpc_jax.types import Batch, TrainState

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Weights and warm-ups (in steps) of the loss terms.

  CMG and RPC are left out when both of their weights are 0.
  """

  cam_3d: float = 1.0
  cam_2d: float = 1.0
  cmg_3d: float = 0.05
  cmg_2d: float = 0.05
  rpc_3d: float = 1.0
  rpc_2d: float = 1.0
  cam_warmup: int = 2400
  cmg_warmup: int = 2400
  rpc_warmup: int = 2400

  @property
  def has_cmg(self) -> bool:
    return self.cmg_3d > 0 or self.cmg_2d > 0

  @property
  def has_rpc(self) -> bool:
    return self.rpc_3d > 0 or self.rpc_2d > 0


@dataclasses.dataclass(frozen=True)
class WSegPC:
  """The method: a network, an optimiser and numbers.

  Attributes:
    model: both branches.
    optimizer: one for everything.
    weights: of the loss terms.
    temperature: of InfoNCE.
    p_cutoff: confidence that RPC asks of the most often selected class.
    ema_keep: share of the teacher kept at each step.
    compat_steps: None for the fixed behaviour. Otherwise the faults of the
      reference that change a loss are reproduced: 2D features are read at
      positions divided by W instead of W - 1, and the teacher runs on batch
      statistics during the first `compat_steps` steps (the first epoch).
    parts: of a training batch, whose leaves have an axis of them if there are
      several (see `gradients.accumulate`). Pseudo-labels of all parts are
      selected by the counts from before the step.
    remat: compute the student's residual blocks again in the backward pass.
  """

  model: TwoBranchNet
  optimizer: optax.GradientTransformation
  weights: LossWeights = LossWeights()
  temperature: float = 0.07
  p_cutoff: float = 0.8
  ema_keep: float = 0.999
  compat_steps: int | None = None
  parts: int = 1
  remat: bool = False

  def init(self, seed: int, batch: Batch) -> TrainState:
    """A fresh state; the teacher starts as a copy of the student."""
    images = batch.images
    variables = initialize.init_variables(
      self.model,
      seed,
      batch.student.features,
      jax.eval_shape(common.build_plan, batch.student),
      images.student,
      images.mask,
      train=False,
    )
    params, stats = variables["params"], variables["batch_stats"]
    num_classes = batch.tags.shape[-1]
    return TrainState(
      step=np.zeros((), np.int32),
      params=params,
      batch_stats=stats,
      opt_state=common.init_optimizer(self.optimizer, params),
      ema_params=jax.tree.map(np.copy, params),
      ema_batch_stats=jax.tree.map(np.copy, stats),
      selected_3d=region_point.empty_counters(num_classes),
      selected_2d=region_point.empty_counters(num_classes),
    )

  def train_step(
    self, state: TrainState, batch: Batch, *, axis_name: str
  ) -> tuple[TrainState, Metrics]:
    """One step of one device; its peers run the same over `axis_name`."""

    def total(tree):
      return jax.lax.psum(tree, axis_name)

    counts = total(gradients.count(_counts, batch, parts=self.parts))
    counts = common.denominators(counts)

    def share(statistics, part):
      batch_stats, ema_stats = statistics
      targets, selected = None, None
      if self.weights.has_rpc:
        teacher_3d, teacher_2d, ema_stats = self._teacher(
          state.replace(ema_batch_stats=ema_stats), part
        )
        targets, selected = self._pseudo_labels(
          state, part, teacher_3d, teacher_2d
        )

      def loss_fn(params):
        with remat.blocks_recomputed(self.remat):
          terms, stats = self._losses(
            params, batch_stats, state.step, part, counts, targets
          )
        return sum(terms.values()), (terms, stats)

      grads, (terms, batch_stats) = jax.grad(loss_fn, has_aux=True)(
        state.params
      )
      return grads, (batch_stats, ema_stats), (terms, selected)

    grads, (batch_stats, ema_stats), (terms, selected) = gradients.accumulate(
      share, (state.batch_stats, state.ema_batch_stats), batch, parts=self.parts
    )
    grads, selected = total((grads, selected))
    state = common.apply_gradients(self.optimizer, state, grads, batch_stats)
    state = common.update_teacher(
      state.replace(ema_batch_stats=ema_stats), self.ema_keep
    )
    metrics = total({**terms, "loss": sum(terms.values())})
    metrics["grad_norm"] = gradients.norm(grads)
    if selected is not None:
      metrics["selected_3d"] = selected[0].sum() / counts["voxels"]
      metrics["selected_2d"] = selected[1].sum() / counts["pixels"]
      state = state.replace(
        selected_3d=region_point.add_counts(state.selected_3d, selected[0]),
        selected_2d=region_point.add_counts(state.selected_2d, selected[1]),
      )
    return state, metrics

  def predict(self, variables: dict, batch: Batch) -> dict[str, Array]:
    """Logits in evaluation mode: "logits_3d" [M, K], "logits_2d" [I,H,W,K].

    `logits_2d` is there if the batch has images.
    """
    logits, _ = self._points(variables, batch.student, train=False)
    out = {"logits_3d": logits}
    if batch.images is not None:
      out["logits_2d"], _ = self.model.apply(
        variables,
        batch.images.student,
        batch.images.mask,
        train=False,
        method="images",
      )
    return out

  def _points(self, variables, view, *, train):
    return self.model.apply(
      variables,
      view.features,
      common.build_plan(view, self.model.net_3d),
      train=train,
      method="points",
      mutable=["batch_stats"] if train else False,
    )

  def _losses(self, params, batch_stats, step, batch, counts, targets):
    """Weighted terms of this device, and the new batch statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    images, weights = batch.images, self.weights
    (logits_3d, features_3d), new = self._points(
      variables, batch.student, train=True
    )
    (logits_2d, features_2d), new_2d = self.model.apply(
      variables,
      images.student,
      images.mask,
      train=True,
      method="images",
      mutable=["batch_stats"],
    )
    batch_stats = {
      **new["batch_stats"],
      "net_2d": new_2d["batch_stats"]["net_2d"],
    }
    warm = schedules.linear_warmup_weight
    terms = {}
    cam = warm(step, weights.cam_warmup, first=0)
    scene_3d, mask_3d = scene_logits_3d(logits_3d, batch)
    scene_2d, mask_2d = scene_logits_2d(logits_2d, batch)
    sums = {
      "cam_3d": classification.multilabel_soft_margin_sum(
        scene_3d, batch.tags, mask_3d
      ),
      "cam_2d": classification.multilabel_soft_margin_sum(
        scene_2d, images.tags, mask_2d
      ),
    }
    terms["cam_3d"] = weights.cam_3d * cam * sums["cam_3d"] / counts["scenes"]
    terms["cam_2d"] = (
      weights.cam_2d * cam * sums["cam_2d"] / counts["image_scenes"]
    )
    if weights.has_cmg:
      cmg = warm(step, weights.cmg_warmup, first=1)
      cmg_3d, cmg_2d = self._cmg(variables, batch, features_3d, features_2d)
      terms["cmg_3d"] = weights.cmg_3d * cmg * cmg_3d
      terms["cmg_2d"] = weights.cmg_2d * cmg * cmg_2d
    if targets is not None:
      rpc = warm(step, weights.rpc_warmup, first=1)
      (label_3d, mask_3d), (label_2d, mask_2d) = targets
      sum_3d = classification.cross_entropy_sum(logits_3d, label_3d, mask_3d)
      flat = logits_2d.reshape(-1, logits_2d.shape[-1])
      sum_2d = classification.cross_entropy_sum(flat, label_2d, mask_2d)
      terms["rpc_3d"] = weights.rpc_3d * rpc * sum_3d / counts["voxels"]
      terms["rpc_2d"] = weights.rpc_2d * rpc * sum_2d / counts["pixels"]
    return terms, batch_stats

  def _cmg(self, variables, batch, features_3d, features_2d):
    """InfoNCE sums of projected 3D against 2D features, and the reverse."""
    pairs, images = batch.pairs, batch.images
    shape = pairs.voxel.shape
    points = features_3d[pairs.voxel]
    pixels = sample_bilinear(
      features_2d,
      pairs.image.reshape(-1),
      pairs.position[..., 0].reshape(-1),
      pairs.position[..., 1].reshape(-1),
      size=images.student.shape[1:3],
      compat=self.compat_steps is not None,
    ).reshape(*shape, -1)
    points, pixels = (
      x.astype(jnp.promote_types(x.dtype, jnp.float32))
      for x in (points, pixels)
    )
    nce = functools.partial(
      contrastive.info_nce_sum,
      count=pairs.count,
      temperature=self.temperature,
    )
    query_3d = self.model.apply(variables, points, method="project_3d")
    query_2d = self.model.apply(variables, pixels, method="project_2d")
    return nce(query_3d, pixels), nce(query_2d, points)

  def _teacher(self, state, batch):
    """The teacher's logits on its own view, and its running statistics."""
    variables = {
      "params": state.ema_params,
      "batch_stats": state.ema_batch_stats,
    }
    # The plan is built outside of the `cond`, which may run either branch.
    plan = common.build_plan(batch.teacher, self.model.net_3d)

    def run(train):
      (logits_3d, _), new_3d = self.model.apply(
        variables,
        batch.teacher.features,
        plan,
        train=train,
        method="points",
        mutable=["batch_stats"],
      )
      (logits_2d, _), new_2d = self.model.apply(
        variables,
        batch.images.teacher,
        batch.images.mask,
        train=train,
        method="images",
        mutable=["batch_stats"],
      )
      stats = {
        "net_3d": new_3d["batch_stats"]["net_3d"],
        "net_2d": new_2d["batch_stats"]["net_2d"],
      }
      return jax.lax.stop_gradient((logits_3d, logits_2d, stats))

    if self.compat_steps is None:
      return run(False)
    return jax.lax.cond(
      state.step < self.compat_steps, lambda: run(True), lambda: run(False)
    )

  def _pseudo_labels(self, state, batch, teacher_3d, teacher_2d):
    """((label, mask) in 3D and in 2D), (selected counts in 3D and in 2D)."""
    average = functools.partial(
      region_point.region_average,
      implementation=common.implementation_of(self.model.net_3d),
    )
    valid = common.valid_rows(batch.student)
    scene = jnp.maximum(batch.student.coords[:, 0], 0)
    probabilities = region_point.tag_softmax(
      jnp.take(teacher_3d, batch.teacher_row, axis=0, mode="clip"),
      batch.tags[scene],
    )
    # A voxel whose point the teacher's view lacks cannot be labelled, nor one
    # of a scene that has no tag left.
    valid_3d = valid & (batch.teacher_row < teacher_3d.shape[0])
    valid_3d &= batch.tags.any(-1)[scene]
    averaged = average(
      probabilities,
      batch.superpoint,
      valid_3d,
      num_regions=batch.num_superpoints,
    )
    label_3d, mask_3d, count_3d = region_point.select_pseudo_labels(
      averaged, valid_3d, state.selected_3d, p_cutoff=self.p_cutoff
    )
    images = batch.images
    i, h, w, k = teacher_2d.shape
    per_scene = i // images.tags.shape[0]
    tags = jnp.repeat(images.tags, per_scene, axis=0)[:, None, None]
    probabilities = region_point.tag_softmax(teacher_2d, tags).reshape(-1, k)
    valid_2d = images.mask[:, None, None] & tags.any(-1)
    valid_2d = jnp.broadcast_to(valid_2d, (i, h, w)).reshape(-1)
    averaged = average(
      probabilities,
      images.region.reshape(-1),
      valid_2d,
      num_regions=images.num_regions,
    )
    label_2d, mask_2d, count_2d = region_point.select_pseudo_labels(
      averaged, valid_2d, state.selected_2d, p_cutoff=self.p_cutoff
    )
    targets = (label_3d, mask_3d), (label_2d, mask_2d)
    return targets, (count_3d, count_2d)


def _counts(batch: Batch) -> dict[str, Array]:
  """This device's counts, as floats."""
  images = batch.images
  with_images = images.mask.reshape(images.tags.shape[0], -1).any(1)
  pixels = images.student.shape[1] * images.student.shape[2]
  counts = {
    "scenes": batch.scene_mask.sum(),
    "image_scenes": (with_images & batch.scene_mask).sum(),
    "voxels": batch.student.count,
    "pixels": images.mask.sum() * pixels,
  }
  return jax.tree.map(lambda n: n.astype(jnp.float32), counts)


def scene_logits_3d(logits, batch: Batch):
  """Mean of the voxel logits of each scene [B, K], and which exist [B]."""
  mean = pool.scene_mean(
    logits,
    batch.student.coords[:, 0],
    common.valid_rows(batch.student),
    num_scenes=batch.tags.shape[0],
  )
  return mean, batch.scene_mask


def scene_logits_2d(logits, batch: Batch):
  """Mean over the views and pixels of each scene, and which exist."""
  b, k = batch.images.tags.shape
  mask = batch.images.mask.reshape(b, -1)
  image_mean = logits.mean((1, 2)).reshape(b, -1, k)
  total = jnp.where(mask[..., None], image_mean, 0).sum(1)
  number = mask.sum(1)
  mean = total / jnp.maximum(number, 1)[:, None]
  return mean, batch.scene_mask & (number > 0)
