"""Laser scans as scenes, and predictions of them scored and exported.

A small data set stands in for the real one; the real scans are read where they
are at hand.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from wsegpc_jax.data import cache, semantic_kitti
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.metrics import segmentation
from wsegpc_jax.types import DataError

SHARED = os.environ.get("WSEGPC_SHARED_DATA")
needs_shared = pytest.mark.skipif(
  not SHARED, reason="WSEGPC_SHARED_DATA is not set"
)
# Ids of files, with the class of each by the official map.
IDS = {
  0: 255,
  10: 0,
  252: 0,
  13: 4,
  30: 5,
  40: 8,
  60: 8,
  70: 14,
  99: 255,
  7: 255,
}


def write_scan(root, name, rng, *, n=200, labelled=True):
  """One scan of random points; returns its points and labels."""
  points = rng.normal(0, 8, (n, 4)).astype("<f4")
  points[:, 3] = rng.random(n)
  raw = rng.choice(list(IDS), n).astype("<u4")
  raw |= rng.integers(0, 900, n).astype("<u4") << 16
  path = kitti.scan_path(root, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  points.tofile(path)
  if labelled:
    path = kitti.label_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw.tofile(path)
  return points, raw


NAMES = ("00_000000", "00_000001", "00_000002", "08_000000", "10_000007")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  root = tmp_path_factory.mktemp("kitti")
  rng = np.random.default_rng(0)
  scans = {n: write_scan(root, n, rng, n=150 + i) for i, n in enumerate(NAMES)}
  for name in ("11_000000", "12_000000"):
    scans[name] = write_scan(root, name, rng, labelled=False)
  # What else lies in a real download.
  (root / "sequences" / "00" / "image_2").mkdir()
  (root / "sequences" / "01" / "labels").mkdir(parents=True)
  (root / "sequences" / "00" / "velodyne" / "._000000.bin").write_bytes(b"x")
  return root, scans


@pytest.fixture
def copy(written, tmp_path):
  root = tmp_path / "kitti"
  shutil.copytree(written[0], root)
  return root


def test_official_splits_of_what_is_there(written):
  dataset = semantic_kitti.open_dataset(written[0])
  assert dataset.name == "semantic_kitti" and len(dataset.classes) == 19
  assert dataset.splits == {
    "train": (*NAMES[:3], "10_000007"),
    "val": ("08_000000",),
    "trainval": NAMES,
    "test": ("11_000000", "12_000000"),
  }


def test_scenes(written):
  root, scans = written
  dataset = semantic_kitti.open_dataset(root)
  for name, (points, raw) in scans.items():
    scene = dataset.load_scene(name)
    assert scene.name == name and scene.frames == ()
    assert scene.color is scene.normal is scene.superpoint is None
    assert scene.coord.dtype == scene.intensity.dtype == np.float32
    np.testing.assert_array_equal(scene.coord, points[:, :3])
    np.testing.assert_array_equal(scene.intensity, points[:, 3])
    if name[:2] in ("11", "12"):
      assert not dataset.has_labels(name)
      assert scene.label is None and not scene.tags.any()
      continue
    assert dataset.has_labels(name) and scene.label.dtype == np.int32
    expected = [IDS[i & 0xFFFF] for i in raw.tolist()]
    assert scene.label.tolist() == expected
    assert set(np.flatnonzero(scene.tags)) == set(expected) - {255}
  with pytest.raises(DataError, match="has no frame 'a'"):
    dataset.load_frame("00_000000", "a")


def test_other_label_maps(written):
  root, scans = written
  _, raw = scans["08_000000"]
  ids = raw & 0xFFFF
  multi = semantic_kitti.open_dataset(root, label_map="multiscan")
  label = multi.load_scene("08_000000").label
  assert len(multi.classes) == 25
  assert (label[ids == 252] == 19).all() and (label[ids == 10] == 0).all()
  motion = semantic_kitti.open_dataset(root, label_map="motion")
  label = motion.load_scene("08_000000").label
  np.testing.assert_array_equal(label == 1, ids == 252)
  np.testing.assert_array_equal(label == 255, np.isin(ids, [0, 7]))


def test_training_on_one_map_and_scoring_another(written, tmp_path):
  root, scans = written
  dataset = semantic_kitti.open_dataset(root)
  scene = dataset.load_scene("08_000000")
  ids = scans["08_000000"][1] & 0xFFFF
  # A cache keeps the scored labels; those to train on come from the files.
  for source in (dataset, cache.cached(dataset, tmp_path / "cache")):
    labels = semantic_kitti.labels_of(source, "spvnas")(scene)
    bus_or_lane = np.isin(ids, [13, 60])
    assert (labels[bus_or_lane] == 255).all() and bus_or_lane.any()
    np.testing.assert_array_equal(
      labels[~bus_or_lane], scene.label[~bus_or_lane]
    )
    again = source.load_scene("08_000000")
    np.testing.assert_array_equal(again.label, scene.label)
    assert again.color is None
  with pytest.raises(
    DataError, match="'motion' has the classes static, moving"
  ):
    semantic_kitti.labels_of(dataset, "motion")
  test = dataset.load_scene("11_000000")
  with pytest.raises(DataError, match="labels/000000.label: not found"):
    semantic_kitti.labels_of(dataset, "spvnas")(test)


@pytest.mark.parametrize(
  "splits",
  [
    {"train": ["00_000000", "00_000001"], "val": ["00_000002"]},
    {"train": "00_000000, 00_000001", "val": "00_000002"},
    {"train": "00_000000-000001", "val": ("00_000002-999999",)},
    {"train": "00_000000-000001,00_000001", "val": "00_000002"},
  ],
)
def test_splits_of_ones_own(written, splits):
  dataset = semantic_kitti.open_dataset(written[0], splits=splits)
  assert dataset.splits == {"train": NAMES[:2], "val": NAMES[2:3]}


def test_whole_sequences_in_splits(written):
  splits = {"a": "10,00", "b": ["08"]}
  dataset = semantic_kitti.open_dataset(written[0], splits=splits)
  assert dataset.splits == {
    "a": ("10_000007", *NAMES[:3]),
    "b": ("08_000000",),
  }


@pytest.mark.parametrize(
  "options,message",
  [
    ({"splits": {"val": "09"}}, "split 'val': .* has no scans of '09'"),
    ({"splits": {"val": "00_000005"}}, "has no scans of '00_000005'"),
    ({"splits": {"val": "00_000002-000001"}}, "has no scans of"),
    ({"splits": {"val": "0_1"}}, "split 'val' has '0_1', expected a seq"),
    ({"splits": {"val": ""}}, "split 'val' has '', expected a seq"),
    ({"splits": {"val": [8]}}, "split 'val' has '8', expected a seq"),
    ({"label_map": "offical"}, "'offical': expected one of official"),
    ({"past_scans": -1}, "past_scans=-1: expected a number from 0"),
    ({"past_scans": 1.5}, "past_scans=1.5: expected a number from 0"),
  ],
)
def test_options_that_do_not_work(written, options, message):
  with pytest.raises(DataError, match=message):
    semantic_kitti.open_dataset(written[0], **options)


def test_folders_that_are_missing(tmp_path, copy):
  with pytest.raises(DataError, match="sequences: not found, expected sequen"):
    semantic_kitti.open_dataset(tmp_path / "none")
  with pytest.raises(DataError, match="did you mean .*kitti"):
    semantic_kitti.open_dataset(copy / "sequences")
  (tmp_path / "empty" / "sequences" / "00" / "labels").mkdir(parents=True)
  with pytest.raises(DataError, match="empty: no scans, expected sequences/NN"):
    semantic_kitti.open_dataset(tmp_path / "empty")
  dataset = semantic_kitti.open_dataset(copy)
  with pytest.raises(DataError, match="000009.bin: not found"):
    dataset.load_scene("00_000009")
  with pytest.raises(DataError, match="'../x' is no scan of SemanticKITTI"):
    dataset.load_scene("../x")


@pytest.mark.parametrize(
  "kind,content,message",
  [
    ("velodyne", bytes(17), "000001.bin: has 17 bytes, expected 16 for each"),
    ("velodyne", b"", "000001.bin: has 0 bytes, .* at least one point"),
    ("velodyne", np.full(8, np.nan, "<f4").tobytes(), "point 0 is .* finite"),
    ("velodyne", bytes(1600), "000001.label: has 604 bytes, expected 400"),
    ("labels", bytes(4), "000001.label: has 4 bytes, expected 604"),
  ],
)
def test_damaged_files(copy, kind, content, message):
  dataset = semantic_kitti.open_dataset(copy)
  path = {"velodyne": kitti.scan_path, "labels": kitti.label_path}[kind]
  path(copy, "00_000001").write_bytes(content)
  with pytest.raises(DataError, match=message):
    dataset.load_scene("00_000001")


# Laser: x ahead, y left, z up. Camera: x right, y down, z ahead.
LASER_IN_CAMERA = np.array(
  [[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]]
)


def write_drive(root, rng, *, scans=4):
  """A standing world, seen from a car that drives a bend.

  Returns the poses of the laser, from a scan to the world.
  """
  world = rng.uniform(-30, 30, (100, 3))
  poses, lines = [], []
  for i in range(scans):
    angle = 0.3 * i
    pose = np.eye(4)
    pose[:2, :2] = [
      [np.cos(angle), -np.sin(angle)],
      [np.sin(angle), np.cos(angle)],
    ]
    pose[:3, 3] = [2.0 * i, 0.5 * i**2, 0.1 * i]
    poses.append(pose)
    camera = LASER_IN_CAMERA @ pose @ np.linalg.inv(LASER_IN_CAMERA)
    lines.append(" ".join(f"{v:.9e}" for v in camera[:3].ravel()))
    seen = (world - pose[:3, 3]) @ pose[:3, :3]
    name = f"00_{i:06d}"
    path = kitti.scan_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.c_[seen, np.full(100, i / 10)].astype("<f4").tofile(path)
    path = kitti.label_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.full(100, 40, "<u4").tofile(path)
  folder = root / "sequences" / "00"
  (folder / "poses.txt").write_text("\n".join(lines))
  numbers = " ".join(str(v) for v in LASER_IN_CAMERA[:3].ravel())
  (folder / "calib.txt").write_text(f"P0: 1 0\nTr: {numbers}\n")
  return poses


def test_past_scans_lie_on_the_scan(tmp_path):
  write_drive(tmp_path, np.random.default_rng(4))
  single = semantic_kitti.open_dataset(tmp_path)
  joined = semantic_kitti.open_dataset(tmp_path, past_scans=2)
  for name, number in (("00_000000", 0), ("00_000001", 1), ("00_000003", 2)):
    alone, scene = single.load_scene(name), joined.load_scene(name)
    assert len(scene.coord) == len(scene.intensity) == 100 * (1 + number)
    np.testing.assert_array_equal(scene.coord[:100], alone.coord)
    # The world stands still.
    np.testing.assert_allclose(
      scene.coord, np.tile(alone.coord, (1 + number, 1)), atol=2e-5
    )
    # Only the scan itself is labelled and scored; the latest comes first.
    assert (scene.label[:100] == 8).all() and (scene.label[100:] == 255).all()
    scan = int(name[3:])
    order = np.repeat([scan - i for i in range(number + 1)], 100)
    np.testing.assert_allclose(scene.intensity, order / 10, rtol=1e-6)
    labels = semantic_kitti.labels_of(joined, "spvnas")(scene)
    np.testing.assert_array_equal(labels, scene.label)


def test_past_scans_need_poses(tmp_path):
  write_drive(tmp_path, np.random.default_rng(4))
  dataset = semantic_kitti.open_dataset(tmp_path, past_scans=5)
  kitti.scan_path(tmp_path, "00_000001").unlink()
  assert len(dataset.load_scene("00_000003").coord) == 300
  write_scan(tmp_path, "00_000004", np.random.default_rng(0))
  with pytest.raises(DataError, match="poses.txt: has 4 poses, none for scan"):
    dataset.load_scene("00_000004")
  write_scan(tmp_path, "01_000000", np.random.default_rng(0))
  with pytest.raises(DataError, match="01/calib.txt: expected a text file"):
    dataset.load_scene("01_000000")


class OfficialScorer:
  """The benchmark's protocol: rows are predictions, class 0 is ignored."""

  def __init__(self, ids):
    self.table = np.zeros(1 << 16, np.int64)
    for raw, label in ids.items():
      self.table[raw] = 0 if label == 255 else label + 1
    self.matrix = np.zeros((20, 20), np.int64)

  def add(self, predicted, true):
    rows, columns = self.table[predicted & 0xFFFF], self.table[true & 0xFFFF]
    np.add.at(self.matrix, (rows, columns), 1)

  def scores(self):
    m = self.matrix.copy()
    m[:, 0] = 0
    right = np.diag(m)
    false, missed = m.sum(1) - right, m.sum(0) - right
    iou = right / (right + false + missed + 1e-15)
    accuracy = right.sum() / (right[1:].sum() + false[1:].sum())
    return iou[1:].mean(), iou[1:], accuracy


