"""Cases by hand: broken lines, poses, and how 2D-3D-S encodes images."""

import json

import numpy as np
import pytest
from PIL import Image

from wsegpc_jax.interop import s3dis
from wsegpc_jax.types import IGNORE_LABEL, DataError

GOOD = b"1.5 -2 3.250 10 20 30\n"
VALUES = [1.5, -2.0, 3.25, 10.0, 20.0, 30.0]
NAME = "camera_0a1b_office_1_frame_12_domain"


@pytest.fixture
def points(tmp_path):
  path = tmp_path / "ceiling_1.txt"

  def write(text):
    path.write_bytes(text)
    return path

  return write


@pytest.mark.parametrize(
  "text, expected",
  [
    (GOOD * 3, [VALUES] * 3),
    (GOOD[:-1], [VALUES]),
    (GOOD.replace(b"\n", b"\r\n") * 2, [VALUES] * 2),
    (b"\n" + GOOD + b"\n \n" + GOOD + b"\n", [VALUES] * 2),
    (GOOD + b" 1.5  -2\t3.25   10 20 30  \n", [VALUES] * 2),
    (b"1.5 -2 3.25 10.000000 20.4 29.6\n", [[1.5, -2, 3.25, 10, 20.4, 29.6]]),
    (b"", []),
    (b"\n \n", []),
  ],
)
def test_read_points(points, text, expected):
  values = s3dis.read_points(points(text))
  np.testing.assert_array_equal(values, np.reshape(expected, (-1, 6)))


@pytest.mark.parametrize(
  "line, expected",
  [
    # Area_5/hallway_6/Annotations/ceiling_1.txt, line 180389.
    (
      b"22.350 6.692 3.048 185\x00187 182",
      [22.35, 6.692, 3.048, 185, 187, 182],
    ),
    # Area_3/hallway_2/hallway_2.txt and Area_2/auditorium_1/auditorium_1.txt.
    (
      b"19.302 -9.1\x160 1.785 146 137 106",
      [19.302, -9.16, 1.785, 146, 137, 106],
    ),
    (
      b"0.577500 -12.407500 2.604000 167.\x1000000 175.000000 177.000000",
      [0.5775, -12.4075, 2.604, 167, 175, 177],
    ),
  ],
)
def test_lines_broken_in_the_release_are_repaired(
  points, caplog, line, expected
):
  path = points(GOOD * 2 + line + b"\n" + GOOD)
  values = s3dis.read_points(path)
  np.testing.assert_array_equal(values, [VALUES, VALUES, expected, VALUES])
  (record,) = caplog.records
  assert str(path) in record.getMessage()
  assert "line 3" in record.getMessage()


def test_any_byte_that_lost_the_bit_comes_back(points):
  text = GOOD + b"-20.125 +7 0.698 14 35 200\n-6 -9 3 1 2 3\n"
  expected = [VALUES, [-20.125, 7, 0.698, 14, 35, 200], [-6, -9, 3, 1, 2, 3]]
  for at in range(len(text)):
    if text[at] == ord("\n"):
      continue
    broken = text[:at] + bytes([text[at] & ~0x20]) + text[at + 1 :]
    values = s3dis.read_points(points(broken))
    np.testing.assert_array_equal(values, expected, err_msg=str(broken))


