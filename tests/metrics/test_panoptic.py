"""Panoptic quality: the benchmark's worked example, brute force, merging."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from wsegpc_jax.metrics import panoptic, segmentation
from wsegpc_jax.types import DataError


def worked_example():
  """Grass, sky, persons and a dog, as in the panoptic paper's figure.

  Runs of (predicted class, its instance, true class, its instance, points).
  """
  none, grass, sky, person, dog = 255, 0, 1, 2, 3
  runs = [
    (none, 0, none, 0, 50),
    (grass, 0, grass, 0, 40),
    (sky, 0, grass, 0, 10),
    (sky, 0, sky, 0, 40),
    (grass, 0, sky, 0, 10),
    (person, 35, dog, 22, 50),
    (person, 8, person, 33, 150),
    (person, 8, person, 42, 50),
    (person, 95, person, 11, 100),
  ]
  columns = np.array([r[:4] for r in runs], np.int64)
  return np.repeat(columns, [r[4] for r in runs], axis=0).T


def test_worked_example():
  prediction, predicted_instance, label, instance = worked_example()
  counts = panoptic.match_segments(
    prediction, predicted_instance, label, instance, 4, min_points=1
  )
  assert counts.matched.tolist() == [1, 1, 2, 0]
  assert counts.false.tolist() == [0, 0, 1, 0]
  assert counts.missed.tolist() == [0, 0, 1, 1]
  result = panoptic.scores(counts, absent="zero")
  assert result.mean_pq == pytest.approx(0.47916666666666663, abs=1e-15)
  assert result.mean_sq == pytest.approx(0.5520833333333333, abs=1e-15)
  assert result.mean_rq == pytest.approx(0.6666666666666666, abs=1e-15)
  np.testing.assert_allclose(result.pq, [2 / 3, 2 / 3, 7 / 12, 0], rtol=1e-15)
  np.testing.assert_allclose(result.sq, [2 / 3, 2 / 3, 7 / 8, 0], rtol=1e-15)
  np.testing.assert_allclose(result.rq, [1, 1, 2 / 3, 0], rtol=1e-15)
  matrix = segmentation.confusion_matrix(prediction, label, 4)
  iou = segmentation.scores(matrix, absent="zero")
  assert iou.miou == pytest.approx(0.5476190476190476, abs=1e-15)
  # All four classes have segments.
  assert panoptic.scores(counts).mean_pq == result.mean_pq


def brute_force(prediction, predicted_instance, label, instance, k, least):
  """Sets of points, compared pair by pair."""
  rows = [i for i in range(len(label)) if label[i] != 255]
  iou, counts = [0.0] * k, np.zeros((3, k), np.int64)
  for c in range(k):
    guesses, truths = {}, {}
    for i in rows:
      if prediction[i] == c:
        guesses.setdefault(predicted_instance[i], set()).add(i)
      if label[i] == c:
        truths.setdefault(instance[i], set()).add(i)
    hits, met = set(), set()
    for g, guess in guesses.items():
      for t, truth in truths.items():
        value = len(guess & truth) / len(guess | truth)
        if value > 0.5:
          iou[c] += value
          counts[0, c] += 1
          hits.add(g)
          met.add(t)
    counts[1, c] = sum(
      len(s) >= least for g, s in guesses.items() if g not in hits
    )
    counts[2, c] = sum(
      len(s) >= least for t, s in truths.items() if t not in met
    )
  return iou, counts


@hypothesis.given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 60))
@hypothesis.settings(max_examples=80)
def test_equals_brute_force(seed, n):
  rng = np.random.default_rng(seed)
  label = np.array([0, 1, 2, 255])[rng.integers(0, 4, n)]
  instance = rng.integers(0, 3, n) * 40000
  # Mostly right, so that there are matches.
  wrong = rng.random(n) < 0.3
  prediction = np.where(wrong, rng.permutation(label), label)
  other = np.where(wrong, rng.permutation(instance), instance + 1)
  found = panoptic.match_segments(
    prediction, other, label, instance, 3, min_points=3
  )
  iou, counts = brute_force(prediction, other, label, instance, 3, 3)
  np.testing.assert_allclose(found.iou, iou, rtol=1e-12)
  np.testing.assert_array_equal(
    [found.matched, found.false, found.missed], counts
  )


def test_scans_add_up_and_small_segments_do_not_count():
  prediction, other, label, instance = worked_example()
  one = panoptic.match_segments(prediction, other, label, instance, 5)
  two = one + one
  np.testing.assert_array_equal(two.matched, 2 * one.matched)
  result, double = panoptic.scores(one), panoptic.scores(two)
  np.testing.assert_allclose(double.pq, result.pq)
  assert (
    np.isnan(result.pq[4]) and panoptic.scores(one, absent="zero").pq[4] == 0
  )
  # The dog has 50 points, the person that is missed 50, too.
  small = panoptic.match_segments(
    prediction, other, label, instance, 5, min_points=51
  )
  assert small.missed.sum() == small.false.sum() == 0
  assert one.missed.tolist() == [0, 0, 1, 1, 0]


def test_no_points_and_a_class_predicted_nowhere():
  none = np.zeros(0, np.int64)
  counts = panoptic.match_segments(none, none, none, none, 2)
  assert np.isnan(panoptic.scores(counts).mean_pq)
  assert panoptic.scores(counts, absent="zero").mean_pq == 0
  label = np.zeros(60, np.int64)
  counts = panoptic.match_segments(np.full(60, 255), label, label, label, 2)
  assert counts.missed.tolist() == [1, 0] and counts.false.tolist() == [0, 0]
  assert panoptic.scores(counts).pq[0] == 0


@pytest.mark.parametrize(
  "change,message",
  [
    ({"prediction": np.full(4, 3)}, "prediction has 3, expected 0..2"),
    ({"label": np.full(4, -1)}, "label: expected integers that are not neg"),
    ({"instance": np.zeros(4)}, "instance: expected integers"),
    ({"instance": np.zeros(3, int)}, "instance has shape .3,., expected"),
  ],
)
def test_bad_arrays(change, message):
  names = ("prediction", "predicted_instance", "label", "instance")
  arrays = {name: np.zeros(4, np.int64) for name in names} | change
  with pytest.raises(DataError, match=message):
    panoptic.match_segments(*arrays.values(), 3)
  with pytest.raises(ValueError, match="absent must be"):
    panoptic.scores(None, absent="one")
