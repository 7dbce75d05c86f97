"""HTML and SVG from Python, in which text cannot turn into markup.

Every child that is not `Markup` is escaped, whatever a class, a scene or a
folder is called, and every element that is opened is closed.
"""

import html
from collections.abc import Iterable

_VOID = ("br", "hr", "img", "meta")


class Markup(str):
  """Text that is HTML already."""

  __slots__ = ()


Child = Markup | str | int | None


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
  """An element.

  Args:
    name: of the element.
    children: markup goes in as it is, anything else is escaped; None is left
      out.
    attributes: one underscore at the end of a name is dropped (`class_`), the
      others become hyphens (`stroke_width`). None and False leave an attribute
      out, True gives it no value.
  """
  parts = []
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = key.removesuffix("_").replace("_", "-")
    if value is True:
      parts.append(f" {key}")
    else:
      parts.append(f' {key}="{html.escape(str(value))}"')
  start = f"<{name}{''.join(parts)}>"
  if name in _VOID:
    return Markup(start)
  return Markup(f"{start}{join(children)}</{name}>")


def join(children: Iterable[Child], separator: str = "") -> Markup:
  """Children one after the other, escaped as in `tag`."""
  return Markup(
    separator.join(
      child if isinstance(child, Markup) else html.escape(str(child))
      for child in children
      if child is not None
    )
  )
