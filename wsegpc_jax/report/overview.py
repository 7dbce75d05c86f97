"""The head of a report: what was run, and the stage table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wsegpc_jax.report.markup import Markup, join, tag
from wsegpc_jax.report.records import Column, Row, Stage, Table


def introduction(stages: Sequence[Stage], intro: str) -> Markup:
  """One paragraph in words, and how each run was started."""
  facts = []
  runs = "One run" if len(stages) == 1 else f"{len(stages)} runs"
  roots = _distinct(s.config and _entry(s.config, "data.root") for s in stages)
  facts.append(f"{runs} on {' and '.join(roots)}" if roots else runs)
  classes = next((c for c in map(_classes, stages) if c), ())
  if classes:
    facts.append(f"{len(classes)} classes ({', '.join(classes)})")
  training = _distinct(s.training_scenes for s in stages)
  if training:
    facts.append(f"{' or '.join(training)} training scenes")
  scored = _distinct(s.score and s.score.scenes for s in stages)
  if scored:
    facts.append(f"{' or '.join(scored)} scored scenes")
  text = f"{'; '.join(facts)}."
  ends = [s.facts["last step"] for s in stages if "last step" in s.facts]
  if ends:
    text += f" The last step was made on {max(ends)}."
  devices = _distinct(s.facts.get("devices") for s in stages)
  if devices:
    text += f" Trained on {' or '.join(devices)}"
    # The settings below have all.
    versions = _distinct(
      ", ".join(s.facts.get("versions", "").split(", ")[:1]) for s in stages
    )
    text += f" with {' or '.join(versions)}." if versions else "."
  parts = [tag("p", intro, class_="lead") if intro else None, tag("p", text)]
  commands = _distinct(s.facts.get("command") for s in stages)
  if commands:
    lines = "\n".join(commands)
    parts.append(
      tag(
        "details",
        tag("summary", "Commands"),
        tag("pre", lines, tabindex=0),
      )
    )
  return join(parts)


def default_table(stages: Sequence[Stage]) -> Table:
  """The stage table as it follows from the stages.

  Scores under different protocols are no match for each other: each protocol
  has a column of its own.
  """
  protocols = {}
  for stage in stages:
    for score in _scores(stage):
      protocols.setdefault(_comparable(score.protocol), None)
  titles = _titles(list(protocols))
  columns = [
    Column("Steps", "count"),
    Column(
      "Time",
      "seconds",
      note="From the first logged step to the last, pauses too.",
    ),
  ]
  pseudo = [s for s in stages if s.pseudo_labels is not None]
  if pseudo:
    note = pseudo[0].pseudo_labels.protocol
    columns.append(Column("Pseudo-labels: mIoU", better="high", note=note))
  columns += [
    Column(title, better="high", note=f"{key}.")
    for key, title in zip(protocols, titles, strict=True)
  ]
  columns.append(
    Column("Points right", note="Of the score that is drawn by class below.")
  )
  rows = []
  for stage in stages:
    cells = [_last_step(stage), stage.seconds]
    if pseudo:
      cells.append(stage.pseudo_labels and stage.pseudo_labels.miou)
    own = {}
    for score in _scores(stage):
      own.setdefault(_comparable(score.protocol), score.miou)
    cells += [own.get(key) for key in protocols]
    cells.append(stage.score and stage.score.allacc)
    rows.append(Row(f"{stage.name}", tuple(cells)))
  return Table(tuple(columns), tuple(rows))


def stage_table(table: Table, stages: Sequence[Stage]) -> Markup:
  """The table, the best number of a column in bold, and notes below."""
  about = {stage.name: stage.title for stage in stages}
  noted = [c for c in table.columns if c.note]
  best = [_best(table, i) for i in range(len(table.columns))]
  head = [tag("th", "Stage", scope="col")]
  for column in table.columns:
    mark = None
    if column.note:
      mark = tag("sup", noted.index(column) + 1)
    head.append(
      tag(
        "th",
        column.title,
        mark,
        scope="col",
        class_="text" if column.kind == "text" else None,
      )
    )
  body = []
  for row in table.rows:
    cells = [
      tag(
        "th",
        tag("b", row.title),
        tag("small", about[row.title]) if about.get(row.title) else None,
        scope="row",
      )
    ]
    for i, (column, value) in enumerate(
      zip(table.columns, row.cells, strict=True)
    ):
      spread = row.spread and row.spread[i]
      text = format_cell(column.kind, value)
      if spread is not None and _is_number(value):
        text = join(
          [text, tag("small", f" ± {format_cell(column.kind, spread)}")]
        )
      wins = not row.baseline and _is_number(value) and value == best[i]
      cells.append(
        tag(
          "td",
          tag("strong", text) if wins else text,
          class_="text" if column.kind == "text" else None,
        )
      )
    body.append(tag("tr", *cells, class_="baseline" if row.baseline else None))
  notes = [
    tag("li", f"{c.title}: {c.note}", value=noted.index(c) + 1) for c in noted
  ]
  percent = any(c.kind == "percent" for c in table.columns)
  unit = "Scores in %. " if percent else ""
  bold = (
    "The best of a column is bold." if any(b is not None for b in best) else ""
  )
  return join(
    [
      tag(
        "div",
        tag(
          "table",
          tag("thead", tag("tr", *head)),
          tag("tbody", *body),
          class_="stages",
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Stage table",
      ),
      tag("p", unit + bold, class_="note") if unit + bold else None,
      tag("ol", *notes, class_="note") if notes else None,
      *(tag("p", text, class_="note") for text in table.notes),
      *(tag("p", t, class_="missing") for s in stages for t in s.missing),
    ]
  )


def format_cell(kind: str, value: float | str | None) -> str:
  """A number as the table prints it; an en dash where there is none."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return "–"
  if isinstance(value, str):
    return value
  if kind == "percent":
    return f"{100 * value:.1f}"
  if kind == "seconds":
    seconds = round(value)
    if seconds < 60:
      return f"{seconds} s"
    if seconds < 3600:
      return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
  return f"{value:,.0f}" if kind == "count" else str(value)


