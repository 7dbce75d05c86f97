"""Views of a scene, against rotation matrices."""

import dataclasses
import math

import numpy as np
import pytest

from wsegpc_jax.data import test_time
from wsegpc_jax.types import Scene

SIZES = {
  "none": 1,
  "rotate": 4,
  "rotate_5": 5,
  "flip": 4,
  "scale": 3,
  "rotate_flip": 8,
  "rotate_scale": 12,
  "rotate_flip_scale": 24,
}


@pytest.fixture(scope="module")
def scene():
  rng = np.random.default_rng(0)
  normal = rng.normal(size=(50, 3))
  return Scene(
    name="s",
    coord=rng.normal(size=(50, 3)).astype(np.float32),
    color=rng.integers(0, 256, (50, 3)).astype(np.uint8),
    normal=(normal / np.linalg.norm(normal, axis=1)[:, None]).astype("f4"),
    tags=np.ones(3, bool),
    label=rng.integers(0, 3, 50).astype(np.int32),
    superpoint=rng.integers(0, 5, 50).astype(np.int32),
    frames=("0",),
  )


def matrix_of(view):
  """What a view does to directions, from sine and cosine."""
  angle = view.quarter_turns * math.pi / 2 + view.angle
  c, s = math.cos(angle), math.sin(angle)
  turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
  return turn @ np.diag([-1.0 if view.mirror else 1.0, 1, 1])


def every_view():
  return sorted({v for s in test_time.SETS.values() for v in s}, key=str)


@pytest.mark.parametrize("view", every_view(), ids=str)
def test_points_and_normals_turn_alike(scene, view):
  seen = view.apply(scene)
  matrix = matrix_of(view)
  np.testing.assert_allclose(
    seen.coord, view.scale * scene.coord @ matrix.T, atol=1e-6
  )
  np.testing.assert_allclose(seen.normal, scene.normal @ matrix.T, atol=1e-6)
  assert seen.coord.dtype == seen.normal.dtype == np.float32
  for field in ("color", "label", "superpoint", "tags", "frames", "name"):
    assert getattr(seen, field) is getattr(scene, field)


def test_without_scaling_numbers_only_change_places_and_signs(scene):
  for view in test_time.SETS["rotate_flip"]:
    seen = view.apply(scene)
    for now, was in ((seen.coord, scene.coord), (seen.normal, scene.normal)):
      np.testing.assert_array_equal(
        np.sort(np.abs(now), 1), np.sort(np.abs(was), 1)
      )


def test_sets():
  assert {k: len(v) for k, v in test_time.SETS.items()} == SIZES
  for views in test_time.SETS.values():
    assert views[0] == test_time.View()
    # All different, as what they do.
    done = {(v.scale, *np.round(matrix_of(v), 6).ravel()) for v in views}
    assert len(done) == len(views)


def test_the_scene_as_it_is(scene):
  assert test_time.View().apply(scene) is scene


# A fifth of a turn is no quarter: such views are others.
@pytest.mark.parametrize(
  "name", [n for n in SIZES if n.startswith("rotate") and n != "rotate_5"]
)
def test_views_of_a_turned_scene_are_views_of_the_scene(scene, name):
  x, y, z = scene.coord.T
  turned = dataclasses.replace(scene, coord=np.stack([-y, x, z], 1))
  views = test_time.SETS[name]

  def seen(s):
    # -0.0 and 0.0 lie in one voxel.
    return {(v.apply(s).coord + 0.0).tobytes() for v in views}

  assert seen(turned) == seen(scene)


def test_in_words():
  words = test_time.describe("rotate_flip_scale")
  for part in ("24 views", "quarter turns", "mirror", "0.95, 1, 1.05"):
    assert part in words
  assert "quarter" not in test_time.describe("flip")
  assert "5 views of the scene (turns about z)" in test_time.describe(
    "rotate_5"
  )
  assert "mirror" not in test_time.describe("rotate_scale")
  assert test_time.describe("none") == "no test-time augmentation"
