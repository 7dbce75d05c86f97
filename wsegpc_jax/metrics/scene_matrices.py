"""Confusion matrices of single scenes, kept beside the scores of a split.

They say with which scenes a score was reached, so that two runs can be compared
scene by scene. They are an .npz file and not part of the JSON: 300 scenes of 20
classes are 120,000 numbers, which nobody reads.

Dimension letters: S scenes, K classes.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.metrics import segmentation
from wsegpc_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class SceneMatrices:
  """Confusion matrices of the scenes of a split that have labels.

  Attributes:
    names: the S scenes.
    confusion: int64 [S, K, K], rows = truth, or [S, K, K + 1], whose last
      column counts points that were predicted to be of no class.
  """

  names: tuple[str, ...]
  confusion: np.ndarray

  def scores(self, absent: str = "skip") -> segmentation.SegmentationScores:
    """Scores of all scenes together; `absent` as in `segmentation.scores`."""
    total = self.confusion.sum(0)
    k = len(total)
    missed = total[:, k] if total.shape[1] > k else None
    return segmentation.scores(total[:, :k], missed=missed, absent=absent)


def beside(scores: str | os.PathLike) -> Path:
  """<name>.scenes.npz, where the matrices of <name>.json are kept."""
  return Path(scores).with_suffix(".scenes.npz")


def write(
  path: str | os.PathLike, scenes: SceneMatrices, classes: Sequence[str]
) -> None:
  """Writes scene matrices, whole or not at all.

  Raises:
    OSError: the file cannot be written.
  """
  with atomic_write(path) as file:
    np.savez_compressed(
      file,
      scenes=np.array(scenes.names, np.str_),
      classes=np.array(classes, np.str_),
      confusion=scenes.confusion,
    )


def read(path: str | os.PathLike) -> tuple[SceneMatrices, tuple[str, ...]]:
  """Reads scene matrices and the names of their classes.

  Raises:
    DataError: the file is missing, damaged, or not of this kind.
  """
  try:
    # Opened here, because numpy leaves the file open when it is damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
      names, classes, confusion = (
        archive[key] for key in ("scenes", "classes", "confusion")
      )
  # A damaged archive can fail in any way that zip, zlib and numpy can.
  except Exception as error:
    raise DataError(
      f"{path}: expected the scene matrices that an evaluation writes beside "
      f"its JSON ({error})"
    ) from error
  s, k = len(np.atleast_1d(names)), len(np.atleast_1d(classes))
  if confusion.shape not in ((s, k, k), (s, k, k + 1)):
    raise DataError(
      f"{path}: confusion has shape {list(confusion.shape)}, expected "
      f"{[s, k, k]} for {s} scenes and {k} classes"
    )
  if confusion.dtype.kind not in "iu" or (confusion < 0).any():
    raise DataError(f"{path}: confusion must hold counts, integers from 0")
  if len(set(names.tolist())) != s:
    raise DataError(f"{path}: scenes must differ")
  found = SceneMatrices(tuple(names.tolist()), confusion.astype(np.int64))
  return found, tuple(classes.tolist())
