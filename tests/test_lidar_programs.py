"""Laser scans through the same programs: train, resume, score and export."""

from pathlib import Path

import jax
import numpy as np
import pytest

from wsegpc_jax import (
  checkpoints,
  config_checks,
  defaults,
  evaluate,
  experiment,
  inputs,
  predict,
  train,
)
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.models import minkunet
from wsegpc_jax.types import DataError

_GROUND, _CAR, _POLE, _UNKNOWN = 40, 10, 80, 1  # raw ids


def _write_scans(root, number=3):
  """Ground, boxes on it and poles: three classes, and some unlabelled."""
  for i in range(number):
    rng = np.random.default_rng(i)
    ground = np.stack(
      [*rng.uniform(-12, 12, (2, 3000)), rng.normal(0, 0.02, 3000)]
    )
    car = rng.uniform(-1, 1, (3, 800)) * [[2], [1], [0.7]] + [[4], [i], [0.8]]
    pole = rng.uniform(-1, 1, (3, 300)) * [[0.1], [0.1], [2]] + [[-3], [2], [2]]
    coord = np.concatenate([ground, car, pole], 1).T
    raw = np.repeat([_GROUND, _CAR, _POLE], [3000, 800, 300])
    raw[::50] = _UNKNOWN
    points = np.concatenate([coord, rng.random((len(coord), 1))], 1)
    name = f"00_{i:06}"
    for path, array in (
      (kitti.scan_path(root, name), points.astype("<f4")),
      (kitti.label_path(root, name), raw.astype("<u4")),
    ):
      path.parent.mkdir(parents=True, exist_ok=True)
      array.tofile(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("kitti")
  _write_scans(root)
  return root


def _config(root, **changes):
  config = defaults.get_semantic_kitti("spvcnn", cluster=True, variant="smoke")
  config.data.root = str(root)
  config.data.smallest_bucket = config.data.largest_bucket = 6000
  config.data.max_voxels = 2500
  config.model.width = 4
  config.cluster.max_samples = 60
  config.train.total_steps, config.train.eval_every = 6, 3
  config.train.checkpoint_every = 2
  config.update_from_flattened_dict(changes)
  return config


def test_train_resume_score_and_export(root, tmp_path, monkeypatch):
  # One block at each end: the programs are tested here, not the network.
  arch = ((1, 0, 0, 0, 0, 0, 0, 1), minkunet.ARCHITECTURES["14A"][1], 1)
  monkeypatch.setitem(minkunet.ARCHITECTURES, "test", arch)
  small = {"model.arch": "test", "cluster.feature_source": "decoder"}
  whole = train.train(_config(root, **small).lock(), str(tmp_path / "whole"))
  # Stopped after four of its six steps, and gone on with.
  workdir = str(tmp_path / "resumed")
  config = _config(root, **small)
  original = train.pipeline.training_steps

  def four_steps(*args, **kwargs):
    for i, step in enumerate(original(*args, **kwargs)):
      if kwargs["first_step"] + i == 4:
        raise KeyboardInterrupt
      yield step

  train.pipeline.training_steps = four_steps
  try:
    with pytest.raises(KeyboardInterrupt):
      train.train(config.lock(), workdir)
  finally:
    train.pipeline.training_steps = original
  resumed = train.train(config, workdir)
  assert int(resumed.step) == 6 and resumed.memory is not None
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(jax.device_get(whole)),
    jax.tree.leaves(jax.device_get(resumed)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))

  # Every labelled point of the scan counts, none is cropped.
  with config.unlocked():
    config.eval.export = "semantic_kitti"
  scores = evaluate.evaluate(config, workdir)
  raw = kitti.read_labels(kitti.label_path(root, "00_000002"), 4100)
  assert scores.points.points == np.count_nonzero(raw != _UNKNOWN)
  # What was exported is what was scored, in raw ids.
  folder = Path(workdir) / "submission"
  found = kitti.read_labels(kitti.prediction_path(folder, "00_000002"), 4100)
  to_class = kitti.get_label_map("official").to_class
  known = to_class(raw) != 255
  right = (to_class(found) == to_class(raw))[known].mean()
  assert right == pytest.approx(scores.points.allacc)
  # Predicting the file itself, without a data set, gives the same labels.
  label = predict.predict(
    config,
    workdir,
    source=str(kitti.scan_path(root, "00_000002")),
    target=str(tmp_path / "out.ply"),
  )
  np.testing.assert_array_equal(label, to_class(found))
  with pytest.raises(DataError, match="scan.ply.*expected a laser scan"):
    predict.predict(
      config, workdir, source="scan.ply", target=str(tmp_path / "x.ply")
    )
  # The clustering's own variables are no part of prediction.
  loaded, _ = checkpoints.restore_partial(
    workdir, keys=("params",), which="latest"
  )
  assert "projection" in loaded["params"]