def test_exported_predictions_score_alike(written, tmp_path):
  """Ours from classes in memory; the benchmark's from files of raw ids."""
  root, scans = written
  dataset = semantic_kitti.open_dataset(root)
  rng = np.random.default_rng(1)
  official = OfficialScorer(
    IDS
    | dict(zip([20, *range(31, 33)], [4, 6, 7], strict=True))
    | {11: 1, 15: 2, 18: 3, 44: 9, 48: 10, 49: 11, 50: 12, 51: 13}
    | {71: 15, 72: 16, 80: 17, 81: 18}
  )
  ours = np.zeros((19, 19), np.int64)
  for name in dataset.splits["trainval"]:
    scene = dataset.load_scene(name)
    label = rng.integers(0, 19, len(scene.coord))
    label = np.where(rng.random(len(label)) < 0.6, scene.label, label)
    label = np.where(label == 255, 3, label)
    ours += segmentation.confusion_matrix(label, scene.label, 19)
    path = kitti.write_prediction(
      tmp_path, name, dataset.label_map.to_raw(label)
    )
    official.add(np.fromfile(path, "<u4"), scans[name][1])
  # Truth and prediction change places in the two.
  np.testing.assert_array_equal(official.matrix[1:, 1:], ours.T)
  miou, iou, accuracy = official.scores()
  result = segmentation.scores(ours, absent="zero")
  np.testing.assert_allclose(result.iou, iou, rtol=1e-12)
  assert result.miou == pytest.approx(miou, rel=1e-12)
  assert result.allacc == pytest.approx(accuracy, rel=1e-12)


