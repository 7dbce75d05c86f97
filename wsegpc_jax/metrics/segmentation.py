"""Semantic segmentation scores from a confusion matrix.

Matrices of scenes add up and are divided once, at the end, so that neither
padding nor the grouping into batches can bias a score. Dimension letters: N
points, K classes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from wsegpc_jax.types import IGNORE_LABEL, DataError


def confusion_matrix(
  prediction: np.ndarray,
  label: np.ndarray,
  num_classes: int,
  *,
  ignore_label: int = IGNORE_LABEL,
) -> np.ndarray:
  """Counts points by true and predicted class.

  Args:
    prediction: int [N] (or any shape) in 0..K-1. Where the label is
      `ignore_label` it may be anything.
    label: int, the shape of `prediction`, in 0..K-1 or `ignore_label`.
    num_classes: K.
    ignore_label: label of points that are not scored. It may be a class, which
      is then never true but can be predicted, wrongly.

  Returns:
    int64 [K, K], rows = truth, columns = prediction. Matrices of several
    scenes add up to the matrix of the split.

  Raises:
    DataError: shapes differ, values are not integers, or are out of range.
  """
  prediction, label = np.asarray(prediction), np.asarray(label)
  if prediction.shape != label.shape:
    raise DataError(
      "prediction and label must have one shape, got "
      f"{list(prediction.shape)} and {list(label.shape)}"
    )
  for name, values in (("prediction", prediction), ("label", label)):
    if values.dtype.kind not in "iu":
      raise DataError(f"{name} must hold integers, got {values.dtype}")
  scored = label != ignore_label
  # int64 before the product below: K * K does not fit the usual uint8 labels.
  truth = label[scored].astype(np.int64)
  guess = prediction[scored].astype(np.int64)
  for name, values in (("prediction", guess), ("label", truth)):
    bad = values[(values < 0) | (values >= num_classes)]
    if bad.size:
      raise DataError(
        f"{name} must be in 0..{num_classes - 1} where the label is not "
        f"{ignore_label}, got {bad[0]} ({bad.size} such points)"
      )
  counts = np.bincount(truth * num_classes + guess, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class SegmentationScores:
  """Scores of a whole split, as fractions.

  Attributes:
    iou: float64 [K], points both true and predicted over points true or
      predicted; NaN where a class is neither.
    accuracy: float64 [K], points both true and predicted over points true; NaN
      where a class is never true.
    miou: mean of `iou` over the classes that have one.
    macc: mean of `accuracy` over the classes that have one.
    allacc: share of all scored points that are right; NaN without points.
    points: number of scored points.
    present: bool [K], the classes that are true or predicted somewhere.
  """

  iou: np.ndarray
  accuracy: np.ndarray
  miou: float
  macc: float
  allacc: float
  points: int
  present: np.ndarray


def scores(
  confusion: np.ndarray,
  *,
  absent: Literal["skip", "zero"] = "skip",
  missed: np.ndarray | None = None,
) -> SegmentationScores:
  """Scores of a confusion matrix.

  Args:
    confusion: int [K, K], rows = truth, summed over the split.
    absent: what a score with nothing to divide by is: "skip" makes it NaN and
      leaves it out of the means; "zero" makes it 0 and counts it, as the
      reference implementation of WSegPC does.
    missed: int [K], points of each class that were predicted to be of none:
      wrong, but of no other class. None = there are no such points.

  Raises:
    ValueError: not a square matrix of counts, or an unknown `absent`.
  """
  confusion = np.asarray(confusion)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(
      f"a confusion matrix must be square, got {list(confusion.shape)}"
    )
  if confusion.dtype.kind not in "iu" or (confusion < 0).any():
    raise ValueError("a confusion matrix must hold counts, integers from 0")
  if absent not in ("skip", "zero"):
    raise ValueError(f'absent must be "skip" or "zero", got {absent!r}')
  if missed is None:
    missed = np.zeros(len(confusion), np.int64)
  fill = math.nan if absent == "skip" else 0.0
  right = np.diagonal(confusion).astype(np.float64)
  true = confusion.sum(1) + missed
  either = true + confusion.sum(0) - np.diagonal(confusion)
  points = int(true.sum())
  iou = _ratio(right, either, fill)
  accuracy = _ratio(right, true, fill)
  return SegmentationScores(
    iou=iou,
    accuracy=accuracy,
    miou=_mean(iou, fill),
    macc=_mean(accuracy, fill),
    allacc=float(right.sum() / points) if points else fill,
    points=points,
    present=either > 0,
  )


def format_table(result: SegmentationScores, class_names: Sequence[str]) -> str:
  """A per-class table in percent, for the screen; "-" = no such score.

  Raises:
    ValueError: the number of names is not the number of classes.
  """
  _check_names(result, class_names)
  width = max(len(name) for name in (*class_names, "all points"))

  def row(name: str, *cells: str) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>8}" for cell in cells)

  line = "-" * (width + 16)
  return "\n".join(
    [
      row("class", "IoU", "acc"),
      line,
      *(
        row(name, _percent(iou), _percent(accuracy))
        for name, iou, accuracy in zip(
          class_names, result.iou, result.accuracy, strict=True
        )
      ),
      line,
      row("mean", _percent(result.miou), _percent(result.macc)),
      row("all points", "", _percent(result.allacc)),
    ]
  )


def to_json(
  result: SegmentationScores,
  class_names: Sequence[str],
  *,
  protocol: str,
  **extra: Any,
) -> dict[str, Any]:
  """The scores as a JSON-able dict; NaN and infinity become None.

  Args:
    result: scores of a split.
    class_names: K names.
    protocol: what was scored and how, such as "ScanNet val, per point".
    **extra: more entries, JSON-able apart from numpy scalars and arrays.

  Raises:
    ValueError: the number of names is not the number of classes, a name comes
      twice, or an extra entry has the name of a score.
  """
  _check_names(result, class_names)
  if len(set(class_names)) != len(class_names):
    raise ValueError(f"class names must differ, got {list(class_names)}")
  entries = {
    "protocol": protocol,
    "miou": result.miou,
    "macc": result.macc,
    "allacc": result.allacc,
    "points": result.points,
    "iou": dict(zip(class_names, result.iou, strict=True)),
    "accuracy": dict(zip(class_names, result.accuracy, strict=True)),
    "present": dict(zip(class_names, result.present, strict=True)),
  }
  if clash := sorted(entries.keys() & extra.keys()):
    raise ValueError(f"{clash[0]!r} is a score and cannot be an extra entry")
  return _jsonable(entries | extra)


def _ratio(part: np.ndarray, whole: np.ndarray, fill: float) -> np.ndarray:
  return np.divide(part, whole, out=np.full(part.shape, fill), where=whole > 0)


def _mean(values: np.ndarray, fill: float) -> float:
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else fill


def _percent(value: float) -> str:
  return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _check_names(
  result: SegmentationScores, class_names: Sequence[str]
) -> None:
  if len(class_names) != len(result.iou):
    raise ValueError(
      f"{len(class_names)} class names for {len(result.iou)} classes"
    )


def _jsonable(value: Any) -> Any:
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, dict):
    return {key: _jsonable(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_jsonable(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