@pytest.mark.parametrize(
  "text, found",
  [
    (GOOD + b"1 2 3 4 5\n", "line 2 has 5 numbers"),
    (GOOD + b"1 2 3 4 5 6 7\n", "line 2 has 7 numbers"),
    (b"1 2 3 4 5\n" * 2, "line 1 has 5 numbers"),
    (b"\n" + GOOD + GOOD[:-12], "line 3 has 3 numbers"),
    (GOOD + b"\n1 2 3 4 5 256\n", r"line 3 is \[.*256"),
    (GOOD + b"1 2 3 4 -5 6\n", r"line 2 is \[.*-5"),
    (GOOD + b"1 nan 3 4 5 6\n", r"line 2 is \[.*nan"),
    (GOOD + b"1e999 2 3 4 5 6\n", r"line 2 is \[inf"),
    (GOOD + b"1 2.3.4 3 4 5 6\n", "line 2 is b'1 2.3.4"),
    (GOOD + b"1,2,3,4,5,6\n", "line 2 is b'1,2"),
    (GOOD + b"1_0 2 3 4 5 6\n", "line 2 is b'1_0"),
    (GOOD + b"# 2 3 4 5 6\n", "line 2 is b'#"),
    (GOOD + b"\xff\xfe1 2 3 4 5 6\n", "line 2 is"),
    (b"PK\x03\x04\x00\n", "line 1 is"),
    (GOOD + bytes(600), "line 2 has 0 numbers"),
    (
      GOOD.replace(b" ", b"\0") * 20,
      "broken bytes in lines .*extract it again",
    ),
  ],
)
def test_other_faults_are_refused(points, text, found):
  path = points(text)
  with pytest.raises(DataError, match=found) as error:
    s3dis.read_points(path)
  assert str(path) in str(error.value)


def test_missing_file(tmp_path):
  with pytest.raises(DataError, match="floor_1.txt: cannot be read"):
    s3dis.read_points(tmp_path / "floor_1.txt")


def test_read_room(tmp_path, caplog):
  """Objects in the order of names; what is no object is left alone."""
  folder = tmp_path / "Annotations"
  folder.mkdir()
  for k, name in enumerate(
    ["wall_2", "wall_10", "ceiling_1", "stairs_1", "pillar_1", "board_1"]
  ):
    (folder / f"{name}.txt").write_text(f"{k} 0 1 {k} 2 3\n" * (k + 1))
  (folder / "wall_2 (1).txt").write_text("9 9 9 9 9 9\n")
  (folder / "table_1 (1).txt").write_text("6 0 1 6 2 3\n")  # of no other file
  for junk in ("Icon\r", ".DS_Store", ".wall_1.txt"):
    (folder / junk).write_bytes(b"\0\1")
  (tmp_path / "office_1.txt").write_text("not read")
  coord, color, label = s3dis.read_room(tmp_path)
  order = [5, 2, 4, 3, 6, 1, 0]
  counts = [6, 3, 5, 4, 1, 2, 1]
  kinds = ["board", "ceiling", "clutter", "clutter", "table", "wall", "wall"]
  assert coord.dtype == np.float32 and color.dtype == np.uint8
  np.testing.assert_array_equal(coord[:, 0], np.repeat(order, counts))
  np.testing.assert_array_equal(color[:, 0], np.repeat(order, counts))
  expected = np.repeat([s3dis.CLASSES.index(k) for k in kinds], counts)
  np.testing.assert_array_equal(label, expected)
  messages = "\n".join(record.getMessage() for record in caplog.records)
  assert "as a copy of wall_2.txt, though they differ" in messages
  assert "'pillar' is no class" in messages
  assert "stairs" not in messages


def test_room_without_points(tmp_path):
  with pytest.raises(DataError, match="Annotations: not found"):
    s3dis.read_room(tmp_path)
  (tmp_path / "Annotations").mkdir()
  (tmp_path / "Annotations" / "wall_1.txt").touch()
  with pytest.raises(DataError, match="Annotations: has no points"):
    s3dis.read_room(tmp_path)


def test_rooms_and_names(tmp_path):
  with pytest.raises(DataError, match="has no rooms"):
    s3dis.find_rooms(tmp_path)
  for room in ("Area_1/office_1", "Area_5/office_1", "Area_1/WC_1"):
    (tmp_path / room).mkdir(parents=True)
  (tmp_path / "Area_1" / "Area_1_alignmentAngle.txt").touch()
  (tmp_path / "Area_1" / ".hidden").mkdir()
  (tmp_path / "Area_7" / "office_1").mkdir(parents=True)
  every = ["Area_1_WC_1", "Area_1_office_1", "Area_5_office_1"]
  assert s3dis.find_rooms(tmp_path) == every
  assert s3dis.find_rooms(tmp_path, (5,)) == every[2:]
  with pytest.raises(DataError, match="Area_2: not found"):
    s3dis.find_rooms(tmp_path, (1, 2))
  assert s3dis.split_name("Area_5_office_1") == (5, "office_1")
  assert [s3dis.split_of(k) for k in range(1, 7)] == (
    ["train"] * 4 + ["val", "train"]
  )
  assert s3dis.pseudo_label_file("Area_1_WC_1") == "Area_1__WC_1.npz"
  for name in ("office_1", "Area_7_office_1", "Area_1_../x", "Area_1_"):
    with pytest.raises(DataError, match="no room of S3DIS"):
      s3dis.split_name(name)


