"""Miniature releases, faults included, through the script and back."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import script_modules

from wsegpc_jax.data import assets, s3dis_processed
from wsegpc_jax.data.links import link_points
from wsegpc_jax.data.preparation import verify
from wsegpc_jax.interop import s3dis
from wsegpc_jax.types import DataError

sys.path.append(str(Path(__file__).parents[1] / "data"))
import miniature_s3dis as miniature  # noqa: E402

_SCRIPT = script_modules.SCRIPTS / "prepare_s3dis.py"
prepare = script_modules.load("prepare_s3dis")

# The same room name in several areas; a name that begins with another.
ROOMS = ((1, "office_1"), (1, "office_10"), (2, "office_1"), (5, "office_1"))
SMALL = {"edge": 48, "views": 4, "points_per_square_metre": 250.0}
TURNED = {"Area_1_office_10": 90, "Area_2_office_1": 180}


def arguments(folder, root, *more):
  return [
    "--raw", str(folder / "Stanford3dDataset_v1.2"),
    "--images", str(folder / "2D-3D-Semantics"),
    "--root", str(root),
    "--every", "1",
    "--image_size", "48", "48",
    *more,
  ]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Folder of the releases, the rooms written, the data set prepared."""
  folder = tmp_path_factory.mktemp("raw")
  rooms = miniature.write_raw(folder, rooms=ROOMS, turned=TURNED, **SMALL)
  prepare.main(arguments(folder, folder / "out"))
  return folder, rooms, assets.open_dataset(folder / "out")


def test_points_labels_and_tags_come_back(prepared):
  _, rooms, dataset = prepared
  assert dataset.classes == s3dis.CLASSES == tuple(miniature.CLASSES)
  assert dataset.splits == {
    "train": ("Area_1_office_1", "Area_1_office_10", "Area_2_office_1"),
    "val": ("Area_5_office_1",),
  }
  for name, room in rooms.items():
    scene = dataset.load_scene(name)
    for field in ("coord", "color", "label", "tags"):
      expected = getattr(room.scene, field)
      np.testing.assert_array_equal(getattr(scene, field), expected, field)
    assert scene.frames == room.scene.frames


def test_normals_and_superpoints(prepared):
  _, rooms, dataset = prepared
  for name, room in rooms.items():
    scene = dataset.load_scene(name)
    agree = np.sum(scene.normal * room.scene.normal, axis=1) > 0.9
    assert agree.mean() > 0.7  # edges are round where points are this sparse
    most = np.zeros((scene.superpoint.max() + 1, len(dataset.classes)))
    np.add.at(most, (scene.superpoint, scene.label), 1)
    assert most.max(1).sum() > 0.85 * len(scene.coord)
    floor = scene.superpoint[scene.label == dataset.classes.index("floor")]
    assert np.bincount(floor).max() > 0.95 * len(floor)


def test_frames_come_back(prepared):
  """Half of area 5 was in another world, two rooms were turned."""
  _, rooms, dataset = prepared
  for name, room in rooms.items():
    for frame in room.frames:
      found = dataset.load_frame(name, frame.name)
      np.testing.assert_array_equal(found.color, frame.color)
      np.testing.assert_array_equal(found.label, frame.label)
      # Millimetres of 512ths; the middle is that of the points as written.
      np.testing.assert_allclose(found.depth, frame.depth, atol=6e-4)
      atol = 1e-3 if name in TURNED else 1e-9
      np.testing.assert_allclose(found.pose, frame.pose, atol=atol)
      np.testing.assert_allclose(found.intrinsics, frame.intrinsics)
      assert found.region.max() > 0


def test_points_are_linked_to_pixels_of_their_class(prepared):
  _, rooms, dataset = prepared
  for name in rooms:
    scene = dataset.load_scene(name)
    linked = right = 0
    for frame in scene.frames:
      frame = dataset.load_frame(name, frame)
      link = link_points(
        scene.coord, frame.depth, frame.pose, frame.intrinsics, tolerance=0.05
      )
      on = link[:, 0] >= 0
      linked += on.sum()
      right += (frame.label[tuple(link[on].T)] == scene.label[on]).sum()
    assert linked > 3000
    assert right > 0.97 * linked


