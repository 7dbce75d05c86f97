"""Checkpoints of a run: the latest and the best, safe against a kill.

Written by orbax into <workdir>/checkpoints/<step>. A checkpoint holds plain
arrays by name, with no trace of the devices they came from, so that it loads
on any number of them, and the checksum of each array, so that a damaged file
is found out instead of trained on.
"""

import errno
import functools
import json
import math
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from orbax.checkpoint import checkpoint_managers

from wsegpc_jax.types import DataError

_FOLDER = "checkpoints"

State = TypeVar("State")


class Checkpoints:
  """The checkpoints of one working directory.

  Reading makes, changes and deletes nothing, so a run's checkpoints can be
  read while it goes on. The first save makes the folder and clears what a
  killed process left half-written; only one process may save.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    keep_latest: int = 1,
    keep_best: int = 1,
    best_metric: str = "miou",
  ):
    """Looks at <workdir>/checkpoints, which need not exist yet.

    Args:
      workdir: working directory of the run.
      keep_latest: number of latest checkpoints to keep, at least 1.
      keep_best: number of best checkpoints to keep besides.
      best_metric: the metric to judge by, higher is better; of equal ones the
        later is better, and one without it (or NaN) never is.

    Raises:
      DataError: the path is not a folder, or a checkpoint is damaged.
    """
    if keep_latest < 1 or keep_best < 0:
      raise ValueError("keep_latest must be at least 1, keep_best at least 0")
    self._root = pathlib.Path(os.path.abspath(workdir)) / _FOLDER
    self._keep_latest = keep_latest
    self._keep_best = keep_best
    self._best_metric = best_metric
    self._writable = False
    _mute_late_callbacks()
    self._manager = self._open()

  def latest_step(self) -> int | None:
    """Step of the latest checkpoint; None if there is none."""
    self.wait()
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Step of the best checkpoint; None if none has the metric."""
    self.wait()
    step = self._manager.best_step()
    if step is None or self._score(self._manager.metrics(step)) == -math.inf:
      return None
    return step

  def save(
    self,
    step: int,
    state: Any,
    *,
    host: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Saves a checkpoint in the background.

    The arrays are copied before this returns, so that their buffers may be
    donated at once. Older checkpoints are deleted after it is written. An
    error while writing is raised by the next call of any method.

    Args:
      step: steps done; the name of the checkpoint.
      state: struct, or nested dict, of arrays.
      host: what else a resumed run needs; JSON-able (comes back as JSON does:
        keys are strings, tuples are lists).
      metrics: scores of this state.

    Returns:
      False, and nothing is done, if there is a checkpoint of this step.

    Raises:
      ValueError: there is a checkpoint of a later step.
      TypeError: a leaf of the state is not an array, or `host` is not JSON.
      OSError: the disk is full, or an earlier save failed; what was there
        before still is.
    """
    step = int(step)
    self.wait()
    steps = self._manager.all_steps()
    if step in steps:
      return False
    if steps and step < max(steps):
      raise ValueError(
        f"cannot save step {step}: {self._root} has one of step {max(steps)}; "
        "remove it, or use another working directory"
      )
    leaves = _to_host(state)
    record = _record(leaves, host)
    if not self._writable:
      self._manager.close()
      self._writable = True
      self._manager = self._open()
    _check_space(self._root, sum(leaf.nbytes for leaf in leaves.values()))
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          # Orbax takes no empty arrays; the record has their shape.
          state=ocp.args.PyTreeSave(_not_empty(leaves)),
          host=ocp.args.JsonSave(record),
        ),
        # Not None, about which orbax would complain at every save.
        metrics={k: float(v) for k, v in (metrics or {}).items()},
        force=True,
      )
    except Exception as error:
      raise self._failed(error) from error
    return True

  def restore(
    self, abstract_state: State, step: int | None = None
  ) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint, bit for bit as it was saved.

    Args:
      abstract_state: what is expected: the structure of the state with arrays
        or `jax.ShapeDtypeStruct`s for leaves. Their shardings say where the
        arrays go; without one they go to the default device.
      step: which checkpoint; by default the latest.

    Returns:
      The state, and what was given as `host`.

    Raises:
      DataError: there is no such checkpoint, it is damaged, or it is one of
        another model.
    """
    step = self.latest_step() if step is None else step
    folder = self._folder(step)
    record = self._read_record(step)
    _check_fit(folder, record["leaves"], _arrays(abstract_state))
    leaves = self._read_leaves(step, record["leaves"])
    return _rebuild(abstract_state, leaves), record["host"]

  def wait(self) -> None:
    """Waits for the save under way, if any; OSError if it failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def close(self) -> None:
    """Waits for the save under way and frees the threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _open(self) -> ocp.CheckpointManager:
    # `best_fn` with `max_to_keep` would delete the latest: hence the policies.
    latest = checkpoint_managers.LatestN(self._keep_latest)
    best = checkpoint_managers.BestN(
      get_metric_fn=self._score,
      n=self._keep_best,
      keep_checkpoints_without_metrics=False,
    )
    policy = checkpoint_managers.AnyPreservationPolicy([latest, best])
    if self._root.exists() and not self._root.is_dir():
      raise DataError(f"{self._root} must be a folder, and is a file")
    alone = None
    if jax.process_count() > 1:
      # Each process reads by itself and one writes: no barrier among them.
      me = jax.process_index()
      alone = ocp.options.MultiprocessingOptions(
        primary_host=me,
        active_processes={me},
        barrier_sync_key_prefix=f"process{me}",
      )
      if self._writable:
        self._root.mkdir(parents=True, exist_ok=True)
    try:
      return ocp.CheckpointManager(
        self._root,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policy,
          best_fn=self._score,
          create=self._writable and alone is None,
          cleanup_tmp_directories=self._writable,
          **({} if alone is None else {"multiprocessing_options": alone}),
        ),
      )
    except ValueError as error:
      folder = _blame(self._root)
      if folder is None:
        raise
      raise self._damaged(folder, error) from error

  def _score(self, metrics: Mapping[str, float] | None) -> float:
    value = (metrics or {}).get(self._best_metric)
    return -math.inf if value is None or math.isnan(value) else value

  def _need_best(self) -> int:
    step = self.best_step()
    if step is None:
      raise DataError(
        f"{self._root} has no checkpoint with the metric "
        f"{self._best_metric!r}; ask for the latest one instead"
      )
    return step

  def _folder(self, step: int | None) -> pathlib.Path:
    steps = self._manager.all_steps()
    if step is None or step not in steps:
      wanted = "" if step is None else f" of step {step}"
      there = f", only of steps {sorted(steps)}" if steps else ""
      raise DataError(f"{self._root} has no checkpoint{wanted}{there}")
    return self._root / str(step)

  def _read_record(self, step: int) -> dict[str, Any]:
    folder = self._folder(step)
    try:
      args = ocp.args.Composite(host=ocp.args.JsonRestore())
      record = self._manager.restore(step, args=args)["host"]
      if _checksum_json(record) != record["crc32"]:
        raise ValueError("the checksum of its record is wrong")
      return record
    except Exception as error:
      raise self._damaged(folder, error) from error

  def _read_leaves(
    self, step: int, wanted: Mapping[str, list[Any]]
  ) -> dict[str, np.ndarray]:
    folder = self._folder(step)
    leaves = {
      key: np.zeros(shape, np.dtype(dtype))
      for key, (dtype, shape, _) in wanted.items()
    }
    tree = _not_empty(leaves)
    plain = ocp.RestoreArgs(restore_type=np.ndarray)
    try:
      if tree:
        args = ocp.args.PyTreeRestore(
          item=tree,
          restore_args=dict.fromkeys(tree, plain),
          partial_restore=True,
        )
        leaves |= self._manager.restore(
          step, args=ocp.args.Composite(state=args)
        )["state"]
      for key, leaf in leaves.items():
        if _describe(leaf) != wanted[key]:
          raise ValueError(f"the checksum of {key} is wrong")
    except Exception as error:
      raise self._damaged(folder, error) from error
    return leaves

  def _damaged(self, folder: pathlib.Path, error: Exception) -> DataError:
    names = [path.name for path in self._root.glob("[0-9]*") if path != folder]
    steps = [int(name) for name in names if name.isdecimal()]
    advice = "there is no other; start anew in another working directory"
    if steps:
      advice = f"move this folder away to go on from step {max(steps)}"
    return DataError(
      f"the checkpoint {folder} cannot be read, it is damaged or not one of "
      f"this program ({_reason(error)}); {advice}"
    )

  def _failed(self, error: Exception) -> OSError:
    # The steps that were to go once this one is written are still there.
    self._manager.reload()
    number = getattr(error, "errno", None) or errno.EIO
    text = "a checkpoint could not be written, the earlier ones are kept"
    return OSError(number, f"{text} ({_reason(error)})", str(self._root))


