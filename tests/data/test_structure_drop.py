"""Structure removal on a hand-made room and against a loop; exact crops."""

from collections import Counter

import numpy as np
import pytest

from wsegpc_jax.data import structure_drop
from wsegpc_jax.types import NO_REGION

WALL, FLOOR, CEILING, TABLE = 0, 1, 2, 3
CLASSES = dict(wall_class=WALL, floor_class=FLOOR)

# Superpoints of the room.
FLOOR_SP, TABLE_SP, CEILING_SP, SHELF_SP = 7, 0, 11, 12
WALL_SPS = (3, 4, 5, 6)


def _rng(seed=0):
  return np.random.default_rng(seed)


def _room():
  """A 4 x 6 x 3 m room; the superpoint of each point, and its coordinates."""
  rng = _rng()
  low, high = np.zeros(3), np.array([4.0, 6.0, 3.0])
  parts = []

  def add(superpoint, count, start, stop):
    coord = rng.uniform(start, stop, (count, 3))
    parts.append((coord, np.full(count, superpoint)))

  add(FLOOR_SP, 300, low, (4, 6, 0.02))
  add(CEILING_SP, 200, (0, 0, 2.98), high)
  add(WALL_SPS[0], 90, low, (0.02, 6, 3))
  add(WALL_SPS[1], 91, (3.98, 0, 0), high)
  add(WALL_SPS[2], 92, low, (4, 0.02, 3))
  add(WALL_SPS[3], 93, (0, 5.98, 0), high)
  # By far the largest, but no side's margin holds more than a little of it.
  add(TABLE_SP, 2000, (1, 1, 0.45), (3, 5, 1.5))
  add(SHELF_SP, 40, (0.1, 1, 1), (0.4, 2, 2))
  # Scanned points that no superpoint took, in every margin.
  add(NO_REGION, 3000, low, high)
  coord = np.concatenate([coord for coord, _ in parts]).astype(np.float32)
  superpoint = np.concatenate([name for _, name in parts]).astype(np.int32)
  order = rng.permutation(len(coord))
  return coord[order], superpoint[order]


def _drop(coord, superpoint, tags=None, rng=None, **settings):
  tags = np.ones(5, bool) if tags is None else tags
  settings = CLASSES | dict(probability=1.0) | settings
  return structure_drop.drop_structures(
    coord, superpoint, tags, rng or _rng(), **settings
  )


@pytest.mark.parametrize("with_ceiling", [False, True])
def test_every_combination_is_drawn_and_exact(with_ceiling):
  coord, superpoint = _room()
  structures = {FLOOR: (FLOOR_SP,), WALL: WALL_SPS}
  settings = {}
  if with_ceiling:
    structures[CEILING] = (CEILING_SP,)
    settings = dict(ceiling_class=CEILING)
  tags = np.array([True, True, True, True, False])
  rng = _rng(1)
  drawn = Counter()
  runs = 320
  for _ in range(runs):
    keep, tags_3d = _drop(
      coord, superpoint, tags, rng, probability=0.5, **settings
    )
    cleared = tuple(np.flatnonzero(tags & ~tags_3d))
    gone = [name for label in cleared for name in structures[label]]
    np.testing.assert_array_equal(keep, ~np.isin(superpoint, gone))
    assert not tags_3d[4]
    drawn[cleared] += 1
  combinations = 2 ** len(structures)
  assert len(drawn) == combinations
  expected = runs / combinations
  assert all(0.5 * expected < n < 1.6 * expected for n in drawn.values())


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probability_ends(probability):
  coord, superpoint = _room()
  for seed in range(20):
    keep, tags_3d = _drop(
      coord, superpoint, rng=_rng(seed), probability=probability
    )
    assert keep.all() == (probability == 0)
    assert tags_3d[FLOOR] == tags_3d[WALL] == (probability == 0)
    assert tags_3d[TABLE]