def test_processed_layout_gives_the_same_scenes(prepared, tmp_path):
  _, _, dataset = prepared
  miniature.write_processed(tmp_path, rooms=ROOMS, **SMALL)
  processed = s3dis_processed.open_dataset(tmp_path)
  assert processed.splits == dataset.splits
  assert processed.classes == dataset.classes
  for name in ("Area_1_office_1", "Area_5_office_1"):
    one, other = dataset.load_scene(name), processed.load_scene(name)
    # Objects are stored in the order of names, in which stairs are no clutter.
    sort = [np.lexsort(np.rint(1000 * s.coord).T) for s in (one, other)]
    for field in ("coord", "color", "label"):
      a, b = (
        getattr(s, field)[i] for s, i in zip((one, other), sort, strict=True)
      )
      np.testing.assert_allclose(a, b, atol=6e-4 if field == "coord" else 0)
    np.testing.assert_array_equal(one.tags, other.tags)
    assert one.frames == other.frames
    for frame in one.frames:
      a = dataset.load_frame(name, frame, image_size=(32, 32))
      b = processed.load_frame(name, frame, image_size=(32, 32))
      np.testing.assert_array_equal(a.color, b.color)
      np.testing.assert_array_equal(a.label, b.label)
      np.testing.assert_allclose(a.depth, b.depth, atol=6e-4)
      np.testing.assert_allclose(a.pose, b.pose, atol=1e-9)
      np.testing.assert_allclose(a.intrinsics, b.intrinsics)


def test_it_goes_on_and_verifies(prepared, capsys):
  folder, rooms, dataset = prepared
  before = {p: p.stat().st_mtime_ns for p in dataset.root.rglob("*.npy")}
  # As if killed in the first room.
  shutil.rmtree(dataset.root / "Area_1_office_1")
  prepare.main(arguments(folder, dataset.root))
  after = {p: p.stat().st_mtime_ns for p in dataset.root.rglob("*.npy")}
  changed = {p.parent.name for p in before if before[p] != after[p]}
  assert changed == {"Area_1_office_1"}
  assert not verify(dataset.root).errors
  summary = json.loads((dataset.root / "summary.json").read_text())
  walls = sum(
    (room.scene.label == 2).sum()
    for name, room in rooms.items()
    if name in dataset.splits["train"]
  )
  found = summary["train"]["labels"]["wall"]
  assert found == {"points": walls, "scenes": 3}
  assert summary["val"]["frames"] == 4
  with pytest.raises(DataError, match="made_by"):
    prepare.main(arguments(folder, dataset.root, "--min_spacing", "0.1"))


def test_two_workers_and_a_bad_room(tmp_path):
  """The others are kept; when it is mended, only that one is made."""
  rooms = ROOMS[:2]
  small = {"edge": 32, "views": 1, "points_per_square_metre": 100.0}
  miniature.write_raw(tmp_path, rooms=rooms, faults=False, **small)
  path = (
    tmp_path / "Stanford3dDataset_v1.2/Area_1/office_1/Annotations/wall_1.txt"
  )
  text = path.read_text()
  path.write_text(text + "1 2 3\n")
  command = [sys.executable, str(_SCRIPT)]
  command += arguments(tmp_path, tmp_path / "out", "--workers", "2")
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  line = len(text.splitlines()) + 1
  assert last.startswith("error: 1 of 2 scenes failed, the first is Area_1_off")
  assert f"{path}: line {line} has 3 numbers" in last
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "out" / "dataset.json").exists()
  assert (tmp_path / "out" / "Area_1_office_10" / "scene.json").exists()
  path.write_text(text)
  prepare.main(arguments(tmp_path, tmp_path / "out"))
  dataset = assets.open_dataset(tmp_path / "out")
  assert dataset.splits == {"train": ("Area_1_office_1", "Area_1_office_10")}


def test_points_only_and_thinned_out(tmp_path):
  rooms = miniature.write_raw(tmp_path, rooms=ROOMS[-1:], **SMALL)
  (room,) = rooms.values()
  prepare.main([
    "--raw", str(tmp_path / "Stanford3dDataset_v1.2"),
    "--root", str(tmp_path / "out"), "--min_spacing", "0.1", "--areas", "5",
  ])  # fmt: skip
  dataset = assets.open_dataset(tmp_path / "out")
  scene = dataset.load_scene("Area_5_office_1")
  assert scene.frames == ()
  # By hand: the first point of each cube, in order.
  low = room.scene.coord.min(0)
  seen, first = set(), []
  for i, point in enumerate(room.scene.coord):
    cube = tuple(np.floor((point - low) / 0.1).astype(int).tolist())
    if cube not in seen:
      seen.add(cube)
      first.append(i)
  assert len(first) < 0.8 * len(room.scene.coord)
  np.testing.assert_array_equal(scene.coord, room.scene.coord[first])
  np.testing.assert_array_equal(scene.label, room.scene.label[first])


