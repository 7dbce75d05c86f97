"""A capture of a box room, made here by casting rays, through the script."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from posed_capture import (
  BLOCK,
  INTRINSICS,
  ROOM,
  SIZE,
  cast,
  convert,
  info,
  look,
  poses,
  prepare,
  save_frame,
  surface,
  write_capture,
)

from wsegpc_jax.data.assets import load_frame, load_scene, open_dataset
from wsegpc_jax.data.links import link_points
from wsegpc_jax.interop.capture import find_frames, read_camera, thin_out
from wsegpc_jax.interop.depth_fusion import fuse
from wsegpc_jax.interop.ply import write_point_cloud
from wsegpc_jax.types import DataError


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
  return write_capture(tmp_path_factory.mktemp("capture"))


TAGS = "--tags wall,floor,ceiling,table"


def assert_links_are_right(root, scene="room", least=0.85):
  """Linked points have the colour of their pixel, and most are linked."""
  dataset = open_dataset(root)
  scene = load_scene(dataset, scene)
  seen = np.zeros(len(scene.coord), bool)
  for name in scene.frames:
    frame = load_frame(dataset, scene.name, name)
    link = link_points(
      scene.coord, frame.depth, frame.pose, frame.intrinsics, tolerance=0.04
    )
    linked = link[:, 0] >= 0
    seen |= linked
    pixel = frame.color[tuple(link[linked].T)].astype(int)
    off = np.abs(pixel - scene.color[linked]).max(axis=1)
    assert np.mean(off < 25) > 0.93, name
  assert seen.mean() > least
  return scene


def test_one_folder_and_bin(capture, tmp_path, capsys):
  root = tmp_path / "set"
  frames = tmp_path / "frames"
  for path in (capture / "frames").iterdir():
    (frames / path.name).parent.mkdir(exist_ok=True)
    (frames / path.name).write_bytes(path.read_bytes())
  np.savetxt(frames / "00003.txt", np.full((4, 4), -np.inf))
  (frames / "00005.png").unlink()
  preview = tmp_path / "new" / "preview.png"
  line = convert(capture, root, f"{TAGS} --frames {frames} --preview {preview}")
  assert "8 frames kept, 2 dropped (" in line
  assert "1 with a lost pose" in line and "1 without depth" in line
  assert "floor found, walls found: 4" in line
  assert line in capsys.readouterr().out

  scene = assert_links_are_right(root, least=0.75)
  dataset = open_dataset(root)
  assert dataset.classes == ("wall", "floor", "table", "ceiling", "chair")
  assert dataset.splits == {"train": ("room",), "val": ()}
  assert scene.tags.tolist() == [True, True, True, True, False]
  coord, color = surface()
  np.testing.assert_array_equal(scene.coord, coord)
  np.testing.assert_array_equal(scene.color, color)
  assert scene.frames == tuple(f"{i:05d}" for i in (0, 1, 2, 4, 6, 7, 8, 9))
  # The normals face the cameras, which are inside.
  walls = np.all((coord > BLOCK[1] + 0.3) | (coord < 0.01), axis=1)
  inwards = np.sum(scene.normal * ((2, 1.5, 1.2) - coord), axis=1) > 0
  assert inwards[walls].mean() > 0.99
  # The floor is one superpoint and nothing else.
  floor = coord[:, 2] == 0
  main = np.bincount(scene.superpoint[floor]).argmax()
  assert np.mean((scene.superpoint == main) == floor) > 0.98
  frame = load_frame(dataset, "room", "00004")
  assert frame.region.min() == 0 and 2 < frame.region.max() < 100
  np.testing.assert_allclose(frame.pose, poses()[4])
  preview = Image.open(preview)
  assert preview.size == (3 * SIZE[1], 3 * SIZE[0])
  _, links, _ = np.split(np.asarray(preview).astype(int), 3, axis=1)
  assert (links.max(axis=-1) == 255).mean() > 0.3  # points are vivid
  assert sorted(p.name for p in root.iterdir()) == ["dataset.json", "room"]


def test_three_folders_other_sizes_and_ply(capture, tmp_path):
  """ScanNet's export: depth and intrinsics of other resolutions, long names."""
  folder = tmp_path / "scan"
  for i, pose in enumerate(poses()):
    save_frame(folder, str(7 * i), pose, apart=True, depth_size=(24, 32))
  twice = np.diag([2.0, 2.0, 1.0]) @ INTRINSICS
  twice[:2, 2] = INTRINSICS[:2, 2] * (127 / 63, 95 / 47)
  np.savetxt(tmp_path / "k.txt", twice)
  coord, color = surface()
  write_point_cloud(tmp_path / "room.ply", coord=coord, color=color)
  convert(
    capture,
    tmp_path / "set",
    f"{TAGS} --frames {folder} --points {tmp_path}/room.ply"
    f" --intrinsics {tmp_path}/k.txt --intrinsics_size 128 96"
    " --image_size 36 48 --every 3 --split val",
  )
  scene = assert_links_are_right(tmp_path / "set", least=0.5)
  assert scene.frames == ("0", "21", "42", "63")
  dataset = open_dataset(tmp_path / "set")
  assert dataset.splits == {"train": (), "val": ("room",)}
  frame = load_frame(dataset, "room", "21")
  assert frame.color.shape == (36, 48, 3)
  expected = 30, 30, 31.5 * 47 / 63, 23.5 * 35 / 47
  np.testing.assert_allclose(frame.intrinsics, expected)
  depth, _ = cast(poses()[3])
  near = np.abs(frame.depth[18, 24] - depth[24, 32])
  assert near < 0.1


