import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm

CAPACITY = 100
CHANNELS = 3
EPSILON = 1e-5


def torch_batch_norm(x, scale, bias, mean, var):
  """Plain numpy batch norm in training mode, torch's momentum of 0.1."""
  x = np.asarray(x, np.float64)
  batch_mean = x.mean(0)
  biased = ((x - batch_mean) ** 2).mean(0)
  unbiased = x.var(0, ddof=1) if len(x) > 1 else biased
  y = (x - batch_mean) / np.sqrt(biased + EPSILON) * scale + bias
  return y, 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * unbiased


def random_variables(seed=0, channels=CHANNELS):
  rng = np.random.default_rng(seed)
  return {
    "params": {
      "scale": rng.normal(1, 0.3, channels).astype(np.float32),
      "bias": rng.normal(0, 0.5, channels).astype(np.float32),
    },
    "batch_stats": {
      "mean": rng.normal(0, 1, channels).astype(np.float32),
      "var": rng.uniform(0.5, 2, channels).astype(np.float32),
    },
  }


def ragged_shards(counts, seed=1):
  """Rows of each device, padded with NaN, and weights of a loss."""
  rng = np.random.default_rng(seed)
  x = np.full((len(counts), CAPACITY, CHANNELS), np.nan, np.float32)
  mask = np.zeros((len(counts), CAPACITY), bool)
  for device, count in enumerate(counts):
    # Another mean and spread on each device, or a wrong weighting would pass.
    x[device, :count] = rng.normal(3 * device, 1 + device, (count, CHANNELS))
    mask[device, :count] = True
  return x, mask, rng.normal(size=x.shape).astype(np.float32)


def loss_of(y, weight):
  return jnp.sum(jnp.sin(y) * weight)


def device_step(params, batch_stats, x, mask, weight):
  """One device's part: outputs, gradients and running statistics."""

  def loss(params, x):
    y, updated = MaskedBatchNorm(axis_name="devices").apply(
      {"params": params, "batch_stats": batch_stats},
      x,
      mask,
      train=True,
      mutable=["batch_stats"],
    )
    count = jax.lax.psum(jnp.sum(mask), "devices")
    return loss_of(y, weight) / jnp.maximum(count, 1), (y, updated)

  (grad, grad_x), (y, updated) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
  grad = jax.lax.psum(grad, "devices")
  return y, grad, grad_x, updated["batch_stats"]


vmap_step = jax.jit(
  jax.vmap(device_step, (None, None, 0, 0, 0), axis_name="devices")
)


