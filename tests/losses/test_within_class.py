"""The contrastive losses against double loops and hand-computed cases."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.losses import within_class
from wsegpc_jax.losses.within_class import Anchors

A, C, K, Q, E = 30, 3, 4, 5, 6
TAU, BASE = 0.1, 2.0


def units(rng, *shape):
  x = rng.standard_normal(shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0):
  """Anchors with empty slots; classes 0 and 2 present, class 2 has a single."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 2, A) * 2
  cluster = rng.integers(0, K, A)
  mask = rng.random(A) < 0.8
  label[3], cluster[3], mask[3] = 2, 1, True
  cluster[(label == 2) & (cluster == 1)] = 0
  cluster[3] = 1
  return units(rng, A, E), label, cluster, mask


def memory(seed=1):
  rng = np.random.default_rng(seed)
  filled = rng.integers(0, Q + 1, (C, K))
  filled[0, 2] = 0
  slots = np.arange(Q) < filled[..., None]
  return units(rng, C, K, E), units(rng, C, K, Q, E), slots


def nce(x, contrast, positive, negative):
  """l of one anchor by loops over lists of vectors."""
  s = lambda y: math.exp(float(x @ y) / TAU)  # noqa: E731
  rest = sum(s(contrast[j]) for j in negative)
  terms = [
    -math.log(s(contrast[p]) / (s(contrast[p]) + rest)) for p in positive
  ]
  return sum(terms) / len(terms)


def batch_by_loop(x, label, cluster, mask, self_is_negative=False):
  total, number, some = 0.0, 0, np.zeros(A, bool)
  live = [i for i in range(A) if mask[i]]
  for i in live:
    same = [j for j in live if (label[i], cluster[i]) == (label[j], cluster[j])]
    positive = [j for j in same if j != i]
    negative = [j for j in live if j not in same]
    if self_is_negative:
      negative.append(i)
    if positive:
      total, number, some[i] = (
        total + nce(x[i], x, positive, negative),
        number + 1,
        True,
      )
  return TAU / BASE * total / max(number, 1), some


def center_by_loop(x, label, cluster, mask, centers, allowed):
  flat = centers.reshape(-1, E)
  total = 0.0
  for i in np.flatnonzero(mask):
    own = label[i] * K + cluster[i]
    negative = [j for j in np.flatnonzero(allowed.reshape(-1)) if j != own]
    total += nce(x[i], flat, [own], negative)
  return TAU / BASE * total / max(mask.sum(), 1)


