"""Steps of WSegPC against losses re-derived from the networks' outputs."""

import dataclasses

import jax
import numpy as np
import pytest
import wsegpc_oracle as oracle_lib
from wsegpc_oracle import (
  BATCH,
  CAPACITIES,
  DECAY,
  LR,
  MOMENTUM,
  PIXELS,
  STEPS,
  TERMS,
  VOXELS,
  WEIGHTS,
  K,
  as_integers,
  assert_close,
  average,
  make_method,
)

from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models import minkunet

# The programs of this module are shared, so its tests stay in one process.
pytestmark = pytest.mark.xdist_group("wsegpc")


@pytest.fixture(scope="module", autouse=True)
def small_network():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(minkunet.ARCHITECTURES, "ends", oracle_lib.ARCHITECTURE)
    yield


@pytest.fixture(scope="module")
def start(small_network):
  return oracle_lib.make_state(make_method())


@pytest.fixture(scope="module")
def oracle(start):
  return oracle_lib.Oracle(start)


@pytest.fixture(scope="module")
def step(start):
  return oracle_lib.compile_step(make_method(), start)


def run_steps(step, state, expect, number):
  """(state before, what is expected, state after, metrics) of each step."""
  history = []
  for index in range(number):
    after, metrics = step(state)
    history.append((state, expect(state, index), after, metrics))
    state = after
  return history


@pytest.fixture(scope="module")
def run(step, oracle, start):
  return run_steps(step, start, lambda state, _: oracle.expect(state), 3)


@pytest.fixture(scope="module")
def compat_run(oracle, start):
  """The reference's faults, in a first epoch of one step and in a second."""

  def expect(state, index):
    return oracle.expect(state, compat=True, teacher_trains=index == 0)

  step = oracle_lib.compile_step(make_method(compat_steps=1), start)
  return run_steps(step, start, expect, 2)


def check_metrics(history):
  for _, expected, _, metrics in history:
    assert set(metrics) == set(expected.metrics)
    for name, value in expected.metrics.items():
      np.testing.assert_allclose(
        metrics[name], value, rtol=5e-4, atol=1e-6, err_msg=name
      )


def check_updates(history):
  """torch's SGD: g += decay * p; b = momentum * b + g; p -= lr * b."""
  buffer = jax.tree.map(np.zeros_like, history[0][0].params)
  for index, (before, expected, after, _) in enumerate(history):
    lr = LR * (1 - index / (STEPS + 1)) ** 0.9
    buffer = jax.tree.map(
      lambda b, g, p: MOMENTUM * b + g + DECAY * p,
      buffer,
      expected.gradient,
      before.params,
    )
    update = jax.tree.map(np.subtract, before.params, after.params)
    wanted = jax.tree.map(lambda b, lr=lr: lr * b, buffer)
    assert_close(update, wanted, 5e-3, f"step {index} ")
    assert after.step == index + 1


class TestStep:
  def test_the_batch_is_worth_testing(self, run):
    for _, expected, _, _ in run:
      for (label, mask), n in zip(
        expected.targets, (VOXELS, 3 * PIXELS), strict=True
      ):
        assert 0.1 * n < mask.sum() < 0.95 * n
        assert len(set(label[mask])) > 1
    for path, g in jax.tree_util.tree_leaves_with_path(run[1][1].gradient):
      assert np.abs(g).max() > 0, jax.tree_util.keystr(path)

  def test_every_term(self, run):
    check_metrics(run)

  def test_warm_up_starts_at_zero_for_cam_only(self, run):
    first, second = run[0][3], run[1][3]
    for name in TERMS:
      assert (first[name] == 0) == name.startswith("cam"), name
      assert second[name] > 0

  def test_counters(self, run):
    for before, expected, after, _ in run:
      for name, (label, mask) in zip(
        ("selected_3d", "selected_2d"), expected.targets, strict=True
      ):
        counted = as_integers(getattr(after, name)) - as_integers(
          getattr(before, name)
        )
        np.testing.assert_array_equal(
          counted, np.bincount(label[mask], minlength=K)
        )

  def test_update_is_torchs_sgd(self, run):
    check_updates(run)

  def test_student_statistics(self, run):
    for _, expected, after, _ in run:
      assert_close(after.batch_stats, expected.batch_stats, 1e-4)

  def test_teacher_is_a_moving_average(self, run):
    for before, _, after, _ in run:
      moved = average(before.ema_params, after.params)
      assert_close(after.ema_params, moved, 1e-6)
      moved = average(before.ema_batch_stats, after.batch_stats)
      assert_close(after.ema_batch_stats, moved, 1e-6)

  def test_no_pseudo_labels_without_a_tag(self, step, start):
    """A scene whose tags were all dropped has no class to be labelled with."""
    tags = BATCH.tags.copy()
    tags[0] = False
    fresh = start.replace(selected_3d=np.zeros((2, K), np.int32))
    state, _ = step(fresh, BATCH.replace(tags=tags))
    labelled = as_integers(state.selected_3d)
    assert labelled[1] + labelled[2] > 0  # of the other scene
    assert labelled[0] == labelled[3] == labelled[4] == 0