def test_the_benchmarks_rules_by_hand():
  """Three classes, one of them never true; predictions of none; ignored truth.

  Truth: 6 points of class 0, 4 of class 1, 3 ignored.
  """
  label = np.repeat([0, 1, 255], [6, 4, 3])
  prediction = np.array([0, 0, 0, 0, 1, 2, 1, 1, 1, 255, 0, 1, 2])
  matrix = segmentation.confusion_matrix(
    np.where(prediction == 255, 0, prediction),
    np.where(prediction == 255, 255, label),
    3,
  )
  assert matrix.tolist() == [[4, 1, 1], [0, 3, 0], [0, 0, 0]]
  result = segmentation.scores(
    matrix, absent="zero", missed=np.array([0, 1, 0])
  )
  # Points of ignored truth are no false positives; "none" is a miss.
  np.testing.assert_allclose(result.iou, [4 / 6, 3 / 5, 0 / 1])
  assert result.miou == pytest.approx((4 / 6 + 3 / 5) / 3)
  never = segmentation.scores(matrix[:2, :2], absent="zero")
  np.testing.assert_allclose(never.iou, [4 / 5, 3 / 4])
  # A class that is neither true nor predicted counts as 0 in the benchmark.
  empty = np.zeros((3, 3), np.int64)
  empty[0, 0] = 5
  assert segmentation.scores(empty, absent="zero").miou == pytest.approx(1 / 3)
  assert segmentation.scores(empty).miou == 1


