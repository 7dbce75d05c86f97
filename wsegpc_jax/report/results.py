"""Sections with the results of stages: curves, and IoU by class."""

import math
from collections.abc import Sequence

from wsegpc_jax.report import charts
from wsegpc_jax.report.markup import Markup, join, tag
from wsegpc_jax.report.records import Stage

_SCORE_CURVES = ("eval/miou", "eval/miou_2d", "eval/macc", "eval/allacc")
# Losses have names of their own in each method; these are what is no loss.
_OTHER_CURVES = ("grad_norm", "lr", "selected_3d", "selected_2d")
_TERMS = ("cam", "cmg", "rpc")
_CURVE_TITLES = {
  "accuracy": "training points that are right",
  "eval/miou": "mIoU of the scored split",
  "eval/miou_2d": "mIoU of pixels",
  "eval/macc": "mean class accuracy",
  "eval/allacc": "points that are right",
  "loss": "loss, all terms",
  "grad_norm": "norm of the gradient",
  "lr": "learning rate",
  "selected_3d": "share of voxels above the cutoff",
  "selected_2d": "share of pixels above the cutoff",
}


def stage_legend(stages: Sequence[Stage]) -> Markup:
  """Line, colour and name of each stage, by its place in the report."""
  items = [
    tag("li", charts.sample(number), stage.name)
    for number, stage in enumerate(stages)
  ]
  return tag("ul", *items, class_="legend", aria_label="Stages")


def curves(stages: Sequence[Stage]) -> Markup:
  """A chart for each quantity, a line for each stage."""
  names = dict.fromkeys(c.name for stage in stages for c in stage.curves)
  if not names:
    return tag("p", "No run has logged a step yet.", class_="missing")
  first = [n for n in ("eval/miou", "loss") if n in names]
  others = [n for n in names if n in _OTHER_CURVES or n in _SCORE_CURVES[1:]]
  others += [n for n in names if n.startswith("eval/") and n not in others]
  others = [n for n in others if n not in first]
  terms = sorted(set(names) - {*first, *others}, key=_order)
  parts = [
    stage_legend(stages),
    tag("div", *(_chart(n, stages) for n in first + terms), class_="charts"),
  ]
  if others:
    parts.append(
      tag(
        "details",
        tag("summary", "More curves"),
        tag("div", *(_chart(n, stages) for n in others), class_="charts"),
      )
    )
  silent = [s.name for s in stages if not s.curves]
  if silent:
    text = f"Without curves: {', '.join(silent)}."
    parts.append(tag("p", text, class_="missing"))
  return join(parts)


def _order(name: str) -> tuple:
  """Terms of a loss in the order of the method, 3D before 2D."""
  term, _, where = name.partition("_")
  known = _TERMS.index(term) if term in _TERMS else len(_TERMS)
  return known, term, where != "3d", where


def _curve_title(name: str) -> str:
  term, _, where = name.partition("_")
  if term in _TERMS and where in ("3d", "2d"):
    return f"loss, {term.upper()} {where.upper()}"
  return _CURVE_TITLES.get(name, name)


def _chart(name: str, stages: Sequence[Stage]) -> Markup:
  percent = name == "accuracy" or name.startswith(("eval/", "selected_"))
  series = [
    charts.Series(
      stage.name, c.step, 100 * c.value if percent else c.value, number
    )
    for number, stage in enumerate(stages)
    for c in stage.curves
    if c.name == name
  ]
  return charts.line_chart(
    _curve_title(name), series, unit="%" if percent else "", zero=percent
  )


def class_bars(stages: Sequence[Stage]) -> Markup:
  """IoU of every class, a bar for each stage."""
  scored = [(i, s) for i, s in enumerate(stages) if s.score is not None]
  if not scored:
    return tag("p", "No run has been evaluated yet.", class_="missing")
  classes = list(
    dict.fromkeys(name for _, s in scored for name in s.score.classes)
  )
  rows = [
    _bar_row("mean", [(i, s.name, s.score.miou) for i, s in scored], "mean")
  ]
  for name in classes:
    values = [
      (i, s.name, s.score.iou[s.score.classes.index(name)])
      for i, s in scored
      if name in s.score.classes
    ]
    # A class that is nowhere would be a row of dashes.
    if any(math.isfinite(v) for _, _, v in values):
      rows.append(_bar_row(name, values))
  protocols = dict.fromkeys(s.score.protocol for _, s in scored)
  if len(protocols) == 1:
    words = [tag("p", f"Protocol: {next(iter(protocols))}.", class_="note")]
  else:
    words = [
      tag(
        "p",
        "Not all bars are of one protocol, so not all compare:",
        class_="note",
      ),
      tag(
        "ul",
        *(
          tag(
            "li",
            tag(
              "b", ", ".join(s.name for _, s in scored if s.score.protocol == p)
            ),
            f": {p}.",
          )
          for p in protocols
        ),
        class_="note",
      ),
    ]
  silent = [s.name for s in stages if s.score is None]
  if silent:
    text = f"Not evaluated yet: {', '.join(silent)}."
    words.append(tag("p", text, class_="missing"))
  return join(
    [
      tag("p", "IoU in %; in each group the bars are in the legend's order."),
      stage_legend(stages),
      tag("div", *rows, class_="bars"),
      *words,
    ]
  )


def _bar_row(name: str, values, class_: str = "") -> Markup:
  bars = []
  for number, stage, value in values:
    known = math.isfinite(value)
    text = f"{100 * value:.1f}" if known else "–"
    width = f"{100 * value:.2f}" if known else "0"
    bars.append(
      tag(
        "div",
        tag(
          "span",
          class_=f"bar s{number % charts.STYLES}",
          style=f"width:{width}%",
        ),
        tag("span", text, class_="value"),
        class_="track",
        title=f"{name}, {stage}: {text}",
      )
    )
  return tag(
    "div",
    tag("div", name, class_="name"),
    tag("div", *bars, class_="tracks"),
    class_=f"group {class_}".strip(),
  )
