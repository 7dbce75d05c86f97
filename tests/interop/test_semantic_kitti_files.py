"""SemanticKITTI's label maps, files, poses and submissions."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.interop import semantic_kitti_submission as submission
from wsegpc_jax.types import DataError

SHARED = os.environ.get("WSEGPC_SHARED_DATA")
needs_shared = pytest.mark.skipif(
  not SHARED, reason="WSEGPC_SHARED_DATA is not set"
)
FILES = {
  "official": "semantic-kitti.yaml",
  "multiscan": "semantic-kitti-all.yaml",
  "motion": "semantic-kitti-mos.yaml",
}
EVERY_ID = np.arange(1 << 16, dtype=np.uint32)

# A map of two classes in the format of the official API.
SMALL = {
  "labels": {0: "none", 10: "car", 40: "road", 60: "lane", 99: "other"},
  "learning_map": {0: 0, 10: 3, 40: 1, 60: 1, 99: 2},
  "learning_map_inv": {0: 0, 1: 40, 2: 99, 3: 10},
  "learning_ignore": {0: True, 1: False, 2: True, 3: False},
}


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_constants_are_those_of_the_official_files(name):
  path = Path(SHARED) / "semantickitti" / FILES[name]
  truth = yaml.safe_load(path.read_text())
  table = kitti.LABEL_MAPS[name]
  expected = np.full(1 << 16, 255)
  for raw, label in truth["learning_map"].items():
    expected[raw] = label - 1 if label else 255  # only 0 is ignored here
  np.testing.assert_array_equal(table.to_class(EVERY_ID), expected)
  inverse = truth["learning_map_inv"]
  assert len(table.classes) == len(inverse) - 1
  written = table.to_raw(np.arange(len(table.classes)))
  assert written.tolist() == [inverse[i] for i in range(1, len(inverse))]
  names = tuple(truth["labels"][i] for i in written.tolist())
  assert table.classes == names
  read = kitti.get_label_map(str(path))
  assert read.classes == table.classes
  np.testing.assert_array_equal(read.to_class(EVERY_ID), expected)
  np.testing.assert_array_equal(read.to_raw(np.arange(len(names))), written)
  assert set(truth["labels"]) <= kitti.RAW_IDS


@needs_shared
def test_coarse_file_leaves_out_the_ignored_class():
  path = Path(SHARED) / "semantickitti" / "semantic-kitti-coarse.yaml"
  table = kitti.get_label_map(str(path))
  assert table.classes == (
    "road",
    "building",
    "car",
    "vegetation",
    "person",
    "pole",
    "sidewalk",
  )
  found = table.to_class(np.array([0, 60, 52, 257, 81, 49]))
  assert found.tolist() == [255, 0, 1, 4, 5, 6]


def test_maps_by_hand():
  official = kitti.LABEL_MAPS["official"]
  raw = [0, 1, 10, 252, 13, 257, 60, 81, 52, 99, 2, 300, 65535]
  assert official.to_class(np.array(raw, np.uint32)).tolist() == [
    255,
    255,
    0,
    0,
    4,
    4,
    8,
    18,
    255,
    255,
    255,
    255,
    255,
  ]
  multi = kitti.LABEL_MAPS["multiscan"].to_class(np.array([10, 252, 257, 256]))
  assert multi.tolist() == [0, 19, 23, 23]
  motion = kitti.LABEL_MAPS["motion"].to_class(np.array([1, 9, 52, 99, 259]))
  assert motion.tolist() == [255, 0, 0, 0, 1]
  differing = EVERY_ID[
    official.to_class(EVERY_ID) != kitti.LABEL_MAPS["spvnas"].to_class(EVERY_ID)
  ]
  assert differing.tolist() == [13, 16, 60, 256, 257]
  spvnas = kitti.LABEL_MAPS["spvnas"].to_class(differing)
  assert (spvnas == 255).all()


@pytest.mark.parametrize("name", kitti.LABEL_MAPS)
def test_there_and_back(name):
  table = kitti.LABEL_MAPS[name]
  labels = np.array([*range(len(table.classes)), 255], np.uint8)
  raw = table.to_raw(labels)
  assert raw.dtype == np.uint32 and raw[-1] == 0
  np.testing.assert_array_equal(table.to_class(raw), labels)
  instance = np.arange(len(raw), dtype=np.uint32) << 16
  np.testing.assert_array_equal(table.to_class(raw | instance), labels)


@pytest.mark.parametrize("label", [[0, 19], [-1], [254], [0.5], [256]])
def test_labels_of_no_class_are_not_written(label):
  with pytest.raises(DataError, match="expected integers below 19"):
    kitti.LABEL_MAPS["official"].to_raw(np.array(label))


def test_a_map_from_a_file(tmp_path):
  path = tmp_path / "map.yaml"
  path.write_text(yaml.safe_dump(SMALL))
  table = kitti.get_label_map(str(path))
  assert table.classes == ("road", "car")
  raw = np.array([0, 10, 40, 60, 99, 7])
  assert table.to_class(raw).tolist() == [255, 1, 0, 0, 255, 255]
  assert table.to_raw(np.array([0, 1, 255])).tolist() == [40, 10, 0]


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("labels", None, "labels is missing or malformed"),
    ("labels", {0: "none"}, "learning_map_inv.1. is 40"),
    ("learning_map", {"car": 1}, "learning_map is missing or malformed"),
    ("learning_map", {70000: 1}, "70000, expected 16 bits"),
    ("learning_map_inv", {0: 0, 1: 10}, "learning_map_inv.1. is 10"),
    ("learning_map_inv", {0: 0}, "has 0 classes"),
    ("learning_ignore", [1], "learning_ignore is missing or malformed"),
  ],
)
def test_faulty_maps(tmp_path, field, value, message):
  path = tmp_path / "map.yaml"
  path.write_text(yaml.safe_dump(SMALL | {field: value}))
  with pytest.raises(DataError, match=f"map.yaml: .*{message}"):
    kitti.get_label_map(str(path))


@pytest.mark.parametrize(
  "content", [b"{", b"- 1", b"\xff\xfe\xff", b"[" * 5000]
)
def test_files_that_are_no_maps(tmp_path, content):
  path = tmp_path / "map.yaml"
  path.write_bytes(content)
  with pytest.raises(DataError, match="map.yaml: "):
    kitti.get_label_map(str(path))


def test_unknown_maps(tmp_path):
  with pytest.raises(DataError, match="expected one of official, spvnas"):
    kitti.get_label_map("offical")
  with pytest.raises(DataError, match="none.yaml: expected a YAML label map"):
    kitti.get_label_map(str(tmp_path / "none.yaml"))


def test_official_splits_have_all_sequences_once():
  every = kitti.TRAIN_SEQUENCES + kitti.VAL_SEQUENCES + kitti.TEST_SEQUENCES
  assert sorted(every) == [f"{i:02d}" for i in range(22)]


@pytest.mark.parametrize(
  "name", ["8_000000", "08_00001", "08", "08_000000.bin"]
)
def test_names(name):
  assert kitti.split_name("08_000123") == ("08", "000123")
  with pytest.raises(DataError, match="expected a name like 08_000123"):
    kitti.split_name(name)


def points(rng, n=20):
  return rng.normal(0, 10, (n, 4)).astype("<f4")


@pytest.mark.parametrize(
  "change,message",
  [
    (lambda p: p.tobytes()[:-1], "has 319 bytes, expected 16 for each point"),
    (lambda p: p.tobytes()[:-4], "has 316 bytes, expected 16 for each point"),
    (lambda p: b"", "has 0 bytes, expected 16 for each point"),
    (lambda p: np.where(p == p[7, 1], np.nan, p).tobytes(), "point 7 is "),
    (lambda p: np.where(p == p[9, 3], -np.inf, p).tobytes(), "point 9 is "),
  ],
)
def test_damaged_scans(tmp_path, change, message):
  path = tmp_path / "000000.bin"
  whole = points(np.random.default_rng(0))
  path.write_bytes(whole.tobytes())
  coord, remission = kitti.read_scan(path)
  np.testing.assert_array_equal(np.c_[coord, remission], whole)
  assert kitti.count_points(path) == 20
  path.write_bytes(change(whole))
  with pytest.raises(DataError, match=f"000000.bin: {message}"):
    kitti.read_scan(path)


def test_files_that_are_missing(tmp_path):
  (tmp_path / "folder.bin").mkdir()
  for path in (tmp_path / "none.bin", tmp_path / "folder.bin"):
    with pytest.raises(DataError, match=path.name):
      kitti.read_scan(path)
    with pytest.raises(DataError, match=path.name):
      kitti.count_points(path)
    with pytest.raises(DataError, match=path.name):
      kitti.read_labels(path, 1)


@pytest.mark.parametrize("size", [0, 76, 79, 84])
def test_labels_of_another_length(tmp_path, size):
  path = tmp_path / "000000.label"
  path.write_bytes(bytes(size))
  with pytest.raises(DataError, match=f"has {size} bytes, expected 80: one ui"):
    kitti.read_labels(path, 20)


def test_predictions_there_and_back(tmp_path):
  raw = np.array([10, 252, 40 | 7 << 16], np.uint32)
  path = kitti.write_prediction(tmp_path / "new", "08_000123", raw)
  assert path == (
    tmp_path / "new" / "sequences" / "08" / "predictions" / "000123.label"
  )
  assert path.read_bytes().hex() == "0a000000fc00000028000700"
  np.testing.assert_array_equal(kitti.read_labels(path, 3), raw)


# Laser: x ahead, y left, z up. Camera: x right, y down, z ahead.
CALIBRATION = "P0: 7 0 6 0 0 7 1 0 0 0 1 0\nTr: 0 -1 0 .1 0 0 -1 .2 1 0 0 -.3\n"


def write_poses(root, lines, calibration=CALIBRATION):
  folder = root / "sequences" / "00"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "calib.txt").write_text(calibration)
  (folder / "poses.txt").write_text("".join(f"{line}\n" for line in lines))


def test_poses_in_the_frame_of_the_laser(tmp_path):
  # The camera moves 2 m ahead; then it has turned left by 90 degrees.
  write_poses(
    tmp_path,
    [
      "1 0 0 0 0 1 0 0 0 0 1 0",
      "1 0 0 0 0 1 0 0 0 0 1 2",
      "",
      "0 0 -1 0 0 1 0 0 1 0 0 2",
    ],
  )
  poses = kitti.read_poses(tmp_path, "00")
  np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-12)
  ahead = np.eye(4)
  ahead[0, 3] = 2
  np.testing.assert_allclose(poses[1], ahead, atol=1e-12)
  # What is ahead of the turned laser is left of the first one.
  np.testing.assert_allclose(poses[2][:3, 0], [0, 1, 0], atol=1e-12)
  np.testing.assert_allclose(poses[2][:3, 1], [-1, 0, 0], atol=1e-12)
  # At first the camera is .3 m ahead of the laser and .1 m left of it. It has
  # moved by 2 m, and the laser was carried around it.
  camera, laser = np.array([0.3, 0.1]) + [2, 0], np.array([-0.3, -0.1])
  place = camera + [-laser[1], laser[0]]
  np.testing.assert_allclose(poses[2][:2, 3], place, atol=1e-12)


GOOD = "1 0 0 0 0 1 0 0 0 0 1 0"


@pytest.mark.parametrize(
  "lines,calibration,message",
  [
    ([], CALIBRATION, "poses.txt: is empty"),
    (["1 0 0"], CALIBRATION, "poses.txt: .*expected 12 finite numbers"),
    ([GOOD, "nan" + GOOD[1:]], CALIBRATION, "poses.txt: .*12 finite numbers"),
    ([GOOD, "x" + GOOD[1:]], CALIBRATION, "poses.txt: .*12 finite numbers"),
    ([GOOD, "2" + GOOD[1:]], CALIBRATION, "poses.txt: .*expected a rotation"),
    ([GOOD, "-1" + GOOD[1:]], CALIBRATION, "poses.txt: .*expected a rotation"),
    ([GOOD], "P0: 1\n", "calib.txt: expected one line 'Tr: '"),
    ([GOOD], "Tr 1 2\n", "calib.txt: expected one line 'Tr: '"),
    ([GOOD], "Tr: 1 2\n", "calib.txt: .*expected 12 finite numbers"),
  ],
)
def test_damaged_poses(tmp_path, lines, calibration, message):
  write_poses(tmp_path, lines, calibration)
  with pytest.raises(DataError, match=message):
    kitti.read_poses(tmp_path, "00")


def test_missing_poses(tmp_path):
  write_poses(tmp_path, [GOOD])
  (tmp_path / "sequences" / "00" / "poses.txt").unlink()
  with pytest.raises(DataError, match="poses.txt: expected a text file, need"):
    kitti.read_poses(tmp_path, "00")
  with pytest.raises(DataError, match="calib.txt: expected a text file, need"):
    kitti.read_poses(tmp_path, "01")


def write_scans(root, sequences, rng):
  """Scans of every sequence; their points by scene name."""
  numbers = {}
  for sequence in sequences:
    folder = root / "sequences" / sequence / "velodyne"
    folder.mkdir(parents=True)
    for scan in range(3):
      n = int(rng.integers(5, 40))
      points(rng, n).tofile(folder / f"{scan:06d}.bin")
      numbers[f"{sequence}_{scan:06d}"] = n
  return numbers


def official_check(archive, root, sequences):
  """What the benchmark's validator asks for, in its own terms."""
  with zipfile.ZipFile(archive) as file:
    sizes = {i.filename: i.file_size for i in file.infolist()}
  assert str(archive).endswith(".zip")
  folders = {name for name in sizes if name.endswith("/")}
  assert "sequences/" in folders
  for s in sequences:
    assert {f"sequences/{s}/", f"sequences/{s}/predictions/"} <= folders
    for scan in os.listdir(root / "sequences" / s / "velodyne"):
      size = (root / "sequences" / s / "velodyne" / scan).stat().st_size
      stem = os.path.splitext(scan)[0]
      assert sizes[f"sequences/{s}/predictions/{stem}.label"] / 4 == size / 16


