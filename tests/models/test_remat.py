"""Networks under checkpoints: the same names, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.models import initialize, minkunet, remat
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse import voxelize

CAPACITIES = (200, 128, 64, 32, 16)


@pytest.fixture(scope="module")
def points():
  """(features, plan) of some voxels, a part of the rows."""
  rng = np.random.default_rng(0)
  place = rng.uniform(0, 12, (150, 3)) * [1, 1, 0.3]
  coords = voxelize.voxelize(place, 1.0).coords
  count = len(coords)
  coords = np.pad(coords, ((0, CAPACITIES[0] - count), (1, 0)))
  coords[:, 0] = 0
  features = rng.normal(size=(CAPACITIES[0], 6)).astype(np.float32)
  return features, plan_lib.build_plan(coords, count, CAPACITIES)


@pytest.fixture
def network(monkeypatch):
  """Two blocks at the finest level, one with another width at its ends."""
  layers = (0, 0, 0, 0, 0, 0, 0, 2)
  planes = minkunet.ARCHITECTURES["14A"][1]
  monkeypatch.setitem(minkunet.ARCHITECTURES, "ends", (layers, planes, 1))
  return lambda dtype=jnp.float32: MinkUNet("ends", 4, width=8, dtype=dtype)


def loss_of(network, stats, *args, recomputed):
  def loss(params):
    with remat.blocks_recomputed(recomputed):
      (logits, _), new = network.apply(
        {"params": params, "batch_stats": stats},
        *args,
        train=True,
        mutable=["batch_stats"],
      )
    return jnp.square(logits).mean(), new["batch_stats"]

  return loss


def kept_bytes(loss, params):
  """Bytes that the backward pass needs of the forward one, but parameters."""
  kept = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], params)

  def size(tree):
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))

  return size(kept) - size(params)


def test_values_and_gradients_stay(network, points):
  net = network()
  variables = initialize.init_variables(net, 0, *points, train=False)
  results = [
    jax.jit(
      jax.value_and_grad(
        loss_of(net, variables["batch_stats"], *points, recomputed=on),
        has_aux=True,
      )
    )(variables["params"])
    for on in (False, True)
  ]
  plain, under = jax.device_get(results)
  assert jax.tree.structure(plain) == jax.tree.structure(under)
  for one, two in zip(
    jax.tree.leaves(plain), jax.tree.leaves(under), strict=True
  ):
    np.testing.assert_allclose(
      two, one, rtol=1e-4, atol=1e-5 * np.abs(one).max()
    )


def test_less_is_kept(network, points):
  def kept(dtype, recomputed):
    net = network(dtype)
    variables = initialize.init_variables(net, 0, *points, train=False)
    stats = variables["batch_stats"]
    loss = loss_of(net, stats, *points, recomputed=recomputed)
    return kept_bytes(loss, variables["params"])

  plain = kept(jnp.float32, False)
  assert kept(jnp.float32, True) < 0.65 * plain
  # Norms, which compute in float32, keep bfloat16.
  assert kept(jnp.bfloat16, False) < 0.5 * plain


def test_all_residual_blocks_of_both_networks_are_checkpointed(points):
  images = jnp.zeros((1, 16, 16, 3)), jnp.ones(1, bool)
  for net, args, blocks in (
    (DilatedResNet(18, 4, width=4), images, 8),
    (MinkUNet("14A", 4, width=4), points, 8),
  ):
    variables = initialize.init_variables(net, 0, *args, train=False)
    loss = loss_of(net, variables["batch_stats"], *args, recomputed=True)
    text = str(jax.make_jaxpr(loss)(variables["params"]))
    assert text.count("= remat2[") + text.count("= checkpoint[") == blocks


def test_variables_are_made_without_checkpoints():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name="block1_0")(x)

  with remat.blocks_recomputed(True):
    variables = Net().init(jax.random.key(0), jnp.ones((1, 3)))
  assert variables["params"]["block1_0"]["kernel"].shape == (3, 2)
