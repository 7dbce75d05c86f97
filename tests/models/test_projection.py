"""The projection head against plain numpy on rows without padding."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.models import initialize
from wsegpc_jax.models.projection import ProjectionHead

ROWS, CHANNELS, WIDTHS = 12, 5, (7, 6, 4)
MASK = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0], bool)
HEAD = ProjectionHead(WIDTHS, dtype=jnp.float64)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def variables_of(head, channels):
  return initialize.init_variables(
    head,
    0,
    jax.ShapeDtypeStruct((ROWS, channels), jnp.float32),
    jax.ShapeDtypeStruct((ROWS,), jnp.bool_),
    train=False,
  )


@pytest.fixture
def variables():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: (
      rng.uniform(0.2, 1, a.shape) * rng.choice([0.5, 1], a.shape)
      - (a.ndim == 2) * 0.5
    ),
    variables_of(HEAD, CHANNELS),
  )


def rows(seed=1):
  return np.random.default_rng(seed).normal(1, 2, (ROWS, CHANNELS))


def run(variables, x, mask, *, train):
  return HEAD.apply(variables, x, mask, train=train, mutable=["batch_stats"])


def oracle(variables, x, *, train):
  """(embeddings, running statistics) of rows without padding."""
  moved = {}
  for i in range(3):
    name = f"layer{i}"
    params = variables["params"][name]
    stats = variables["batch_stats"][name]["norm"]
    x = x @ params["linear"]["kernel"] + params["linear"]["bias"]
    mean, var, unbiased = stats["mean"], stats["var"], stats["var"]
    if train:
      mean, var, unbiased = x.mean(0), x.var(0), x.var(0, ddof=1)
    moved[name] = {
      "mean": 0.9 * stats["mean"] + 0.1 * mean,
      "var": 0.9 * stats["var"] + 0.1 * unbiased,
    }
    x = (x - mean) / np.sqrt(var + 1e-5)
    x = np.maximum(x * params["norm"]["scale"] + params["norm"]["bias"], 0)
  return x, moved


def test_parameters():
  params = variables_of(ProjectionHead(), 232)["params"]
  size = sum(math.prod(a.shape) for a in jax.tree.leaves(params))
  assert size == 101_696
  kernels = [params[f"layer{i}"]["linear"]["kernel"].shape for i in range(3)]
  assert kernels == [(232, 256), (256, 128), (128, 64)]


@pytest.mark.parametrize("train", [True, False])
def test_equals_numpy_without_padding(variables, train):
  x = rows()
  x[~MASK] = np.nan
  out, new = run(variables, x, MASK, train=train)
  expected, moved = oracle(variables, x[MASK], train=train)
  np.testing.assert_allclose(out[MASK], expected, rtol=1e-10, atol=1e-12)
  assert not np.asarray(out)[~MASK].any()
  assert (expected > 0).any() and (expected == 0).any()
  if train:
    for name, stats in moved.items():
      for leaf, value in stats.items():
        got = new["batch_stats"][name]["norm"][leaf]
        np.testing.assert_allclose(got, value, rtol=1e-6)  # in float32


def test_gradients_are_slopes_and_leave_padding_out(variables):
  weight = np.random.default_rng(2).normal(size=(ROWS, WIDTHS[-1]))

  @jax.jit
  def gradient(params, x):
    def loss(params, x):
      out, _ = run(variables | {"params": params}, x, MASK, train=True)
      return jnp.vdot(out, weight)

    return jax.grad(loss, (0, 1))(params, x)

  x = rows()
  x[~MASK] = np.nan
  params = variables["params"]
  got_params, got_x = gradient(params, x)
  assert not np.asarray(got_x)[~MASK].any()

  def loss(params, x):
    out, _ = oracle(variables | {"params": params}, x, train=True)
    return np.vdot(out, weight[MASK])

  flat = flax.traverse_util.flatten_dict(params)
  slopes = flax.traverse_util.flatten_dict(got_params)
  rng = np.random.default_rng(3)
  for path, value in flat.items():
    step = 1e-6 * rng.normal(size=value.shape)
    ahead, behind = (
      loss(flax.traverse_util.unflatten_dict(flat | {path: moved}), x[MASK])
      for moved in (value + step, value - step)
    )
    np.testing.assert_allclose(
      (ahead - behind) / 2, np.vdot(slopes[path], step), rtol=1e-4, atol=1e-12
    )
  step = 1e-6 * rng.normal(size=(MASK.sum(), CHANNELS))
  rise = loss(params, x[MASK] + step) - loss(params, x[MASK] - step)
  np.testing.assert_allclose(
    rise / 2, np.vdot(np.asarray(got_x)[MASK], step), rtol=1e-4, atol=1e-12
  )


def test_no_rows(variables):
  out, new = run(variables, rows(), np.zeros(ROWS, bool), train=True)
  assert not np.asarray(out).any()
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)),
    new["batch_stats"],
    variables["batch_stats"],
  )


def test_shards_share_their_statistics(variables):
  head = HEAD.clone(axis_name="devices")
  x, mask = rows().reshape(3, 4, CHANNELS), MASK.copy()
  mask[4:8] = False  # the second device has no row
  whole, _ = run(variables, rows(), mask, train=True)

  def shard(x, mask):
    return head.apply(variables, x, mask, train=True, mutable=["batch_stats"])[
      0
    ]

  shards = jax.jit(jax.vmap(shard, axis_name="devices"))
  got = shards(x, mask.reshape(3, 4))
  np.testing.assert_allclose(got.reshape(whole.shape), whole, rtol=1e-9)


def test_bfloat16():
  head = ProjectionHead(WIDTHS, dtype=jnp.bfloat16)
  out = jax.eval_shape(
    lambda v: head.apply(
      v, jnp.zeros((ROWS, CHANNELS)), jnp.ones(ROWS, bool), train=False
    ),
    variables_of(head, CHANNELS),
  )
  assert out.dtype == jnp.bfloat16 and out.shape == (ROWS, WIDTHS[-1])
  dtypes = {a.dtype for a in jax.tree.leaves(variables_of(head, CHANNELS))}
  assert dtypes == {np.dtype(np.float32)}
