"""Pre-training of the 2D network: the file, what is in it, what is refused."""

import dataclasses
import errno
import json
import logging
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util

from wsegpc_jax import defaults, experiment, inputs, synthetic_image, train
from wsegpc_jax.data.synthetic.single_objects import (
  CLASSES,
  Images,
  make_images,
)
from wsegpc_jax.interop import safetensors_io
from wsegpc_jax.models.two_branch import normalize_images
from wsegpc_jax.types import DataError

SETTINGS = synthetic_image.Settings(width=4, images=26, epochs=30)


class Made:
  """A file made by `ensure`, and what it was made from."""

  def __init__(self, folder):
    self.path = folder / "r18_w4.safetensors"
    self.said = []
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(synthetic_image, "_HELD_OUT", 1)
      original = synthetic_image.train_network

      def train_network(settings, images):
        self.images = images
        self.method, self.state = original(settings, images)
        return self.method, self.state

      patch.setattr(synthetic_image, "train_network", train_network)
      synthetic_image.ensure(
        self.path, SETTINGS, workers=1, say=self.said.append
      )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return Made(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def quick(made, monkeypatch):
  """Neither renders nor trains anew; counts how often it should have."""
  calls = []

  def images(split, count, **_):
    calls.append(split)
    return Images(made.images.color[:1], made.images.label[:1])

  monkeypatch.setattr(synthetic_image.single_objects, "make_images", images)
  monkeypatch.setattr(
    synthetic_image, "train_network", lambda *_: (made.method, made.state)
  )
  monkeypatch.setattr(synthetic_image, "accuracy", lambda *_: 0.5)
  return calls


def logits(made, state):
  """Of the images it learned from, seen in their middle."""
  number = len(made.images.label)
  crops = np.zeros(
    (64, 48, 48, 3), np.uint8
  )  # a shape that is compiled already
  crops[:number] = made.images.color[:, 4:52, 4:52]
  predict = jax.jit(made.method.predict)
  return np.asarray(predict(state, crops, np.arange(64) < number))[:number]


def command(path, **changes):
  settings = dataclasses.replace(SETTINGS, **changes)
  return settings.command(path).split()[3:]


def files(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


class TestTraining:
  def test_lowers_the_loss(self, made):
    """On the images that it learned from, far from guessing."""

    def loss(state):
      log_p = jax.nn.log_softmax(logits(made, state))
      return -np.mean(log_p[np.arange(len(log_p)), made.images.label])

    first = made.method.init(SETTINGS.seed)
    assert loss(first) > 0.8 * np.log(len(CLASSES))
    assert loss(made.state) < 0.5 * loss(first)

  def test_accuracy_is_that_of_a_count(self, made):
    metadata = safetensors_io.load_metadata(made.path)
    result = json.loads(metadata["synthetic_image_result"])
    found = logits(made, made.state).argmax(-1)
    right = np.mean(found == made.images.label)
    assert result["train_accuracy"] == pytest.approx(right)
    assert right > 0.3
    assert f"{right:.3f} on images" in made.said[-1]

  def test_an_epoch_has_every_image_once_with_its_label(self, monkeypatch):
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    monkeypatch.setattr(synthetic_image, "_JITTER", still)
    number, batch = 150, 64
    color = np.empty((number, 56, 56, 3), np.uint8)
    color[:] = np.arange(number, dtype=np.uint8)[:, None, None, None]
    label = np.arange(number, dtype=np.int32) % 7
    images = Images(color, label)
    orders = []
    for crops, labels in synthetic_image.batches(images, 2, seed=3):
      assert crops.shape == (batch, 48, 48, 3) and crops.dtype == np.uint8
      shown = crops[:, 0, 0, 0].astype(int)
      assert abs(crops - crops[:, :1, :1, :1]).max() == 0
      np.testing.assert_array_equal(labels, shown % 7)
      orders.append(shown)
    epochs = np.array(orders).reshape(2, -1)
    assert all(len(set(epoch)) == 2 * batch for epoch in epochs.tolist())
    assert not np.array_equal(*epochs)
    again = [b[1] for b in synthetic_image.batches(images, 2, seed=3)]
    np.testing.assert_array_equal(np.concatenate(again), epochs.ravel() % 7)

  def test_crops_move_and_are_mirrored(self, monkeypatch):
    still = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    monkeypatch.setattr(synthetic_image, "_JITTER", still)
    rows, columns = np.mgrid[:56, :56].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    images = Images(np.repeat(image[None], 64, 0), np.zeros(64, np.int32))
    ((crops, _),) = synthetic_image.batches(images, 1, seed=0)
    step = crops[:, 0, 1, 1].astype(int) - crops[:, 0, 0, 1]
    assert set(step.tolist()) == {-1, 1}
    assert len(set(crops[:, 0, 0, 0].tolist())) > 3
    assert crops[:, :, :, 0].max() == 55 and crops[:, :, :, 0].min() == 0

  def test_stops_when_the_loss_is_not_finite(self, made, monkeypatch):
    def step(*_):
      return made.state, {"loss": np.nan, "accuracy": 0.0}

    monkeypatch.setattr(jax, "jit", lambda *_, **__: step)
    monkeypatch.setattr(
      synthetic_image.ImageClassification, "init", lambda *_: made.state
    )
    with pytest.raises(FloatingPointError, match="loss nan at step 20"):
      synthetic_image.train_network(SETTINGS, made.images)


@pytest.fixture(scope="module")
def config():
  config = defaults.get_synthetic("smoke")
  config.model.image_depth, config.model.image_width = 18, 4
  return config


@pytest.fixture(scope="module")
def method(config):
  steps = experiment.Schedule(1, 1, 0)
  return experiment.build_method(config, 15, steps)


@pytest.fixture(scope="module")
def fresh(config, method):
  layout = inputs.layout(config, slots=1)
  return experiment.first_state(config, method, layout, 15)


class TestTrainerLoadsIt:
  def test_every_weight_is_used(self, made, fresh, caplog):
    with caplog.at_level(logging.INFO, "wsegpc_jax"):
      state = train.start_images_from(str(made.path), fresh)
    total = len(safetensors_io.load(made.path))
    assert f"used {total} of {total} keys" in caplog.text
    assert "left out" not in caplog.text
    for params, stats in (
      (state.params, state.batch_stats),
      (state.ema_params, state.ema_batch_stats),
    ):
      got = {"params": params["net_2d"], "stats": stats["net_2d"]}
      want = {"params": made.state.params, "stats": made.state.batch_stats}
      want = traverse_util.flatten_dict(want)
      same = 0
      for path, value in traverse_util.flatten_dict(got).items():
        if path[1] != "cls":  # of other classes
          np.testing.assert_array_equal(value, want.pop(path))
          same += 1
      assert list(want) == [("params", "cls", "kernel")] and same == 100

  def test_features_are_those_it_was_trained_for(self, made, fresh, method):
    """The trainer's 2D branch with the classifier gives the same answers."""
    state = train.start_images_from(str(made.path), fresh)
    crops = made.images.color[:8, 4:52, 4:52]
    mask = np.ones(len(crops), bool)
    net = method.model.net_2d
    variables = {
      "params": state.params["net_2d"],
      "batch_stats": state.batch_stats["net_2d"],
    }
    apply = jax.jit(lambda v, x: net.apply(v, x, mask, train=False)[1])
    features = apply(variables, normalize_images(crops))
    head = made.state.params["cls"]["kernel"][0, 0]
    got = np.einsum("bhwc,ck->bk", features, head) / features[0, ..., 0].size
    want = logits(made, made.state)[:8]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want).max() > 0.5

  def test_another_width_is_refused(self, made, config):
    other = config.copy_and_resolve_references()
    other.model.image_width = 2
    method = experiment.build_method(other, 15, experiment.Schedule(1, 1, 0))
    layout = inputs.layout(other, slots=1)
    state = experiment.first_state(other, method, layout, 15)
    with pytest.raises(DataError, match="r18_w4.*has shape .*needs"):
      train.start_images_from(str(made.path), state)


class TestEnsure:
  def test_is_kept(self, made, quick):
    before, said = files(made.path.parent), []
    got = synthetic_image.ensure(made.path, SETTINGS, say=said.append)
    assert got == made.path and quick == []
    assert files(made.path.parent) == before
    assert "is there: accuracy" in said[0]

  @pytest.fixture
  def copy(self, made, tmp_path):
    path = tmp_path / made.path.name
    path.write_bytes(made.path.read_bytes())
    return path

  @pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(synthetic_image.Settings)]
  )
  def test_other_settings_make_it_anew(self, copy, quick, field):
    value = 34 if field == "depth" else getattr(SETTINGS, field) + 1
    settings = dataclasses.replace(SETTINGS, **{field: value})
    said = []
    synthetic_image.ensure(copy, settings, say=said.append)
    was = getattr(SETTINGS, field)
    assert f"{field} was {was} and is now {value}; it is made anew" in said[0]
    assert quick == ["train", "val"]
    synthetic_image.ensure(copy, settings, say=said.append)
    assert quick == ["train", "val"]

  @pytest.mark.parametrize("module", ["synthetic_image", "images", "rooms"])
  def test_an_older_version_is_made_anew(
    self, copy, quick, monkeypatch, module
  ):
    owner = {
      "synthetic_image": synthetic_image,
      "images": synthetic_image.single_objects,
      "rooms": synthetic_image.rooms,
    }[module]
    monkeypatch.setattr(owner, "VERSION", owner.VERSION + 1)
    said = []
    synthetic_image.ensure(copy, SETTINGS, say=said.append)
    assert "version was" in said[0] and quick == ["train", "val"]

  def test_weights_of_others_are_not_replaced(self, tmp_path, quick, capsys):
    path = tmp_path / "moco.safetensors"
    safetensors_io.save(path, {"conv1.weight": np.zeros(3, np.float32)})
    before = files(tmp_path)
    assert synthetic_image.main(command(path)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "moco.safetensors: expected" in error
    assert SETTINGS.command(path) in error
    assert files(tmp_path) == before and quick == []

  @pytest.mark.parametrize("value", ["no JSON", "[1]", "null", "{}"])
  def test_a_broken_record_is_one_line(self, made, tmp_path, capsys, value):
    path = tmp_path / "r.safetensors"
    arrays = safetensors_io.load(made.path)
    for key in ("synthetic_image", "synthetic_image_result"):
      record = safetensors_io.load_metadata(made.path) | {key: value}
      if (key, value) == ("synthetic_image", "{}"):
        continue  # that is one of no settings, which is made anew
      safetensors_io.save(path, arrays, metadata=record)
      assert synthetic_image.main(command(path)) == 1
      error = capsys.readouterr().err
      assert error.count("\n") == 1 and "remove it, then run" in error

  def test_a_damaged_file_is_not_replaced(self, copy, quick, capsys):
    copy.write_bytes(copy.read_bytes()[:100])
    assert synthetic_image.main(command(copy)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "remove it, then run" in error
    assert len(copy.read_bytes()) == 100 and quick == []

  def test_interrupted_nothing_is_half_done(
    self, copy, quick, monkeypatch, capsys
  ):
    def interrupt(*_):
      raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_image, "train_network", interrupt)
    before = files(copy.parent)
    other = copy.with_name("other.safetensors")
    for path, changes in ((copy, {"epochs": 31}), (other, {})):
      assert synthetic_image.main(command(path, **changes)) == 130
      assert "interrupted; nothing is written" in capsys.readouterr().err
    assert files(copy.parent) == before

  def test_a_full_disk_is_one_line(self, copy, quick, monkeypatch, capsys):
    def full(_):
      raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wsegpc_jax.files.os.fsync", full)
    before = files(copy.parent)
    assert synthetic_image.main(command(copy, seed=1)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the disk is full" in error
    assert files(copy.parent) == before

  def test_without_the_ray_caster(self, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    path = tmp_path / "r.safetensors"
    assert synthetic_image.main(command(path)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wsegpc-jax[synthetic]" in error
    assert files(tmp_path) == {}

  def test_a_folder_that_cannot_be_made(self, tmp_path, quick, capsys):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "r.safetensors"
    assert synthetic_image.main(command(path)) == 1
    assert capsys.readouterr().err.count("\n") == 1 and quick == []

  @pytest.mark.parametrize(
    "changes, text",
    [
      ({"depth": 20}, "depth: expected 18, 34, 50 or 101, got 20"),
      ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
  )
  def test_settings_out_of_range(self, tmp_path, capsys, changes, text):
    path = tmp_path / "r.safetensors"
    assert synthetic_image.main(command(path, **changes)) == 1
    assert capsys.readouterr().err == f"error: {text}\n"

  def test_another_kind_of_file(self, tmp_path):
    with pytest.raises(DataError, match=r"r.pth: expected .*\.safetensors"):
      synthetic_image.ensure(tmp_path / "r.pth", SETTINGS)

  def test_the_command_is_the_settings(self, tmp_path):
    words = command(tmp_path / "r.safetensors", epochs=7)
    args = vars(synthetic_image._parse_args(words))
    assert args.pop("out").endswith("r.safetensors") and args.pop("workers")
    assert synthetic_image.Settings(**args) == dataclasses.replace(
      SETTINGS, epochs=7
    )


def test_images_are_those_of_the_settings(made):
  expected = make_images("train", 2, seed=SETTINGS.seed, size=56)
  np.testing.assert_array_equal(made.images.color[:2], expected.color)
