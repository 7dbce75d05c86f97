"""ScanNet's benchmark conventions: 20 classes and their NYU40 ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import IGNORE_LABEL, DataError

CLASSES = (
  "wall",
  "floor",
  "cabinet",
  "bed",
  "chair",
  "sofa",
  "table",
  "door",
  "window",
  "bookshelf",
  "picture",
  "counter",
  "desk",
  "curtain",
  "refrigerator",
  "shower curtain",
  "toilet",
  "sink",
  "bathtub",
  "other furniture",
)
NYU40_IDS = (
  *range(1, 13),
  14,
  16,
  24,
  28,
  33,
  34,
  36,
  39,
)

_MAX_ID = 65535  # ids are kept in 16 bits

# Some meshes of the release have ids above 40; they belong to no class, too.
_CLASS_OF_NYU40 = np.full(_MAX_ID + 1, IGNORE_LABEL, np.int32)
_CLASS_OF_NYU40[list(NYU40_IDS)] = np.arange(len(NYU40_IDS))


def classes_of_nyu40(ids: np.ndarray, where: str) -> np.ndarray:
  """Labels of NYU40 ids; all but those of the 20 classes are ignored.

  Args:
    ids: integers of any shape; 0 = not annotated.
    where: file and field, for the error.

  Returns:
    int32 of the same shape, 0..19 or IGNORE_LABEL.

  Raises:
    DataError: the ids are not integers in 0..65535.
  """
  ids = np.asarray(ids)
  if ids.dtype.kind not in "iu":
    raise DataError(f"{where} is of {ids.dtype}, expected NYU40 ids, integers")
  if ids.size and not (ids.min() >= 0 and ids.max() <= _MAX_ID):
    raise DataError(
      f"{where} has {ids.min()}..{ids.max()}, expected NYU40 ids from 0"
    )
  return _CLASS_OF_NYU40[ids]


def check_classes(classes: Sequence[str]) -> None:
  """Refuses to export a data set of other classes.

  Raises:
    DataError: the classes are not the benchmark's, in its order.
  """
  plain = [c.replace(" ", "") for c in classes]
  if plain != [c.replace(" ", "") for c in CLASSES]:
    raise DataError(
      "ScanNet's format of predictions needs the 20 classes of the ScanNet "
      f"benchmark in their order, the data set has {', '.join(classes)}"
    )


def write_submission(path: Path, label: np.ndarray) -> None:
  """One NYU40 id a line, for the benchmark's server.

  Args:
    path: <scene>.txt.
    label: int [N] in 0..19, of each vertex.
  """
  ids = np.asarray(NYU40_IDS)[label]
  with atomic_write(path) as file:
    np.savetxt(file, ids, fmt="%d")


def read_submission(path: str | Path, num_points: int) -> np.ndarray:
  """Reads predictions in the benchmark's format, one NYU40 id a line.

  Args:
    path: <scene>.txt, as `write_submission` writes it.
    num_points: number of vertices of the scene, N.

  Returns:
    int32 [N] in 0..19; IGNORE_LABEL where the id is of none of the 20 classes,
    which the benchmark counts as a wrong prediction.

  Raises:
    DataError: the file is missing, has another number of lines, or a line that
      is not an id.
  """
  try:
    lines = Path(path).read_text("ascii").splitlines()
  except (OSError, ValueError) as e:
    raise DataError(f"{path}: expected a text file of NYU40 ids ({e})") from e
  if len(lines) != num_points:
    raise DataError(
      f"{path}: has {len(lines)} lines, expected one for each of the"
      f" {num_points} points"
    )
  for number, line in enumerate(lines, 1):
    if not line.strip().isdecimal():
      raise DataError(
        f"{path}: line {number} is {line[:20]!r}, expected one NYU40 id"
      )
  ids = np.array([min(int(line), _MAX_ID) for line in lines], np.int64)
  return classes_of_nyu40(ids, str(path))
