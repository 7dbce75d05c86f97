"""The rooms of a report: pictures side by side, 2D views with their labels."""

import math
from collections.abc import Sequence

import numpy as np

from wsegpc_jax.palette import palette
from wsegpc_jax.report import pictures
from wsegpc_jax.report.markup import Markup, join, tag
from wsegpc_jax.report.records import Room, View
from wsegpc_jax.types import IGNORE_LABEL

_VIEW_WIDTH = 240  # pixels that a 2D view has at least, to hold numbers


def gallery(rooms: Sequence[Room], note: str = "") -> Markup:
  """All rooms; a sentence if there are none."""
  parts = [tag("p", note, class_="missing")] if note else []
  if not rooms and not note:
    parts.append(tag("p", "No room is shown.", class_="missing"))
  if rooms:
    parts.append(
      tag(
        "p",
        "All pictures of a room are from one camera. Numbers in the pictures "
        "are those of the classes below them.",
      )
    )
  return join([*parts, *map(_room, rooms)])


def _room(room: Room) -> Markup:
  camera = pictures.Camera(room.coord)
  number = len(room.classes)
  cells = []
  if room.color is not None:
    painted = camera.paint(room.color, shaded=False)
    alt = f"{room.name} in its own colours"
    cells.append(_picture(painted, alt, "Input"))
  columns = {} if room.truth is None else {"Truth": room.truth}
  columns |= room.labels
  for title, label in columns.items():
    seen = camera.labels(label)
    painted = camera.paint(pictures.label_colors(label, number))
    cells.append(
      _picture(
        pictures.numbered(painted, seen, number),
        f"{room.name}: {title}. {_shares(seen, room.classes)}",
        title,
        None if title == "Truth" else _right(label, room.truth, "points"),
      )
    )
  shown = [*columns.values()]
  shown += [label for view in room.views for label in view.labels.values()]
  views = []
  if room.views:
    views = [
      tag("h4", "2D views"),
      tag(
        "div",
        *(_view(view, room) for view in room.views),
        class_="views scroll",
        tabindex=0,
        role="region",
        aria_label=f"2D views of {room.name}",
      ),
    ]
  return tag(
    "section",
    tag("h3", room.name),
    tag("p", f"{len(room.coord):,} points. {room.note}".strip()),
    tag("div", *cells, class_="pictures"),
    _legend(pictures.seen_classes(shown, number), room.classes, shown),
    *views,
    class_="room",
  )


def _view(view: View, room: Room) -> Markup:
  number = len(room.classes)
  cells = [_picture(view.color, f"Frame {view.name}", f"Frame {view.name}")]
  truth = view.labels.get("Truth")
  for title, label in view.labels.items():
    painted = pictures.label_colors(label, number)
    large = pictures.numbered(
      pictures.enlarged(painted, _VIEW_WIDTH),
      pictures.enlarged(label, _VIEW_WIDTH),
      number,
    )
    cells.append(
      _picture(
        large,
        f"Frame {view.name}: {title}. {_shares(label, room.classes)}",
        title,
        None if title == "Truth" else _right(label, truth, "pixels"),
      )
    )
  return tag("div", *cells, class_="view")


def _picture(
  picture: np.ndarray, alt: str, title: str, more: str | None = None
) -> Markup:
  height, width = picture.shape[:2]
  return tag(
    "figure",
    tag(
      "img",
      src=pictures.data_uri(picture),
      alt=alt,
      width=width,
      height=height,
    ),
    tag("figcaption", title, tag("small", more) if more else None),
  )


def _right(label, truth, what: str) -> str | None:
  if truth is None:
    return None
  share = pictures.share_right(label, truth)
  return None if math.isnan(share) else f"{100 * share:.0f} % of {what} right"


def _shares(label: np.ndarray, classes: Sequence[str]) -> str:
  """What is seen, in words, the largest first."""
  known = label[(label >= 0) & (label < len(classes))]
  counts = np.bincount(known.reshape(-1), minlength=len(classes))
  if not counts.any():
    return "No labels are seen."
  order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
  words = [
    f"{classes[k]} {100 * counts[k] / counts.sum():.0f} %" for k in order
  ]
  return f"Seen: {', '.join(words)}."


def _legend(
  shown: Sequence[int],
  classes: Sequence[str],
  labels: Sequence[np.ndarray],
) -> Markup:
  colors = palette(len(classes))
  items = [
    tag(
      "li",
      tag("i", style=f"background:rgb({','.join(map(str, colors[k]))})"),
      tag("b", k + 1),
      f" {classes[k]}",
    )
    for k in shown
  ]
  if any((label == IGNORE_LABEL).any() for label in labels):
    items.append(tag("li", tag("i", class_="none"), "not labelled"))
  return tag("ul", *items, class_="legend classes", aria_label="Classes")
