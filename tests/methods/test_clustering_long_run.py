"""A few hundred steps on blobs: clusters find them, and no number goes bad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustering_parts import (
  RowHead,
  RowNetwork,
  all_finite,
  make_batch,
  make_method,
)

from wsegpc_jax import parallel
from wsegpc_jax.methods import cluster_step, common

# The programs of this module are shared, so its tests stay in one process.
pytestmark = pytest.mark.xdist_group("clustering_long_run")

CONTRAST = ("queue_loss", "batch_loss", "center_loss")
STEPS = 300


def blobs(seed, number=120):
  """Two classes of three blobs each on the sphere: rows, class, blob."""
  rng = np.random.default_rng(seed)
  corners = np.eye(6)
  blob = rng.integers(0, 6, number)
  x = corners[blob] + 0.15 * rng.standard_normal((number, 6))
  return x.astype(np.float32), (blob % 2).astype(np.int32), blob


def train(method, batches):
  """The last state and the metrics of every step, in one program."""
  first = jax.tree.map(lambda a: a[0, 0], batches)
  state = jax.tree.map(jnp.asarray, method.init(0, first))
  devices = jax.vmap(
    lambda s, b: method.train_step(s, b, axis_name=parallel.AXIS),
    in_axes=(None, 0),
    axis_name=parallel.AXIS,
  )

  def step(state, batch):
    return jax.tree.map(lambda a: a[0], devices(state, batch))

  run = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))
  return jax.device_get(run(state, batches))


@pytest.fixture(scope="module")
def trained():
  """Cross-entropy without and with clustering, 300 steps on the blobs."""
  steps = [make_batch((120,), *blobs(i)[:2]) for i in range(STEPS)]
  batches = jax.tree.map(lambda *a: np.stack(a), *steps)
  out = {}
  for terms in (("ce",), ("ce", "cluster")):
    method = make_method(
      *terms,
      model=RowNetwork(width=12),
      head=RowHead(width=8),
      optimizer=common.cosine_sgd(0.1, STEPS),
      short_classes=(),
      max_samples=60,
      max_views=30,
    )
    out[terms] = method, *train(method, batches)
  return out


def test_clusters_find_the_blobs(trained):
  """The sub-classes of new rows are blobs; nobody told it of them."""
  method, state, _ = trained["ce", "cluster"]
  x, label, blob = blobs(1000)
  batch = make_batch((120,), x, label)

  def anchors_of(batch):
    logits, embedding, _ = method._forward(
      state, state.params, batch, parallel.AXIS
    )
    rows = jnp.arange(embedding.shape[0], dtype=embedding.dtype)
    embedding = jnp.where(rows[:, None] < 120, embedding, 0)
    anchors, _ = cluster_step.draw_anchors(
      jax.random.key(0),
      state.memory,
      batch,
      logits.argmax(-1),
      embedding,
      settings=method.settings,
      axis_name=parallel.AXIS,
    )
    return anchors, embedding

  anchors, embedding = jax.device_get(
    jax.tree.map(
      lambda a: a[0],
      jax.jit(jax.vmap(anchors_of, axis_name=parallel.AXIS))(batch),
    )
  )
  unit = embedding / np.maximum(
    np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12
  )
  right = total = 0
  for c in (0, 1):
    for k in range(3):
      own = anchors.mask & (anchors.label == c) & (anchors.cluster == k)
      where = [(unit @ f)[:120].argmax() for f in anchors.feature[own]]
      right += np.bincount(blob[where], minlength=6).max()
      total += len(where)
  assert total == 60
  assert right / total > 0.9


def test_cross_entropy_does_not_suffer(trained):
  without = trained["ce",][2]["ce"][-20:].mean()
  beside = trained["ce", "cluster"][2]["ce"][-20:].mean()
  assert without < 0.05 and beside < 0.05


def test_no_number_goes_bad(trained):
  _, state, metrics = trained["ce", "cluster"]
  assert all_finite((state, metrics))
  for name in CONTRAST:
    assert metrics[name][-20:].mean() < 0.8 * metrics[name][1:21].mean(), name
  assert metrics["with_positive"].min() == 1
  assert metrics["cluster_entropy"][-20:].min() > 0.9
  assert metrics["queue_filled"][-1] == 6 / 12
  norms = np.linalg.norm(state.memory.centers, axis=-1)
  np.testing.assert_allclose(norms, 1, rtol=1e-5)
