"""What a run leaves in its working directory, and its progress on the screen.

config.json and versions.json say what ran, metrics.jsonl (and TensorBoard) how
it went. Everything here survives a run that is killed and resumed.
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from absl import logging

from wsegpc_jax.files import atomic_write, write_error
from wsegpc_jax.types import DataError

_PACKAGES = (
  "wsegpc-jax",
  "numpy",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
)
_ROW_FIELDS = ("step", "total_steps", "time", "nonfinite")


class Writer:
  """Appends scalars to <workdir>/metrics.jsonl and to TensorBoard.

  One line of JSON a call: `step`, `total_steps`, `time` (UTC), the scalars. A
  scalar that is not finite is null there, and `nonfinite` tells which it was.

  On resuming, rows of later steps than `resume_step` are taken out, so that
  each step of a killed and resumed run is there once; they and lines that are
  not whole go to metrics.dropped.jsonl. Write the rows of a step before its
  checkpoint is saved.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    total_steps: int,
    resume_step: int = 0,
  ):
    """Opens the files of `workdir`, which is made if need be.

    Args:
      workdir: working directory of the run.
      total_steps: steps of the whole run, written with each row.
      resume_step: step of the checkpoint the run goes on from; 0 = it starts
        anew, and no earlier row is kept.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = workdir / "metrics.jsonl"
    self._total_steps = total_steps
    _drop_rows(self._path, resume_step)
    self._file = open(self._path, "a", encoding="utf-8")
    self._board = _open_tensorboard(workdir / "tensorboard", resume_step)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one row; scalars may be numbers or 0-d arrays.

    Raises:
      ValueError: a scalar has the name of a field that every row has.
      OSError: the row cannot be written, for instance because the disk is full.
    """
    step = int(step)
    values = {name: float(value) for name, value in scalars.items()}
    if clash := [name for name in _ROW_FIELDS if name in values]:
      raise ValueError(f"a scalar cannot be named {clash[0]!r}")
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    odd = {k: str(v) for k, v in values.items() if not math.isfinite(v)}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = {
      "step": step,
      "total_steps": self._total_steps,
      "time": now,
      **finite,
    }
    if odd:
      row["nonfinite"] = odd
    try:
      self._file.write(json.dumps(row, allow_nan=False) + "\n")
      self._file.flush()
    except OSError as error:
      raise write_error(self._path, error) from error
    if self._board is not None:
      for name, value in finite.items():
        if value is not None:
          self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    if self._board is not None:
      self._board.close()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class Progress:
  """A line on the screen that says how far a run is and how fast.

  On a terminal the line is rewritten in place, elsewhere lines follow each
  other. Rates cover the time since the line before; the time left is judged by
  the steps after the first, which compiles.
  """

  def __init__(
    self,
    total_steps: int,
    *,
    start: int,
    every_seconds: float,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: steps of the whole run.
      start: steps done before, by the run that this one resumes.
      every_seconds: least time between two lines; the first update and the
        last step have a line in any case.
      stream: where to, by default standard error.
      clock: time in seconds, replaced in tests.
    """
    self._total = total_steps
    self._every = every_seconds
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._isatty = self._stream.isatty()
    self._width = 0  # of the line standing on the terminal
    self._printed: float | None = None
    self._since = clock()
    self._scenes = 0.0
    self._wait = 0.0
    # Where the estimate of the time left counts from.
    self._origin = (start, self._since)
    self._updates = 0

  def update(
    self,
    step: int,
    *,
    scalars: Mapping[str, float],
    scenes: int,
    wait_seconds: float,
  ) -> None:
    """Reports that `step` steps are done.

    Args:
      step: steps done so far, of the whole run.
      scalars: losses, learning rate and the like, shown in this order. They
        are read only when a line is due, so that device arrays are not waited
        for at every step.
      scenes: scenes trained on since the update before.
      wait_seconds: time spent waiting for data since the update before.
    """
    now = self._clock()
    self._scenes += scenes
    self._wait += wait_seconds
    self._updates += 1
    due = self._printed is None or now - self._printed >= self._every
    if due or step >= self._total:
      self._print(self._line(step, scalars, now))
      self._printed = self._since = now
      self._scenes = self._wait = 0.0
    if self._updates == 1:
      self._origin = (step, now)

  def close(self) -> None:
    """Ends the line that stands on a terminal."""
    if self._width:
      self._stream.write("\n")
      self._stream.flush()
      self._width = 0

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _line(self, step: int, scalars: Mapping[str, float], now: float) -> str:
    parts = [f"step {step}/{self._total}"]
    parts += [f"{name} {float(value):.4g}" for name, value in scalars.items()]
    span = now - self._since
    if span > 0:
      parts.append(f"{self._scenes / span:.2f} scenes/s")
      parts.append(f"waiting for data {min(self._wait / span, 1):.0%}")
    origin_step, origin = self._origin
    if step > origin_step and now > origin:
      left = (self._total - step) * (now - origin) / (step - origin_step)
      parts.append(f"left {datetime.timedelta(seconds=max(round(left), 0))}")
    if self._isatty and parts[-1].startswith("left"):
      # What does not fit on a terminal is cut off: the time left is not.
      parts.insert(1, parts.pop())
    return "  ".join(parts)

  def _print(self, line: str) -> None:
    if self._isatty:
      # A line that wraps could not be rewritten.
      line = line[: max(shutil.get_terminal_size().columns - 1, 1)]
      self._stream.write("\r" + line.ljust(self._width))
      self._width = len(line)
    else:
      self._stream.write(line + "\n")
    self._stream.flush()


def save_run_info(
  workdir: str | os.PathLike[str],
  config_json: str | dict[str, Any],
  config_name: str,
) -> None:
  """Writes config.json and versions.json, which say what runs here.

  A file that was there and says something else is kept beside the new one, as
  config.1.json, config.2.json and so on.

  Args:
    workdir: working directory of the run, made if need be.
    config_json: the resolved config.
    config_name: the name under which it was asked for.

  Raises:
    ValueError: the config is not JSON.
    OSError: a file cannot be written.
  """
  if isinstance(config_json, str):
    config_json = json.loads(config_json)
  workdir = pathlib.Path(workdir)
  _write_keeping(workdir / "config.json", config_json)
  _write_keeping(workdir / "versions.json", _versions(config_name))


def check_same_config(
  workdir: str | os.PathLike[str],
  config: dict[str, Any],
  *,
  ignore: tuple[str, ...] = (),
  defaults: Mapping[str, Any] | None = None,
) -> None:
  """Refuses a working directory that holds a run of another config.

  Args:
    workdir: working directory; without a config.json anything goes.
    config: the resolved config of the run to come, JSON-able.
    ignore: dotted names of entries that may differ, with all below them.
    defaults: values of entries that the run's config does not have yet, because
      it was written by an earlier version.

  Raises:
    DataError: the configs differ; names the first few entries that do.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    return
  try:
    old = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise DataError(f"{path} is not JSON: {error}") from error
  # Through JSON, so that a tuple here equals the list that it became there.
  old, new = _flat(old), _flat(json.loads(json.dumps(config)))
  if defaults:
    old = _flat(json.loads(json.dumps(defaults))) | old
  differing = [
    key
    for key in dict.fromkeys((*old, *new))
    if old.get(key, _UNSET) != new.get(key, _UNSET)
    and not any(key == name or key.startswith(name + ".") for name in ignore)
  ]
  if not differing:
    return
  listed = "; ".join(
    f"{key} was {_shown(old, key)} and is now {_shown(new, key)}"
    for key in differing[:3]
  )
  more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
  raise DataError(
    f"{path} is of a run with another config: {listed}{more}; use another "
    "working directory, or the old config"
  )


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON to a file, all or nothing; makes its folder if need be.

  Raises:
    ValueError: the value is not JSON-able, or holds NaN or infinity.
    OSError: the file cannot be written, for instance because the disk is full;
      what stood there before still does.
  """
  path = pathlib.Path(path)
  _write_text(path, _dump(path, value))


def _dump(path: pathlib.Path, value: Any) -> str:
  try:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
  except (TypeError, ValueError) as error:
    raise ValueError(f"cannot write {path} as JSON: {error}") from error


def _write_text(path: pathlib.Path, text: str) -> None:
  with atomic_write(path, "w") as file:
    file.write(text)


def _write_keeping(path: pathlib.Path, value: Any) -> None:
  text = _dump(path, value)
  if path.exists():
    if path.read_text(encoding="utf-8") == text:
      return
    number = 1
    while path.with_suffix(f".{number}.json").exists():
      number += 1
    try:
      # A copy, so that at no moment there is no file of this name.
      shutil.copy2(path, path.with_suffix(f".{number}.json"))
    except OSError as error:
      raise write_error(path, error) from error
  _write_text(path, text)


def _drop_rows(path: pathlib.Path, resume_step: int) -> None:
  """Leaves the whole rows up to `resume_step`, moves the others aside."""
  if not path.exists():
    return
  # Not text mode: a row cut in the middle of a character must not stop a run.
  text = path.read_bytes().decode("utf-8", errors="replace")
  kept, dropped = [], []
  for line in filter(None, text.split("\n")):
    try:
      keep = resume_step > 0 and json.loads(line)["step"] <= resume_step
    except (ValueError, TypeError, KeyError):
      keep = False
    (kept if keep else dropped).append(line + "\n")
  if dropped:
    with open(
      path.with_suffix(".dropped.jsonl"), "a", encoding="utf-8"
    ) as file:
      file.writelines(dropped)
    logging.info("%s: %d later or broken rows dropped", path, len(dropped))
  if text != "".join(kept):
    _write_text(path, "".join(kept))


def _open_tensorboard(folder: pathlib.Path, resume_step: int) -> Any:
  try:
    import tensorboardX
  except ImportError:
    logging.warning(
      "tensorboardX is not installed (pip install tensorboardX): scalars go to "
      "metrics.jsonl only"
    )
    return None
  return tensorboardX.SummaryWriter(
    str(folder),
    # Hides the later steps of the run that is resumed.
    purge_step=resume_step + 1 if resume_step else None,
    flush_secs=30,
    # Names are else unique only by the second, and the later file wins.
    filename_suffix=f".{resume_step}.{os.getpid()}",
  )


def _versions(config_name: str) -> dict[str, Any]:
  import jax

  devices = jax.devices()
  return {
    "config_name": config_name,
    "command": sys.argv,
    "commit": _git_commit(),
    "python": platform.python_version(),
    "packages": {name: _version(name) for name in _PACKAGES},
    "platform": platform.platform(),
    "backend": jax.default_backend(),
    "devices": [device.device_kind for device in devices],
    "processes": jax.process_count(),
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_commit() -> str | None:
  """The commit of this package's sources, "-dirty" if changed since."""
  folder = pathlib.Path(__file__).resolve().parent

  def git(*words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    # An installed copy may lie inside another project's checkout.
    git("ls-files", "--error-unmatch", "types.py")
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
  except (OSError, subprocess.SubprocessError):
    return None


_UNSET = object()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  flat = {}
  for key, entry in value.items():
    flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
  return flat


def _shown(flat: dict[str, Any], key: str) -> str:
  return json.dumps(flat[key]) if key in flat else "not set"
