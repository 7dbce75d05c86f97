"""The page of a report: its numbers, its sentences, and what it refuses."""

import dataclasses
import json
import re

import numpy as np
import pytest
from report_pages import (
  CLASSES,
  CONFUSION,
  Page,
  check_self_contained,
  tables,
  write_run,
)

from wsegpc_jax import report
from wsegpc_jax.types import DataError

PSEUDO = CONFUSION.transpose(0, 2, 1) + np.arange(3)
EVIL = '<script>alert("1")</script>&amp;\'<!--'


def number(values):
  return [f"{100 * v:.1f}" for v in values]


def iou(matrix):
  """Written out class by class."""
  found = []
  for k in range(len(matrix)):
    both = matrix[k, k]
    found.append(both / (matrix[k].sum() + matrix[:, k].sum() - both))
  return np.array(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "one"
  return write_run(folder, pseudo=PSEUDO)


def page_of(stages, **options):
  text = report.render(stages, title="A title", **options)
  return text, check_self_contained(text)


def test_numbers_are_those_of_the_matrices(run):
  text, page = page_of([report.read_stage(run)])
  total = CONFUSION.sum(0)
  ious = iou(total)
  stages, matrix, pseudo = tables(text)
  assert [c.rstrip("12345") for c in stages[0]] == [
    "Stage", "Steps", "Time", "Pseudo-labels: mIoU", "val: mIoU, no tags",
    "Points right",
  ]  # fmt: skip
  right = np.trace(total) / total.sum()
  [mean] = number([ious.mean()])
  assert stages[1][1:] == [
    "4", "3 s", *number([iou(PSEUDO.sum(0)).mean()]), mean, *number([right])
  ]  # fmt: skip

  for row, name, counts in zip(matrix[1:], CLASSES, total, strict=True):
    shares = [f"{100 * c / counts.sum():.0f}" if c else "" for c in counts]
    assert row == [name, *shares, f"{counts.sum():,}"]
  titles = [a["title"] for a in page.all("td", "heat")]
  assert titles[1] == "wall as floor: 10 of 105 points (9.5 %)"
  assert len(page.all("td", "diagonal")) == 3

  total = PSEUDO.sum(0)
  precision = np.diagonal(total) / total.sum(0)
  coverage = np.diagonal(total) / total.sum(1)
  for row, *expected in zip(
    pseudo[2:5], CLASSES, number(precision), number(coverage), strict=True
  ):
    assert row == expected
  assert pseudo[5] == [
    "mean",
    *number([precision.mean()]),
    *number([coverage.mean()]),
  ]

  widths = [
    float(re.fullmatch(r"width:([\d.]+)%", a["style"])[1])
    for a in page.all("span", "bar")
  ]
  np.testing.assert_allclose(widths, 100 * np.array([ious.mean(), *ious]), atol=0.01)  # fmt: skip


def test_points_without_a_label_have_a_column():
  matrix = np.array([[6, 0, 2, 2], [0, 4, 0, 0], [0, 5, 5, 0]])
  score = report.Score.of(matrix, CLASSES, protocol="p")
  np.testing.assert_allclose(score.iou, [6 / 10, 4 / 9, 5 / 12])
  np.testing.assert_allclose(score.precision(), [1, 4 / 9, 5 / 7])
  stage = report.Stage("s", "t", score=score, pseudo_labels=score)
  text, page = page_of([stage])
  matrix = tables(text)[1]
  assert matrix[0][1:] == [*CLASSES, "no label", "points"]
  assert matrix[1] == ["wall", "60", "", "20", "20", "10"]
  assert tables(text)[2][-1] == ["points without a label", "8.3"]
  with pytest.raises(ValueError, match=r"\[3, 3\] or \[3, 4\], got \[2, 2\]"):
    report.Score.of(np.eye(2, dtype=int), CLASSES, protocol="p")


def test_classes_that_are_nowhere_are_left_out():
  matrix = np.zeros((3, 3), int)
  matrix[0, 0], matrix[2, 0] = 5, 5
  score = report.Score.of(matrix, CLASSES, protocol="p")
  text, page = page_of([report.Stage("s", "t", score=score)])
  assert [row[0] for row in tables(text)[1]] == ["", "wall", "chair"]
  groups = [t for path, t in page.texts if path[-1] == "div" and t in CLASSES]
  assert groups == ["wall", "chair"]


def test_the_best_of_a_column_is_bold(run):
  columns = (
    report.Column("up", better="high", note="A note."),
    report.Column("down", "seconds", better="low"),
    report.Column("n", "count"),
    report.Column("words", "text"),
  )
  rows = (
    report.Row("guess", (0.123, 1.0, 1, "a"), baseline=True),
    report.Row("one", (0.123, 59.4, 12345, "b"), spread=(0.01, *[None] * 3)),
    report.Row("two", (None, 3600.0, None, None)),
    report.Row("three", (0.1, 61.0, 5, EVIL)),
  )
  table = report.Table(columns, rows, ("A sentence.",))
  text, page = page_of([report.read_stage(run)], table=table)
  bold = [t for path, t in page.texts if path[-1] == "strong"]
  assert bold == ["12.3", "59 s"]
  shown = tables(text)[0]
  assert shown[1] == ["guess", "12.3", "1 s", "1", "a"]
  assert shown[2] == ["oneSegmentation trained on true labels", "12.3 ± 1.0",
                      "59 s", "12,345", "b"]  # fmt: skip
  assert shown[3] == ["two", "–", "1 h 00 min", "–", "–"]
  assert shown[4] == ["three", "10.0", "1 min 01 s", "5", EVIL]
  assert len(page.all("tr", "baseline")) == 1
  assert {"A sentence.", "up: A note."} <= {t for _, t in page.texts}
  with pytest.raises(ValueError, match="2 cells for 4 columns"):
    report.Table(columns, (report.Row("x", (1.0, 2.0)),))


def test_scores_of_different_protocols_do_not_share_a_column(run):
  one = report.read_stage(run, name="one")
  other = dataclasses.replace(
    one.score,
    protocol="teacher network on split val; logits of classes absent masked out",
  )
  two = dataclasses.replace(one, name="two", score=other)
  three = dataclasses.replace(
    two,
    name="three",
    score=dataclasses.replace(
      other, protocol=other.protocol.replace("teacher", "student")
    ),
  )
  text, page = page_of([one, two, three])
  head, *rows = tables(text)[0]
  [no_tags] = [i for i, c in enumerate(head) if "no tags" in c]
  [tags] = [i for i, c in enumerate(head) if "tags known" in c]
  filled = [[row[i] != "–" for i in (no_tags, tags)] for row in rows]
  # Teacher and student under one protocol do compare.
  assert filled == [[True, False], [False, True], [False, True]]
  assert "so not all compare" in page.text()


def test_names_cannot_become_markup(tmp_path):
  classes = (EVIL, "b<i>", 'c" onload="x')
  run = write_run(
    tmp_path / "one",
    classes=classes,
    pseudo=CONFUSION,
    config={"data": {"root": EVIL}, EVIL: EVIL},
  )
  room = report.Room(
    name=EVIL,
    coord=np.random.default_rng(0).uniform(0, 3, (300, 3)),
    color=np.zeros((300, 3), np.uint8),
    classes=classes,
    truth=np.zeros(300, int),
    labels={EVIL: np.ones(300, int)},
    views=(
      report.View(EVIL, np.zeros((6, 8, 3), np.uint8),
                  {"Truth": np.full((6, 8), 2)}),
    ),
    note=EVIL,
  )  # fmt: skip
  stage = report.read_stage(run, name=EVIL)
  text = report.render(
    [stage, dataclasses.replace(stage, name="2")],
    title=EVIL,
    intro=EVIL,
    rooms=[room],
    rooms_note=EVIL,
  )
  page = check_self_contained(text)
  assert "<script" not in text and "<!--" not in text.replace("<!doctype", "")
  assert page.text().count(EVIL) > 10


def test_equal_input_gives_equal_pages(run):
  pages = {report.render([report.read_stage(run)], title="t") for _ in range(2)}
  assert len(pages) == 1
  assert str(run) in next(iter(pages))


def test_headings_and_names_for_readers(run):
  _, page = page_of([report.read_stage(run)])
  levels = [int(n[1]) for n, _, _ in page.elements if re.match(r"h\d", n)]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
  assert page.all("html")[0]["lang"] == "en"
  for attributes in page.all("div", "scroll"):
    assert attributes["tabindex"] == "0" and attributes["aria-label"]
  for attributes in page.all("svg"):
    assert attributes.get("aria-label") or attributes["aria-hidden"] == "true"


def test_what_is_missing_is_told(tmp_path):
  folder = tmp_path / "bare"
  folder.mkdir()
  (folder / "config.json").write_text('{"method": "wsegpc"}')
  (folder / "pseudo_labels").mkdir()
  text, page = page_of([report.read_stage(folder)])
  shown = page.text()
  for sentence in (
    "bare has no metrics.jsonl with rows: no curves.",
    "The pseudo-labels of bare were not scored",
    "bare was never evaluated",
    "No run has logged a step yet.",
    "No run has been evaluated yet.",
    "No confusion matrix is there",
    "No run has scored pseudo-labels",
    "No room is shown.",
  ):
    assert sentence in shown, sentence
  assert len(tables(text)) == 1


def test_scores_without_matrices_are_shown(run, tmp_path):
  other = write_run(tmp_path / "two")
  (other / "eval" / "val_best.scenes.npz").unlink()
  stages = [report.read_stage(run), report.read_stage(other)]
  text, page = page_of(stages)
  assert stages[1].score.confusion is None
  assert "Without a confusion matrix: two." in page.text()
  np.testing.assert_allclose(stages[1].score.iou, stages[0].score.iou)


def test_a_split_without_labels_is_told(tmp_path):
  run = write_run(tmp_path / "one", confusion=np.zeros((1, 3, 3), int), names="a")  # fmt: skip
  stage = report.read_stage(run)
  assert stage.score is None
  assert "no labels: nothing is scored" in stage.missing[0]
  page_of([stage])


def test_the_score_of_a_run(tmp_path):
  run = write_run(tmp_path / "one")
  best = run / "eval" / "val_best.json"
  for name, step in (("val_step_0000002", 2), ("val_step_0000010", 10)):
    entry = json.loads(best.read_text()) | {"step": step}
    (run / "eval" / f"{name}.json").write_text(json.dumps(entry))
  stage = report.read_stage(run)
  assert stage.score.step == 4 and not stage.others
  assert report.read_stage(run, score="val_step_0000002").score.step == 2
  best.rename(run / "eval" / "val_latest.json")
  assert report.read_stage(run).score.step == 4
  (run / "eval" / "val_latest.json").unlink()
  assert report.read_stage(run).score.step == 10
  with pytest.raises(
    DataError, match="val_best.json not found; there is val_s"
  ):
    report.read_stage(run, score="val_best")


def test_curves_of_a_run_that_was_cut(tmp_path):
  run = write_run(tmp_path / "one")
  path = run / "metrics.jsonl"
  whole = report.read_stage(run)
  [loss] = [c for c in whole.curves if c.name == "loss"]
  assert loss.step.tolist() == [1, 2, 3, 4]
  assert loss.value.tolist() == [4, 2, 4 / 3, 1]
  with open(path, "ab") as file:
    file.write('{"step": 5, "loss": "é'.encode()[:-1])
  cut = report.read_stage(run)
  assert [c.name for c in cut.curves] == [c.name for c in whole.curves]
  # Rows after it mean that it was not the kill.
  with open(path, "a") as file:
    file.write('\n{"step": 6, "loss": 1}\n')
  with pytest.raises(DataError, match=r"metrics.jsonl: line 6 is not a row"):
    report.read_stage(run)


@pytest.mark.parametrize(
  "row", ["[]", '{"loss": 1}', '{"step": 1e400}', '{"step": true}',
          '{"step": 1, "loss": 1' + "0" * 400 + "}", '"a"']
)  # fmt: skip
def test_broken_rows_are_named(tmp_path, row):
  run = write_run(tmp_path / "one")
  path = run / "metrics.jsonl"
  path.write_text(row + "\n" + path.read_text())
  with pytest.raises(DataError, match="metrics.jsonl: line 1 is not a row"):
    report.read_stage(run)


def test_damaged_files_are_named(tmp_path):
  with pytest.raises(DataError, match="nothing: no config.json"):
    report.read_stage(tmp_path / "nothing")
  run = write_run(tmp_path / "one")
  path = run / "eval" / "val_best.json"
  text = path.read_text()
  for broken, message in (
    (text[: len(text) // 2], "val_best.json cannot be read as JSON"),
    ("[1]", "val_best.json: expected a JSON object"),
    ("{}", "val_best.json: expected the scores of an evaluation"),
    (text.replace('"miou": 0', '"miou": "x'), "cannot be read as JSON"),
    (text.replace('"floor"', '"flor"', 1), "KeyError: 'flor'"),
  ):
    path.write_text(broken)
    with pytest.raises(DataError, match=re.escape(message)):
      report.read_stage(run)
  path.write_text(text.replace('"floor"', '"flor"'))
  with pytest.raises(DataError, match="its classes are wall, floor, chair"):
    report.read_stage(run)
  path.write_text(text)
  matrices = run / "eval" / "val_best.scenes.npz"
  matrices.write_bytes(matrices.read_bytes()[:50])
  with pytest.raises(
    DataError, match="val_best.scenes.npz: expected the scene"
  ):
    report.read_stage(run)


def test_stages_need_names_of_their_own(run):
  stage = report.read_stage(run)
  with pytest.raises(DataError, match="must differ, got one, one"):
    report.render([stage, stage], title="t")
  with pytest.raises(DataError, match="at least one stage"):
    report.render([], title="t")


@pytest.mark.parametrize(
  "config, title",
  [
    ({"method": "wsegpc", "loss": {"cam_3d": 1, "cmg_2d": 0.1, "rpc_3d": 0}},
     "WSegPC: CAM + CMG from scene tags"),
    ({"method": "segmentation", "data": {"labels_from": "x"}},
     "Segmentation trained on pseudo-labels"),
    ({"method": "segmentation"}, "Segmentation trained on true labels"),
    ({"method": "clustering", "loss": {"ce": 1, "cluster": 1}},
     "Cluster3DSeg: cross-entropy, clustering within classes"),
    ({}, "unknown method"),
  ],
)  # fmt: skip
def test_titles(tmp_path, config, title):
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.json").write_text(json.dumps(config))
  assert report.read_stage(run).title == title


def test_settings_tell_what_differs(run, tmp_path):
  other = write_run(tmp_path / "two", config={"data": {"root": "rooms", "x": 1}})  # fmt: skip
  text, page = page_of([report.read_stage(run), report.read_stage(other)])
  assert tables(text)[-1][1:] == [["data.x", "not set", "1"]]
  commands = [t for path, t in page.texts if path[-1] == "pre"][0]
  assert commands.splitlines()[0] == (
    "python -m wsegpc_jax.main '--workdir=my run'"
  )
  _, same = page_of(
    [report.read_stage(run, name=name) for name in ("one", "two")]
  )
  assert "The runs have the same settings." in same.text()


def test_a_page_that_is_not_balanced_is_noticed():
  with pytest.raises(AssertionError):
    Page("<p><b></p></b>")
  with pytest.raises(AssertionError):
    Page("<p>")