def _classes(stage: Stage) -> tuple[str, ...]:
  score = stage.score or stage.pseudo_labels
  return stage.classes or (score.classes if score is not None else ())


def _scores(stage: Stage):
  found = [stage.score] if stage.score is not None else []
  return found + list(stage.others.values())


def _comparable(protocol: str) -> str:
  """A protocol without whose network it was: teacher and student compare."""
  for whose in ("teacher ", "student "):
    protocol = protocol.removeprefix(whose)
  return protocol


def _titles(protocols: Sequence[str]) -> list[str]:
  """Short names of protocols, all different."""
  titles = []
  for text in protocols:
    words = text.partition("split ")[2].partition(";")[0].split()
    title = f"{words[0] if words else 'score'}: mIoU"
    if "no tags used" in text:
      title += ", no tags"
    elif "masked out" in text:
      title += ", tags known"
    titles.append(title)
  return [
    f"{t} ({chr(97 + titles[:i].count(t) % 26)})" if titles.count(t) > 1 else t
    for i, t in enumerate(titles)
  ]


def _last_step(stage: Stage) -> float | None:
  steps = [int(c.step[-1]) for c in stage.curves if len(c.step)]
  return max(steps, default=None)


def _best(table: Table, index: int) -> float | None:
  column = table.columns[index]
  values = [r.cells[index] for r in table.rows if not r.baseline]
  values = [v for v in values if _is_number(v)]
  if column.better is None or len(values) < 2:
    return None
  return max(values) if column.better == "high" else min(values)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _distinct(values) -> list[str]:
  return list(dict.fromkeys(str(v) for v in values if v not in (None, "")))


def _entry(config: Mapping[str, Any], key: str) -> Any:
  value: Any = config
  for part in key.split("."):
    if not isinstance(value, Mapping):
      return None
    value = value.get(part)
  return value
