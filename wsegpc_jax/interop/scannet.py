"""ScanNet's benchmark conventions: 20 classes and their NYU40 ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import DataError

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


def check_classes(classes: Sequence[str]) -> None:
  """Refuses to export a data set of other classes.

  Raises:
    DataError: the classes are not the benchmark's, in its order.
  """
  plain = [c.replace(" ", "") for c in classes]
  if plain != [c.replace(" ", "") for c in CLASSES]:
    raise DataError(
      "config.eval.export='scannet' needs the 20 classes of the ScanNet "
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
