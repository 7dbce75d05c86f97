import hypothesis
import numpy as np
import pytest
import sparse_scenes as scenes
from hypothesis import strategies as st

from wsegpc_jax.sparse.voxelize import bounds, unique_keys, voxelize

SIZE = 0.25  # with points at multiples of 1/64, all arithmetic is exact
QUICK = hypothesis.settings(max_examples=60, deadline=None, database=None)

# Some points share a voxel, some do not; both sides of zero.
TICKS = st.integers(-300, 300)
POINTS = st.lists(st.tuples(TICKS, TICKS, TICKS), min_size=1, max_size=40)
INTEGER = st.integers(-(10**6), 10**6)
SHIFT = st.tuples(INTEGER, INTEGER, INTEGER)


def metres(ticks):
  return np.array(ticks, np.float64).reshape(-1, 3) / 64


def check(result, voxels, levels=5):
  """`result` holds the integer voxels of the points, moved to its origin."""
  voxels = [tuple(int(v) for v in voxel) for voxel in voxels]
  origin = [min(v[i] for v in voxels) // 16 * 16 for i in range(3)]
  voxels = [
    tuple(a - b for a, b in zip(v, origin, strict=True)) for v in voxels
  ]
  first = {}
  for i, voxel in enumerate(voxels):
    first.setdefault(voxel, i)
  rows = sorted(first, key=lambda v: scenes.morton((0, *v)))
  np.testing.assert_array_equal(result.coords, rows)
  np.testing.assert_array_equal(result.first, [first[v] for v in rows])
  np.testing.assert_array_equal(result.inverse, [rows.index(v) for v in voxels])
  assert result.level_counts == tuple(
    len({tuple(a >> i for a in v) for v in rows}) for i in range(levels)
  )
  for field in (result.coords, result.first, result.inverse):
    assert field.dtype == np.int32


@QUICK
@hypothesis.given(POINTS, SHIFT)
def test_equals_a_loop_over_points(ticks, shift):
  voxels = np.array(ticks) // 16  # 16 ticks a voxel; towards minus infinity
  check(voxelize(metres(ticks), SIZE), voxels)
  check(voxelize(metres(ticks), SIZE, shift=np.array(shift)), voxels + shift)


@QUICK
@hypothesis.given(POINTS, st.tuples(*[st.integers(-(10**5), 10**5)] * 3))
def test_moving_by_sixteen_voxels_changes_nothing(ticks, blocks):
  expected = voxelize(metres(ticks), SIZE)
  moves = 16 * np.array(blocks)
  for result in (
    voxelize(metres(ticks) + moves * SIZE, SIZE),
    voxelize(metres(ticks), SIZE, shift=moves),
  ):
    np.testing.assert_array_equal(result.coords, expected.coords)
    np.testing.assert_array_equal(result.first, expected.first)
    np.testing.assert_array_equal(result.inverse, expected.inverse)
    assert result.level_counts == expected.level_counts


@QUICK
@hypothesis.given(POINTS, st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(ticks, random):
  order = list(range(len(ticks)))
  random.shuffle(order)
  a = voxelize(metres(ticks), SIZE)
  b = voxelize(metres(ticks)[order], SIZE)
  np.testing.assert_array_equal(a.coords, b.coords)
  np.testing.assert_array_equal(a.inverse[order], b.inverse)


@QUICK
@hypothesis.given(POINTS, st.sampled_from([0.04, 0.02, 0.3]))
def test_each_point_lies_in_its_voxel(ticks, size):
  # Sizes that no float holds exactly: the grid may be off by one rounding.
  coord = metres(ticks).astype(np.float32)
  result = voxelize(coord, size)
  voxel = np.floor(coord.astype(np.float64) / size)
  origin = np.floor(voxel.min(0) / 16) * 16
  corner = (result.coords[result.inverse] + origin) * size
  assert (coord >= corner - 1e-6).all()
  assert (coord <= corner + size + 1e-6).all()
  # A representative is the first point of the voxel that it represents.
  np.testing.assert_array_equal(
    result.inverse[result.first], np.arange(len(result.first))
  )
  assert (result.first[result.inverse] <= np.arange(len(coord))).all()


def test_floor_on_both_sides_of_zero():
  coord = [-0.25, -0.001, 0.0, 0.2499, 0.25, -0.2501]
  coord = np.pad(np.array(coord)[:, None], ((0, 0), (0, 2)))
  result = voxelize(coord, SIZE)
  assert result.coords[result.inverse, 0].tolist() == [15, 15, 16, 16, 17, 14]
  assert result.first.tolist() == [5, 0, 2, 4]


def test_origin_is_a_multiple_of_sixteen():
  for start in (0, 15, 16, -1, -16, -17, 5 * 10**6):
    coord = np.array([[start + 0.5, 0, 0], [start + 1.5, 0, 0]])
    coords = voxelize(coord, 1.0).coords
    assert coords[:, 0].tolist() == [start % 16, start % 16 + 1]


def test_points_stay_as_they_are():
  """Also where the transposed array is one that could be worked in."""
  rng = np.random.default_rng(0)
  for coord in (rng.random((1, 3)), rng.random((3, 9)).T, rng.random((9, 3))):
    before = coord.copy()
    coord.flags.writeable = False
    voxelize(coord, 0.1)
    np.testing.assert_array_equal(coord, before)


def test_no_points():
  result = voxelize(np.zeros((0, 3)), SIZE, levels=3)
  assert result.coords.shape == (0, 3) and result.level_counts == (0, 0, 0)
  assert result.first.shape == result.inverse.shape == (0,)
  for field in (result.coords, result.first, result.inverse):
    assert field.dtype == np.int32


@pytest.mark.parametrize("levels", [1, 2, 7])
def test_levels(levels):
  ticks = np.random.default_rng(0).integers(-2000, 2000, (50, 3))
  result = voxelize(metres(ticks), SIZE, levels=levels)
  check(result, ticks // 16, levels)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_level_counts_are_those_of_the_plan(is_sorted):
  ticks = np.random.default_rng(1).integers(-150, 150, (60, 3))
  result = voxelize(metres(ticks), SIZE)
  voxels = np.insert(result.coords, 0, 0, axis=1)
  plan = scenes.plan_of(voxels, is_sorted=is_sorted)
  assert tuple(int(v.count) for v in plan.levels) == result.level_counts


@pytest.mark.parametrize("start", [0, 15, -1, 12345])
def test_the_widest_scene(start):
  widest = 2**21 - 17
  coord = np.array([[start + 0.5] * 3, [start + widest + 0.5] * 3])
  result = voxelize(coord, 1.0)
  check(result, np.floor(coord))
  coord[1, 2] += 1
  with pytest.raises(ValueError, match="2097152"):
    voxelize(coord, 1.0)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4), (0, 2), (2, 2, 3)])
