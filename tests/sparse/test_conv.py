"""Each kind of convolution against dense ones, value and gradient."""

import functools

import dense_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes
from dense_oracle import KINDS

from wsegpc_jax.sparse import conv, pool, voxelize
from wsegpc_jax.sparse import plan as plan_lib

C, D = 3, 4
ODD = [kind for kind, (size, _) in KINDS.items() if size % 2]


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def operator(kind):
  return {
    "stem": conv.stem_conv,
    "strided": conv.strided_conv,
    "transposed": conv.transposed_conv,
  }.get(kind, conv.submanifold_conv)


def operand(kind, plan):
  """What the operator of this kind takes besides features and weight."""
  fine = plan.levels[0]
  match kind:
    case "submanifold":
      return fine.neighbors
    case "dilated":
      return scenes.neighbor_table(fine.coords, fine.count, dilation=2)
    case "stem":
      return plan
    case _:
      return fine


def with_gradients(function):
  """(x, weight, cotangent, ...) -> (out, dx, dW)."""

  def apply(x, weight, cotangent, *rest):
    out, pull = jax.vjp(lambda *args: function(*args, *rest), x, weight)
    return out, *pull(cotangent)

  return apply


@functools.cache
def compiled_gradients(function, implementation):
  function = functools.partial(function, implementation=implementation)
  return scenes.compiled(with_gradients(function))


def sparse(kind, plan, arguments, implementation="xla"):
  """(out, dx, dW) of the sparse convolution."""
  apply = compiled_gradients(operator(kind), implementation)
  return apply(*arguments, operand(kind, plan))


@functools.cache
def dense_gradients(kind):
  # `jax.lax` convolutions are very slow unless they are optimised a little.
  function = functools.partial(dense_oracle.dense, kind)
  flags = {"xla_backend_optimization_level": 1}
  return jax.jit(with_gradients(function), compiler_options=flags)


def ends(kind, plan):
  """(level, stride) of the input and of the output."""
  fine, coarse = ((level, 2**i) for i, level in enumerate(plan.levels[:2]))
  return {"strided": (fine, coarse), "transposed": (coarse, fine)}.get(
    kind, (fine, fine)
  )


def problem(kind, plan, seed=0, dtype=np.float64):
  """(x, weight, cotangent); rows of padding are as random as the others."""
  (source, _), (target, _) = ends(kind, plan)
  return (
    scenes.features(seed, source.capacity, C, dtype=dtype),
    scenes.features(seed + 1, dense_oracle.taps(kind), C, D, dtype=dtype),
    scenes.features(seed + 2, target.capacity, D, dtype=dtype),
  )


def oracle(kind, plan, arguments):
  """(out, dx, dW) of the dense convolution."""
  where = [dense_oracle.cells(*end) for end in ends(kind, plan)]
  return dense_gradients(kind)(*arguments, *where)


