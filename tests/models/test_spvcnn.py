"""SPVCNN and SPVNAS: published sizes, and evaluation against the oracle."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spvcnn_cases import (
  CAPACITIES,
  LARGER,
  NETS,
  close,
  expected,
  pad,
  shape_of_plan,
  shapes_of,
  two_scenes,
  weights,
)

from wsegpc_jax.models.spvcnn import ARCHITECTURES, SPVCNN, SPVNAS
from wsegpc_jax.sparse import plan as plan_lib

# The programs of a module are shared, so its tests belong into one process.
pytestmark = pytest.mark.xdist_group("spvcnn")


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def number(model):
  params = shapes_of(model)[1]["params"]
  return sum(math.prod(a.shape) for a in jax.tree.leaves(params))


class TestSizes:
  def test_spvnas(self):
    assert number(SPVNAS()) == 10_788_891
    params = shapes_of(SPVNAS())[1]["params"]
    parts = {"sparse": 0, "point": 0, "classifier": 0}
    for name, tree in params.items():
      part = next((p for p in parts if name.startswith(p)), "sparse")
      parts[part] += sum(math.prod(a.shape) for a in jax.tree.leaves(tree))
    assert parts == {
      "sparse": 10_731_808,
      "point": 55_620,
      "classifier": 1_463,
    }

  @pytest.mark.parametrize(
    ("width", "minkunet", "spvcnn"),
    [
      (1.0, 21_723_315, 21_778_003),
      (0.64, 8_771_298, 8_793_617),
      (0.5, 5_435_235, 5_449_267),
    ],
  )
  def test_baselines(self, width, minkunet, spvcnn):
    assert number(SPVCNN(width=width)) == spvcnn
    assert number(SPVCNN(width=width, point_branch=False)) == minkunet

  def test_widths_of_the_features(self):
    (logits, features), _ = shapes_of(SPVNAS())
    assert logits.shape == (16, 19)
    assert features["bottleneck"].shape == (16, 232)
    assert features["decoder"].shape == (16, 76)

  def test_a_running_mean_and_variance_for_every_norm(self):
    for model, _ in NETS.values():
      _, variables = shapes_of(model)
      flat = {
        k: flax.traverse_util.flatten_dict(variables[k], sep="/")
        for k in ("params", "batch_stats")
      }
      norms = [n for n in flat["params"] if n.endswith("scale")]
      assert len(flat["batch_stats"]) == 2 * len(norms)

  def test_other_features(self):
    _, variables = shapes_of(SPVCNN(width=0.125), channels=7)
    kernel = variables["params"]["stem0_conv"]["kernel"]
    assert kernel.shape == (27, 7, 4)

  def test_mistakes(self):
    with pytest.raises(ValueError, match="'spvcn'.*spvcnn, spvnas_10.8m"):
      shapes_of(SPVCNN("spvcn"))
    with pytest.raises(ValueError, match="5 levels, got 3"):
      jax.eval_shape(
        lambda plan: SPVCNN().init(
          jax.random.key(0), jnp.zeros((16, 4)), plan, train=False
        ),
        shape_of_plan((16, 8, 8)),
      )

  def test_all_architectures_are_used(self):
    used = {model.arch for model, _ in NETS.values()}
    assert used == set(ARCHITECTURES)


@functools.cache
def evaluation(kind, capacities=CAPACITIES, dtype=jnp.float64):
  model = NETS[kind][0].clone(dtype=dtype)

  @jax.jit
  def run(variables, coords, x, count):
    plan = plan_lib.build_plan(coords, count, capacities, is_sorted=False)
    return model.apply(variables, x, plan, train=False)

  return run


@pytest.mark.parametrize("kind", NETS)
def test_evaluation_equals_the_oracle(kind):
  arrays, variables = weights(kind)
  got = evaluation(kind)(variables, *pad(*two_scenes()[:2]))
  close(got, expected(kind, arrays, train=False)[0])


def evaluate(coords, features, capacities=CAPACITIES, fill=0.0):
  """What the searched network gives for the rows that are valid."""
  args = pad(coords, features, capacities[0], fill)
  out = evaluation("spvnas", capacities)(weights("spvnas")[1], *args)
  return jax.tree.map(lambda a: np.asarray(a)[: len(coords)], out)


class TestEvaluation:
  """What must not matter."""

  @pytest.fixture
  def plain(self):
    return evaluate(*two_scenes()[:2])

  def test_order_of_voxels(self, plain):
    coords, features, _ = two_scenes()
    order = np.random.default_rng(1).permutation(len(coords))
    got = evaluate(coords[order], features[order])
    close(got, jax.tree.map(lambda a: a[order], plain))

  def test_more_room(self, plain):
    close(evaluate(*two_scenes()[:2], LARGER), plain)

  def test_content_of_padding(self, plain):
    for fill in (1e30, np.nan):
      got = evaluate(*two_scenes()[:2], fill=fill)
      jax.tree.map(np.testing.assert_array_equal, got, plain)

  def test_scenes_do_not_mix(self, plain):
    coords, features, first = two_scenes()
    for rows in (slice(None, first), slice(first, None)):
      alone = coords[rows] * (0, 1, 1, 1)
      close(
        evaluate(alone, features[rows]),
        jax.tree.map(lambda a, rows=rows: a[rows], plain),
      )

  def test_shift_by_the_largest_stride(self, plain):
    coords, features, _ = two_scenes()
    close(evaluate(coords + (0, 32, -16, 160), features), plain)

  def test_padding_of_features_is_zero(self):
    coords, x, count = pad(*two_scenes()[:2])
    _, features = evaluation("spvnas")(weights("spvnas")[1], coords, x, count)
    for value in features.values():
      assert not np.asarray(value)[count:].any()

  def test_bfloat16_is_close(self, plain):
    run = evaluation("spvnas", CAPACITIES, jnp.bfloat16)
    variables = jax.tree.map(np.float32, weights("spvnas")[1])
    coords, x, count = pad(*two_scenes()[:2])
    logits, features = run(variables, coords, x.astype(np.float32), count)
    assert logits.dtype == jnp.float32
    assert {v.dtype for v in features.values()} == {jnp.dtype(jnp.bfloat16)}
    error = np.asarray(logits)[:count] - plain[0]
    assert 0 < np.linalg.norm(error) / np.linalg.norm(plain[0]) < 0.1
