"""Parts of a large scene against brute force."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.data import box_rooms, parts
from wsegpc_jax.sparse.voxelize import voxelize
from wsegpc_jax.types import DataError, Scene

VOXEL = 0.25  # exact in binary, as are the points below
COLUMN = 16
NARROWEST = 2 * COLUMN


def cloud(seed, number, size, *, clumps=0, far=0.0):
  """Points [N, 3] over a plot of `size` metres, some in clumps."""
  rng = np.random.default_rng(seed)
  coord = rng.uniform(0, 1, (number, 3)) * [*size, 2.5] - [3, 50, 0]
  for _ in range(clumps):
    chosen = rng.random(number) < 0.3
    coord[chosen] = coord[chosen][:1] + rng.normal(0, 0.3, (chosen.sum(), 3))
  coord[: number // 2, 0] += far
  return (np.round(coord * 16) / 16).astype(np.float32)


def grid_of(coord):
  """Voxel coordinates in the frame of the world, int [N, 3]."""
  return np.floor(coord.astype(np.float64) / VOXEL).astype(int)


def check_parts(coord, found, room, margin):
  """Cores partition the scene; parts fit and see the margin around them."""
  seen = np.zeros(len(coord), int)
  column = grid_of(coord)[:, :2] // COLUMN
  for part in found:
    counts = voxelize(coord[part.points], VOXEL).level_counts
    assert (np.array(counts) <= room).all()
    assert (np.diff(part.points) > 0).all()
    assert len(set(part.core)) == len(part.core) > 0
    core = part.points[part.core]
    seen[core] += 1
    own = np.unique(column[core], axis=0)
    away = np.abs(column[:, None] - own[None]).max(2).min(1)
    near = np.flatnonzero(away <= margin // COLUMN)
    assert np.isin(near, part.points).all()
  assert (seen == 1).all()


def fullest(coord, margin):
  """Largest counts [L] of a column with its margin, by voxelising each."""
  column = grid_of(coord)[:, :2] // COLUMN
  most = np.zeros(5, int)
  for place in np.unique(column, axis=0):
    near = (np.abs(column - place) <= margin // COLUMN).all(1)
    counts = voxelize(coord[near], VOXEL).level_counts
    most = np.maximum(most, counts)
  return most


@settings(max_examples=40, deadline=None)
@given(
  st.integers(0, 2**32 - 1),
  st.integers(1, 400),
  st.tuples(st.floats(0, 60), st.floats(0, 60)),
  st.integers(0, 3),
  st.sampled_from([0.0, 4000.0]),
  st.integers(0, 200),
)
def test_cores_partition_a_scene(seed, number, size, clumps, far, reach):
  coord = cloud(seed, number, size, clumps=clumps, far=far)
  voxels = voxelize(coord, VOXEL)
  # As much as the fullest neighbourhood that is not cut any further.
  room = np.maximum(
    fullest(coord, NARROWEST), np.array(voxels.level_counts) // 4
  )
  found = list(parts.split(voxels, room=room, reach=reach))
  check_parts(coord, found, room, NARROWEST)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 120))
def test_margins_are_the_receptive_field_where_that_is_cheap(seed, reach):
  """Parts that are wide against the margin get all of it."""
  coord = cloud(seed, 3000, (400, 3))
  voxels = voxelize(coord, VOXEL)
  room = np.array(voxels.level_counts) * 2 // 3
  check_parts(
    coord, list(parts.split(voxels, room=room, reach=reach)), room, reach
  )


def test_a_part_has_the_voxels_of_the_scene():
  """Same cells, and the same first point in each, whatever the part."""
  coord = cloud(3, 3000, (60, 60))
  whole = voxelize(coord, VOXEL)
  room = np.array(whole.level_counts) // 3
  found = list(parts.split(whole, room=room, reach=32))
  assert len(found) > 2
  for part in found:
    voxels = voxelize(coord[part.points], VOXEL)
    first = part.points[voxels.first]
    # Its voxels are among the scene's, and all that its points are in.
    assert np.isin(first, whole.first).all()
    np.testing.assert_array_equal(
      first[voxels.inverse], whole.first[whole.inverse[part.points]]
    )
    # And they lie alike in the coarsest cells.
    np.testing.assert_array_equal(
      voxels.coords % COLUMN, grid_of(coord[first]) % COLUMN
    )


def test_a_scene_that_fits_is_one_part():
  coord = cloud(0, 200, (40, 40))
  voxels = voxelize(coord, VOXEL)
  (part,) = parts.split(voxels, room=voxels.level_counts, reach=100)
  np.testing.assert_array_equal(part.points, np.arange(200))
  np.testing.assert_array_equal(part.core, np.arange(200))


def test_any_level_can_be_the_one_that_does_not_fit():
  coord = cloud(0, 900, (80, 80))
  voxels = voxelize(coord, VOXEL)
  for level in range(5):
    room = np.array(voxels.level_counts)
    room[level] -= 1
    found = list(parts.split(voxels, room=room, reach=32))
    assert len(found) > 1
    check_parts(coord, found, room, NARROWEST)


def test_a_long_corridor_is_cut_across():
  coord = cloud(1, 4000, (300, 2))
  voxels = voxelize(coord, VOXEL)
  room = np.array(voxels.level_counts) // 3
  found = list(parts.split(voxels, room=room, reach=40))
  check_parts(coord, found, room, 48)
  for part in found:
    own = coord[part.points[part.core]]
    rest = coord[part.points]
    # The margin is context, no more of it than was asked for.
    most = (48 + COLUMN) * VOXEL
    assert rest[:, 0].min() >= own[:, 0].min() - most
    assert rest[:, 0].max() <= own[:, 0].max() + most


def test_two_places_far_apart_take_no_time_in_between():
  """80 km of nothing; what is wider than the grid is refused."""
  coord = cloud(2, 500, (10, 10), far=400_000.0)
  voxels = voxelize(coord, VOXEL)
  room = np.array(voxels.level_counts) - 1
  found = list(parts.split(voxels, room=room, reach=100))
  assert len(found) == 2
  check_parts(coord, found, room, 112)
  coord[:250, 0] += 1e6
  with pytest.raises(DataError, match="metres"):
    voxelize(coord, VOXEL)


def test_what_cannot_be_cut_to_fit_is_refused():
  coord = np.zeros((50, 3), np.float32)
  coord[:, 2] = np.linspace(0, 40, 50)
  voxels = voxelize(coord, VOXEL)
  room = (40, 50, 50, 50, 50)
  with pytest.raises(DataError, match="50 voxels.*room for 40.*largest_bucket"):
    list(parts.split(voxels, room=room, reach=100))


class TestTake:
  @pytest.fixture(scope="class")
  @classmethod
  def scene(cls):
    scene, _ = box_rooms.make_room(0, 0, points_per_square_metre=20.0, views=1)
    return scene

  @pytest.mark.parametrize("kind", ["some", "reversed", "all"])
  def test_rows(self, scene, kind):
    every = np.arange(len(scene.coord))
    points = {"some": every[5::7], "reversed": every[::-1], "all": every}[kind]
    taken = parts.take(scene, points)
    for field in ("coord", "color", "normal", "label", "superpoint"):
      value = getattr(scene, field)[points]
      np.testing.assert_array_equal(getattr(taken, field), value)
    for field in ("name", "tags", "frames"):
      assert getattr(taken, field) is getattr(scene, field)

  def test_what_a_scene_lacks(self, scene):
    bare = dataclasses.replace(scene, label=None, superpoint=None)
    taken = parts.take(bare, np.arange(3))
    assert isinstance(taken, Scene)
    assert taken.label is taken.superpoint is None
