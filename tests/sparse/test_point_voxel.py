"""Exchange between finest voxels and coarser levels, against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes
import spvcnn_oracle

from wsegpc_jax.sparse import hashing, interpolate, point_voxel

C, M = 3, scenes.CAPACITIES[0]
LEVELS = (0, 2, 4)
KINDS = {
  "read": point_voxel.trilinear_to_points,
  "pool": point_voxel.mean_to_voxels,
}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def with_gradient(kind, level):
  """(x, cotangent, plan) -> (out, dx)."""

  def apply(x, cotangent, plan):
    out, pull = jax.vjp(lambda x: KINDS[kind](x, plan, level), x)
    return out, *pull(cotangent)

  return scenes.compiled(apply)


def operands(kind, level, dtype=np.float64):
  """(x, cotangent) of all rows, padding included."""
  coarse = scenes.features(level, scenes.CAPACITIES[level], C, dtype=dtype)
  fine = scenes.features(9, M, C, dtype=dtype)
  return (coarse, fine) if kind == "read" else (fine, coarse)


@functools.cache
def matrices(name):
  """{(kind, level): matrix}, rows and columns in the order of the plan."""
  plan = scenes.gallery_plan(name)
  pyramid = spvcnn_oracle.Pyramid(scenes.GALLERY[name])
  out = {}
  for level in LEVELS:
    stride = 2**level
    place = {v: row for row, v in enumerate(pyramid.levels[level])}
    voxels = scenes.level_voxels(plan.levels[level]).tolist()
    order = [
      place[s, x * stride, y * stride, z * stride] for s, x, y, z in voxels
    ]
    assert len(order) == len(place)
    out["pool", level] = pyramid.pool[level][order]
    out["read", level] = pyramid.read[level][:, order]
  return out


def apply_matrix(matrix, x, rows):
  out = np.zeros((rows, C))
  out[: len(matrix)] = matrix @ np.asarray(x)[: matrix.shape[1]]
  return out


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
class TestAgainstLoops:
  @pytest.mark.parametrize("name", scenes.GALLERY)
  def test_value_and_gradient(self, kind, level, name):
    x, cotangent = operands(kind, level)
    out, dx = with_gradient(kind, level)(
      x, cotangent, scenes.gallery_plan(name)
    )
    matrix = matrices(name)[kind, level]
    expected = apply_matrix(matrix, x, len(cotangent))
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-13)
    expected = apply_matrix(matrix.T, cotangent, len(x))
    np.testing.assert_allclose(dx, expected, rtol=1e-13, atol=1e-13)

  def test_padding_is_inert(self, kind, level):
    name = "random, scene 2 empty"
    plan = scenes.gallery_plan(name)
    x, cotangent = operands(kind, level)
    expected = with_gradient(kind, level)(x, cotangent, plan)
    inputs, outputs = matrices(name)[kind, level].shape[::-1]
    assert inputs < len(x) and outputs < len(cotangent)
    got = with_gradient(kind, level)(
      x.at[inputs:].set(np.nan), cotangent.at[outputs:].set(np.nan), plan
    )
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_array_equal(a, b)

  def test_finite_differences(self, kind, level):
    plan = scenes.gallery_plan("clusters")
    x, cotangent = operands(kind, level)
    step = 1e-3 * scenes.features(2, *x.shape)
    above, _ = with_gradient(kind, level)(x + step, cotangent, plan)
    below, dx = with_gradient(kind, level)(x - step, cotangent, plan)
    difference = ((above - below) * cotangent).sum() / 2
    np.testing.assert_allclose((dx * step).sum(), difference, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_at_stride_one_both_are_the_identity(kind):
  name = "random, scene 2 empty"
  x, cotangent = operands(kind, 0, np.float32)
  plan = scenes.gallery_plan(name)
  out, dx = with_gradient(kind, 0)(x, cotangent, plan)
  n = len(scenes.GALLERY[name])
  np.testing.assert_array_equal(out[:n], x[:n])
  np.testing.assert_array_equal(dx[:n], cotangent[:n])


@pytest.mark.parametrize("name", scenes.GALLERY)
def test_weights(name):
  """They sum to one, and the voxel that holds the point is among them."""
  plan = scenes.gallery_plan(name)
  valid = np.asarray(plan.levels[0].valid)
  for level in (1, 2, 3, 4):
    capacity = scenes.CAPACITIES[level]
    point_map = point_voxel.trilinear_map(plan, level)
    total = np.asarray(point_map.weights).sum(1)
    np.testing.assert_allclose(total, valid, rtol=1e-6, atol=0)
    constant = jnp.full((capacity, 1), 3.0)
    read = point_voxel.trilinear_to_points(constant, plan, level)
    np.testing.assert_allclose(read[:, 0], 3 * valid, rtol=1e-6, atol=0)
    own = np.asarray(point_voxel.ancestor_rows(plan, level))
    np.testing.assert_array_equal(point_map.rows[:, 0], own)
    assert (point_map.weights[valid, 0] > 0).all()
    np.testing.assert_array_equal(own < capacity, valid)
    stride = 2**level
    fine, coarse = (plan.levels[i].coords for i in (0, level))
    np.testing.assert_array_equal(
      np.asarray(fine)[valid, 1:] // stride, np.asarray(coarse)[own[valid], 1:]
    )


@pytest.mark.parametrize("name", ["clusters", "random, scene 2 empty"])
def test_equals_the_map_of_centres_moved_to_corners(name):
  plan = scenes.gallery_plan(name)
  fine = plan.levels[0]
  scene = jnp.where(fine.valid, fine.coords[:, 0], -1)
  for level in (2, 4):
    coarse = plan.levels[level]
    table = hashing.build_table(coarse.coords, coarse.count)
    points = fine.coords[:, 1:] / 2**level + 0.5
    expected = interpolate.trilinear_map(points, scene, table)
    got = point_voxel.trilinear_map(plan, level)
    np.testing.assert_array_equal(got.rows, expected.rows)
    np.testing.assert_allclose(got.weights, expected.weights, atol=1e-6)


def test_linear_functions_of_the_corner_are_reproduced():
  # The corners of all points in this block exist at stride 2.
  block = scenes.in_order(
    (0, x, y, z) for x in range(-4, 4) for y in (2, 3, 4) for z in (0, 1, 2)
  )
  plan = scenes.plan_of(block)
  slope = np.array([[1.0, -2.0, 0.5], [0.25, 1.0, 0.0], [2.0, 0.0, 1.0]])
  corner = 2 * np.asarray(plan.levels[1].coords)[:, 1:]
  got = point_voxel.trilinear_to_points(
    jnp.asarray(corner @ slope + 1), plan, 1
  )
  inner = (block[:, 1] < 3) & (block[:, 2] < 5) & (block[:, 3] < 3)
  assert inner.sum() > 50
  expected = block[:, 1:] @ slope + 1
  got = np.asarray(got)[: len(block)]
  np.testing.assert_allclose(got[inner], expected[inner], atol=1e-5)


def test_by_hand():
  # At stride 4: voxels (0, 0, 0), with three points, and (4, 0, 0), with one.
  voxels = scenes.in_order(
    [(0, 0, 0, 0), (0, 1, 0, 3), (0, 3, 3, 0), (0, 5, 1, 2)]
  )
  plan = scenes.plan_of(voxels)
  x = np.zeros((M, 1), np.float32)
  x[:4, 0] = [{0: 1.0, 1: 2.0, 3: 6.0, 5: 10.0}[v[1]] for v in voxels.tolist()]
  pooled = np.asarray(point_voxel.mean_to_voxels(jnp.asarray(x), plan, 2))
  assert pooled[:2, 0].tolist() == [3.0, 10.0] and not pooled[2:].any()
  read = point_voxel.trilinear_to_points(jnp.asarray(pooled), plan, 2)
  got = {v[1]: float(read[i, 0]) for i, v in enumerate(voxels.tolist())}
  # x / 4 of the way from one to the other; beyond the second, only itself.
  expected = {0: 3.0, 1: 3 + 7 / 4, 3: 3 + 7 * 3 / 4, 5: 10.0}
  assert got == pytest.approx(expected, rel=1e-6)


def test_far_from_the_origin():
  # In integers: float32 would lose the place inside a voxel here.
  near = scenes.GALLERY["clusters"]
  far = near + (0, 2**28, -(2**28), 2**27)
  x, _ = operands("read", 4, np.float32)
  values = [
    point_voxel.trilinear_to_points(x, scenes.plan_of(v), 4)
    for v in (near, far)
  ]
  np.testing.assert_array_equal(*values)


def test_a_voxel_without_room_at_a_level_reads_and_gives_nothing():
  voxels = scenes.voxels_of([(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)])
  plan = scenes.build_plan(scenes.pad(voxels, 8), 3, (8, 2, 2))
  x = jnp.ones((2, 1))
  got = point_voxel.trilinear_to_points(x, plan, 2)[:, 0]
  assert got.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
  got = point_voxel.mean_to_voxels(jnp.arange(8.0)[:, None], plan, 2)[:, 0]
  assert got.tolist() == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_floats_are_summed_wide(kind):
  # 4096 voxels in one of stride 16: bfloat16 cannot count beyond 256.
  block = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
  block = scenes.in_order(np.pad(block.reshape(-1, 3), ((0, 0), (1, 0))))
  capacities = (4096, 512, 64, 8, 1)
  plan = scenes.build_plan(block, 4096, capacities)
  ones = jnp.ones((4096 if kind == "pool" else 1, 1), jnp.bfloat16)
  g = jnp.ones((1 if kind == "pool" else 4096, 1), jnp.bfloat16)
  out, dx = with_gradient(kind, 4)(ones, g, plan)
  assert out.dtype == dx.dtype == jnp.bfloat16
  assert (out == 1).all()
  assert (dx == (1 / 4096 if kind == "pool" else 4096)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_scattered(kind):
  plan = scenes.gallery_plan("clusters")
  traced = with_gradient(kind, 4).trace(*operands(kind, 4, np.float32), plan)
  text = str(traced.jaxpr) + traced.lower().as_text()
  assert "gather" in text and "scatter" not in text