class TestCompat:
  def test_every_term(self, compat_run):
    check_metrics(compat_run)

  def test_the_faults_show(self, compat_run, run):
    """From the same state, CMG and RPC differ from the fixed behaviour."""
    faulty, fixed = compat_run[0][3], run[0][3]
    for name in TERMS[2:]:
      assert abs(faulty[name] / fixed[name] - 1) > 1e-3, name

  def test_updates(self, compat_run):
    check_updates(compat_run)

  def test_teacher_statistics(self, compat_run):
    """In batch-statistics mode the teacher's own move before the average."""
    for _, expected, after, _ in compat_run:
      moved = average(expected.teacher_stats, after.batch_stats)
      assert_close(after.ema_batch_stats, moved, 1e-4)
    before, first, _, _ = compat_run[0]
    with pytest.raises(AssertionError):
      assert_close(first.teacher_stats, before.ema_batch_stats, 1e-2)


class TestSettings:
  def test_defaults_are_those_of_the_method(self):
    expected = LossWeights(*(1, 1, 0.05, 0.05, 1, 1), 2400, 2400, 2400)
    assert LossWeights() == expected
    method = WSegPC(oracle_lib.network(None), None)
    assert (method.temperature, method.p_cutoff) == (0.07, 0.8)
    assert (method.ema_keep, method.compat_steps) == (0.999, None)

  def test_first_state(self):
    state = jax.device_get(make_method().init(0, BATCH))
    assert state.step == 0
    assert_close(state.ema_params, state.params, 1e-12)
    assert_close(state.ema_batch_stats, state.batch_stats, 1e-12)
    for counters in (state.selected_3d, state.selected_2d):
      assert counters.shape == (2, K) and not counters.any()

  @pytest.mark.parametrize(
    ("off", "left"), [(TERMS[4:], TERMS[:4]), (TERMS[2:], TERMS[:2])]
  )
  def test_losses_that_are_off_are_absent(self, off, left, start):
    weights = dataclasses.replace(WEIGHTS, **dict.fromkeys(off, 0.0))
    step = oracle_lib.data_parallel(make_method(weights=weights))
    _, metrics = jax.eval_shape(step, start, oracle_lib.stacked(BATCH))
    assert set(metrics) == {*left, "loss", "grad_norm"}

  def test_predict_is_the_network_in_evaluation_mode(self, oracle, start):
    outputs, predicted = oracle.evaluate(start.params, start.batch_stats, BATCH)
    (logits_3d, _), (logits_2d, _), _ = outputs
    np.testing.assert_allclose(predicted["logits_3d"], logits_3d, atol=1e-4)
    np.testing.assert_allclose(predicted["logits_2d"], logits_2d, atol=1e-4)

  def test_predict_without_images(self, start):
    variables = {"params": start.params, "batch_stats": start.batch_stats}
    batch = BATCH.replace(images=None, pairs=None)
    out = jax.eval_shape(make_method().predict, variables, batch)
    shapes = {name: leaf.shape for name, leaf in out.items()}
    assert shapes == {"logits_3d": (CAPACITIES[0], K)}
