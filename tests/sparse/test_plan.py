import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes
from hypothesis import strategies as st

from wsegpc_jax.sparse import conv, morton
from wsegpc_jax.sparse import plan as plan_lib

CAPACITIES = scenes.CAPACITIES
SCENE = st.integers(0, 2)
NEAR, ANY = st.integers(-3, 3), st.integers(-(2**29), 2**29 - 1)


def stem_table(plan):
  """The 5^3 table of the finest level, as the stem looks it up."""
  fine, coarse = plan.levels[:2]
  return plan_lib.neighbors_from_parent(
    fine.parent,
    fine.octant,
    coarse.neighbors,
    fine.children,
    size=5,
    capacity=fine.capacity,
  )


stem_table = scenes.compiled(stem_table)


def check_plan(plan, voxels, capacities):
  """Every field of every level, by brute force."""
  expected = {tuple(v) for v in voxels.tolist()}
  np.testing.assert_array_equal(scenes.level_voxels(plan.levels[0]), voxels)
  assert len(plan.levels) == len(capacities)
  for level, capacity in zip(plan.levels, capacities, strict=True):
    rows = scenes.level_voxels(level)
    assert level.capacity == capacity
    assert level.count == len(expected) == len(rows)
    assert {tuple(v) for v in rows.tolist()} == expected
    np.testing.assert_array_equal(level.coords[len(rows) :], -1)
    np.testing.assert_array_equal(level.valid, np.arange(capacity) < len(rows))
    np.testing.assert_array_equal(
      level.neighbors,
      scenes.none_is(scenes.neighbors(rows, 3), capacity, capacity),
    )
    expected = {(s, x // 2, y // 2, z // 2) for s, x, y, z in expected}
  for fine, coarse in itertools.pairwise(plan.levels):
    check_links(fine, coarse)
  last = plan.levels[-1]
  assert last.parent is last.octant is last.children is None


def check_links(fine, coarse):
  """parent, octant and children say fine = 2 coarse + tap."""
  rows, parents = scenes.level_voxels(fine), scenes.level_voxels(coarse)
  n = len(rows)
  parent, octant = np.asarray(fine.parent), np.asarray(fine.octant)
  tap = np.stack([octant & 1, octant >> 1 & 1, octant >> 2], 1)[:n]
  np.testing.assert_array_equal(rows[:, 0], parents[parent[:n], 0])
  np.testing.assert_array_equal(rows[:, 1:], 2 * parents[parent[:n], 1:] + tap)
  np.testing.assert_array_equal(parent[n:], coarse.capacity)
  np.testing.assert_array_equal(octant[n:], 0)
  np.testing.assert_array_equal(
    fine.children,
    scenes.none_is(
      scenes.children(rows, parents), fine.capacity, coarse.capacity
    ),
  )


@pytest.mark.parametrize("name", scenes.EVERYWHERE)
class TestEqualsBruteForce:
  def test_sorted(self, name):
    voxels = scenes.EVERYWHERE[name]
    plan = scenes.plan_of(voxels)
    check_plan(plan, voxels, CAPACITIES)
    for level in plan.levels:  # the order that `build_plan` promises to keep
      rows = scenes.level_voxels(level)
      np.testing.assert_array_equal(rows, scenes.in_order(rows))

  def test_shuffled(self, name):
    ordered = scenes.EVERYWHERE[name]
    voxels = np.random.default_rng(7).permutation(ordered)
    plan = scenes.plan_of(voxels, is_sorted=False)
    check_plan(plan, voxels, CAPACITIES)
    # From the second level on it is the plan of the ordered voxels.
    expected = scenes.plan_of(ordered).levels[1:]
    for a, b in zip(plan.levels[1:], expected, strict=True):
      jax.tree.map(np.testing.assert_array_equal, a.coords, b.coords)
      jax.tree.map(np.testing.assert_array_equal, a.neighbors, b.neighbors)

  def test_sorting_what_is_sorted_changes_nothing(self, name):
    voxels = scenes.EVERYWHERE[name]
    a = scenes.plan_of(voxels, is_sorted=True)
    b = scenes.plan_of(voxels, is_sorted=False)
    jax.tree.map(np.testing.assert_array_equal, a, b)

  def test_stem(self, name):
    voxels = scenes.EVERYWHERE[name]
    plan = scenes.plan_of(voxels)
    m = CAPACITIES[0]
    expected = scenes.none_is(scenes.neighbors(voxels, 5), m, m)
    np.testing.assert_array_equal(stem_table(plan), expected)
    searched = scenes.neighbor_table(scenes.pad(voxels, m), len(voxels), size=5)
    np.testing.assert_array_equal(searched, expected)

  @pytest.mark.parametrize("dilation", [1, 2, 3])
  def test_neighbor_table(self, name, dilation):
    voxels = scenes.EVERYWHERE[name]
    m = CAPACITIES[0]
    # Padding that looks like a voxel is padding all the same.
    coords = scenes.pad(voxels, m, fill=1)
    table = scenes.neighbor_table(coords, len(voxels), dilation=dilation)
    expected = scenes.neighbors(voxels, 3, dilation)
    np.testing.assert_array_equal(table, scenes.none_is(expected, m, m))


@hypothesis.settings(max_examples=25, deadline=None, database=None)
@hypothesis.given(
  st.lists(st.tuples(SCENE, *[NEAR | ANY] * 3), max_size=64, unique=True),
  st.booleans(),
)
def test_any_voxels(voxels, is_sorted):
  voxels = scenes.in_order(voxels) if is_sorted else scenes.voxels_of(voxels)
  check_plan(scenes.plan_of(voxels, is_sorted=is_sorted), voxels, CAPACITIES)


@pytest.mark.parametrize("name", scenes.GALLERY)
@pytest.mark.parametrize("size", [3, 5])
def test_tables_are_symmetric(name, size):
  # The backward pass of a submanifold convolution relies on this.
  plan = scenes.gallery_plan(name)
  table = plan.levels[0].neighbors if size == 3 else stem_table(plan)
  pairs = {(i, k, j) for (i, k), j in np.ndenumerate(table) if j < len(table)}
  assert pairs == {(j, size**3 - 1 - k, i) for i, k, j in pairs}
  centre = np.asarray(table)[: len(scenes.GALLERY[name]), size**3 // 2]
  np.testing.assert_array_equal(centre, np.arange(len(centre)))


def test_padding_rows_of_the_input_may_hold_anything():
  voxels = scenes.GALLERY["random, scene 2 empty"]
  for is_sorted in (True, False):
    plans = [
      scenes.build_plan(
        scenes.pad(voxels, CAPACITIES[0], fill=fill),
        len(voxels),
        CAPACITIES,
        is_sorted=is_sorted,
      )
      for fill in (-1, 0, 2**31 - 1, -(2**31))
    ]
    for other in plans[1:]:
      jax.tree.map(np.testing.assert_array_equal, plans[0], other)


def test_kernel_offsets():
  assert plan_lib.kernel_offsets(2).tolist() == [
    [0, 0, 0],
    [1, 0, 0],
    [0, 1, 0],
    [1, 1, 0],
    [0, 0, 1],
    [1, 0, 1],
    [0, 1, 1],
    [1, 1, 1],
  ]
  three, five = plan_lib.kernel_offsets(3), plan_lib.kernel_offsets(5)
  assert three.shape == (27, 3) and five.shape == (125, 3)
  for k, offset in {
    0: (-1, -1, -1),
    13: (0, 0, 0),
    14: (1, 0, 0),
    16: (0, 1, 0),
    22: (0, 0, 1),
    26: (1, 1, 1),
  }.items():
    assert tuple(three[k]) == offset
  assert tuple(five[62 + 1 - 5 + 2 * 25]) == (1, -1, 2)
  assert tuple(plan_lib.kernel_offsets(1)[0]) == (0, 0, 0)


def test_strided_coordinates_are_floored():
  voxels = [(0, v, v, v) for v in range(-3, 4)]
  plan = scenes.plan_of(scenes.in_order(voxels))
  coarse = 2 * scenes.level_voxels(plan.levels[1])[:, 1:]
  assert sorted(coarse.tolist()) == [[v] * 3 for v in (-4, -2, 0, 2)]


def test_figure_of_sixteen_pairs():
  # X
  # XXX
  # XXXXX    under a 3 x 3 kernel of stride 2
  voxels = [(0, i, j, 0) for i in range(3) for j in range(2 * i + 1)]
  plan = scenes.plan_of(scenes.in_order(voxels))
  centres = scenes.level_voxels(plan.levels[1]) * (1, 2, 2, 2)
  offsets = np.pad(plan_lib.kernel_offsets(3), ((0, 0), (1, 0)))
  queries = (centres[:, None] + offsets).reshape(-1, 4)
  rows = scenes.find_rows(plan.levels[0].coords, len(voxels), queries)
  assert (rows < plan.levels[0].capacity).sum() == 16


@scenes.compiled
def down_and_up(x, weight, fine):
  down = conv.strided_conv(x, weight, fine)
  return down, conv.transposed_conv(down, weight, fine)


@pytest.mark.parametrize("small", [(80, 30, 64), (80, 76, 9)])
def test_a_level_that_overflows(small):
  """Voxels beyond a capacity are lost; the others keep one another."""
  for name in ("random, scene 2 empty", "full to capacity"):
    voxels = scenes.GALLERY[name]
    plan = scenes.build_plan(scenes.pad(voxels, small[0]), len(voxels), small)
    for level, capacity in zip(plan.levels, small, strict=True):
      assert 0 < level.count <= capacity
      assert_within(level.neighbors, capacity)
    for fine, coarse in itertools.pairwise(plan.levels):
      assert_within(fine.parent, coarse.capacity)
      assert_within(fine.octant, 7)
      assert_within(fine.children, fine.capacity)
    assert_within(stem_table(plan), small[0])

    # A voxel lives if it has an ancestor at every level.
    alive = np.ones(int(plan.levels[-1].count), bool)
    for fine, coarse in reversed(list(itertools.pairwise(plan.levels))):
      rows = scenes.level_voxels(fine)
      parent = np.asarray(fine.parent)[: len(rows)]
      alive = np.pad(alive, (0, coarse.capacity + 1 - len(alive)))[parent]
      check_survivors(fine.neighbors, rows, alive, size=3)
    check_survivors(stem_table(plan), rows, alive, size=5)
    assert 0 < alive.sum() < len(voxels)

    # A voxel without a parent has no part in a strided convolution.
    x, one = np.ones((small[0], 1), np.float32), np.ones((8, 1, 1), np.float32)
    down, up = down_and_up(x, one, plan.levels[0])
    parent = np.asarray(plan.levels[0].parent)
    number = np.bincount(parent, minlength=small[1] + 1)[: small[1]]
    np.testing.assert_array_equal(down[:, 0], number)
    np.testing.assert_array_equal(up[:, 0], np.append(number, 0)[parent])


def assert_within(array, last):
  assert 0 <= np.min(array) and np.max(array) <= last


def check_survivors(table, rows, alive, *, size):
  """Those alive have their living neighbours; the others have none."""
  expected = scenes.neighbors(rows, size)
  kept = alive[expected] & (expected >= 0) & alive[:, None]
  expected = np.where(kept, expected, len(table))
  np.testing.assert_array_equal(table[: len(rows)], expected)


TRACES = []


@scenes.compiled
def two_levels(coords, count):
  TRACES.append(coords.shape)
  return plan_lib.build_plan(coords, count, (80, 76))


def test_one_trace_for_all_scenes():
  TRACES.clear()
  plans = [
    two_levels(scenes.pad(voxels, 80), len(voxels))
    for voxels in scenes.EVERYWHERE.values()
  ]
  assert len(TRACES) <= 1  # 0 if another test was first
  assert len({str(jax.tree.map(jnp.shape, plan)) for plan in plans}) == 1
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(plans)}
  assert dtypes == {"int32"}  # nothing depends on 64-bit integers


def test_vmap_equals_a_plan_at_a_time():
  gallery = list(scenes.GALLERY.values())
  coords = np.stack([scenes.pad(voxels, 80) for voxels in gallery])
  count = np.array([len(voxels) for voxels in gallery])
  together = scenes.compiled(jax.vmap(two_levels.__wrapped__))(coords, count)
  for i in range(len(gallery)):
    alone = two_levels(coords[i], int(count[i]))
    picked = jax.tree.map(lambda a, i=i: a[i], together)
    jax.tree.map(np.testing.assert_array_equal, picked, alone)


def test_capacities_of_zero_rows():
  plan = scenes.build_plan(np.zeros((0, 4), np.int32), 0, (0, 0, 0))
  for level in plan.levels:
    assert level.count == 0 and level.neighbors.shape == (0, 27)


def test_errors():
  coords = np.zeros((5, 4), np.int32)
  with pytest.raises(ValueError, match=r"\[M, 4\].*\[5, 3\]"):
    plan_lib.build_plan(coords[:, :3], 5, (5, 5))
  with pytest.raises(ValueError, match=r"capacities\[0\] = 6.*5 rows"):
    plan_lib.build_plan(coords, 5, (6, 5))


def test_morton_on_the_host():
  rng = np.random.default_rng(0)
  coords = rng.integers(0, 2**21, (200, 3))
  coords[:4] = [(0, 0, 0), (2**21 - 1,) * 3, (1, 0, 0), (0, 0, 1)]
  keys = morton.morton_key(coords)
  spread = [int(f"{int(v):b}", 8) for v in coords.reshape(-1)]  # bits 3 apart
  spread = np.array(spread).reshape(-1, 3)
  np.testing.assert_array_equal(keys, spread @ [4, 2, 1])
  assert keys[2] == 4 and keys[3] == 1  # x is the highest
  assert keys.dtype == np.int64 and keys[1] == 2**63 - 1
  for outside in ([[-1, 0, 0]], [[0, 2**21, 0]]):
    with pytest.raises(ValueError, match=r"0\.\.2097151"):
      morton.morton_key(np.array(outside))


def test_morton_lanes_order_as_the_key():
  rng = np.random.default_rng(1)
  ends = np.array([-(2**29), -1, 0, 2**29 - 1])
  scales = (
    rng.integers(-(2**29), 2**29, (300, 3)) >> rng.integers(0, 30, 300)[:, None]
  )
  coords = np.concatenate(
    [scales, np.stack(np.meshgrid(ends, ends, ends), -1).reshape(-1, 3)]
  )
  lanes = scenes.compiled(morton.morton_lanes)(jnp.asarray(coords, jnp.int32))
  assert all(lane.dtype == jnp.uint32 for lane in lanes)
  keys = [
    (int(a) << 60) | (int(b) << 30) | int(c)
    for a, b, c in zip(*lanes, strict=True)
  ]
  assert keys == [scenes.morton((0, *v))[1] for v in coords]