def queue_by_loop(x, label, cluster, mask, queue, slots):
  flat, live = queue.reshape(-1, E), np.flatnonzero(slots.reshape(-1))
  total = number = 0
  for i in np.flatnonzero(mask):
    own = label[i] * K + cluster[i]
    positive = [j for j in live if j // Q == own]
    negative = [j for j in live if j // Q != own]
    if positive:
      total += nce(x[i], flat, positive, negative)
      number += 1
  return TAU / BASE * total / max(number, 1)


def anchors_of(x, label, cluster, mask):
  return Anchors(
    jnp.asarray(x),
    jnp.asarray(label, jnp.int32),
    jnp.asarray(cluster, jnp.int32),
    jnp.asarray(mask, bool),
  )


@functools.lru_cache
def _program(function, **settings):
  def run(x, label, cluster, mask, *rest):
    def loss(x, *rest):
      out = function(Anchors(x, label, cluster, mask), *rest, **settings)
      return out if isinstance(out, tuple) else (out, None)

    floats = tuple(range(1 + (1 if rest else 0)))
    return jax.value_and_grad(loss, argnums=floats, has_aux=True)(x, *rest)

  return jax.jit(run)


def evaluate(function, anchors, *rest, **settings):
  """(value, what else it returns), gradients by anchors and memory."""
  with jax.enable_x64(True):
    a = anchors_of(*anchors)
    args = (a.feature, a.label, a.cluster, a.mask, *map(jnp.asarray, rest))
    out = _program(function, **settings)(*args)
    return jax.tree.map(np.asarray, out)


def differences(value, x, rows):
  """Central differences of a function of x [A, E] for some rows."""
  out, step = np.zeros((len(rows), x.shape[1])), 1e-6
  for r, i in enumerate(rows):
    for j in range(x.shape[1]):
      sides = []
      for sign in (1, -1):
        moved = x.copy()
        moved[i, j] += sign * step
        sides.append(value(moved))
      out[r, j] = (sides[0] - sides[1]) / (2 * step)
  return out


@pytest.mark.parametrize("self_is_negative", [False, True])
def test_batch_loss_equals_loops(self_is_negative):
  anchors = example()
  (value, some), (gradient,) = evaluate(
    within_class.batch_loss, anchors, self_is_negative=self_is_negative
  )
  expected, expected_some = batch_by_loop(*anchors, self_is_negative)
  np.testing.assert_allclose(value, expected, rtol=1e-10)
  np.testing.assert_array_equal(some, expected_some)
  assert not some[3] and 0 < some.sum() < anchors[3].sum()
  # Through both sides: also an anchor that has no positive is pushed.
  rows = [3, *np.flatnonzero(some)[:3]]
  numeric = differences(
    lambda x: batch_by_loop(x, *anchors[1:], self_is_negative)[0],
    anchors[0],
    rows,
  )
  np.testing.assert_allclose(gradient[rows], numeric, atol=1e-8)
  assert np.abs(gradient[3]).max() > 1e-5
  assert not gradient[~anchors[3]].any()


@pytest.mark.parametrize("seed", [0, 1])
def test_center_loss_equals_loops(seed):
  anchors, (centers, _, _) = example(seed), memory(seed)
  allowed = np.ones((C, K), bool)
  allowed[1] = False
  (value, _), (gradient, into_centers) = evaluate(
    within_class.center_loss, anchors, centers, allowed
  )
  by_loop = lambda x: center_by_loop(x, *anchors[1:], centers, allowed)  # noqa: E731
  np.testing.assert_allclose(value, by_loop(anchors[0]), rtol=1e-10)
  rows = np.flatnonzero(anchors[3])[:3]
  numeric = differences(by_loop, anchors[0], rows)
  np.testing.assert_allclose(gradient[rows], numeric, atol=1e-8)
  assert not into_centers.any()


@pytest.mark.parametrize("chunk", [1, 7, 30, 128])
def test_queue_loss_equals_loops(chunk):
  anchors, (_, queue, slots) = example(), memory()
  (value, _), (gradient, into_queue) = evaluate(
    within_class.queue_loss, anchors, queue, slots, chunk=chunk
  )
  by_loop = lambda x: queue_by_loop(x, *anchors[1:], queue, slots)  # noqa: E731
  np.testing.assert_allclose(value, by_loop(anchors[0]), rtol=1e-10)
  x, label, cluster, mask = anchors
  left_out = mask & ~slots.any(2)[label, cluster]
  assert left_out.any()
  assert not gradient[left_out | ~mask].any()
  rows = np.flatnonzero(mask & ~left_out)[:3]
  numeric = differences(by_loop, x, rows)
  np.testing.assert_allclose(gradient[rows], numeric, atol=1e-8)
  assert not into_queue.any()


@pytest.mark.parametrize("what", ["batch", "center", "queue"])
def test_perfect_separation(what):
  """Cosine 1 with the positive, 0 with n negatives: softplus(log n - 10)."""
  basis = np.eye(E)
  label, cluster = np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2])
  x, mask = basis[[0, 0, 1, 1]], np.ones(4, bool)
  anchors = x, label, cluster, mask
  if what == "batch":
    negatives = 2
    (value, _), _ = evaluate(within_class.batch_loss, anchors)
  elif what == "center":
    centers = np.broadcast_to(basis[2], (C, K, E)).copy()
    centers[0, 0], centers[1, 2] = basis[0], basis[1]
    negatives = C * K - 1
    (value, _), _ = evaluate(
      within_class.center_loss, anchors, centers, np.ones((C, K), bool)
    )
  else:
    queue = np.broadcast_to(basis[2], (C, K, Q, E)).copy()
    queue[0, 0], queue[1, 2] = basis[0], basis[1]
    negatives = (C * K - 1) * Q
    (value, _), _ = evaluate(
      within_class.queue_loss, anchors, queue, np.ones((C, K, Q), bool)
    )
  expected = 0.05 * math.log1p(math.exp(math.log(negatives) - 10))
  np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_no_positives_is_zero_not_nan():
  """Every anchor alone in its sub-class."""
  x = units(np.random.default_rng(0), 4, E)
  anchors = x, np.arange(4) % C, np.arange(4), np.ones(4, bool)
  (value, some), (gradient,) = evaluate(within_class.batch_loss, anchors)
  assert value == 0 and not some.any()
  np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_no_anchors_and_no_memory():
  anchors = (*example()[:3], np.zeros(A, bool))
  centers, queue, slots = memory()
  for function, rest in (
    (within_class.batch_loss, ()),
    (within_class.center_loss, (centers, np.zeros((C, K), bool))),
    (within_class.queue_loss, (queue, slots)),
  ):
    (value, _), (gradient, *_) = evaluate(function, anchors, *rest)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
  (value, _), (gradient, _) = evaluate(
    within_class.queue_loss, example(), queue, np.zeros_like(slots)
  )
  assert value == 0 and not gradient.any()


