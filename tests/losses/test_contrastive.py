"""InfoNCE against a loop, hand-computed cases and finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.losses import contrastive

COUNT = np.array([4, 6, 0, 1], np.int32)
_NCE = jax.jit(jax.value_and_grad(contrastive.info_nce_sum, argnums=(0, 1)))


def nce(query, key, count=COUNT, temperature=0.07):
  """Value and gradients in float64; one shape, so one program."""
  with jax.enable_x64(True):
    value, gradients = _NCE(
      jnp.asarray(query, jnp.float64),
      jnp.asarray(key, jnp.float64),
      jnp.asarray(count, jnp.int32),
      temperature=temperature,
    )
    return float(value), *map(np.asarray, gradients)


def info_nce_by_loop(query, key, count, temperature):
  """Mean over pairs of -log softmax at the diagonal, summed over scenes."""
  total = 0.0
  for q, k, n in zip(query, key, count, strict=True):
    for i in range(n):
      similar = []
      for j in range(n):
        cosine = q[i] @ k[j] / (np.linalg.norm(q[i]) * np.linalg.norm(k[j]))
        similar.append(math.exp(cosine / temperature))
      total -= math.log(similar[i] / sum(similar)) / n
  return total


@pytest.fixture
def pairs():
  """Query and key [4, 6, 3] with lengths far from one."""
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 4, 6, 3))
  return query * rng.uniform(0.1, 9, (4, 6, 1)), key + 0.5 * query


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.07])
def test_equals_a_loop(pairs, temperature):
  value, *_ = nce(*pairs, temperature=temperature)
  expected = info_nce_by_loop(*pairs, COUNT, temperature)
  np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_temperature_is_007_by_default(pairs):
  value = contrastive.info_nce_sum(*map(jnp.asarray, pairs), COUNT)
  expected = info_nce_by_loop(*pairs, COUNT, 0.07)
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_orthogonal_pairs():
  # Cosines are 1 on the diagonal and 0 elsewhere, whatever the lengths.
  query, key = np.zeros((2, 4, 6, 3))
  query[2, :3], key[2, :3] = 5 * np.eye(3), 0.2 * np.eye(3)
  value, *_ = nce(query, key, [0, 0, 3, 0], temperature=0.5)
  np.testing.assert_allclose(value, math.log(1 + 2 * math.exp(-2)), rtol=1e-9)


def test_equal_keys_tell_nothing(pairs):
  key = np.broadcast_to(pairs[1][:, :1], pairs[1].shape)
  value, *_ = nce(pairs[0], key, [4, 6, 5, 2])
  np.testing.assert_allclose(value, math.log(4 * 6 * 5 * 2), rtol=1e-9)


def test_summed_over_scenes_not_averaged(pairs):
  query, key = (np.repeat(a[:1], 4, axis=0) for a in pairs)
  once, *_ = nce(query, key, [6, 0, 0, 0])
  thrice, *_ = nce(query, key, [6, 0, 6, 6])
  np.testing.assert_allclose(thrice, 3 * once, rtol=1e-9)


def test_gradient_of_the_query(pairs):
  query, key = pairs
  _, gradient, _ = nce(query, key, temperature=0.2)
  numeric, step = np.zeros_like(query), 1e-6
  for index in np.ndindex(query.shape):
    there = []
    for sign in (1, -1):
      moved = query.copy()
      moved[index] += sign * step
      there.append(nce(moved, key, temperature=0.2)[0])
    numeric[index] = (there[0] - there[1]) / (2 * step)
  np.testing.assert_allclose(gradient, numeric, atol=1e-7)
  assert np.abs(gradient[0]).max() > 1e-3
  for scene, n in enumerate(COUNT):
    assert not gradient[scene, n:].any()


def test_no_gradient_into_the_key(pairs):
  *_, gradient = nce(*pairs)
  assert not gradient.any()


def test_padding_does_not_matter(pairs):
  query, key = (a.copy() for a in pairs)
  before = nce(query, key)
  for scene, n in enumerate(COUNT):
    query[scene, n:] = 1e6
    key[scene, n:] = 0
  for a, b in zip(before, nce(query, key), strict=True):
    np.testing.assert_array_equal(a, b)


def test_no_pairs_at_all(pairs):
  value, gradient, _ = nce(*pairs, np.zeros(4))
  assert value == 0
  assert not gradient.any()


def test_a_feature_of_length_zero_is_finite(pairs):
  query, key = (a.copy() for a in pairs)
  query[1, 2] = key[1, 3] = 0
  value, gradient, _ = nce(query, key)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_l2_normalize():
  # Below 1e-12 a vector is only scaled, not brought to length one.
  vectors = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e-14, 4e-14]])
  unit = jax.jit(contrastive.l2_normalize)(vectors)
  expected = [[0.6, 0.8], [0, 0], [3e-2, 4e-2]]
  np.testing.assert_allclose(unit, expected, rtol=1e-5)


def test_a_dead_row_gets_no_gradient():
  vectors = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e-14, 4e-14]])
  gradient = jax.grad(lambda x: contrastive.l2_normalize(x)[:, 0].sum())(
    vectors
  )
  # d(x / |x|) / dx = (1 - 0.6^2) / 5, d(x / |x|) / dy = -0.6 * 0.8 / 5.
  expected = [[0.128, -0.096], [0, 0], [0, 0]]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)
