"""Averages over superpoints against a loop."""

import numpy as np
import pytest

from wsegpc_jax.evaluate import average_superpoints


def average_by_loop(probabilities, superpoint, how):
  out = np.array(probabilities, np.float64)
  for i, region in enumerate(superpoint):
    if region >= 0:
      members = [j for j, r in enumerate(superpoint) if r == region]
      mean = np.mean([probabilities[j] for j in members], axis=0)
      own = probabilities[i]
      out[i] = mean if how == "mean" else 0.5 * mean + 0.5 * own
  return out


@pytest.fixture
def scene():
  """Superpoints with holes in their numbers; some points have none."""
  rng = np.random.default_rng(0)
  probabilities = rng.dirichlet(np.ones(4), 60).astype(np.float32)
  superpoint = rng.choice([-1, -7, 0, 3, 4, 900], 60).astype(np.int32)
  return probabilities, superpoint


@pytest.mark.parametrize("how", ["mean", "half"])
def test_equals_a_loop(scene, how):
  probabilities, superpoint = scene
  before = probabilities.copy()
  out = average_superpoints(probabilities, superpoint, how)
  np.testing.assert_allclose(
    out, average_by_loop(before, superpoint, how), rtol=1e-5, atol=1e-7
  )
  assert out.dtype == np.float32
  np.testing.assert_allclose(out.sum(1), 1, rtol=1e-5)
  # What was given stays as it was; points without superpoint keep their own.
  np.testing.assert_array_equal(probabilities, before)
  alone = superpoint < 0
  np.testing.assert_array_equal(out[alone], before[alone])


def test_by_hand():
  probabilities = np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32)
  superpoint = np.array([2, 2, -1])
  mean = average_superpoints(probabilities, superpoint, "mean")
  np.testing.assert_allclose(mean, [[0.75, 0.25], [0.75, 0.25], [0, 1]])
  half = average_superpoints(probabilities, superpoint, "half")
  np.testing.assert_allclose(half, [[0.875, 0.125], [0.625, 0.375], [0, 1]])


@pytest.mark.parametrize("how", ["none", "mean", "half"])
def test_nothing_to_average(scene, how):
  probabilities, superpoint = scene
  nowhere = np.full_like(superpoint, -1)
  for regions in (None, nowhere) + (superpoint,) * (how == "none"):
    out = average_superpoints(probabilities, regions, how)
    np.testing.assert_array_equal(out, probabilities)
