"""Two runs through the script, against numbers worked out here."""

import json

import numpy as np
import pytest
import script_modules

from wsegpc_jax import evaluate
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.types import DataError

compare_runs = script_modules.load("compare_runs")

CLASSES = ("wall", "shower curtain")
NAMES = ("a", "b", "c")
# Of each scene: [[wall right, taken for curtain], [taken for wall, right]].
A = np.array([[[8, 2], [1, 9]], [[5, 5], [0, 10]], [[10, 0], [4, 6]]])
B = np.array([[[9, 1], [1, 9]], [[6, 4], [0, 10]], [[10, 0], [3, 7]]])


def write(
  workdir,
  matrices,
  *,
  names=NAMES,
  classes=CLASSES,
  protocol="p",
  file="val_best",
):
  scenes = SceneMatrices(names, matrices)
  scores = evaluate.Scores(scenes.scores(), scenes=scenes)
  path = workdir / "eval" / f"{file}.json"
  evaluate.write_scores(path, scores, classes, protocol=protocol, step=1)
  return str(workdir)


@pytest.fixture
def runs(tmp_path):
  return write(tmp_path / "one", A), write(tmp_path / "two", B)


def iou(total):
  (a, b), (c, d) = total
  return np.array([a / (a + b + c), d / (d + b + c)])


def test_table_and_json(runs, tmp_path, capsys):
  out = tmp_path / "difference.json"
  compare_runs.main([*runs, "--output", str(out), "--draws", "500"])
  result = json.loads(out.read_text())
  ious = [iou(m.sum(0)) for m in (A, B)]
  for i, name in enumerate(CLASSES):
    entry = result["iou"][name]
    assert entry["a"] == pytest.approx(ious[0][i])
    assert entry["b"] == pytest.approx(ious[1][i])
    assert entry["difference"] == pytest.approx(ious[1][i] - ious[0][i])
    assert entry["low"] <= entry["difference"] <= entry["high"]
  delta = ious[1].mean() - ious[0].mean()
  assert result["miou"]["difference"] == pytest.approx(delta)
  assert result["scenes"] == 3 and result["warnings"] == []
  # B is better in each scene, so in every draw of them.
  assert result["b_better"] == 1 and result["miou"]["low"] > 0
  table = capsys.readouterr().out
  row = next(x for x in table.splitlines() if x.startswith("mean"))
  assert f"{100 * delta:+.2f}" in row and row.endswith("*")
  assert "shower curtain" in table and "95 % interval" in table


def test_a_json_is_a_run_too(runs):
  path = f"{runs[1]}/eval/val_best.json"
  assert compare_runs.main([runs[0], path]).miou > 0


def test_scenes_are_matched_by_name(runs, tmp_path):
  other = write(tmp_path / "x", B[::-1], names=NAMES[::-1])
  one, two = (compare_runs.main([runs[0], r]) for r in (runs[1], other))
  assert one.miou == two.miou and one.miou_low == two.miou_low


def test_a_class_in_neither(tmp_path, capsys):
  matrices = np.zeros((3, 3, 3), int)
  matrices[:, :2, :2] = A
  classes = (*CLASSES, "sink")
  run = write(tmp_path / "x", matrices, classes=classes)
  compare_runs.main([run, run])
  row = next(
    x for x in capsys.readouterr().out.splitlines() if x.startswith("sink")
  )
  assert row.split() == ["sink", "-", "-", "-", "-"]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(protocol="q"), "protocols differ: 'p' and 'q'"),
    (dict(names=("a", "b", "d")), "scenes differ: 2 .* such as c; 2 are in"),
    (dict(matrices=B + 1), "labels differ: 3 scenes.* such as a"),
  ],
)
def test_what_differs_is_refused_or_forced(
  runs, tmp_path, capsys, change, words
):
  other = write(tmp_path / "x", **{"matrices": B} | change)
  with pytest.raises(DataError, match=f"{words}.*--force"):
    compare_runs.main([runs[0], other])
  out = tmp_path / "d.json"
  compare_runs.main([runs[0], other, "--force", "--output", str(out)])
  assert "warning: " in capsys.readouterr().err
  result = json.loads(out.read_text())
  assert len(result["warnings"]) == 1
  assert result["scenes"] == (2 if "names" in change else 3)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(classes=("wall", "sink")), "classes differ.*shower curtain.*sink"),
    (dict(names=("x", "y", "z")), "no scored scene in common"),
  ],
)
def test_what_cannot_be_forced(runs, tmp_path, change, words):
  other = write(tmp_path / "x", B, **change)
  with pytest.raises(DataError, match=words):
    compare_runs.main([runs[0], other, "--force"])


def test_mistakes_are_named(runs, tmp_path):
  with pytest.raises(DataError, match="--name can be val_best"):
    compare_runs.main([*runs, "--name", "test_best"])
  with pytest.raises(DataError, match="nowhere"):
    compare_runs.main([runs[0], str(tmp_path / "nowhere")])
  (tmp_path / "list.json").write_text("[1]")
  with pytest.raises(DataError, match="list.json.*protocol"):
    compare_runs.main([runs[0], str(tmp_path / "list.json")])
  for flag in ("--draws=0", "--confidence=2", "--seed=-1"):
    with pytest.raises(DataError, match=flag.split("=")[0]):
      compare_runs.main([*runs, flag])
  (tmp_path / "two" / "eval" / "val_best.scenes.npz").unlink()
  with pytest.raises(DataError, match="val_best.scenes.npz"):
    compare_runs.main(list(runs))


def test_one_scene_has_no_intervals(tmp_path, capsys):
  runs = [
    str(write(tmp_path / name, matrices[:1], names=("a",)))
    for name, matrices in (("a", A), ("b", B))
  ]
  compare_runs.main([*runs, "--draws", "100"])
  table = capsys.readouterr().out
  assert ".." not in table and "*" not in table
  assert "no intervals" in table
