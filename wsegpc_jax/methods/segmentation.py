"""Stage 3: a plain 3D network trained on labels of points.

The labels are pseudo-labels of stage 2 (WSegPC), or the truth for a fully
supervised upper bound. Cross-entropy over the labelled voxels.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from wsegpc_jax.losses import classification
from wsegpc_jax.methods import common, gradients
from wsegpc_jax.models import initialize, remat
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.types import IGNORE_LABEL, Batch, TrainState


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The method: a network and an optimiser.

  Attributes:
    model: gives (logits, features).
    optimizer: of its parameters.
    parts: of a training batch, whose leaves have an axis of them if there are
      several (see `gradients.accumulate`).
    remat: compute the residual blocks again in the backward pass.
  """

  model: MinkUNet
  optimizer: optax.GradientTransformation
  parts: int = 1
  remat: bool = False

  def init(self, seed: int, batch: Batch) -> TrainState:
    """A fresh state, without a teacher."""
    variables = initialize.init_variables(
      self.model,
      seed,
      batch.student.features,
      jax.eval_shape(common.build_plan, batch.student),
      train=False,
    )
    return TrainState(
      step=np.zeros((), np.int32),
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=common.init_optimizer(self.optimizer, variables["params"]),
    )

  def train_step(
    self, state: TrainState, batch: Batch, *, axis_name: str
  ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step of one device; its peers run the same over `axis_name`."""

    def labelled(part):
      return _labelled(part).sum().astype(jnp.float32)

    count = gradients.count(labelled, batch, parts=self.parts)
    count = common.denominators(jax.lax.psum(count, axis_name))

    def share(batch_stats, part):
      def loss_fn(params):
        with remat.blocks_recomputed(self.remat):
          (logits, _), new = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            part.student.features,
            common.build_plan(part.student, self.model),
            train=True,
            mutable=["batch_stats"],
          )
        mask = _labelled(part)
        total = classification.cross_entropy_sum(logits, part.label, mask)
        correct = (mask & (logits.argmax(-1) == part.label)).sum()
        return total / count, (new["batch_stats"], correct / count)

      (loss, (batch_stats, accuracy)), grads = jax.value_and_grad(
        loss_fn, has_aux=True
      )(state.params)
      return grads, batch_stats, {"loss": loss, "accuracy": accuracy}

    grads, batch_stats, metrics = gradients.accumulate(
      share, state.batch_stats, batch, parts=self.parts
    )
    grads, metrics = jax.lax.psum((grads, metrics), axis_name)
    metrics["grad_norm"] = gradients.norm(grads)
    state = common.apply_gradients(self.optimizer, state, grads, batch_stats)
    return state, metrics

  def predict(self, variables: dict, batch: Batch) -> dict[str, Array]:
    """Logits in evaluation mode: "logits_3d" [M, K]."""
    logits, _ = self.model.apply(
      variables,
      batch.student.features,
      common.build_plan(batch.student, self.model),
      train=False,
    )
    return {"logits_3d": logits}


def _labelled(batch):
  """Voxels that take part in the loss [M]."""
  return common.valid_rows(batch.student) & (batch.label != IGNORE_LABEL)
