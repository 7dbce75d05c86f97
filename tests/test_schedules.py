"""Schedules against their formulas in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsegpc_jax import schedules


@pytest.mark.parametrize("total", [1, 7, 30_000])
def test_polynomial_decay_is_the_formula(total):
  schedule = schedules.polynomial_decay(0.1, total)
  steps = np.unique(np.linspace(0, total, 50).astype(int))
  expected = [0.1 * (1 - s / (total + 1)) ** 0.9 for s in steps.tolist()]
  one_by_one = [float(schedule(int(s))) for s in steps]
  np.testing.assert_allclose(one_by_one, expected, rtol=2e-6)
  at_once = jax.jit(schedule)(jnp.asarray(steps, jnp.int32))
  np.testing.assert_allclose(at_once, expected, rtol=2e-6)


def test_polynomial_decay_starts_at_base_and_ends_positive_then_zero():
  schedule = schedules.polynomial_decay(0.05, 100)
  assert float(schedule(0)) == pytest.approx(0.05)
  assert float(schedule(99)) > float(schedule(100)) > 0
  # Past the end a negative base would give NaN.
  assert [float(schedule(s)) for s in (101, 102, 10_000)] == [0, 0, 0]


def test_polynomial_decay_drives_an_optimiser():
  optimiser = optax.sgd(schedules.polynomial_decay(1.0, 3, power=1.0))
  weight = jnp.zeros(())
  state = optimiser.init(weight)
  seen = []
  for _ in range(3):
    update, state = optimiser.update(jnp.ones(()), state, weight)
    seen.append(-float(update))
  np.testing.assert_allclose(seen, [1, 0.75, 0.5], rtol=1e-6)


def test_warmup_counts_from_first():
  at = lambda first, warm: [  # noqa: E731
    float(schedules.linear_warmup_weight(s, warm, first=first))
    for s in range(6)
  ]
  np.testing.assert_allclose(at(0, 4), [0, 0.25, 0.5, 0.75, 1, 1])
  np.testing.assert_allclose(at(1, 4), [0.25, 0.5, 0.75, 1, 1, 1])
  # Stage 2 "warms up" over one step: only CAM's first weight is 0.
  assert at(0, 1) == [0, 1, 1, 1, 1, 1]
  assert at(1, 1) == [1] * 6
  assert at(0, 0) == [1] * 6


def test_warmup_of_traced_steps():
  weights = jax.jit(lambda s: schedules.linear_warmup_weight(s, 2400, first=0))(
    jnp.arange(0, 3000, 300, dtype=jnp.int32)
  )
  expected = np.minimum(np.arange(0, 3000, 300) / 2400, 1)
  np.testing.assert_allclose(weights, expected, rtol=1e-6)
  assert weights.dtype == jnp.float32


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="total_steps"):
    schedules.polynomial_decay(0.1, 0)
  with pytest.raises(ValueError, match="power"):
    schedules.polynomial_decay(0.1, 10, power=-1)
  with pytest.raises(ValueError, match="warm"):
    schedules.linear_warmup_weight(0, -1, first=0)
