"""Synthetic rooms: points, frames, meshes and labels tell one story."""

import functools

import numpy as np
import pytest

from wsegpc_jax.data.synthetic import CLASSES, layout, make_room, render, rooms
from wsegpc_jax.data.synthetic.materials import Material
from wsegpc_jax.data.synthetic.mesh import Assembly, box
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION

SEED = 3
NOISE = 0.03  # metres; more than three deviations of the scanner's at 8 m
SIZE = (48, 64)
K = len(CLASSES)


@functools.cache
def room(index):
  return make_room(SEED, "train", index, image_size=SIZE)


@functools.cache
def triangles(index):
  """Corners [T, 3, 3] and classes [T] of the meshes of a room."""
  key = [SEED, rooms.SPLITS.index("train"), index]
  drawn = layout.make_layout(np.random.default_rng(key).spawn(4)[0])
  corners = [m.vertices[m.triangles] for m in drawn.meshes]
  label = np.repeat(drawn.label, [len(c) for c in corners])
  return np.concatenate(corners), label


def distances(points, corners):
  """Distance of each point to each triangle, [P, T], by its definition.

  The nearest place is the foot of the perpendicular if that is inside, else
  the nearest one on an edge.
  """
  a, b, c = np.moveaxis(corners, 1, 0)
  best = np.full((len(points), len(corners)), np.inf)
  for p, q in ((a, b), (b, c), (c, a)):
    along, to = q - p, points[:, None] - p
    t = (to * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-18)
    rest = to - t.clip(0, 1)[..., None] * along
    best = np.minimum(best, np.linalg.norm(rest, axis=-1))
  normal = np.cross(b - a, c - a)
  normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
  inside = np.ones(best.shape, bool)
  for p, q in ((a, b), (b, c), (c, a)):
    side = np.cross(normal, q - p)
    inside &= ((points[:, None] - p) * side).sum(-1) >= 0
  foot = np.abs(((points[:, None] - a) * normal).sum(-1))
  return np.where(inside, np.minimum(foot, best), best)


def check_on_surfaces(points, label, index, noise):
  """Each point is that close to a surface of its class."""
  corners, classes = triangles(index)
  for k in np.unique(label):
    off = distances(points[label == k], corners[classes == k]).min(1)
    assert off.max() < noise, CLASSES[k]


def back_project(frame):
  """World position of each pixel: float64 [H, W, 3]."""
  fx, fy, cx, cy = frame.intrinsics
  v, u = np.indices(frame.depth.shape)
  ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(u.shape)], -1)
  in_camera = ray * frame.depth[..., None]
  return in_camera @ frame.pose[:3, :3].T + frame.pose[:3, 3]


@pytest.mark.parametrize("index", range(2))
def test_points_lie_on_surfaces_of_their_class(index):
  scene, _ = room(index)
  assert 30_000 < len(scene.coord) < 80_000
  assert scene.coord.dtype == scene.normal.dtype == np.float32
  some = np.random.default_rng(0).permutation(len(scene.coord))[:400]
  check_on_surfaces(scene.coord[some], scene.label[some], index, NOISE)
  np.testing.assert_allclose(
    np.linalg.norm(scene.normal, axis=1), 1.0, atol=1e-5
  )
  np.testing.assert_array_equal(scene.tags, np.isin(np.arange(K), scene.label))
  assert np.bincount(scene.label)[scene.tags.nonzero()[0]].min() >= 30


def test_normals_are_those_of_the_surface():
  scene, _ = room(0)
  corners, classes = triangles(0)
  some = np.flatnonzero(scene.label == CLASSES.index("wall"))[::400]
  wall = corners[classes == CLASSES.index("wall")]
  nearest = wall[distances(scene.coord[some], wall).argmin(1)]
  normal = np.cross(
    nearest[:, 1] - nearest[:, 0], nearest[:, 2] - nearest[:, 0]
  )
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  # Walls are sheets that look into the room, where the scanner stands.
  assert np.median((normal * scene.normal[some]).sum(1)) > 0.98


@pytest.mark.parametrize("index", range(2))
def test_pixels_lie_on_surfaces_of_their_class(index):
  scene, frames = room(index)
  assert len(frames) == 6 and scene.frames == tuple(f.name for f in frames)
  rng = np.random.default_rng(0)
  for frame in frames[::2]:
    assert frame.color.shape == (*SIZE, 3) and frame.depth.shape == SIZE
    measured = (frame.depth > 0) & (frame.label != IGNORE_LABEL)
    assert measured.mean() > 0.5
    assert (frame.region != NO_REGION).all()
    some = rng.permutation(measured.sum())[:150]
    points, label = back_project(frame)[measured], frame.label[measured]
    check_on_surfaces(points[some], label[some], index, NOISE)
    right, down, forward = frame.pose[:3, :3].T
    assert right[2] == pytest.approx(0, abs=1e-12) and down[2] < 0
    np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-12)
    millimetres = frame.depth.astype(np.float64) * 1000
    np.testing.assert_allclose(millimetres, np.rint(millimetres), atol=1e-3)