def test_ceiling_floor_and_walls_are_one_superpoint_each(tmp_path):
  """What training removes by superpoint: an empty room of 4 x 3 x 2.6 m."""
  rng = np.random.default_rng(0)
  size = np.array([4.0, 3.0, 2.6])
  folder = tmp_path / "Area_2" / "WC_1" / "Annotations"
  folder.mkdir(parents=True)
  sides = [("wall", 0, 0), ("wall", 0, 1), ("wall", 1, 0), ("wall", 1, 1)]
  sides += [("floor", 2, 0), ("ceiling", 2, 1)]
  for number, (kind, axis, end) in enumerate(sides):
    points = rng.uniform(0, size, (6000, 3))
    points[:, axis] = end * size[axis] + rng.normal(0, 0.002, 6000)
    color = np.full((6000, 3), 100 + 20 * number)
    rows = np.concatenate([points, color], 1)
    np.savetxt(folder / f"{kind}_{number}.txt", rows, fmt="%.3f")
  scene, frames = prepare.convert_room(
    tmp_path, None, 1, (8, 8), 0.0, "Area_2_WC_1"
  )
  assert not list(frames)
  which = []
  for start in range(0, len(scene.coord), 6000):
    count = np.bincount(scene.superpoint[start : start + 6000])
    assert count.max() > 0.97 * 6000
    which.append(count.argmax())
  assert len(set(which)) == 6
  # Without cameras normals face the middle of the room.
  inward = np.sum(scene.normal * (size / 2 - scene.coord), axis=1)
  assert (inward > 0).mean() > 0.97


def test_rooms_that_are_left_out(tmp_path, capsys):
  rooms = ((1, "office_1"), (1, "office_2"), (1, "office_3"), (5, "office_1"))
  miniature.write_raw(tmp_path, rooms=rooms, views=2, edge=32)
  images = tmp_path / "2D-3D-Semantics"
  for path in images.rglob("*_office_1_frame_*_rgb.png"):
    path.unlink()
  raw = tmp_path / "Stanford3dDataset_v1.2"
  splits, without = prepare.choose_rooms(raw, images, None, ["Area_1_office_3"])
  # Rooms of validation are scored without images, too.
  assert splits == {"train": ["Area_1_office_2"], "val": ["Area_5_office_1"]}
  assert without == ["Area_1_office_1"]
  splits, without = prepare.choose_rooms(raw, None, [1], [])
  assert splits == {"train": [f"Area_1_office_{k}" for k in (1, 2, 3)]}
  assert not without
  with pytest.raises(DataError, match="--exclude: 'office_3' is none"):
    prepare.choose_rooms(raw, None, None, ["office_3"])


def test_frames_that_show_nothing_of_the_room(prepared, tmp_path, caplog):
  """Images of another world: no frame is kept, and a training room fails."""
  folder, _, _ = prepared
  images = tmp_path / "images"
  shutil.copytree(folder / "2D-3D-Semantics", images)
  for path in images.rglob("*_office_1_frame_*.json"):
    content = json.loads(path.read_text())
    if path.parts[-4] == "area_1" or "_frame_0_" in path.name:
      for row in content["camera_rt_matrix"]:
        row[3] += 30.0
    path.write_text(json.dumps(content))
  raw = folder / "Stanford3dDataset_v1.2"
  convert = [raw, images, 1, (48, 48), 0.0]
  scene, frames = prepare.convert_room(*convert, "Area_1_office_1")
  with pytest.raises(DataError, match="none of 4 frames shows .* --exclude it"):
    list(frames)
  assert "only 0% of the pixels looked at lie on points" in caplog.text
  scene, frames = prepare.convert_room(*convert, "Area_5_office_1")
  names = [frame.name for frame in frames]
  assert names and not any("_frame_0_" in name for name in names)


def test_poses_of_a_symmetrical_room_stay(tmp_path):
  """Where nothing tells turns apart, the poses are left as they are."""
  rng = np.random.default_rng(0)
  points = rng.uniform(-1, 1, (40_000, 3))
  points[:, :2] /= np.abs(points[:, :2]).max(1, keepdims=True)  # four walls
  data = tmp_path / "area_1" / "data"
  (room,) = miniature.make_rooms(((1, "office_1"),), edge=24, views=1)
  pose = np.eye(4)
  pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # from the middle along +x
  frame = dataclasses.replace(
    room.frames[0],
    pose=pose,
    depth=np.full((24, 24), 1.0, np.float32),
    intrinsics=np.array([30.0, 30.0, 11.5, 11.5]),
  )
  miniature._write_frame(data, frame, pose)
  turn, share = prepare.fit_poses(
    points.astype(np.float32), [(data, frame.name)]
  )
  np.testing.assert_array_equal(turn, np.eye(4))
  assert share > 0.95


@pytest.mark.parametrize(
  "more, found",
  [
    (["--areas", "7"], "invalid choice"),
    (["--every", "0"], "expected 1 or more"),
    (["--min_spacing", "-1"], "expected 0 or more"),
    (["--min_spacing", "nan"], "expected 0 or more"),
  ],
)
def test_wrong_arguments(tmp_path, capsys, more, found):
  with pytest.raises(SystemExit):
    prepare.parse_args(["--raw", "x", "--root", "y", *more])
  assert found in capsys.readouterr().err
