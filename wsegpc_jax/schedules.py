"""Learning-rate decay and loss-weight warm-up: functions of the step count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def polynomial_decay(
  base_lr: float, total_steps: int, power: float = 0.9
) -> Callable[[int | jax.Array], jax.Array]:
  """The learning rate base_lr * (1 - s / (total_steps + 1)) ** power.

  The schedule of WSegPC's SGD; the last step, s = total_steps - 1, still has a
  positive rate.

  Args:
    base_lr: learning rate of step 0.
    total_steps: steps of the whole run, S.
    power: exponent, 0.9 in the paper's code.

  Returns:
    An optax schedule: step s = 0, 1, ... (int or int array) to float32 rate;
    0 from s = S + 1 on.

  Raises:
    ValueError: no steps, or a negative power.
  """
  if total_steps < 1:
    raise ValueError(f"total_steps must be at least 1, got {total_steps}")
  if power < 0:
    raise ValueError(f"power must not be negative, got {power}")

  def schedule(step: int | jax.Array) -> jax.Array:
    # The difference is taken in integers: in float32 it would lose digits
    # near the end of a long run.
    left = jnp.maximum(total_steps + 1 - jnp.asarray(step), 0)
    return base_lr * (left / (total_steps + 1)) ** power

  return schedule


def cosine_decay(
  base_lr: float, total_steps: int, *, warmup_steps: int = 0
) -> Callable[[int | jax.Array], jax.Array]:
  """A linear warm-up, then half a cosine: the schedule of SPVNAS's SGD.

  The rate of step s is base_lr * (s + 1) / W during the W steps of warm-up,
  then base_lr * (1 + cos(pi * (s - W) / S)) / 2. As in the reference S counts
  all steps, so that a run with a warm-up ends a little above 0. (It takes
  W = 1000 // n on n > 1 devices, and none on one.)

  Args:
    base_lr: largest rate.
    total_steps: steps of the whole run, S.
    warmup_steps: W.

  Returns:
    An optax schedule: step s = 0, 1, ... (int or int array) to float32 rate;
    from s = S + W on 0.

  Raises:
    ValueError: no steps, or a negative number of warm-up steps.
  """
  if total_steps < 1:
    raise ValueError(f"total_steps must be at least 1, got {total_steps}")
  if warmup_steps < 0:
    raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")

  def schedule(step: int | jax.Array) -> jax.Array:
    step = jnp.asarray(step)
    done = jnp.clip(step - warmup_steps, 0, total_steps) / total_steps
    factor = 0.5 * (1 + jnp.cos(jnp.pi * done))
    if warmup_steps:
      rising = (step + 1) / warmup_steps
      factor = jnp.where(step < warmup_steps, rising, factor)
    return base_lr * factor

  return schedule


def linear_warmup_weight(
  step: int | jax.Array, warm: int, *, first: int
) -> jax.Array:
  """The warm-up factor min(t / warm, 1) of a loss term, t = step + first.

  Args:
    step: steps done before this one, 0, 1, ...
    warm: steps until the full weight; 0 or 1 = none to speak of.
    first: t of step 0: 0 for the CAM term of WSegPC (its first weight is 0),
      1 for its other terms.

  Returns:
    float32, the shape of `step`, in 0..1.

  Raises:
    ValueError: a negative `warm`.
  """
  if warm < 0:
    raise ValueError(f"warm must not be negative, got {warm}")
  t = jnp.asarray(step) + first
  if warm == 0:
    return jnp.ones(t.shape, jnp.float32)
  return jnp.minimum(t / warm, 1.0)
