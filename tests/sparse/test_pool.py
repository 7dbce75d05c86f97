"""Pooling against loops over the children of each coarse voxel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import pool

C = 3
POOLS = {"sum": pool.sum_pool, "mean": pool.mean_pool, "max": pool.max_pool}
M, P = scenes.CAPACITIES[:2]

segment_mean = scenes.compiled(
  pool.segment_mean, static_argnames=("num_segments", "implementation")
)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def families(plan):
  """(coarse row, rows of its children) for every coarse voxel."""
  fine, coarse = (scenes.level_voxels(level) for level in plan.levels[:2])
  for parent, row in enumerate(scenes.children(fine, coarse)):
    yield parent, row[row >= 0]


def oracle(kind, plan, x, cotangent):
  """(out, dx); maxima that are shared share the gradient."""
  x, cotangent = np.asarray(x), np.asarray(cotangent)
  out, dx = np.zeros((P, x.shape[1])), np.zeros(x.shape)
  for parent, row in families(plan):
    for c in range(x.shape[1]):
      values, g = x[row, c], cotangent[parent, c]
      match kind:
        case "sum":
          out[parent, c], dx[row, c] = values.sum(), g
        case "mean":
          out[parent, c], dx[row, c] = values.mean(), g / len(row)
        case "max":
          out[parent, c] = values.max()
          best = row[values == values.max()]
          dx[best, c] = g / len(best)
  return out, dx


@functools.cache
def with_gradient(kind):
  def apply(x, cotangent, fine):
    out, pull = jax.vjp(lambda x: POOLS[kind](x, fine), x)
    return out, *pull(cotangent)

  return scenes.compiled(apply)


def assert_equal(got, expected):
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", POOLS)
class TestPools:
  @pytest.mark.parametrize("name", scenes.GALLERY)
  def test_equals_loops(self, kind, name):
    plan = scenes.gallery_plan(name)
    x, cotangent = scenes.features(0, M, C), scenes.features(1, P, C)
    got = with_gradient(kind)(x, cotangent, plan.levels[0])
    assert_equal(got, oracle(kind, plan, x, cotangent))

  @pytest.mark.parametrize("name", ["a block without gaps", "clusters"])
  def test_equal_children(self, kind, name):
    # Ties, among them of zeros, which padding must not join.
    plan = scenes.gallery_plan(name)
    x = jnp.round(scenes.features(0, M, C))
    x = x.at[:, 2].set(-1.0)
    cotangent = scenes.features(1, P, C)
    got = with_gradient(kind)(x, cotangent, plan.levels[0])
    assert_equal(got, oracle(kind, plan, x, cotangent))

  @pytest.mark.parametrize("garbage", [1e30, np.nan], ids=str)
  def test_padding_is_inert(self, kind, garbage):
    plan = scenes.gallery_plan("random, scene 2 empty")
    fine, coarse = plan.levels[:2]
    x, cotangent = scenes.features(0, M, C), scenes.features(1, P, C)
    expected = with_gradient(kind)(x, cotangent, fine)
    got = with_gradient(kind)(
      jnp.where(fine.valid[:, None], x, garbage),
      jnp.where(coarse.valid[:, None], cotangent, garbage),
      fine,
    )
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[0][int(coarse.count) :], 0)
    np.testing.assert_array_equal(got[1][int(fine.count) :], 0)

  def test_finite_differences(self, kind):
    fine = scenes.gallery_plan("clusters").levels[0]
    x, cotangent = scenes.features(0, M, C), scenes.features(1, P, C)
    step = 1e-6 * scenes.features(2, M, C)  # far below the gaps of x
    above, _ = with_gradient(kind)(x + step, cotangent, fine)
    below, _ = with_gradient(kind)(x - step, cotangent, fine)
    _, dx = with_gradient(kind)(x, cotangent, fine)
    difference = ((above - below) * cotangent).sum() / 2
    np.testing.assert_allclose((dx * step).sum(), difference, rtol=1e-7)


@pytest.mark.parametrize("kind", POOLS)
def test_nothing_is_scattered(kind):
  fine = scenes.gallery_plan("clusters").levels[0]
  x, cotangent = (scenes.features(0, n, C, dtype=np.float32) for n in (M, P))
  traced = with_gradient(kind).trace(x, cotangent, fine)
  text = str(traced.jaxpr) + traced.lower().as_text()
  assert "gather" in text and "scatter" not in text


@pytest.mark.parametrize("kind", POOLS)
def test_dtype_is_kept(kind):
  fine = scenes.gallery_plan("clusters").levels[0]
  x = jnp.ones((M, C), jnp.bfloat16)
  got = jax.eval_shape(with_gradient(kind), x, x[:P], fine)
  assert [a.dtype for a in got] == [jnp.bfloat16] * 2


def test_maximum_of_values_below_zero():
  plan = scenes.gallery_plan("random, scene 2 empty")
  out = pool.max_pool(jnp.full((M, 1), -7.0), plan.levels[0])
  assert (out[: int(plan.levels[1].count)] == -7).all()  # not the padding's 0


class TestSceneMean:
  SCENE = jnp.array([0, 0, 3, 1, 3, 3, 0, 2])
  VALID = jnp.array([1, 1, 1, 1, 1, 1, 0, 0], bool)
  ROWS = {0: [0, 1], 1: [3], 2: [], 3: [2, 4, 5], 4: []}

  def test_equals_loops(self):
    x = scenes.features(0, 8, C, dtype=np.float32)
    got = pool.scene_mean(x, self.SCENE, self.VALID, num_scenes=5)
    for scene, rows in self.ROWS.items():
      expected = np.mean(x[np.array(rows)], 0) if rows else np.zeros(C)
      np.testing.assert_allclose(got[scene], expected, rtol=1e-6, atol=1e-7)

  def test_gradient(self):
    x = scenes.features(0, 8, C, dtype=np.float32)
    cotangent = scenes.features(1, 5, C, dtype=np.float32)

    @jax.jit
    def gradient(x):
      mean = functools.partial(pool.scene_mean, num_scenes=5)
      _, pull = jax.vjp(lambda x: mean(x, self.SCENE, self.VALID), x)
      return pull(cotangent)[0]

    expected = np.zeros((8, C))
    for scene, rows in self.ROWS.items():
      for row in rows:
        expected[row] = cotangent[scene] / len(rows)
    for value in (1e30, np.nan):  # in padding: invalid rows
      got = gradient(jnp.where(self.VALID[:, None], x, value))
      np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert "scatter" not in gradient.lower(x).as_text()

  def test_padding_is_inert(self):
    x = scenes.features(0, 8, C, dtype=np.float32)
    scene = jnp.where(self.VALID, self.SCENE, -1)
    expected = pool.scene_mean(x, self.SCENE, self.VALID, num_scenes=5)
    for value in (1e30, np.nan):
      garbage = jnp.where(self.VALID[:, None], x, value)
      for scenes_of_rows in (self.SCENE, scene):
        got = pool.scene_mean(garbage, scenes_of_rows, self.VALID, num_scenes=5)
        np.testing.assert_array_equal(got, expected)

  def test_sums_of_narrow_floats_are_wide(self):
    # bfloat16 cannot count beyond 256.
    x = jnp.ones((2000, 1), jnp.bfloat16)
    zeros = jnp.zeros(2000, jnp.int32)
    got = pool.scene_mean(x, zeros, zeros == 0, num_scenes=1)
    assert got.dtype == jnp.float32 and got[0, 0] == 1

  def test_no_rows(self):
    none = jnp.zeros(0, jnp.int32)
    got = pool.scene_mean(jnp.zeros((0, C)), none, none == 0, num_scenes=2)
    np.testing.assert_array_equal(got, np.zeros((2, C)))


@pytest.mark.parametrize("implementation", [None, "pallas"])
class TestSegmentMean:
  def test_equals_loops(self, implementation):
    x = scenes.features(0, 40, C, dtype=np.float32)
    # Segments 5 .. 7 are empty; -1, -8, 8 and 99 are none at all.
    choices = [0, 1, 2, 3, 4, -1, -8, 8, 99]
    segment = np.random.default_rng(0).choice(choices, 40)
    mean, number = segment_mean(
      x, segment, num_segments=8, implementation=implementation
    )
    for s in range(8):
      rows = np.flatnonzero(segment == s)
      assert number[s] == len(rows)
      expected = np.asarray(x)[rows].mean(0) if len(rows) else np.zeros(C)
      np.testing.assert_allclose(mean[s], expected, rtol=1e-5, atol=1e-6)
    assert number.dtype == jnp.int32 and number[:5].all()

  def test_gradient(self, implementation):
    x = scenes.features(0, 6, C, dtype=np.float32)
    segment = np.array([1, 1, 0, 3, 1, -1])  # three segments
    g = scenes.features(1, 3, C, dtype=np.float32)

    @scenes.compiled
    def gradient(x):
      mean = functools.partial(
        pool.segment_mean, num_segments=3, implementation=implementation
      )
      _, pull = jax.vjp(lambda x: mean(x, segment)[0], x)
      return pull(g)[0]

    expected = [g[1] / 3, g[1] / 3, g[0], 0 * g[0], g[1] / 3, 0 * g[0]]
    np.testing.assert_allclose(gradient(x), expected, rtol=1e-6)

  def test_rows_of_no_segment_may_hold_anything(self, implementation):
    x = jnp.array([[1.0], [3.0], [np.nan], [np.inf]])
    mean, number = segment_mean(
      x, jnp.array([0, 0, 2, -1]), num_segments=2, implementation=implementation
    )
    np.testing.assert_array_equal(mean, [[2.0], [0.0]])
    np.testing.assert_array_equal(number, [2, 0])

  def test_no_rows(self, implementation):
    none = jnp.zeros(0, jnp.int32)
    mean, number = segment_mean(
      jnp.zeros((0, C)), none, num_segments=2, implementation=implementation
    )
    np.testing.assert_array_equal(mean, np.zeros((2, C)))
    np.testing.assert_array_equal(number, [0, 0])