def _write_frame(data, *, depth=None, color=None, pose=None, camera=None):
  for field in ("rgb", "depth", "pose"):
    (data / field).mkdir(parents=True, exist_ok=True)
  depth = np.full((4, 4), 512, np.uint16) if depth is None else depth
  Image.fromarray(depth).save(data / "depth" / f"{NAME}_depth.png")
  color = np.zeros((4, 4, 3), np.uint8) if color is None else color
  Image.fromarray(color).save(data / "rgb" / f"{NAME}_rgb.png")
  if pose is None:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
  camera = camera or [[1080, 0, 539.5], [0, 540, 269.75], [0, 0, 1]]
  content = {"camera_rt_matrix": pose, "camera_k_matrix": camera}
  (data / "pose" / f"{NAME}_pose.json").write_text(json.dumps(content))


def test_pose_is_inverted_and_area_5b_is_moved(tmp_path):
  # A camera at (1, 2, 3) that looks along +y, x to the right.
  turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
  pose = np.column_stack([turn, -turn @ [1, 2, 3]]).tolist()
  for name in ("area_5a", "Area_5b"):
    _write_frame(tmp_path / name / "data", pose=pose)
  found, _ = s3dis.read_camera(tmp_path / "area_5a" / "data", NAME)
  expected = [[1, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3], [0, 0, 0, 1]]
  np.testing.assert_allclose(found, expected, atol=1e-12)
  found, _ = s3dis.read_camera(tmp_path / "Area_5b" / "data", NAME)
  # (x, y, z) becomes (y - 4.09703582, 6.22617759 - x, z): +y becomes +x.
  expected = [
    [0, 0, 1, 2 - 4.09703582],
    [-1, 0, 0, 6.22617759 - 1],
    [0, -1, 0, 3],
    [0, 0, 0, 1],
  ]
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_frame_by_hand(tmp_path):
  depth = (
    np.array([[512, 1024], [65535, 0]], np.uint16).repeat(2, 0).repeat(2, 1)
  )
  color = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  _write_frame(tmp_path, depth=depth, color=color)
  frame = s3dis.read_frame(tmp_path, NAME)
  np.testing.assert_array_equal(frame.color, color)
  np.testing.assert_array_equal(frame.depth[::2, ::2], [[1, 2], [0, 0]])
  # 1080 pixels become 4: fx 1080 * 4 / 1080, cx 539.5 * 3 / 1079.
  np.testing.assert_allclose(frame.intrinsics, [4, 2, 1.5, 0.75])
  frame = s3dis.read_frame(tmp_path, NAME, (2, 2))
  np.testing.assert_array_equal(frame.depth, [[1, 2], [0, 0]])
  np.testing.assert_allclose(frame.intrinsics, [2, 1, 0.5, 0.25])
  assert frame.color.shape == (2, 2, 3) and frame.name == NAME


def test_frames_of_a_room_only(tmp_path):
  (tmp_path / "rgb").mkdir()
  names = [f"camera_ab_{room}_domain" for room in (
    "office_1_frame_2", "office_1_frame_10", "office_10_frame_2",
    "hallway_1_frame_0", "office_1_frame_x",
  )]  # fmt: skip
  for name in names:
    (tmp_path / "rgb" / f"{name}_rgb.png").touch()
  (tmp_path / "rgb" / f"{names[0]}_rgb.png.part").touch()
  assert s3dis.list_frames(tmp_path, "office_1") == [names[1], names[0]]