def assert_close(got, expected, tolerance=1e-13):
  for a, b in zip(got, expected, strict=True):
    assert a.shape == b.shape
    scale = np.abs(b).max(initial=1)
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.usefixtures("float64")
class TestDenseOracle:
  """The oracles themselves, by impulses against the written convention."""

  @pytest.mark.parametrize("kind", ODD)
  def test_impulse_odd(self, kind):
    size, dilation = KINDS[kind]
    weight = np.arange(1.0, size**3 + 1).reshape(-1, 1, 1)
    grid = np.zeros((2, 16, 16, 16, 1))
    grid[1, 8, 7, 6] = 1
    out = dense_oracle.loops(kind, grid, weight)
    assert np.count_nonzero(out) == size**3 and not out[0].any()
    r = size // 2
    for k, d in (
      (0, (-r, -r, -r)),
      (1, (1 - r, -r, -r)),  # the first axis is the fastest
      (size, (-r, 1 - r, -r)),
      (size**2, (-r, -r, 1 - r)),
      (size**3 // 2, (0, 0, 0)),
      (size**3 - 1, (r, r, r)),
    ):
      p = np.array((8, 7, 6)) - np.array(d) * dilation  # out[p] from in[p + d]
      assert out[1, *p, 0] == k + 1

  def test_impulse_strided(self):
    weight = np.arange(1.0, 9).reshape(-1, 1, 1)
    for k, t in (
      (0, (0, 0, 0)),
      (1, (1, 0, 0)),
      (2, (0, 1, 0)),
      (6, (0, 1, 1)),
    ):
      grid = np.zeros((1, 8, 8, 8, 1))
      grid[0, 4 + t[0], 6 + t[1], 2 + t[2]] = 1
      out = dense_oracle.loops("strided", grid, weight)
      assert out[0, 2, 3, 1] == k + 1 and np.count_nonzero(out) == 1

  def test_impulse_transposed(self):
    weight = np.arange(1.0, 9).reshape(-1, 1, 1)
    grid = np.zeros((1, 4, 4, 4, 1))
    grid[0, 2, 3, 1] = 1
    out = dense_oracle.loops("transposed", grid, weight)
    assert np.count_nonzero(out) == 8
    for k, t in (
      (0, (0, 0, 0)),
      (1, (1, 0, 0)),
      (2, (0, 1, 0)),
      (6, (0, 1, 1)),
    ):
      assert out[0, 4 + t[0], 6 + t[1], 2 + t[2], 0] == k + 1

  @pytest.mark.parametrize("kind", KINDS)
  def test_lax_equals_loops(self, kind):
    grid = scenes.features(0, 2, 6, 8, 4, C)
    weight = scenes.features(1, dense_oracle.taps(kind), C, D)
    expected = dense_oracle.loops(kind, np.asarray(grid), np.asarray(weight))
    apply = scenes.compiled(functools.partial(dense_oracle.lax_conv, kind))
    assert_close([apply(grid, weight)], [expected])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
  @pytest.mark.parametrize("name", scenes.GALLERY)
  def test_equals_dense(self, kind, implementation, name):
    plan = scenes.gallery_plan(name)
    arguments = problem(kind, plan)
    got = sparse(kind, plan, arguments, implementation)
    assert_close(got, oracle(kind, plan, arguments))

  @pytest.mark.parametrize("garbage", [1e30, np.nan], ids=str)
  @pytest.mark.parametrize("where", ["features", "cotangent"])
  def test_padding_is_inert(self, kind, implementation, where, garbage):
    plan = scenes.gallery_plan("random, scene 2 empty")
    x, weight, cotangent = problem(kind, plan)
    (source, _), (target, _) = ends(kind, plan)
    assert not source.valid.all() and not target.valid.all()
    expected = sparse(kind, plan, (x, weight, cotangent), implementation)
    if where == "features":
      x = jnp.where(source.valid[:, None], x, garbage)
    else:
      cotangent = jnp.where(target.valid[:, None], cotangent, garbage)
    got = sparse(kind, plan, (x, weight, cotangent), implementation)
    names = ("value", "input gradient", "weight gradient")
    for name, a, b in zip(names, got, expected, strict=True):
      np.testing.assert_array_equal(a, b, err_msg=name)
    np.testing.assert_array_equal(got[0][int(target.count) :], 0)
    np.testing.assert_array_equal(got[1][int(source.count) :], 0)


@pytest.mark.usefixtures("float64")
class TestOtherSizes:
  @pytest.mark.parametrize("kind", ["stem", "transposed"])
  def test_several_tiles(self, kind):
    # More rows than one tile has, in tiles that do not come out even.
    voxels = scenes.in_order(scenes.random_voxels(5, 1301, -8, 8, range(4)))
    plan = scenes.plan_of(voxels, (1301, 1201))
    arguments = problem(kind, plan)
    got = sparse(kind, plan, arguments)
    assert_close(got, oracle(kind, plan, arguments))

  def test_pallas(self):
    plan = scenes.gallery_plan("random, scene 2 empty")
    arguments = problem("submanifold", plan)
    got = sparse("submanifold", plan, arguments, "pallas")
    assert_close(got, oracle("submanifold", plan, arguments))

  @pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
      ("stem", "float32", 2e-6),
      ("strided", "float32", 2e-6),
      ("submanifold", "float32", 2e-6),
      ("transposed", "float32", 2e-6),
      ("submanifold", "bfloat16", 1e-2),
      ("strided", "bfloat16", 1e-2),
      ("transposed", "bfloat16", 1e-2),
    ],
  )
  def test_narrow_floats(self, kind, dtype, tolerance):
    plan = scenes.gallery_plan("random, scene 2 empty")
    arguments = problem(kind, plan, dtype=dtype)
    with jax.default_matmul_precision("highest"):
      got = sparse(kind, plan, arguments)
    assert {a.dtype for a in got} == {np.dtype(dtype)}
    exact = [jnp.asarray(a, np.float64) for a in arguments]
    assert_close(got, oracle(kind, plan, exact), tolerance)