def test_axis_align_moves_points_poses_and_normals(capture, tmp_path):
  turn = np.deg2rad(30)
  align = np.eye(4)
  align[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  align[:3, 3] = 1, -2, 0.5
  text = "colorToDepth = 1 2\naxisAlignment = " + " ".join(
    map(str, align.ravel())
  )
  (tmp_path / "scene.txt").write_text(text + "\nnumDepthFrames = 3\n")
  coord, color = surface(3000)
  normal = np.tile([0.6, 0.0, 0.8], (len(coord), 1))
  np.savez(tmp_path / "room.npz", coord=coord, color=color, normal=normal)
  root = tmp_path / "set"
  convert(
    capture,
    root,
    f"{TAGS} --points {tmp_path}/room.npz --axis_align {tmp_path}/scene.txt",
  )
  scene = assert_links_are_right(root)
  expected = coord @ align[:3, :3].T + align[:3, 3]
  np.testing.assert_allclose(scene.coord, expected, atol=1e-5)
  turned = 0.6 * np.cos(turn), 0.6 * np.sin(turn), 0.8
  np.testing.assert_allclose(
    scene.normal, np.tile(turned, (len(coord), 1)), atol=1e-6
  )


def test_fused_depth(capture, tmp_path):
  root = tmp_path / "set"
  options = f"{TAGS} --fuse_voxel 0.05 --fuse_max_depth"
  line = convert(capture, root, f"{options} 6", points=False)
  scene = assert_links_are_right(root)
  room = np.minimum(np.abs(scene.coord), np.abs(scene.coord - ROOM)).min(axis=1)
  outside = np.maximum(BLOCK[0] - scene.coord, scene.coord - BLOCK[1])
  block = np.abs(outside.max(axis=1))
  off = np.minimum(room, block)
  # Depth comes in millimetres; voxels at edges hold two surfaces.
  assert np.mean(off < 0.003) > 0.8 and np.mean(off < 0.03) > 0.97
  # No two of a voxel.
  cell = np.floor(scene.coord.astype(np.float64) / 0.05)
  assert len(np.unique(cell, axis=0)) > 0.97 * len(cell)
  assert "floor found" in line
  near = convert(
    capture, root, f"{options} 1.5 --fuse_every 2", scene="near", points=False
  )
  points = [int(x.split(" points")[0].split()[-1]) for x in (line, near)]
  assert 0 < points[1] < 0.8 * points[0]
  assert open_dataset(root).splits["train"] == ("room", "near")


def test_fusing_averages_noise_away(tmp_path):
  """24 noisy views of a wall become one sheet, not a crust."""
  rng = np.random.default_rng(0)
  frames = tmp_path / "frames"
  for i in range(24):
    pose = look((1.0 + 0.02 * i, 1.0, 1.2), (1.2, 3.0, 1.2))
    save_frame(frames, str(i), pose)
    path = frames / f"{i}.png"
    depth = np.asarray(Image.open(path)) + rng.normal(0, 20, SIZE)
    Image.fromarray(np.rint(depth).astype(np.uint16)).save(path)
  np.savetxt(frames / "intrinsic.txt", INTRINSICS)
  sources, _ = thin_out(find_frames(frames, np.eye(4)), 1)
  coord = fuse(sources, read_camera(frames), voxel=0.04)["coord"]
  low, high = (0.3, 2.8, 0.6), (1.7, 3.2, 1.9)
  wall = coord[((low < coord) & (coord < high)).all(axis=1)]
  assert np.sqrt(np.mean((wall[:, 1] - 3.0) ** 2)) < 0.009
  sheet = (high[0] - low[0]) * (high[2] - low[2]) / 0.04**2
  assert 0.8 * sheet < len(wall) < 1.5 * sheet


def test_data_set_grows_and_nothing_is_overwritten(capture, tmp_path):
  root = tmp_path / "set"
  few = f"{TAGS} --every 5 --name rooms"
  convert(capture, root, few)
  path = root / "dataset.json"
  content = json.loads(path.read_text()) | {"license": "mine"}
  path.write_text(json.dumps(content))
  convert(capture, root, f"{few} --split val", scene="b")
  dataset = open_dataset(root)
  assert dataset.name == "rooms"
  assert dataset.splits == {"train": ("room",), "val": ("b",)}
  assert json.loads(path.read_text())["license"] == "mine"

  before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
  with pytest.raises(DataError, match="room: exists"):
    convert(capture, root, few)
  other = tmp_path / "other.txt"
  other.write_text("wall\nfloor\nceiling\ntable\n")
  with pytest.raises(DataError, match="classes wall, floor, table.*--classes"):
    convert(capture, root, f"{few} --classes {other}", scene="c")
  assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_tags_of_an_info_pickle(capture, tmp_path, capsys):
  path = tmp_path / "infos.pkl"
  path.write_bytes(pickle.dumps(info()))
  few = f"--every 9 --tags_pickle {path} --axis_align {path}"
  convert(capture, tmp_path / "set", f"{few} --classes scannet20")
  assert "left out, being no class: garbagebin" in capsys.readouterr().out
  dataset = open_dataset(tmp_path / "set")
  tags = load_scene(dataset, "room").tags
  names = [dataset.classes[i] for i in np.flatnonzero(tags)]
  assert names == ["wall", "floor", "table", "shower curtain"]

  for content, message in [
    (info("elsewhere"), "lists no scene 'room'"),
    (info(axis_align_matrix=[1.0]), "axis_align: expected 4x4 numbers, got 1"),
    (info(instances=[{"box": 1}]), "bbox_label_3d"),
    ([1, 2], "info file of mmdetection3d"),
    ({"metainfo": Path("/")}, "refused.*pathlib"),
  ]:
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=f"infos.pkl: .*{message}"):
      convert(capture, tmp_path / "b", few)
  assert not (tmp_path / "b").exists()


