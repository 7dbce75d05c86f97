"""Runs the rows of a seed one after the other, and goes on where it stopped.

A row that is done has a row.json in its working directory, which is written
last and at once; one that is half done is gone on with by the trainer. Both are
refused when they were made with other settings.
"""

import dataclasses
import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from wsegpc_jax import experiment, inputs, train, writers
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import exclusive
from wsegpc_jax.ladder import baseline, results, scoring, tables
from wsegpc_jax.ladder import rows as rows_lib
from wsegpc_jax.ladder.rows import Row
from wsegpc_jax.types import DataError

ROW_FILE = "row.json"
_CLOCK_FILE = "seconds.json"
_ROW_FIELDS = (
  "row",
  "seed",
  "steps",
  "seconds",
  "classes",
  "rooms",
  "scores",
  "settings",
  "fingerprint",
)
# Of a config, what does not change a result: places, speed, the screen. Data,
# weights and the row before are compared by their content instead.
_NOT_COMPARED = (
  "data.bucket_ratio",
  "data.cache",
  "data.how_to_get",
  "data.labels_from",
  "data.level_ratios",
  "data.prefetch",
  "data.root",
  "data.smallest_bucket",
  "data.threads",
  "init_from",
  "model.image_weights",
  "model.implementation",
  "train.checkpoint_every",
  "train.log_every",
  "train.progress_seconds",
)


def pretrain(config: ConfigDict, say: Callable[[str], None]) -> None:
  """Makes config.model.image_weights, unless the file is there.

  Raises:
    DataError: see `synthetic_image.ensure`.
  """
  if config.model.image_weights:
    from wsegpc_jax import synthetic_image

    synthetic_image.ensure(
      config.model.image_weights,
      synthetic_image.Settings(
        depth=config.model.image_depth, width=config.model.image_width
      ),
      workers=max(config.data.threads, 1),
      say=say,
    )


def forget() -> None:
  """Frees a row's compiled programs, of no use to the next; the cache stays."""
  jax.clear_caches()
  gc.collect()


@dataclasses.dataclass(frozen=True)
class Programs:
  """What is done for a row; replaced in tests.

  Attributes:
    train: trains a config in a working directory, or goes on there.
    score: gives the scores of what was trained, see `scoring.score`.
    pretrain: makes the file of weights that the 2D network starts from, unless
      it is there, see `pretrain`.
    forget: frees memory after a row, see `forget`.
  """

  train: Callable[[ConfigDict, str], Any] = train.train
  score: Callable[[ConfigDict, str], dict] = scoring.score
  pretrain: Callable[[ConfigDict, Callable[[str], None]], None] = pretrain
  forget: Callable[[], None] = forget


@dataclasses.dataclass(frozen=True)
class Ladder:
  """One ladder's settings.

  Attributes:
    workdir: of everything; a row's own is seed_<seed>/<row> in it.
    load: gives a fresh config by its stem, see `rows.config_loader`.
    overrides: config fields, by dotted name, of all rows.
    programs: train and score.
    say: prints a line.
  """

  workdir: Path
  load: rows_lib.LoadConfig
  overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  programs: Programs = dataclasses.field(default_factory=lambda: Programs())
  say: Callable[[str], None] = print

  def row_dir(self, seed: int, name: str) -> Path:
    return self.workdir / f"seed_{seed}" / name

  def config(self, row: Row, seed: int) -> ConfigDict:
    return rows_lib.build_config(
      row,
      load=self.load,
      seed=seed,
      workdir=self.workdir / f"seed_{seed}",
      overrides=self.overrides,
    )


def share_compiled(workdir: Path) -> None:
  """One compilation cache for all rows, unless one is set already.

  Rows of other seeds find their programs there.
  """
  if not jax.config.jax_compilation_cache_dir:
    cache = os.path.abspath(workdir / "compiled")
    jax.config.update("jax_compilation_cache_dir", cache)


