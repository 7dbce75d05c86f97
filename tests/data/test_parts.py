"""Parts of a large scene against brute force."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.data import box_rooms, parts
from wsegpc_jax.types import DataError, Scene

MARGIN = 2.0


def cloud(seed, number, size, *, clumps=0):
  """Points [N, 3] over a plot of `size` metres, some in clumps."""
  rng = np.random.default_rng(seed)
  coord = rng.uniform(0, 1, (number, 3)) * [*size, 2.5] - [3, 50, 0]
  for _ in range(clumps):
    chosen = rng.random(number) < 0.3
    coord[chosen] = coord[chosen][:1] + rng.normal(0, 0.3, (chosen.sum(), 3))
  return coord.astype(np.float32)


def check_parts(coord, found, fits):
  seen = np.zeros(len(coord), int)
  for part in found:
    assert fits(coord[part.points])
    assert (np.diff(part.points) > 0).all()
    assert len(set(part.core)) == len(part.core) > 0
    core = part.points[part.core]
    seen[core] += 1
    # All that is within the margin of a core point is seen with it.
    away = np.abs(coord[:, None, :2] - coord[None, core, :2]).max(2).min(1)
    near = np.flatnonzero(away <= MARGIN - 1e-3)
    assert np.isin(near, part.points).all()
  assert (seen == 1).all()


@settings(max_examples=25, deadline=None)
@given(
  st.integers(0, 2**32 - 1),
  st.integers(1, 400),
  st.tuples(st.floats(0, 30), st.floats(0, 30)),
  st.integers(0, 3),
)
def test_cores_partition_a_scene(seed, number, size, clumps):
  coord = cloud(seed, number, size, clumps=clumps)
  # As many as the fullest neighbourhood that is not cut any further.
  distance = np.abs(coord[:, None, :2] - coord[None, :, :2]).max(2)
  most = max((distance <= MARGIN + 0.51).sum(1).max(), number // 4)

  def fits(points):
    return len(points) <= most

  check_parts(coord, list(parts.split(coord, fits=fits)), fits)


def test_a_scene_that_fits_is_one_part():
  coord = cloud(0, 200, (40, 40))
  (part,) = parts.split(coord, fits=lambda points: len(points) <= 200)
  np.testing.assert_array_equal(part.points, np.arange(200))
  np.testing.assert_array_equal(part.core, np.arange(200))


def test_a_long_corridor_is_cut_across():
  coord = cloud(1, 4000, (60, 2))
  found = list(parts.split(coord, fits=lambda points: len(points) <= 700))
  check_parts(coord, found, lambda points: len(points) <= 700)
  assert len(found) >= 60 * 4000 / 60 // 700
  for part in found:
    own = coord[part.points[part.core]]
    rest = coord[part.points]
    # The margin is context, no more of it than was asked for.
    assert rest[:, 0].min() >= own[:, 0].min() - MARGIN - 0.5
    assert rest[:, 0].max() <= own[:, 0].max() + MARGIN + 0.5


def test_points_on_the_cut_belong_to_one_core():
  x = np.repeat(np.linspace(0, 16, 33), 4)
  coord = np.stack([x, np.tile([0, 0, 1, 1], 33), 0 * x], 1)
  coord = coord.astype(np.float32)
  found = list(parts.split(coord, fits=lambda points: len(points) <= 60))
  assert len(found) > 2
  check_parts(coord, found, lambda points: len(points) <= 60)


def test_what_cannot_be_cut_to_fit_is_refused():
  coord = np.zeros((50, 3), np.float32)
  coord[:, 2] = np.linspace(0, 9, 50)
  with pytest.raises(DataError, match="largest_bucket"):
    list(parts.split(coord, fits=lambda points: len(points) < 50))


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
