"""Gradients summed over parts of a batch against those of the whole batch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import parallel_equality_parts as parts_of
import pytest

from wsegpc_jax import parallel
from wsegpc_jax.data import batching, box_rooms
from wsegpc_jax.methods import gradients
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models.dilated_resnet import resize_bilinear_aligned
from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm
from wsegpc_jax.models.two_branch import TwoBranchNet

# Uneven: two scenes and one, and a part that has none.
PARTS = ((0, 1), (2,), ())
K = len(box_rooms.CLASSES)


class Points(nn.Module):
  """A network of voxels as small as can be: what counts are the losses."""

  @nn.compact
  def __call__(self, x, plan, *, train):
    norm = MaskedBatchNorm(axis_name=parallel.AXIS)
    x = norm(nn.Dense(12)(x), plan.levels[0].valid, train=train)
    return nn.Dense(K)(nn.relu(x)), x


class Pixels(nn.Module):
  """Likewise, of images."""

  @nn.compact
  def __call__(self, images, mask, *, train):
    norm = MaskedBatchNorm(axis_name=parallel.AXIS)
    x = norm(nn.Conv(8, (8, 8), 8)(images), mask, train=train)
    logits = nn.Conv(K, (1, 1))(nn.relu(x))
    return resize_bilinear_aligned(logits, images.shape[1:3]), x


def test_accumulated_sums_are_those_of_the_parts():
  rng = np.random.default_rng(0)
  batch = {"x": rng.normal(size=(3, 4)).astype(np.float32)}

  def share(statistics, part):
    gradient = {"w": 2 * part["x"]}
    moved = 0.5 * statistics + part["x"].sum()
    return gradient, moved, (part["x"].max(), None)

  grads, statistics, (largest, none) = gradients.accumulate(
    share, jnp.float32(8), batch, parts=3
  )
  np.testing.assert_allclose(grads["w"], 2 * batch["x"].sum(0), rtol=1e-6)
  np.testing.assert_allclose(largest, batch["x"].max(1).sum(), rtol=1e-6)
  assert none is None
  moved = 8.0
  for row in batch["x"]:  # in order: another one gives another number
    moved = 0.5 * moved + row.sum()
  np.testing.assert_allclose(statistics, moved, rtol=1e-6)


def test_norm_is_that_of_all_leaves_together():
  rng = np.random.default_rng(1)
  tree = {"a": rng.normal(size=(3, 5, 2)), "b": [rng.normal(size=7), [3.0]]}
  tree = jax.tree.map(np.asarray, tree)
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  np.testing.assert_allclose(
    gradients.norm(tree), np.linalg.norm(flat), rtol=1e-6
  )


@pytest.fixture
def without_batch_statistics(monkeypatch):
  """Batch norm by its running statistics: then a batch is its parts' sum."""
  call = MaskedBatchNorm.__call__

  def by_running(self, x, mask, *, train):
    del train
    return call(self, x, mask, train=False)

  monkeypatch.setattr(MaskedBatchNorm, "__call__", by_running)


def collate(samples, slots, *, teacher):
  layout = batching.Layout(
    (6000,) if slots > 2 else (2400,),
    slots,
    2 if teacher else 0,
    parts_of.IMAGE,
    parts_of.SETTINGS.num_pairs if teacher else 0,
  )
  return batching.collate(
    samples, layout, 0, num_classes=len(box_rooms.CLASSES), teacher=teacher
  )


def one_step(method, state, batch):
  """The state and the metrics after a step on one device."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
  step = parallel.data_parallel(method.train_step, mesh=mesh)
  batch = jax.tree.map(lambda a: a[None], batch)
  return jax.device_get(step(jax.tree.map(np.copy, state), batch))


def assert_same_step(method, samples, *, teacher):
  """One step on all scenes at once and in parts, from the same state."""
  whole = collate(samples, 4, teacher=teacher)
  split = batching.stack(
    [collate([samples[i] for i in p], 2, teacher=teacher) for p in PARTS]
  )
  state = method.init(0, whole)
  (expected, metrics), (actual, of_parts) = (
    one_step(dataclasses.replace(method, parts=n), state, batch)
    for n, batch in ((1, whole), (len(PARTS), split))
  )
  assert of_parts.keys() == metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(of_parts[name], value, rtol=2e-4, err_msg=name)
  # The update is the gradient itself, by a learning rate of 1.
  moved = jax.tree.map(np.subtract, expected.params, state.params)
  again = jax.tree.map(np.subtract, actual.params, state.params)
  for (path, one), two in zip(
    jax.tree.leaves_with_path(moved), jax.tree.leaves(again), strict=True
  ):
    scale = np.abs(one).max()
    worst = np.abs(two - one).max()
    assert worst <= 2e-3 * scale + 1e-6, jax.tree_util.keystr(path)
  assert metrics["grad_norm"] > 0.1
  return expected, actual


@pytest.mark.usefixtures("without_batch_statistics")
def test_segmentation_in_parts_equals_the_whole_batch():
  samples = [
    dataclasses.replace(s, images=None, teacher=None)
    for s in parts_of.make_samples()[:3]
  ]
  method = Segmentation(Points(), optax.sgd(1.0))
  assert_same_step(method, samples, teacher=False)


@pytest.mark.usefixtures("without_batch_statistics")
def test_wsegpc_in_parts_equals_the_whole_batch():
  samples = parts_of.make_samples()[:3]
  weights = LossWeights(cam_warmup=0, cmg_warmup=0, rpc_warmup=0)
  method = WSegPC(
    TwoBranchNet(Points(), Pixels(), 8, 12),
    optax.sgd(1.0),
    weights,
    ema_keep=0.5,
  )
  expected, actual = assert_same_step(method, samples, teacher=True)
  for name in ("selected_3d", "selected_2d"):
    counted = getattr(expected, name)
    assert counted.sum() > 0
    np.testing.assert_array_equal(getattr(actual, name), counted)
