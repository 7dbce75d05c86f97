"""The plan in numpy equals the one under jit, and bad voxels are refused."""

import jax
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import host_plan


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
  np.testing.assert_array_equal(
    shuffled[host_plan.morton_order(shuffled)], voxels
  )


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


GOOD = np.array([(0, 3, -4, 5), (0, 3, -4, 6), (1, 3, -4, 5)])


@pytest.mark.parametrize(
  ("row", "value", "message"),
  [
    (1, (0, 2**29, 0, 0), r"\[536870912, 0, 0\] of scene 0 \(row 1\).*outside"),
    (2, (0, 0, -(2**29) - 1, 0), r"row 2\) lies outside the range"),
    (0, (-1, 0, 0, 0), r"row 0\) has a negative scene"),
    (2, (0, 3, -4, 6), r"\[3, -4, 6\] of scene 0 \(row \d\) occurs twice"),
  ],
)
def test_bad_coordinates(row, value, message):
  coords = GOOD.copy()
  host_plan.check_voxels(coords, np.zeros((3, 2)))
  coords[row] = value
  for check in (host_plan.check_voxels, host_plan.build_plan):
    with pytest.raises(ValueError, match=message):
      check(coords)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_features(value):
  features = np.zeros((3, 2), np.float32)
  features[1, 1] = value
  with pytest.raises(ValueError, match=r"row 1\) has features that are NaN"):
    host_plan.check_voxels(GOOD, features)
  with pytest.raises(ValueError, match="2 rows, coords 3"):
    host_plan.check_voxels(GOOD, features[:2])


def test_bad_shapes():
  with pytest.raises(ValueError, match=r"\[N, 4\], got \[3, 3\]"):
    host_plan.check_voxels(GOOD[:, 1:])
  with pytest.raises(ValueError, match="integers, got float64"):
    host_plan.check_voxels(GOOD.astype(float))
  with pytest.raises(ValueError, match="level 0 has 3 voxels.*capacity 2"):
    host_plan.build_plan(GOOD, (2, 2))