def network(weights, x, plan):
  """Every kind of step between two levels, with a skip."""
  fine, coarse = plan.levels[:2]
  y = jax.nn.relu(conv.stem_conv(x, weights["stem"], plan))
  z = jax.nn.relu(conv.strided_conv(y, weights["down"], fine))
  z = z + pool.max_pool(y, fine) - pool.mean_pool(y, fine)
  z = conv.submanifold_conv(z, weights["coarse"], coarse.neighbors)
  up = conv.transposed_conv(z, weights["up"], fine)
  return up + conv.submanifold_conv(y, weights["fine"], fine.neighbors)


network_gradients = scenes.compiled(
  lambda weights, x, cotangent, plan: (
    lambda out, pull: (out, *pull(cotangent))
  )(*jax.vjp(lambda *args: network(*args, plan), weights, x))
)


def network_weights():
  taps = {"stem": 125, "down": 8, "coarse": 27, "up": 8, "fine": 27}
  return {
    name: scenes.features(i, k, D, D, dtype=np.float32) / k**0.5
    for i, (name, k) in enumerate(taps.items())
  }


def network_rows(rows, capacity, seed=0):
  """Features of some voxels, and zeros for padding."""
  x = scenes.features(seed, rows, D, dtype=np.float32)
  return jnp.pad(x, ((0, capacity - rows), (0, 0)))


def assert_rounding(got, expected):
  jax.tree.map(
    lambda a, b: assert_close([a], [b], 5e-6), tuple(got), tuple(expected)
  )


