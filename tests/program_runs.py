"""Running the command line in a process of its own, for tests."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def command(config: str, workdir, *flags: str) -> list[str]:
  """The command line of a program."""
  return [
    sys.executable,
    "-m",
    "wsegpc_jax.main",
    f"--config={config}",
    f"--workdir={workdir}",
    *flags,
  ]


def environment(*, devices: int = 1) -> dict[str, str]:
  """One CPU device, or several emulated ones."""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += f" --xla_force_host_platform_device_count={devices}"
  return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run(
  config: str, workdir, *flags: str, devices: int = 1
) -> subprocess.CompletedProcess:
  """Runs a program to its end."""
  return subprocess.run(
    command(config, workdir, *flags),
    env=environment(devices=devices),
    capture_output=True,
    text=True,
  )


def run_and_kill(
  config: str,
  workdir,
  *flags: str,
  lines: int,
  moment: float = 0.0,
  devices: int = 1,
) -> None:
  """Kills a program at any moment between two progress lines.

  Args:
    config, workdir, *flags, devices: as for `run`.
    lines: progress lines to wait for.
    moment: then so much of the time that the last line took, so that a slow
      machine is killed at the same point of its work.
  """
  process = _start(config, workdir, *flags, devices=devices)
  seen, last, took = 0, time.monotonic(), 0.0
  for line in process.stderr:
    if line.startswith("step "):
      seen += 1
      took, last = time.monotonic() - last, time.monotonic()
    if seen == lines:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment * took)
      break
  _kill(process)


def run_and_kill_while_saving(config: str, workdir, *flags: str) -> None:
  """Kills a program while the first checkpoint of its life is written."""
  folder = Path(workdir) / "checkpoints"
  before = set(folder.glob("*"))
  process = _start(config, workdir, *flags)
  drain = threading.Thread(target=process.stderr.read)
  drain.start()
  while set(folder.glob("*")) <= before and process.poll() is None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(0.001)
  process.kill()
  drain.join()
  _kill(process)


def _start(config, workdir, *flags, devices=1) -> subprocess.Popen:
  return subprocess.Popen(
    command(config, workdir, *flags),
    env=environment(devices=devices),
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )


def _kill(process) -> None:
  process.kill()
  process.stderr.close()
  process.wait()


def leaves(workdir) -> dict[str, np.ndarray]:
  """All arrays of the latest checkpoint, by name."""
  from flax import traverse_util

  from wsegpc_jax import checkpoints

  keys = ("step", "params", "batch_stats", "opt_state")
  keys += ("ema_params", "ema_batch_stats", "selected_3d", "selected_2d")
  tree, _ = checkpoints.restore_partial(workdir, keys=keys, which="latest")
  return traverse_util.flatten_dict(tree, sep="/")