def test_image_folders(tmp_path):
  for name in ("area_1", "Area_5a", "area_5b"):
    (tmp_path / name / "data" / "rgb").mkdir(parents=True)
  found = [p.parent.name for p in s3dis.image_folders(tmp_path, 5)]
  assert found == ["Area_5a", "area_5b"]
  with pytest.raises(DataError, match="area_2/data/rgb: not found"):
    s3dis.image_folders(tmp_path, 2)
  (tmp_path / "area_5b").rename(tmp_path / "other")
  with pytest.raises(DataError, match="area_5b/data/rgb: not found"):
    s3dis.image_folders(tmp_path, 5)


def test_semantic_images(tmp_path):
  assert s3dis.read_semantic_names(tmp_path) is None
  names = ["<UNK>_0_<UNK>_0_0"] * 66000
  names[1], names[300], names[65540] = (
    "chair_1_WC_1_1",
    "stairs_2_a_1_1",
    "wall_1_a_1_1",
  )
  (tmp_path / "assets").mkdir()
  path = tmp_path / "assets" / "semantic_labels.json"
  path.write_text(json.dumps(names))
  kinds = s3dis.read_semantic_names(tmp_path)
  # Index 65536 R + 256 G + B.
  image = [[[0, 0, 0], [0, 0, 1]], [[0, 1, 44], [1, 0, 4]], [[13, 13, 13]] * 2]
  (tmp_path / "semantic").mkdir()
  png = tmp_path / "semantic" / f"{NAME}_semantic.png"
  Image.fromarray(np.array(image, np.uint8)).save(png)
  label = s3dis.read_semantic(tmp_path, NAME, (3, 2), kinds)
  none = IGNORE_LABEL
  np.testing.assert_array_equal(label, [[none, 8], [12, 2], [none, none]])
  Image.fromarray(np.full((2, 2, 3), 200, np.uint8)).save(png)
  with pytest.raises(DataError, match="expected one below 66000"):
    s3dis.read_semantic(tmp_path, NAME, (2, 2), kinds)
  path.write_text('["wall_1", 3]')
  with pytest.raises(DataError, match="expected a list of names"):
    s3dis.read_semantic_names(tmp_path)


@pytest.mark.parametrize(
  "fault, found",
  [
    ({"pose": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, r"has shape \(3, 3\)"),
    ({"pose": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}, "a rotation"),
    ({"pose": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]}, "a rotation"),
    ({"pose": [[1, 0, 0, "x"], [0, 1, 0, 0], [0, 0, 1, 0]]}, "cannot be read"),
    (
      {"pose": [[1, 0, 0, float("nan")], [0, 1, 0, 0], [0, 0, 1, 0]]},
      "a rotation",
    ),
    ({"camera": [[0, 0, 1], [0, 1, 1], [0, 0, 1]]}, "fx and fy above 0"),
    ({"camera": [[1, 2, 1], [0, 1, 1], [0, 0, 1]]}, "fx 0 cx"),
    ({"camera": [[1, 2], [0, 1]]}, "fx 0 cx"),
    ({"depth": np.zeros((4, 4), np.uint8)}, "depth.png: has mode L"),
  ],
)
def test_malformed_frames(tmp_path, fault, found):
  _write_frame(tmp_path, **fault)
  with pytest.raises(DataError, match=found) as error:
    s3dis.read_frame(tmp_path, NAME)
  assert NAME in str(error.value)


@pytest.mark.parametrize("field", ["rgb", "depth", "pose"])
def test_missing_or_cut_files_of_a_frame(tmp_path, field):
  _write_frame(tmp_path, color=np.zeros((64, 64, 3), np.uint8))
  (path,) = (tmp_path / field).iterdir()
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(DataError, match=path.name):
    s3dis.read_frame(tmp_path, NAME)
  path.unlink()
  with pytest.raises(DataError, match=f"{path.name}: not found"):
    s3dis.read_frame(tmp_path, NAME)