def check_shards(step, counts):
  """`step` over a device axis equals plain batch norm of all valid rows."""
  x, mask, weight = ragged_shards(counts)
  variables = random_variables()
  params, stats = variables["params"], variables["batch_stats"]
  y, grad, grad_x, new_stats = jax.tree.map(
    np.asarray, step(params, stats, x, mask, weight)
  )

  want_y, want_mean, want_var = torch_batch_norm(
    x[mask], params["scale"], params["bias"], stats["mean"], stats["var"]
  )
  np.testing.assert_allclose(y[mask], want_y, atol=1e-5)
  assert not y[~mask].any()
  assert not grad_x[~mask].any()
  for device in range(len(counts)):
    np.testing.assert_allclose(
      new_stats["mean"][device], want_mean, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(new_stats["var"][device], want_var, rtol=1e-5)

  def plain_loss(params, x):
    normal = (x - x.mean(0)) / jnp.sqrt(x.var(0) + EPSILON)
    y = normal * params["scale"] + params["bias"]
    return loss_of(y, weight[mask]) / len(x)

  want_grad, want_grad_x = jax.jit(jax.grad(plain_loss, (0, 1)))(
    params, x[mask]
  )
  np.testing.assert_allclose(grad_x[mask], want_grad_x, rtol=1e-4, atol=1e-7)
  for name in "scale", "bias":
    for device in range(len(counts)):
      np.testing.assert_allclose(
        grad[name][device], want_grad[name], rtol=1e-4, atol=1e-6
      )


UNEVEN = [(100, 10, 50, 1), (100, 10, 0, 1), (0, 0, 0, 1)]


@pytest.mark.parametrize("counts", UNEVEN)
def test_uneven_shards_equal_the_concatenated_batch(counts):
  check_shards(vmap_step, counts)


def check_shard_map():
  """Body of the next test, run where four devices are emulated."""
  assert jax.device_count() == 4

  def shard(params, stats, *arrays):
    outputs = device_step(params, stats, *(a[0] for a in arrays))
    return jax.tree.map(lambda a: a[None], outputs)

  one, split = PartitionSpec(), PartitionSpec("devices")
  step = jax.shard_map(
    shard,
    mesh=jax.sharding.Mesh(jax.devices(), ("devices",)),
    in_specs=(one, one, split, split, split),
    out_specs=split,
    check_vma=False,
  )
  for counts in UNEVEN:
    check_shards(jax.jit(step), counts)


def test_uneven_shards_under_shard_map():
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(
      [str(pathlib.Path(__file__).parent), *filter(None, sys.path)]
    ),
  }
  code = "import test_masked_batch_norm as t; t.check_shard_map()"
  subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_all_padding_everywhere_is_inert():
  x, mask, weight = ragged_shards((0, 0, 0, 0))
  variables = random_variables()
  y, grad, grad_x, stats = vmap_step(
    variables["params"], variables["batch_stats"], x, mask, weight
  )
  assert not np.asarray(y).any()
  assert not np.asarray(grad_x).any()
  for value in jax.tree.leaves(grad):
    assert not np.asarray(value).any()
  for name, before in variables["batch_stats"].items():
    np.testing.assert_array_equal(stats[name], [before] * 4)


@pytest.mark.parametrize("train", [True, False])
def test_content_and_place_of_padding_do_not_matter(train):
  rng = np.random.default_rng(3)
  rows = rng.normal(2, 3, (7, CHANNELS)).astype(np.float32)
  weight = rng.normal(size=rows.shape).astype(np.float32)
  variables = random_variables()

  def run(garbage, mask):
    x = np.broadcast_to(garbage, (len(mask), CHANNELS)).astype(np.float32)
    weights = x.copy()
    x[mask], weights[mask] = rows, weight

    def loss(params, x):
      y, updated = MaskedBatchNorm().apply(
        variables | {"params": params},
        x,
        jnp.asarray(mask),
        train=train,
        mutable=["batch_stats"],
      )
      total = jnp.sum(jnp.where(mask[:, None], y * y * weights, 0))
      return total, (y, updated["batch_stats"])

    (grad, grad_x), (y, stats) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
      variables["params"], x
    )
    assert not np.asarray(y)[~mask].any()
    assert not np.asarray(grad_x)[~mask].any()
    return np.asarray(y)[mask], np.asarray(grad_x)[mask], grad, stats

  want = run(0, np.ones(7, bool))
  scattered = np.array([0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1], bool)
  for garbage in np.nan, np.inf, 1e30:
    got = run(garbage, scattered)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_rows_by_hand():
  x = jnp.array([[1.0], [3.0], [9.0]])
  mask = jnp.array([True, True, False])
  norm = MaskedBatchNorm(epsilon=0.0)
  variables = norm.init(jax.random.key(0), x, mask, train=True)
  y, updated = norm.apply(
    variables, x, mask, train=True, mutable=["batch_stats"]
  )
  # Mean 2; variance 1 when biased, 2 when not.
  np.testing.assert_allclose(y, [[-1], [1], [0]], atol=1e-6)
  np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.2], rtol=1e-6)
  np.testing.assert_allclose(updated["batch_stats"]["var"], [1.1], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 5])
