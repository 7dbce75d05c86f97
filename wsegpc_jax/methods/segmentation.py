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
from wsegpc_jax.methods import common
from wsegpc_jax.models import initialize
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.types import IGNORE_LABEL, Batch, TrainState


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """The method: a network and an optimiser."""

  model: MinkUNet
  optimizer: optax.GradientTransformation

  def init(self, seed: int, batch: Batch) -> TrainState:
    """A fresh state, without a teacher."""
    variables = initialize.init_variables(
      self.model,
      seed,
      batch.student.features,
      jax.eval_shape(_plan, batch),
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
    valid = jnp.arange(batch.label.shape[0]) < batch.student.count
    mask = valid & (batch.label != IGNORE_LABEL)
    count = jax.lax.psum(mask.sum().astype(jnp.float32), axis_name)
    count = common.denominators(count)

    def loss_fn(params):
      (logits, _), new = self.model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch.student.features,
        _plan(batch),
        train=True,
        mutable=["batch_stats"],
      )
      total = classification.cross_entropy_sum(logits, batch.label, mask)
      correct = (mask & (logits.argmax(-1) == batch.label)).sum()
      return total / count, (new["batch_stats"], correct / count)

    (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    gradients, metrics = jax.lax.psum(
      (gradients, {"loss": loss, "accuracy": accuracy}), axis_name
    )
    metrics["grad_norm"] = optax.tree.norm(gradients)
    state = common.apply_gradients(
      self.optimizer, state, gradients, batch_stats
    )
    return state, metrics

  def predict(self, variables: dict, batch: Batch) -> dict[str, Array]:
    """Logits in evaluation mode: "logits_3d" [M, K]."""
    logits, _ = self.model.apply(
      variables, batch.student.features, _plan(batch), train=False
    )
    return {"logits_3d": logits}


def _plan(batch):
  view = batch.student
  return plan_lib.build_plan(view.coords, view.count, view.capacities)
