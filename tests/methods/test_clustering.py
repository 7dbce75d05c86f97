"""The method on a small network: devices, gradients, faults, long runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clustering_parts import (
  CLASSES,
  TERMS,
  RowNetwork,
  all_finite,
  gradient_of,
  make_batch,
  make_method,
  make_rows,
  run_steps,
)

from wsegpc_jax import checkpoints, parallel
from wsegpc_jax.methods import cluster_memory, cluster_step, common
from wsegpc_jax.methods.cluster_step import ClusterSettings, reference_settings
from wsegpc_jax.methods.clustering import LossWeights
from wsegpc_jax.types import IGNORE_LABEL

# The programs of this module are shared, so its tests stay in one process.
pytestmark = pytest.mark.xdist_group("clustering")

SHARES = (23, 0, 1, 36)
BATCH = make_batch((60,), *make_rows())
CONTRAST = ("queue_loss", "batch_loss", "center_loss")


@pytest.fixture(scope="module")
def history():
  """Three steps of all terms."""
  return run_steps(make_method(), BATCH, 3)


# Devices.


@pytest.mark.parametrize(
  "terms,compat",
  [
    (TERMS, ""),
    (("ce",), ""),
    (("lovasz",), ""),
    (("cluster",), "reference"),
  ],
)
def test_devices_equal_the_batch_in_one_piece(terms, compat):
  """Four uneven shares, one of them empty: loss, gradient, state, measures."""
  with jax.enable_x64(True):
    rows = make_rows(dtype=np.float64)
    method = make_method(*terms, compat=compat, optimizer=optax.sgd(0.3))
    whole = run_steps(method, make_batch((60,), *rows), 3, dtype=np.float64)
    split = run_steps(method, make_batch(SHARES, *rows), 3, dtype=np.float64)
  for (_, expected, metrics), (_, state, ours) in zip(
    whole, split, strict=True
  ):
    assert set(metrics) == set(ours)
    for name in metrics:
      # Some are counted in float32.
      rtol = 1e-9 if name in ("loss", *terms, *CONTRAST) else 1e-6
      np.testing.assert_allclose(ours[name], metrics[name], rtol=rtol)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
      state,
      expected,
    )
  moved = np.abs(
    whole[0][0].params["stem"]["kernel"] - state.params["stem"]["kernel"]
  )
  assert moved.max() > 1e-3
  if "cluster" in terms:
    assert metrics["batch_loss"] > 0.01 and metrics["queue_loss"] > 0.01


def test_gradient_of_each_contrast_over_devices():
  """Also the loss between anchors, which couples the devices' rows."""
  with jax.enable_x64(True):
    rows = make_rows(dtype=np.float64)
    method = make_method()
    split = make_batch(SHARES, *rows)
    # With something in the queue.
    state = run_steps(method, split, 2, dtype=np.float64)[-1][1]

    def losses(params, batch):
      logits, embedding, _ = method._forward(
        state, params, batch, parallel.AXIS
      )
      anchors, present = cluster_step.draw_anchors(
        jax.random.key(0),
        state.memory,
        batch,
        logits.argmax(-1),
        embedding,
        settings=method.settings,
        axis_name=parallel.AXIS,
      )
      terms = cluster_step.contrast(
        state.memory, anchors, present, settings=method.settings
      )
      values = jnp.stack([terms[name] for name in CONTRAST])
      return values, values

    def one(batch):
      gradients, values = jax.jacrev(losses, has_aux=True)(state.params, batch)
      return values, jax.lax.psum(gradients, parallel.AXIS)

    run = jax.jit(jax.vmap(one, axis_name=parallel.AXIS))
    value, whole = jax.device_get(run(make_batch((60,), *rows)))
    values, ours = jax.device_get(run(split))
  assert value.min() > 0.01
  np.testing.assert_allclose(values, np.repeat(value, 4, 0), rtol=1e-10)
  last = np.abs(whole["projection"]["last"]["kernel"])
  assert last.max((0, 2, 3)).min() > 1e-4
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, np.broadcast_to(b, a.shape), rtol=1e-8, atol=1e-12
    ),
    ours,
    whole,
  )


