"""InfoNCE between paired features (CMG, cross-modality guidance)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def l2_normalize(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
  """x / max(|x|, 1e-12); vectors shorter than that get no gradient.

  It would be 1e12 times as large as what comes in: one dead row would be enough
  to ruin a network.
  """
  square = (x * x).sum(-1, keepdims=True)
  x = jnp.where(square > 1e-24, x, jax.lax.stop_gradient(x))
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def info_nce_sum(
  query: Float[Array, "b p c"],
  key: Float[Array, "b p c"],
  count: Int32[Array, " b"],
  *,
  temperature: float = 0.07,
) -> Float[Array, ""]:
  """InfoNCE with the true pair on the diagonal.

  Mean over the pairs of a scene, summed over scenes (so that its weight grows
  with the batch, as in the reference). Features are L2-normalised here.

  Args:
    query: features that are trained.
    key: their partners; no gradient flows into them.
    count: pairs of each scene; 0 adds nothing.
    temperature: of the softmax.
  """
  query = l2_normalize(query)
  key = l2_normalize(jax.lax.stop_gradient(key))
  # Divided by a small temperature, rounded products would show.
  cosine = jnp.einsum(
    "bpc,bqc->bpq", query, key, precision=jax.lax.Precision.HIGHEST
  )
  logits = cosine / temperature
  live = jnp.arange(query.shape[1])[None] < count[:, None]
  logits = jnp.where(live[:, None], logits, -jnp.inf)
  # A row of padding would be all -inf: give it a finite, unused value.
  logits = jnp.where(live[:, :, None], logits, 0)
  log_p = jnp.diagonal(jax.nn.log_softmax(logits), axis1=1, axis2=2)
  total = -jnp.where(live, log_p, 0).sum(1)
  return (total / jnp.maximum(count, 1)).sum()
