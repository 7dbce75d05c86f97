"""The script on a box room: files it writes, mistakes it reports."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import script_modules
from PIL import Image

from wsegpc_jax.data import box_rooms
from wsegpc_jax.interop.ply import write_point_cloud
from wsegpc_jax.types import IGNORE_LABEL, DataError
from wsegpc_jax.viewer.prediction import read_prediction

_SCRIPT = script_modules.SCRIPTS / "visualize.py"
visualize = script_modules.load("visualize")

CLASSES = ("wall", "floor", "chair")
_HAS_VISER = importlib.util.find_spec("viser") is not None


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
  """A data set of one room, pseudo-labels and a prediction for it."""
  folder = tmp_path_factory.mktemp("rooms")
  dataset = box_rooms.write_rooms(
    folder / "data", train=1, val=0, seed=0, views=2, image_size=(30, 40),
    points_per_square_metre=60.0,
  )  # fmt: skip
  label = dataset.load_scene("room_00000").label.astype(np.uint8)
  (folder / "run" / "pseudo_labels").mkdir(parents=True)
  pseudo = folder / "run" / "pseudo_labels" / "room_00000.npz"
  np.savez(pseudo, pred_label=label)
  wrong = label.copy()
  wrong[: len(label) // 4] = (label[: len(label) // 4] + 1) % 7
  np.savez(
    folder / "out.npz", label=wrong, classes=np.array(dataset.classes),
    probabilities=np.full((len(label), 7), 1 / 7, np.float16),
  )  # fmt: skip
  return folder


def arguments(rooms, *more, scene="room_00000"):
  return ["--root", str(rooms / "data"), "--scene", scene, *map(str, more)]


def test_everything_that_can_be_shown_is(rooms):
  args = visualize.parse_args(
    arguments(
      rooms, "--workdir", rooms / "run", "--prediction", rooms / "out.npz"
    )
  )
  shown = visualize.load_exhibit(args)
  assert [layer.name for layer in shown.layers] == (
    "color truth pseudo pseudo_right prediction prediction_right confidence"
    " superpoint normal frame pixel region"
  ).split()
  legends = {layer.name: layer.legend for layer in shown.layers}
  assert [text for text, _ in legends["pseudo_right"]] == ["right, 100.0 %"]
  assert [t.split(",")[0] for t, _ in legends["prediction_right"]] == [
    "right",
    "wrong",
  ]
  assert float(legends["prediction_right"][0][0].split()[1]) == pytest.approx(
    75, abs=0.1
  )
  assert [linked.frame.name for linked in shown.frames] == ["0", "1"]
  # The links are right: a linked point has the label of its pixel.
  label = next(layer for layer in shown.layers if layer.name == "truth").color
  for linked in shown.frames:
    seen = np.flatnonzero(linked.link[:, 0] >= 0)
    truth = linked.frame.label[tuple(linked.link[seen].T)]
    per_class = [np.unique(label[seen[truth == k]], axis=0) for k in range(7)]
    assert sum(len(c) > 0 for c in per_class) >= 2
    agree = np.mean(
      [
        (label[i] == np.median(label[seen[truth == k]], axis=0)).all()
        for i, k in zip(seen, truth, strict=True)
      ]
    )
    assert agree > 0.9


def test_fewer_points_keep_what_belongs_together(rooms):
  more = ("--workdir", rooms / "run", "--prediction", rooms / "out.npz")
  whole, part = (
    visualize.load_exhibit(visualize.parse_args(arguments(rooms, *more, *some)))
    for some in ((), ("--max_points", "500", "--frames", "0"))
  )
  assert len(part.coord) == 500 and not part.frames
  rows = {tuple(c): i for i, c in enumerate(whole.coord.tolist())}
  index = [rows[tuple(c)] for c in part.coord.tolist()]
  assert len(set(index)) == 500
  by_name = {layer.name: layer for layer in whole.layers}
  for layer in part.layers:
    np.testing.assert_array_equal(layer.color, by_name[layer.name].color[index])


def test_png_of_chosen_layers_needs_no_extra(rooms, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "viser", None)
  out = tmp_path / "new" / "room.png"
  visualize.main(
    arguments(
      rooms, "--png", out, "--layers", "truth,color", "--size", 60, 80,
      "--view", "top",
    )
  )  # fmt: skip
  with Image.open(out) as image:
    assert image.width == 160 and image.height > 60
  # Another layer alone is another picture.
  visualize.main(
    arguments(rooms, "--png", out, "--layers", "normal", "--size", 60, 80)
  )
  with Image.open(out) as image:
    assert image.width == 80


def test_a_missing_extra_is_named(rooms, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "viser", None)
  for more in ((), ("--record", tmp_path / "room.html")):
    with pytest.raises(ImportError, match=r'pip install "wsegpc-jax\[viz\]"'):
      visualize.main(arguments(rooms, *more))
  assert not list(tmp_path.iterdir())


def test_mistakes_of_the_user(rooms, tmp_path):
  png = ("--png", tmp_path / "room.png")
  short = tmp_path / "labels"
  short.mkdir()
  np.savez(short / "room_00000.npz", pred_label=np.zeros(3, np.uint8))
  np.savez(tmp_path / "short.npz", label=np.zeros(3, np.uint8))
  for more, message in (
    (("--labels", tmp_path / "none"), "none: not found, expected a folder"),
    (("--workdir", tmp_path), "pseudo_labels: not found"),
    (("--labels", short), "pred_label has 3 entries"),
    (("--prediction", tmp_path / "short.npz"), "one for each point"),
    (("--prediction", tmp_path / "no.ply"), "no.ply: not found"),
    (("--layers", "pseudo"), "no layer 'pseudo' here, expected some of color"),
    (("--png", "room.jpg"), "ends in .png"),
    (("--record", "room.rrd"), "ends in .html"),
  ):
    with pytest.raises(DataError, match=message):
      visualize.main(arguments(rooms, *png, *more))
  with pytest.raises(DataError, match="'room_7': not in .*room_00000"):
    visualize.main(arguments(rooms, *png, scene="room_7"))
  with pytest.raises(DataError, match="dataset.json: not found"):
    visualize.main(["--root", str(tmp_path), "--scene", "a", *map(str, png)])
  assert not (tmp_path / "room.png").exists()


def test_a_mistake_is_one_line(rooms):
  done = subprocess.run(
    [sys.executable, _SCRIPT, *arguments(rooms, "--png", "a.png", scene="x")],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: --scene='x': not in ")
  assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not _HAS_VISER, reason="viser is not installed")
def test_recording_is_written(rooms, tmp_path):
  out = tmp_path / "room.html"
  visualize.main(arguments(rooms, "--record", out))
  page = out.read_text("utf-8")
  assert "__VISER_EMBED_DATA__" in page and "room_00000" in page
  assert [p.name for p in tmp_path.iterdir()] == ["room.html"]


def test_prediction_of_the_predict_mode(tmp_path):
  chances = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float16)
  np.savez(
    tmp_path / "out.npz", probabilities=chances, label=np.uint8([0, 1]),
    classes=np.array(CLASSES),
  )  # fmt: skip
  found = read_prediction(tmp_path / "out.npz", points=2, classes=CLASSES)
  assert found.label.tolist() == [0, 1]
  assert found.probability.tolist() == [0.5, 0.75]
  write_point_cloud(
    tmp_path / "out.ply", coord=np.zeros((2, 3)),
    color=np.zeros((2, 3), np.uint8), label=np.array([2, IGNORE_LABEL]),
  )  # fmt: skip
  found = read_prediction(tmp_path / "out.ply", points=2, classes=CLASSES)
  assert found.label.tolist() == [2, IGNORE_LABEL]
  assert found.probability is None


_GOOD = {"label": np.uint8([0, 1])}


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({}, "lacks the array 'label'"),
    ({"label": np.uint8([0])}, "one for each point"),
    ({"label": np.float32([0, 1])}, "expected integers"),
    ({"label": np.uint8([0, 3])}, "expected 0..2 or 255, got 3"),
    ({"label": np.int64([0, -1])}, "got -1"),
    (_GOOD | {"classes": np.array(["a", "b", "c"])}, "classes are a, b, c"),
    (_GOOD | {"probabilities": np.ones((2, 2))}, "expected floats"),
    (_GOOD | {"probabilities": np.ones((2, 3), int)}, "expected floats"),
    (_GOOD | {"probabilities": np.full((2, 3), np.nan)}, "expected 0..1"),
    (_GOOD | {"probabilities": np.full((2, 3), 2.0)}, "expected 0..1"),
    ({"label": np.array([{}, {}], object)}, "intact .npz"),
  ],
)
def test_prediction_that_does_not_fit(tmp_path, arrays, message):
  path = tmp_path / "out.npz"
  np.savez(path, **arrays)
  with pytest.raises(DataError, match=message) as error:
    read_prediction(path, points=2, classes=CLASSES)
  assert str(path) in str(error.value)


def test_prediction_file_missing_or_damaged(tmp_path):
  path = tmp_path / "out.npz"
  with pytest.raises(DataError, match="not found"):
    read_prediction(path, points=2, classes=CLASSES)
  with pytest.raises(DataError, match="npz or .ply"):
    read_prediction(tmp_path / "out.txt", points=2, classes=CLASSES)
  np.savez_compressed(path, label=np.zeros(1000, np.uint8))
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(DataError, match="intact"):
    read_prediction(path, points=1000, classes=CLASSES)
  cloud = {"coord": np.zeros((2, 3)), "color": np.zeros((2, 3), np.uint8)}
  write_point_cloud(tmp_path / "out.ply", **cloud)
  with pytest.raises(DataError, match="property 'label'"):
    read_prediction(tmp_path / "out.ply", points=2, classes=CLASSES)