def test_positives_without_a_negative():
  """One sub-class in the world: nothing to push away, so no loss."""
  x = units(np.random.default_rng(0), 4, E)
  anchors = x, np.zeros(4, int), np.zeros(4, int), np.ones(4, bool)
  (value, some), (gradient,) = evaluate(within_class.batch_loss, anchors)
  assert value == 0 and some.all()
  assert not gradient.any()


def test_itself_never_counts():
  """Doubling one anchor's own similarity changes only its pairs with others."""
  x, label, cluster, mask = example()
  longer = x.copy()
  longer[3] *= 3  # alone in its sub-class: a negative of the others only
  (value, _), _ = evaluate(
    within_class.batch_loss, (longer, label, cluster, mask)
  )
  expected, _ = batch_by_loop(longer, label, cluster, mask)
  np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_empty_slots_may_hold_anything():
  x, label, cluster, mask = example()
  centers, queue, slots = memory()
  noisy = np.where(mask[:, None], x, 7.0)
  for function, rest in (
    (within_class.batch_loss, ()),
    (within_class.center_loss, (centers, np.ones((C, K), bool))),
    (within_class.queue_loss, (queue, slots)),
  ):
    one, two = (
      evaluate(function, (y, label, cluster, mask), *rest) for y in (x, noisy)
    )
    assert one[0][0] == two[0][0]
    np.testing.assert_array_equal(one[1][0][mask], two[1][0][mask])


def test_masked_logsumexp():
  x = jnp.asarray([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
  mask = jnp.asarray([[True, False, True], [False] * 3])
  value, gradient = jax.value_and_grad(
    lambda x: within_class.masked_logsumexp(x, mask)[0]
  )(x)
  np.testing.assert_allclose(value, math.log(1 + math.exp(2)), rtol=1e-6)
  assert float(within_class.masked_logsumexp(x, mask)[1]) < -1e29
  p = 1 / (1 + math.exp(2))
  np.testing.assert_allclose(gradient[0], [p, 0, 1 - p], rtol=1e-5)
  dead = jax.grad(lambda x: within_class.masked_logsumexp(x, mask)[1])(x)
  np.testing.assert_array_equal(dead, np.zeros((2, 3)))
