"""Sinkhorn in the log domain against plain float64, and planted clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.methods import sinkhorn

SHARP = 25.0


def units(rng, *shape):
  x = rng.standard_normal(shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plan(kernel, anchors=None, clusters=None, *, x64=True, **options):
  n, k = kernel.shape
  anchors = np.ones(n, bool) if anchors is None else anchors
  clusters = np.ones(k, bool) if clusters is None else clusters
  dtype = np.float64 if x64 else np.float32
  with jax.enable_x64(x64):
    run = jax.jit(lambda *a: sinkhorn.log_plan(*a, **options))
    out = run(jnp.asarray(kernel, dtype), anchors, clusters)
    return np.exp(np.asarray(out))


def by_powers(cosine, iterations=None):
  """The released procedure: probabilities to the power of 25, in float64.

  Returns the plan [n, k] and how many iterations its stop rule took.
  """
  n, k = cosine.shape
  p = np.exp(cosine) / np.exp(cosine).sum(1, keepdims=True)
  kernel = (p**SHARP).T
  c = np.full(n, 1 / n)
  i, error = 0, np.inf
  while error > 0.1 if iterations is None else i < iterations:
    r = (1 / k) / (kernel @ c)
    new = (1 / n) / (r @ kernel)
    if i % 10 == 0:
      error = np.nansum(np.abs(c / new - 1))
    c, i = new, i + 1
  return (r[:, None] * kernel * c).T, i


def log_kernel(cosine):
  logits = cosine - cosine.max(1, keepdims=True)
  return SHARP * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def clustered(n, k, seed=0):
  """Few blobs, so that balance needs many iterations."""
  rng = np.random.default_rng(seed)
  blobs = np.abs(units(rng, 4, 16))
  x = np.abs(blobs[rng.integers(0, 4, n)] + 0.05 * rng.standard_normal((n, 16)))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x @ units(rng, k, 16).T


@pytest.mark.parametrize("n,k", [(2, 40), (5, 40), (100, 40), (300, 7), (3, 1)])
@pytest.mark.parametrize("x64", [True, False])
def test_equals_the_released_procedure(n, k, x64):
  rng = np.random.default_rng(n)
  cosine = units(rng, n, 16) @ units(rng, k, 16).T
  expected, _ = by_powers(cosine)
  ours = plan(log_kernel(cosine), x64=x64)
  np.testing.assert_allclose(ours * n * k, expected * n * k, atol=1e-3)
  np.testing.assert_allclose(ours, expected, atol=1e-12 if x64 else 1e-5)


def test_stop_rule_is_kept_where_many_iterations_are_needed():
  cosine = clustered(60, 40)
  expected, iterations = by_powers(cosine)
  assert iterations > 11 and iterations % 10 == 1
  ours = plan(log_kernel(cosine))
  np.testing.assert_allclose(ours, expected, atol=1e-12)
  fixed = plan(log_kernel(cosine), max_iterations=11, tolerance=0)
  assert np.abs(fixed - expected).max() > 1e-5
  bounded, _ = by_powers(cosine, iterations=11)
  np.testing.assert_allclose(fixed, bounded, atol=1e-12)


@pytest.mark.parametrize("x64", [True, False])
def test_marginals_and_masks(x64):
  rng = np.random.default_rng(0)
  kernel = SHARP * units(rng, 50, 8) @ units(rng, 12, 8).T
  anchors, clusters = np.arange(50) % 3 > 0, np.arange(12) < 10
  q = plan(kernel, anchors, clusters, x64=x64, max_iterations=2000, tolerance=0)
  np.testing.assert_allclose(q[anchors].sum(1), 1 / anchors.sum(), rtol=1e-3)
  np.testing.assert_allclose(q[:, clusters].sum(0), 1 / 10, rtol=1e-3)
  assert not q[~anchors].any() and not q[:, ~clusters].any()


def test_masked_entries_may_hold_anything():
  rng = np.random.default_rng(0)
  kernel = SHARP * units(rng, 20, 8) @ units(rng, 6, 8).T
  anchors, clusters = np.arange(20) < 13, np.arange(6) < 4
  q = plan(kernel, anchors, clusters)
  noisy = np.where(anchors[:, None] & clusters, kernel, 1e4)
  np.testing.assert_array_equal(plan(noisy, anchors, clusters), q)
  alone = plan(kernel[:13, :4])
  np.testing.assert_allclose(q[:13, :4], alone, rtol=1e-10)


def test_order_and_scale():
  """Equivariant in both orders; converged, the softmax's divisor is nothing."""
  rng = np.random.default_rng(1)
  cosine = units(rng, 30, 8) @ units(rng, 6, 8).T
  rows, columns = rng.permutation(30), rng.permutation(6)
  kernel = log_kernel(cosine)
  np.testing.assert_allclose(
    plan(kernel[rows][:, columns]), plan(kernel)[rows][:, columns], rtol=1e-9
  )
  long = {"max_iterations": 3000, "tolerance": 0}
  np.testing.assert_allclose(
    plan(SHARP * cosine, **long), plan(kernel, **long), atol=1e-12
  )


