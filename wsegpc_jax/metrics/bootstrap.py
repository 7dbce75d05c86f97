"""How sure a difference between two runs is: a paired bootstrap over scenes.

Scenes are drawn with replacement, the same for both runs, their confusion
matrices summed and the scores computed anew, as for a split. Intervals are
percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13): what would have come out with other scenes of the same kind.
They say nothing of other seeds of the training, and are too narrow for fewer
than about 20 scenes.

Dimension letters: S scenes, K classes, B draws.
"""

import dataclasses

import numpy as np

from wsegpc_jax.types import DataError

_CHUNK = 4096  # draws at a time


@dataclasses.dataclass(frozen=True)
class Difference:
  """Scores of run B minus those of run A, as fractions.

  Attributes:
    iou: float64 [K]; NaN where a class has no IoU in one of the runs.
    iou_low, iou_high: float64 [K], ends of the intervals.
    miou, miou_low, miou_high: the same of the mean over classes.
    better: share of the draws in which B has the higher mIoU; ties count half.
    draws: B.
    confidence: of the intervals.
  """

  iou: np.ndarray
  iou_low: np.ndarray
  iou_high: np.ndarray
  miou: float
  miou_low: float
  miou_high: float
  better: float
  draws: int
  confidence: float


def resampled_iou(confusion: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """IoU of the classes when scene s occurs counts[b, s] times.

  Args:
    confusion: int [S, K, K] or [S, K, K + 1], as in `SceneMatrices`.
    counts: int [B, S].

  Returns:
    float64 [B, K]; NaN where a class is neither true nor predicted.
  """
  right = np.diagonal(confusion, axis1=1, axis2=2)
  k = confusion.shape[1]
  either = confusion.sum(2) + confusion.sum(1)[:, :k] - right
  # Exact: whole numbers below 2^53.
  counts = counts.astype(np.float64)
  part, whole = counts @ right, counts @ either
  nothing = np.full(part.shape, np.nan)
  return np.divide(part, whole, out=nothing, where=whole > 0)


def mean_iou(iou: np.ndarray) -> np.ndarray:
  """Mean over the classes that have an IoU: [B, K] to [B]; NaN without any."""
  there = ~np.isnan(iou)
  number = there.sum(1)
  total = np.where(there, iou, 0).sum(1)
  return np.divide(
    total, number, out=np.full(len(iou), np.nan), where=number > 0
  )


def compare(
  confusion_a: np.ndarray,
  confusion_b: np.ndarray,
  *,
  draws: int = 10_000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Difference:
  """Compares two runs on the same scenes.

  Args:
    confusion_a: int [S, K, K] or [S, K, K + 1], as in `SceneMatrices`.
    confusion_b: of the same scenes in the same order.
    draws: how often scenes are drawn.
    confidence: of the intervals, in (0, 1).
    seed: the same gives the same intervals.

  Raises:
    DataError: no scenes, or other numbers of scenes or classes.
    ValueError: draws or confidence cannot be.
  """
  if confusion_a.shape[:2] != confusion_b.shape[:2] or not len(confusion_a):
    raise DataError(
      "expected confusion matrices of the same scenes and classes, got "
      f"{list(confusion_a.shape)} and {list(confusion_b.shape)}"
    )
  if draws < 1 or not 0 < confidence < 1:
    raise ValueError(f"cannot draw {draws} times for {confidence} confidence")
  number = len(confusion_a)

  def difference(counts):
    a, b = (resampled_iou(c, counts) for c in (confusion_a, confusion_b))
    return b - a, mean_iou(b) - mean_iou(a)

  iou, miou = difference(np.ones((1, number), int))
  rng = np.random.default_rng(seed)
  drawn = []
  for start in range(0, draws, _CHUNK):
    size = min(_CHUNK, draws - start)
    even = np.full(number, 1 / number)
    drawn.append(difference(rng.multinomial(number, even, size)))
  drawn_iou, drawn_miou = (np.concatenate(d) for d in zip(*drawn, strict=True))
  iou_low, iou_high = np.array(
    [_interval(column, confidence) for column in drawn_iou.T]
  ).T
  miou_low, miou_high = _interval(drawn_miou, confidence)
  better = (drawn_miou > 0).mean() + (drawn_miou == 0).mean() / 2
  return Difference(
    iou=iou[0],
    iou_low=iou_low,
    iou_high=iou_high,
    miou=float(miou[0]),
    miou_low=miou_low,
    miou_high=miou_high,
    better=float(better),
    draws=draws,
    confidence=confidence,
  )


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
  """Percentiles of the draws in which there is a difference."""
  values = values[~np.isnan(values)]
  if not len(values):
    return np.nan, np.nan
  tail = (1 - confidence) / 2
  low, high = np.quantile(values, (tail, 1 - tail))
  return float(low), float(high)
