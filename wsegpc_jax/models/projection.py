"""The head between a network's features and the space they are compared in."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsegpc_jax.models import initialize
from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm

WIDTHS = (256, 128, 64)  # Cluster3DSeg's


class LinearUnit(nn.Module):
  """Linear layer with bias, batch norm over the valid rows, ReLU."""

  features: int
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "m c"], mask: Bool[Array, " m"], *, train: bool
  ) -> Float[Array, "m d"]:
    linear = nn.Dense(
      self.features,
      dtype=self.dtype,
      kernel_init=initialize.kernel_init,
      name="linear",
    )
    norm = MaskedBatchNorm(
      axis_name=self.axis_name, dtype=self.dtype, name="norm"
    )
    # Cleared first: in the weight's gradient NaN * 0 would still be NaN.
    x = jnp.where(mask[:, None], x, 0)
    return nn.relu(norm(linear(x), mask, train=train))


class ProjectionHead(nn.Module):
  """Features to embeddings for clustering (Cluster3DSeg, arXiv 2307.14605).

  Each layer ends in a ReLU, the last one too, as in the released code: no
  cosine between two embeddings is negative.

  Attributes:
    widths: of the layers.
    axis_name: device axis over which batch statistics are shared.
    dtype: of activations and products; parameters stay float32.
  """

  kernel_std = staticmethod(initialize.torch_default_std)

  widths: tuple[int, ...] = WIDTHS
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "m c"], mask: Bool[Array, " m"], *, train: bool
  ) -> Float[Array, "m e"]:
    """Embeddings, not normalised; zero in rows outside the mask."""
    for i, width in enumerate(self.widths):
      unit = LinearUnit(width, self.axis_name, self.dtype, name=f"layer{i}")
      x = unit(x, mask, train=train)
    return x
