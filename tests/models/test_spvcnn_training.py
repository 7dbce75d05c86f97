"""SPVCNN and SPVNAS in training: gradients, statistics, dropout, devices."""

import functools
import itertools
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
  ours,
  pad,
  shape_of_plan,
  shapes_of,
  two_scenes,
  weights,
)

from wsegpc_jax.models.spvcnn import SPVCNN, SPVNAS
from wsegpc_jax.sparse import conv
from wsegpc_jax.sparse import plan as plan_lib

# The programs of a module are shared, so its tests belong into one process.
pytestmark = pytest.mark.xdist_group("spvcnn")


@pytest.fixture(scope="module", autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def training(kind):
  """(variables, padded scene, cotangents) -> out, statistics, gradients."""
  model = NETS[kind][0].clone(dtype=jnp.float64, dropout=0.0)

  @jax.jit
  def run(variables, coords, x, count, cotangents):
    plan = plan_lib.build_plan(coords, count, CAPACITIES)

    def loss(params):
      out, new = model.apply(
        {**variables, "params": params},
        x,
        plan,
        train=True,
        mutable=["batch_stats"],
      )
      products = jax.tree.map(
        lambda a, g: jnp.vdot(
          jnp.where(plan.levels[0].valid[:, None], a, 0), g
        ),
        out,
        cotangents,
      )
      return sum(jax.tree.leaves(products)), (out, new["batch_stats"])

    gradients, (out, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return out, stats, gradients

  return run


def cotangents_for(kind, seed=2, *, only=None):
  """Random ones for (logits, features), zero for all but `only`."""
  rng = np.random.default_rng(seed)
  (logits, features), _ = shapes_of(NETS[kind][0])
  out = {
    "logits": rng.normal(size=(CAPACITIES[0], logits.shape[1])),
    **{
      k: rng.normal(size=(CAPACITIES[0], v.shape[1]))
      for k, v in features.items()
    },
  }
  if only is not None:
    out = {k: v * (k == only) for k, v in out.items()}
  return out.pop("logits"), out


class TestTraining:
  def test_values_and_running_statistics(self):
    arrays, variables = weights("spvnas")
    out, stats, _ = training("spvnas")(
      variables, *pad(*two_scenes()[:2]), cotangents_for("spvnas")
    )
    wanted, net = expected("spvnas", arrays, train=True)
    close(out, wanted, 1e-7)
    moved = dict(arrays)
    for name, values in net.statistics.items():
      for leaf, value in zip(("mean", "var"), values, strict=True):
        key = f"{name}.running_{leaf}"
        moved[key] = 0.9 * arrays[key] + 0.1 * value
    assert len(net.statistics) * 4 < len(moved)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
      stats,
      ours("spvnas", moved)["batch_stats"],
    )

  def test_gradients_are_slopes_of_the_oracle(self):
    arrays, variables = weights("spvnas")
    cotangents = cotangents_for("spvnas")
    *_, gradients = training("spvnas")(
      variables, *pad(*two_scenes()[:2]), cotangents
    )

    def loss(arrays):
      out, _ = expected("spvnas", arrays, train=True)
      pairs = zip(
        jax.tree.leaves(out), jax.tree.leaves(cotangents), strict=True
      )
      return sum(np.vdot(a, g[: len(a)]) for a, g in pairs)

    rng = np.random.default_rng(3)
    learned = [k for k in arrays if k.endswith(("weight", "bias", "kernel"))]
    steps = {k: rng.normal(size=np.shape(v)) for k, v in arrays.items()}
    steps = {
      # The reader of weights takes no variance below zero.
      k: 1e-6 * (v * v if "var" in k else v) / np.linalg.norm(v)
      for k, v in steps.items()
    }
    # Which of our variables is made of which key.
    keys = list(arrays)
    numbers = {
      k: np.full(np.shape(v), float(keys.index(k))) for k, v in arrays.items()
    }
    trees = gradients, *(ours("spvnas", a)["params"] for a in (steps, numbers))
    found = {}
    for g, step, number in zip(*map(jax.tree.leaves, trees), strict=True):
      found[keys[int(number.flat[0])]] = np.vdot(g, step), np.linalg.norm(g)
    assert set(found) == set(learned)
    # A convolution or a linear layer, with its norm, at a time.
    for _, layer in itertools.groupby(found, lambda k: k.rsplit(".", 2)[0]):
      layer = list(layer)
      rise = loss(arrays | {k: arrays[k] + steps[k] for k in layer})
      rise -= loss(arrays | {k: arrays[k] - steps[k] for k in layer})
      slope = sum(found[k][0] for k in layer)
      # The slope is of the size of a gradient over the root of its entries.
      size = max(found[k][1] / math.sqrt(steps[k].size) for k in layer)
      assert abs(rise / 2 - slope) < 1e-10 * size + 1e-11, layer

  def test_no_voxel_and_one(self):
    _, variables = weights("spvnas")
    coords, features, _ = two_scenes()
    for rows in (0, 1):
      args = pad(coords[:rows], features[:rows])
      out, stats, gradients = training("spvnas")(
        variables, *args, cotangents_for("spvnas")
      )
      for leaf in jax.tree.leaves((out, stats, gradients)):
        assert np.isfinite(leaf).all()
    # Of one row the batch norm leaves its bias, wherever the row is from.
    assert np.asarray(gradients["classifier"]["kernel"]).any()
    assert not np.asarray(gradients["stem0_conv"]["kernel"]).any()

  def test_what_a_loss_on_the_bottleneck_reaches(self):
    _, variables = weights("spvnas")
    *_, gradients = training("spvnas")(
      variables,
      *pad(*two_scenes()[:2]),
      cotangents_for("spvnas", only="bottleneck"),
    )
    for name, tree in gradients.items():
      reached = name.startswith(("stem", "down", "point0"))
      if reached or name.startswith(("up", "point1", "point2", "classifier")):
        for path, g in flax.traverse_util.flatten_dict(tree).items():
          # The bias of a linear layer is taken away by the norm after it.
          if path != ("linear", "bias"):
            assert np.asarray(g).any() == reached, (name, path)
      else:
        raise AssertionError(name)


@functools.cache
def forward(capacities):
  model = NETS["spvcnn"][0].clone(dtype=jnp.float64)

  @jax.jit
  def run(variables, coords, x, count, key):
    plan = plan_lib.build_plan(coords, count, capacities)
    return model.apply(
      variables,
      x,
      plan,
      train=True,
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=lambda module, _: isinstance(
        module, flax.linen.Dropout
      ),
      rngs={"dropout": key},
    )

  return run


class TestDropout:
  def run(self, seed, capacities=CAPACITIES):
    """(logits, bottleneck, decoder), what leaves the two dropouts."""
    (logits, features), new = forward(capacities)(
      weights("spvcnn")[1],
      *pad(*two_scenes()[:2], capacities[0]),
      jax.random.key(seed),
    )
    n = len(two_scenes()[0])
    out = logits[:n], features["bottleneck"][:n], features["decoder"][:n]
    return out, jax.tree.leaves(new["intermediates"])

  def test_follows_the_key_and_nothing_else(self):
    (logits, bottleneck, decoder), _ = self.run(0)
    for a, b in zip(
      self.run(0, LARGER)[0], (logits, bottleneck, decoder), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    other, _ = self.run(1)
    np.testing.assert_array_equal(other[1], bottleneck)
    assert np.abs(other[0] - logits).max() > 0.1
    assert np.abs(other[2] - decoder).max() > 0.1

  def test_drops_three_of_ten_at_both_places(self):
    _, dropped = self.run(0)
    assert [a.shape[1] for a in dropped] == [32, 16]
    for value, level in zip(dropped, (4, 2), strict=True):
      coords = two_scenes()[0] // (1, *[2**level] * 3)
      rows = np.asarray(value)[: len(np.unique(coords, axis=0))]
      zero = (rows == 0).mean()
      assert abs(zero - 0.3) < 4 * math.sqrt(0.21 / rows.size) + 0.01

  def test_needs_a_key_unless_it_is_off(self):
    def shapes(model, kind):
      return jax.eval_shape(
        lambda v, plan: model.apply(
          v, jnp.zeros((16, 4)), plan, train=True, mutable=["batch_stats"]
        ),
        shapes_of(NETS[kind][0])[1],
        shape_of_plan(),
      )

    assert SPVCNN().dropout == SPVNAS().dropout == 0.3
    net = NETS["spvcnn"][0]
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
      shapes(net, "spvcnn")
    shapes(net.clone(dropout=0.0), "spvcnn")
    shapes(NETS["plain"][0], "plain")  # has none


def test_uneven_shards_equal_the_concatenated_batch():
  """Statistics are of all devices: three with one scene, none, and another."""
  coords, x, first = two_scenes()
  arrays, variables = weights("spvnas")
  model = NETS["spvnas"][0].clone(
    dtype=jnp.float64, dropout=0.0, axis_name="devices"
  )
  shards = [slice(0, first), slice(0, 0), slice(first, None)]
  batch = [pad(coords[rows] * (0, 1, 1, 1), x[rows]) for rows in shards]
  batch = jax.tree.map(lambda *a: np.stack(a), *batch)

  @jax.jit
  @functools.partial(jax.vmap, axis_name="devices")
  def run(coords, x, count):
    plan = plan_lib.build_plan(coords, count, CAPACITIES)
    return model.apply(variables, x, plan, train=True, mutable=["batch_stats"])

  out, new = run(*batch)
  wanted, _ = expected("spvnas", arrays, train=True)
  got = jax.tree.map(
    lambda a: np.concatenate([a[0, :first], a[2, : len(x) - first]]), out
  )
  close(got, wanted, 1e-7)
  _, stats, _ = training("spvnas")(
    variables, *pad(coords, x), cotangents_for("spvnas")
  )
  for device in range(3):
    jax.tree.map(
      lambda a, b, i=device: np.testing.assert_allclose(
        a[i], b, rtol=1e-6, atol=1e-7
      ),
      new["batch_stats"],
      stats,
    )


def test_the_transposed_convolution_is_the_adjoint_of_the_strided_one():
  """<down(x), y> = <x, up(y)> with each tap's matrix transposed."""
  coords, _, _ = two_scenes()
  padded, _, count = pad(coords, np.zeros((len(coords), 1)))
  plan = jax.jit(plan_lib.build_plan, static_argnums=2)(
    padded, count, CAPACITIES
  )
  rng = np.random.default_rng(5)
  for fine, coarse in itertools.pairwise(plan.levels[:3]):
    x = rng.normal(size=(fine.capacity, 3)) * np.asarray(fine.valid)[:, None]
    y = (
      rng.normal(size=(coarse.capacity, 2)) * np.asarray(coarse.valid)[:, None]
    )
    weight = rng.normal(size=(8, 3, 2))
    down = conv.strided_conv(jnp.asarray(x), jnp.asarray(weight), fine)
    up = conv.transposed_conv(
      jnp.asarray(y), jnp.asarray(weight.transpose(0, 2, 1)), fine
    )
    np.testing.assert_allclose(np.vdot(down, y), np.vdot(x, up), rtol=1e-11)
