"""Steps in parts, as the training program takes them."""

import jax
import numpy as np
import pytest

from wsegpc_jax import config_checks, defaults, train
from wsegpc_jax.models import minkunet
from wsegpc_jax.types import DataError

# One block at each end: enough to train, little to compile.
_ARCH = ((1, 0, 0, 0, 0, 0, 0, 1), minkunet.ARCHITECTURES["14A"][1], 1)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setitem(minkunet.ARCHITECTURES, "test", _ARCH)
  config = defaults.get_tiny()
  config.method = "segmentation"
  config.model.arch, config.model.width = "test", 4
  config.eval.weights = "student"
  config.data.root = str(tmp_path / "rooms")
  config.data.box_rooms.train, config.data.box_rooms.val = 4, 1
  config.data.voxel_size = 0.2
  config.data.smallest_bucket = config.data.largest_bucket = 3000
  config.train.batch_size, config.train.accumulate = 3, 2
  config.train.total_steps, config.train.eval_every = 4, -1
  config.train.checkpoint_every = 2
  return config


def test_an_interrupted_run_goes_on_with_whole_steps(
  config, tmp_path, monkeypatch
):
  unbroken = train.train(config, str(tmp_path / "unbroken"))
  make_batch, made = train.make_batch, []

  def interrupted(*args):
    batch = make_batch(*args)
    made.append(batch)
    # Two parts of two scenes at most: three scenes are two and one.
    mask = np.asarray(batch.scene_mask)
    np.testing.assert_array_equal(mask, [[[True, True], [True, False]]])
    if len(made) == 4:  # of step 3 nothing is kept: its checkpoint is of 2
      raise KeyboardInterrupt
    return batch

  with monkeypatch.context() as patch:
    patch.setattr(train, "make_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
      train.train(config, str(tmp_path / "broken"))
  resumed = train.train(config, str(tmp_path / "broken"))

  assert int(unbroken.step) == int(resumed.step) == 4  # updates, not parts
  for one, two in zip(
    jax.tree.leaves(jax.device_get(unbroken)),
    jax.tree.leaves(jax.device_get(resumed)),
    strict=True,
  ):
    np.testing.assert_array_equal(two, one)


def test_more_parts_than_scenes_are_refused(config, tmp_path):
  config.train.accumulate = 4
  with pytest.raises(DataError, match=r"accumulate=4; expected at most 3, .*1"):
    train.train(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("accumulate", 0, "train.accumulate=0; expected a positive number"),
    ("accumulate", 2, "train.accumulate=2; expected 1 with"),
    ("remat", True, "model.remat=True; expected False with"),
  ],
)
def test_what_a_method_cannot_do_is_refused(config, field, value, message):
  config.method, config.train.accumulate = "clustering", 1
  section = config.model if field == "remat" else config.train
  section[field] = value
  if not value:
    config.method = "segmentation"
  with pytest.raises(DataError, match=message):
    config_checks.check_config(config)
