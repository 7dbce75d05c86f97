"""Sections on confusion: matrices of stages, pseudo-labels by class."""

import math
from collections.abc import Sequence

import numpy as np

from wsegpc_jax.report.markup import Markup, join, tag
from wsegpc_jax.report.records import Score, Stage


def confusion_matrices(stages: Sequence[Stage]) -> Markup:
  """A matrix for each stage; that of the last one is open."""
  kept = [
    s for s in stages if s.score is not None and s.score.confusion is not None
  ]
  if not kept:
    return tag(
      "p",
      "No confusion matrix is there: an evaluation keeps them beside its "
      "scores.",
      class_="missing",
    )
  parts = [
    tag(
      "p",
      "Rows are the truth, columns what was predicted: of all points of a "
      "class, how many % are given each label. The counts show on hovering.",
    )
  ]
  for stage in kept:
    parts.append(
      tag(
        "details",
        tag("summary", f"{stage.name}: {stage.title}"),
        confusion_matrix(stage.score, f"Confusion matrix of {stage.name}"),
        open=stage is kept[-1],
      )
    )
  lost = [s.name for s in stages if s not in kept]
  if lost:
    text = f"Without a confusion matrix: {', '.join(lost)}."
    parts.append(tag("p", text, class_="missing"))
  return join(parts)


def confusion_matrix(score: Score, title: str) -> Markup:
  """Heat map of the classes that occur, in % of the points of a class."""
  confusion, k = score.confusion, len(score.classes)
  square = confusion[:, :k]
  shown = np.flatnonzero(confusion.sum(1) + square.sum(0))
  names = [score.classes[i] for i in shown]
  columns = list(shown)
  if confusion.shape[1] > k and confusion[:, k].any():
    columns.append(k)
    names.append("no label")
  head = [tag("td")]
  head += [
    tag("th", tag("span", name), scope="col", class_="turned") for name in names
  ]
  head.append(tag("th", "points", scope="col", class_="points"))
  rows = []
  for i in shown:
    total = int(confusion[i].sum())
    cells = [tag("th", score.classes[i], scope="row")]
    for j, name in zip(columns, names, strict=True):
      count = int(confusion[i, j])
      share = count / total if total else 0.0
      cells.append(
        tag(
          "td",
          f"{100 * share:.0f}" if count else "",
          style=f"--v:{share:.3f}",
          class_=_cell_class(share, int(i) == int(j)),
          title=f"{score.classes[i]} as {name}: {count:,} of {total:,} points "
          f"({100 * share:.1f} %)",
        )
      )
    cells.append(tag("td", f"{total:,}", class_="points"))
    rows.append(tag("tr", *cells))
  return tag(
    "div",
    tag(
      "table",
      tag("thead", tag("tr", *head)),
      tag("tbody", *rows),
      class_="matrix",
    ),
    class_="scroll",
    tabindex=0,
    role="region",
    aria_label=title,
  )


def _cell_class(share: float, diagonal: bool) -> str:
  return " ".join(["heat"] + ["high"] * (share > 0.5) + ["diagonal"] * diagonal)


def pseudo_labels(stages: Sequence[Stage]) -> Markup:
  """Precision and coverage of the pseudo-labels of each class."""
  labelled = [s for s in stages if s.pseudo_labels is not None]
  if not labelled:
    return tag(
      "p",
      "No run has scored pseudo-labels: --mode=label of stage 2 writes them "
      "and scores them where the training split has labels.",
      class_="missing",
    )
  classes = list(
    dict.fromkeys(n for s in labelled for n in s.pseudo_labels.classes)
  )
  top, second = [tag("th", "Class", scope="col", rowspan=2)], []
  for stage in labelled:
    top.append(tag("th", stage.name, scope="colgroup", colspan=2))
    second += [
      tag("th", "precision", scope="col"),
      tag("th", "coverage", scope="col"),
    ]
  rows = []
  for name in classes:
    cells = []
    for stage in labelled:
      score = stage.pseudo_labels
      if name not in score.classes:
        cells += [_metered(math.nan), _metered(math.nan)]
        continue
      at = score.classes.index(name)
      precision = score.precision()
      cells += [
        _metered(math.nan if precision is None else precision[at]),
        _metered(score.accuracy[at]),
      ]
    rows.append(tag("tr", tag("th", name, scope="row"), *cells))
  means, miou, right = [], [], []
  for stage in labelled:
    score = stage.pseudo_labels
    precision = score.precision()
    finite = [] if precision is None else precision[np.isfinite(precision)]
    means += [
      _metered(float(np.mean(finite)) if len(finite) else math.nan),
      _metered(score.macc),
    ]
    miou.append(tag("td", _percent(score.miou), colspan=2))
    right.append(tag("td", _percent(score.allacc), colspan=2))
  feet = [("mean", means), ("mIoU", miou), ("points right", right)]
  if any(_unlabelled(s.pseudo_labels) for s in labelled):
    without = (_percent(_unlabelled(s.pseudo_labels)) for s in labelled)
    cells = [tag("td", text, colspan=2) for text in without]
    feet.append(("points without a label", cells))
  table = tag(
    "table",
    tag("thead", tag("tr", *top), tag("tr", *second)),
    tag("tbody", *rows),
    tag(
      "tfoot",
      *(tag("tr", tag("th", name, scope="row"), *cs) for name, cs in feet),
    ),
    class_="meters",
  )
  protocols = dict.fromkeys(s.pseudo_labels.protocol for s in labelled)
  notes = []
  for text in protocols:
    names = [s.name for s in labelled if s.pseudo_labels.protocol == text]
    notes.append(tag("li", tag("b", ", ".join(names)), f": {text}."))
  return join(
    [
      tag(
        "p",
        "In %. Precision: of the points labelled as a class, those that are of "
        "it. Coverage: of the points of a class, those that are labelled as it.",
      ),
      tag(
        "div",
        table,
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Pseudo-labels by class",
      ),
      tag("ul", *notes, class_="note"),
    ]
  )


def _percent(value: float) -> str:
  return f"{100 * value:.1f}" if math.isfinite(value) else "–"


def _metered(value: float) -> Markup:
  if not math.isfinite(value):
    return tag("td", "–")
  return tag(
    "td",
    tag("span", _percent(value)),
    tag("i", style=f"--w:{100 * value:.1f}%"),
  )


def _unlabelled(score: Score) -> float:
  """Share of the points that have no label."""
  if score.confusion is None or score.confusion.shape[1] == len(score.classes):
    return 0.0
  return float(score.confusion[:, -1].sum() / max(score.confusion.sum(), 1))