@pytest.fixture
def predicted(tmp_path):
  """A data set, its predictions as classes, and the folder they are in."""
  rng = np.random.default_rng(3)
  root, folder = tmp_path / "data", tmp_path / "predictions"
  numbers = write_scans(root, kitti.TEST_SEQUENCES, rng)
  labels = {}
  for name, n in numbers.items():
    labels[name] = rng.integers(0, 19, n)
    raw = kitti.LABEL_MAPS["official"].to_raw(labels[name])
    kitti.write_prediction(folder, name, raw)
  scans = submission.submitted_scans(root, kitti.TEST_SEQUENCES)
  assert scans == numbers
  return root, folder, labels, scans


def test_a_submission(predicted, tmp_path):
  root, folder, labels, scans = predicted
  archive = tmp_path / "out" / "submission.zip"
  submission.write_submission(
    archive, folder, scans, description="method name: ours\n"
  )
  official_check(archive, root, kitti.TEST_SEQUENCES)
  found = submission.validate_submission(archive, scans)
  assert found == submission.Submission(33, sum(scans.values()))
  with zipfile.ZipFile(archive) as file:
    assert file.testzip() is None
    assert file.read("description.txt") == b"method name: ours\n"
    for name, label in labels.items():
      sequence, scan = name.split("_")
      raw = file.read(f"sequences/{sequence}/predictions/{scan}.label")
      raw = np.frombuffer(raw, "<u4")
      np.testing.assert_array_equal(
        kitti.LABEL_MAPS["official"].to_class(raw), label
      )
  again = tmp_path / "again.zip"
  submission.write_submission(
    again, folder, scans, description="method name: ours\n"
  )
  assert again.read_bytes() == archive.read_bytes()


