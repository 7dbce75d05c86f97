"""Anchors: closed-form quotas, uniformity, and one pool over all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax import types
from wsegpc_jax.methods import anchor_sampling

AXIS = "devices"
C, ROWS = 4, 120


def batch_of(label, count):
  """One device's share, of which only labels and the count are read."""
  rows = len(label)
  view = types.View(
    np.zeros((rows, 4), np.int32),
    np.zeros((rows, 1), np.float32),
    np.int32(count),
    (rows,) * 5,
  )
  return types.Batch(
    view, np.asarray(label, np.int32), np.ones(1, bool), np.ones((1, C), bool)
  )


@functools.lru_cache
def program(max_samples, max_views):
  """seeds, batches [D, ...], predictions [D, M] to samples of device 0."""

  def one(seed, batch, predicted):
    return anchor_sampling.sample_anchors(
      jax.random.key(seed),
      batch,
      predicted,
      num_classes=C,
      max_samples=max_samples,
      max_views=max_views,
      axis_name=AXIS,
    )

  devices = jax.vmap(one, in_axes=(None, 0, 0), axis_name=AXIS)
  return jax.jit(jax.vmap(devices, in_axes=(0, None, None)))


def draw(label, predicted, counts, *, seeds=(0,), max_samples=60, max_views=15):
  """Samples [seeds, ...]; all devices must agree on them."""
  batches = jax.tree.map(
    lambda *a: np.stack(a),
    *[batch_of(x, n) for x, n in zip(label, counts, strict=True)],
  )
  run = program(max_samples, max_views)
  out = jax.device_get(run(np.asarray(seeds), batches, np.asarray(predicted)))
  for leaf in jax.tree.leaves(out):
    for device in range(1, leaf.shape[1]):
      np.testing.assert_array_equal(leaf[:, 0], leaf[:, device])
  return jax.tree.map(lambda a: a[:, 0], out)


def scene(sizes, seed=0):
  """Labels and predictions with (hard, easy) voxels of each class, mixed."""
  rng = np.random.default_rng(seed)
  label, predicted = np.full(ROWS, 255), rng.integers(0, C, ROWS)
  place = iter(rng.permutation(ROWS - 10))
  for c, (hard, easy) in enumerate(sizes):
    for i in range(hard + easy):
      row = next(place)
      label[row] = c
      predicted[row] = (c + 1 + i % (C - 1)) % C if i < hard else c
  # The last ten rows are padding with labels.
  label[-10:] = 0
  return label, predicted, ROWS - 10


def released_rule(hard, easy, views):
  """The cases of the released code, spelt out."""
  if hard >= views / 2 and easy >= views / 2:
    return views // 2, views - views // 2
  if hard >= views / 2:
    return min(views - easy, hard), easy
  if easy >= views / 2:
    return hard, min(views - hard, easy)
  return hard, easy


def test_quotas_equal_the_cases():
  size = 45
  hard, easy, views = np.mgrid[:size, :size, :30]
  ours = anchor_sampling.quotas(*map(jnp.asarray, (hard, easy, views)))
  theirs = [
    released_rule(*x)
    for x in zip(hard.ravel(), easy.ravel(), views.ravel(), strict=True)
  ]
  np.testing.assert_array_equal(
    np.stack(ours, -1).reshape(-1, 2), np.asarray(theirs)
  )


