"""Reading what a network said of a scene, to show it beside the truth."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.interop.ply import read_point_cloud
from wsegpc_jax.types import IGNORE_LABEL, DataError
from wsegpc_jax.viewer.layers import Prediction


def read_prediction(
  path: str | os.PathLike, *, points: int, classes: Sequence[str]
) -> Prediction:
  """Reads the .npz or the .ply that --mode=predict writes.

  An .npz has `label` or `pred_label` [N], maybe `probabilities` [N, K] and
  `classes` [K]; a .ply has the property label.

  Args:
    path: file that ends in .npz or .ply.
    points: N of the scene, whose points come in the same order.
    classes: K class names of the data set.

  Raises:
    DataError: the file is missing or damaged, or does not fit the scene or the
      classes.
  """
  path = Path(path)
  if path.suffix not in (".npz", ".ply"):
    raise DataError(f"{path}: expected a prediction that ends in .npz or .ply")
  if not path.is_file():
    raise DataError(f"{path}: not found, expected a prediction")
  if path.suffix == ".ply":
    label, probabilities = read_point_cloud(path)["label"], None
    if label is None:
      raise DataError(f"{path}: vertices lack the property 'label'")
  else:
    label, probabilities, names = _read_npz(path)
    if names is not None and names != list(classes):
      raise DataError(
        f"{path}: classes are {', '.join(names)}, expected those of the data"
        f" set: {', '.join(classes)}"
      )
  label = _checked_label(path, label, points, len(classes))
  if probabilities is None:
    return Prediction(label)
  shape = (points, len(classes))
  if probabilities.shape != shape or probabilities.dtype.kind != "f":
    raise DataError(
      f"{path}: probabilities: expected floats {shape} (points, classes), got"
      f" {probabilities.dtype} {probabilities.shape}"
    )
  low, high = probabilities.min(), probabilities.max()
  # Comparing refuses NaN as well.
  if not (low >= 0 and high <= 1.001):
    raise DataError(f"{path}: probabilities: expected 0..1, got {low}..{high}")
  known = label != IGNORE_LABEL
  probability = np.zeros(points, np.float32)
  probability[known] = probabilities[known, label[known]]
  return Prediction(label, probability)


def _read_npz(path):
  fields = ("label", "pred_label", "probabilities", "classes")
  try:
    # Opened here, because numpy leaves the file open when it is damaged.
    with open(path, "rb") as f, np.load(f, allow_pickle=False) as archive:
      raw = {k: archive[k] for k in fields if k in archive.files}
      there = list(archive.files)
  # A damaged archive can fail in any way that zip, zlib and numpy can.
  except Exception as e:
    raise DataError(f"{path}: expected an intact .npz file ({e})") from e
  label = raw.get("label", raw.get("pred_label"))
  if label is None:
    raise DataError(
      f"{path}: lacks the array 'label', it has {', '.join(there) or 'none'}"
    )
  names = raw.get("classes")
  names = None if names is None else [str(name) for name in names.reshape(-1)]
  return label, raw.get("probabilities"), names


def _checked_label(path, label, points, num_classes):
  if label.shape != (points,) or label.dtype.kind not in "iu":
    raise DataError(
      f"{path}: label: expected integers {(points,)}, one for each point of the"
      f" scene, got {label.dtype} {label.shape}"
    )
  bad = (label != IGNORE_LABEL) & ((label < 0) | (label >= num_classes))
  if bad.any():
    raise DataError(
      f"{path}: label: expected 0..{num_classes - 1} or {IGNORE_LABEL}, got"
      f" {label[bad][0]}"
    )
  return label.astype(np.int32)
