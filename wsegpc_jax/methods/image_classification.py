"""Classification of whole images: what the 2D network is pre-trained on.

As a ResNet learns ImageNet (arXiv 1512.03385): global average pooling, a linear
classifier, cross-entropy. The network is the dilated one that takes the weights
over, and its class head is the classifier, which is not taken over.

Dimension letters: B images, H and W pixels, C feature channels, K classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int32, UInt8

from wsegpc_jax.losses import classification
from wsegpc_jax.methods import common
from wsegpc_jax.models import initialize
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.two_branch import normalize_images
from wsegpc_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class ImageClassification:
  """The method: a network and an optimiser, on one device."""

  model: DilatedResNet
  optimizer: optax.GradientTransformation

  def init(self, seed: int) -> TrainState:
    """A fresh state, without a teacher."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((1,), jnp.bool_)
    variables = initialize.init_variables(
      self.model, seed, images, mask, train=False
    )
    return TrainState(
      step=np.zeros((), np.int32),
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=common.init_optimizer(self.optimizer, variables["params"]),
    )

  def train_step(
    self,
    state: TrainState,
    images: UInt8[Array, "b h w 3"],
    label: Int32[Array, " b"],
  ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One step; metrics are "loss" and "accuracy" of the batch before it."""
    mask = jnp.ones(label.shape, jnp.bool_)

    def loss_fn(params):
      logits, new = self._logits(params, state.batch_stats, images, mask, True)
      total = classification.cross_entropy_sum(logits, label, mask)
      accuracy = jnp.mean(logits.argmax(-1) == label, dtype=jnp.float32)
      return total / len(label), (new["batch_stats"], accuracy)

    (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    state = common.apply_gradients(
      self.optimizer, state, gradients, batch_stats
    )
    return state, {"loss": loss, "accuracy": accuracy}

  def predict(
    self,
    state: TrainState,
    images: UInt8[Array, "b h w 3"],
    mask: Bool[Array, " b"],
  ) -> Float[Array, "b k"]:
    """Logits by running statistics; of padding (mask False) zero."""
    return self._logits(state.params, state.batch_stats, images, mask, False)[0]

  def _logits(self, params, batch_stats, images, mask, train):
    variables = {"params": params, "batch_stats": batch_stats}
    (_, features), new = self.model.apply(
      variables,
      normalize_images(images),
      mask,
      train=train,
      mutable=["batch_stats"] if train else [],
    )
    # The class maps are never made: compiling drops what nobody reads.
    head = params["cls"]["kernel"][0, 0]
    pooled = features.astype(head.dtype).mean((1, 2))
    return pooled @ head, new
