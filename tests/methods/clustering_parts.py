"""A small network of SPVCNN's interface, batches and steps to cluster with."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax

from wsegpc_jax import parallel, types
from wsegpc_jax.methods.cluster_step import ClusterSettings
from wsegpc_jax.methods.clustering import Clustering, LossWeights
from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm
from wsegpc_jax.types import IGNORE_LABEL

CLASSES, CHANNELS = 4, 4
TERMS = ("ce", "lovasz", "cluster")
SGD = optax.sgd(1.0)
SMALL = {
  "clusters": 3,
  "short_classes": (2,),
  "short_clusters": 2,
  "max_samples": 40,
  "max_views": 8,
  "center_keep": 0.9,
  "queue_slots": 4,
  "max_enqueue": 2,
}


class RowNetwork(nn.Module):
  """Dense layers over rows; only batch norm lets rows see each other."""

  classes: int = CLASSES
  width: int = 8
  dropout: float = 0.0
  axis_name: str | None = parallel.AXIS

  @nn.compact
  def __call__(self, x, plan, *, train):
    valid = plan.levels[0].valid
    x = MaskedBatchNorm(axis_name=self.axis_name, name="norm")(
      nn.Dense(self.width, name="stem")(x), valid, train=train
    )
    x = nn.relu(nn.Dense(self.width, name="down")(nn.relu(x)))
    bottleneck = x
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    decoder = nn.relu(nn.Dense(self.width, name="up")(x))
    logits = nn.Dense(self.classes, name="classifier")(decoder)
    return logits, {"bottleneck": bottleneck, "decoder": decoder}


class RowHead(nn.Module):
  """A projection head without the last ReLU."""

  width: int = 6
  axis_name: str | None = parallel.AXIS

  @nn.compact
  def __call__(self, x, mask, *, train):
    x = nn.Dense(self.width, name="first")(x)
    norm = MaskedBatchNorm(axis_name=self.axis_name, name="norm")
    x = nn.relu(norm(x, mask, train=train))
    return nn.Dense(self.width, name="last")(x)


def weights(*terms):
  """Of these terms only."""
  return LossWeights(**{name: float(name in terms) for name in TERMS})


def make_method(*terms, optimizer=None, model=None, head=None, **settings):
  """All terms by default, and SGD of rate 1: its step is the gradient."""
  own = {
    k: settings.pop(k) for k in ("feature_source", "seed") if k in settings
  }
  return Clustering(
    model or RowNetwork(),
    head or RowHead(),
    optimizer or SGD,
    weights(*(terms or TERMS)),
    ClusterSettings(**{**SMALL, **settings}),
    **own,
  )


def make_batch(shares, features, label):
  """Rows in a row over devices, [D, ...]; padding has labels and features."""
  rows = max(shares) + 3
  devices, at = [], 0
  for n in shares:
    coords = np.full((rows, 4), -1, np.int32)
    coords[:n, 0] = 0
    coords[:n, 1:] = np.arange(n)[:, None]
    x = np.full((rows, features.shape[1]), 9, features.dtype)
    y = np.zeros(rows, np.int32)
    x[:n], y[:n] = features[at : at + n], label[at : at + n]
    devices.append(
      types.Batch(
        types.View(coords, x, np.int32(n), (rows,) * 5),
        y,
        np.ones(1, bool),
        np.ones((1, CLASSES), bool),
      )
    )
    at += n
  return jax.tree.map(lambda *a: np.stack(a), *devices)


def make_rows(number=60, seed=0, dtype=np.float32):
  """Features and labels; a tenth is not labelled, class 3 is rare."""
  rng = np.random.default_rng(seed)
  label = rng.choice(CLASSES, number, p=[0.4, 0.3, 0.25, 0.05])
  features = rng.standard_normal((number, CHANNELS)) + np.eye(4)[label]
  label[rng.random(number) < 0.1] = IGNORE_LABEL
  return features.astype(dtype), label.astype(np.int32)


@functools.lru_cache
def step_of(method):
  """Its step, compiled once for equal methods."""
  return parallel.data_parallel(method.train_step, runner="vmap")


def run_steps(
  method, batch, number, state=None, dtype=None, compiler_options=None
):
  """States and metrics after each of some steps, all devices by vmap.

  Args:
    method: whose train_step.
    batch: [D, ...], the same in every step.
    number: of steps.
    state: to start from; fresh by default.
    dtype: of all floats.
    compiler_options: XLA's, other than the usual ones.
  """
  state = state or method.init(0, jax.tree.map(lambda a: a[0], batch))
  if dtype is not None:
    state = jax.tree.map(
      lambda a: a.astype(dtype) if a.dtype.kind == "f" else a,
      jax.device_get(state),
    )
  step = step_of(method)
  if compiler_options is not None:
    step = step.lower(state, batch).compile(compiler_options)
  history = []
  for _ in range(number):
    before = jax.tree.map(np.copy, state)
    state, metrics = jax.device_get(step(state, batch))
    history.append((before, state, metrics))
  return history


def gradient_of(entry):
  """The gradient of a step of SGD with rate 1."""
  before, after, _ = entry
  return jax.tree.map(np.subtract, before.params, after.params)


def all_finite(tree):
  return all(np.isfinite(np.asarray(a)).all() for a in jax.tree.leaves(tree))