@pytest.fixture(scope="module")
def first_states(root):
  """The states that a run starts from, with clustering and without."""
  states = []
  for cluster in (1.0, 0.0):
    config = _config(root, **{"loss.cluster": cluster})
    method = experiment.build_method(config, 19, experiment.schedule(config, 2))
    layout = inputs.layout(config, slots=2)
    states.append(experiment.first_state(config, method, layout, 19))
  return states


def test_the_network_is_the_same_without_clustering(first_states):
  with_it, without = (dict(s.params) for s in first_states)
  assert first_states[1].memory is None and "projection" not in without
  with_it.pop("projection")
  jax.tree.map(np.testing.assert_array_equal, with_it, without)


def test_clustering_starts_from_a_run_without_it(first_states, tmp_path):
  clustered, plain = first_states
  trained = plain.replace(params=jax.tree.map(lambda a: a + 1, plain.params))
  with checkpoints.Checkpoints(tmp_path) as saved:
    host = {"step": 1, "best_miou": 0.5}
    saved.save(1, trained, host=host, metrics={"miou": 0.5})
  state, _ = train.start_from(str(tmp_path), clustered)
  head = state.params["projection"]
  jax.tree.map(
    np.testing.assert_array_equal, head, clustered.params["projection"]
  )
  rest = {k: v for k, v in state.params.items() if k != "projection"}
  jax.tree.map(np.testing.assert_array_equal, rest, trained.params)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"method": "segmentation"}, "model.arch='spvcnn' is for .*clustering"),
    ({"data.sensor": "rgbd"}, "'semantic_kitti' needs .*sensor='lidar'"),
    ({"data.cache": "x"}, "no config.data.cache"),
    ({"data.cap": "all"}, "config.data.cap='all'"),
    ({"train.schedule": "linear"}, "config.train.schedule='linear'"),
    ({"model.dropout": 1.5}, "config.model.dropout=1.5"),
  ],
)
def test_configs_that_cannot_be(root, changes, message):
  with pytest.raises(DataError, match=message):
    config_checks.check_config(_config(root, **changes))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"cluster.max_samples": 5}, "config.cluster: max_samples=5"),
    ({"cluster.clusters": 0}, "config.cluster: clusters must be"),
    ({"loss.ce": 0.0, "loss.lovasz": 0.0, "loss.cluster": 0.0}, "config.loss"),
    ({"model.arch": "14A"}, "feature_source='bottleneck' needs"),
  ],
)
def test_methods_that_cannot_be(root, changes, message):
  config = _config(root, **changes)
  config_checks.check_config(config)
  with pytest.raises(DataError, match=message):
    experiment.build_method(config, 19, experiment.schedule(config, 2))


def test_protocol_says_how_absent_classes_count(root):
  config = _config(root, **{"eval.absent": "zero"})
  words = evaluate.protocol(config, split="val", weights="student")
  assert "classes that do not occur count as 0" in words