def run_all(
  ladder: Ladder,
  seeds: Sequence[int],
  names: Sequence[str],
  *,
  command: str,
  show: bool = True,
) -> dict:
  """Runs the baseline and rows of several seeds, seed by seed.

  What is done is taken from the workdir, so an interrupted call is continued
  by calling again.

  Args:
    ladder: its settings.
    seeds: of the trainings.
    names: rows, whose predecessors run as well.
    command: that does this, for the results.
    show: print the table so far after each seed.

  Returns:
    The content of the results file, see `results.collect`.

  Raises:
    DataError: data, config or a working directory is at fault, or another
      ladder runs in the workdir.
  """
  share_compiled(ladder.workdir)
  wanted = rows_lib.with_predecessors(names)
  total = len(seeds) * len(wanted)
  done: dict[str, list[dict]] = {row.name: [] for row in wanted}
  with exclusive(ladder.workdir):
    chance = run_baseline(ladder, seeds)
    configs = [ladder.config(row, seeds[0]) for row in wanted]
    for config in {c.model.image_weights: c for c in configs}.values():
      ladder.programs.pretrain(config, ladder.say)
    for number, seed in enumerate(seeds):
      for i, row in enumerate(wanted):
        place = f"[{number * len(wanted) + i + 1}/{total}] seed {seed}"
        done[row.name].append(
          run_row(ladder, row, seed, place=f"{place}, {row.name}")
        )
      found = results.collect(
        done,
        baseline=baseline.first(chance, number + 1),
        command=command,
        seeds=seeds[: number + 1],
      )
      if show:
        ladder.say(tables.text(found))
  return found


def run_baseline(ladder: Ladder, seeds: Sequence[int]) -> dict:
  """Scores the baseline, or finds that this was done.

  Returns:
    See `baseline.score`.

  Raises:
    DataError: the data set is at fault, or another one than before.
  """
  config = ladder.config(rows_lib.find("full"), seeds[0])
  dataset = inputs.open_data(config)
  settings = {"rooms": _rooms(config, dataset), "seeds": list(seeds)}
  path = ladder.workdir / "baseline.json"
  if path.exists():
    kept = _read_json(path, ("settings", "scores"))
    if kept["settings"] == settings:
      return kept["scores"]
  ladder.say("baseline: chance, floor and walls by geometry")
  scores = baseline.score(
    dataset,
    seeds,
    train_split=config.data.train_split,
    val_split=config.eval.split,
  )
  writers.write_json(path, {"settings": settings, "scores": scores})
  return scores


def run_row(ladder: Ladder, row: Row, seed: int, *, place: str = "") -> dict:
  """Trains and scores one row, or finds that this was done.

  Args:
    ladder: its settings.
    row: the row; the one it comes after has been run.
    seed: of the training.
    place: how far the ladder is, for the screen.

  Returns:
    Content of its row.json: "row", "seed", "steps", "seconds", "classes",
    "settings", "fingerprint", and "scores" as `scoring.score` gives them.

  Raises:
    DataError: what is there was made with other settings.
  """
  place = place or row.name
  workdir = ladder.row_dir(seed, row.name)
  config = ladder.config(row, seed)
  settings = _settings(ladder, row, config, seed)
  done = _read_row(workdir / ROW_FILE)
  if done is not None:
    _check_settings(workdir, done["settings"], settings)
    ladder.say(f"{place}: was there; {scores_in_words(done['scores'])}")
    return done
  with Stopwatch(workdir / _CLOCK_FILE) as clock:
    steps = experiment.schedule(config, 1).total_steps
    ladder.say(f"{place}: {row.title}, {steps} steps")
    ladder.programs.train(config, str(workdir))
    scores = ladder.programs.score(config, str(workdir))
    dataset = inputs.open_data(config)
    entry = {
      "row": row.name,
      "seed": seed,
      "steps": steps,
      "seconds": round(clock.seconds(), 1),
      "classes": list(dataset.classes),
      "rooms": {
        name: len(inputs.split_scenes(dataset, split))
        for name, split in (
          ("train", config.data.train_split),
          ("val", config.eval.split),
        )
      },
      "scores": scores,
      "settings": settings,
      "fingerprint": fingerprint(settings),
    }
  writers.write_json(workdir / ROW_FILE, entry)
  ladder.say(
    f"{place}: {scores_in_words(scores)}; {entry['seconds']:.0f} seconds"
  )
  ladder.programs.forget()
  return entry


