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


def test_cosine_decay_of_the_published_run():
  """15 epochs of 23,203 scans in batches of four: 87,015 steps to zero."""
  total = 15 * -(-23203 // 4)
  assert total == 87_015
  schedule = schedules.cosine_decay(0.0024, total)
  assert float(schedule(0)) == pytest.approx(0.0024)
  assert float(schedule(total)) == 0
  assert float(schedule(total + 100)) == 0
  steps = np.linspace(0, total, 50).astype(int)
  expected = 0.0012 * (1 + np.cos(np.pi * steps / total))
  at_once = jax.jit(schedule)(jnp.asarray(steps, jnp.int32))
  np.testing.assert_allclose(at_once, expected, atol=1e-9)
  assert at_once.dtype == jnp.float32
  one_by_one = [float(schedule(int(s))) for s in steps]
  np.testing.assert_allclose(one_by_one, expected, atol=1e-9)


@pytest.mark.parametrize("devices", [2, 8])
def test_cosine_decay_warms_up(devices):
  warm, total = 1000 // devices, 2000
  schedule = schedules.cosine_decay(0.24, total, warmup_steps=warm)
  rates = np.asarray(jax.jit(schedule)(jnp.arange(total)))
  rising = 0.24 * np.arange(1, warm + 1) / warm
  np.testing.assert_allclose(rates[:warm], rising, rtol=1e-6)
  # The cosine begins at its top, and all steps make its half period.
  assert rates[warm] == pytest.approx(0.24)
  angle = np.pi * np.arange(total - warm) / total
  falling = 0.12 * (1 + np.cos(angle))
  np.testing.assert_allclose(rates[warm:], falling, rtol=1e-4, atol=1e-8)
  assert rates[-1] > 0 and float(schedule(total + warm)) == 0


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
  with pytest.raises(ValueError, match="total_steps"):
    schedules.cosine_decay(0.1, 0)
  with pytest.raises(ValueError, match="warmup_steps"):
    schedules.cosine_decay(0.1, 10, warmup_steps=-1)
  with pytest.raises(ValueError, match="warm"):
    schedules.linear_warmup_weight(0, -1, first=0)
