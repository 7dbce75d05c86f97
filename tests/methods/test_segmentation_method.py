"""Stage 3's step against cross-entropy re-derived from the network's logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax import parallel, types
from wsegpc_jax.methods import common
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.models import minkunet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse import voxelize
from wsegpc_jax.types import IGNORE_LABEL

# The programs of this module are shared, so its tests stay in one process.
pytestmark = pytest.mark.xdist_group("segmentation")

K = 4
CAPACITIES = (200, 128, 64, 32, 16)
LR, STEPS, DECAY, MOMENTUM = 0.2, 5, 0.02, 0.9
# Compiling is most of the time here, and programs run a few times only.
FAST_COMPILE = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
}


@pytest.fixture(scope="module", autouse=True)
def small_network():
  """Blocks at both ends only: every kind of layer, little to compile."""
  entry = ((1, 0, 0, 0, 0, 0, 0, 1), *minkunet.ARCHITECTURES["14A"][1:])
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(minkunet.ARCHITECTURES, "ends", entry)
    yield


def network(axis_name):
  return minkunet.MinkUNet("ends", K, width=4, axis_name=axis_name)


def make_method():
  optimizer = common.sgd(LR, STEPS, momentum=MOMENTUM, weight_decay=DECAY)
  return Segmentation(network(parallel.AXIS), optimizer)


def make_batch():
  """Two scenes, a third of the voxels unlabelled; padding has labels."""
  rng = np.random.default_rng(0)
  coords = []
  for scene in range(2):
    place = rng.uniform(0, 12, (80, 3)) * [1, 1, 0.3]
    voxels = voxelize.voxelize(place, 1.0).coords
    coords.append(np.c_[np.full(len(voxels), scene), voxels])
  coords = np.concatenate(coords).astype(np.int32)
  count, rows = len(coords), CAPACITIES[0]
  features = rng.normal(size=(count, 6)).astype(np.float32)
  label = rng.integers(0, K, rows).astype(np.int32)
  label[:count:3] = IGNORE_LABEL
  padding = ((0, rows - count), (0, 0))
  return types.Batch(
    student=types.View(
      np.pad(coords, padding, constant_values=-1),
      np.pad(features, padding),
      np.int32(count),
      CAPACITIES,
    ),
    label=label,
    scene_mask=np.ones(2, bool),
    tags=np.ones((2, K), bool),
  )


BATCH = make_batch()
LABELLED = np.flatnonzero(
  (np.arange(CAPACITIES[0]) < BATCH.student.count)
  & (BATCH.label != IGNORE_LABEL)
)


def compiled(function, *args):
  return function.lower(*args).compile(FAST_COMPILE)


def stacked(batch):
  return jax.tree.map(lambda a: a[None], batch)


@pytest.fixture(scope="module")
def start(small_network):
  return jax.device_get(make_method().init(0, BATCH))


@pytest.fixture(scope="module")
def step(start):
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
  function = parallel.data_parallel(make_method().train_step, mesh=mesh)
  program = compiled(function, start, stacked(BATCH))

  def run(state, batch=BATCH):
    copies = jax.tree.map(np.copy, state)
    return jax.device_get(program(copies, stacked(batch)))

  return run


@pytest.fixture(scope="module")
def oracle(start):
  """(gradient of the mean cross-entropy, (logits, batch statistics))."""

  def loss(params, stats):
    view = BATCH.student
    (logits, _), new = network(None).apply(
      {"params": params, "batch_stats": stats},
      view.features,
      plan_lib.build_plan(view.coords, view.count, CAPACITIES),
      train=True,
      mutable=["batch_stats"],
    )
    chosen = logits[LABELLED]
    right = chosen[np.arange(len(LABELLED)), BATCH.label[LABELLED]]
    entropy = jax.scipy.special.logsumexp(chosen, axis=1) - right
    return jnp.mean(entropy), (logits, new["batch_stats"])

  program = compiled(
    jax.jit(jax.grad(loss, has_aux=True)), start.params, start.batch_stats
  )
  return lambda state: jax.device_get(program(state.params, state.batch_stats))


@pytest.fixture(scope="module")
def run(step, oracle, start):
  """(state before, the oracle's words, state after, metrics), three times."""
  history, state = [], start
  for _ in range(3):
    after, metrics = step(state)
    history.append((state, oracle(state), after, metrics))
    state = after
  return history


def assert_close(actual, expected, tolerance):
  """Leaf by leaf, relative to the largest entry of the leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, a), b in zip(leaves, jax.tree.leaves(actual), strict=True):
    error = np.abs(b - a).max() / max(np.abs(a).max(), 1e-6)
    assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"


def test_metrics(run):
  for _, (gradient, (logits, _)), _, metrics in run:
    losses, hits = [], []
    for row in LABELLED:
      weights = np.exp(logits[row].astype(np.float64))
      losses.append(-np.log(weights[BATCH.label[row]] / weights.sum()))
      hits.append(logits[row].argmax() == BATCH.label[row])
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(hits), rtol=1e-6)
    square = sum(np.square(g).sum() for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics["grad_norm"], square**0.5, rtol=1e-3)


def test_update_is_torchs_sgd(run):
  """g += decay * p; b = momentum * b + g; p -= lr * b."""
  buffer = jax.tree.map(np.zeros_like, run[0][0].params)
  for index, (before, (gradient, _), after, _) in enumerate(run):
    lr = LR * (1 - index / (STEPS + 1)) ** 0.9
    buffer = jax.tree.map(
      lambda b, g, p: MOMENTUM * b + g + DECAY * p,
      buffer,
      gradient,
      before.params,
    )
    update = jax.tree.map(np.subtract, before.params, after.params)
    wanted = jax.tree.map(lambda b, lr=lr: lr * b, buffer)
    assert_close(update, wanted, 5e-3)
    assert after.step == index + 1


def test_statistics(run):
  for _, (_, (_, stats)), after, _ in run:
    assert_close(after.batch_stats, stats, 1e-4)


def test_there_is_no_teacher(start):
  assert start.ema_params is start.ema_batch_stats is None
  assert start.selected_3d is start.selected_2d is None


def test_nothing_labelled(step, start):
  """No loss: only the decay moves the parameters."""
  unlabelled = np.full_like(BATCH.label, IGNORE_LABEL)
  after, metrics = step(start, BATCH.replace(label=unlabelled))
  assert metrics["loss"] == metrics["accuracy"] == 0
  wanted = jax.tree.map(lambda p: p * (1 - LR * DECAY), start.params)
  assert_close(after.params, wanted, 1e-6)


def test_an_empty_batch(step, start):
  view = BATCH.student.replace(
    coords=np.full_like(BATCH.student.coords, -1),
    features=np.zeros_like(BATCH.student.features),
    count=np.int32(0),
  )
  after, metrics = step(start, BATCH.replace(student=view))
  assert metrics["loss"] == 0
  wanted = jax.tree.map(lambda p: p * (1 - LR * DECAY), start.params)
  assert_close(after.params, wanted, 1e-6)
  assert_close(after.batch_stats, start.batch_stats, 1e-7)


def test_predict_is_the_network_in_evaluation_mode(run):
  _, _, state, _ = run[-1]  # with statistics that are not those of the start
  variables = {"params": state.params, "batch_stats": state.batch_stats}

  def both(variables, batch):
    view = batch.student
    plan = plan_lib.build_plan(view.coords, view.count, CAPACITIES)
    logits, _ = network(None).apply(variables, view.features, plan, train=False)
    return logits, make_method().predict(variables, batch)

  logits, out = compiled(jax.jit(both), variables, BATCH)(variables, BATCH)
  assert set(out) == {"logits_3d"}
  np.testing.assert_allclose(out["logits_3d"], logits, atol=1e-5)
  assert np.std(logits) > 0.01
