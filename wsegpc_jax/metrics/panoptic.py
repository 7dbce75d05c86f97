"""Panoptic quality from counts of matched segments.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019, with the rules of
SemanticKITTI's benchmark: points whose true class is ignored do not count, and
a segment that is not matched is an error only if it is large enough. Counts of
scans add up. Dimension letters: N points, K classes.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from wsegpc_jax.types import IGNORE_LABEL, DataError

MIN_POINTS = 50  # of a segment that is an error if it is not matched


@dataclasses.dataclass(frozen=True)
class PanopticCounts:
  """Matches of all scans so far, by class.

  Attributes:
    iou: float64 [K], sum of the IoU of matched segments.
    matched: int64 [K], pairs of segments with an IoU above 1/2.
    false: int64 [K], predicted segments without a match.
    missed: int64 [K], true segments without a match.
  """

  iou: np.ndarray
  matched: np.ndarray
  false: np.ndarray
  missed: np.ndarray

  def __add__(self, other: "PanopticCounts") -> "PanopticCounts":
    return PanopticCounts(
      self.iou + other.iou,
      self.matched + other.matched,
      self.false + other.false,
      self.missed + other.missed,
    )


@dataclasses.dataclass(frozen=True)
class PanopticScores:
  """Scores, as fractions; NaN where a class has no segments.

  Attributes:
    pq: float64 [K], panoptic quality, sq * rq.
    sq: float64 [K], segmentation quality, mean IoU of the matches.
    rq: float64 [K], recognition quality, F1 of the matches.
    mean_pq, mean_sq, mean_rq: means over the classes.
  """

  pq: np.ndarray
  sq: np.ndarray
  rq: np.ndarray
  mean_pq: float
  mean_sq: float
  mean_rq: float


def match_segments(
  prediction: np.ndarray,
  predicted_instance: np.ndarray,
  label: np.ndarray,
  instance: np.ndarray,
  num_classes: int,
  *,
  min_points: int = MIN_POINTS,
) -> PanopticCounts:
  """Counts of one scan.

  A segment is the points of one class with one instance number; all points of
  a class without instances have one number, such as 0.

  Args:
    prediction: int [N] in 0..K-1, IGNORE_LABEL = none.
    predicted_instance: int [N], not negative.
    label: int [N] in 0..K-1, IGNORE_LABEL = not scored.
    instance: int [N], not negative.
    num_classes: K.
    min_points: a smaller segment without a match is no error.

  Raises:
    DataError: shapes differ, or values are out of range.
  """
  arrays = {
    "prediction": prediction,
    "predicted_instance": predicted_instance,
    "label": label,
    "instance": instance,
  }
  arrays = {name: np.asarray(a) for name, a in arrays.items()}
  for name, a in arrays.items():
    if a.ndim != 1 or a.shape != arrays["label"].shape:
      raise DataError(f"{name} has shape {a.shape}, expected that of label")
    if a.dtype.kind not in "iu" or (a.size and a.min() < 0):
      raise DataError(f"{name}: expected integers that are not negative")
    if name in ("prediction", "label"):
      bad = a[(a >= num_classes) & (a != IGNORE_LABEL)]
      if bad.size:
        raise DataError(
          f"{name} has {bad[0]}, expected 0..{num_classes - 1} or "
          f"{IGNORE_LABEL}"
        )
  scored = arrays["label"] != IGNORE_LABEL
  guess, guess_id, truth, truth_id = (
    a[scored].astype(np.int64) for a in arrays.values()
  )
  guess_class, guess_size, guess_row = _segments(guess, guess_id)
  true_class, true_size, true_row = _segments(truth, truth_id)
  pair, shared = np.unique(
    true_row * len(guess_class) + guess_row, return_counts=True
  )
  t, g = np.divmod(pair, max(len(guess_class), 1))
  iou = shared / (true_size[t] + guess_size[g] - shared)
  # Above one half, a segment has one match at most.
  found = (true_class[t] == guess_class[g]) & (iou > 0.5)
  t, g, iou = t[found], g[found], iou[found]

  def unmatched(classes, sizes, rows):
    wrong = (sizes >= min_points) & (classes != IGNORE_LABEL)
    wrong[rows] = False
    return np.bincount(classes[wrong], minlength=num_classes)

  return PanopticCounts(
    iou=np.bincount(true_class[t], iou, minlength=num_classes),
    matched=np.bincount(true_class[t], minlength=num_classes),
    false=unmatched(guess_class, guess_size, g),
    missed=unmatched(true_class, true_size, t),
  )


def scores(
  counts: PanopticCounts, *, absent: Literal["skip", "zero"] = "skip"
) -> PanopticScores:
  """Scores of counts.

  Args:
    counts: summed over the split.
    absent: what the scores of a class without segments are: "skip" makes them
      NaN and leaves them out of the means; "zero" makes them 0 and counts
      them, as SemanticKITTI's benchmark does.

  Raises:
    ValueError: an unknown `absent`.
  """
  if absent not in ("skip", "zero"):
    raise ValueError(f'absent must be "skip" or "zero", got {absent!r}')
  fill = math.nan if absent == "skip" else 0.0
  either = counts.matched + (counts.false + counts.missed) / 2
  sq = np.divide(
    counts.iou,
    counts.matched,
    out=np.where(either > 0, 0.0, fill),
    where=counts.matched > 0,
  )
  rq = np.divide(
    counts.matched,
    either,
    out=np.full(either.shape, fill),
    where=either > 0,
  )

  def mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else fill

  pq = sq * rq
  return PanopticScores(pq, sq, rq, mean(pq), mean(sq), mean(rq))


def _segments(label, instance):
  """Class and size of each segment, and the segment of each point."""
  pairs = np.stack([label, instance], 1)
  segments, row, size = np.unique(
    pairs, axis=0, return_inverse=True, return_counts=True
  )
  return segments[:, 0], size, row.reshape(-1)