# The loss and its gradient.


def test_terms_add_up(history):
  for _, _, metrics in history:
    contrast = sum(metrics[k] for k in CONTRAST)
    np.testing.assert_allclose(metrics["cluster"], 0.5 * contrast, rtol=1e-6)
    loss = sum(metrics[k] for k in TERMS)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    assert metrics["anchors"] > 20 and 0 < metrics["with_positive"] <= 1
    assert 0 < metrics["cluster_entropy"] <= 1
  # Nothing is in the queue before the first step.
  assert history[0][2]["queue_loss"] == history[0][2]["queue_filled"] == 0
  assert history[1][2]["queue_loss"] > 0 and history[1][2]["queue_filled"] > 0


def test_weights_scale_the_terms():
  entry = run_steps(make_method(), BATCH, 1)[0]
  single = {t: run_steps(make_method(t), BATCH, 1)[0] for t in TERMS}
  for term in TERMS:
    np.testing.assert_allclose(single[term][2][term], entry[2][term], rtol=1e-6)
    assert single[term][2]["loss"] == single[term][2][term]
    others = set(TERMS) - {term}
    assert not others & set(single[term][2])
  head = gradient_of(entry)["projection"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    head,
    gradient_of(single["cluster"])["projection"],
  )
  own = {k: v for k, v in gradient_of(entry).items() if k != "projection"}
  parts = [
    {k: v for k, v in gradient_of(e).items() if k != "projection"}
    for e in single.values()
  ]
  added = jax.tree.map(lambda *a: sum(a), *parts)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), own, added
  )


@pytest.mark.parametrize("source", ["bottleneck", "decoder"])
def test_where_the_clustering_teaches(source):
  method = make_method("cluster", feature_source=source)
  gradient = gradient_of(run_steps(method, BATCH, 1)[0])
  for layer in ("stem", "down", "projection", "norm"):
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient[layer])) > 1e-5
  taught = [np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["up"])]
  assert all(taught) if source == "decoder" else not any(taught)
  assert not any(g.any() for g in jax.tree.leaves(gradient["classifier"]))


def test_an_anchor_turns_but_does_not_grow():
  """The gradient of an embedding is orthogonal to it; memory gets none."""
  rng = np.random.default_rng(0)
  state = run_steps(make_method(), BATCH, 2)[-1][1]
  batch = jax.tree.map(lambda a: a[0], BATCH)
  embedding = rng.standard_normal((63, 6)).astype(np.float32)
  settings = make_method().settings

  def loss(embedding, centers, queue):
    memory = state.memory.replace(centers=centers, queue=queue)
    anchors, present = cluster_step.draw_anchors(
      jax.random.key(0),
      memory,
      batch,
      batch.label,
      embedding,
      settings=settings,
      axis_name=parallel.AXIS,
    )
    terms = cluster_step.contrast(memory, anchors, present, settings=settings)
    return sum(terms.values())

  run = jax.vmap(
    jax.grad(loss, argnums=(0, 1, 2)),
    in_axes=(0, None, None),
    axis_name=parallel.AXIS,
  )
  turn, *rest = jax.jit(run)(
    embedding[None], state.memory.centers, state.memory.queue
  )
  turn = np.asarray(turn[0])
  assert (np.abs(turn).max(1) > 1e-4).sum() > 20
  along = (turn * embedding).sum(1)
  assert np.abs(along).max() < 1e-5 * np.abs(turn).max() * 6
  assert not np.asarray(rest[0]).any() and not np.asarray(rest[1]).any()


