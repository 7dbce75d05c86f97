"""Reading at points against loops over the eight voxels around each."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import hashing, interpolate

C, POINTS = 3, 120
M = scenes.CAPACITIES[0]
MAPS = {
  "nearest": interpolate.nearest_map,
  "trilinear": interpolate.trilinear_map,
}


@functools.cache
def reader(kind):
  """(x, points, scene, coords, count, cotangent) -> (map, values, dx)."""

  def read(x, points, scene, coords, count, cotangent):
    table = hashing.build_table(coords, count)
    point_map = MAPS[kind](points, scene, table)
    values, pull = jax.vjp(lambda x: interpolate.interpolate(x, point_map), x)
    return point_map, values, pull(cotangent)[0]

  return scenes.compiled(read)


def read(kind, voxels, points, scene, x=None, cotangent=None):
  """The engine's answer for up to POINTS points, padded to that many."""
  n = len(points)
  if x is None:
    x = scenes.features(0, M, C, dtype=np.float32)
  if cotangent is None:
    cotangent = scenes.features(1, POINTS, C, dtype=np.float32)
  points = np.pad(np.asarray(points, np.float32), ((0, POINTS - n), (0, 0)))
  scene = np.pad(np.asarray(scene), (0, POINTS - n), constant_values=-1)
  coords = scenes.pad(voxels, M)
  with jax.default_matmul_precision("highest"):
    point_map, values, dx = reader(kind)(
      x, points, scene.astype(np.int32), coords, len(voxels), cotangent
    )
  # A point of scene -1 is padding: it reads nothing.
  np.testing.assert_array_equal(point_map.rows[n:], M)
  np.testing.assert_array_equal(values[n:], 0)
  return jax.tree.map(lambda a: np.asarray(a)[:n], (point_map, values)) + (dx,)


def weights(kind, voxels, points, scene) -> np.ndarray:
  """float64 [P, M]: share of each voxel in each point, by loops."""
  row = {tuple(voxel): i for i, voxel in enumerate(voxels.tolist())}
  out = np.zeros((len(points), M))
  for i, (point, s) in enumerate(zip(points, scene, strict=True)):
    point = [float(v) for v in np.float32(point)]
    if kind == "nearest":
      found = row.get((s, *(int(np.floor(v)) for v in point)))
      if found is not None:
        out[i, found] = 1
      continue
    low = [int(np.floor(v - 0.5)) for v in point]
    for corner in itertools.product((0, 1), repeat=3):
      voxel = [a + b for a, b in zip(low, corner, strict=True)]
      found = row.get((s, *voxel))
      if found is not None:  # the closer to the voxel's centre, the more
        centre = np.array(voxel) + 0.5
        out[i, found] = np.prod(1 - np.abs(np.array(point) - centre))
    if out[i].sum() > 0:
      out[i] /= out[i].sum()
  return out


def random_points(voxels, seed=0):
  """Points in and around some of the voxels, and anywhere; their scenes."""
  rng = np.random.default_rng(seed)
  points = rng.uniform(-9, 9, (POINTS, 3))
  scene = rng.integers(-1, 4, POINTS)
  if len(voxels):
    near = rng.integers(0, len(voxels), POINTS - 20)
    points[20:] = voxels[near, 1:] + rng.uniform(-0.3, 1.3, (len(near), 3))
    scene[20:] = voxels[near, 0]
  return points.astype(np.float32), scene


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", scenes.GALLERY)
def test_equals_loops(kind, name):
  voxels = scenes.GALLERY[name]
  points, scene = random_points(voxels)
  x = scenes.features(0, M, C, dtype=np.float32)
  cotangent = scenes.features(1, POINTS, C, dtype=np.float32)
  point_map, values, dx = read(kind, voxels, points, scene, x, cotangent)
  expected = weights(kind, voxels, points, scene)
  got = np.zeros((POINTS, M + 1))
  np.put_along_axis(got, point_map.rows, point_map.weights, 1)
  np.testing.assert_allclose(got[:, :M], expected, rtol=0, atol=2e-5)
  np.testing.assert_allclose(values, expected @ x, rtol=0, atol=1e-4)
  np.testing.assert_allclose(dx, expected.T @ cotangent, rtol=0, atol=1e-3)
  total = point_map.weights.sum(1)
  np.testing.assert_allclose(total, expected.sum(1), rtol=1e-6)
  assert (expected.any(1).sum() > 10) == (len(voxels) > 0)


