"""Convolutions over existing pairs against their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.kernels.gather_conv import reference
from wsegpc_jax.sparse import conv, pairs
from wsegpc_jax.sparse import plan as plan_lib

C, D = 5, 7


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def small(monkeypatch):
  """Several tiles, and taps of more and of less than a block in each."""
  monkeypatch.setattr(pairs, "TILE", 24)
  monkeypatch.setattr(pairs, "BLOCK", 4)


def table_of(name):
  return scenes.plan_of(scenes.EVERYWHERE[name]).levels[0].neighbors


@pytest.mark.parametrize("name", ["random, scene 2 empty", "empty", "clusters"])
def test_pairs_are_those_of_the_table(small, name):
  table = np.asarray(table_of(name))
  found = scenes.compiled(pairs.find_pairs)(table)
  tiles, size = pairs.tiling(len(table))
  assert found.slots.shape == (tiles, size, 27)
  seen = set()
  for tile in range(tiles):
    blocks = int(found.blocks[tile])
    rows = np.asarray(found.rows[tile]).reshape(-1, 4)
    assert (rows[blocks:] == size).all()
    for block in range(blocks):
      tap = int(found.taps[tile, block])
      assert (rows[block] < size).any()  # no block without a pair
      for at, row in enumerate(rows[block]):
        if row < size:
          assert found.slots[tile, row, tap] == 4 * block + at
          seen.add((tile * size + int(row), tap))
  m = len(table)
  assert seen == {(i, k) for (i, k), j in np.ndenumerate(table) if j < m}
  none = rows.size
  assert (np.asarray(found.slots) != none).sum() == len(seen)


def gradients(apply):
  def run(x, weight, cotangent):
    out, pull = jax.vjp(apply, x, weight)
    return out, *pull(cotangent)

  return scenes.compiled(run)


def defined(x, table, weight, cotangent):
  out = reference.gather_conv(x, table, weight)
  mirrored = weight[::-1].transpose(0, 2, 1)
  dx = reference.gather_conv(cotangent, table, mirrored)
  return out, dx, reference.weight_gradient(x, table, cotangent)


def operands(m, dtype, *, garbage=0.0, count=None):
  count = m if count is None else count
  keep = jnp.arange(m)[:, None] < count
  x, cotangent = (
    jnp.where(keep, scenes.features(i, m, width, dtype=dtype), garbage)
    for i, width in enumerate((C, D))
  )
  return x, scenes.features(2, 27, C, D, dtype=dtype), cotangent


def over_pairs(table):
  found = scenes.compiled(pairs.find_pairs)(table)
  return lambda x, weight: conv._over_pairs(x, weight, table, found)


@pytest.fixture(params=[1, 64], ids=["wide", "narrow"])
def either_product(request, monkeypatch):
  """The weight gradient's left side written out transposed, or not."""
  monkeypatch.setattr(pairs, "_WIDE", request.param)


