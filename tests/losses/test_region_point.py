"""RPC's pseudo-labels against loops; its counters against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.losses import region_point


def as_integers(counters):
  high, low = np.asarray(counters).astype(object)
  return [int(h) * 2**30 + int(l) for h, l in zip(high, low, strict=True)]


def as_lanes(values):
  return np.array(
    [[v >> 30 for v in values], [v % 2**30 for v in values]], np.int32
  )


ADD_COUNTS = jax.jit(region_point.add_counts)
SELECT = jax.jit(region_point.select_pseudo_labels)
AVERAGE = jax.jit(region_point.region_average, static_argnames="num_regions")


class TestCounters:
  def test_start_at_zero(self):
    counters = region_point.empty_counters(3)
    assert counters.dtype == np.int32
    assert as_integers(counters) == [0, 0, 0]
    np.testing.assert_array_equal(region_point.class_ratios(counters), 0)

  @settings(max_examples=40, deadline=None)
  @given(
    st.lists(
      st.tuples(*2 * [st.integers(0, 2**30 - 1)]), min_size=1, max_size=12
    ),
    st.tuples(*2 * [st.integers(0, 2**59)]),
  )
  def test_exact_sums(self, steps, start):
    counters, expected = as_lanes(start), list(start)
    for counts in steps:
      counters = ADD_COUNTS(counters, jnp.array(counts, jnp.int32))
      expected = [a + b for a, b in zip(expected, counts, strict=True)]
    assert counters.dtype == jnp.int32
    assert (np.asarray(counters) >= 0).all()
    assert as_integers(counters) == expected

  def test_one_more_beyond_32_bits(self):
    # A float32 or an int32 would lose each of these.
    for value in (2**24, 2**30 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40):
      counters = ADD_COUNTS(as_lanes([value]), jnp.array([1], jnp.int32))
      assert as_integers(counters) == [value + 1]

  @settings(max_examples=40, deadline=None)
  @given(st.lists(st.integers(0, 2**50), min_size=3, max_size=3))
  def test_ratios(self, values):
    ratios = np.asarray(region_point.class_ratios(as_lanes(values)))
    most = max(max(values), 1)
    expected = [v / most for v in values]
    np.testing.assert_allclose(ratios, expected, rtol=1e-6)


class TestTagSoftmax:
  def test_equals_a_softmax_over_the_tagged_classes(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (20, 6))
    tags = rng.random((20, 6)) < 0.5
    tags[:, 2] |= ~tags.any(1)
    with jax.enable_x64(True):
      out = np.asarray(
        region_point.tag_softmax(jnp.asarray(logits), jnp.asarray(tags))
      )
    for row, present, found in zip(logits, tags, out, strict=True):
      weights = np.exp(row[present])
      np.testing.assert_allclose(
        found[present], weights / weights.sum(), rtol=1e-12
      )
      assert not found[~present].any()

  def test_absent_classes_get_nothing_however_large_their_logit(self):
    out = region_point.tag_softmax(
      jnp.array([[1000.0, -1000.0, 0.0]]), jnp.array([[False, True, False]])
    )
    np.testing.assert_array_equal(out, [[0, 1, 0]])

  def test_tags_broadcast_over_pixels(self):
    logits = jnp.zeros((2, 3, 4, 2))
    tags = jnp.array([[True, True], [False, True]])[:, None, None]
    out = region_point.tag_softmax(logits, tags)
    np.testing.assert_array_equal(out[0], 0.5)
    np.testing.assert_array_equal(out[1, ..., 1], 1)


def region_average_by_loop(probabilities, region, valid, num_regions):
  out = np.array(probabilities)
  for wanted in range(num_regions):
    members = [i for i, r in enumerate(region) if valid[i] and int(r) == wanted]
    for i in members:
      out[i] = np.mean([probabilities[j] for j in members], axis=0)
  return out


class TestRegionAverage:
  @pytest.mark.parametrize("num_regions", [1, 4, 8])
  def test_equals_a_loop(self, num_regions):
    rng = np.random.default_rng(num_regions)
    probabilities = rng.dirichlet(np.ones(3), 24).astype(np.float32)
    # Some below zero and some at num_regions: no region.
    region = rng.integers(-1, num_regions + 1, 24).astype(np.int32)
    valid = rng.random(24) < 0.8
    out = AVERAGE(
      jnp.asarray(probabilities),
      jnp.asarray(region),
      jnp.asarray(valid),
      num_regions=num_regions,
    )
    expected = region_average_by_loop(probabilities, region, valid, num_regions)
    np.testing.assert_allclose(
      np.asarray(out)[valid], expected[valid], rtol=1e-5, atol=1e-7
    )

  def test_elements_without_region_keep_their_own(self):
    probabilities = jnp.array([[1.0, 0.0], [0.2, 0.8], [0.6, 0.4], [0.0, 1.0]])
    out = AVERAGE(
      probabilities,
      jnp.array([0, 2, 0, -1]),
      jnp.ones(4, bool),
      num_regions=2,
    )
    np.testing.assert_allclose(
      out, [[0.8, 0.2], [0.2, 0.8], [0.8, 0.2], [0.0, 1.0]], rtol=1e-6
    )

  def test_padding_does_not_enter_a_mean(self):
    probabilities = jnp.array([[0.5, 0.5], [0.9, 0.1], [1e9, 1e9]])
    out = AVERAGE(
      probabilities,
      jnp.array([0, 0, 0]),
      jnp.array([True, True, False]),
      num_regions=1,
    )
    np.testing.assert_allclose(out[:2], [[0.7, 0.3]] * 2, rtol=1e-6)


class TestSelection:
  def test_equals_a_loop(self):
    rng = np.random.default_rng(3)
    k = 4
    probabilities = rng.dirichlet(np.full(k, 0.4), 200).astype(np.float32)
    valid = rng.random(200) < 0.8
    # Beyond int32, and one class that was never selected.
    selected_before = [5 * 2**31, 4 * 2**31, 2**31, 0]
    label, selected, counts = SELECT(
      jnp.asarray(probabilities),
      jnp.asarray(valid),
      as_lanes(selected_before),
      p_cutoff=0.8,
    )
    expected = [0] * k
    for i, row in enumerate(probabilities):
      best = max(range(k), key=lambda c: row[c])
      cutoff = 0.8 * selected_before[best] / max(selected_before)
      counts_here = bool(valid[i]) and row[best] >= cutoff
      expected[best] += counts_here
      assert label[i] == best
      assert selected[i] == counts_here
    np.testing.assert_array_equal(counts, expected)
    # The cutoffs tell the classes apart, or this would prove little.
    best = probabilities.argmax(1)
    share = [np.mean(selected[(best == c) & valid]) for c in range(k)]
    assert share[0] < share[2] <= share[3] == 1

  def test_everything_counts_at_the_start(self):
    rng = np.random.default_rng(4)
    probabilities = jnp.asarray(rng.dirichlet(np.ones(5), 50), jnp.float32)
    valid = jnp.arange(50) < 40
    _, selected, counts = SELECT(
      probabilities, valid, region_point.empty_counters(5)
    )
    np.testing.assert_array_equal(selected, valid)
    assert counts.sum() == 40

  def test_a_probability_at_the_cutoff_counts(self):
    below = np.nextafter(np.float32(0.5), np.float32(0))
    probabilities = jnp.array([[0.5, 0.25, 0.25], [below, 0.25, 0.25]])
    _, selected, _ = SELECT(
      probabilities, jnp.ones(2, bool), as_lanes([8, 3, 0]), p_cutoff=0.5
    )
    np.testing.assert_array_equal(selected, [True, False])

  def test_default_cutoff(self):
    probabilities = jnp.array([[0.79, 0.21], [0.81, 0.19]])
    _, selected, counts = SELECT(
      probabilities, jnp.ones(2, bool), as_lanes([9, 0])
    )
    np.testing.assert_array_equal(selected, [False, True])
    np.testing.assert_array_equal(counts, [1, 0])

  def test_two_steps_by_hand(self):
    probabilities = jnp.array([[0.9, 0.1], [0.7, 0.3], [0.35, 0.65]])
    counters = region_point.empty_counters(2)
    _, selected, counts = SELECT(probabilities, jnp.ones(3, bool), counters)
    np.testing.assert_array_equal(selected, [True, True, True])
    counters = region_point.add_counts(counters, counts)
    assert as_integers(counters) == [2, 1]
    # Cutoffs are now 0.8 and 0.4.
    _, selected, counts = SELECT(probabilities, jnp.ones(3, bool), counters)
    np.testing.assert_array_equal(selected, [True, False, True])
    assert as_integers(region_point.add_counts(counters, counts)) == [3, 2]
