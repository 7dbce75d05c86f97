"""The programs as a user runs them, and what a user's mistakes give."""

import json
import shutil

import numpy as np
import program_runs
import pytest

_CMG = f"{program_runs.CONFIGS}/tiny_cmg.py:smoke"
_RPC = f"{program_runs.CONFIGS}/tiny_rpc.py:smoke"
_SEG = f"{program_runs.CONFIGS}/tiny_seg.py:smoke"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """All stages, one after the other."""
  root = tmp_path_factory.mktemp("stages")
  data = f"--config.data.root={root}/rooms"
  quick = ("--config.train.total_steps=4", "--config.train.eval_every=2")

  def run(config, name, *flags):
    done = program_runs.run(config, root / name, data, *quick, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    (root / f"{name}.out").write_text(done.stdout)

  run(_CMG, "cmg")
  start = f"--config.init_from={root}/cmg"
  run(_RPC, "rpc", start)
  run(_RPC, "rpc", start, "--mode=label")
  labels = f"--config.data.labels_from={root}/rpc/pseudo_labels"
  run(_SEG, "seg", labels)
  run(_SEG, "seg", labels, "--mode=eval", "--config.eval.superpoints=half")
  return root


def _fails(*args, **kwargs) -> str:
  """The one line on stderr of a program that refuses to go on."""
  done = program_runs.run(*args, **kwargs)
  assert done.returncode not in (0, 1), done.stderr
  assert "Traceback" not in done.stderr, done.stderr
  errors = [
    line for line in done.stderr.splitlines() if line.startswith("error: ")
  ]
  assert len(errors) == 1, done.stderr
  return errors[0]


def test_workdir_tells_the_story(root):
  config = json.loads((root / "cmg" / "config.json").read_text())
  assert config["train"]["total_steps"] == 4
  versions = json.loads((root / "cmg" / "versions.json").read_text())
  assert "jax" in json.dumps(versions)
  scores = json.loads(
    (root / "cmg" / "eval" / "val_step_0000004.json").read_text()
  )
  assert {"miou", "macc", "allacc", "iou", "points", "protocol"} <= set(scores)
  assert "masked" in scores["protocol"] and "teacher" in scores["protocol"]
  assert "2d" in scores
  assert list((root / "cmg" / "tensorboard").iterdir())


def test_stage_2_starts_from_the_best_of_stage_1(root):
  from wsegpc_jax import checkpoints

  _, host = checkpoints.restore_partial(root / "cmg", keys=("params",))
  best = max(
    json.loads(line)["eval/miou"]
    for line in (root / "cmg" / "metrics.jsonl").read_text().splitlines()
    if "eval/miou" in line
  )
  assert host["best_miou"] == pytest.approx(best)
  _, host = checkpoints.restore_partial(
    root / "rpc", keys=("params",), which="latest"
  )
  assert host["best_miou"] >= best  # inherited as the baseline


def test_pseudo_labels_use_present_classes_only(root):
  from wsegpc_jax.data import assets

  dataset = assets.open_dataset(root / "rooms")
  for name in dataset.splits["train"]:
    scene = assets.load_scene(dataset, name)
    with np.load(root / "rpc" / "pseudo_labels" / f"{name}.npz") as archive:
      label = archive["pred_label"]
    assert label.dtype == np.uint8 and len(label) == len(scene.coord)
    assert scene.tags[label].all()
    # Constant on every superpoint.
    for region in np.unique(scene.superpoint[scene.superpoint >= 0]):
      assert len(np.unique(label[scene.superpoint == region])) == 1
  scores = json.loads(
    (root / "rpc" / "eval" / "pseudo_labels.json").read_text()
  )
  assert scores["points"] > 0 and "superpoints" in scores["protocol"]


def test_evaluation_without_tags(root):
  scores = json.loads((root / "seg" / "eval" / "val_best.json").read_text())
  assert "no tags used" in scores["protocol"]
  assert "half" in scores["protocol"]
  assert "mean" in (root / "seg.out").read_text()


def test_predict_writes_a_labelled_scan(root, tmp_path):
  from wsegpc_jax.data import box_rooms
  from wsegpc_jax.interop import ply

  scene, _ = box_rooms.make_room(7, 0)
  ply.write_point_cloud(
    tmp_path / "scan.ply", coord=scene.coord, color=scene.color
  )
  done = program_runs.run(
    _RPC,
    root / "rpc",
    f"--config.data.root={root}/rooms",
    "--mode=predict",
    f"--input={tmp_path}/scan.ply",
    f"--output={tmp_path}/out.ply",
    "--tags=wall,floor,bed",
  )
  assert done.returncode == 0, done.stderr[-3000:]
  out = ply.read_point_cloud(tmp_path / "out.ply")
  np.testing.assert_array_equal(out["coord"], scene.coord)
  with np.load(tmp_path / "out.npz") as archive:
    probabilities, classes = archive["probabilities"], archive["classes"]
    np.testing.assert_array_equal(archive["label"], out["label"])
  assert set(classes[np.unique(out["label"])]) <= {"wall", "floor", "bed"}
  np.testing.assert_allclose(probabilities.sum(1), 1, atol=2e-2)


def test_missing_data_says_where_and_how(tmp_path):
  done = program_runs.run(
    f"{program_runs.CONFIGS}/scannet_rpc.py",
    tmp_path / "w",
    f"--config.data.root={tmp_path}/none",
  )
  assert done.returncode == 2 and "Traceback" not in done.stderr
  for words in (f"{tmp_path}/none", "dataset.json", "scan-net", "tiny_cmg"):
    assert words in done.stderr
  assert not (tmp_path / "w" / "checkpoints").exists()


@pytest.mark.parametrize(
  "flag, words",
  [
    ("--config.train.lrr=1", "lrr"),
    ("--config.model.arch=19Z", "config.model.arch"),
    ("--mode=tain", "tain"),
  ],
)
def test_a_mistake_in_the_options_is_one_line(tmp_path, flag, words):
  assert words in _fails(_CMG, tmp_path / "w", flag)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  "field, value",
  [
    ("train.batch_size", 0),
    ("dtype", "float16"),
    ("compat", "yes"),
    ("data.voxel_size", -0.1),
    ("data.largest_bucket", 10),
    ("parallel", "pjit"),
    ("data.image_size", (24,)),
    ("data.level_ratios", (1.0, 0.5)),
    ("data.level_ratios", (0.9, 0.5, 0.2, 0.1, 0.1)),
    ("data.level_ratios", (1.0, 0.5, 0.6, 0.1, 0.1)),
    ("data.level_ratios", (1.0, 0.5, 0.2, 0.1, 0.0)),
    ("data.box_rooms.image_size", (24, 32, 3)),
  ],
)
def test_a_value_that_cannot_be_is_named(field, value):
  from wsegpc_jax import config_checks, defaults
  from wsegpc_jax.types import DataError

  config = defaults.get_tiny()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(DataError, match=f"config.{field}"):
    config_checks.check_config(config)


