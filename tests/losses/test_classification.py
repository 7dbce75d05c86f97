"""Classification losses against loops, hand-computed values, differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.losses import classification


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def soft_margin_by_loop(logits, tags, mask):
  total = 0.0
  for row, present, exists in zip(logits, tags, mask, strict=True):
    if not exists:
      continue
    terms = []
    for x, y in zip(row, present, strict=True):
      y = float(y)
      terms.append(
        -(y * math.log(sigmoid(x)) + (1 - y) * math.log(sigmoid(-x)))
      )
    total += sum(terms) / len(terms)
  return total


def cross_entropy_by_loop(logits, label, mask):
  total = 0.0
  for row, wanted, counts in zip(logits, label, mask, strict=True):
    if counts:
      exponentials = [math.exp(x) for x in row]
      total -= math.log(exponentials[wanted] / sum(exponentials))
  return total


def value_and_gradient(loss, logits, *rest):
  """In float64; the jitted losses below share their programs."""
  with jax.enable_x64(True):
    value, gradient = loss(
      jnp.asarray(logits, jnp.float64), *map(jnp.asarray, rest)
    )
    return float(value), np.asarray(gradient)


def central_differences(loss, logits, *rest, step=1e-6):
  gradient = np.zeros_like(logits)
  for index in np.ndindex(logits.shape):
    there = []
    for sign in (1, -1):
      moved = logits.copy()
      moved[index] += sign * step
      there.append(value_and_gradient(loss, moved, *rest)[0])
    gradient[index] = (there[0] - there[1]) / (2 * step)
  return gradient


SOFT_MARGIN = jax.jit(
  jax.value_and_grad(classification.multilabel_soft_margin_sum)
)
CROSS_ENTROPY = jax.jit(jax.value_and_grad(classification.cross_entropy_sum))


@pytest.fixture
def scenes():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (4, 6))
  return logits, rng.random((4, 6)) < 0.4, np.array([True, False, True, True])


@pytest.fixture
def points():
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 3, (9, 5))
  label = rng.integers(0, 5, 9).astype(np.int32)
  mask = np.arange(9) % 3 > 0
  label[~mask] = [255, -1, 7]
  return logits, label, mask


class TestSoftMargin:
  def test_equals_a_loop(self, scenes):
    value, _ = value_and_gradient(SOFT_MARGIN, *scenes)
    np.testing.assert_allclose(value, soft_margin_by_loop(*scenes), rtol=1e-12)

  def test_hand_computed(self):
    # s(ln 3) = 3/4, s(0) = 1/2.
    value, _ = value_and_gradient(
      SOFT_MARGIN,
      np.log([[3.0, 3.0], [1.0, 1.0]]),
      np.array([[True, False], [True, True]]),
      np.array([True, True]),
    )
    first = (math.log(4 / 3) + math.log(4)) / 2
    np.testing.assert_allclose(value, first + math.log(2), rtol=1e-12)

  def test_gradient(self, scenes):
    logits, tags, mask = scenes
    _, gradient = value_and_gradient(SOFT_MARGIN, *scenes)
    numeric = central_differences(SOFT_MARGIN, *scenes)
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)
    assert not gradient[~mask].any()
    # Closed form: (s(x) - y) / K.
    closed = (np.vectorize(sigmoid)(logits) - tags) / logits.shape[1]
    np.testing.assert_allclose(gradient[mask], closed[mask], atol=1e-12)

  def test_large_logits_stay_finite(self):
    value, gradient = SOFT_MARGIN(
      jnp.array([[500.0, -500.0, 500.0, -500.0]]),
      jnp.array([[True, False, False, True]]),
      jnp.array([True]),
    )
    np.testing.assert_allclose(value, (0 + 0 + 500 + 500) / 4)
    np.testing.assert_allclose(gradient, [[0, 0, 0.25, -0.25]], atol=1e-12)

  def test_shares_add_up(self, scenes):
    logits, tags, mask = scenes
    whole, _ = value_and_gradient(SOFT_MARGIN, *scenes)
    parts = [
      value_and_gradient(SOFT_MARGIN, logits, tags, mask & own)[0]
      for own in np.eye(4, dtype=bool)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-12)
    assert parts[1] == 0 < min(parts[0], parts[2], parts[3])


class TestCrossEntropy:
  def test_equals_a_loop(self, points):
    value, _ = value_and_gradient(CROSS_ENTROPY, *points)
    expected = cross_entropy_by_loop(*points)
    np.testing.assert_allclose(value, expected, rtol=1e-12)

  def test_hand_computed(self):
    value, _ = value_and_gradient(
      CROSS_ENTROPY,
      np.log([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]),
      np.array([2, 0]),
      np.array([True, True]),
    )
    np.testing.assert_allclose(value, math.log(8 / 5) + math.log(4), rtol=1e-12)

  def test_gradient(self, points):
    _, label, mask = points
    _, gradient = value_and_gradient(CROSS_ENTROPY, *points)
    numeric = central_differences(CROSS_ENTROPY, *points)
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)
    assert not gradient[~mask].any()
    # Softmax less one-hot: rows sum to zero.
    np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-12)
    assert (gradient[mask, label[mask]] < 0).all()

  def test_labels_of_masked_rows_do_not_matter(self, points):
    logits, label, mask = points
    value, gradient = value_and_gradient(CROSS_ENTROPY, *points)
    changed = np.where(mask, label, 3).astype(np.int32)
    other = value_and_gradient(CROSS_ENTROPY, logits, changed, mask)
    assert value == other[0]
    np.testing.assert_array_equal(gradient, other[1])

  def test_no_row_counts(self, points):
    logits, label, _ = points
    value, gradient = value_and_gradient(
      CROSS_ENTROPY, logits, label, np.zeros(len(label), bool)
    )
    assert value == 0
    assert not gradient.any()

  def test_leading_axes(self, points):
    logits, label, mask = points
    folded, gradient = value_and_gradient(
      CROSS_ENTROPY,
      logits.reshape(3, 3, 5),
      label.reshape(3, 3),
      mask.reshape(3, 3),
    )
    flat = value_and_gradient(CROSS_ENTROPY, *points)
    np.testing.assert_allclose(folded, flat[0], rtol=1e-12)
    np.testing.assert_allclose(gradient.reshape(9, 5), flat[1], atol=1e-12)

  def test_large_logits_stay_finite(self):
    value, gradient = CROSS_ENTROPY(
      jnp.array([[1e4, 0.0, -1e4]]), jnp.array([2]), jnp.array([True])
    )
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(gradient, [[1, 0, -1]])