def test_labels(capture, tmp_path):
  coord, color = surface()
  label = np.where(coord[:, 2] == 0, 1, 255)
  label[coord[:, 0] == 0] = 0
  path = tmp_path / "labels.npy"
  np.save(path, label)
  few = "--every 9 --labels"
  convert(capture, tmp_path / "set", f"{few} {path}")
  scene = load_scene(open_dataset(tmp_path / "set"), "room")
  np.testing.assert_array_equal(scene.label, label)
  assert scene.tags.tolist() == [True, True, False, False, False]

  cloud = tmp_path / "room.npz"
  np.savez(cloud, coord=coord, color=color, label=label)
  own = f"{few} points --points {cloud}"
  convert(capture, tmp_path / "set", own, scene="own")
  scene = load_scene(open_dataset(tmp_path / "set"), "own")
  np.testing.assert_array_equal(scene.label, label)

  for bad, message in [
    (label[1:], r"got int64 \(\d+,\)"),
    (label / 2, "got float64"),
    (np.where(label == 1, 5, label), r"expected 0..4 or 255, got 0..5"),
  ]:
    np.save(path, bad)
    with pytest.raises(DataError, match=f"labels.npy: .*{message}"):
      convert(capture, tmp_path / "b", f"{few} {path}")
  with pytest.raises(DataError, match="points: .*got none"):
    convert(capture, tmp_path / "b", f"{few} points")