def test_a_split_that_is_not_there_is_named_before_training(root, tmp_path):
  error = _fails(
    _CMG,
    tmp_path / "w",
    f"--config.data.root={root}/rooms",
    "--config.eval.split=valid",
  )
  assert "split 'valid' has no scenes; it has train, val" in error
  assert not (tmp_path / "w").exists()


def test_a_checkpoint_of_another_network_without_a_config(root, tmp_path):
  converted = _copy(root, tmp_path, "cmg")
  (converted / "config.json").unlink()
  for flags, word in (
    (("--config.model.width=4",), "kernel has shape"),
    (("--config.model.image_depth=50",), "another network"),
  ):
    data = f"--config.data.root={root}/rooms"
    error = _fails(_CMG, converted, "--mode=eval", data, *flags)
    assert word in error and str(converted) in error


def test_a_missing_config_file_is_one_line(tmp_path):
  assert "nowhere.py" in _fails("nowhere.py", tmp_path / "w")


def test_another_config_in_the_workdir_is_refused(root):
  before = (root / "cmg" / "config.json").read_bytes()
  error = _fails(
    _CMG,
    root / "cmg",
    f"--config.data.root={root}/rooms",
    "--config.train.total_steps=9",
  )
  assert "train.total_steps" in error and "config.json" in error
  assert (root / "cmg" / "config.json").read_bytes() == before


def _copy(root, tmp_path, what):
  return shutil.copytree(root / what, tmp_path / what)


def test_an_unreadable_checkpoint_is_named(root, tmp_path):
  workdir = _copy(root, tmp_path, "seg")
  for file in (workdir / "checkpoints").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  error = _fails(
    _SEG,
    workdir,
    f"--config.data.root={root}/rooms",
    f"--config.data.labels_from={root}/rpc/pseudo_labels",
    "--config.train.total_steps=4",
    "--config.train.eval_every=2",
  )
  assert str(workdir / "checkpoints") in error


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _spoil(kind, scene):
  """Damages a scene; returns the words that the error must have."""
  if kind == "truncated":
    _truncate(scene / "coord.npy")
    return ["coord.npy"]
  if kind == "missing":
    (scene / "color.npy").unlink()
    return ["color.npy"]
  if kind == "length":
    normal = np.load(scene / "normal.npy")
    np.save(scene / "normal.npy", normal[:-1])
    return ["normal", str(len(normal)), str(len(normal) - 1)]
  if kind == "nan":
    coord = np.load(scene / "coord.npy")
    coord[3, 1] = np.nan
    np.save(scene / "coord.npy", coord)
    return ["coord", "finite"]
  if kind == "label":
    label = np.load(scene / "label.npy")
    label[0] = 77
    np.save(scene / "label.npy", label)
    return ["label", "77"]
  if kind == "empty":
    for name in ("coord", "color", "normal", "label", "superpoint"):
      path = scene / f"{name}.npy"
      np.save(path, np.load(path)[:0])
    return ["point"]
  if kind == "pose":
    for pose in (scene / "pose").iterdir():
      pose.unlink()
    return ["pose"]
  raise ValueError(kind)


@pytest.mark.parametrize(
  "kind",
  ["truncated", "missing", "length", "nan", "label", "empty", "pose"],
)
def test_a_damaged_scene_is_named(root, tmp_path, kind):
  from wsegpc_jax import defaults, inputs
  from wsegpc_jax.data import assets
  from wsegpc_jax.types import DataError

  rooms = _copy(root, tmp_path, "rooms")
  scene = sorted(p for p in rooms.iterdir() if p.is_dir())[0]
  words = _spoil(kind, scene)
  with pytest.raises(DataError) as raised:
    inputs.sampler(defaults.get_tiny("smoke")).training(
      assets.open_dataset(rooms), scene.name, np.random.default_rng(0)
    )
  for word in (str(scene), *words):
    assert word in str(raised.value)


def test_a_damaged_scene_ends_training_in_one_line(root, tmp_path):
  rooms = _copy(root, tmp_path, "rooms")
  scene = sorted(p for p in rooms.iterdir() if p.is_dir())[0]
  _spoil("truncated", scene)
  error = _fails(
    _CMG,
    tmp_path / "w",
    f"--config.data.root={rooms}",
    "--config.data.box_rooms.train=0",
  )
  assert str(scene / "coord.npy") in error
  assert not (tmp_path / "w" / "checkpoints").exists()
