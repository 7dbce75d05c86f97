"""RPC, region-point consistency: pseudo-labels agreed on by regions.

The teacher's probabilities are averaged over each region; its argmax labels
the region's elements (voxels in 3D, pixels in 2D) when it is confident enough
for its class. The class-wise cutoff (as in FreeMatch) is p_cutoff times the
number of elements selected so far for the class over that of the most often
selected class; it starts at zero.

Counters must be exact over a whole training (more than 2^32 pixels), so each
is two int32 lanes: high * 2^30 + low.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.sparse import pool

_LANE = 30


def empty_counters(num_classes: int) -> Int32[np.ndarray, "2 k"]:
  """Counters at zero: rows are the high and the low lane."""
  return np.zeros((2, num_classes), np.int32)


def add_counts(
  counters: Int32[Array, "2 k"], counts: Int32[Array, " k"]
) -> Int32[Array, "2 k"]:
  """Adds counts below 2^30, exactly."""
  low = counters[1] + counts
  return jnp.stack([counters[0] + (low >> _LANE), low & ((1 << _LANE) - 1)])


def class_ratios(counters: Int32[Array, "2 k"]) -> Float[Array, " k"]:
  """r_c: selected count of each class over the largest; 0 at the start."""
  value = counters[0].astype(jnp.float32) * (1 << _LANE) + counters[1]
  return value / jnp.maximum(value.max(), 1)


def tag_softmax(
  logits: Float[Array, "*n k"], tags: Bool[Array, "*n k"]
) -> Float[Array, "*n k"]:
  """Softmax over the tagged classes only; the others get probability 0."""
  return jax.nn.softmax(jnp.where(tags, logits, -1e6))


def region_average(
  probabilities: Float[Array, "n k"],
  region: Int32[Array, " n"],
  valid: Bool[Array, " n"],
  *,
  num_regions: int,
  implementation: str | None = None,
) -> Float[Array, "n k"]:
  """Mean over each region; elements without one keep their own.

  `implementation` and errors as for `pool.segment_mean`.
  """
  region = jnp.where(valid, region, num_regions)
  mean, _ = pool.segment_mean(
    probabilities,
    region,
    num_segments=num_regions,
    implementation=implementation,
  )
  inside = (region >= 0) & (region < num_regions)
  taken = mean[jnp.where(inside, region, 0)]
  return jnp.where(inside[:, None], taken, probabilities)


def select_pseudo_labels(
  probabilities: Float[Array, "n k"],
  valid: Bool[Array, " n"],
  counters: Int32[Array, "2 k"],
  *,
  p_cutoff: float = 0.8,
) -> tuple[Int32[Array, " n"], Bool[Array, " n"], Int32[Array, " k"]]:
  """Pseudo-labels, which of them count, and how many of each class.

  The cutoff uses the counters from before this step; the caller sums the
  counts over devices and adds them afterwards.
  """
  label = jnp.argmax(probabilities, -1).astype(jnp.int32)
  confidence = probabilities.max(-1)
  cutoff = p_cutoff * class_ratios(counters)
  hot = label[:, None] == jnp.arange(probabilities.shape[-1])
  selected = valid & (confidence >= jnp.where(hot, cutoff, 0).sum(-1))
  counts = (hot & selected[:, None]).sum(0, dtype=jnp.int32)
  return label, selected, counts
