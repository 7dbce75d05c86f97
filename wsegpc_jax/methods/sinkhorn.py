"""Balanced assignment of anchors to the clusters of their class (Sinkhorn).

Entropic optimal transport in which every cluster receives the same mass; the
procedure of self-labelling (Asano et al., ICLR 2020, arXiv 1911.05371), in the
log domain, because the kernel's entries (probabilities to the power of 25)
underflow float32.

Dimension letters: C classes, N anchors of a class, K clusters a class.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.losses.within_class import masked_logsumexp

_CHECK_EVERY = 10
_TOLERANCE = 0.1


def log_plan(
  log_kernel: Float[Array, "n k"],
  anchors: Bool[Array, " n"],
  clusters: Bool[Array, " k"],
  *,
  max_iterations: int = 501,
  tolerance: float = _TOLERANCE,
) -> Float[Array, "n k"]:
  """Logarithm of the transport plan between some anchors and some clusters.

  Scales rows and columns in turns until columns (anchors) sum to 1 / N and
  rows (clusters) to about 1 / K. As in the reference the change of the column
  scale is looked at every tenth iteration, the first one included, and
  summed over anchors.

  Args:
    log_kernel: anything finite where masked.
    anchors, clusters: those that take part; N and K count them.
    max_iterations: bound of the loop. Clustered anchors need 61 to 91.
    tolerance: on the summed relative change; 0 = run to the bound.

  Returns:
    log plan; -inf where an anchor or a cluster takes no part.
  """
  inside = anchors[:, None] & clusters
  log_n = jnp.log(jnp.maximum(anchors.sum(), 1).astype(log_kernel.dtype))
  log_k = jnp.log(jnp.maximum(clusters.sum(), 1).astype(log_kernel.dtype))

  def body(carry):
    iteration, _, scale, _ = carry
    row = -log_k - masked_logsumexp((log_kernel + scale[:, None]).T, inside.T)
    row = jnp.where(clusters, row, 0)
    new = -log_n - masked_logsumexp(log_kernel + row, inside)
    new = jnp.where(anchors, new, 0)
    change = jnp.abs(jnp.expm1(scale - new)).sum()
    done = (iteration % _CHECK_EVERY == 0) & (change <= tolerance)
    return iteration + 1, done, new, row

  def unfinished(carry):
    iteration, done, *_ = carry
    return ~done & (iteration < max_iterations)

  start = (
    0,
    jnp.zeros((), bool),
    jnp.where(anchors, -log_n, 0),
    jnp.zeros(clusters.shape, log_kernel.dtype),
  )
  _, _, scale, row = jax.lax.while_loop(unfinished, body, start)
  return jnp.where(inside, log_kernel + scale[:, None] + row, -jnp.inf)


def assign_clusters(
  cosine: Float[Array, "c n k"],
  anchors: Bool[Array, "c n"],
  clusters: Bool[Array, "c k"],
  *,
  sharpness: float = 25.0,
) -> Int32[Array, "c n"]:
  """The cluster of each anchor, balanced within its class.

  Argmax of the plan for the kernel softmax(cosine) ** sharpness, an entropic
  regularisation of 1 / sharpness. A class with a single anchor, whose plan is
  uniform, gives it the nearest centre. No gradient flows through.

  Args:
    cosine: of anchors with the centres of their class.
    anchors: those that exist.
    clusters: those that a class has, at least one; never another is assigned.
    sharpness: exponent of the kernel.
  """
  cosine = jax.lax.stop_gradient(cosine)
  within = clusters[:, None]
  normalizer = masked_logsumexp(cosine, jnp.broadcast_to(within, cosine.shape))
  kernel = sharpness * (cosine - normalizer[..., None])
  balanced = jax.vmap(log_plan)(kernel, anchors, clusters)
  nearest = jnp.where(within, cosine, -jnp.inf).argmax(-1)
  single = anchors.sum(1, keepdims=True) == 1
  return jnp.where(single, nearest, balanced.argmax(-1)).astype(jnp.int32)
