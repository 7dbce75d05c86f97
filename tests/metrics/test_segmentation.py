"""Segmentation scores: published values, brute force, merging."""

import json
import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest

from wsegpc_jax.metrics import segmentation
from wsegpc_jax.types import DataError


def _brute_force(prediction, label, num_classes, ignore):
  """Scores by definition, point by point; None = nothing to divide by."""
  pairs = [
    (p, t)
    for p, t in zip(prediction.tolist(), label.tolist(), strict=True)
    if t != ignore
  ]
  iou, accuracy = [], []
  for c in range(num_classes):
    both = sum(p == c and t == c for p, t in pairs)
    either = sum(p == c or t == c for p, t in pairs)
    true = sum(t == c for _, t in pairs)
    iou.append(both / either if either else None)
    accuracy.append(both / true if true else None)
  right = sum(p == t for p, t in pairs)
  return iou, accuracy, right / len(pairs) if pairs else None, len(pairs)


def _same(value, expected):
  if expected is None:
    return math.isnan(value)
  return math.isclose(value, expected, rel_tol=1e-12)


def _mean(values):
  values = [v for v in values if v is not None]
  return sum(values) / len(values) if values else None


_LABELS = hypothesis.extra.numpy.arrays(
  np.uint8, st.integers(0, 40), elements=st.sampled_from([0, 1, 2, 4, 255])
)


@hypothesis.given(label=_LABELS, seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=60, deadline=None)
def test_scores_equal_brute_force(label, seed):
  rng = np.random.default_rng(seed)
  prediction = rng.integers(0, 5, label.shape).astype(np.uint8)
  matrix = segmentation.confusion_matrix(prediction, label, 5)
  assert matrix.dtype == np.int64
  result = segmentation.scores(matrix)
  iou, accuracy, allacc, points = _brute_force(prediction, label, 5, 255)
  assert all(map(_same, result.iou, iou))
  assert all(map(_same, result.accuracy, accuracy))
  assert _same(result.miou, _mean(iou))
  assert _same(result.macc, _mean(accuracy))
  assert _same(result.allacc, allacc)
  assert result.points == points
  assert result.present.tolist() == [v is not None for v in iou]
  zero = segmentation.scores(matrix, absent="zero")
  assert _same(zero.miou, sum(v or 0 for v in iou) / 5)
  assert _same(zero.macc, sum(v or 0 for v in accuracy) / 5)
  assert _same(zero.allacc, allacc or 0)


@hypothesis.given(seed=st.integers(0, 2**32 - 1), cuts=st.integers(1, 6))
@hypothesis.settings(max_examples=30, deadline=None)
def test_adding_matrices_is_concatenating_scenes(seed, cuts):
  rng = np.random.default_rng(seed)
  label = rng.choice([0, 1, 2, 3, 255], 50)
  prediction = rng.integers(0, 4, 50)
  at = np.sort(rng.integers(0, 51, cuts))  # some of the scenes are empty
  total = sum(
    segmentation.confusion_matrix(p, t, 4)
    for p, t in zip(np.split(prediction, at), np.split(label, at), strict=True)
  )
  whole = segmentation.confusion_matrix(prediction, label, 4)
  np.testing.assert_array_equal(total, whole)


def test_rows_are_truth():
  matrix = segmentation.confusion_matrix(np.array([1, 1]), np.array([0, 0]), 2)
  assert matrix.tolist() == [[0, 2], [0, 0]]


def test_small_integer_types_do_not_overflow():
  classes = np.arange(20, dtype=np.uint8)
  matrix = segmentation.confusion_matrix(classes, classes, 20)
  np.testing.assert_array_equal(matrix, np.eye(20))


def test_shifted_square_of_semantic_kitti():
  label = np.zeros((7, 7), np.int32)
  label[2:4, 2:4] = 1
  prediction = np.zeros((7, 7), np.int32)
  prediction[3:5, 3:5] = 1
  matrix = segmentation.confusion_matrix(prediction, label, 2)
  result = segmentation.scores(matrix)
  assert result.iou[1] == pytest.approx(1 / 7)
  assert result.iou[0] == pytest.approx(42 / 48)
  assert result.allacc == pytest.approx(43 / 49)


def test_matrices_of_torch_points3d():
  result = segmentation.scores(np.array([[4, 1], [2, 10]]))
  np.testing.assert_allclose(result.iou, [4 / 7, 10 / 13])
  assert result.miou == pytest.approx((4 / 7 + 10 / 13) / 2)
  assert result.macc == pytest.approx((4 / 5 + 10 / 12) / 2)
  assert result.allacc == pytest.approx(14 / 17)
  # A class that occurs nowhere is left out of the mean.
  missing = segmentation.scores(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))
  assert missing.miou == pytest.approx(0.5)
  assert missing.present.tolist() == [True, True, False]


