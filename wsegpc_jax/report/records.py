"""What a report is made of: stages with scores and curves, tables, rooms.

Dimension letters: N points, K classes, H and W image height and width, T rows
of a curve. Scores are fractions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.types import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
  """Scores of a network, or of pseudo-labels, on a split.

  Attributes:
    protocol: what was scored and how, in words.
    classes: the K class names.
    iou: float64 [K]; NaN where a class neither occurs nor is predicted.
    accuracy: float64 [K]; NaN where a class does not occur.
    miou, macc, allacc: their means, and the share of points that are right.
    confusion: int64 [K, K], rows = truth, or [K, K + 1], whose last column
      counts points without a label; None if it was not kept.
    scenes: how many were scored; None if unknown.
    step: of the network; None if unknown.
  """

  protocol: str
  classes: tuple[str, ...]
  iou: np.ndarray
  accuracy: np.ndarray
  miou: float
  macc: float
  allacc: float
  confusion: np.ndarray | None = None
  scenes: int | None = None
  step: int | None = None

  @classmethod
  def of(
    cls,
    confusion: np.ndarray,
    classes: Sequence[str],
    *,
    protocol: str,
    scenes: int | None = None,
    step: int | None = None,
    absent: str = "skip",
  ) -> "Score":
    """The scores of a confusion matrix; see the attributes.

    Args:
      confusion: int [K, K] or [K, K + 1].
      classes: K names.
      protocol, scenes, step: see the attributes.
      absent: see `metrics.segmentation.scores`.

    Raises:
      ValueError: the matrix is not of such a shape or does not hold counts.
    """
    confusion = np.asarray(confusion)
    k = len(classes)
    if confusion.shape not in ((k, k), (k, k + 1)):
      raise ValueError(
        f"a confusion matrix of {k} classes must be {[k, k]} or {[k, k + 1]}, "
        f"got {list(confusion.shape)}"
      )
    found = SceneMatrices(("",), confusion[None]).scores(absent)
    return cls(
      protocol=protocol,
      classes=tuple(classes),
      iou=found.iou,
      accuracy=found.accuracy,
      miou=found.miou,
      macc=found.macc,
      allacc=found.allacc,
      confusion=confusion,
      scenes=scenes,
      step=step,
    )

  def precision(self) -> np.ndarray | None:
    """float64 [K]: of what is called a class, the share that is of it.

    NaN where a class is never predicted; None without a confusion matrix.
    """
    if self.confusion is None:
      return None
    square = self.confusion[:, : len(self.classes)]
    called = square.sum(0)
    return np.divide(
      np.diagonal(square),
      called,
      out=np.full(len(called), np.nan),
      where=called > 0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """A quantity over a run.

  Attributes:
    name: such as "loss" or "eval/miou".
    step: int64 [T], rising.
    value: float64 [T]; NaN where it was not finite.
  """

  name: str
  step: np.ndarray
  value: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
  """One run, with all that a report shows of it.

  Attributes:
    name: short, different from those of other stages of the report.
    title: what was trained, in a few words.
    workdir: its working directory, as it is to be shown.
    facts: more to tell of it, by what it is: "command", "device", ...
    curves: losses, scores and the rest.
    score: of the finished network; None if it was not evaluated.
    others: more scores, under other protocols, by name.
    pseudo_labels: of the training split; None if they were not scored.
    config: as in config.json; None if unknown.
    classes: class names; () if unknown.
    training_scenes: how many there were; None if unknown.
    seconds: that training took; None if unknown.
    missing: sentences that say what is not there.
  """

  name: str
  title: str
  workdir: str = ""
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  curves: tuple[Curve, ...] = ()
  score: Score | None = None
  others: Mapping[str, Score] = dataclasses.field(default_factory=dict)
  pseudo_labels: Score | None = None
  config: Mapping[str, Any] | None = None
  classes: tuple[str, ...] = ()
  training_scenes: int | None = None
  seconds: float | None = None
  missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of the stage table.

  Attributes:
    title: its head.
    kind: of its numbers: "percent" of fractions, "count", "seconds"; "text"
      for words.
    better: which number is the best of the column, set in bold.
    note: what the numbers are, in a sentence below the table.
  """

  title: str
  kind: Literal["percent", "count", "seconds", "text"] = "percent"
  better: Literal["high", "low"] | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the stage table.

  Attributes:
    title: its head; the title of the stage of this name is set below it.
    cells: one for each column; None = there is none.
    spread: as many, what is shown behind a number as +-; None = nothing.
    baseline: whether it is set apart and never the best of a column, such as a
      baseline or an upper bound.
  """

  title: str
  cells: tuple[float | str | None, ...]
  spread: tuple[float | None, ...] | None = None
  baseline: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """The stage table.

  Attributes:
    columns: what is told of each row.
    rows: in the order of the table.
    notes: sentences below it.
  """

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    for row in self.rows:
      for cells in (row.cells, row.spread):
        if cells is not None and len(cells) != len(self.columns):
          raise ValueError(
            f"row {row.title!r} has {len(cells)} cells for "
            f"{len(self.columns)} columns"
          )


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """One posed image of a room, with labels of its pixels.

  Attributes:
    name: of the frame.
    color: uint8 [H, W, 3].
    labels: int of any resolution by title, IGNORE_LABEL = none; the truth, if
      it is known, comes first, under "Truth".
  """

  name: str
  color: np.ndarray
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Room:
  """A scene to be shown, with any labels of its points side by side.

  Attributes:
    name: of the scene.
    coord: float [N, 3], metres, z up.
    color: uint8 [N, 3]; None of a laser scan.
    classes: the K class names.
    truth: int [N], IGNORE_LABEL = unknown; None if it is not known at all.
    labels: int [N] by title, in the order of the columns; IGNORE_LABEL = none.
    views: posed images.
    note: a sentence about it.
  """

  name: str
  coord: np.ndarray
  color: np.ndarray | None
  classes: tuple[str, ...]
  truth: np.ndarray | None = None
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  views: tuple[View, ...] = ()
  note: str = ""

  def __post_init__(self):
    arrays = {"color": self.color, "truth": self.truth, **self.labels}
    for name, array in arrays.items():
      if array is not None and len(array) != len(self.coord):
        raise DataError(
          f"room {self.name}: {name} has {len(array)} entries for "
          f"{len(self.coord)} points"
        )
