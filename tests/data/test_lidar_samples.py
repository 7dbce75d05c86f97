"""Samples of laser scans against brute force, point by point."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest

from wsegpc_jax.data import batching, semantic_kitti
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.lidar_samples import (
  CHANNELS,
  LidarSettings,
  evaluation_sample,
  training_sample,
  turn,
  voxelize_scan,
)
from wsegpc_jax.data.test_time import View
from wsegpc_jax.types import DataError, Scene

SHARED = os.environ.get("WSEGPC_SHARED_DATA")
SIZE = 0.05


def scan(seed=0, n=4000, labelled=True):
  """A street: ground, a wall, and points in the air."""
  rng = np.random.default_rng(seed)
  coord = rng.uniform([-9, -5, -1.8], [9, 5, -1.7], (n, 3))
  coord[: n // 4, 1] = 4
  coord[: n // 4, 2] = rng.uniform(-1.8, 2, n // 4)
  coord[-9:] = rng.normal(0, 3, (9, 3))
  label = rng.choice([8, 12, 255], n).astype(np.int32)
  return Scene(
    name="00_000000",
    coord=coord.astype(np.float32),
    color=None,
    normal=None,
    tags=np.isin(np.arange(19), [8, 12]),
    label=label if labelled else None,
    intensity=rng.random(n).astype(np.float32),
  )


@dataclasses.dataclass(frozen=True)
class OneScan(Dataset):
  scene: Scene

  def load_scene(self, scene_name):
    return self.scene

  def load_frame(self, scene_name, frame_name, *, image_size=None):
    raise NotImplementedError

  def has_labels(self, scene_name):
    return self.scene.label is not None


def dataset(scene):
  splits = {"train": (scene.name,)}
  return OneScan(Path("-"), "one", ("c",) * 19, splits, scene)


def voxels_by_hand(coord):
  """First point of each voxel, by the voxel, one point after the other."""
  first = {}
  for i, point in enumerate(coord.astype(np.float64).tolist()):
    first.setdefault(tuple(math.floor(v / SIZE + 0.5) for v in point), i)
  return first


def level_counts(coords):
  return tuple(len(np.unique(coords >> i, axis=0)) for i in range(5))


def interleaved(coords):
  """Morton keys, bit by bit."""
  key = np.zeros(len(coords), np.int64)
  for bit in range(21):
    for axis in range(3):
      key |= (coords[:, axis].astype(np.int64) >> bit & 1) << (
        3 * bit + 2 - axis
      )
  return key


def check_consistent(sample):
  student = sample.student
  assert student.coords.dtype == np.int32 and student.coords.min() >= 0
  assert (np.diff(interleaved(student.coords)) > 0).all()
  assert student.level_counts == level_counts(student.coords)
  assert student.features.shape == (len(student.coords), CHANNELS)
  assert student.features.dtype == np.float32
  assert sample.label.dtype == np.int32
  assert len(sample.label) == len(student.coords)


def test_a_voxel_is_its_first_point():
  scene = scan()
  sample = evaluation_sample(scene, LidarSettings())
  check_consistent(sample)
  first = voxels_by_hand(scene.coord)
  assert len(first) == len(sample.student.coords) < len(scene.coord)
  # Features tell which point it is.
  rows = {tuple(r): i for i, r in enumerate(sample.student.features.tolist())}
  shifts = set()
  for place, point in first.items():
    row = rows[(*scene.coord[point].tolist(), float(scene.intensity[point]))]
    shifts.add(tuple((sample.student.coords[row] - place).tolist()))
    assert sample.label[row] == scene.label[point]
    assert sample.inverse[point] == row
  # One shift for all, by whole cells of the coarsest level.
  assert len(shifts) == 1 and all(s % 16 == 0 for s in shifts.pop())
  # Every point lies in the voxel that it is mapped to.
  assert sample.inverse.shape == (len(scene.coord),)
  own = sample.student.features[sample.inverse, :3]
  assert np.abs(own - scene.coord).max() <= SIZE + 1e-5


def test_half_way_between_two_voxels():
  coord = np.array(
    [
      [0.0, 0, 0],
      [0.0249, 0, 0],
      [0.0251, 0, 0],
      [-0.0249, 0, 0],
      [-0.0251, 0, 0],
    ],
    np.float32,
  )
  voxels = voxelize_scan(coord, SIZE)
  x = voxels.coords[voxels.inverse, 0]
  assert (x - x[0]).tolist() == [0, 0, 1, 0, -1]


def test_training_turns_and_scales_about_the_laser():
  scene = scan()
  settings = LidarSettings(max_voxels=None)
  # Points of one remission each: the features say which point it is.
  point_of = {float(v): i for i, v in enumerate(scene.intensity)}
  angles, scales = [], []
  for seed in range(60):
    rng = np.random.default_rng(seed)
    sample = training_sample(dataset(scene), scene.name, rng, settings)
    features = sample.student.features.astype(np.float64)
    points = [point_of[float(v)] for v in features[:, 3]]
    before = scene.coord[points].astype(np.float64)
    np.testing.assert_array_equal(sample.label, scene.label[points])
    ratio = features[:, 2] / before[:, 2]
    plane = (features[:, 0] + 1j * features[:, 1]) / (
      before[:, 0] + 1j * before[:, 1]
    )
    # One factor and one angle for all points: a similarity about z.
    assert np.ptp(ratio) < 1e-5 and np.abs(plane - plane[0]).max() < 1e-4
    np.testing.assert_allclose(np.abs(plane), ratio, rtol=1e-4)
    angles.append(np.angle(plane[0]) % (2 * np.pi))
    scales.append(ratio[0])
    if not seed:
      check_consistent(sample)
      again = training_sample(
        dataset(scene), scene.name, np.random.default_rng(seed), settings
      )
      np.testing.assert_array_equal(
        again.student.features, sample.student.features
      )
  # 60 draws of a uniform law: no sixth of its range is without one.
  for values, low, high in ((angles, 0, 2 * np.pi), (scales, 0.95, 1.05)):
    assert low <= min(values) and max(values) <= high + 1e-6
    assert np.histogram(values, 6, (low, high))[0].min() > 0


@pytest.mark.parametrize("cap", ["random", "nearest"])
def test_the_cap(cap):
  scene = scan()
  settings = LidarSettings(
    max_voxels=500, cap=cap, rotate=False, scales=(1.0, 1.0)
  )
  whole = evaluation_sample(scene, settings)
  assert len(whole.student.coords) > 3000  # evaluation is not cropped
  row_of = {tuple(c): i for i, c in enumerate(whole.student.coords.tolist())}
  chosen = np.zeros(len(row_of), int)
  for seed in range(40):
    rng = np.random.default_rng(seed)
    sample = training_sample(dataset(scene), scene.name, rng, settings)
    check_consistent(sample)
    rows = [row_of[tuple(c)] for c in sample.student.coords.tolist()]
    assert len(set(rows)) == 500
    np.testing.assert_array_equal(sample.label, whole.label[rows])
    np.testing.assert_array_equal(
      sample.student.features, whole.student.features[rows]
    )
    chosen[rows] += 1
    if cap == "nearest":
      # Some voxel has no other one, left out, nearer than the farthest kept.
      plan = whole.student.coords[:, :2].astype(float)
      away = np.hypot(*(plan[rows][:, None] - plan).transpose(2, 0, 1))
      kept = np.zeros(len(plan), bool)
      kept[rows] = True
      assert (away[:, kept].max(1) <= away[:, ~kept].min(1) + 1e-9).any()
  if cap == "random":
    # Each count is binomial; all of them together fit, too.
    p = 500 / len(chosen)
    deviation = (chosen - 40 * p) / np.sqrt(40 * p * (1 - p))
    assert abs(np.square(deviation).mean() - 1) < 0.15


def test_no_cap_where_it_is_not_reached():
  scene = scan()
  number = len(evaluation_sample(scene, LidarSettings()).student.coords)
  for most in (number, number + 1, None):
    settings = LidarSettings(max_voxels=most, rotate=False, scales=(1.0, 1.0))
    rng = np.random.default_rng(0)
    sample = training_sample(dataset(scene), scene.name, rng, settings)
    assert len(sample.student.coords) == number
    check_consistent(sample)


def test_views_of_evaluation():
  scene = scan()
  settings = LidarSettings()
  plain = evaluation_sample(scene, settings)
  turned = evaluation_sample(View(angle=np.pi / 2).apply(scene), settings)
  check_consistent(turned)
  # A quarter turn: x becomes y, y becomes -x, z and remission stay.
  first = voxels_by_hand(turn(scene.coord, np.pi / 2))
  assert len(first) == len(turned.student.coords)
  for point in list(first.values())[::50]:
    x, y, z = scene.coord[point]
    row = turned.student.features[turned.inverse[point]]
    np.testing.assert_allclose(
      row, [-y, x, z, scene.intensity[point]], atol=1e-5
    )
  assert len(plain.inverse) == len(turned.inverse)


def test_labels_of_another_source_and_none():
  scene = scan(labelled=False)
  settings = LidarSettings(max_voxels=300)
  sample = training_sample(
    dataset(scene), scene.name, np.random.default_rng(0), settings
  )
  assert (sample.label == 255).all()
  assert (evaluation_sample(scene, settings).label == 255).all()
  sample = training_sample(
    dataset(scene),
    scene.name,
    np.random.default_rng(0),
    settings,
    labels=lambda s: np.full(len(s.coord), 7, np.int64),
  )
  assert (sample.label == 7).all() and sample.label.dtype == np.int32


def test_mistakes():
  for options, message in (
    ({"cap": "first"}, 'cap=.first.: expected "random" or "nearest"'),
    ({"max_voxels": 0}, "max_voxels=0: expected at least 1"),
  ):
    with pytest.raises(DataError, match=message):
      LidarSettings(**options)
  room = dataclasses.replace(scan(), intensity=None)
  with pytest.raises(DataError, match="00_000000 has no intensity, expected"):
    evaluation_sample(room, LidarSettings())


def test_a_batch_of_scans():
  scenes = [scan(seed) for seed in range(2)]
  samples = [evaluation_sample(s, LidarSettings()) for s in scenes]
  layout = batching.Layout(buckets=(90_000,), slots=2, channels=CHANNELS)
  batch = batching.collate(samples, layout, 0, num_classes=19, teacher=False)
  number = [len(s.student.coords) for s in samples]
  assert batch.student.count == sum(number)
  assert batch.student.features.shape == (90_000, 4)
  np.testing.assert_array_equal(
    batch.student.features[number[0] : sum(number)],
    samples[1].student.features,
  )
  assert (batch.label[sum(number) :] == 255).all()


@pytest.mark.skipif(not SHARED, reason="WSEGPC_SHARED_DATA is not set")
def test_real_scans_in_one_piece():
  root = Path(SHARED) / "semantickitti"
  scans = semantic_kitti.open_dataset(root)
  found = {}
  for name in scans.splits["train"]:
    scene = scans.load_scene(name)
    sample = evaluation_sample(scene, LidarSettings())
    found[name] = sample.student.level_counts
    # Counted by another way to round.
    cells = np.rint(scene.coord.astype(np.float64) / SIZE).astype(np.int64)
    assert abs(len(np.unique(cells, axis=0)) - found[name][0]) <= 2
    assert sample.inverse.max() + 1 == found[name][0]
    # Labels of voxels, back at the points, are those of the points but where
    # a voxel has points of two classes.
    same = sample.label[sample.inverse] == scene.label
    assert 0.98 < same.mean() < 1
    sample = training_sample(
      scans, name, np.random.default_rng(0), LidarSettings()
    )
    check_consistent(sample)
    assert len(sample.student.coords) == 80_000
  assert found == {
    "00_000000": (91852, 60248, 31774, 14458, 5926),
    "00_000001": (91491, 59537, 31408, 14246, 5864),
    "00_000002": (90936, 59092, 30880, 13997, 5785),
  }
