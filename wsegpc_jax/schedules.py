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
