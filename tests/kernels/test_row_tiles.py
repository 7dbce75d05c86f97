"""Row tiles visit every pair of a table once, and few that do not exist."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_problems import assert_close, compiled, oracle, random_problem

from wsegpc_jax.kernels.gather_conv import (
  bench,
  pallas_triton,
  row_tiles,
  specs,
)
from wsegpc_jax.kernels.gather_conv.tile_table import Tile
from wsegpc_jax.sparse.plan import neighbor_table


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision("highest"):
    yield


def tiles_of(table, n, **options):
  """`row_tiles` under jit: operation by operation, it takes seconds."""
  make = functools.partial(row_tiles.row_tiles, n=n, **options)
  return compiled(make)(jnp.asarray(table))


def pairs_of(tiles, m):
  """(output row, tap, input row) of all that the tiles visit, with repeats."""
  found = []
  for t in range(len(tiles.rows)):
    for k in np.asarray(tiles.taps[t, : tiles.number[t]]):
      source = np.asarray(tiles.index[t, k])
      rows = np.asarray(tiles.rows[t])[source >= 0]
      found += [
        (i, k, j) for i, j in zip(rows, source[source >= 0], strict=True)
      ]
  assert all(i < m for i, _, _ in found)
  return sorted(found)


@pytest.mark.parametrize("by_mask", [False, True])
@pytest.mark.parametrize(
  ("n", "m", "taps"), [(9, 50, 27), (30, 16, 8), (1, 1, 3)]
)
def test_every_pair_is_visited_once(n, m, taps, by_mask):
  rng = np.random.default_rng(m)
  # Values of no row, before and behind the rows.
  table = rng.integers(-n, 2 * n, (m, taps)).astype(np.int32)
  tiles = tiles_of(table, n, rows=16, by_mask=by_mask)
  i, k = np.nonzero((table >= 0) & (table < n))
  expected = sorted(zip(i, k, table[i, k], strict=True))
  assert pairs_of(tiles, m) == expected
  order = np.asarray(tiles.rows).ravel()
  np.testing.assert_array_equal(np.sort(order)[:m], np.arange(m))
  assert (order[m:] == m).all()


def test_rows_stay_in_their_block():
  exists = np.random.default_rng(0).random((1000, 5)) < 0.5
  order = np.asarray(row_tiles.mask_order(jnp.asarray(exists), block=300))
  np.testing.assert_array_equal(np.sort(order), np.arange(1000))
  # In the order of a Gray code, whose neighbours differ in one bit.
  place = {i ^ (i >> 1): i for i in range(32)}
  mask = np.array([place[m] for m in exists @ (1 << np.arange(5))])
  for start in range(0, 1000, 300):
    rows = order[start : start + 300]
    assert (rows // 300 == start // 300).all()
    assert (np.diff(mask[rows]) >= 0).all()
    same = np.diff(mask[rows]) == 0
    assert (np.diff(rows)[same] > 0).all()  # neighbours stay neighbours


def test_blocks_grow_until_the_key_can_number_them():
  # 27 taps leave five bits: a block of a row would need more than 32 numbers.
  exists = jnp.asarray(np.random.default_rng(0).random((100, 27)) < 0.5)
  order = np.asarray(row_tiles.mask_order(exists, block=1))
  blocks = order // 4  # 100 rows in at most 32 blocks: four rows each
  np.testing.assert_array_equal(blocks, np.arange(100) // 4)


def test_sorting_skips_the_taps_that_a_surface_lacks():
  voxels = bench.surface(6000, np.random.default_rng(0))
  coords = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
  table = jax.jit(neighbor_table)(coords, jnp.int32(len(voxels)))
  pairs = int((table < 6000).sum())

  def work(by_mask):
    tiles = tiles_of(table, 6000, rows=64, by_mask=by_mask)
    return int(tiles.number.sum()) * 64 / pairs

  assert work(False) > 1.7  # nearly all tiles have nearly all taps
  assert work(True) < 1.5


def test_layers_of_one_table_share_its_tiles():
  table = jnp.zeros((70, 8), jnp.int32)
  x = jnp.ones((70, 4))
  tile = Tile(rows=16)

  def layers(x, table):
    weight = jnp.ones((8, 4, 4))
    for _ in range(3):
      x = pallas_triton.gather_conv(x, table, weight, tile=tile)
    return pallas_triton.weight_gradient(x, table, x, tile=tile)

  text = jax.jit(layers).lower(x, table).compile().as_text()
  # One sorts the rows, one the taps of each tile, one the tiles of each tap.
  assert 1 <= text.count(" sort(") <= 3


def test_the_centre_decides_last():
  digits = row_tiles._digits(27)
  np.testing.assert_array_equal(np.sort(digits), np.arange(27))
  assert digits[13] == 0
  assert set(digits[[0, 2, 6, 8, 18, 20, 24, 26]]) == set(range(19, 27))


@pytest.mark.parametrize(("taps", "groups"), [(27, {1, 3}), (8, {1})])
def test_visits_are_the_tiles_that_have_a_tap_of_the_group(taps, groups):
  rng = np.random.default_rng(0)
  table = rng.integers(0, 400, (90, taps)).astype(np.int32)
  tiles = tiles_of(table, 30, rows=16)
  assert set(tiles.visits) == groups
  has = (np.asarray(tiles.index) >= 0).any(2)
  assert 0.2 < has.mean() < 0.9
  for group, (visited, number) in tiles.visits.items():
    for i in range(taps // group):
      expected = np.flatnonzero(has[:, i * group : (i + 1) * group].any(1))
      assert number[i] == len(expected)
      np.testing.assert_array_equal(visited[i, : number[i]], expected)


def test_tiles_are_cut_into_smaller_ones():
  table = np.random.default_rng(0).integers(0, 60, (75, 27)).astype(np.int32)
  whole = tiles_of(table, 30, rows=32)
  parts = compiled(functools.partial(row_tiles.cut, rows=16))(whole)
  assert parts.size == 16 and row_tiles.cut(whole, 32) is whole
  assert pairs_of(parts, 75) == pairs_of(whole, 75)
  assert int(parts.number.sum()) * 16 <= int(whole.number.sum()) * 32


def test_given_tiles_are_used():
  x, table, weight, cotangent = random_problem(specs.Spec(20, 40, 8, 3, 4))
  other = tiles_of(table[::-1], 20)  # shows whose tiles are used
  tile = Tile(rows=32)

  def run(table, tiles):
    return compiled(functools.partial(pallas_triton.gather_conv, tile=tile))(
      x, table, weight, tiles=tiles
    )

  expected = run(table[::-1], None)
  np.testing.assert_array_equal(run(table, other), expected)
  assert (np.asarray(run(table, None)) != np.asarray(expected)).any()


VARIANTS = (
  Tile(rows=16, block_c=16, ahead=False, by_mask=False, group=3),
  Tile(rows=32, block_c=16, block_d=16, transposed=True),
  Tile(rows=64, block_d=64, ahead=False, transposed=True, unpadded=True),
)
SPECS = (
  specs.Spec(40, 130, 27, 48, 20),
  specs.Spec(90, 25, 8, 96, 3, "bfloat16"),
)


@pytest.mark.parametrize("tile", VARIANTS, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_tile_gives_the_same(spec, tile):
  x, table, weight, cotangent = random_problem(spec)
  out, _, dw = oracle(x, table, weight, cotangent)

  @compiled
  def run(x, table, weight, cotangent):
    return (
      pallas_triton.gather_conv(x, table, weight, tile=tile),
      pallas_triton.weight_gradient(x, table, cotangent, tile=tile),
    )

  got = run(x, table, weight, cotangent)
  assert_close(got[0], out, spec.dtype)
  assert_close(got[1], dw)
  again = run(x, table, weight, cotangent)
  for a, b in zip(got, again, strict=True):
    np.testing.assert_array_equal(a, b)


def test_sums_of_two_bfloat16_are_closer_than_tf32():
  tile = Tile(rows=32, block_c=16, split=True, unpadded=True, group=3)
  x, table, weight, cotangent = random_problem(specs.Spec(40, 70, 27, 20, 48))
  out, _, dw = oracle(x, table, weight, cotangent)

  @compiled
  def run(x, table, weight, cotangent):
    return (
      pallas_triton.gather_conv(x, table, weight, tile=tile),
      pallas_triton.weight_gradient(x, table, cotangent, tile=tile),
    )

  for got, right in zip(
    run(x, table, weight, cotangent), (out, dw), strict=True
  ):
    error = np.abs(np.asarray(got, np.float64) - right).max()
    assert 0 < error / np.abs(right).max() < 2**-14  # TF32 rounds to 2^-11


def test_the_parts_of_a_float32():
  values = [1.0, 1 / 3, -1e30, 1e-30, np.inf, -np.inf]
  x = jnp.asarray(values, jnp.float32)[:, None]
  high, low = jnp.moveaxis(jax.jit(pallas_triton.split_in_two)(x), 1, 0)
  total = np.float64(high) + np.float64(low)
  np.testing.assert_allclose(total[:4], x[:4], rtol=2**-16)
  np.testing.assert_array_equal(total[4:], x[4:])
