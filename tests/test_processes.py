"""Two processes train as one process with all devices does."""

import json
import socket
import subprocess

import numpy as np
import program_runs

_SMOKE = f"{program_runs.CONFIGS}/tiny_cmg.py:smoke"


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _start_two(workdir, *flags, second=()) -> list[subprocess.Popen]:
  """Both processes of a cluster on this machine, the second with more flags."""
  cluster = (f"--coordinator=127.0.0.1:{_free_port()}", "--num_processes=2")
  return [
    subprocess.Popen(
      program_runs.command(
        _SMOKE, workdir, *flags, *cluster, f"--process_id={i}", *more
      ),
      env=program_runs.environment(devices=2),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, more in enumerate(((), second))
  ]


def test_two_processes_equal_one(tmp_path):
  flags = (
    f"--config.data.root={tmp_path}/rooms",
    "--config.train.total_steps=2",
    "--config.train.eval_every=2",
    "--config.train.batch_size=3",  # uneven: the fourth device has no scene
    "--config.data.threads=1",
  )
  done = program_runs.run(_SMOKE, tmp_path / "one", *flags, devices=4)
  assert done.returncode == 0, done.stderr[-3000:]

  processes = _start_two(tmp_path / "two", *flags)
  errors = [p.communicate()[1] for p in processes]
  assert [p.returncode for p in processes] == [0, 0], errors

  one, two = (program_runs.leaves(tmp_path / name) for name in ("one", "two"))
  assert one.keys() == two.keys() and one["step"] == 2
  for name, value in one.items():
    # The processes add up in another order than the devices of one do.
    np.testing.assert_allclose(
      two[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )
  scores = [
    (tmp_path / name / "eval" / "val_step_0000002.json").read_text()
    for name in ("one", "two")
  ]
  one, two = (json.loads(text) for text in scores)
  assert one["points"] == two["points"] > 0
  assert abs(one["allacc"] - two["allacc"]) < 0.01


def test_a_process_that_fails_ends_the_other(tmp_path):
  data = f"--config.data.root={tmp_path}/rooms"
  processes = _start_two(
    tmp_path / "run", data, second=("--config.train.lr=-1",)
  )
  errors = [p.communicate()[1] for p in processes]
  assert "error: config.train.lr=-1.0; expected a positive" in errors[1]
  # The first one has done nothing wrong, but does not wait forever.
  assert 0 not in [p.returncode for p in processes], errors