def restore_partial(
  workdir: str | os.PathLike[str],
  *,
  keys: tuple[str, ...],
  which: Literal["best", "latest"] = "best",
  best_metric: str = "miou",
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads some top-level entries of another run's checkpoint.

  Needs no knowledge of the rest, such as the optimiser's state. Nothing is
  written, and the run may still be going on.

  Args:
    workdir: working directory of that run.
    keys: names of fields of its state, such as ("params", "batch_stats").
    which: its best checkpoint or its latest.
    best_metric: what best is judged by.

  Returns:
    The entries as nested dicts of numpy arrays (structs and tuples become
    dicts by field name or position), and what was given as `host`.

  Raises:
    DataError: the folder holds no checkpoints, none has the metric, the
      checkpoint is damaged, or has nothing under a key.
  """
  if which not in ("best", "latest"):
    raise ValueError(f'which must be "best" or "latest", got {which!r}')
  if not (root := pathlib.Path(workdir) / _FOLDER).exists():
    raise DataError(f"{root} does not exist: expected a run's folder above it")
  with Checkpoints(workdir, best_metric=best_metric) as checkpoints:
    best = which == "best"
    step = checkpoints._need_best() if best else checkpoints.latest_step()
    folder = checkpoints._folder(step)
    record = checkpoints._read_record(step)
    top = {name: name.split("/")[0] for name in record["leaves"]}
    if missing := [key for key in keys if key not in top.values()]:
      raise DataError(
        f"the checkpoint {folder} has nothing under {missing[0]!r}, only under "
        f"{', '.join(sorted(set(top.values())))}"
      )
    wanted = {k: v for k, v in record["leaves"].items() if top[k] in keys}
    leaves = checkpoints._read_leaves(step, wanted)
  return traverse_util.unflatten_dict(leaves, sep="/"), record["host"]


def _named(state: Any) -> dict[tuple[str, ...], Any]:
  """The leaves of a state by path, with None and empty nodes among them."""
  tree = serialization.to_state_dict(state)
  if not isinstance(tree, dict):
    raise TypeError(
      f"the state must be a flax struct or a dict, got {type(state).__name__}"
    )
  return traverse_util.flatten_dict(tree, keep_empty_nodes=True)


def _arrays(state: Any) -> dict[str, Any]:
  return {
    "/".join(path): leaf
    for path, leaf in _named(state).items()
    if leaf is not None and leaf is not traverse_util.empty_node
  }


def _not_empty(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {key: leaf for key, leaf in leaves.items() if leaf.size}


def _to_host(state: Any) -> dict[str, np.ndarray]:
  leaves = _arrays(state)
  for key, leaf in leaves.items():
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    # A typed random key has a dtype of its own kind.
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
      raise TypeError(f"{key} is not a plain array, but {type(leaf).__name__}")
  # Views, on a CPU; orbax copies what lies on the host before save returns.
  return {k: np.asarray(leaf) for k, leaf in jax.device_get(leaves).items()}


def _describe(leaf: np.ndarray) -> list[Any]:
  data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
  return [str(leaf.dtype), list(leaf.shape), zlib.crc32(data)]


def _record(
  leaves: Mapping[str, np.ndarray], host: Mapping[str, Any]
) -> dict[str, Any]:
  try:
    record = {
      # Through JSON now: later, `host` may have changed.
      "host": json.loads(json.dumps(host)),
      "leaves": {key: _describe(leaf) for key, leaf in leaves.items()},
    }
  except (TypeError, ValueError) as error:
    raise TypeError(f"host must be JSON-able: {error}") from error
  return record | {"crc32": _checksum_json(record)}


def _check_space(root: pathlib.Path, size: int) -> None:
  # Found out while writing it would be an error from deep inside the storage.
  free = shutil.disk_usage(root).free
  if free < size:
    need = f"a checkpoint takes {size >> 20} MiB, {free >> 20} MiB are free"
    raise OSError(errno.ENOSPC, f"the disk is full: {need}", str(root))


def _checksum_json(record: Mapping[str, Any]) -> int:
  text = json.dumps([record["host"], record["leaves"]], sort_keys=True)
  return zlib.crc32(text.encode())


def _check_fit(
  folder: pathlib.Path,
  saved: Mapping[str, list[Any]],
  expected: Mapping[str, Any],
) -> None:
  faults = []
  for key in sorted({*saved, *expected}):
    there = _shown(*saved[key][:2]) if key in saved else "missing"
    here = "unknown"
    if key in expected:
      leaf = expected[key]
      leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
      here = _shown(leaf.dtype, leaf.shape)
    if there != here:
      faults.append(f"{key} is {there} in the checkpoint and {here} here")
  if faults:
    more = f" (and {len(faults) - 1} more differences)" if faults[1:] else ""
    raise DataError(
      f"the checkpoint {folder} is of another model or optimiser: "
      f"{faults[0]}{more}"
    )


def _shown(dtype: Any, shape: Any) -> str:
  return f"{dtype} {list(shape)}"


def _rebuild(abstract_state: State, leaves: Mapping[str, np.ndarray]) -> State:
  flat = _named(abstract_state)
  for path, like in flat.items():
    if (key := "/".join(path)) in leaves:
      flat[path] = _place(leaves[key], like)
  tree = traverse_util.unflatten_dict(flat)
  return serialization.from_state_dict(abstract_state, tree)


def _place(value: np.ndarray, like: Any) -> Any:
  if isinstance(like, bool | int | float):
    return type(like)(value.item())
  if isinstance(like, np.ndarray | np.generic):
    return value
  sharding = getattr(like, "sharding", None)
  # An array that was never put anywhere stays free to follow the others.
  free = isinstance(like, jax.Array) and not like.committed
  return jax.device_put(value, None if free else sharding)


def _reason(error: Exception) -> str:
  # Orbax and tensorstore append pages of context.
  text = str(error).strip().split("\n")[0].split(" [tensorstore_spec")[0]
  return f"{type(error).__name__}: {text[:300]}"


@functools.cache
def _mute_late_callbacks() -> None:
  """Keeps one failed read or write from printing a traceback per array.

  Orbax closes its event loop at the first array that fails; the callbacks of
  the others then find it closed, in threads that nobody can catch them in. The
  first error is raised as it should be.
  """
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    error = unraisable.exc_value
    late = isinstance(error, RuntimeError) and "loop is closed" in str(error)
    if not late or unraisable.object is not None:
      previous(unraisable)

  sys.unraisablehook = hook


def _blame(root: pathlib.Path) -> pathlib.Path | None:
  """The first checkpoint whose metrics, read on opening, are not JSON."""
  for path in sorted(root.glob("*/metrics/metrics")):
    try:
      json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
      return path.parent.parent
  return None
