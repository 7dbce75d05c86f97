"""Converting a whole data set to the asset layout: in parallel, resumable.

What knows a public data set is one function, `convert_one(name)`, which gives
a scene and its frames. The rest is the same for all: worker processes, going
on after a kill, checksums, one bad scene that does not stop the others, and a
table of what came out.

Every scene gets a file `checksums/<scene>.sha256` in the format of sha256sum,
so that `sha256sum -c ../checksums/<scene>.sha256` in its folder checks it, too.

Dimension letters: K classes.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import dataclasses
import errno
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wsegpc_jax.data import assets
from wsegpc_jax.files import atomic_write, write_error
from wsegpc_jax.types import IGNORE_LABEL, DataError, Frame, Scene

ConvertOne = Callable[[str], tuple[Scene, Iterable[Frame]]]


@dataclasses.dataclass(frozen=True)
class Finished:
  """One scene on disk whose files are those that were written.

  Attributes:
    points: number of points.
    frames: number of frames with a pose.
    labels: int64 [K + 1], points of each class, then those without one; None
      if the scene has no labels.
    made: False if it was there already.
  """

  points: int
  frames: int
  labels: np.ndarray | None
  made: bool


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of the scenes: done or not, by name."""

  finished: dict[str, Finished]
  errors: dict[str, str]

  def check(self) -> None:
    """Raises DataError, in one line, if a scene failed."""
    if self.errors:
      scene, why = next(iter(self.errors.items()))
      total = len(self.errors) + len(self.finished)
      raise DataError(
        f"{len(self.errors)} of {total} scenes failed, the first is {scene}"
        f" ({why}); the others are kept, run it again to go on"
      )


def prepare(
  splits: Mapping[str, Sequence[str]],
  convert_one: ConvertOne,
  *,
  root: str | os.PathLike,
  name: str,
  classes: Sequence[str],
  made_by: Mapping[str, Any],
  workers: int = 1,
) -> Report:
  """Writes all scenes and dataset.json, going on with what is there.

  A scene that is there is not made again: its files are compared with their
  checksums, and its `made_by` with the one given here. dataset.json and
  summary.json are written when all scenes are good; splits that it has already
  keep their scenes and get the new ones. Do not run it twice at a time with
  the same scenes.

  Args:
    splits: scene names by split.
    convert_one: gives the scene of a name and its frames, one at a time if
      they come from a generator. It and its arguments can be pickled (a
      function of a module, maybe in `functools.partial`), as it is called in
      other processes.
    root: folder of the data set.
    name: name of the data set.
    classes: the K class names.
    made_by: settings that the result depends on, for JSON.
    workers: number of processes; with 1 it is done in this one.

  Returns:
    What became of each scene. Errors have been printed; see `Report.check`.

  Raises:
    DataError: the folder has a data set of other classes or settings, or a
      scene is in two splits.
    OSError: the disk is full.
  """
  root = Path(root)
  made_by = json.loads(json.dumps(dict(made_by)))
  names = [scene for scenes in splits.values() for scene in scenes]
  twice = [s for s, n in collections.Counter(names).items() if n > 1]
  if twice:
    raise DataError(f"splits: scene {twice[0]} is listed twice, expected once")
  if not names:
    raise DataError("splits: no scenes, expected at least one")
  merged = _merged_splits(root, splits, name, classes, made_by)
  root.mkdir(parents=True, exist_ok=True)
  task = functools.partial(
    _finish_scene, convert_one, root, tuple(classes), made_by
  )
  report = _run(task, names, workers, desc="prepared")
  if not report.errors:
    content = {"made_by": made_by}
    if (root / "dataset.json").exists():
      content = assets.read_json(root / "dataset.json") | {"splits": merged}
      with atomic_write(root / "dataset.json", "w") as file:
        json.dump(content, file, indent=1)
      assets.open_dataset(root)
    else:
      assets.write_dataset(
        root, name=name, classes=classes, splits=merged, extra=content
      )
    # Of the whole data set, scenes of earlier calls among them.
    counts = report.finished | {
      scene: _count(root, tuple(classes), scene, made=False)
      for scenes in merged.values()
      for scene in scenes
      if scene not in report.finished
    }
    summary = summarize(counts, merged, classes)
    print(format_summary(summary))
    with atomic_write(root / "summary.json", "w") as file:
      json.dump(summary, file, indent=1)
  return report


