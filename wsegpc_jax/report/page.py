"""The page: all sections of a report in one self-contained HTML file."""

import os
from collections.abc import Sequence

from wsegpc_jax.files import atomic_write
from wsegpc_jax.report import gallery, matrices, overview, results, settings
from wsegpc_jax.report.markup import Markup, tag
from wsegpc_jax.report.records import Room, Stage, Table
from wsegpc_jax.report.style import STYLE
from wsegpc_jax.types import DataError


def write(
  path: str | os.PathLike,
  stages: Sequence[Stage],
  *,
  title: str,
  intro: str = "",
  table: Table | None = None,
  rooms: Sequence[Room] = (),
  rooms_note: str = "",
) -> int:
  """Writes a report, whole or not at all; returns its size in bytes.

  Args:
    path: HTML file.
    stages: the runs, in the order of the report; see `reading.read_stage`.
    title: its headline.
    intro: a paragraph below it, before what is told of the runs anyway.
    table: the stage table; None = it is made from the stages.
    rooms: scenes to show.
    rooms_note: a sentence above them, such as why there are none.

  Raises:
    DataError: there is no stage, or two have one name.
    OSError: the file cannot be written.
  """
  text = render(
    stages,
    title=title,
    intro=intro,
    table=table,
    rooms=rooms,
    rooms_note=rooms_note,
  )
  # Names of folders need not be text.
  encoded = text.encode("utf-8", "replace")
  with atomic_write(path) as file:
    file.write(encoded)
  return len(encoded)


def render(
  stages: Sequence[Stage],
  *,
  title: str,
  intro: str = "",
  table: Table | None = None,
  rooms: Sequence[Room] = (),
  rooms_note: str = "",
) -> str:
  """The page as text, equal for equal input; arguments as of `write`."""
  names = [stage.name for stage in stages]
  if not names:
    raise DataError("a report needs at least one stage")
  if len(set(names)) < len(names):
    raise DataError(f"names of stages must differ, got {', '.join(names)}")
  if table is None:
    table = overview.default_table(stages)
  sections = (
    ("stages", "Stages", overview.stage_table(table, stages)),
    ("curves", "Curves", results.curves(stages)),
    ("classes", "Classes", results.class_bars(stages)),
    ("confusion", "Confusion", matrices.confusion_matrices(stages)),
    ("pseudo-labels", "Pseudo-labels", matrices.pseudo_labels(stages)),
    ("rooms", "Rooms", gallery.gallery(rooms, rooms_note)),
    ("settings", "Settings", settings.settings(stages)),
  )
  links = [
    tag("li", tag("a", heading, href=f"#{key}")) for key, heading, _ in sections
  ]
  body = tag(
    "body",
    tag(
      "header",
      tag("h1", title),
      overview.introduction(stages, intro),
      tag("nav", tag("ul", *links), aria_label="Sections"),
    ),
    tag(
      "main",
      *(
        tag("section", tag("h2", heading), content, id=key)
        for key, heading, content in sections
      ),
    ),
  )
  head = tag(
    "head",
    tag("meta", charset="utf-8"),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("title", title),
    # Nothing in the style is text of the user's.
    tag("style", Markup(STYLE)),
  )
  return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