@pytest.mark.parametrize("kind", MAPS)
def test_at_centres_a_voxel_reads_itself(kind):
  voxels = scenes.GALLERY["random, scene 2 empty"]
  x = scenes.features(0, M, C, dtype=np.float32)
  _, values, _ = read(kind, voxels, voxels[:, 1:] + 0.5, voxels[:, 0], x)
  np.testing.assert_array_equal(values, x[: len(voxels)])


def test_faces_belong_to_the_voxel_above():
  voxels = scenes.voxels_of([(0, -1, 0, 0), (0, 0, 0, 0)])
  points = [[x, 0.5, 0.5] for x in (-1.0, -1e-6, 0.0, 0.99, 1.0, -1.0001)]
  point_map, *_ = read("nearest", voxels, points, [0] * 6)
  assert point_map.rows[:, 0].tolist() == [0, 0, 1, 1, M, M]


def test_trilinear_reproduces_linear_functions():
  voxels = scenes.GALLERY["a block without gaps"]  # -2 .. 1 on each axis
  slope = np.array([[0.5, -2.0, 1.0], [1.0, 0.0, 3.0], [-1.0, 0.25, 2.0]])
  x = np.zeros((M, C), np.float32)
  x[: len(voxels)] = (voxels[:, 1:] + 0.5) @ slope + 1
  rng = np.random.default_rng(0)
  points = rng.uniform(-1.5, 1.5, (POINTS, 3)).astype(np.float32)
  _, values, _ = read("trilinear", voxels, points, [0] * POINTS, x)
  np.testing.assert_allclose(values, points @ slope + 1, rtol=0, atol=2e-5)


def test_missing_voxels_leave_their_weight_to_the_others():
  voxels = scenes.voxels_of([(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0)])
  x = np.zeros((M, C), np.float32)
  x[:3, 0] = 10, 20, 99
  points = [(0.75, 0.6, 0.3), (1.25, 0.5, 0.5), (2.4, 0.5, 0.5), (3, 3, 3)]
  _, values, _ = read("trilinear", voxels, points, [0] * 4, x)
  np.testing.assert_allclose(values[:, 0], [12.5, 17.5, 20, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", MAPS)
def test_far_from_the_origin(kind):
  # float32 still resolves 1/16 of a voxel at 1e6 voxels.
  move = np.array([10**6, -(10**6), 2**19])
  voxels = scenes.GALLERY["a block without gaps"]
  points = np.random.default_rng(0).integers(-32, 32, (50, 3)) / 16
  _, near, _ = read(kind, voxels, points, [0] * 50)
  _, far, _ = read(kind, voxels + (0, *move), points + move, [0] * 50)
  np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize("kind", MAPS)
def test_padding_is_inert(kind):
  voxels = scenes.GALLERY["random, scene 2 empty"]
  points, scene = random_points(voxels)
  x = scenes.features(0, M, C, dtype=np.float32)
  _, expected, _ = read(kind, voxels, points, scene, x)
  garbage = x.at[len(voxels) :].set(np.nan)
  _, values, _ = read(kind, voxels, points, scene, garbage)
  np.testing.assert_array_equal(values, expected)


def test_narrow_floats_keep_their_type():
  x = jnp.ones((M, C), jnp.bfloat16)
  point_map = interpolate.PointMap(
    jnp.zeros((5, 8), jnp.int32), jnp.full((5, 8), 0.125, jnp.float32)
  )
  out = jax.eval_shape(interpolate.interpolate, x, point_map)
  assert out.dtype == jnp.bfloat16 and out.shape == (5, C)