def test_what_is_seen_is_the_nearest():
  """No surface lies between the camera and what a pixel shows."""
  _, frames = room(0)
  corners, _ = triangles(0)
  a, b, c = np.moveaxis(corners, 1, 0)
  frame = frames[0]
  eye = frame.pose[:3, 3]
  rows = np.flatnonzero(frame.depth)[:: frame.depth.size // 150]
  way = back_project(frame).reshape(-1, 3)[rows] - eye
  # Cramer's rule for eye + t way = a + u (b - a) + v (c - a).
  first, second = b - a, c - a
  cross = np.cross(way[:, None], second)
  determinant = (cross * first).sum(-1)
  with np.errstate(divide="ignore", invalid="ignore"):
    u = ((eye - a) * cross).sum(-1) / determinant
    other = np.cross(eye - a, first)
    v = (way[:, None] * other).sum(-1) / determinant
    t = (other * second).sum(-1) / determinant
  inside = (u > 1e-4) & (v > 1e-4) & (u + v < 1 - 1e-4) & (t > 0)
  nearest = np.where(inside, t, np.inf).min(1)
  hit = np.isfinite(nearest)
  assert hit.mean() > 0.9
  length = np.linalg.norm(way[hit], axis=1)
  assert np.abs((nearest[hit] - 1) * length).max() < NOISE


def test_everything_scanned_is_photographed():
  for index in range(2):
    scene, frames = room(index)
    seen = np.unique(
      [np.bincount(f.label.ravel(), minlength=256) > 0 for f in frames], axis=0
    )
    np.testing.assert_array_equal(seen.any(0)[:K], scene.tags)


def test_density_is_uneven_and_objects_cast_holes():
  scene, _ = room(0)
  floor = scene.coord[scene.label == CLASSES.index("floor"), :2]
  cells = np.floor((floor - floor.min(0)) / 0.2).astype(int)
  count = np.zeros(cells.max(0) + 1)
  np.add.at(count, tuple(cells.T), 1)
  some = count[count > 0]
  assert np.quantile(some, 0.9) > 2.5 * np.quantile(some, 0.25)
  assert (count == 0).mean() > 0.05


def test_superpoints_and_regions_follow_borders():
  """They are not labels, but nearly respect them."""
  for index in range(2):
    scene, frames = room(index)
    table = np.zeros((scene.superpoint.max() + 1, K), int)
    np.add.at(table, (scene.superpoint, scene.label), 1)
    assert table.max(1).sum() / table.sum() > 0.9
    assert 15 < len(table) < 200
    pure = []
    for frame in frames:
      known = frame.label != IGNORE_LABEL
      table = np.zeros((frame.region.max() + 1, K), int)
      np.add.at(table, (frame.region[known], frame.label[known]), 1)
      pure.append(table.max(1).sum() / table.sum())
    assert np.mean(pure) > 0.9


def test_same_arguments_same_room_and_none_twice():
  scene, frames = room(0)
  again, frames_again = make_room(SEED, "train", 0, image_size=SIZE)
  for field in ("coord", "color", "normal", "label", "superpoint", "tags"):
    np.testing.assert_array_equal(getattr(scene, field), getattr(again, field))
  for a, b in zip(frames, frames_again, strict=True):
    for field in ("color", "depth", "pose", "region", "label"):
      np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
  # Neither the other split nor another seed nor the next number.
  first = triangles(0)[0]
  for key in ([SEED, 1, 0], [SEED + 1, 0, 0], [SEED, 0, 1]):
    other = layout.make_layout(np.random.default_rng(key).spawn(4)[0])
    other = other.meshes[0].vertices
    assert not np.isclose(first[0, 0], other[0]).all()


def test_rendering_without_noise_is_exact():
  drawn = layout.make_layout(np.random.default_rng(0))
  lights = render.Lights(np.zeros((1, 3)), np.ones(1), 0.5)
  world = render.World(drawn.meshes, drawn.label, lights)
  eye = drawn.plan.corners.mean(0)
  pose = render.look_at(np.append(eye, 1.5), np.append(eye + 1.0, 0.5))
  camera = np.array([20.0, 20.0, 15.5, 11.5])
  rng = np.random.default_rng(1)
  color, depth, label = render.render(
    world, pose, camera, (24, 32), rng, noise=False
  )
  same, *_ = render.render(world, pose, camera, (24, 32), rng, noise=False)
  np.testing.assert_array_equal(color, same)
  np.testing.assert_array_equal(depth > 0, label != IGNORE_LABEL)
  noisy, *_ = render.render(world, pose, camera, (24, 32), rng)
  assert (noisy != color).mean() > 0.5


def test_light_falls_off_with_the_angle_and_shadows_are_dark():
  grey = Material("plain", (200.0, 200.0, 200.0), (200.0, 200.0, 200.0), 0.1)
  parts = Assembly()
  parts.add(grey, box(-3, 3, -3, 3, -0.1, 0), box(-0.5, 0.5, -0.5, 0.5, 1, 1.1))
  lights = render.Lights(np.array([[0.0, 0, 2]]), np.array([1.0]), 0.5)
  world = render.World([parts.mesh("")], [0], lights)
  x = np.array([0.0, 1.0, 1.2, 1.6, 2.2, 2.8])
  eye = np.stack([x, 0 * x + 0.01, 0 * x + 0.5], 1)
  hits = world.cast(eye, np.tile([0.0, 0.0, -1.0], (len(x), 1)))
  np.testing.assert_allclose(hits.distance, 0.5, rtol=1e-6)
  np.testing.assert_allclose(world.places(hits)[:, 2], 0.0, atol=1e-9)
  shade = world.colors(hits, eye).mean(1) / 200
  np.testing.assert_allclose(shade[:2], 0.5)  # below the box
  distance = np.hypot(x, 2)[2:]
  expected = 0.5 + 2 / distance / (0.5 + 0.5 * distance**1.5)
  np.testing.assert_allclose(shade[2:], expected, rtol=2e-3)
  # Rays past everything hit nothing.
  away = world.cast(eye, np.tile([0.0, 0.0, 1.0], (len(x), 1)))
  assert (away.triangle[1:] == -1).all() and away.triangle[0] >= 0
  assert np.isinf(away.distance[1:]).all()
