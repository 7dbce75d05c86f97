"""Running the command line in a process of its own, for tests."""

import os
import subprocess
import sys
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
  config: str, workdir, *flags: str, lines: int, devices: int = 1
) -> None:
  """Kills a program as soon as it has printed so many progress lines."""
  process = subprocess.Popen(
    command(config, workdir, *flags),
    env=environment(devices=devices),
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )
  seen = 0
  for line in process.stderr:
    seen += line.startswith("step ")
    if seen == lines:
      process.kill()
      break
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