class TestNetwork:
  NAME = "random, scene 2 empty"

  def run(self, plan, x, cotangent):
    with jax.default_matmul_precision("highest"):
      return network_gradients(network_weights(), x, cotangent, plan)

  def test_capacities_change_rounding_only(self):
    voxels = scenes.GALLERY[self.NAME]
    results = []
    for capacities in (scenes.CAPACITIES, (64, 60)):
      m = capacities[0]
      plan = scenes.plan_of(voxels, capacities)
      x, cotangent = (network_rows(len(voxels), m, seed) for seed in (0, 1))
      out, dw, dx = self.run(plan, x, cotangent)
      results.append((out[: len(voxels)], dw, dx[: len(voxels)]))
    assert_rounding(*results)

  def test_permuted_voxels_change_rounding_only(self):
    voxels = scenes.GALLERY[self.NAME]
    n, m = len(voxels), scenes.CAPACITIES[0]
    order = np.random.default_rng(3).permutation(n)
    full = np.append(order, np.arange(n, m))  # padding stays at the end
    plan = scenes.plan_of(voxels)
    permuted = scenes.plan_of(voxels[order], is_sorted=False)
    # The tables say exactly the same of the voxels in their new rows.
    inverse = np.append(np.argsort(full), m)
    np.testing.assert_array_equal(
      permuted.levels[0].neighbors, inverse[plan.levels[0].neighbors[full]]
    )
    np.testing.assert_array_equal(
      permuted.levels[0].parent, plan.levels[0].parent[full]
    )
    x, cotangent = (network_rows(n, m, seed) for seed in (0, 1))
    out, dw, dx = self.run(plan, x, cotangent)
    got = self.run(permuted, x[full], cotangent[full])
    assert_rounding(got, (out[full], dw, dx[full]))

  def voxelized(self, offset):
    """The network over points, all moved by `offset` voxels of 0.25 m."""
    rng = np.random.default_rng(0)
    coords, features, inverse = [], [], []
    for scene in range(2):
      # Multiples of 1/64: moving the points is exact.
      points = rng.integers(-64, 64, (35, 3)) / 64
      voxels = voxelize.voxelize(points + 0.25 * np.asarray(offset), 0.25)
      coords.append(np.insert(voxels.coords, 0, scene, 1))
      features.append(rng.standard_normal((len(points), D))[voxels.first])
      inverse.append(voxels.inverse + sum(map(len, coords[:-1])))
    coords = np.concatenate(coords)
    m = scenes.CAPACITIES[0]
    plan = scenes.plan_of(coords)
    x = np.zeros((m, D), np.float32)
    x[: len(coords)] = np.concatenate(features)
    results = self.run(plan, x, network_rows(len(coords), m))
    return plan, results, np.concatenate(inverse)

  def test_moving_by_sixteen_voxels_changes_nothing(self):
    expected = self.voxelized((0, 0, 0))
    for offset in ((16, 0, 0), (-16, 32, -48), (16 * 10**4,) * 3):
      got = self.voxelized(offset)
      jax.tree.map(np.testing.assert_array_equal, got, expected)
    other = self.voxelized((1, 0, 0))  # another parent for every other voxel
    assert not np.array_equal(other[1][0], expected[1][0])

  def test_a_plan_moved_by_sixteen_voxels(self):
    # Without `voxelize` rows keep their order at the finest level only.
    voxels = scenes.GALLERY[self.NAME]
    m = scenes.CAPACITIES[0]
    plan = scenes.plan_of(voxels)
    moved = scenes.plan_of(voxels + (0, 16, -64, 1600), is_sorted=False)
    for field in ("neighbors", "octant"):
      a, b = (getattr(p.levels[0], field) for p in (moved, plan))
      np.testing.assert_array_equal(a, b)
    x, cotangent = (network_rows(len(voxels), m, seed) for seed in (0, 1))
    assert_rounding(self.run(moved, x, cotangent), self.run(plan, x, cotangent))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_scattered(kind):
  plan = scenes.gallery_plan("random, scene 2 empty")
  arguments = *problem(kind, plan, dtype=np.float32), operand(kind, plan)

  def text(implementation):
    apply = functools.partial(operator(kind), implementation=implementation)
    traced = jax.jit(with_gradients(apply)).trace(*arguments)
    return str(traced.jaxpr) + traced.lower().as_text()

  assert "gather" in text("xla")
  for implementation in (None, "xla"):
    assert "scatter" not in text(implementation)
  assert "scatter" in text("reference")  # it would be seen


def test_errors():
  plan = scenes.gallery_plan("random, scene 2 empty")
  fine = plan.levels[0]
  x, weight = np.zeros((80, C)), np.zeros((27, C, D))
  with pytest.raises(ValueError, match="79 rows.*80"):
    conv.submanifold_conv(x[:79], weight, fine.neighbors)
  with pytest.raises(ValueError, match="8 taps.*27"):
    conv.submanifold_conv(x, weight[:8], fine.neighbors)
  with pytest.raises(ValueError, match="125 taps, got 27"):
    conv.stem_conv(x, weight, plan)
  with pytest.raises(ValueError, match="two levels"):
    conv.stem_conv(x, weight, plan_lib.Plan(plan.levels[:1]))
  with pytest.raises(ValueError, match="76 rows.*finest level 80"):
    conv.stem_conv(x[:76], np.zeros((125, C, D)), plan)
  with pytest.raises(ValueError, match="76 rows.*fine level 80"):
    conv.strided_conv(x[:76], weight[:8], fine)
  with pytest.raises(ValueError, match="80 rows.*coarse level 76"):
    conv.transposed_conv(x, weight[:8], fine)
  with pytest.raises(ValueError, match=r"\[M, 7\]"):
    conv.strided_conv(x, weight[:7], fine)


def test_a_transposed_convolution_of_seven_taps():
  fine = scenes.gallery_plan("random, scene 2 empty").levels[0]
  with pytest.raises(ValueError, match="7.*taps|taps.*7"):
    conv.transposed_conv(np.zeros((76, C)), np.zeros((7, C, D)), fine)