SIZES = [
  ((0, 0), (0, 0), (0, 0), (0, 0)),
  ((0, 1), (0, 0), (0, 0), (0, 0)),
  ((30, 40), (0, 0), (0, 0), (0, 0)),
  ((3, 40), (30, 2), (0, 0), (1, 1)),
  ((8, 8), (7, 8), (0, 9), (9, 0)),
  ((20, 20), (20, 5), (5, 20), (4, 3)),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("max_samples", [60, 21])
def test_only_what_the_quotas_ask_for(sizes, max_samples):
  label, predicted, count = scene(sizes)
  sample = draw([label], [predicted], [count], max_samples=max_samples)
  present = sum(h + e > 0 for h, e in sizes)
  views = min(max_samples // max(present, 1), 15)
  for c, (hard, easy) in enumerate(sizes):
    mask = sample.mask[0, c]
    rows = sample.row[0, c][mask]
    take_hard, take_easy = released_rule(hard, easy, views)
    assert sample.hard[0, c] == take_hard
    assert mask.sum() == take_hard + take_easy
    assert not mask[mask.sum() :].any()
    assert len(set(rows.tolist())) == len(rows)
    assert (rows < count).all() and (label[rows] == c).all()
    wrong = predicted[rows] != c
    assert wrong[:take_hard].all() and not wrong[take_hard:].any()
    assert sample.present[0, c] == (hard + easy > 0)


def test_every_voxel_has_the_same_chance():
  """Chi-square over 2000 seeds, in each group that is not taken whole."""
  label, predicted, count = scene(((20, 20), (20, 5), (5, 20), (4, 3)))
  seeds = np.arange(2000)
  sample = draw([label], [predicted], [count], seeds=seeds)
  drawn = np.zeros(ROWS, int)
  np.add.at(drawn, sample.row[sample.mask], 1)
  for c in range(3):
    for wrong in (False, True):
      rows = np.flatnonzero(
        (label == c) & ((predicted != c) == wrong) & (np.arange(ROWS) < count)
      )
      expected = drawn[rows].sum() / len(rows)
      if expected == len(seeds):
        continue
      # Draws without replacement: their variance is p (1 - p), and the
      # n - 1 degrees of freedom share it.
      p = expected / len(seeds)
      n = len(rows)
      chi2 = ((drawn[rows] - expected) ** 2).sum() / (
        len(seeds) * p * (1 - p) * n / (n - 1)
      )
      assert chi2 < (n - 1) + 4 * (2 * (n - 1)) ** 0.5, (c, wrong)


def test_another_key_another_sample():
  label, predicted, count = scene(((20, 20), (0, 0), (0, 0), (0, 0)))
  sample = draw([label], [predicted], [count], seeds=(0, 1, 0))
  assert (sample.row[0] != sample.row[1]).any()
  np.testing.assert_array_equal(sample.row[0], sample.row[2])


@pytest.mark.parametrize("shares", [(41, 0, 1, 68), (0, 0, 0, 110), (28,) * 4])
def test_devices_draw_from_one_pool(shares):
  """Uneven shares, empty ones among them: the sample of the whole batch."""
  label, predicted, count = scene(((20, 20), (12, 5), (5, 20), (4, 3)))
  count = min(count, sum(shares))
  whole = draw([label], [predicted], [count])
  room = max(shares) + 3
  labels, predictions = np.zeros((4, room), int), np.zeros((4, room), int)
  counts = np.diff(np.minimum(np.cumsum((0, *shares)), count))
  first = np.cumsum((0, *counts[:-1]))
  for d, (n, at) in enumerate(zip(counts, first, strict=True)):
    labels[d, :n] = label[at : at + n]
    predictions[d, :n] = predicted[at : at + n]
  split = draw(labels, predictions, counts)
  np.testing.assert_array_equal(split.mask, whole.mask)
  np.testing.assert_array_equal(split.hard, whole.hard)
  rows = first[split.device] + split.row
  np.testing.assert_array_equal(rows[split.mask], whole.row[whole.mask])


def test_gathered_rows_and_their_gradient():
  """Values are everyone's, gradients the owner's, together counted once."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 6, 2)).astype(np.float32)
  sample = anchor_sampling.Sample(
    device=np.array([[0, 2, 2], [2, 1, 0]]),
    row=np.array([[5, 0, 3], [1, 0, 2]]),
    mask=np.array([[True, True, False], [True, False, False]]),
    hard=np.zeros(2, int),
    present=np.ones(2, bool),
  )
  weight = rng.standard_normal((2, 3, 2)).astype(np.float32)

  def loss(x):
    out = anchor_sampling.gather_anchors(x, sample, axis_name=AXIS)
    return (out * out * weight).sum(), out

  gradient, out = jax.vmap(jax.grad(loss, has_aux=True), axis_name=AXIS)(x)
  expected = np.zeros((2, 3, 2), np.float32)
  expected[0, :2] = x[0, 5], x[2, 0]
  expected[1, 0] = x[2, 1]
  for device in range(3):
    np.testing.assert_array_equal(out[device], expected)
  into = np.zeros_like(x)
  into[0, 5] = 2 * x[0, 5] * weight[0, 0]
  into[2, 0] = 2 * x[2, 0] * weight[0, 1]
  into[2, 1] = 2 * x[2, 1] * weight[1, 0]
  np.testing.assert_allclose(gradient, into, rtol=1e-6)