def test_wrong_shape(shape):
  with pytest.raises(ValueError, match=r"\[N, 3\]"):
    voxelize(np.zeros(shape), SIZE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
  coord = np.zeros((3, 3))
  coord[1, 2] = value
  with pytest.raises(ValueError, match="finite"):
    voxelize(coord, SIZE)


@pytest.mark.parametrize("size", [0, -0.04, np.nan])
def test_wrong_voxel_size(size):
  with pytest.raises(ValueError, match="voxel_size"):
    voxelize(np.zeros((2, 3)), size)


def test_coordinates_beyond_the_grid_raise():
  with pytest.raises(ValueError, match="metres"):
    voxelize(np.array([[0.0, 0, 0], [1e6, 0, 0]]), 0.04)
  with pytest.raises(ValueError, match="metres"):
    voxelize(np.array([[-1e30, 0, 0], [1e30, 0, 0]]), 0.04)


@pytest.mark.parametrize("most", [3, 1 << 20, (1 << 63) - 1])
@pytest.mark.parametrize("count", [1, 2, 500])
def test_unique_keys_are_numpy_s(count, most):
  # The largest keys leave no room for their places beside them.
  key = np.random.default_rng(count).integers(0, most, count, endpoint=True)
  key[0] = most
  expected = np.unique(key, return_index=True, return_inverse=True)
  for got, want in zip(unique_keys(key), expected, strict=True):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_bounds(dtype):
  a = np.random.default_rng(0).normal(0, 100, (40, 3)).astype(dtype)
  low, high = bounds(a)
  np.testing.assert_array_equal(low, a.min(0))
  np.testing.assert_array_equal(high, a.max(0))
  assert low.dtype == high.dtype == dtype