def test_ignored_class_of_mmdetection3d():
  # 23 points; class 4 is ignored where true, and wrong where predicted.
  # fmt: off
  prediction = np.array([
    0, 0, 1, 0, 0, 2, 1, 3, 1, 2, 1, 0, 2, 2, 2, 2, 1, 3, 0, 3, 3, 4, 0])
  label = np.array([
    0, 0, 0, 4, 0, 0, 1, 1, 1, 4, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4])
  # fmt: on
  matrix = segmentation.confusion_matrix(prediction, label, 5, ignore_label=4)
  result = segmentation.scores(matrix)
  np.testing.assert_allclose(
    result.iou[:4], [0.428571429, 0.428571429, 0.6666667, 0.5], rtol=1e-7
  )
  assert result.iou[:4].mean() == pytest.approx(0.50595238)
  assert result.allacc == pytest.approx(0.65)
  assert result.macc == pytest.approx(0.65)
  assert result.points == 20


@pytest.mark.parametrize(
  ("prediction", "label", "words"),
  [
    ([0, 3], [0, 1], "prediction must be in 0..2.*got 3"),
    ([0, -1], [0, 1], "prediction.*got -1"),
    ([0, 255], [0, 1], "prediction.*got 255"),
    ([0, 1], [0, 3], "label must be in 0..2.*got 3"),
    ([0, 1], [0, -100], "label.*got -100"),
    ([0, 1], [0], r"\[2\] and \[1\]"),
    ([0.0, 1.0], [0, 1], "prediction must hold integers"),
    ([0, 1], [True, False], "label must hold integers"),
  ],
)
def test_bad_points_are_refused(prediction, label, words):
  with pytest.raises(DataError, match=words):
    segmentation.confusion_matrix(np.array(prediction), np.array(label), 3)


def test_prediction_of_an_ignored_point_may_be_anything():
  matrix = segmentation.confusion_matrix(
    np.array([255, 7, 1]), np.array([255, 255, 1]), 2
  )
  assert matrix.tolist() == [[0, 0], [0, 1]]


def test_bad_matrices_are_refused():
  for matrix in (np.ones((2, 3), int), np.ones(4, int)):
    with pytest.raises(ValueError, match="square"):
      segmentation.scores(matrix)
  for matrix in (np.ones((2, 2)), -np.ones((2, 2), int)):
    with pytest.raises(ValueError, match="counts"):
      segmentation.scores(matrix)
  with pytest.raises(ValueError, match="skip"):
    segmentation.scores(np.ones((2, 2), int), absent="one")


def test_table_shows_each_class_and_the_means():
  result = segmentation.scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]]))
  rows = {
    line.rsplit(maxsplit=2)[0]: line.split()[-2:]
    for line in segmentation.format_table(
      result, ["wall", "shower curtain", "bed"]
    ).splitlines()
    if not line.startswith("-")
  }
  assert rows["wall"] == ["75.00", "75.00"]
  # Predicted but never true: an IoU, no accuracy.
  assert rows["shower curtain"] == ["0.00", "-"]
  assert rows["bed"] == ["100.00", "100.00"]
  assert rows["mean"] == ["58.33", "87.50"]
  assert rows["all"] == ["points", "87.50"]


def test_json_is_valid_and_complete():
  result = segmentation.scores(np.array([[3, 0], [0, 0]]))
  value = segmentation.to_json(
    result, ["wall", "bed"], protocol="val", step=np.int64(7), worst=math.nan
  )
  value = json.loads(json.dumps(value, allow_nan=False))
  assert value["iou"] == {"wall": 1.0, "bed": None}
  assert value["accuracy"] == {"wall": 1.0, "bed": None}
  assert value["present"] == {"wall": True, "bed": False}
  assert (value["miou"], value["points"], value["protocol"]) == (1, 3, "val")
  assert (value["step"], value["worst"]) == (7, None)
  empty = segmentation.scores(np.zeros((2, 2), int))
  value = segmentation.to_json(empty, ["wall", "bed"], protocol="val")
  assert (value["miou"], value["macc"], value["allacc"]) == (None,) * 3


def test_names_must_fit():
  result = segmentation.scores(np.eye(2, dtype=int))
  with pytest.raises(ValueError, match="3 class names for 2"):
    segmentation.format_table(result, ["a", "b", "c"])
  with pytest.raises(ValueError, match="1 class names for 2"):
    segmentation.to_json(result, ["a"], protocol="val")
  with pytest.raises(ValueError, match="differ"):
    segmentation.to_json(result, ["a", "a"], protocol="val")
  with pytest.raises(ValueError, match="'miou' is a score"):
    segmentation.to_json(result, ["a", "b"], protocol="val", miou=1)
