"""Golden arrays of an octree library: neighbours, interpolation, search.

Their layout: nodes of two octrees, depth after depth, in Morton order with x
the highest bit; taps of a neighbour table x slowest; a node is not empty when
its `child` is not negative, which then counts the nodes that are not empty.
"""

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import hashing, interpolate, morton
from wsegpc_jax.sparse import plan as plan_lib

FOLDER = os.environ.get("WSEGPC_SHARED_DATA")
pytestmark = pytest.mark.skipif(
  FOLDER is None, reason="WSEGPC_SHARED_DATA names no folder of sample data"
)
DEPTHS = range(1, 7)
CAPACITY = 11_600  # room for every depth
# Our tap k, x fastest, is the golden tap with x slowest.
TAPS = np.arange(27).reshape(3, 3, 3).T.reshape(-1)


morton_lanes = scenes.compiled(morton.morton_lanes)


@functools.cache
def load(name):
  with np.load(Path(FOLDER) / "sparseconv" / f"{name}.npz") as file:
    return dict(file)


def rows_of_depth(depth, *, roots=True):
  """Where the nodes of a depth lie in the stacked arrays."""
  counts = load("batch_45")["nnum"][0 if roots else 1 :]
  ends = np.cumsum(counts)
  i = depth if roots else depth - 1
  return slice(ends[i] - counts[i], ends[i])


@functools.cache
def nodes(depth):
  """(voxels [n, 4], keys [n], child [n]) of a depth."""
  rows = rows_of_depth(depth)
  data = load("batch_45")
  key = data["key"][rows]
  octal = [f"{int(k) & (1 << 48) - 1:07o}" for k in key]
  bits = np.array([[int(digit) for digit in o] for o in octal])
  xyz = [
    ((bits >> axis & 1) << np.arange(7)[::-1]).sum(1) for axis in (2, 1, 0)
  ]
  voxels = scenes.voxels_of(np.stack([key >> 48, *xyz], 1))
  return voxels, key & (1 << 48) - 1, data["child"][rows]


def golden_table(depth):
  """The golden neighbour table with our taps; rows without one are -1."""
  table = load("batch_45")["neigh"][rows_of_depth(depth, roots=False)]
  return table[:, TAPS]


@pytest.mark.parametrize("depth", DEPTHS)
class TestNeighbors:
  def expected(self, depth):
    table = golden_table(depth)
    assert table.shape == (len(nodes(depth)[0]), 27)
    return scenes.none_is(table, CAPACITY, CAPACITY)

  def test_by_search(self, depth):
    voxels, _, _ = nodes(depth)
    coords = scenes.pad(voxels, CAPACITY)
    table = scenes.neighbor_table(coords, len(voxels))
    np.testing.assert_array_equal(table, self.expected(depth))

  def test_through_the_parents(self, depth):
    voxels, _, _ = nodes(depth)
    coords = scenes.pad(voxels, CAPACITY)
    plan = scenes.build_plan(coords, len(voxels), (CAPACITY, CAPACITY // 8))
    np.testing.assert_array_equal(
      plan.levels[0].neighbors, self.expected(depth)
    )

  def test_children(self, depth):
    # The parents that exist are the nodes one depth up that are not empty.
    voxels, _, _ = nodes(depth)
    parents, _, child = nodes(depth - 1)
    coords = scenes.pad(voxels, CAPACITY)
    plan = scenes.build_plan(coords, len(voxels), (CAPACITY, CAPACITY // 8))
    fine, coarse = plan.levels
    np.testing.assert_array_equal(
      scenes.level_voxels(coarse), parents[child >= 0]
    )
    # The children of one follow upon one another, x the highest bit.
    x_last = [4 * (k & 1) + (k & 2) + (k >> 2) for k in range(8)]
    expected = 8 * child[child >= 0][:, None] + x_last
    np.testing.assert_array_equal(fine.children[: len(expected)], expected)

  def test_keys(self, depth):
    voxels, keys, _ = nodes(depth)
    np.testing.assert_array_equal(morton.morton_key(voxels[:, 1:]), keys)
    lanes = morton_lanes(scenes.pad(voxels, CAPACITY)[:, 1:])
    high, low = (np.asarray(lanes[i])[: len(keys)] for i in (0, 2))
    assert (high == high[0]).all()  # all bits of these are in the lowest lane
    np.testing.assert_array_equal(low, keys)


def test_a_pyramid_over_the_deepest_nodes():
  voxels, _, _ = nodes(6)
  plan = scenes.plan_of(voxels, (CAPACITY, 1500, 400, 128, 128))
  sizes = [int(level.count) for level in plan.levels]
  assert sizes == [11560, 1445, *sizes[2:]]
  for level in plan.levels:
    rows = scenes.level_voxels(level)
    # Every golden neighbour that is in this level, and no other.
    table = scenes.neighbors(rows, 3) if level.count < 2000 else golden_table(6)
    expected = scenes.none_is(table, level.capacity, level.capacity)
    np.testing.assert_array_equal(level.neighbors, expected)


def test_key_search():
  data = load("search_key")
  x, y, z, scene = data["xyzb"].T
  voxels, _, child = nodes(5)
  queries = scenes.voxels_of(np.stack([scene, x, y, z], 1))
  for expected, kept in (
    (data["idx"], slice(None)),
    (data["idx_ne"], child >= 0),
  ):
    rows = scenes.find_rows(
      scenes.pad(voxels[kept], len(voxels)), len(voxels[kept]), queries
    )
    np.testing.assert_array_equal(
      np.where(rows < len(voxels), rows, -1), expected
    )
    assert (expected >= 0).sum() > 1000 and (expected < 0).sum() > 1000


@functools.cache
def read(kind):
  make = {
    "near": interpolate.nearest_map,
    "linear": interpolate.trilinear_map,
  }[kind]

  def apply(x, coords, count, points, scene):
    table = hashing.build_table(coords, count)
    return interpolate.interpolate(x, make(points, scene, table))

  return scenes.compiled(apply)


@pytest.mark.parametrize("kind", ["near", "linear"])
@pytest.mark.parametrize("only_filled", [False, True])
def test_interpolation(kind, only_filled):
  # Features of the nodes of depth 5; with `_ne` only those with children are.
  data = load("interp")
  voxels, _, child = nodes(5)
  x = data["data"]
  assert len(x) == len(voxels)
  expected = data[kind + ("_ne" if only_filled else "")]
  count = len(voxels)
  if only_filled:
    kept = np.flatnonzero(child >= 0)
    count = len(kept)
    # The rest is padding: it must not be read.
    x = np.concatenate([x[kept], np.full_like(x[count:], np.nan)])
    voxels = scenes.pad(voxels[kept], len(voxels))
  points, scene = data["pts"][:, :3], data["pts"][:, 3].astype(np.int32)
  out = read(kind)(x, voxels, count, points, scene)
  np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
  assert np.count_nonzero(expected) > 1000


def test_the_first_axis_is_the_fastest_tap():
  # Golden tap 14 is one step along z, ours one along x.
  assert TAPS[14] == 22 and TAPS[22] == 14 and TAPS[13] == 13
  offsets = plan_lib.kernel_offsets(3)
  np.testing.assert_array_equal(offsets[TAPS], offsets[:, ::-1])
