import functools

import hypothesis
import jax
import numpy as np
import pytest
import sparse_scenes as scenes
from hypothesis import strategies as st

from wsegpc_jax.sparse import hashing

ROWS, QUERIES = 64, 256
LIMITS = np.iinfo(np.int32)


def check(coords, count, queries):
  """find_rows equals a dictionary in which the first of equal rows stays."""
  coords, queries = (np.asarray(a).reshape(-1, 4) for a in (coords, queries))
  expected = {}
  for row, voxel in enumerate(coords[:count].tolist()):
    expected.setdefault(tuple(voxel), row)
  expected = [expected.get(tuple(q), len(coords)) for q in queries.tolist()]
  got = scenes.find_rows(coords, count, queries)
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, expected)


@functools.cache
def hashes():
  """Random voxels and their 32-bit hashes."""
  voxels = np.random.default_rng(0).integers(-500, 500, (300_000, 4))
  voxels = np.unique(voxels, axis=0).astype(np.int32)
  return voxels, np.asarray(scenes.compiled(hashing._hash)(voxels))


# About one example in two has equal rows, and queries hit and miss.
VOXEL = st.tuples(*[st.integers(-2, 1)] * 4)
ANY_VOXEL = st.tuples(*[st.integers(LIMITS.min, LIMITS.max)] * 4)


@hypothesis.settings(max_examples=60, deadline=None, database=None)
@hypothesis.given(
  coords=st.lists(VOXEL | ANY_VOXEL, max_size=ROWS),
  beyond=st.lists(VOXEL, max_size=5),
  queries=st.lists(VOXEL | ANY_VOXEL, max_size=50),
)
def test_equals_a_dictionary(coords, beyond, queries):
  count = len(coords)
  queries = scenes.voxels_of([*coords, *beyond, *queries])
  # Rows beyond `count` are not in the table, whatever they hold.
  coords = scenes.pad(scenes.voxels_of([*coords, *beyond])[:ROWS], ROWS)
  check(coords, count, queries)


@pytest.mark.parametrize("slot", [0, 2 * ROWS - 1], ids=["first", "last"])
def test_all_voxels_in_one_slot(slot):
  voxels, hashed = hashes()
  same = voxels[hashed % (2 * ROWS) == slot]
  assert len(same) > ROWS + 100  # the others are asked for, and absent
  for count in (0, 1, ROWS - 1, ROWS):
    check(same[:ROWS], count, same[: ROWS + 100])


def test_equal_32_bit_hashes_are_told_apart():
  voxels, hashed = hashes()
  order = np.argsort(hashed, kind="stable")
  equal = np.flatnonzero(np.diff(hashed[order].astype(np.int64)) == 0)
  pairs = voxels[order[np.stack([equal, equal + 1], 1)]]
  assert len(pairs) >= 3 and (pairs[:, 0] != pairs[:, 1]).any(1).all()
  pairs = pairs[: ROWS // 2]
  one_of_each = scenes.pad(pairs[:, 0], ROWS)
  check(one_of_each, len(pairs), pairs)
  both = scenes.pad(pairs.reshape(-1, 4), ROWS)
  check(both, 2 * len(pairs), pairs)


def test_of_equal_rows_the_first_stays():
  voxels = scenes.random_voxels(0, 8)
  rows = np.random.default_rng(1).integers(0, 8, ROWS)
  check(voxels[rows], ROWS, voxels)
  check(np.zeros((ROWS, 4)), ROWS, np.zeros((3, 4)))
  # Among rows that collide, too.
  voxels, hashed = hashes()
  same = voxels[hashed % (2 * ROWS) == 5][:20]
  check(same[rows % 20], ROWS, same)


def test_extreme_coordinates():
  ends = (LIMITS.min, LIMITS.min + 1, -1, 0, 1, LIMITS.max)
  voxels = np.stack(np.meshgrid(*[ends] * 4), -1).reshape(-1, 4)
  voxels = np.random.default_rng(0).permutation(voxels)
  check(voxels[:ROWS], ROWS, voxels)


def test_the_padding_coordinate_is_a_voxel_like_others():
  minus = np.full((1, 4), -1)
  zeros = np.zeros((ROWS - 1, 4))
  check(np.concatenate([zeros, minus]), ROWS, minus)  # there
  check(np.concatenate([zeros, minus]), ROWS - 1, minus)  # padding: not there
  check(np.full((ROWS, 4), -1), 0, minus)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_the_smallest_tables(rows):
  voxels = scenes.random_voxels(0, 40)
  for count in {0, rows}:
    check(voxels[:rows], count, voxels)


def test_no_queries():
  check(np.zeros((ROWS, 4)), ROWS, np.zeros((0, 4)))


@pytest.mark.parametrize("rows", [1, 2, 3, 63, 64, 65])
def test_at_least_half_of_the_slots_stay_free(rows):
  # A search ends at a free slot, so there must always be one.
  table = jax.eval_shape(hashing.build_table, np.zeros((rows, 4), np.int32), 0)
  (slots,) = table.slots.shape
  assert slots >= 2 * rows and slots & (slots - 1) == 0