def test_constant_rows_give_the_bias(rows):
  variables = random_variables()
  x = jnp.tile(jnp.array([[2.0, -3.0, 0.0]]), (rows, 1))

  @jax.jit
  def run(x):
    return MaskedBatchNorm().apply(
      variables,
      x,
      jnp.ones(rows, bool),
      train=True,
      mutable=["batch_stats"],
    )

  y, updated = run(x)
  bias = variables["params"]["bias"]
  np.testing.assert_allclose(y, np.tile(bias, (rows, 1)), rtol=1e-6)
  np.testing.assert_allclose(
    updated["batch_stats"]["var"],
    0.9 * variables["batch_stats"]["var"],
    rtol=1e-6,
  )
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0]))))(x)
  assert np.isfinite(gradient).all()


def test_images_with_a_mask_of_the_batch_equal_rows():
  rng = np.random.default_rng(4)
  x = rng.normal(1, 2, (4, 3, 5, CHANNELS)).astype(np.float32)
  mask = np.array([True, False, True, True])
  variables = random_variables()

  weight = rng.normal(size=x.shape).astype(np.float32)

  @jax.jit
  def run(x, mask):
    def loss(x):
      out = MaskedBatchNorm().apply(
        variables, x, mask, train=True, mutable=["batch_stats"]
      )
      return loss_of(out[0], weight.reshape(x.shape)), out

    gradient, out = jax.grad(loss, has_aux=True)(x)
    return *out, gradient

  want = run(x.reshape(-1, CHANNELS), np.repeat(mask, 15))
  for axes in 1, 2, 3:
    leading = x.shape[:axes]
    got = run(
      x, np.broadcast_to(mask.reshape((4,) + (1,) * (axes - 1)), leading)
    )
    for i in 0, 2:
      np.testing.assert_allclose(
        got[i].reshape(-1, CHANNELS), want[i], rtol=1e-5, atol=1e-6
      )
    for name in "mean", "var":
      np.testing.assert_allclose(
        got[1]["batch_stats"][name], want[1]["batch_stats"][name], rtol=1e-5
      )


def test_evaluation_uses_running_statistics_without_an_axis():
  variables = random_variables()
  x = np.random.default_rng(5).normal(size=(6, CHANNELS)).astype(np.float32)
  y = MaskedBatchNorm(axis_name="nowhere").apply(
    variables, x, np.ones(6, bool), train=False
  )
  stats, params = variables["batch_stats"], variables["params"]
  want = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
  np.testing.assert_allclose(
    y, want * params["scale"] + params["bias"], rtol=1e-5, atol=1e-6
  )


def test_init_needs_no_axis_and_keeps_the_running_statistics():
  variables = MaskedBatchNorm(axis_name="nowhere").init(
    jax.random.key(0), 5 + jnp.ones((6, 2)), jnp.ones(6, bool), train=True
  )
  for collection, name, value in (
    ("params", "scale", 1),
    ("params", "bias", 0),
    ("batch_stats", "mean", 0),
    ("batch_stats", "var", 1),
  ):
    np.testing.assert_array_equal(variables[collection][name], [value] * 2)


def test_bfloat16_rows_have_float32_statistics():
  # Sums of these rows, mean 100 and spread 1, are far off in bfloat16.
  rng = np.random.default_rng(6)
  x = jnp.asarray(rng.normal(100, 1, (1000, CHANNELS)), jnp.bfloat16)
  variables = random_variables()
  y, updated = MaskedBatchNorm().apply(
    variables, x, jnp.ones(1000, bool), train=True, mutable=["batch_stats"]
  )
  params, stats = variables["params"], variables["batch_stats"]
  want_y, want_mean, want_var = torch_batch_norm(
    x, params["scale"], params["bias"], stats["mean"], stats["var"]
  )
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(np.float32), want_y, rtol=8e-3, atol=1e-2)
  assert updated["batch_stats"]["var"].dtype == jnp.float32
  np.testing.assert_allclose(
    updated["batch_stats"]["mean"], want_mean, rtol=1e-5
  )
  np.testing.assert_allclose(updated["batch_stats"]["var"], want_var, rtol=1e-4)

  wide = MaskedBatchNorm(dtype=jnp.float32).apply(
    variables, x, jnp.ones(1000, bool), train=False
  )
  assert wide.dtype == jnp.float32


