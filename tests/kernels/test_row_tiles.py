"""Row tiles visit every pair of a table once, and few that do not exist."""

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
  tiles = row_tiles.row_tiles(jnp.asarray(table), n, rows=16, by_mask=by_mask)
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
  mask = exists @ (1 << np.arange(5))
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
    tiles = row_tiles.row_tiles(table, 6000, rows=64, by_mask=by_mask)
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


VARIANTS = (
  Tile(rows=16, ahead=False, by_mask=False),
  Tile(rows=32, block_c=16, block_d=16, transposed=True),
  Tile(rows=64, block_c=32, block_d=64, ahead=False, transposed=True),
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