@pytest.mark.parametrize(
  "per_mille,mean",
  [
    (
      "967 406 421 509 513 604 628 218 896 632 738 291 909 653 855 703 698 576"
      " 620",
      62.3,
    ),
    (
      "967 489 505 480 510 671 705 232 896 640 739 288 914 670 853 721 691 607"
      " 645",
      64.3,
    ),
  ],
)
def test_published_tables_have_the_published_mean(per_mille, mean):
  """The test server's tables of SPVNAS without and with clustering."""
  right = np.array(per_mille.split(), np.int64)
  result = segmentation.scores(np.diag(right), missed=1000 - right)
  np.testing.assert_allclose(result.iou, right / 1000)
  assert round(100 * result.miou, 1) == mean


@needs_shared
def test_real_scans():
  root = Path(SHARED) / "semantickitti"
  splits = {"train": "00_000000,00_000001", "val": "00_000002"}
  dataset = semantic_kitti.open_dataset(root, splits=splits)
  truth = yaml.safe_load((root / "semantic-kitti.yaml").read_text())
  numbers = (124668, 124605, 124478)
  names = dataset.splits["train"] + dataset.splits["val"]
  assert names == NAMES[:3]
  for name, n in zip(names, numbers, strict=True):
    scene = dataset.load_scene(name)
    assert len(scene.coord) == n
    folder, stem = root / "sequences" / "00", name[3:]
    points = np.fromfile(folder / "velodyne" / f"{stem}.bin", "f4")
    np.testing.assert_array_equal(
      np.c_[scene.coord, scene.intensity].ravel(), points
    )
    raw = np.fromfile(folder / "labels" / f"{stem}.label", np.uint16)[::2]
    count = dict(zip(*np.unique(raw, return_counts=True), strict=True))
    expected = np.zeros(20, int)
    for i, c in count.items():
      expected[truth["learning_map"][i]] += c
    found = np.bincount(scene.label, minlength=256)
    assert found[:19].tolist() == expected[1:].tolist()
    assert found[255] == expected[0]
    # The road is below the laser, the car with it stands at the origin.
    road = scene.coord[scene.label == 8]
    assert -2.2 < np.median(road[:, 2]) < -1.5
    assert 0 <= scene.intensity.min() and scene.intensity.max() <= 1
