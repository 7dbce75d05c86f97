"""Predictions on disk, in both formats, against scores by definition."""

import dataclasses
import json

import numpy as np
import pytest
import script_modules

from wsegpc_jax.data import assets, box_rooms
from wsegpc_jax.interop import scannet
from wsegpc_jax.metrics import scene_matrices
from wsegpc_jax.types import IGNORE_LABEL, DataError

script = script_modules.load("evaluate_predictions")

CLASSES = scannet.CLASSES
NAMES = ("scene0", "scene1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Two rooms whose labels are random classes of ScanNet."""
  root = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  for i, name in enumerate(NAMES):
    room, _ = box_rooms.make_room(
      0, i, image_size=(8, 8), views=1, points_per_square_metre=3.0
    )
    label = rng.integers(0, 20, len(room.coord)).astype(np.int32)
    label[rng.random(len(label)) < 0.2] = IGNORE_LABEL
    scene = dataclasses.replace(
      room, name=name, label=label, frames=(), tags=np.ones(20, bool)
    )
    assets.write_scene(root, scene, (), classes=CLASSES)
  assets.write_dataset(
    root, name="s", classes=CLASSES, splits={"val": NAMES, "train": []}
  )
  return assets.open_dataset(root)


def guesses(data):
  """Predictions int32 [N] by scene, right in two of three points."""
  rng = np.random.default_rng(1)
  out = {}
  for name in NAMES:
    label = data.load_scene(name).label
    wrong = rng.integers(0, 20, len(label))
    right = (rng.random(len(label)) < 0.67) & (label != IGNORE_LABEL)
    out[name] = np.where(right, label, wrong).astype(np.int32)
  return out


def write(folder, form, predictions):
  folder.mkdir(exist_ok=True)
  for name, label in predictions.items():
    if form == "npz":
      np.savez(folder / f"{name}.npz", pred_label=label.astype(np.uint8))
    else:
      ids = [scannet.NYU40_IDS[c] if c < 20 else 0 for c in label]
      text = "".join(f"{i}\n" for i in ids)
      (folder / f"{name}.txt").write_text(text)


def run(data, folder, form, *flags):
  return script.main(
    [f"--root={data.root}", f"--predictions={folder}", f"--format={form}"]
    + list(flags)
  )


def definition(data, predictions):
  """IoU [K] over both scenes, class by class; none is a class of its own."""
  label = np.concatenate([data.load_scene(n).label for n in NAMES])
  guess = np.concatenate([predictions[n] for n in NAMES])
  label, guess = (a[label != IGNORE_LABEL] for a in (label, guess))
  return [
    np.sum((label == c) & (guess == c)) / np.sum((label == c) | (guess == c))
    for c in range(20)
  ]


@pytest.mark.parametrize("form", ["scannet", "npz"])
def test_scores_are_those_of_the_definition(data, tmp_path, capsys, form):
  predictions = guesses(data)
  write(tmp_path / "p", form, predictions)
  out = tmp_path / "out" / "scores.json"
  scores = run(data, tmp_path / "p", form, f"--output={out}")
  expected = definition(data, predictions)
  np.testing.assert_allclose(scores.points.iou, expected)
  entry = json.loads(out.read_text())
  np.testing.assert_allclose(list(entry["iou"].values()), expected)
  assert entry["miou"] == pytest.approx(np.mean(expected))
  assert form in entry["protocol"] and "split val" in entry["protocol"]
  assert "shower curtain" in capsys.readouterr().out
  scenes, classes = scene_matrices.read(scene_matrices.beside(out))
  assert scenes.names == NAMES and classes == CLASSES
  np.testing.assert_allclose(scenes.scores().iou, expected)


@pytest.mark.parametrize("form", ["scannet", "npz"])
def test_points_of_no_class(data, tmp_path, form):
  """Refused, or wrong predictions, as the benchmark has them."""
  predictions = guesses(data)
  predictions["scene1"][::5] = IGNORE_LABEL
  write(tmp_path / "p", form, predictions)
  with pytest.raises(DataError, match="scene1.*of no class.*--none_is_wrong"):
    run(data, tmp_path / "p", form)
  scores = run(data, tmp_path / "p", form, "--none_is_wrong")
  np.testing.assert_allclose(scores.points.iou, definition(data, predictions))
  label = np.concatenate([data.load_scene(n).label for n in NAMES])
  assert scores.points.points == np.sum(label != IGNORE_LABEL)


@pytest.mark.parametrize("form", ["scannet", "npz"])
@pytest.mark.parametrize(
  ("fault", "words"),
  [
    ("missing", "scene1.*not found: 1 of the 2 scenes"),
    ("short", "scene1.*points"),
    ("damaged", "scene1"),
  ],
)
def test_faults_are_named(data, tmp_path, form, fault, words):
  write(tmp_path / "p", form, guesses(data))
  path = next((tmp_path / "p").glob("scene1.*"))
  if fault == "missing":
    path.unlink()
  elif fault == "short":
    write(tmp_path / "p", form, {"scene1": guesses(data)["scene1"][:-1]})
  else:
    path.write_bytes(b"\xff\xfe no predictions \n" * 9)
  out = tmp_path / "scores.json"
  with pytest.raises(DataError, match=words):
    run(data, tmp_path / "p", form, f"--output={out}")
  assert not out.exists()


def test_a_class_that_does_not_exist(data, tmp_path):
  predictions = guesses(data)
  predictions["scene0"][3] = 20
  write(tmp_path / "p", "npz", predictions)
  with pytest.raises(DataError, match="scene0.npz.*holds 20"):
    run(data, tmp_path / "p", "npz")


def test_other_mistakes(data, tmp_path):
  write(tmp_path / "p", "npz", guesses(data))
  with pytest.raises(DataError, match="not a folder"):
    run(data, tmp_path / "q", "npz")
  with pytest.raises(DataError, match="'test' has no scenes"):
    run(data, tmp_path / "p", "npz", "--split=test")
  with pytest.raises(DataError, match="nowhere"):
    run(data, tmp_path / "p", "npz", f"--root={tmp_path}/nowhere")
  with pytest.raises(DataError, match="--output.*json"):
    run(data, tmp_path / "p", "npz", "--output=scores.txt")
