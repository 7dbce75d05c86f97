"""Links against a loop and a hand-made camera; views and pairs by property."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wsegpc_jax.data import links
from wsegpc_jax.types import DataError

IDENTITY = np.eye(4)
# A 5 x 7 image whose optical axis meets pixel (2, 3).
INTRINSICS = np.array([4.0, 4.0, 3.0, 2.0])
HEIGHT, WIDTH = 5, 7


def _rng(seed=0):
  return np.random.default_rng(seed)


def _link(points, depth, *, pose=IDENTITY, tolerance=0.05):
  coord = np.array(points, np.float32).reshape(-1, 3)
  found = links.link_points(coord, depth, pose, INTRINSICS, tolerance=tolerance)
  assert found.dtype == np.int32
  return found.tolist()


def _depth(metres):
  return np.full((HEIGHT, WIDTH), metres, np.float32)


def _at_pixel(row, col, depth):
  """The point of the identity camera that projects to (row, col)."""
  return [(col - 3) * depth / 4, (row - 2) * depth / 4, depth]


def test_hand_made_camera_with_an_occluder():
  depth = _depth(4.0)
  depth[:, 5:] = 1.0  # a board near the camera, over the right of the wall
  points = [
    _at_pixel(2, 3, 4),  # on the wall
    _at_pixel(0, 0, 4),
    _at_pixel(4, 4, 4),
    _at_pixel(2, 6, 4),  # on the wall, behind the board
    _at_pixel(2, 6, 1),  # on the board
    _at_pixel(2, 3, 2),  # in mid-air before the wall
  ]
  none = [-1, -1]
  expected = [[2, 3], [0, 0], [4, 4], none, [2, 6], none]
  assert _link(points, depth) == expected


def test_pose_is_camera_to_world():
  # At (10, 20, 1.5), looking along world +x: camera x is world -y, camera y
  # is world -z.
  pose = np.eye(4)
  pose[:3, :3] = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]).T
  pose[:3, 3] = [10, 20, 1.5]
  ahead = [14, 20, 1.5]
  left = [14, 21, 1.5]  # 1 m to the left at 4 m: one pixel at f = 4
  below = [14, 20, 0.5]
  assert _link([ahead, left, below], _depth(4.0), pose=pose) == [
    [2, 3],
    [2, 2],
    [3, 3],
  ]
  row, col, depth = links.project_points(
    np.array([left], np.float32), pose, INTRINSICS
  )
  np.testing.assert_allclose([row[0], col[0], depth[0]], [2, 2, 4], atol=1e-12)


def test_points_behind_the_camera_are_not_linked():
  # Mirrored through the centre they fall on the same pixels; depth 0 = not
  # measured would even be within a large tolerance.
  points = [_at_pixel(2, 3, -4), _at_pixel(1, 1, -0.01), _at_pixel(2, 3, -1)]
  for metres in (-4.0, 0.0, 4.0):
    assert _link(points, _depth(metres), tolerance=100) == [[-1, -1]] * 3


def test_points_on_the_camera_plane_are_not_linked():
  points = [[0, 0, 0], [1, -1, 0], [0.5, 0, 0]]
  assert _link(points, _depth(0.01)) == [[-1, -1]] * 3
  row, col, depth = links.project_points(
    np.array(points, np.float32), IDENTITY, INTRINSICS
  )
  assert np.isnan(row).all()
  assert np.isnan(col).all()
  assert (depth == 0).all()


def test_points_next_to_the_camera_plane_do_not_overflow():
  coord = np.array([[1.0, 0.0, 5e-324], [0.0, 0.0, 1e-300]])
  found = links.link_points(
    coord, _depth(0.01), IDENTITY, INTRINSICS, tolerance=0.05
  )
  assert found.tolist() == [[-1, -1], [2, 3]]


def test_unmeasured_depth_links_nothing():
  depth = _depth(0.0)
  depth[2, 4] = 0.01
  near = [_at_pixel(2, 3, 0.01), _at_pixel(2, 4, 0.01)]
  assert _link(near, depth) == [[-1, -1], [2, 4]]


@pytest.mark.parametrize(
  ("row", "col", "expected"),
  [
    (-0.49, 3, [0, 3]),
    (-0.51, 3, [-1, -1]),
    (4.49, 3, [4, 3]),
    (4.51, 3, [-1, -1]),
    (2, -0.49, [2, 0]),
    (2, -0.51, [-1, -1]),
    (2, 6.49, [2, 6]),
    (2, 6.51, [-1, -1]),
    (1.49, 2.51, [1, 3]),
    # Halves go to the even neighbour, as np.round does.
    (1.5, 2.5, [2, 2]),
    (2.5, 3.5, [2, 4]),
  ],
)
def test_rounds_to_the_nearest_pixel(row, col, expected):
  assert _link([_at_pixel(row, col, 4)], _depth(4.0)) == [expected]


def test_tolerance_includes_its_end():
  points = [[0, 0, 1.75], [0, 0, 2.25], [0, 0, 1.7499], [0, 0, 2.2501]]
  assert _link(points, _depth(2.0), tolerance=0.25) == [
    [2, 3],
    [2, 3],
    [-1, -1],
    [-1, -1],
  ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_lost_tracking_links_nothing(bad):
  pose = np.full((4, 4), bad)
  assert _link([[0, 0, 4]], _depth(4.0), pose=pose) == [[-1, -1]]
  no_inverse = np.zeros((4, 4))
  no_inverse[0, 3] = bad
  assert _link([[0, 0, 4]], _depth(4.0), pose=no_inverse) == [[-1, -1]]


def test_no_points():
  assert _link([], _depth(4.0)) == []


@pytest.mark.parametrize("seed", range(4))
def test_matches_a_loop(seed):
  rng = _rng(seed)
  height, width = 24, 32
  intrinsics = np.array([13.0, 12.0, 15.2, 11.9])
  rotation = Rotation.random(rng=rng).as_matrix()
  origin = rng.uniform(-2, 2, 3)
  pose = np.eye(4)
  pose[:3, :3], pose[:3, 3] = rotation, origin
  coord = (origin + rng.uniform(-3, 3, (2000, 3))).astype(np.float32)
  depth = rng.uniform(0.5, 3, (height, width)).astype(np.float32)
  depth[rng.random((height, width)) < 0.2] = 0
  before = coord.copy(), depth.copy()

  found = links.link_points(coord, depth, pose, intrinsics, tolerance=0.4)

  expected = []
  for point in coord.astype(float):
    x, y, z = (
      sum(rotation[k][axis] * (point[k] - origin[k]) for k in range(3))
      for axis in range(3)
    )
    link = [-1, -1]
    if z > 0:
      row = math.floor(12.0 * y / z + 11.9 + 0.5)
      col = math.floor(13.0 * x / z + 15.2 + 0.5)
      if 0 <= row < height and 0 <= col < width:
        measured = float(depth[row, col])
        if measured > 0 and abs(measured - z) <= 0.4:
          link = [row, col]
    expected.append(link)
  np.testing.assert_array_equal(found, expected)
  assert 60 < (found[:, 0] >= 0).sum() < 1000  # the case is not empty
  np.testing.assert_array_equal(coord, before[0])
  np.testing.assert_array_equal(depth, before[1])


# Views.

COUNTS = st.integers(1, 60)
VIEWS = st.integers(1, 12)


@given(num_frames=COUNTS, num_views=VIEWS)
def test_first_frames_cut_the_scene_into_equal_runs(num_frames, num_views):
  views = links.choose_views(num_frames, num_views, None)
  assert views.dtype == np.int64
  assert views.shape == (num_views,)
  if num_frames <= num_views:
    assert views.tolist() == [v % num_frames for v in range(num_views)]
    return
  lengths = np.diff([*views, num_frames])
  assert views[0] == 0
  assert lengths.max() - lengths.min() <= 1
  if num_frames % num_views == 0:
    assert len(set(lengths)) == 1


@given(num_frames=COUNTS, num_views=VIEWS, seed=st.integers(0, 2**32 - 1))
def test_random_frames_lie_in_their_runs(num_frames, num_views, seed):
  views = links.choose_views(num_frames, num_views, _rng(seed))
  starts = links.choose_views(num_frames, num_views, None)
  assert views.dtype == np.int64
  if num_frames <= num_views:
    np.testing.assert_array_equal(views, starts)
    return
  stops = np.append(starts[1:], num_frames)
  assert (starts <= views).all()
  assert (views < stops).all()
  again = links.choose_views(num_frames, num_views, _rng(seed))
  np.testing.assert_array_equal(views, again)


@pytest.mark.parametrize("num_frames", [6, 7, 11, 13, 18])
def test_every_frame_can_be_drawn(num_frames):
  rng = _rng()
  drawn = Counter()
  for _ in range(300):
    drawn.update(links.choose_views(num_frames, 6, rng).tolist())
  assert sorted(drawn) == list(range(num_frames))


def test_a_scene_without_frames_is_refused():
  with pytest.raises(DataError, match="frames: expected at least 1"):
    links.choose_views(0, 6, _rng())


# Pairs.


def _scene_links(counts, num_voxels=900, seed=0):
  """Links with counts[v] voxels in view v; a pixel tells its voxel and view."""
  rng = _rng(seed)
  out = np.full((len(counts), num_voxels, 2), -1, np.int32)
  for view, count in enumerate(counts):
    voxel = rng.choice(num_voxels, count, replace=False)
    out[view, voxel, 0] = voxel
    out[view, voxel, 1] = view
  return out


def _check_pairs(scene, pairs):
  voxel, view, row_col = pairs
  assert voxel.dtype == view.dtype == np.int32
  assert row_col.dtype == np.float32
  assert voxel.shape == view.shape == (len(row_col),)
  assert row_col.shape[1] == 2
  assert len(set(zip(voxel.tolist(), view.tolist(), strict=True))) == len(voxel)
  assert (row_col >= 0).all()  # only linked ones
  np.testing.assert_array_equal(row_col[:, 0], voxel)
  np.testing.assert_array_equal(row_col[:, 1], view)
  return len(voxel)


@given(
  counts=st.lists(st.integers(0, 120), min_size=0, max_size=5),
  min_linked=st.integers(0, 80),
  per_view=st.integers(1, 100),
  per_scene=st.integers(1, 200),
  seed=st.integers(0, 1000),
)
def test_pairs_are_linked_distinct_and_as_many_as_allowed(
  counts, min_linked, per_view, per_scene, seed
):
  scene = _scene_links(counts, num_voxels=130, seed=seed)
  settings = dict(min_linked=min_linked, per_view=per_view, per_scene=per_scene)
  pairs = links.draw_pairs(scene, _rng(seed), **settings)
  number = _check_pairs(scene, pairs)
  expected = sum(min(n, per_view) for n in counts if n > min_linked)
  assert number == min(expected, per_scene)
  of_view = Counter(pairs[1].tolist())
  assert all(counts[v] > min_linked for v in of_view)
  assert all(n <= per_view for n in of_view.values())
  again = links.draw_pairs(scene, _rng(seed), **settings)
  for first, second in zip(pairs, again, strict=True):
    np.testing.assert_array_equal(first, second)


def test_threshold_is_strict():
  scene = _scene_links([64, 65, 63])
  pairs = links.draw_pairs(scene, _rng())
  assert _check_pairs(scene, pairs) == 65
  assert set(pairs[1].tolist()) == {1}
  assert _check_pairs(scene, links.draw_pairs(scene[:1], _rng())) == 0


def test_views_share_the_scene_by_what_each_gave():
  # 512 of 800, 512 of 600 and all of 100: 1124, of which 512 stay.
  scene = _scene_links([800, 600, 100])
  before = scene.copy()
  rng = _rng()
  voxels, of_view = Counter(), Counter()
  runs = 60
  for _ in range(runs):
    pairs = links.draw_pairs(scene, rng)
    assert _check_pairs(scene, pairs) == 512
    of_view.update(pairs[1].tolist())
    voxels.update(pairs[0][pairs[1] == 0].tolist())
  for view, given_pairs in enumerate([512, 512, 100]):
    expected = runs * 512 * given_pairs / 1124
    assert 0.9 * expected < of_view[view] < 1.1 * expected
  # Every linked voxel has its turn: 60 * 233 draws over 800 voxels.
  assert len(voxels) == 800
  np.testing.assert_array_equal(scene, before)


def test_pixel_at_the_origin_counts_as_linked():
  scene = np.zeros((1, 65, 2), np.int32)
  voxel, _, row_col = links.draw_pairs(scene, _rng())
  assert sorted(voxel.tolist()) == list(range(65))
  assert (row_col == 0).all()
