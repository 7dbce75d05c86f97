"""Pooling between the levels of a plan, and over the voxels of a scene."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.kernels import gather_conv
from wsegpc_jax.kernels.segment_sum import segment_reduce
from wsegpc_jax.sparse import checks
from wsegpc_jax.sparse.integers import no_gradient
from wsegpc_jax.sparse.plan import Level


def _pad(x: Array, value: float) -> Array:
  return jnp.pad(x, ((0, 1), (0, 0)), constant_values=value)


def _children(x: Array, fine: Level, value: float) -> Array:
  """[P, 8, C]: features of each coarse voxel's children, `value` if none."""
  return jnp.take(_pad(x, value), fine.children, axis=0, mode="clip")


def _to_children(y: Array, fine: Level) -> Array:
  """[M, C]: of each fine voxel, the row of its parent."""
  return jnp.take(_pad(y, 0), fine.parent, axis=0, mode="clip")


def _check(x: Array, fine: Level) -> None:
  checks.check_has_coarser(fine)
  checks.check_rows(x, fine.capacity, "fine")


@jax.custom_vjp
def sum_pool(x: Float[Array, "m c"], fine: Level) -> Float[Array, "p c"]:
  """Sum over the up to eight children of every coarse voxel.

  Raises:
    ValueError: x has not the rows of the level, or it is the plan's last.
  """
  _check(x, fine)
  return _children(x, fine, 0).sum(1)


sum_pool.defvjp(
  lambda x, fine: (sum_pool(x, fine), fine),
  lambda fine, g: (_to_children(g, fine), no_gradient(fine)),
)


def mean_pool(x: Float[Array, "m c"], fine: Level) -> Float[Array, "p c"]:
  """Mean over the children of every coarse voxel; zero for padding.

  Raises:
    ValueError: as `sum_pool`.
  """
  _check(x, fine)
  number = (fine.children < fine.capacity).sum(1, keepdims=True)
  return sum_pool(x, fine) / jnp.maximum(number, 1).astype(x.dtype)


@jax.custom_vjp
def max_pool(x: Float[Array, "m c"], fine: Level) -> Float[Array, "p c"]:
  """Maximum over the children of every coarse voxel; zero for padding.

  Where several children share the maximum, they share its gradient equally.

  Raises:
    ValueError: as `sum_pool`.
  """
  _check(x, fine)
  out = _children(x, fine, -jnp.inf).max(1)
  return jnp.where(jnp.isneginf(out), 0, out)


def _max_forward(x, fine):
  out = max_pool(x, fine)
  return out, (x, out, fine)


def _max_backward(saved, g):
  x, out, fine = saved
  hit = _children(x, fine, jnp.nan) == out[:, None]
  share = g / jnp.maximum(hit.sum(1), 1).astype(g.dtype)
  own = x == _to_children(out, fine)
  return jnp.where(own, _to_children(share, fine), 0), no_gradient(fine)


max_pool.defvjp(_max_forward, _max_backward)


@functools.partial(jax.jit, static_argnames="num_scenes")
def scene_mean(
  x: Float[Array, "m c"],
  scene: Int32[Array, " m"],
  valid: Bool[Array, " m"],
  *,
  num_scenes: int,
) -> Float[Array, "b c"]:
  """Mean over the valid voxels of each scene; zero for an empty scene.

  A matrix product, not a scatter: deterministic, and cheap for few scenes.
  """
  member = (scene[None] == jnp.arange(num_scenes)[:, None]) & valid
  x = jnp.where(valid[:, None], x, 0)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  total = jnp.matmul(
    member.astype(dtype),
    x.astype(dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  number = member.sum(1, dtype=jnp.int32)[:, None]
  return total / jnp.maximum(number, 1).astype(dtype)


def segment_mean(
  x: Float[Array, "m c"],
  segment: Int32[Array, " m"],
  *,
  num_segments: int,
  implementation: str | None = None,
) -> tuple[Float[Array, "s c"], Int32[Array, " s"]]:
  """Mean over each segment, and how many rows it has.

  Args:
    x: rows to average.
    segment: segment of each row, in any order; rows outside
      0 .. num_segments - 1 belong to none.
    num_segments: number of segments, static.
    implementation: "pallas" sorts the rows and reduces them by the kernel of
      `wsegpc_jax.kernels.segment_sum`; all others scatter, which on a GPU adds
      atomically, in another order in every run.

  Raises:
    ValueError: an unknown implementation.
  """
  if gather_conv.choose_implementation(implementation) == "pallas":
    order = jnp.argsort(segment)
    segment = jnp.asarray(segment)[order]
    mean = segment_reduce(
      jnp.asarray(x).at[order].get(unique_indices=True),
      segment,
      num_segments=num_segments,
      kind="mean",
      implementation="pallas",
    )
    bounds = jnp.arange(num_segments + 1, dtype=segment.dtype)
    return mean, jnp.diff(jnp.searchsorted(segment, bounds)).astype(jnp.int32)
  total = jax.ops.segment_sum(x, segment, num_segments=num_segments)
  ones = jnp.ones(segment.shape, jnp.int32)
  number = jax.ops.segment_sum(ones, segment, num_segments=num_segments)
  return total / jnp.maximum(number, 1).astype(x.dtype)[:, None], number