def test_wrong_poses_are_noticed(capture, tmp_path, capsys):
  frames = tmp_path / "frames"
  for i, pose in enumerate(poses()[:3]):
    save_frame(frames, str(i), pose)
    np.savetxt(frames / f"{i}.txt", np.linalg.inv(pose))
  np.savetxt(frames / "intrinsic.txt", INTRINSICS)
  convert(capture, tmp_path / "set", f"{TAGS} --frames {frames}")
  assert "warning: only" in capsys.readouterr().err


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("0.txt", "1 2 3", "0.txt: pose: expected 4x4 numbers, got 3"),
    ("0.txt", "a " * 16, "0.txt: expected numbers"),
    ("0.txt", "2 " * 16, "0.txt: pose: expected a rotation"),
    ("0.jpg", "no image", "0.jpg: expected an intact image"),
    ("0.png", "no image", "0.png: expected an intact image"),
    ("0.png", np.zeros(SIZE, np.uint8), "0.png: .*16 bits, got uint8"),
    (
      "0.png",
      np.zeros((48, 48), np.uint16),
      r"0.png: .*\(48, 48\).*\(48, 64\)",
    ),
    ("0.jpeg", "twice", "0.jpg: the frame is also in 0.jpeg"),
    ("intrinsic.txt", "1 2 3 4", "intrinsic.txt: .*3x3 or 4x4 numbers, got 4"),
    ("intrinsic.txt", "-1 0 0 0 1 0 0 0 1", "intrinsic.txt: .*fx and fy"),
    ("intrinsic.txt", "nan 0 0 0 1 0 0 0 1", "intrinsic.txt: .*fx and fy"),
  ],
)
def test_faults_of_frames(capture, tmp_path, name, content, message):
  frames, root = tmp_path / "frames", tmp_path / "set"
  save_frame(frames, "0", poses()[0])
  np.savetxt(frames / "intrinsic.txt", INTRINSICS)
  if isinstance(content, str):
    (frames / name).write_text(content)
  else:
    Image.fromarray(content).save(frames / name)
  with pytest.raises(DataError, match=message):
    convert(capture, root, f"{TAGS} --frames {frames}")
  assert not root.exists() or not list(root.iterdir())


def test_faults_of_other_files(capture, tmp_path):
  root = tmp_path / "set"
  bad = tmp_path / "bad.bin"
  for values, message in [
    (np.zeros(7), "expected float32 x y z r g b.*got 7 numbers"),
    (np.zeros(0), "at least one point"),
    (np.full(6, np.nan), "finite"),
    (np.full(6, 300), "r g b in 0..255, got colours 300"),
  ]:
    values.astype(np.float32).tofile(bad)
    with pytest.raises(DataError, match=f"bad.bin: .*{message}"):
      convert(capture, root, f"{TAGS} --points {bad}")
  for options, message in [
    (f"{TAGS} --points {root}.bin", "set.bin: cannot be read"),
    ("--tags wall,lamp", "no class 'lamp' in wall, floor"),
    ("--tags ,", "at least one class"),
    (f"{TAGS} --classes {root}", "set: expected a readable"),
    (f"{TAGS} --frames {root}", "set.*: "),
    (f"{TAGS} --axis_align {capture}/classes.txt", "expected numbers"),
  ]:
    with pytest.raises(DataError, match=message):
      convert(capture, root, options)
  with pytest.raises(DataError, match="no surface nearer than 0.01 m"):
    convert(capture, root, f"{TAGS} --fuse_max_depth 0.01", points=False)
  assert not root.exists()


@pytest.mark.parametrize(
  "option",
  ["--every 0", "--image_size 4", "--depth_scale -1", "--labels x"],
)
def test_wrong_options_are_refused(capture, tmp_path, option, capsys):
  with pytest.raises(SystemExit):
    convert(capture, tmp_path, f"{TAGS} {option}")
  assert option.split()[0] in capsys.readouterr().err


def test_help_names_every_layout(capsys):
  with pytest.raises(SystemExit) as e:
    prepare.main(["--help"])
  assert e.value.code == 0
  text = capsys.readouterr().out
  for word in ("color/<id>.jpg", "camera-to-world", ".bin", "--tags_pickle"):
    assert word in text
