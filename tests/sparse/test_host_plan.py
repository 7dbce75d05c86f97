"""The plan in numpy equals the one under jit."""

import jax
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import host_plan, morton


def assert_equal(host, device):
  assert jax.tree.structure(host) == jax.tree.structure(device)
  jax.tree.map(np.testing.assert_array_equal, host, device)


@pytest.mark.parametrize("name", scenes.EVERYWHERE)
def test_equals_the_plan_under_jit(name):
  voxels = scenes.EVERYWHERE[name]
  found = host_plan.build_plan(voxels, scenes.CAPACITIES)
  assert_equal(found, scenes.plan_of(voxels))
  shuffled = np.random.default_rng(7).permutation(voxels)
  found = host_plan.build_plan(shuffled, scenes.CAPACITIES, is_sorted=False)
  assert_equal(found, scenes.plan_of(shuffled, is_sorted=False))
  np.testing.assert_array_equal(shuffled[morton.morton_order(shuffled)], voxels)


def test_without_capacities_every_level_is_full():
  voxels = scenes.EVERYWHERE["far apart"]
  plan = host_plan.build_plan(voxels, levels=3)
  assert [level.capacity for level in plan.levels] == [
    len({(s, *(v >> i for v in p)) for s, *p in voxels.tolist()})
    for i in range(3)
  ]
  for level in plan.levels:
    rows = scenes.level_voxels(level)
    expected = scenes.neighbors(rows, 3)
    table = scenes.none_is(expected, len(rows), len(rows))
    np.testing.assert_array_equal(level.neighbors, table)


def test_more_voxels_than_room():
  voxels = np.array([(0, 3, 4, 5), (0, 3, 4, 6), (1, 3, 4, 5)])
  with pytest.raises(ValueError, match="level 0 has 3 voxels.*capacity 2"):
    host_plan.build_plan(voxels, (2, 2))
