"""A run that starts from a file of weights."""

import logging

import jax
import numpy as np
import pytest
from weight_cases import assert_same, heads, narrow, prefixed, save

from wsegpc_jax import defaults, experiment, inputs, train
from wsegpc_jax.interop import weights
from wsegpc_jax.types import DataError


@pytest.fixture(scope="module")
def state():
  config = defaults.get_tiny()
  steps = experiment.Schedule(1, 1, 0)
  method = experiment.build_method(config, 5, steps)
  layout = inputs.layout(config, slots=1)
  return experiment.first_state(config, method, layout, 5)


class TestTrainingStart:
  @pytest.fixture
  def file(self, state, tmp_path):
    """(path, student, teacher): both other than the state's."""
    own = {"params": state.params, "batch_stats": state.batch_stats}
    student = jax.tree.map(lambda a: np.abs(a) + 1, own)
    teacher = jax.tree.map(lambda a: np.abs(a) + 2, own)
    path = str(tmp_path / "model_best.pth.tar")
    save(
      path,
      {
        "epoch": 50,
        "state_dict": prefixed("module.", weights.to_state_dict(student)),
        "ema_state_dict": weights.to_state_dict(teacher),
        "best_iou": 0.25,
      },
    )
    return path, student, teacher

  def check(self, state, new, student, teacher):
    assert_same(new.params, student["params"])
    assert_same(new.batch_stats, student["batch_stats"])
    assert_same(new.ema_params, teacher["params"])
    assert_same(new.ema_batch_stats, teacher["batch_stats"])
    assert new.opt_state is state.opt_state and new.step == 0
    # The step donates its buffers: none may be in the state twice.
    leaves = jax.tree.leaves((new.params, new.ema_params))
    assert len({id(leaf) for leaf in leaves}) == len(leaves)

  def test_student_and_teacher(self, state, file, caplog):
    path, student, teacher = file
    with caplog.at_level(logging.INFO, "wsegpc_jax"):
      new, record = train.start_from(path, state)
    self.check(state, new, student, teacher)
    assert record == train.Record(best_miou=0.25)
    total = len(weights.to_state_dict(student))
    assert f"state_dict: used {total} of {total} keys" in caplog.text
    assert "left out epoch" in caplog.text

  def test_without_a_teacher_it_starts_as_a_copy(self, state, file, tmp_path):
    path, student, _ = file
    weights.save(
      tmp_path / "x.safetensors",
      weights.join(weights.to_state_dict(student), None),
    )
    new, record = train.start_from(str(tmp_path / "x.safetensors"), state)
    self.check(state, new, student, student)
    assert record == train.Record()

  def test_image_weights_go_to_both(self, state, file, tmp_path, caplog):
    _, student, _ = file
    images = weights.to_state_dict(student, names="torchvision")
    save(tmp_path / "r.pth", {**images, **heads("fc.weight", "fc.bias")})
    with caplog.at_level(logging.INFO, "wsegpc_jax"):
      new = train.start_images_from(str(tmp_path / "r.pth"), state)
    assert "left out fc.* (2)" in caplog.text
    for params in (new.params, new.ema_params):
      want = {
        **student["params"]["net_2d"],
        "cls": state.params["net_2d"]["cls"],
      }
      assert_same(params["net_2d"], want)
      assert_same(params["net_3d"], state.params["net_3d"])
    # A MinkUNet on top of it does not undo it.
    points = weights.to_state_dict(student, names="minkowski")
    save(tmp_path / "m.pth", points)
    both, _ = train.start_from(str(tmp_path / "m.pth"), new)
    assert_same(both.params["net_3d"], student["params"]["net_3d"])
    assert_same(both.ema_params["net_2d"], new.params["net_2d"])

  def test_stage_3_takes_the_3d_network(self, state, file):
    path, student, _ = file
    fresh = state.replace(
      params=state.params["net_3d"],
      batch_stats=state.batch_stats["net_3d"],
      ema_params=None,
      ema_batch_stats=None,
    )
    new, _ = train.start_from(path, fresh)
    assert_same(new.params, student["params"]["net_3d"])
    assert new.ema_params is None
    with pytest.raises(DataError, match="image_weights.*no 2D network"):
      train.start_images_from(path, fresh)

  def test_another_network_is_refused(self, state, tmp_path):
    save(tmp_path / "x.pth", weights.to_state_dict(narrow()))
    with pytest.raises(DataError, match=r"x.pth: .* has shape .*needs \["):
      train.start_from(str(tmp_path / "x.pth"), state)
    with pytest.raises(DataError, match="none.pth"):
      train.start_from(str(tmp_path / "none.pth"), state)