def rewrite(source, target, change):
  """An archive with members changed: (name, content) -> content or None."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
    for info in old.infolist():
      content = change(info.filename, old.read(info))
      if content is not None:
        new.writestr(info.filename, content)


@pytest.mark.parametrize(
  "member,content,message",
  [
    ("sequences/", None, "has no entry 'sequences/'"),
    ("sequences/13/", None, "has no entry 'sequences/13/'"),
    ("sequences/21/predictions/", None, "has no entry 'sequences/21/pred"),
    ("sequences/17/predictions/000001.label", None, "lacks sequences/17/pr"),
    ("sequences/11/predictions/000000.label", b"123", "has 3 bytes, expected"),
  ],
)
def test_faults_of_an_archive(predicted, tmp_path, member, content, message):
  root, folder, _, scans = predicted
  good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
  submission.write_submission(good, folder, scans)
  rewrite(good, bad, lambda n, c: content if n == member else c)
  with pytest.raises((AssertionError, KeyError)):
    official_check(bad, root, kitti.TEST_SEQUENCES)
  with pytest.raises(DataError, match=f"bad.zip: .*{message}"):
    submission.validate_submission(bad, scans)
  # The description may be missing, and members of other names are ignored.
  rewrite(good, bad, lambda n, c: None if n == "description.txt" else c)
  submission.validate_submission(bad, scans)


def test_classes_are_not_taken_for_raw_ids(predicted, tmp_path):
  _, folder, labels, scans = predicted
  good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
  submission.write_submission(good, folder, scans)
  member = "sequences/12/predictions/000002.label"
  learned = np.full(scans["12_000002"], 3, "<u4")
  rewrite(good, bad, lambda n, c: learned.tobytes() if n == member else c)
  with pytest.raises(DataError, match=f"bad.zip: {member}: has id 3, expected"):
    submission.validate_submission(bad, scans)
  # Predictions as other programs write them.
  for name, label in labels.items():
    own = (label + 1).astype(np.uint32) | np.uint32(5 << 16)
    own[0] = 0
    kitti.write_prediction(folder, name, own)
  with pytest.raises(DataError, match=r"\.label: has id \d+, expected raw ids"):
    submission.write_submission(bad, folder, scans)
  official = kitti.LABEL_MAPS["official"]
  submission.write_submission(bad, folder, scans, remap=official)
  submission.validate_submission(bad, scans)
  with zipfile.ZipFile(bad) as file:
    raw = np.frombuffer(file.read(member), "<u4")
  assert raw[0] == 0 and (raw[1:] >> 16 == 5).all()
  np.testing.assert_array_equal(
    official.to_class(raw[1:]), labels["12_000002"][1:]
  )
  kitti.write_prediction(folder, "11_000000", np.full(scans["11_000000"], 20))
  with pytest.raises(DataError, match="has id 20, expected 0..19"):
    submission.write_submission(bad, folder, scans, remap=official)


def test_a_failure_leaves_what_was_there(predicted, tmp_path):
  _, folder, _, scans = predicted
  archive = tmp_path / "submission.zip"
  archive.write_bytes(b"precious")
  kitti.prediction_path(folder, "21_000002").unlink()
  with pytest.raises(DataError, match="21/predictions/000002.label: not found"):
    submission.write_submission(archive, folder, scans)
  assert archive.read_bytes() == b"precious"
  assert [p.name for p in tmp_path.glob("*.tmp")] == []
  kitti.write_prediction(folder, "21_000002", np.zeros(1))
  with pytest.raises(DataError, match="has 4 bytes, expected"):
    submission.write_submission(archive, folder, scans)
  with pytest.raises(DataError, match="expected a name that ends in .zip"):
    submission.write_submission(tmp_path / "a.tar", folder, scans)


def test_damaged_archives(predicted, tmp_path):
  _, folder, _, scans = predicted
  archive = tmp_path / "submission.zip"
  submission.write_submission(archive, folder, scans)
  whole = archive.read_bytes()
  with zipfile.ZipFile(archive) as file:
    info = file.getinfo("sequences/15/predictions/000001.label")
  start = info.header_offset + 30 + len(info.filename)
  flipped = bytearray(whole)
  flipped[start + info.compress_size // 2] ^= 0xFF
  for content in (b"", whole[: len(whole) // 2], bytes(flipped), b"PK" * 99):
    archive.write_bytes(content)
    with pytest.raises(DataError, match="expected an intact zip archive"):
      submission.validate_submission(archive, scans)
  archive.unlink()
  with pytest.raises(DataError, match="expected an intact zip archive"):
    submission.validate_submission(archive, scans)


def test_sequences_that_are_missing(predicted):
  root, *_ = predicted
  with pytest.raises(DataError, match="08/velodyne: has no scans, expected"):
    submission.submitted_scans(root, kitti.VAL_SEQUENCES)
  with pytest.raises(DataError, match="did you mean .*data"):
    kitti.list_scans(root / "sequences")
  (root / "sequences" / "11" / "velodyne" / "0.bin").write_bytes(bytes(16))
  with pytest.raises(DataError, match="0.bin: expected a name of six digits"):
    kitti.list_scans(root)
