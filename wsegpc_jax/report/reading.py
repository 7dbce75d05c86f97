"""From a working directory to a stage of a report.

What is not there is told in a sentence of `Stage.missing`; what is there and
damaged is an error that names the file.
"""

import datetime
import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsegpc_jax.metrics import scene_matrices
from wsegpc_jax.report.records import Curve, Score, Stage
from wsegpc_jax.types import DataError

_PSEUDO_LABELS = "pseudo_labels"  # of the folder, and of its scores
_BEST = "val_best"
# What every row of metrics.jsonl has besides its scalars.
_NOT_SCALARS = ("step", "total_steps", "time", "nonfinite")


def read_stage(
  workdir: str | os.PathLike,
  *,
  name: str | None = None,
  score: str | None = None,
) -> Stage:
  """Reads all that a report shows of a run.

  Args:
    workdir: working directory of a training run, finished or not.
    name: short name of the stage; None = that of the folder.
    score: name of the JSON in `eval/` that counts as the run's score; None =
      "val_best", else any other of --mode=eval, else the last one made during
      training.

  Raises:
    DataError: it is no working directory, or a file in it is damaged.
  """
  folder = Path(workdir)
  config_path = folder / "config.json"
  if not config_path.is_file():
    raise DataError(
      f"{folder}: no config.json, expected the working directory of a training "
      "run"
    )
  config = _read_object(config_path)
  name = name or folder.resolve().name
  curves, rows = _read_metrics(folder / "metrics.jsonl")
  scores = {
    path.stem: read_score(path)
    for path in sorted((folder / "eval").glob("*.json"))
  }
  missing = []
  if not rows:
    missing.append(f"{name} has no metrics.jsonl with rows: no curves.")
  pseudo = scores.pop(_PSEUDO_LABELS, None)
  labelled = (folder / _PSEUDO_LABELS).is_dir()
  if pseudo is None and labelled:
    missing.append(
      f"The pseudo-labels of {name} were not scored: "
      f"eval/{_PSEUDO_LABELS}.json is not there."
    )
  elif pseudo is not None and not math.isfinite(pseudo.miou):
    missing.append(
      f"The pseudo-labels of {name} could not be scored: the training split "
      "has no labels."
    )
    pseudo = None
  chosen = _choose(scores, score, folder)
  if chosen is None and scores:
    missing.append(
      f"{name} was evaluated where there are no labels: nothing is scored."
    )
  elif chosen is None:
    missing.append(
      f"{name} was never evaluated: --mode=eval with its config and working "
      "directory does it."
    )
  others = {
    key: value
    for key, value in scores.items()
    if key != chosen and not _of_training(key)
  }
  record = _optional_object(folder / "data.json")
  versions = _optional_object(folder / "versions.json")
  return Stage(
    name=name,
    title=describe(config),
    workdir=str(workdir),
    facts=_facts(versions, rows),
    curves=curves,
    score=None if chosen is None else scores[chosen],
    others=others,
    pseudo_labels=pseudo,
    config=config,
    classes=tuple(map(str, record.get("classes", ()))),
    training_scenes=len(record["train_scenes"])
    if isinstance(record.get("train_scenes"), list)
    else None,
    seconds=_seconds(rows),
    missing=tuple(missing),
  )


def read_score(path: str | os.PathLike) -> Score:
  """Reads a JSON of `eval/`, with the confusion matrices kept beside it.

  Raises:
    DataError: it, or the matrices, are damaged or not of this kind.
  """
  path = Path(path)
  entry = _read_object(path)
  try:
    classes = tuple(entry["iou"])
    score = Score(
      protocol=str(entry["protocol"]),
      classes=classes,
      iou=_numbers(entry["iou"].values()),
      accuracy=_numbers(entry["accuracy"][name] for name in classes),
      miou=_number(entry["miou"]),
      macc=_number(entry["macc"]),
      allacc=_number(entry["allacc"]),
      scenes=entry.get("scenes"),
      step=entry.get("step"),
    )
  except (
    AttributeError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
  ) as error:
    raise DataError(
      f"{path}: expected the scores of an evaluation, with protocol, miou, iou "
      f"and the rest ({type(error).__name__}: {error})"
    ) from error
  beside = scene_matrices.beside(path)
  if not beside.is_file():
    return score
  scenes, written = scene_matrices.read(beside)
  if written != classes:
    raise DataError(
      f"{beside}: its classes are {', '.join(written)}, those of {path} "
      f"{', '.join(classes)}"
    )
  absent = "zero" if "count as 0" in score.protocol else "skip"
  return Score.of(
    scenes.confusion.sum(0),
    classes,
    protocol=score.protocol,
    scenes=len(scenes.names),
    step=score.step,
    absent=absent,
  )


