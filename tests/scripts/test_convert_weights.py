"""Weights through the script: into a run, out of a run, and what it refuses."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import script_modules
from flax import traverse_util

from wsegpc_jax import checkpoints, defaults, experiment, inputs, train
from wsegpc_jax.data.box_rooms import write_rooms
from wsegpc_jax.interop import torch_pickle, weights
from wsegpc_jax.types import DataError

_SCRIPT = script_modules.SCRIPTS / "convert_weights.py"
convert = script_modules.load("convert_weights")

CLASSES = 5


def fresh_state(num_classes=CLASSES):
  """State of a tiny run of stage 1."""
  config = defaults.get_tiny()
  steps = experiment.Schedule(1, 1, 0)
  built = experiment.build_method(config, num_classes, steps)
  layout = inputs.layout(config, slots=1)
  return experiment.first_state(config, built, layout, num_classes)


def stage_3(state):
  """As if its 3D network was trained alone."""
  return state.replace(
    params=state.params["net_3d"],
    batch_stats=state.batch_stats["net_3d"],
    ema_params=None,
    ema_batch_stats=None,
  )


def scrambled(state, seed):
  """Variables for its network, unlike the fresh ones."""
  rng = np.random.default_rng(seed)
  own = {"params": state.params, "batch_stats": state.batch_stats}
  return jax.tree.map(
    lambda a: rng.uniform(0.5, 1.5, a.shape).astype(a.dtype), own
  )


def assert_same(a, b):
  a, b = (traverse_util.flatten_dict(tree, sep="/") for tree in (a, b))
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def state():
  return fresh_state()


@pytest.fixture(scope="module")
def folder(state, tmp_path_factory):
  """A checkpoint as WSegPC makes them, and other files."""
  folder = tmp_path_factory.mktemp("weights")
  student, teacher = scrambled(state, 0), scrambled(state, 1)
  torch_pickle.save(
    folder / "model_best.pth.tar",
    {
      "epoch": 7,
      "state_dict": {
        f"module.{k}": v for k, v in weights.to_state_dict(student).items()
      },
      "ema_state_dict": weights.to_state_dict(teacher),
      "best_iou": 0.375,
    },
  )
  for names in ("minkowski", "torchvision"):
    torch_pickle.save(
      folder / f"{names}.pth", weights.to_state_dict(student, names=names)
    )
  return folder, student, teacher


def run(*args):
  convert.main([str(a) for a in args])


def test_a_checkpoint_becomes_a_stage(state, folder, tmp_path, capsys):
  root, student, teacher = folder
  run(root / "model_best.pth.tar", tmp_path / "run", "--to", "orbax")
  new, record = train.start_from(str(tmp_path / "run"), state)
  assert_same(new.params, student["params"])
  assert_same(new.batch_stats, student["batch_stats"])
  assert_same(new.ema_params, teacher["params"])
  assert_same(new.ema_batch_stats, teacher["batch_stats"])
  assert record == train.Record(best_miou=0.375)
  out = capsys.readouterr().out
  assert "MinkUNet14A, width 8, 5 classes" in out
  assert "ResNet-18, width 8, 5 classes" in out
  assert "left out epoch\n" in out


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_there_and_back(folder, tmp_path, form):
  root, student, teacher = folder
  run(root / "model_best.pth.tar", tmp_path / "run", "--to", "orbax")
  out = tmp_path / f"out.{form}"
  run(tmp_path / "run", out, "--to", form)
  file = weights.read(out)
  assert file.best_miou == (0.375 if form == "pth" else 0)
  for got, want in ((file.student, student), (file.teacher, teacher)):
    want = weights.to_state_dict(want)
    assert set(got) == set(want)
    for key in want:
      np.testing.assert_array_equal(got[key], want[key], err_msg=key)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_one_of_the_networks(state, folder, tmp_path, network):
  root, student, teacher = folder
  which = {"student": student, "teacher": teacher}[network]
  source = root / "model_best.pth.tar"
  run(source, tmp_path / "x.pth", "--to", "pth", "--network", network)
  content = torch_pickle.load(tmp_path / "x.pth")
  assert set(content) == {"state_dict", "best_miou"}
  got, _ = weights.fill(content["state_dict"], which, where="x")
  assert_same(got, which)
  run(source, tmp_path / "run", "--to", "orbax", "--network", network)
  new, _ = train.start_from(str(tmp_path / "run"), state)
  assert_same(new.params, which["params"])
  assert_same(new.ema_params, which["params"])


def test_other_names(folder, tmp_path):
  root, student, _ = folder
  out = tmp_path / "x.pth"
  for names in ("minkowski", "torchvision"):
    run(root / "model_best.pth.tar", out, "--to", "pth", "--names", names)
    got = torch_pickle.load(out)["state_dict"]
    want = torch_pickle.load(root / f"{names}.pth")
    assert set(got) == set(want)
    for key in want:
      np.testing.assert_array_equal(got[key], want[key])


def test_a_branch_alone_keeps_its_names(folder, tmp_path):
  root, _, _ = folder
  for names in ("minkowski", "torchvision"):
    out = tmp_path / "x.safetensors"
    run(root / f"{names}.pth", out, "--to", "safetensors")
    want = torch_pickle.load(root / f"{names}.pth")
    got = weights.read(out).student
    assert set(got) == set(want)
    for key in want:
      np.testing.assert_array_equal(got[key], want[key])


def test_a_minkunet_starts_stage_3(state, folder, tmp_path):
  root, student, _ = folder
  run(root / "minkowski.pth", tmp_path / "run", "--to", "orbax")
  new, _ = train.start_from(str(tmp_path / "run"), stage_3(state))
  assert_same(new.params, student["params"]["net_3d"])
  # And out of the run again.
  run(tmp_path / "run", tmp_path / "x.pth", "--to", "pth")
  got = torch_pickle.load(tmp_path / "x.pth")["state_dict"]
  assert set(got) == set(torch_pickle.load(root / "minkowski.pth"))


def test_new_heads_for_other_classes(folder, tmp_path):
  root, student, teacher = folder
  source = root / "model_best.pth.tar"
  target = tmp_path / "run"
  classes = ("--classes", 7)
  with pytest.raises(DataError, match="number of classes"):
    run(source, target, "--to", "orbax", *classes)
  assert not target.exists()
  run(source, target, "--to", "orbax", *classes, "--random_head")
  new, _ = train.start_from(str(target), fresh_state(num_classes=7))
  head = new.params["net_3d"]["final"]["kernel"]
  assert head.shape[1] == 7 and head.std() > 0
  assert_same(
    new.params["net_3d"]["block8_0"], student["params"]["net_3d"]["block8_0"]
  )
  assert_same(
    new.ema_params["net_2d"]["bn1"], teacher["params"]["net_2d"]["bn1"]
  )


def test_the_best_or_the_latest(state, tmp_path):
  own = [scrambled(state, seed) for seed in (0, 1)]
  with checkpoints.Checkpoints(tmp_path / "run") as saved:
    for step, (tree, miou) in enumerate(zip(own, (0.5, 0.25), strict=True)):
      host = {"step": step, "best_miou": 0.5}
      saved.save(step, tree, host=host, metrics={"miou": miou})
  for which, want in zip(("best", "latest"), own, strict=True):
    out = tmp_path / f"{which}.pth"
    run(tmp_path / "run", out, "--to", "pth", "--which", which)
    got, _ = weights.fill(weights.read(out).student, want, where="x")
    assert_same(got, want)


def test_with_a_data_set_it_can_be_scored(folder, tmp_path):
  root, _, _ = folder
  rooms = tmp_path / "rooms"
  write_rooms(rooms, train=1, val=1, seed=0, image_size=(12, 16), views=1)
  classes = json.loads((rooms / "dataset.json").read_text())["classes"]
  target = tmp_path / "run"
  source = root / "model_best.pth.tar"
  with pytest.raises(DataError, match=f"{len(classes)} classes.* {CLASSES}"):
    run(source, target, "--to", "orbax", "--data", rooms)
  run(
    source,
    target,
    *("--to", "orbax", "--data", rooms),
    *("--classes", len(classes), "--random_head"),
  )
  assert inputs.read_classes(str(target)) == tuple(classes)
  # The file's score is of other classes: no bar for what trains on from here.
  _, host = checkpoints.restore_partial(target, keys=("params",))
  assert host["best_miou"] == 0


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (("none.pth", "x.pth", "--to", "pth"), "none.pth"),
    (("none", "x.pth", "--to", "pth"), "none"),
    (("minkowski.pth", "x.npz", "--to", "pth"), "does not end in .pth"),
    (("minkowski.pth", "x.pth", "--to", "safetensors"), ".safetensors"),
    (("minkowski.pth", "minkowski.pth", "--to", "pth"), "overwrite"),
    (
      ("minkowski.pth", "x.pth", "--to", "pth", "--network", "teacher"),
      "no teacher",
    ),
    (
      ("minkowski.pth", "x.pth", "--to", "pth", "--arch", "34C"),
      "expected MinkUNet34C, got .* blocks",
    ),
    (
      ("torchvision.pth", "x.pth", "--to", "pth", "--image_depth", "50"),
      "depth 50, got one with blocks",
    ),
    (("torchvision.pth", "run", "--to", "orbax"), "image_weights"),
    (
      ("torchvision.pth", "x.pth", "--to", "pth", "--names", "minkowski"),
      "no part",
    ),
    (("minkowski.pth", "x.pth", "--to", "pth", "--data", "r"), "--to orbax"),
    (("minkowski.pth", "x.pth", "--to", "pth", "--classes", "0"), "positive"),
    (("other.pth", "x.pth", "--to", "pth"), "ends in one of .*1 keys"),
    (("flat.pth", "x.pth", "--to", "pth"), "conv0p1s1.kernel has shape"),
    (("half.pth", "x.pth", "--to", "pth"), "has no 'block8.0.conv2.kernel'"),
  ],
)
def test_mistakes(folder, tmp_path, monkeypatch, args, words):
  root, _, _ = folder
  for file in root.glob("*.pth"):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  monkeypatch.chdir(tmp_path)
  arrays = torch_pickle.load(root / "minkowski.pth")
  torch_pickle.save("other.pth", {"encoder.weight": np.ones(3, np.float32)})
  torch_pickle.save(
    "flat.pth",
    {**arrays, "conv0p1s1.kernel": np.ones((6, 8), np.float32)},
  )
  del arrays["block8.0.conv2.kernel"]
  torch_pickle.save("half.pth", arrays)
  before = sorted(tmp_path.iterdir())
  with pytest.raises(DataError, match=words):
    run(*args)
  assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_overwritten(folder, tmp_path):
  root, _, _ = folder
  run(root / "minkowski.pth", tmp_path / "run", "--to", "orbax")
  with pytest.raises(DataError, match="holds checkpoints already"):
    run(root / "minkowski.pth", tmp_path / "run", "--to", "orbax")


def test_an_error_is_one_line(tmp_path):
  done = subprocess.run(
    [sys.executable, _SCRIPT, tmp_path / "none.pth", "x.pth", "--to", "pth"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert "none.pth" in done.stderr