def scores_in_words(scores: dict) -> str:
  """mIoU by protocol, in percent."""
  words = {
    "pseudo_label_miou": "pseudo-labels",
    "val_miou": "held-out rooms",
    "val_miou_tags": "with tags",
  }
  return "mIoU " + ", ".join(
    f"{text} {100 * scores[key]['miou']:.1f}"
    for key, text in words.items()
    if scores[key] and scores[key]["miou"] is not None
  )


def fingerprint(value: Any) -> str:
  """Short hash of a JSON-able value."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(ladder: Ladder, row: Row, config: ConfigDict, seed: int) -> dict:
  """All that a row's result depends on, as dotted names and plain values."""
  flat = _flatten(json.loads(config.to_json()))
  settings = {k: v for k, v in flat.items() if k not in _NOT_COMPARED}
  dataset = inputs.open_data(config)
  settings["rooms"] = _rooms(config, dataset)
  settings["image_weights"] = _file_hash(config.model.image_weights)
  settings["after"] = ""
  if row.after:
    before = _read_row(ladder.row_dir(seed, row.after) / ROW_FILE)
    if before is None:
      raise DataError(f"row {row.name!r} comes after {row.after!r}: run it")
    settings["after"] = f"{row.after} {before['fingerprint']}"
  return settings


def _rooms(config: ConfigDict, dataset: Dataset) -> str:
  return fingerprint(
    {
      "classes": list(dataset.classes),
      "splits": {k: list(v) for k, v in dataset.splits.items()},
      "file": _file_hash(Path(config.data.root) / "dataset.json"),
    }
  )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  flat = {}
  for key, entry in value.items():
    flat |= _flatten(entry, f"{prefix}.{key}" if prefix else key)
  return flat


def _file_hash(path: str | Path) -> str:
  if not path or not Path(path).is_file():
    return ""
  return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _read_row(path: Path) -> dict | None:
  if not path.exists():
    return None
  return _read_json(path, _ROW_FIELDS)


def _read_json(path: Path, fields: Sequence[str]) -> dict:
  try:
    entry = json.loads(path.read_text(encoding="utf-8"))
    for field in fields:
      entry[field]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
      f"{path}: expected a result with {', '.join(fields)} ({error}); remove it "
      "to have it made anew"
    ) from error
  return entry


def _check_settings(workdir: Path, old: dict, new: dict) -> None:
  differing = [
    key for key in {**old, **new} if old.get(key) != new.get(key)
  ]  # fmt: skip
  if not differing:
    return
  listed = "; ".join(
    f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
    for key in differing[:3]
  )
  more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
  raise DataError(
    f"{workdir} was made with other settings: {listed}{more}; remove it to run "
    "the row anew, or use another --workdir"
  )


class Stopwatch:
  """Seconds of work, added up over the runs it took.

  While a run goes on, the file says since when. After a kill the time up to
  the last file that it wrote nearby is added.
  """

  def __init__(self, path: Path, *, clock: Callable[[], float] = time.time):
    """path: JSON file that keeps the sum; its folder is made if need be."""
    self._path = path
    self._clock = clock
    self._before = 0.0
    self._since = 0.0

  def __enter__(self) -> "Stopwatch":
    self._before = self._read()
    self._since = self._clock()
    self._write(self._before, self._since)
    return self

  def __exit__(self, *error: object) -> None:
    self._write(self.seconds(), None)

  def seconds(self) -> float:
    """So far, earlier runs included."""
    return self._before + max(self._clock() - self._since, 0.0)

  def _read(self) -> float:
    try:
      kept = json.loads(self._path.read_text(encoding="utf-8"))
      seconds, since = float(kept["seconds"]), kept["since"]
    except FileNotFoundError:
      return 0.0
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise DataError(
        f"{self._path}: expected the seconds of a row ({error}); remove it"
      ) from error
    if since is not None:  # that run was killed
      last = max(
        (p.stat().st_mtime for p in self._path.parent.glob("*")), default=since
      )
      seconds += max(last - since, 0.0)
    return seconds

  def _write(self, seconds: float, since: float | None) -> None:
    writers.write_json(self._path, {"seconds": seconds, "since": since})
