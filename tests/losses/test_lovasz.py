"""Lovasz-softmax against sorting in numpy, hand-computed cases, differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.losses.lovasz import lovasz_softmax

AXIS = "devices"
ROWS, K = 24, 5
_ONE = jax.jit(jax.value_and_grad(lovasz_softmax))


def lovasz(logits, label, mask):
  """Value and gradient in float64."""
  with jax.enable_x64(True):
    value, gradient = _ONE(
      jnp.asarray(logits, jnp.float64),
      jnp.asarray(label, jnp.int32),
      jnp.asarray(mask, bool),
    )
    return float(value), np.asarray(gradient)


def by_sorting(logits, label, mask):
  """The definition: Jaccard losses of the k most wrong voxels, subtracted."""
  logits, label = logits[mask], label[mask]
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  losses = []
  for c in sorted(set(label.tolist())):
    truth = label == c
    error = np.abs(truth - p[:, c])
    order = np.argsort(-error, kind="stable")
    before = total = 0.0
    for k in range(1, len(order) + 1):
      wrong = set(order[:k].tolist())
      # The k most wrong voxels are mistaken, the others right.
      inter = sum(truth[i] and i not in wrong for i in range(len(truth)))
      union = sum(truth[i] or i in wrong for i in range(len(truth)))
      jaccard = 1 - inter / union
      total += error[order[k - 1]] * (jaccard - before)
      before = jaccard
    losses.append(total)
  return np.mean(losses) if losses else 0.0


def example(seed=0, classes=K):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal((ROWS, K))
  label = rng.integers(0, classes, ROWS)
  mask = rng.random(ROWS) < 0.7
  return logits, np.where(mask, label, 255), mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [1, 2, K])
def test_equals_sorting(seed, classes):
  # With fewer classes than K some are absent and take no part.
  value, _ = lovasz(*example(seed, classes))
  np.testing.assert_allclose(
    value, by_sorting(*example(seed, classes)), rtol=1e-10
  )


def test_float32_keeps_its_digits():
  """Increments of a few millionths are not differences of numbers near 1."""
  rng = np.random.default_rng(0)
  n = 200_000
  label = (rng.random(n) < 0.4).astype(np.int32)
  logits = rng.standard_normal((n, 2)).astype(np.float32)
  gradient = jax.jit(jax.grad(lovasz_softmax))(logits, label, np.ones(n, bool))
  _, exact = lovasz(logits, label, np.ones(n, bool))
  error = np.abs(gradient - exact) / np.abs(exact).max()
  assert error.max() < 2e-5


def test_gradient_is_that_of_differences():
  logits, label, mask = example(1)
  _, gradient = lovasz(logits, label, mask)
  numeric, step = np.zeros_like(logits), 1e-6
  for index in np.ndindex(logits.shape):
    sides = []
    for sign in (1, -1):
      moved = logits.copy()
      moved[index] += sign * step
      sides.append(by_sorting(moved, label, mask))
    numeric[index] = (sides[0] - sides[1]) / (2 * step)
  np.testing.assert_allclose(gradient, numeric, atol=1e-8)
  assert np.abs(gradient[mask]).max() > 1e-2
  assert not gradient[~mask].any()


def test_hard_predictions_give_one_minus_iou():
  """3 of 5 found, 2 false alarms: IoU is 3 / 7, of the others 4 / 8."""
  label = np.array([1] * 5 + [0] * 6)
  said = np.array([1, 1, 1, 0, 0] + [1, 1, 0, 0, 0, 0])
  logits = np.full((ROWS, K), -1e3)
  logits[np.arange(11), said] = 1e3
  mask = np.arange(ROWS) < 11
  label = np.r_[label, np.zeros(ROWS - 11, int)]
  value, _ = lovasz(logits, label, mask)
  np.testing.assert_allclose(value, (4 / 7 + 4 / 8) / 2, rtol=1e-12)


def test_nothing_valid_is_zero():
  logits, label, mask = example()
  value, gradient = lovasz(logits, label, np.zeros_like(mask))
  assert value == 0
  assert not gradient.any()


def test_one_valid_voxel():
  """Its only present class has loss 1 - p."""
  logits, label, _ = example()
  mask, label = np.arange(ROWS) == 7, label.copy()
  label[7] = 3
  value, gradient = lovasz(logits, label, mask)
  p = np.exp(logits[7]) / np.exp(logits[7]).sum()
  np.testing.assert_allclose(value, 1 - p[3], rtol=1e-10)
  expected = p[3] * (p - (np.arange(K) == 3))
  np.testing.assert_allclose(gradient[7], expected, rtol=1e-9)
  assert not np.delete(gradient, 7, 0).any()


def test_padding_does_not_matter():
  logits, label, mask = example(2)
  before = lovasz(logits, label, mask)
  logits, label = logits.copy(), label.copy()
  logits[~mask], label[~mask] = 1e4, 2
  after = lovasz(logits, label, mask)
  assert after[0] == before[0]
  np.testing.assert_array_equal(after[1], before[1])


def test_order_does_not_matter():
  logits, label, mask = example(3)
  order = np.random.default_rng(0).permutation(ROWS)
  value, gradient = lovasz(logits, label, mask)
  again, moved = lovasz(logits[order], label[order], mask[order])
  np.testing.assert_allclose(again, value, rtol=1e-12)
  np.testing.assert_allclose(moved, gradient[order], atol=1e-14)


@pytest.mark.parametrize("ties", [False, True])
def test_devices_share_one_loss(ties):
  """Four uneven shares, one of them empty, are the batch in one piece."""
  logits, label, _ = example(4)
  if ties:
    logits = np.round(logits / 4)
  shares = (11, 0, 1, 12)
  whole = lovasz(logits, label, label != 255)
  split = np.zeros((4, 12, K)), np.full((4, 12), 2), np.zeros((4, 12), bool)
  place = [(d, i) for d, n in enumerate(shares) for i in range(n)]
  for (d, i), x, y in zip(place, logits, label, strict=True):
    split[0][d, i], split[1][d, i], split[2][d, i] = x, y, y != 255
  with jax.enable_x64(True):
    run = jax.jit(
      jax.vmap(
        jax.value_and_grad(functools.partial(lovasz_softmax, axis_name=AXIS)),
        axis_name=AXIS,
      )
    )
    values, gradient = map(np.asarray, run(*map(jnp.asarray, split)))
  np.testing.assert_allclose(values.sum(), whole[0], rtol=1e-12)
  assert values[1] == 0 and values[0] > 0.1
  ours = np.stack([gradient[d, i] for d, i in place])
  np.testing.assert_allclose(ours, whole[1], atol=1e-14)