def describe(config: Mapping[str, Any]) -> str:
  """What a config trains, in a few words."""
  loss, data = config.get("loss") or {}, config.get("data") or {}

  def on(*names):
    return any(loss.get(name) for name in names)

  match config.get("method"):
    case "wsegpc":
      terms = [
        term.upper()
        for term in ("cam", "cmg", "rpc")
        if on(f"{term}_3d", f"{term}_2d")
      ]
      return f"WSegPC: {' + '.join(terms) or 'no loss'} from scene tags"
    case "segmentation":
      labels = "pseudo-labels" if data.get("labels_from") else "true labels"
      return f"Segmentation trained on {labels}"
    case "clustering":
      terms = {
        "ce": "cross-entropy",
        "lovasz": "Lovasz-softmax",
        "cluster": "clustering within classes",
      }
      used = [words for term, words in terms.items() if on(term)]
      return f"Cluster3DSeg: {', '.join(used) or 'no loss'}"
  return str(config.get("method", "unknown method"))


def _choose(scores, wanted: str | None, folder: Path) -> str | None:
  if wanted is not None:
    if wanted not in scores:
      raise DataError(
        f"{folder}/eval/{wanted}.json not found; there is "
        f"{', '.join(scores) or 'nothing yet'}"
      )
    return wanted
  finite = [k for k, s in scores.items() if math.isfinite(s.miou)]
  final = [key for key in finite if not _of_training(key)]
  if _BEST in final:
    return _BEST
  if final:
    return final[0]
  return finite[-1] if finite else None  # names sort by step


def _of_training(name: str) -> bool:
  return "_step_" in name


def _read_metrics(path: Path) -> tuple[tuple[Curve, ...], list[dict]]:
  if not path.is_file():
    return (), []
  lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
  rows, found = [], {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row, scalars = _parse_row(line)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
      # A run that was killed, or goes on just now, leaves its last row cut.
      if number == len(lines):
        break
      raise DataError(
        f"{path}: line {number} is not a row of metrics, a JSON object with "
        f"step ({type(error).__name__}: {error})"
      ) from error
    rows.append(row)
    for key, value in scalars.items():
      found.setdefault(key, []).append((row["step"], value))
  curves = []
  for key, points in found.items():
    # A row may be there twice where a run was resumed; the later one counts.
    step, value = zip(*sorted(dict(points).items()), strict=True)
    curves.append(Curve(key, np.array(step, np.int64), np.array(value)))
  return tuple(curves), rows


def _parse_row(line: str) -> tuple[dict, dict[str, float]]:
  row = json.loads(line)
  step = row["step"]
  if type(step) is not int or not 0 <= step < 1 << 53:
    raise ValueError(f"step is {step!r}, expected a whole number from 0")
  scalars = {
    key: _number(value)
    for key, value in row.items()
    if key not in _NOT_SCALARS
    and (value is None or type(value) in (int, float))
  }
  return row, scalars


def _seconds(rows) -> float | None:
  times = [_time(row) for row in rows]
  times = [time for time in times if time is not None]
  if len(times) < 2:
    return None
  return (max(times) - min(times)).total_seconds()


def _time(row) -> datetime.datetime | None:
  try:
    return datetime.datetime.fromisoformat(row["time"])
  except (KeyError, TypeError, ValueError):
    return None


def _facts(versions: Mapping[str, Any], rows) -> dict[str, str]:
  facts = {}
  if versions.get("config_name"):
    facts["config"] = str(versions["config_name"])
  command = versions.get("command")
  if isinstance(command, list) and command:
    words = [str(word) for word in command]
    if words[0].replace("\\", "/").endswith("wsegpc_jax/main.py"):
      words[0] = "python -m wsegpc_jax.main"
    else:
      words[0] = shlex.quote(words[0])
    facts["command"] = " ".join([words[0], *map(shlex.quote, words[1:])])
  if rows:
    last = rows[-1]
    facts["steps"] = f"{last['step']} of {last.get('total_steps', '?')}"
    if (time := _time(last)) is not None:
      facts["last step"] = f"{time:%Y-%m-%d %H:%M} UTC"
  devices = versions.get("devices")
  if isinstance(devices, list) and devices:
    kinds = dict.fromkeys(map(str, devices))
    facts["devices"] = ", ".join(
      f"{devices.count(kind)} × {kind}" for kind in kinds
    )
  packages = versions.get("packages")
  if isinstance(packages, dict):
    facts["versions"] = ", ".join(
      f"{name} {version}" for name, version in packages.items() if version
    )
  for key in ("python", "commit"):
    if versions.get(key):
      facts[key] = str(versions[key])
  return facts


def _read_object(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise DataError(f"{path} cannot be read as JSON: {error}") from error
  if not isinstance(value, dict):
    raise DataError(f"{path}: expected a JSON object")
  return value


def _optional_object(path: Path) -> dict[str, Any]:
  return _read_object(path) if path.is_file() else {}


def _number(value: Any) -> float:
  return math.nan if value is None else float(value)


def _numbers(values) -> np.ndarray:
  return np.array([_number(value) for value in values], np.float64)
