"""The ladder's results file: from rows to lists over seeds, written and read."""

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from wsegpc_jax import writers
from wsegpc_jax.ladder import rows, scoring
from wsegpc_jax.types import DataError

# For each protocol, the mean over all classes and over the objects.
MEASURES = tuple(
  f"{key}{of}" for key in scoring.PROTOCOLS for of in ("", "_objects")
)


def collect(
  done: Mapping[str, Sequence[dict]],
  *,
  baseline: dict | None,
  command: str,
  seeds: Sequence[int],
  extra: Mapping[str, Any] | None = None,
) -> dict:
  """The content of the results file.

  Args:
    done: {row: content of its row.json, a seed each}.
    baseline: of `baseline.score`, or None.
    command: that gives these results.
    seeds: in the order of the lists.
    extra: more entries.

  Returns:
    "command", "date", "machine", "rows" and more, JSON-able. A row has its
    MEASURES, each a list with one fraction a seed, or None where the protocol
    does not apply.
  """
  classes = next(iter(done.values()))[0]["classes"]
  return {
    "command": command,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "machine": machine(),
    "seeds": list(seeds),
    "classes": list(classes),
    "structural": [c for c in classes if c in scoring.STRUCTURAL],
    "rooms": next(iter(done.values()))[0]["rooms"],
    "protocols": dict(scoring.PROTOCOLS),
    **(extra or {}),
    "rows": {
      name: {
        **_lists([entry["scores"] for entry in entries]),
        "steps": entries[0]["steps"],
        "seconds": [entry["seconds"] for entry in entries],
      }
      for name, entries in done.items()
    },
    "baseline": baseline and _baseline(baseline),
  }


def _baseline(baseline: dict) -> dict:
  number = len(baseline["val_miou"])
  scores = [
    {key: baseline[key][i] for key in scoring.PROTOCOLS} for i in range(number)
  ]
  return {**_lists(scores), "unit": baseline["unit"]}


def _lists(scores: Sequence[dict]) -> dict:
  """Lists over seeds of the measures, and of the IoU of each class."""
  out: dict[str, Any] = {}
  for key in scoring.PROTOCOLS:
    known = all(s[key] for s in scores)
    out[key] = [s[key]["miou"] for s in scores] if known else None
    out[f"{key}_objects"] = (
      [s[key]["miou_objects"] for s in scores] if known else None
    )
    iou = key.replace("_miou", "_iou")
    out[iou] = (
      {c: [s[key]["iou"][c] for s in scores] for c in scores[0][key]["iou"]}
      if known
      else None
    )
  return out


def machine() -> str:
  """The machine, in words."""
  device = jax.devices()[0]
  name = device.device_kind if device.platform != "cpu" else "CPU only"
  return (
    f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {name}, "
    f"jax {jax.__version__}"
  )


def write(path: str | Path, results: dict) -> None:
  """Writes a results file, all or nothing."""
  writers.write_json(path, results)


def read(path: str | Path) -> dict:
  """Reads a results file and checks what tables and claims need.

  Raises:
    DataError: it is missing or malformed; says where.
  """
  try:
    found = json.loads(Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise DataError(
      f"{path}: expected the results of scripts/ladder.py ({error})"
    ) from error

  def expect(holds: bool, field: str, what: str) -> None:
    if not holds:
      raise DataError(f"{path}: {field}: expected {what}")

  expect(isinstance(found, dict), "file", "a JSON object")
  for key in ("command", "date", "machine"):
    expect(isinstance(found.get(key), str), key, "a string")
  entries = found.get("rows")
  expect(isinstance(entries, dict) and bool(entries), "rows", "some rows")
  named = {f"rows.{name}": entry for name, entry in entries.items()}
  for name in entries:
    expect(name in rows.NAMES, f"rows.{name}", f"one of {list(rows.NAMES)}")
  if found.get("baseline") is not None:
    named["baseline"] = found["baseline"]
  length = None
  for where, entry in named.items():
    expect(isinstance(entry, dict), where, "an object")
    for key in ("pseudo_label_miou", "val_miou"):
      expect(key in entry, f"{where}.{key}", "fractions, one a seed, or null")
    for key in MEASURES:
      values = entry.get(key)
      if values is None:
        continue
      good = isinstance(values, list) and all(
        isinstance(v, int | float) and 0 <= v <= 1 for v in values
      )
      expect(good and bool(values), f"{where}.{key}", "fractions of 0 to 1")
      length = length or len(values)
      expect(
        len(values) == length, f"{where}.{key}", f"{length} values, one a seed"
      )
  return found
