"""Reading a report's page, and working directories to make one of, for tests."""

import html.parser
import json
import re

import numpy as np

from wsegpc_jax import evaluate, writers
from wsegpc_jax.metrics.scene_matrices import SceneMatrices

VOID = {"meta", "img", "br", "hr"}
CLASSES = ("wall", "floor", "chair")
# Of two scenes; rows are the truth.
CONFUSION = np.array(
  [
    [[50, 10, 0], [5, 30, 5], [0, 2, 8]],
    [[40, 0, 5], [0, 35, 0], [3, 3, 4]],
  ]
)


class Page(html.parser.HTMLParser):
  """Elements of a page as (name, attributes, path of names), and its texts.

  Raises AssertionError where an element is closed that is not open.
  """

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.elements: list[tuple[str, dict, tuple]] = []
    self.texts: list[tuple[tuple, str]] = []
    self._open: list[str] = []
    self.feed(text)
    self.close()
    assert not self._open, f"not closed: {self._open}"

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    assert len(set(names)) == len(names), (tag, names)
    self.elements.append((tag, dict(attrs), tuple(self._open)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open and self._open[-1] == tag, (tag, self._open[-3:])
    self._open.pop()

  def handle_data(self, data):
    if data.strip():
      self.texts.append((tuple(self._open), data.strip()))

  def all(self, tag: str, class_: str | None = None) -> list[dict]:
    return [
      attributes
      for name, attributes, _ in self.elements
      if name == tag
      and (class_ is None or class_ in attributes.get("class", "").split())
    ]

  def text(self) -> str:
    """What is to be read, without the style."""
    return " ".join(t for path, t in self.texts if "style" not in path)


class _Tables(html.parser.HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.tables, self._cell = [], False

  def handle_starttag(self, tag, attrs):
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")
      self._cell = True

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self._cell = False

  def handle_data(self, data):
    if self._cell:
      self.tables[-1][-1][-1] += data


def tables(text: str) -> list[list[list[str]]]:
  """Texts of the cells of all tables, row by row."""
  collector = _Tables()
  collector.feed(text)
  return collector.tables


def check_self_contained(text: str) -> Page:
  """Parses a page that needs nothing from elsewhere."""
  page = Page(text)
  for name, attributes, _ in page.elements:
    assert name not in ("script", "link", "iframe", "object", "base"), name
    for key, value in attributes.items():
      assert not key.startswith("on"), key
      if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
        assert value.startswith(("#", "data:image/png;base64,")), value[:60]
  targets = {a["id"] for _, a, _ in page.elements if "id" in a}
  for attributes in page.all("a"):
    assert attributes["href"].removeprefix("#") in targets
  [style] = [t for path, t in page.texts if path[-1] == "style"]
  assert not re.search(r"url\(|@import|https?:", style)
  return page


def write_run(
  folder,
  *,
  confusion=CONFUSION,
  classes=CLASSES,
  config=None,
  steps=4,
  pseudo=None,
  names=("a", "b"),
):
  """A working directory as programs leave it, without a checkpoint."""
  config = {"method": "segmentation", "data": {"root": "rooms"}} | (
    config or {}
  )
  folder.mkdir(parents=True)
  writers.write_json(folder / "config.json", config)
  writers.write_json(
    folder / "data.json",
    {"classes": list(classes), "train_scenes": ["x", "y", "z"]},
  )
  writers.write_json(
    folder / "versions.json",
    {
      "command": ["/x/wsegpc_jax/main.py", "--workdir=my run"],
      "packages": {"wsegpc-jax": "0.1.0"},
      "devices": ["cpu"],
    },
  )
  rows = [
    {
      "step": step,
      "total_steps": steps,
      "time": f"2026-01-02T03:04:{step:02d}+00:00",
      "loss": 4.0 / step,
    }
    for step in range(1, steps + 1)
  ]
  rows.append({**rows[-1], "loss": None, "eval/miou": 0.5})
  del rows[-1]["loss"]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  for name, matrices in (("val_best", confusion), ("pseudo_labels", pseudo)):
    if matrices is not None:
      scenes = SceneMatrices(tuple(names), np.asarray(matrices))
      scores = evaluate.Scores(scenes.scores(), scenes=scenes)
      evaluate.write_scores(
        folder / "eval" / f"{name}.json",
        scores,
        classes,
        protocol="student network on split val; no tags used",
        step=steps,
      )
  return folder