def test_a_dead_row_is_not_torn_apart():
  """An embedding of zero has no direction: no gradient, not one of 1e12."""
  rng = np.random.default_rng(0)
  state = run_steps(make_method(), BATCH, 2)[-1][1]
  batch = jax.tree.map(lambda a: a[0], BATCH)
  embedding = rng.standard_normal((63, 6)).astype(np.float32)
  dead = np.arange(63) % 3 == 0
  embedding[dead] = 0

  def loss(embedding):
    anchors, present = cluster_step.draw_anchors(
      jax.random.key(0),
      state.memory,
      batch,
      batch.label,
      embedding,
      settings=make_method().settings,
      axis_name=parallel.AXIS,
    )
    terms = cluster_step.contrast(
      state.memory, anchors, present, settings=make_method().settings
    )
    return sum(terms.values())

  run = jax.vmap(jax.value_and_grad(loss), axis_name=parallel.AXIS)
  value, gradient = jax.jit(run)(embedding[None])
  assert np.isfinite(value).all()
  assert not np.asarray(gradient)[0][dead].any()
  assert 1e-4 < np.abs(gradient).max() < 10


def test_padding_does_not_matter():
  features, label = make_rows()
  wide = make_batch((60,), features, label)
  view = wide.student
  pad = lambda a, fill: np.pad(  # noqa: E731
    a,
    ((0, 0), (0, 21), *((0, 0),) * (a.ndim - 2)),
    constant_values=fill,
  )
  wide = wide.replace(
    label=pad(wide.label, 1),
    student=view.replace(
      coords=pad(view.coords, -1),
      features=pad(view.features, -5),
      capacities=(84,) * 5,
    ),
  )
  expected = run_steps(make_method(), BATCH, 2)[-1]
  actual = run_steps(make_method(), wide, 2)[-1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    actual[1:],
    expected[1:],
  )


@pytest.mark.parametrize("rows", ["unlabelled", "none"])
@pytest.mark.parametrize("compat", ["", "reference"])
def test_nothing_to_learn_from(rows, compat):
  features, label = make_rows()
  nobody = np.full_like(label, IGNORE_LABEL)
  batch = make_batch((60,), features, nobody)
  if rows == "none":
    empty = batch.student.replace(count=np.zeros(1, np.int32))
    empty = empty.replace(coords=np.full_like(empty.coords, -1))
    batch = batch.replace(student=empty)
  before, after, metrics = run_steps(make_method(compat=compat), batch, 1)[0]
  assert metrics["loss"] == metrics["grad_norm"] == metrics["anchors"] == 0
  assert all_finite(metrics)
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, after.memory, before.memory)


# What it must not change.


def test_prediction_does_not_know_of_clustering():
  """The network starts and predicts as without: bit for bit."""
  plain, full = make_method("ce"), make_method()
  batch = jax.tree.map(lambda a: a[0], BATCH)
  one, two = plain.init(3, batch), full.init(3, batch)
  assert one.memory is None and "projection" not in one.params
  own = {k: v for k, v in two.params.items() if k != "projection"}
  jax.tree.map(np.testing.assert_array_equal, one.params, own)
  outputs = [
    jax.jit(method.predict)(
      {"params": state.params, "batch_stats": state.batch_stats}, batch
    )
    for method, state in ((plain, one), (full, two))
  ]
  assert set(outputs[1]) == {"logits_3d"}
  np.testing.assert_array_equal(
    outputs[0]["logits_3d"], outputs[1]["logits_3d"]
  )
  # The same program too: nothing is computed and thrown away.
  text = [
    jax.jit(method.predict)
    .lower({"params": one.params, "batch_stats": one.batch_stats}, batch)
    .as_text()
    for method in (plain, full)
  ]
  assert text[0] == text[1]


def test_a_run_that_is_continued(tmp_path):
  """Through a checkpoint, clusters included, bit for bit."""
  model = RowNetwork(dropout=0.3)
  method = make_method(
    model=model, optimizer=common.cosine_sgd(0.1, 6, warmup_steps=2), seed=5
  )
  whole = run_steps(method, BATCH, 4)
  saved = whole[1][1]
  with checkpoints.Checkpoints(tmp_path) as manager:
    manager.save(2, saved, host={})
    manager.wait()
    abstract = method.init(0, jax.tree.map(lambda a: a[0], BATCH))
    restored, _ = manager.restore(abstract)
  assert restored.memory.filled.any()
  rest = run_steps(method, BATCH, 2, state=jax.device_get(restored))
  jax.tree.map(np.testing.assert_array_equal, rest[-1][1:], whole[-1][1:])
  other = run_steps(
    make_method(model=model, optimizer=method.optimizer, seed=6), BATCH, 1
  )
  assert other[0][2]["ce"] != whole[0][2]["ce"]


