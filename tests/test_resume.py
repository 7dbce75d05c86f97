"""A run that is killed and started again ends where an unbroken one does."""

import json

import numpy as np
import program_runs
import pytest

_SMOKE = f"{program_runs.CONFIGS}/tiny_rpc.py:smoke"


def _flags(root):
  return (
    f"--config.data.root={root}/rooms",
    "--config.init_from=",
    "--config.train.total_steps=7",
    "--config.train.eval_every=4",
    "--config.train.checkpoint_every=2",
    "--config.train.progress_seconds=0",
    # Small steps: in a young network rounding errors grow with every step, until
    # a pseudo-label flips.
    "--config.train.lr=0.002",
    "--config.data.threads=1",
    # Room for any scene on one device, too: none is cropped on fewer devices.
    "--config.data.voxel_size=0.15",
    "--config.data.smallest_bucket=8000",
    "--config.data.largest_bucket=8000",
  )


def _rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k != "time"} for line in lines
  ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  root = tmp_path_factory.mktemp("unbroken")
  done = program_runs.run(_SMOKE, root / "run", *_flags(root))
  assert done.returncode == 0, done.stderr[-3000:]
  return root


def test_killed_runs_end_bit_identical(unbroken, tmp_path):
  workdir, flags = tmp_path / "run", _flags(unbroken)
  # Each life ends after another number of steps, at any moment of the next
  # one, and one while a checkpoint is written.
  rng = np.random.default_rng(0)
  for lines in rng.permutation([1, 3]):
    moment = rng.random()
    program_runs.run_and_kill(
      _SMOKE, workdir, *flags, lines=int(lines), moment=moment
    )
  program_runs.run_and_kill_while_saving(_SMOKE, workdir, *flags)
  done = program_runs.run(_SMOKE, workdir, *flags)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "resumed at step" in done.stderr

  expected, actual = (
    program_runs.leaves(path) for path in (unbroken / "run", workdir)
  )
  assert expected["step"] == 7
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)
  assert _rows(workdir) == _rows(unbroken / "run")


def test_a_finished_run_is_left_alone(unbroken):
  before = (unbroken / "run" / "metrics.jsonl").read_bytes()
  done = program_runs.run(_SMOKE, unbroken / "run", *_flags(unbroken))
  assert done.returncode == 0, done.stderr[-3000:]
  assert "the run ended at step 7" in done.stderr
  assert (unbroken / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_of_four_devices_goes_on_with_one(unbroken, tmp_path):
  workdir, flags = tmp_path / "run", _flags(unbroken)
  program_runs.run_and_kill(_SMOKE, workdir, *flags, lines=5, devices=4)
  done = program_runs.run(_SMOKE, workdir, *flags)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "resumed at step" in done.stderr
  expected, actual = (
    program_runs.leaves(path) for path in (unbroken / "run", workdir)
  )
  assert actual.keys() == expected.keys() and actual["step"] == 7
  for name, value in expected.items():
    # Four devices add up in another order than one does. The momentum, a sum of
    # gradients, is compared as well: the learning rate plays no part in it. But
    # now and then rounding turns the sign of an activation or a pseudo-label,
    # which moves the gradients of a network by a tenth, so it is compared as a
    # whole, and biases, which began at zero and hold nothing else, with it. The
    # share of a device that is lost, or counted twice, is a quarter.
    away = np.abs(np.float64(actual[name]) - value)
    if name.startswith("opt_state") or name.endswith("/bias"):
      worst, limit = np.linalg.norm(away) / np.linalg.norm(value), 0.2
    else:
      worst, limit = away.max() / max(np.abs(value).max(), 1e-3), 2e-3
    assert worst < limit, f"{name}: {worst}"
  # The same samples in every step: others differ in the second digit.
  for row, other in zip(_rows(unbroken / "run"), _rows(workdir), strict=True):
    assert row.keys() == other.keys()
    if "loss" in row:
      assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