def verify(root: str | os.PathLike, *, workers: int = 1) -> Report:
  """Compares every file of a prepared data set with its checksum.

  Raises:
    DataError: dataset.json is missing or malformed.
  """
  dataset = assets.open_dataset(root)
  names = [s for scenes in dataset.splits.values() for s in scenes]
  task = functools.partial(_check_scene, dataset.root, dataset.classes, None)
  return _run(task, names, workers, desc="verified")


def summarize(
  finished: Mapping[str, Finished],
  splits: Mapping[str, Sequence[str]],
  classes: Sequence[str],
) -> dict[str, Any]:
  """Counts by split: scenes, points, frames, and the label histogram.

  `labels` has, for each class and for "ignored", the number of points and the
  number of scenes in which it occurs; it is None without labelled scenes.
  """
  summary = {}
  for split, scenes in splits.items():
    done = [finished[s] for s in scenes if s in finished]
    labels = [d.labels for d in done if d.labels is not None]
    histogram = None
    if labels:
      points, occurs = np.sum(labels, 0), np.sum(np.array(labels) > 0, 0)
      histogram = {
        name: {"points": int(points[k]), "scenes": int(occurs[k])}
        for k, name in enumerate([*classes, "ignored"])
      }
    summary[split] = {
      "scenes": len(done),
      "points": sum(d.points for d in done),
      "frames": sum(d.frames for d in done),
      "labels": histogram,
    }
  return summary


def format_summary(summary: Mapping[str, Any]) -> str:
  """The summary as a table for people."""
  lines = []
  for split, counts in summary.items():
    lines.append(
      f"{split}: {counts['scenes']} scenes, {counts['points']:,} points, "
      f"{counts['frames']:,} frames"
    )
    if counts["labels"] is None:
      lines.append("  no labels")
      continue
    lines.append(f"  {'class':<16} {'points':>14} {'share':>7} {'scenes':>7}")
    total = max(sum(c["points"] for c in counts["labels"].values()), 1)
    for name, count in counts["labels"].items():
      share = count["points"] / total
      lines.append(
        f"  {name:<16} {count['points']:>14,} {share:>7.2%} "
        f"{count['scenes']:>7}"
      )
  return "\n".join(lines)


def _merged_splits(root, splits, name, classes, made_by):
  """Splits with those of an earlier call; refuses another data set."""
  path = root / "dataset.json"
  if not path.exists():
    return {split: list(scenes) for split, scenes in splits.items()}
  # Not opened: the folder of a scene to be made again may be gone.
  there = assets.read_json(path)
  for field, new in (
    ("name", name),
    ("classes", list(classes)),
    ("made_by", made_by),
  ):
    if (old := there.get(field)) != new:
      raise DataError(
        f"{path}: {field} is {old}, expected {new}; write to another folder or"
        " with the same arguments"
      )
  merged = {split: list(scenes) for split, scenes in there["splits"].items()}
  for split, scenes in splits.items():
    old = merged.setdefault(split, [])
    merged[split] = old + [scene for scene in scenes if scene not in old]
  listed = collections.Counter(s for scenes in merged.values() for s in scenes)
  twice = [s for s, n in listed.items() if n > 1]
  if twice:
    raise DataError(f"{path}: splits has scene {twice[0]} in another split")
  return merged


def _finish_scene(convert_one, root, classes, made_by, scene_name) -> Finished:
  folder = root / scene_name
  if folder.exists():
    return _check_scene(root, classes, made_by, scene_name)
  # Of a run that was killed.
  for left in root.glob(f"{scene_name}.partial-*"):
    shutil.rmtree(left)
  _checksum_path(root, scene_name).unlink(missing_ok=True)
  scene, frames = convert_one(scene_name)
  if scene.name != scene_name:
    raise DataError(f"{scene_name}: came out as {scene.name}")
  extra = {"made_by": made_by}
  try:
    assets.write_scene(root, scene, frames, classes=classes, extra=extra)
    _write_checksums(root, scene_name)
  except OSError as error:
    # numpy tells a full disk by its text alone.
    if error.errno == errno.ENOSPC or " requested and " in str(error):
      raise write_error(folder, OSError(errno.ENOSPC, "")) from error
    raise
  return _count(root, classes, scene_name, made=True)