def test_bfloat16_rows_have_gradients_from_float32():
  # Values that bfloat16 holds exactly, so that only the sums can go wrong.
  rng = np.random.default_rng(8)
  x = jnp.asarray(rng.normal(100, 1, (1000, CHANNELS)), jnp.bfloat16)
  weight = jnp.asarray(rng.normal(1, 1, x.shape), jnp.bfloat16)
  variables = random_variables()

  def loss(params, x):
    y, _ = MaskedBatchNorm().apply(
      {**variables, "params": params},
      x,
      jnp.ones(1000, bool),
      train=True,
      mutable=["batch_stats"],
    )
    return jnp.sum(y.astype(jnp.float32) * weight.astype(jnp.float32))

  of_params, of_x = jax.grad(loss, (0, 1))(variables["params"], x)
  assert of_x.dtype == jnp.bfloat16 and of_params["scale"].dtype == jnp.float32

  with jax.enable_x64(True):

    def plain(params, x):
      normal = (x - x.mean(0)) / jnp.sqrt(x.var(0) + EPSILON)
      y = normal * params["scale"] + params["bias"]
      return jnp.sum(y * np.asarray(weight, np.float64))

    want_params, want_x = jax.device_get(
      jax.grad(plain, (0, 1))(
        jax.tree.map(np.float64, variables["params"]), np.asarray(x, np.float64)
      )
    )
  for name in "scale", "bias":
    # A mean of 100 is good to 1e-5 in float32, and 1000 rows are added up.
    np.testing.assert_allclose(
      of_params[name], want_params[name], rtol=1e-4, atol=2e-2
    )
  error = np.asarray(of_x, np.float64) - want_x
  assert np.abs(error).max() < 4e-3 * np.abs(want_x).max()


def test_gradient_equals_finite_differences():
  with jax.enable_x64(True):
    rng = np.random.default_rng(7)
    mask = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    x = rng.normal(1, 2, (7, CHANNELS))
    weight = rng.normal(size=x.shape)
    params = {
      "scale": rng.normal(1, 0.3, CHANNELS),
      "bias": rng.normal(0, 0.5, CHANNELS),
    }
    stats = {"mean": np.zeros(CHANNELS), "var": np.ones(CHANNELS)}

    @jax.jit
    def loss(params, x):
      y, _ = MaskedBatchNorm(param_dtype=jnp.float64).apply(
        {"params": params, "batch_stats": stats},
        x,
        mask,
        train=True,
        mutable=["batch_stats"],
      )
      assert y.dtype == jnp.float64
      return loss_of(y, weight)

    point = (params, x)
    gradient = jax.jit(jax.grad(loss, (0, 1)))(*point)
    for _ in range(3):
      step = jax.tree.map(lambda a: rng.normal(size=a.shape) * 1e-5, point)
      ahead = loss(*jax.tree.map(np.add, point, step))
      behind = loss(*jax.tree.map(np.subtract, point, step))
      slope = sum(
        jnp.vdot(g, s)
        for g, s in zip(
          jax.tree.leaves(gradient), jax.tree.leaves(step), strict=True
        )
      )
      np.testing.assert_allclose((ahead - behind) / 2, slope, rtol=1e-6)


def test_a_mask_that_does_not_fit_is_refused():
  norm = MaskedBatchNorm()
  x = jnp.ones((4, 3))
  with pytest.raises(ValueError, match=r"\(5,\).*\(4, 3\)"):
    norm.init(jax.random.key(0), x, jnp.ones(5, bool), train=True)
  with pytest.raises(ValueError, match="leading axes"):
    norm.init(jax.random.key(0), x, jnp.ones((4, 3), bool), train=True)
  with pytest.raises(ValueError, match="bool"):
    norm.init(jax.random.key(0), x, jnp.ones(4), train=True)