# The released code.


def test_reference_settings():
  settings = reference_settings()
  assert settings.compat == "reference" and settings.short_classes == (7, 8)
  # Five anchors of each of 19 classes.
  assert settings.max_samples // 19 == 5
  fixed = ClusterSettings()
  assert min(fixed.max_samples // 19, fixed.max_views) == 100


def test_compat_of_a_step(history):
  """Random slots are positives; classes with few clusters use the first."""
  before, after, metrics = run_steps(make_method(compat="reference"), BATCH, 1)[
    0
  ]
  fixed = history[0][2]
  assert metrics["queue_loss"] > 0 == fixed["queue_loss"]
  assert metrics["batch_loss"] > fixed["batch_loss"]
  moved = (after.memory.centers != before.memory.centers).any(-1)
  np.testing.assert_array_equal(moved[2], [True, False, False])
  fixed_moved = history[0][1].memory.centers != history[0][0].memory.centers
  np.testing.assert_array_equal(fixed_moved.any(-1)[2], [True, True, False])
  assert after.memory.filled[0, 0] == 0 < after.memory.filled[0, 1]


@pytest.mark.parametrize("samples,low,high", [(20, 0, 0.1), (400, 0.85, 1)])
def test_how_many_anchors_have_a_positive(samples, low, high):
  """Five a class of 40 clusters: hardly any. A hundred: nine in ten."""
  rng = np.random.default_rng(0)
  settings = ClusterSettings(max_samples=samples)
  label = rng.integers(0, CLASSES, 2000)
  batch = make_batch((2000,), rng.standard_normal((2000, 4)), label)
  memory = cluster_memory.init_memory(
    0, num_classes=CLASSES, clusters=40, slots=10, channels=64
  )
  embedding = np.abs(rng.standard_normal((1, 2003, 64)).astype(np.float32))

  def one(batch, embedding):
    anchors, present = cluster_step.draw_anchors(
      jax.random.key(0),
      memory,
      batch,
      batch.label,
      embedding,
      settings=settings,
      axis_name=parallel.AXIS,
    )
    return cluster_step.measures(memory, anchors, present, settings=settings)

  measures = jax.jit(jax.vmap(one, axis_name=parallel.AXIS))(batch, embedding)
  assert measures["anchors"][0] == samples
  assert low <= measures["with_positive"][0] <= high


# Settings.


def test_cosine_sgd_is_torchs_nesterov():
  """g += decay p; b = momentum b + g; p -= lr (g + momentum b)."""
  optimizer = common.cosine_sgd(
    0.5, 4, warmup_steps=1, momentum=0.8, weight_decay=0.1
  )
  p, b = 2.0, 0.0
  params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
  for step, g in enumerate((1.0, -3.0, 0.5, 2.0)):
    updates, state = optimizer.update(jnp.asarray(g), state, params)
    params = optax.apply_updates(params, updates)
    g += 0.1 * p
    b = 0.8 * b + g
    lr = 0.5 * (1 if step == 0 else 0.5 * (1 + np.cos(np.pi * (step - 1) / 4)))
    p -= lr * (g + 0.8 * b)
    np.testing.assert_allclose(params, p, rtol=1e-5)


def test_wrong_settings_are_refused():
  batch = jax.tree.map(lambda a: a[0], BATCH)
  for change, word in (
    ({"compat": "released"}, "compat"),
    ({"clusters": 0}, "clusters"),
    ({"max_enqueue": 9}, "queue_slots"),
    ({"feature_source": "stem"}, "feature_source"),
  ):
    with pytest.raises(ValueError, match=word):
      make_method(**change)
  for change in ({"max_samples": 3}, {"short_classes": (CLASSES,)}):
    with pytest.raises(ValueError, match=next(iter(change))):
      make_method(**change).init(0, batch)
  for wrong in ((0, 0, 0), (1, -1, 1)):
    with pytest.raises(ValueError, match="weights"):
      LossWeights(*wrong)
