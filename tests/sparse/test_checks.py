"""Bad voxels and features are refused, with the row that is bad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sparse_scenes as scenes

from wsegpc_jax.sparse import checks, conv, host_plan, plan, pool

GOOD = np.array([(0, 3, -4, 5), (0, 3, -4, 6), (1, 3, -4, 5)])


def build_plan(coords, *, count=None, **options):
  """`plan.build_plan` outside jit, of padded voxels."""
  count = len(coords) if count is None else count
  padded = np.pad(coords, ((0, 2), (0, 0)), constant_values=-1)
  return plan.build_plan(padded, count, (len(padded),) * 2, **options)


@pytest.mark.parametrize(
  ("row", "value", "message"),
  [
    (1, (0, 2**29, 0, 0), r"\[536870912, 0, 0\] of scene 0 \(row 1\).*outside"),
    (2, (0, 2**31 + 7, 0, 0), r"\[2147483655, 0, 0\].*row 2\) lies outside"),
    (2, (0, 0, -(2**29) - 1, 0), r"row 2\) lies outside the range"),
    (0, (-1, 0, 0, 0), r"row 0\) has a negative scene"),
    (2, (0, 3, -4, 6), r"\[3, -4, 6\] of scene 0 \(row \d\) occurs twice"),
    (0, (2, 0, 0, 0), r"row 0\) is out of order.*Morton order"),
    (0, (0, 3, -4, 7), r"row 0\) is out of order.*Morton order"),
  ],
)
def test_bad_coordinates(row, value, message):
  coords = GOOD.copy()
  check = functools.partial(checks.check_voxels, is_sorted=True)
  for refuse in (check, host_plan.build_plan, build_plan):
    refuse(coords)
  coords[row] = value
  for refuse in (check, host_plan.build_plan, build_plan):
    with pytest.raises(ValueError, match=message):
      refuse(coords)


def test_only_sorted_voxels_need_an_order():
  coords = GOOD[::-1]
  checks.check_voxels(coords)
  for build in (host_plan.build_plan, build_plan):
    build(coords, is_sorted=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_features(value):
  features = np.zeros((3, 2), np.float32)
  checks.check_voxels(GOOD, features)
  features[1, 1] = value
  with pytest.raises(ValueError, match=r"row 1\) has features that are NaN"):
    checks.check_voxels(GOOD, features)
  with pytest.raises(ValueError, match="2 rows, coords 3"):
    checks.check_voxels(GOOD, features[:2])


def test_bad_shapes_and_types():
  with pytest.raises(ValueError, match=r"\[N, 4\], got \[3, 3\]"):
    checks.check_voxels(GOOD[:, 1:])
  with pytest.raises(ValueError, match="integers, got float64"):
    checks.check_voxels(GOOD.astype(float))
  with pytest.raises(ValueError, match=r"in 0..5, the rows of coords, got 6"):
    build_plan(GOOD, count=6)
  with pytest.raises(ValueError, match="'cuda' is unknown"):
    build_plan(GOOD, implementation="cuda")
  build_plan(GOOD, implementation="pairs")  # a name of `submanifold_conv`


def test_under_jit_types_are_known():
  build = jax.jit(plan.build_plan, static_argnums=2)
  with pytest.raises(ValueError, match="integers, got float32"):
    build(jnp.zeros((8, 4)), 8, (8, 8))


LEVELS = scenes.plan_of(GOOD.astype(np.int32)).levels


@pytest.mark.parametrize(
  "apply",
  [
    pool.sum_pool,
    pool.mean_pool,
    pool.max_pool,
    lambda x, fine: conv.strided_conv(x, jnp.ones((8, 2, 3)), fine),
  ],
)
def test_features_of_another_level(apply):
  with pytest.raises(ValueError, match="3 rows, the plan's fine level 80"):
    apply(jnp.ones((3, 2)), LEVELS[0])
  with pytest.raises(ValueError, match=r"must be \[M, C\], got \[80\]"):
    apply(jnp.ones(80), LEVELS[0])
  last = LEVELS[-1]
  with pytest.raises(ValueError, match="the last of its plan"):
    apply(jnp.ones((last.capacity, 2)), last)


def test_transposed_convolution_of_another_level():
  weight = jnp.ones((8, 2, 3))
  with pytest.raises(ValueError, match="3 rows, the plan's coarse level 76"):
    conv.transposed_conv(jnp.ones((3, 2)), weight, LEVELS[0])
  with pytest.raises(ValueError, match="the last of its plan"):
    conv.transposed_conv(jnp.ones((3, 2)), weight, LEVELS[-1])
