"""Peers as programs that answer, and the timing of several in turns.

Shared by the benchmarks on a CPU, with their options. A peer runs in a
process of its own and in an environment of its own; it reads commands, a line
each, and answers each with a line of JSON, or with {"error": why} at the end.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import DataError

Times = dict[str, float]  # "seconds", "cpu_seconds"
CONSTRAINTS = Path(__file__).parent / "constraints.txt"
_MARKER = "requirements_installed.txt"


class Options(argparse.ArgumentParser):
  """Options of a benchmark, --rounds and --json among them.

  Args:
    text: the program's documentation, shown as it is.
    rounds: default of --rounds.
  """

  def __init__(self, text: str, *, rounds: int):
    super().__init__(
      description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    self.option("--rounds", type=int, default=rounds)
    self.option("--json", help="file for all numbers")

  def option(self, name: str, **options) -> None:
    """Adds one; without a help, that is its default."""
    self.add_argument(name, **{"help": "default: %(default)s"} | options)

  def parse(
    self, argv: Sequence[str] | None, *positive: str
  ) -> argparse.Namespace:
    """Parses; refuses --rounds, and those named, if they are not above 0."""
    args = self.parse_args(argv)
    for name in (*positive, "rounds"):
      if not getattr(args, name) > 0:
        self.error(f"--{name}: expected more than 0")
    return args


def report(
  result: dict, table: Callable[[dict], str], path: str | None
) -> dict:
  """Prints the table of a result, writes all of it if asked, and returns it."""
  print(table(result))
  if path:
    with atomic_write(path, "w") as file:
      json.dump(result, file, indent=1)
  return result


def use_cores(number: int) -> None:
  """Keeps this process and its children on so many cores.

  Comes before XLA's first use, which takes as many threads as cores.
  """
  cores = sorted(os.sched_getaffinity(0))
  if number > len(cores):
    raise DataError(f"--threads {number}: expected at most {len(cores)} cores")
  os.sched_setaffinity(0, cores[:number])


def make_environment(folder: Path, names: list[str]) -> str:
  """The Python of a virtual environment with some packages, made if need be.

  Args:
    folder: where it lies or will lie.
    names: packages; their versions are those of `constraints.txt`.

  Raises:
    DataError: pip or venv failed.
  """
  python = folder / "bin" / "python"
  if not names:
    return ""
  versions = dict(
    line.split("==")
    for line in CONSTRAINTS.read_text().split("\n")
    if "==" in line
  )
  wanted = [f"{name}=={versions[name]}" for name in names]
  marker = folder / _MARKER
  have = marker.read_text().split() if marker.is_file() else []
  if not set(wanted) <= set(have):
    print(f"{folder}: installing {', '.join(wanted)}", file=sys.stderr)
    pip = [python, "-m", "pip", "install", "--quiet", *wanted]
    for command in ([sys.executable, "-m", "venv", folder], pip):
      done = subprocess.run(command, capture_output=True, text=True)
      if done.returncode:
        raise DataError(
          f"--environment {folder}: {last_line(done.stderr)}; expected to"
          f" install {', '.join(wanted)}"
        )
    with atomic_write(marker, "w") as file:
      file.write("\n".join([*dict.fromkeys([*have, *wanted]), ""]))
  return str(python)


def last_line(text: str) -> str:
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1] if lines else "no message"


def timed(function: Callable[[], object]) -> Times:
  """Wall and processor time of a call."""
  began, used = time.perf_counter(), time.process_time()
  function()
  seconds, cpu = time.perf_counter() - began, time.process_time() - used
  return {"seconds": seconds, "cpu_seconds": cpu}


class Peer:
  """A program that answers each line with a line of JSON."""

  def __init__(self, process: subprocess.Popen, name: str, log: IO[str]):
    self._process, self._name, self._log = process, name, log
    self.versions = self._read()

  def logits(self, path: Path) -> np.ndarray:
    """Its logits [M, K], by way of a file."""
    self.ask(f"logits {path}")
    return np.load(path)

  def inference(self) -> Times:
    return self.ask("inference")

  def step(self) -> Times:
    """Also has "loss" and "grad_norm"."""
    return self.ask("step")

  def ask(self, command: str) -> dict:
    """The answer to a command.

    Raises:
      DataError: the program ended; the message has its last line.
    """
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(command + "\n")
      self._process.stdin.flush()
    return self._read()

  def _read(self):
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    self._process.wait()
    self._log.seek(0)
    reason = last_line(self._log.read())
    raise DataError(f"the peer {self._name} ended: {reason}")


@contextlib.contextmanager
def start_peer(command: list, name: str, **options) -> Iterator[Peer]:
  """Runs a peer; it ends with the context. `options` are those of Popen."""
  with (
    tempfile.TemporaryFile("w+") as log,
    subprocess.Popen(
      [str(word) for word in command],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      **options,
    ) as process,
  ):
    try:
      yield Peer(process, name, log)
    finally:
      process.kill()


def difference(theirs, ours) -> float:
  """Largest difference over the largest of ours; infinity for other shapes."""
  if np.shape(theirs) != np.shape(ours):
    return math.inf
  largest = np.abs(ours).max(initial=0)
  return float(np.abs(np.subtract(theirs, ours)).max(initial=0) / largest)


def measure(
  tasks: dict[str, Callable[[], Times]], rounds: int
) -> dict[str, list[Times]]:
  """Times of every task in every round, after a round that does not count.

  Each round begins with another task: none always follows the same one.
  """
  times = {name: [] for name in tasks}
  names = list(tasks)
  for i in tqdm(range(rounds + 1), desc="measuring", disable=None):
    first = i % len(names)
    for name in names[first:] + names[:first]:
      times[name].append(tasks[name]())
  return {name: values[1:] for name, values in times.items()}


def seconds_of(times: dict[str, list[Times]]) -> dict[str, np.ndarray]:
  return {k: np.array([t["seconds"] for t in v]) for k, v in times.items()}


def spread(values) -> list[float]:
  """[median, least, most]."""
  return [float(f(values)) for f in (np.median, np.min, np.max)]