def _drop_by_loop(coord, superpoint, margin, ceiling):
  sides = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] + [(2, 1)] * ceiling
  gone = {FLOOR: set(), WALL: set(), CEILING: set()}
  for axis, upper in sides:
    places = [point[axis] for point in coord.tolist()]
    counts = Counter()
    for place, name in zip(places, superpoint.tolist(), strict=True):
      distance = max(places) - place if upper else place - min(places)
      if name >= 0 and distance < margin:
        counts[name] += 1
    if counts:
      largest = min(counts, key=lambda name: (-counts[name], name))
      label = WALL if axis < 2 else CEILING if upper else FLOOR
      gone[label].add(largest)
  # Floor and ceiling are no walls, even on a side that has none.
  gone[WALL] -= gone[FLOOR] | gone[CEILING]
  removed = set().union(*gone.values())
  keep = [name not in removed for name in superpoint.tolist()]
  if not any(keep):
    return [True] * len(keep), [True] * 5
  return keep, [not gone.get(label) for label in range(5)]


@pytest.mark.parametrize("ceiling", [False, True])
@pytest.mark.parametrize("num_regions", [1, 2, 5, 12])
def test_matches_a_loop(num_regions, ceiling):
  settings = dict(ceiling_class=CEILING) if ceiling else {}
  for seed in range(25):
    rng = _rng(seed)
    # Multiples of 1/8: the margin is met exactly, and does not count.
    coord = rng.integers(0, 24, (40, 3)).astype(np.float32) / 8
    superpoint = rng.integers(NO_REGION, num_regions, 40).astype(np.int32)
    keep, tags_3d = _drop(coord, superpoint, **settings)
    expected_keep, expected_tags = _drop_by_loop(
      coord, superpoint, 0.5, ceiling
    )
    np.testing.assert_array_equal(keep, expected_keep)
    np.testing.assert_array_equal(tags_3d, expected_tags)


def test_margin_is_in_metres_and_open():
  # From the bottom: one point of superpoint 0, two of 1 at 0.25 m, three of 2
  # at 1 m. All in one column, so that superpoint 2 is the wall of all sides.
  coord = np.zeros((6, 3), np.float32)
  coord[:, 2] = [0, 0.25, 0.25, 1, 1, 1]
  superpoint = np.array([0, 1, 1, 2, 2, 2], np.int32)
  for margin, floor in [(0.2, 0), (0.25, 0), (0.26, 1), (1.0, 1), (1.01, 2)]:
    keep, _ = _drop(coord, superpoint, margin=margin)
    assert set(superpoint[~keep].tolist()) == {floor, 2}


def test_points_without_superpoint_stay_and_clear_no_tag():
  coord, _ = _room()
  superpoint = np.full(len(coord), NO_REGION, np.int32)
  keep, tags_3d = _drop(coord, superpoint, ceiling_class=CEILING)
  assert keep.all()
  assert tags_3d.all()


def test_a_structure_that_is_not_found_keeps_its_tag():
  coord, superpoint = _room()
  lowest = coord[:, 2] < coord[:, 2].min() + 0.5
  superpoint[lowest] = NO_REGION
  keep, tags_3d = _drop(coord, superpoint)
  assert tags_3d[FLOOR]
  assert not tags_3d[WALL]
  assert keep[lowest].all()
  np.testing.assert_array_equal(keep, ~np.isin(superpoint, WALL_SPS))


def test_never_removes_everything():
  coord, _ = _room()
  tags = np.array([True, True, False, True])
  keep, tags_3d = _drop(coord, np.zeros(len(coord), np.int32), tags)
  assert keep.all()
  np.testing.assert_array_equal(tags_3d, tags)
  # One point of another superpoint is enough to go ahead.
  superpoint = np.zeros(len(coord), np.int32)
  superpoint[np.abs(coord - coord.mean(axis=0)).sum(axis=1).argmin()] = 1
  keep, tags_3d = _drop(coord, superpoint, tags)
  assert keep.sum() == 1
  np.testing.assert_array_equal(tags_3d, [True, False, False, True])


def test_the_floor_is_no_wall_where_a_side_has_none():
  coord, superpoint = _room()
  low = coord.min(axis=0)
  wall = superpoint[coord[:, 0] < low[0] + 1e-3]
  keep_points = superpoint != np.bincount(wall[wall >= 0]).argmax()
  coord, superpoint = coord[keep_points], superpoint[keep_points]
  floor = superpoint[coord[:, 2] < low[2] + 1e-3]
  floor = np.bincount(floor[floor >= 0]).argmax()
  for seed in range(40):
    keep, tags_3d = _drop(coord, superpoint, rng=_rng(seed), probability=0.5)
    assert (superpoint[keep] == floor).any() == tags_3d[FLOOR]