@pytest.mark.usefixtures("small", "either_product")
class TestEqualsTheDefinition:
  @pytest.mark.parametrize("name", ["random, scene 2 empty", "far apart"])
  def test_value_and_gradients(self, float64, name):
    table = table_of(name)
    args = operands(len(table), jnp.float64)
    found = gradients(over_pairs(table))(*args)
    x, weight, cotangent = args
    expected = defined(x, table, weight, cotangent)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

  def test_without_padding_and_uneven_tiles(self, float64):
    # 59 rows in tiles of 20; the last voxel is taken out.
    table = table_of("random, scene 2 empty")[:59]
    table = jnp.where(table < 59, table, 59)
    assert pairs.tiling(59) == (3, 20)
    args = operands(59, jnp.float64)
    found = gradients(over_pairs(table))(*args)
    x, weight, cotangent = args
    expected = defined(x, table, weight, cotangent)
    for a, b in zip(found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

  @pytest.mark.parametrize("garbage", [1e30, np.nan], ids=str)
  def test_padding_is_inert(self, garbage):
    name = "random, scene 2 empty"
    table, count = table_of(name), len(scenes.EVERYWHERE[name])
    run = gradients(over_pairs(table))
    plain = run(*operands(len(table), jnp.float32, count=count))
    other = run(
      *operands(len(table), jnp.float32, count=count, garbage=garbage)
    )
    for a, b in zip(plain, other, strict=True):
      np.testing.assert_array_equal(a, b)
    assert not np.asarray(plain[0])[count:].any()
    assert not np.asarray(plain[1])[count:].any()

  def test_nothing_exists(self):
    table = jnp.full((40, 27), 40, jnp.int32)
    run = gradients(over_pairs(table))
    for a in run(*operands(40, jnp.float32, garbage=np.nan, count=0)):
      assert not np.asarray(a).any()

  @pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 1e-2)]
  )
  def test_narrow_floats(self, dtype, tolerance):
    table = table_of("random, scene 2 empty")
    args = operands(len(table), dtype)
    found = gradients(over_pairs(table))(*args)
    x, weight, cotangent = (np.asarray(a, np.float64) for a in args)
    with jax.enable_x64(True):
      expected = defined(*map(jnp.asarray, (x, table, weight, cotangent)))
    for a, b in zip(found, expected, strict=True):
      assert a.dtype == np.dtype(dtype)
      a, b = np.asarray(a, np.float64), np.asarray(b)
      assert np.abs(a - b).max() <= tolerance * np.abs(b).max()

  def test_vmap_equals_a_map_at_a_time(self):
    names = "random, scene 2 empty", "clusters"
    tables = jnp.stack([table_of(name) for name in names])
    args = operands(tables.shape[1], jnp.float32)

    def run(table):
      found = pairs.find_pairs(table)
      apply = functools.partial(conv._over_pairs, table=table, pairs=found)
      out, pull = jax.vjp(lambda x, w: apply(x, w), *args[:2])
      return out, *pull(args[2])

    together = scenes.compiled(jax.vmap(run))(tables)
    for i, table in enumerate(tables):
      for a, b in zip(together, scenes.compiled(run)(table), strict=True):
        np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  ("m", "expected"),
  [
    (0, (1, 0)),
    (1, (1, 1)),
    (1024, (1, 1024)),
    (2049, (2, 1025)),
    (97_280, (64, 1520)),
    (32_512, (16, 2032)),
  ],
)
def test_tiles(m, expected):
  assert pairs.tiling(m) == expected


@pytest.mark.usefixtures("small")
class TestInALevel:
  def level(self, monkeypatch, **options):
    monkeypatch.setattr(plan_lib, "MIN_ROWS_OF_PAIRS", 70)
    voxels = scenes.EVERYWHERE["random, scene 2 empty"]
    coords = scenes.pad(voxels, 80)
    build = scenes.compiled(
      functools.partial(
        plan_lib.build_plan, capacities=scenes.CAPACITIES, **options
      )
    )
    return build(coords, len(voxels)).levels

  def test_large_levels_have_pairs_on_a_cpu(self, monkeypatch):
    levels = self.level(monkeypatch)
    have = [level.pairs is not None for level in levels]
    assert have == [n >= 70 for n in scenes.CAPACITIES]
    assert all(
      level.pairs is None for level in self.level(monkeypatch, pairs=False)
    )

  def test_which_implementation_runs(self, monkeypatch):
    level = self.level(monkeypatch)[0]
    x, weight, _ = operands(80, jnp.float32)
    calls = []
    monkeypatch.setattr(
      pairs, "forward", lambda *args: calls.append(1) or jnp.zeros((80, D))
    )
    for implementation, number in ((None, 1), ("pairs", 2), ("xla", 2)):
      conv.submanifold_conv(x, weight, level, implementation=implementation)
      assert len(calls) == number
    # A table alone has no pairs.
    conv.submanifold_conv(x, weight, level.neighbors)
    assert len(calls) == 2

  def test_errors(self, monkeypatch):
    level = self.level(monkeypatch)[0]
    x, weight, _ = operands(80, jnp.float32)
    for where in (level.neighbors, level.replace(pairs=None)):
      with pytest.raises(ValueError, match="'pairs' needs a level with pairs"):
        conv.submanifold_conv(x, weight, where, implementation="pairs")
    with pytest.raises(ValueError, match="'fast' is unknown; expected None"):
      conv.submanifold_conv(x, weight, level, implementation="fast")
    with pytest.raises(ValueError, match=r"4 channels, weight \[27, 5, 7\]"):
      conv.submanifold_conv(x[:, :4], weight, level)