def assign(cosine, anchors, clusters):
  run = jax.jit(sinkhorn.assign_clusters)
  return np.asarray(run(jnp.asarray(cosine, jnp.float32), anchors, clusters))


@pytest.mark.parametrize("copies", [1, 4])
def test_planted_clusters_are_found(copies):
  """m noisy copies of each centre: they come together, m to a cluster."""
  rng = np.random.default_rng(0)
  k = 10
  centers = units(rng, k, 32)
  truth = rng.permutation(np.repeat(np.arange(k), copies))
  x = centers[truth] + 0.03 * rng.standard_normal((len(truth), 32))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  label = assign(
    (x @ centers.T)[None], np.ones((1, len(truth)), bool), np.ones((1, k), bool)
  )[0]
  np.testing.assert_array_equal(label, truth)


def test_balance_outweighs_nearness():
  """All anchors are nearest to the first centre; half of them move away."""
  lean = np.linspace(0, 0.2, 8)
  cosine = np.stack([0.9 - lean, 0.3 + lean], 1)[None]
  label = assign(cosine, np.ones((1, 8), bool), np.ones((1, 2), bool))[0]
  np.testing.assert_array_equal(label, [0] * 4 + [1] * 4)


@pytest.mark.parametrize("number", [0, 1, 2, 12])
@pytest.mark.parametrize("few", [1, 3])
def test_a_class_uses_its_own_clusters_only(number, few):
  """Few or no anchors, few clusters: no NaN, and never one it does not have."""
  rng = np.random.default_rng(number)
  cosine = rng.uniform(-1, 1, (2, 12, 8)).astype(np.float32)
  anchors = np.stack([np.arange(12) < number, np.ones(12, bool)])
  clusters = np.stack([np.arange(8) < few, np.ones(8, bool)])
  label = assign(cosine, anchors, clusters)
  assert (label[0] < few).all() and (label >= 0).all()
  used = np.unique(label[0, :number])
  assert len(used) == min(number, few) or number == 2
  if number == 1:
    assert label[0, 0] == cosine[0, 0, :few].argmax()
  # A neighbouring class does not matter.
  alone = assign(cosine[1:], anchors[1:], clusters[1:])
  np.testing.assert_array_equal(label[1], alone[0])


def test_no_gradient():
  gradient = jax.grad(
    lambda x: (
      sinkhorn.assign_clusters(
        x, jnp.ones((1, 4), bool), jnp.ones((1, 3), bool)
      )
      .astype(jnp.float32)
      .sum()
      + x.sum()
    )
  )(jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 4, 3))))
  np.testing.assert_array_equal(gradient, np.ones((1, 4, 3)))