def test_no_points():
  keep, tags_3d = _drop(np.empty((0, 3), np.float32), np.empty(0, np.int32))
  assert keep.shape == (0,)
  assert tags_3d.all()


def test_arguments_are_untouched():
  coord, superpoint = _room()
  tags = np.ones(5, bool)
  given = coord, superpoint, tags
  before = [array.copy() for array in given]
  for seed in range(4):
    _, tags_3d = _drop(*given, _rng(seed), probability=0.5)
    tags_3d[:] = False
  for array, copy in zip(given, before, strict=True):
    np.testing.assert_array_equal(array, copy)


# Cropping.


def _cells(coord, voxel_size):
  return {
    tuple(int(np.floor(value / voxel_size)) for value in point)
    for point in coord.astype(np.float64)
  }


def _crop(coord, max_voxels, seed=0, voxel_size=0.25):
  return structure_drop.crop_nearest_half(
    coord, _rng(seed), max_voxels=max_voxels, voxel_size=voxel_size
  )


@pytest.mark.parametrize("offset", [-50.0, -0.1, 1000.0])
def test_voxels_are_counted_exactly(offset):
  coord = _rng().uniform(0, 2, (600, 3)).astype(np.float32) + np.float32(offset)
  count = len(_cells(coord, 0.25))
  np.testing.assert_array_equal(_crop(coord, count), np.arange(600))
  assert len(_crop(coord, count - 1)) == 300


def test_voxels_are_counted_exactly_over_any_extent():
  # The bounding box holds 2^99 voxels: an int64 index of them would wrap, and
  # lose all of x.
  coord = np.zeros((52, 3))
  coord[:51, 0] = 0.25 * np.arange(51)
  coord[51] = 0.25 * (2**33 - 1)
  np.testing.assert_array_equal(_crop(coord, 52), np.arange(52))
  assert len(_crop(coord, 51)) == 26


def test_the_nearest_half_around_a_point_stays():
  coord = _rng().uniform(0, 3, (201, 3)).astype(np.float32)
  count = len(_cells(coord, 0.25))
  centers = set()
  for seed in range(40):
    kept = _crop(coord, count - 1, seed)
    assert len(kept) == 100
    dropped = np.setdiff1d(np.arange(201), kept)
    # Some points have all that stayed nearer than all that went; one of them
    # was the centre.
    distance = np.linalg.norm(coord[:, None] - coord[None], axis=2)
    fits = distance[:, kept].max(axis=1) <= distance[:, dropped].min(axis=1)
    assert fits.any()
    assert fits[kept].any()
    centers.add(int(np.flatnonzero(fits)[0]))
  assert len(centers) > 20


@pytest.mark.parametrize(
  ("max_voxels", "expected"), [(999, 500), (125, 125), (124, 62), (3, 3)]
)
def test_halving_goes_on_just_long_enough(max_voxels, expected):
  # Every point has a voxel of its own: 1000, 500, 250, 125, 62, 31, 15, 7, 3.
  coord = np.argwhere(np.ones((10, 10, 10))).astype(np.float32)
  for seed in range(5):
    kept = _crop(coord, max_voxels, seed)
    assert len(kept) == expected
    if expected < 100:  # what stays hangs together, halving after halving
      assert np.ptp(coord[kept], axis=0).max() < 9


def test_indices_ascend_and_the_scan_is_untouched():
  coord = _rng(3).uniform(0, 4, (500, 3)).astype(np.float32)
  before = coord.copy()
  kept = _crop(coord, 50)
  assert kept.dtype == np.int64
  assert (np.diff(kept) > 0).all()
  np.testing.assert_array_equal(kept, _crop(coord, 50))
  np.testing.assert_array_equal(coord, before)


def test_crop_ends():
  coord = _rng(4).uniform(0, 4, (7, 3)).astype(np.float32)
  assert len(_crop(coord, 1)) == 1
  assert len(_crop(coord[:0], 1)) == 0
  same = np.zeros((9, 3), np.float32)
  assert len(_crop(same, 1)) == 9
  with pytest.raises(ValueError, match="max_voxels must be at least 1, got 0"):
    _crop(coord, 0)
