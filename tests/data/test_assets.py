"""The asset layout: what is written is read back, and faults are named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from wsegpc_jax.data import assets
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError, Frame, Scene

CLASSES = ("wall", "floor", "chair")
POINTS = 50


def make_scene(*, optional=True) -> Scene:
  rng = np.random.default_rng(0)
  normal = rng.normal(size=(POINTS, 3))
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  normal[0] = 0.0
  label = rng.choice([0, 2, IGNORE_LABEL], POINTS).astype(np.int32)
  superpoint = rng.permutation(POINTS).astype(np.int32) * 1000 + NO_REGION
  return Scene(
    name="room",
    coord=rng.normal(size=(POINTS, 3)).astype(np.float32),
    color=rng.integers(0, 256, (POINTS, 3)).astype(np.uint8),
    normal=normal.astype(np.float32),
    tags=np.array([True, False, True]),
    label=label if optional else None,
    superpoint=superpoint if optional else None,
  )


def make_frame(name="0", *, size=(12, 16), optional=True) -> Frame:
  rng = np.random.default_rng([1, *name.encode()])
  angle = rng.uniform(0, 6)
  pose = np.eye(4)
  pose[:2, :2] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  pose[:3, 3] = rng.normal(size=3)
  millimetres = rng.integers(0, 65536, size).astype(np.float32)
  region = rng.choice([NO_REGION, 0, 7, 65534], size).astype(np.int32)
  label = rng.choice([0, 1, 2, IGNORE_LABEL], size).astype(np.int32)
  return Frame(
    name=name,
    color=rng.integers(0, 256, (*size, 3)).astype(np.uint8),
    depth=millimetres / np.float32(1000),
    pose=pose,
    intrinsics=rng.uniform(5.0, 20.0, 4),
    region=region if optional else None,
    label=label if optional else None,
  )


def write(root, scene=None, frames=()):
  scene = scene or make_scene()
  assets.write_scene(root, scene, frames, classes=CLASSES)
  return assets.write_dataset(
    root, name="toy", classes=CLASSES, splits={"train": [scene.name]}
  )


def assert_same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype, field.name
      np.testing.assert_array_equal(x, y, err_msg=field.name)
    else:
      assert x == y, field.name


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("names", [("2", "10"), ()])
def test_round_trip_is_exact(tmp_path, optional, names):
  scene = make_scene(optional=optional)
  frames = [make_frame(name, optional=optional) for name in names]
  dataset = write(tmp_path / "new", scene, iter(frames))
  assert dataset == assets.open_dataset(tmp_path / "new")
  assert dataset.classes == CLASSES
  assert dataset.splits == {"train": ("room",)}
  assert_same(
    assets.load_scene(dataset, "room"),
    dataclasses.replace(scene, frames=names),
  )
  for frame in frames:
    assert_same(assets.load_frame(dataset, "room", frame.name), frame)
  hidden = {p.name for p in (tmp_path / "new").iterdir()}
  assert hidden == {"dataset.json", "room"}


def test_millimetres_come_back_exactly(tmp_path):
  frame = make_frame(size=(256, 256))
  every = np.arange(65536, dtype=np.float32).reshape(256, 256)
  frame = dataclasses.replace(frame, depth=every / np.float32(1000))
  dataset = write(tmp_path, frames=[frame])
  read = assets.load_frame(dataset, "room", "0")
  np.testing.assert_array_equal(read.depth, frame.depth)


def test_tags_from_labels_only_if_not_given(tmp_path):
  dataset = write(tmp_path)
  info = tmp_path / "room" / "scene.json"
  for given, expected in (
    ({}, [True, False, True]),
    ({"tags": ["floor"]}, [False, True, False]),
    ({"tags": []}, [False, False, False]),
  ):
    info.write_text(json.dumps({"points": POINTS, **given}))
    assert assets.load_scene(dataset, "room").tags.tolist() == expected
  info.write_text(json.dumps({"points": POINTS}))
  (tmp_path / "room" / "label.npy").unlink()
  with pytest.raises(DataError, match="scene.json: tags is None.*label.npy"):
    assets.load_scene(dataset, "room")


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["10", "9", "0"], ("0", "9", "10")),
    (["10", "9", "a"], ("10", "9", "a")),
    (["frame-000100", "frame-000020"], ("frame-000020", "frame-000100")),
    (["a.left", "a.right"], ("a.left", "a.right")),
  ],
)
def test_order_of_frames(tmp_path, names, expected):
  dataset = write(tmp_path, frames=[make_frame(name) for name in names])
  assert assets.load_scene(dataset, "room").frames == expected


def test_lost_frames_are_left_out_with_one_warning(tmp_path, monkeypatch):
  dataset = write(tmp_path, frames=[make_frame(str(k)) for k in range(4)])
  for name, number in (("1", "-inf"), ("2", "nan")):
    path = tmp_path / "room" / "pose" / f"{name}.txt"
    path.write_text(" ".join([number] * 16))
  warnings = []
  monkeypatch.setattr(
    assets.logging, "warning", lambda text, *args: warnings.append(text % args)
  )
  for _ in range(2):
    assert assets.load_scene(dataset, "room").frames == ("0", "3")
  assert len(warnings) == 1
  assert str(tmp_path / "room") in warnings[0] and "1, 2" in warnings[0]
  with pytest.raises(DataError, match="pose of 1 is lost"):
    assets.load_frame(dataset, "room", "1")


def test_unknown_keys_are_left_alone(tmp_path):
  scene = make_scene()
  extra = {"generator": {"seed": 3}}
  assets.write_scene(tmp_path, scene, [], classes=CLASSES, extra=extra)
  dataset = assets.write_dataset(
    tmp_path, name="toy", classes=CLASSES, splits={}, extra=extra
  )
  assert dataset == assets.open_dataset(tmp_path)
  assert_same(assets.load_scene(dataset, "room"), scene)
  for path in (tmp_path / "dataset.json", tmp_path / "room" / "scene.json"):
    assert assets.read_json(path)["generator"] == {"seed": 3}


def remove(path, _):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def rewrite(path, content):
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content)


def cut(path, fraction):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * fraction)])


def edit(path, change):
  content = {**json.loads(path.read_text()), **change}
  content = {k: v for k, v in content.items() if v is not None}
  path.write_text(json.dumps(content))


def assign(path, change):
  index, value = change
  array = np.load(path)
  array[index] = value
  np.save(path, array)


def save(path, array):
  array = np.asarray(array)
  if path.suffix == ".npy":
    np.save(path, array)
  elif path.suffix == ".txt":
    np.savetxt(path, array)
  else:
    Image.fromarray(array).save(path)


def image(dtype, *, size=(12, 16), value=1):
  return np.full(size, value, dtype)


# Each: the file, what is done to it with which argument, and what the message
# must name. It begins with the file, or with the one before the arrow.
INFO, SCENE = "dataset.json", "room/scene.json"
FAULTS = [
  (INFO, remove, 0, ["not found", "format, version", "write_dataset"]),
  (INFO, cut, 0.6, ["JSON"]),
  (INFO, rewrite, "[]", ["JSON object"]),
  (INFO, edit, {"format": "other"}, ["format", "'other'", "wsegpc-assets"]),
  (INFO, edit, {"version": 2}, ["version", "is 2", "expected 1"]),
  (INFO, edit, {"name": None}, ["name"]),
  (INFO, edit, {"classes": ["a", "a"]}, ["classes"]),
  (INFO, edit, {"classes": list(map(str, range(256)))}, ["classes", "255"]),
  (INFO, edit, {"splits": ["room"]}, ["splits"]),
  (INFO, edit, {"splits": {"val": "room"}}, ["splits.val"]),
  (INFO, edit, {"splits": {"val": ["no"]}}, ["splits.val", "'no'", "folder"]),
  (INFO, edit, {"splits": {"val": ["../a"]}}, ["splits.val", "'../a'"]),
  (SCENE, remove, 0, ["not found"]),
  (SCENE, cut, 0.6, ["JSON"]),
  (SCENE, edit, {"points": 0}, ["points", "is 0"]),
  (SCENE, edit, {"points": True}, ["points", "True"]),
  (SCENE, edit, {"tags": ["wall", "sofa"]}, ["tags", "'sofa'", "chair"]),
  (SCENE, edit, {"tags": "wall"}, ["tags", "list"]),
  ("room/coord.npy", remove, 0, ["not found", "coord"]),
  ("room/color.npy", cut, 0.6, ["color"]),
  ("room/color.npy", cut, 0, ["color"]),
  ("room/color.npy", save, [{}] * 50, ["color"]),
  ("room/coord.npy", save, np.ones((50, 3)), ["coord", "float64", "float32"]),
  ("room/normal.npy", save, np.ones((9, 3), "f4"), ["(9, 3)", "(50, 3)"]),
  ("room/label.npy", save, np.ones((50, 1), "u1"), ["(50, 1)", "(50,)"]),
  ("room/coord.npy", assign, (7, np.nan), ["coord", "nan", "(7,)", "finite"]),
  ("room/coord.npy", assign, (7, -np.inf), ["coord", "inf", "(7,)", "finite"]),
  ("room/normal.npy", assign, (3, np.nan), ["normal", "nan", "(3,)"]),
  ("room/normal.npy", assign, (3, 1.0), ["normal", "(3,)", "length 1"]),
  ("room/label.npy", assign, (11, 3), ["label", "is 3", "(11,)", "255"]),
  ("room/superpoint.npy", assign, (11, -2), ["superpoint", "-2", "(11,)"]),
  ("room/color -> /0.png", remove, 0, ["color", "pose/"]),
  ("room/color -> /0.bmp", rewrite, "", ["0.bmp", ".jpg"]),
  ("room/color -> /0.jpg", rewrite, "", ["0.jpg, 0.png"]),
  ("room/color/0.png", cut, 0.6, ["color"]),
  ("room/color/0.png", save, image("u2"), ["color", "I;16", "RGB"]),
  ("room/depth/0.png", remove, 0, ["not found", "depth"]),
  ("room/depth/0.png", cut, 0.6, ["depth"]),
  ("room/depth/0.png", save, image("u1"), ["depth", "uint16"]),
  ("room/depth/0.png", save, image("u2", size=(9, 9)), ["(9, 9)", "(12, 16)"]),
  ("room/region/0.png", remove, 0, ["not found", "region"]),
  ("room/label_2d/0.png", save, image("u2"), ["label_2d", "uint8"]),
  ("room/label_2d/0.png", save, image("u1", value=3), ["label_2d is 3", "255"]),
  ("room/pose/0.txt", remove, 0, ["not found", "pose"]),
  ("room/pose/0.txt", rewrite, "1 " * 12, ["4x4"]),
  ("room/pose/0.txt", rewrite, "one " * 16, ["4x4", "one"]),
  ("room/pose/0.txt", rewrite, b"\xff\xfe", ["4x4"]),
  ("room/pose/0.txt", save, np.diag([2, 2, 2, 1]), ["pose", "rotation"]),
  ("room/pose/0.txt", save, np.diag([1, 1, -1, 1]), ["pose", "rotation"]),
  ("room/intrinsics.txt -> /../intrinsics", remove, 0, ["not found", "3x3"]),
  ("room/intrinsics/0.txt", save, np.eye(3) + 1, ["intrinsics", "fx, 0, cx"]),
  ("room/intrinsics/0.txt", save, np.diag([0, 9, 1]), ["fx and fy above 0"]),
  ("room/intrinsics/0.txt", save, np.diag([9, np.nan, 1]), ["nan"]),
]


def load_all(root):
  dataset = assets.open_dataset(root)
  assets.load_scene(dataset, "room")
  assets.load_frame(dataset, "room", "0")


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_fault_is_named(tmp_path, number):
  files, spoil, argument, words = FAULTS[number]
  named, *below = files.split(" -> ")
  write(tmp_path, frames=[make_frame()])
  load_all(tmp_path)
  spoil((tmp_path / "".join([named, *below])).resolve(), argument)
  with pytest.raises(DataError) as caught:
    load_all(tmp_path)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path / named}: ")
  for word in ["expected", *words]:
    assert word in message
  assert "\n" not in message


@pytest.mark.parametrize("field", ["color", "depth"])
def test_images_cut_anywhere_are_refused_or_whole(tmp_path, field):
  dataset = write(tmp_path, frames=[make_frame(size=(6, 8))])
  whole = assets.load_frame(dataset, "room", "0")
  path = tmp_path / "room" / field / "0.png"
  data = path.read_bytes()
  refused = 0
  for length in range(len(data)):
    path.write_bytes(data[:length])
    try:
      frame = assets.load_frame(dataset, "room", "0")
    except DataError:
      refused += 1
    else:  # only the end mark, or checksums, are missing
      assert_same(frame, whole)
  assert refused > len(data) - 24


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_names_cannot_leave_the_folder(tmp_path, name):
  dataset = write(tmp_path, frames=[make_frame()])
  with pytest.raises(DataError, match="scene is named"):
    assets.load_scene(dataset, name)
  with pytest.raises(DataError, match="frame is named"):
    assets.load_frame(dataset, "room", name)
  with pytest.raises(DataError, match="scene is named"):
    write(tmp_path, dataclasses.replace(make_scene(), name=name))
  with pytest.raises(DataError, match="frame is named"):
    scene = dataclasses.replace(make_scene(), name="other")
    write(tmp_path, scene, [make_frame(name)])


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"coord": np.zeros((0, 3), np.float32)}, ["points"]),
    ({"coord": np.full((POINTS, 3), np.nan, np.float32)}, ["coord", "nan"]),
    ({"coord": np.full((POINTS, 3), 0.1)}, ["coord", "float64", "float32"]),
    ({"color": np.full((POINTS, 3), 256)}, ["color", "256", "uint8"]),
    ({"normal": np.zeros((9, 3), np.float32)}, ["(9, 3)", "(50, 3)"]),
    ({"label": np.full(POINTS, -1, np.int32)}, ["label", "-1", "uint8"]),
    ({"label": np.full(POINTS, 3, np.int32)}, ["label", "is 3"]),
    ({"superpoint": np.full(POINTS, -2, np.int32)}, ["superpoint", "-2"]),
    ({"tags": np.zeros(4, bool)}, ["tags", "(4,)", "(3,)"]),
    ({"frames": ("0", "1")}, ["frames", "'1'"]),
  ],
)
def test_scenes_that_cannot_be_stored(tmp_path, change, words):
  scene = dataclasses.replace(make_scene(), **change)
  with pytest.raises(DataError) as caught:
    write(tmp_path, scene, [make_frame()])
  for word in ["room", *words]:
    assert word in str(caught.value)
  assert "partial" not in str(caught.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"color": np.zeros((12, 16), np.uint8)}, ["color", "(12, 16, 3)"]),
    ({"color": np.zeros((6, 8, 3), np.uint8)}, ["(6, 8, 3)", "(12, 16, 3)"]),
    ({"depth": np.full((12, 16), 65.6)}, ["depth", "65600"]),
    ({"depth": np.full((12, 16), -0.1)}, ["depth", "-100"]),
    ({"depth": np.full((12, 16), np.nan)}, ["depth", "nan"]),
    ({"depth": np.zeros((12, 16, 1))}, ["depth", "(12, 16, 1)"]),
    ({"region": np.full((12, 16), 65535)}, ["region", "65536"]),
    ({"region": np.full((12, 16), -2)}, ["region", "-2"]),
    ({"label": np.full((12, 16), 3)}, ["label", "is 3"]),
    ({"label": np.full((12, 16), 258)}, ["label", "258"]),
    ({"label": None}, ["label_2d", "not found"]),
    ({"pose": np.full((4, 4), -np.inf)}, ["pose of 1"]),
    ({"pose": np.ones((4, 4))}, ["pose", "rotation"]),
    ({"intrinsics": np.zeros(4)}, ["intrinsics", "above 0"]),
    ({"name": "0"}, ["'0'", "twice"]),
  ],
)
def test_frames_that_cannot_be_stored(tmp_path, change, words):
  frames = [make_frame("0"), dataclasses.replace(make_frame("1"), **change)]
  with pytest.raises(DataError) as caught:
    write(tmp_path, frames=frames)
  for word in ["room", *words]:
    assert word in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_interrupted_scene_leaves_nothing(tmp_path):
  def frames():
    yield make_frame()
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    assets.write_scene(tmp_path, make_scene(), frames(), classes=CLASSES)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
  def files():
    return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

  write(tmp_path, frames=[make_frame()])
  before = files()
  with pytest.raises(DataError, match="room: exists"):
    assets.write_scene(tmp_path, make_scene(), [], classes=CLASSES)
  same = {"name": "toy", "classes": CLASSES, "splits": {"train": ["room"]}}
  assets.write_dataset(tmp_path, **same)
  with pytest.raises(DataError, match="dataset.json: describes another"):
    assets.write_dataset(tmp_path, **{**same, "splits": {}})
  assert files() == before


def test_dataset_needs_its_scenes(tmp_path):
  with pytest.raises(DataError, match="'room'"):
    assets.write_dataset(
      tmp_path, name="toy", classes=CLASSES, splits={"val": ["room"]}
    )
  assert not list(tmp_path.iterdir())


def test_resize_by_hand(tmp_path):
  size = (48, 64)
  frame = dataclasses.replace(
    make_frame(size=size), intrinsics=np.array([57.0, 58.0, 31.5, 20.0])
  )
  dataset = write(tmp_path, frames=[frame])
  read = assets.load_frame(dataset, "room", "0", image_size=(12, 32))
  np.testing.assert_allclose(
    read.intrinsics, [28.5, 14.5, 31.5 * 31 / 63, 20.0 * 11 / 47], rtol=1e-15
  )
  assert read.color.shape == (12, 32, 3)
  # The middles of blocks of 4 x 2 pixels, rounded down and right.
  for field in ("depth", "region", "label"):
    np.testing.assert_array_equal(
      getattr(read, field), getattr(frame, field)[2::4, 1::2], err_msg=field
    )


def test_intrinsics_are_those_of_the_colour_image(tmp_path):
  frame = make_frame(size=(48, 64))
  dataset = write(tmp_path, frames=[frame])
  folder = tmp_path / "room"
  small = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)
  save(folder / "depth" / "0.png", small)
  # A file for all frames, in place of one for each.
  (folder / "intrinsics" / "0.txt").rename(folder / "intrinsics.txt")
  read = assets.load_frame(dataset, "room", "0")
  np.testing.assert_array_equal(read.intrinsics, frame.intrinsics)
  metres = np.kron(small, np.ones((2, 2))).astype(np.float32)
  np.testing.assert_array_equal(read.depth, metres / np.float32(1000))
  read = assets.load_frame(dataset, "room", "0", image_size=(24, 32))
  np.testing.assert_array_equal(read.depth, small / np.float32(1000))
  np.testing.assert_allclose(read.intrinsics[:2], frame.intrinsics[:2] / 2)


@pytest.mark.parametrize("image_size", [(24, 30), (12, 15), (40, 50)])
def test_resize_keeps_colour_and_geometry_in_place(tmp_path, image_size):
  # A slanted wall, painted with the column and the row it is seen at.
  h, w = 48, 60
  fx, fy, cx, cy = intrinsics = np.array([52.0, 60.0, 28.0, 25.0])
  v, u = np.mgrid[:h, :w].astype(float)
  ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones((h, w))], -1)
  plane = np.array([0.3, -0.2, 1.0])  # plane @ x = 2
  paint = np.stack([4.0 * u, 4.0 * v, 0 * u], -1)
  frame = Frame(
    name="0",
    color=np.rint(paint).astype(np.uint8),
    depth=(2.0 / (ray @ plane)).astype(np.float32),
    pose=np.eye(4),
    intrinsics=intrinsics,
  )
  dataset = write(tmp_path, frames=[frame])
  read = assets.load_frame(dataset, "room", "0", image_size=image_size)
  fx2, fy2, cx2, cy2 = read.intrinsics
  v2, u2 = np.mgrid[: image_size[0], : image_size[1]]
  ray = np.stack([(u2 - cx2) / fx2, (v2 - cy2) / fy2, 0 * u2 + 1], -1)
  points = ray * read.depth[..., None]
  # Depth is that of the nearest pixel, up to one pixel aside.
  assert np.abs(points @ plane - 2.0).max() < 0.015
  inner = (slice(2, -2), slice(2, -2))  # the antialiasing ends at the border
  seen_u = points[..., 0] / points[..., 2] * fx + cx
  seen_v = points[..., 1] / points[..., 2] * fy + cy
  for seen, painted in (
    (seen_u, read.color[..., 0] / 4),
    (seen_v, read.color[..., 1] / 4),
  ):
    error = (seen - painted)[inner]
    # In pixels; half a grey level is 0.13, half a pixel a wrong convention.
    assert np.abs(error).max() < 0.25
    assert abs(error.mean()) < 0.1


def test_jpeg_is_resized_like_png(tmp_path):
  h, w = 242, 322
  v, u = np.mgrid[:h, :w]
  waves = [np.sin(u / 9), np.cos(v / 7), np.sin((u + v) / 11)]
  color = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
  frame = dataclasses.replace(make_frame(size=(h, w)), color=color)
  dataset = write(tmp_path, frames=[frame])
  png = assets.load_frame(dataset, "room", "0", image_size=(30, 40))
  path = tmp_path / "room" / "color" / "0.png"
  path.unlink()
  Image.fromarray(color).save(path.with_suffix(".jpg"), quality=95)
  jpg = assets.load_frame(dataset, "room", "0", image_size=(30, 40))
  assert assets.load_scene(dataset, "room").frames == ("0",)
  difference = np.abs(png.color.astype(int) - jpg.color)
  assert difference.max() < 16 and difference.mean() < 2
  np.testing.assert_array_equal(png.intrinsics, jpg.intrinsics)
