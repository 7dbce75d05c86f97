"""Pictures of rooms, and where their labels come from."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from report_pages import check_self_contained

from wsegpc_jax import evaluate, report, writers
from wsegpc_jax.data import box_rooms
from wsegpc_jax.defaults import get_tiny
from wsegpc_jax.palette import palette
from wsegpc_jax.predictor import ScenePrediction
from wsegpc_jax.report import pictures
from wsegpc_jax.report import rooms as report_rooms
from wsegpc_jax.types import IGNORE_LABEL, DataError

CLASSES = ("wall", "floor", "chair")


def corner(n=6000):
  """A floor and two walls of points, labelled by themselves."""
  rng = np.random.default_rng(0)
  coord = rng.uniform(0, 2, (n, 3))
  side = rng.integers(0, 3, n)
  coord[np.arange(n), side] = 0
  label = np.where(side == 2, 1, 0)
  return coord.astype(np.float32), label


def decoded(attributes):
  raw = base64.b64decode(attributes["src"].partition("base64,")[2])
  image = Image.open(io.BytesIO(raw))
  picture = np.asarray(image.convert("RGBA") if image.mode == "P" else image)
  assert picture.shape[:2] == (int(attributes["height"]),
                               int(attributes["width"]))  # fmt: skip
  return picture


def test_pictures_of_a_room_are_in_class_colours():
  coord, label = corner()
  view = report.View(
    "7",
    np.full((24, 32, 3), 90, np.uint8),
    {"Truth": np.ones((12, 16), int), "net": np.full((12, 16), 2)},
  )
  room = report.Room(
    "room", coord, np.full((len(coord), 3), 77, np.uint8), CLASSES,
    truth=label, labels={"half": np.where(label == 1, 1, 2)}, views=(view,),
  )  # fmt: skip
  text = report.render([report.Stage("s", "t")], title="t", rooms=[room])
  page = check_self_contained(text)
  images = page.all("img")
  color, truth, half, frame, truth_2d, net = map(decoded, images)
  # One camera, cropped to what is seen.
  assert color.shape == truth.shape == half.shape
  # (A number may cover the rim of a hole.)
  assert (color[..., 3] != truth[..., 3]).mean() < 1e-3
  seen = color[..., 3] == 255
  # Rooms have 256 colours.
  near = 6
  assert (np.abs(color[seen][:, :3].astype(int) - 77) <= near).all()
  assert color[..., 3].any(axis=0)[8:-8].all()
  wall, floor, chair = palette(3)

  def shown(picture, value):
    apart = np.abs(picture[..., :3].astype(int) - value)
    return (apart <= near).all(axis=2) & seen

  # Unshaded where the surface is flat, elsewhere darker, never another hue.
  for value in (wall, floor):
    assert shown(truth, value).sum() > 0.1 * seen.sum()
  assert not shown(truth, chair).any() and not shown(half, wall).any()
  assert (shown(half, floor) == shown(truth, floor)).mean() > 0.97
  np.testing.assert_array_equal(frame, view.color)
  for picture, value in ((truth_2d, floor), (net, chair)):
    assert picture.shape[1] >= 240
    assert (picture == value).all(axis=2).mean() > 0.7  # apart from a number
  assert "wall" in images[1]["alt"] and "floor" in images[1]["alt"]
  words = page.text()
  right = 100 * (label == 1).mean()
  assert f"{right:.0f} % of points right" in words
  assert "0 % of pixels right" in words
  legend = page.all("ul", "classes")
  assert len(legend) == 1


def test_numbers_stand_on_their_class():
  label = np.zeros((100, 200), int)
  label[:, 120:] = 2
  plain = np.zeros((100, 200, 3), np.uint8)
  out = pictures.numbered(plain, label, 3)
  changed = np.argwhere((out != plain).any(axis=2))
  left, right = (changed[(changed[:, 1] < 120) == side] for side in (1, 0))
  assert len(left) and len(right)
  # The widest place of the right part is its middle, 80 wide and 100 high.
  assert abs(right[:, 1].mean() - 160) < 6
  label[:] = IGNORE_LABEL
  np.testing.assert_array_equal(pictures.numbered(plain, label, 3), plain)
  label[:3, :3] = 1  # too small to hold one
  np.testing.assert_array_equal(pictures.numbered(plain, label, 3), plain)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_points_have_a_picture(n):
  camera = pictures.Camera(np.eye(4, 3)[:n], (40, 60))
  picture = camera.paint(np.full((n, 3), 200, np.uint8))
  assert picture.shape == (*camera.size, 4) and picture[..., 3].any()
  assert camera.labels(np.zeros(n, int)).shape == camera.size


def test_edges_in_depth_are_darker():
  coord, _ = corner()
  shelf = coord[:2000] * (0.5, 0.5, 0) + (0.5, 0.5, 1.5)
  camera = pictures.Camera(np.concatenate([coord, shelf]))
  white = np.full((len(coord) + len(shelf), 3), 255, np.uint8)
  flat, shaded = (camera.paint(white, shaded=s) for s in (False, True))
  solid = flat[..., 3] == 255
  assert (flat[solid][:, 0] == 255).all()
  assert (shaded[..., :3] <= flat[..., :3]).all()
  assert 0.01 < (shaded[solid][:, 0] < 200).mean() < 0.3


def test_large_rooms_are_thinned(monkeypatch):
  coord, label = corner()
  monkeypatch.setattr(pictures, "_MOST_POINTS", 3000)
  camera = pictures.Camera(coord)
  seen = camera.labels(np.arange(len(coord)))
  seen = np.unique(seen[seen != IGNORE_LABEL])
  assert 100 < len(seen) <= 3000 and seen.max() > 3000
  # Colours are still those of the points.
  color = np.zeros((len(coord), 3), np.uint8)
  color[label == 1] = 250
  truth, floor = camera.paint(color, shaded=False), camera.labels(label) == 1
  solid = truth[..., 3] == 255
  assert ((truth[..., 0] > 125) == floor)[solid].mean() > 0.95


def test_labels_must_fit_the_room():
  coord, label = corner(10)
  with pytest.raises(DataError, match="room r: truth has 9 entries for 10"):
    report.Room("r", coord, None, CLASSES, truth=label[:9])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return box_rooms.write_rooms(
    tmp_path_factory.mktemp("rooms") / "data", train=1, val=1, seed=0, views=3,
    image_size=(30, 40), points_per_square_metre=60.0,
  )  # fmt: skip


@pytest.fixture
def run(dataset, tmp_path):
  """A working directory with pseudo-labels, all of them class 1."""
  config = get_tiny("smoke")
  config.data.root = str(dataset.root)
  config.data.image_size, config.data.num_views = (30, 40), 3
  folder = tmp_path / "run"
  writers.write_json(folder / "config.json", json.loads(config.to_json()))
  writers.write_json(
    folder / "data.json",
    {"classes": list(dataset.classes), "train_scenes": []},
  )
  (folder / "pseudo_labels").mkdir()
  for name in dataset.splits["train"]:
    n = len(dataset.load_scene(name).coord)
    np.savez(folder / "pseudo_labels" / f"{name}.npz",
             pred_label=np.ones(n, np.uint8))  # fmt: skip
  return str(folder)


def test_a_config_is_read_without_what_writes(run):
  config = report_rooms.read_config(run)
  assert config.data.box_rooms.train == 0 and config.data.cache == ""
  assert config.data.image_size == (30, 40)
  with pytest.raises(DataError, match="config.json: expected the config"):
    report_rooms.read_config(f"{run}/nothing")


def test_stored_labels_need_no_network(dataset, run):
  source = report_rooms.Source("stored", run, stored=True, network=False)
  names = dataset.splits["train"]
  [room] = report_rooms.read_rooms(dataset, names, [source], views=2)
  scene = dataset.load_scene(names[0])
  np.testing.assert_array_equal(room.truth, scene.label)
  assert room.labels.keys() == {"stored"} and (room.labels["stored"] == 1).all()
  assert [v.name for v in room.views] == list(scene.frames)[:2]
  frame = dataset.load_frame(scene.name, scene.frames[0])
  np.testing.assert_array_equal(room.views[0].color, frame.color)
  np.testing.assert_array_equal(room.views[0].labels["Truth"], frame.label)


def test_networks_label_points_and_pixels(dataset, run, monkeypatch):
  asked = []

  class Fake:
    """Says class 2, in pixels the number of the view."""

    def __call__(self, variables, scene, frames, *, tags, views):
      asked.append((tags, [f.name for f in frames]))
      k = len(dataset.classes)
      shape = (len(frames), 30, 40)
      pixels = np.broadcast_to(np.arange(len(frames))[:, None, None], shape)
      probabilities = np.tile(np.eye(k, dtype=np.float32)[2], (len(scene.coord), 1))  # fmt: skip
      return ScenePrediction(probabilities, pixels, pixels)

  monkeypatch.setattr(
    evaluate, "load_network", lambda *_: (Fake(), {}, {}, "teacher")
  )
  names = dataset.splits["train"]
  sources = [
    report_rooms.Source("net", run, pixels="net, 2D", use_tags=False),
    report_rooms.Source("both", run, stored=True, use_tags=True),
  ]
  [room] = report_rooms.read_rooms(dataset, names, sources, views=9)
  assert list(room.labels) == ["net", "both"]
  assert (room.labels["net"] == 2).all() and (room.labels["both"] == 1).all()
  scene = dataset.load_scene(names[0])
  assert asked[0][0] is None
  np.testing.assert_array_equal(asked[1][0], scene.tags)
  assert asked[0][1] == [v.name for v in room.views] == list(scene.frames)
  for number, view in enumerate(room.views):
    assert list(view.labels) == ["Truth", "net, 2D", "both"]
    assert (view.labels["both"] == number).all()


def test_another_data_set_is_refused(dataset, run):
  other = dataclasses.replace(dataset, classes=dataset.classes[:-1])
  with pytest.raises(DataError, match="is not what .* was trained on"):
    report_rooms.read_rooms(
      other, dataset.splits["train"], [report_rooms.Source("x", run)]
    )


def test_rooms_are_spread_over_a_split():
  assert report_rooms.spread("abcdef", 3) == tuple("ace")
  assert report_rooms.spread("abc", 9) == tuple("abc")
  assert report_rooms.spread("abcdefg", 2) == tuple("ad")