def _check_scene(root, classes, made_by, scene_name) -> Finished:
  folder = root / scene_name
  found = assets.read_json(folder / "scene.json").get("made_by")
  if made_by is not None and found != made_by:
    raise DataError(
      f"{folder / 'scene.json'}: made_by is {found}, expected {made_by}; write"
      " to another folder or with the same arguments"
    )
  path = _checksum_path(root, scene_name)
  if not path.exists():
    if made_by is None:
      raise DataError(f"{path}: not found, expected the checksums of the scene")
    # Killed between the two: the folder is whole, as its name shows, but may
    # not have reached the disk.
    dataset = assets.AssetDataset(root, "", tuple(classes), {})
    for frame in assets.load_scene(dataset, scene_name).frames:
      assets.load_frame(dataset, scene_name, frame)
    _write_checksums(root, scene_name)
  _compare_checksums(root, scene_name)
  return _count(root, classes, scene_name, made=False)


def _count(root, classes, scene_name, *, made) -> Finished:
  dataset = assets.AssetDataset(root, "", tuple(classes), {})
  scene = dataset.load_scene(scene_name)
  labels = None
  if scene.label is not None:
    k = len(classes)
    labels = np.where(scene.label == IGNORE_LABEL, k, scene.label)
    labels = np.bincount(labels, minlength=k + 1)
  return Finished(len(scene.coord), len(scene.frames), labels, made)


def _checksum_path(root: Path, scene_name: str) -> Path:
  return root / "checksums" / f"{scene_name}.sha256"


def _files(folder: Path) -> list[str]:
  """Paths below a folder, hidden ones left out."""
  paths = (path.relative_to(folder) for path in folder.rglob("*"))
  return sorted(
    path.as_posix()
    for path in paths
    if (folder / path).is_file()
    and not any(part.startswith(".") for part in path.parts)
  )


def _sha256(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _write_checksums(root: Path, scene_name: str) -> None:
  folder = root / scene_name
  with atomic_write(_checksum_path(root, scene_name), "w") as file:
    for name in _files(folder):
      file.write(f"{_sha256(folder / name)}  {name}\n")


def _compare_checksums(root: Path, scene_name: str) -> None:
  path, folder = _checksum_path(root, scene_name), root / scene_name
  lines = path.read_text("utf-8").splitlines()
  expected = {line[66:]: line[:64] for line in lines}
  advice = "remove the scene's folder to have it made again"
  for name in sorted(expected.keys() ^ set(_files(folder))):
    found = "is missing" if name in expected else "was added"
    raise DataError(f"{folder / name}: {found} since it was prepared; {advice}")
  for name, digest in expected.items():
    if _sha256(folder / name) != digest:
      raise DataError(f"{folder / name}: its checksum has changed; {advice}")


def _run(task, names: Sequence[str], workers: int, *, desc: str) -> Report:
  """Does all scenes, with a progress bar; errors are printed as they come."""
  results = ((name, _guarded(task, name)) for name in names)
  if workers > 1:
    results = _results_of_pool(task, names, workers)
  found = {}
  for name, result in tqdm(results, total=len(names), desc=desc, unit="scene"):
    # On a full disk the others would fail alike.
    if isinstance(result, OSError) and result.errno == errno.ENOSPC:
      raise result
    found[name] = result
    if isinstance(result, Exception):
      tqdm.write(f"error: {name}: {result}", file=sys.stderr)
  # In the order given, not in that of the workers.
  done = {n: found[n] for n in names if isinstance(found[n], Finished)}
  return Report(done, {n: str(found[n]) for n in names if n not in done})


def _guarded(task, name) -> Finished | Exception:
  """Returns errors, so that they cannot be mistaken for those of the pool."""
  try:
    return task(name)
  except (DataError, OSError) as error:
    return error
  except Exception as error:
    return DataError(f"{type(error).__name__}: {error}")


def _results_of_pool(task, names, workers):
  waiting = collections.deque(names)
  while waiting:
    pool = concurrent.futures.ProcessPoolExecutor(
      workers,
      # JAX has threads, which a fork would not have.
      mp_context=multiprocessing.get_context("spawn"),
      initializer=_start_worker,
    )
    running = {}
    try:
      while waiting or running:
        # No more than the workers take at once: if one of them is killed, only
        # these scenes are in doubt.
        while waiting and len(running) < workers:
          running[pool.submit(_guarded, task, waiting[0])] = waiting[0]
          waiting.popleft()
        done, _ = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          result = future.result()
          yield running.pop(future), result
    except concurrent.futures.process.BrokenProcessPool:
      why = "a worker was killed, maybe for lack of memory: use fewer workers"
      for future, name in running.items():
        lost = future.exception() is not None
        yield name, DataError(why) if lost else future.result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
  # Ctrl-C ends workers without a traceback each, and they end with the parent
  # even if that is killed, instead of waiting for work forever.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
