"""Compares the scores of two runs, class by class, and says how sure that is.

  python scripts/compare_runs.py exp/old exp/new
  python scripts/compare_runs.py exp/old/eval/val_best.json other.json \\
    --output difference.json

A run is a working directory, whose eval/<--name>.json counts, or such a JSON;
the confusion matrices of its scenes lie beside it, in <name>.scenes.npz.
Differences are those of the second run over the first. Their intervals come
from drawing scenes anew, the same for both runs: they tell whether the
difference would hold on other scenes, not whether it would on another seed.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from wsegpc_jax import writers
from wsegpc_jax.metrics import bootstrap, scene_matrices
from wsegpc_jax.types import DataError

_FEW = 20  # scenes below which percentile intervals are clearly too narrow


@dataclasses.dataclass(frozen=True)
class Run:
  """Scores of a run: their file, protocol in words, classes and scenes."""

  path: Path
  protocol: str
  classes: tuple[str, ...]
  scenes: scene_matrices.SceneMatrices


def main(argv: list[str] | None = None) -> bootstrap.Difference:
  """Compares two runs, prints a table and maybe writes a JSON."""
  args = parse_args(argv)
  a, b = (read_run(run, args.name) for run in (args.run_a, args.run_b))
  confusion_a, confusion_b, warnings = align(a, b, force=args.force)
  for warning in warnings:
    print(f"warning: {warning}", file=sys.stderr)
  difference = bootstrap.compare(
    confusion_a,
    confusion_b,
    draws=args.draws,
    confidence=args.confidence,
    seed=args.seed,
  )
  scores = [
    bootstrap.resampled_iou(c, np.ones((1, len(c)), int))
    for c in (confusion_a, confusion_b)
  ]
  result = to_json(a, b, scores, difference, len(confusion_a), warnings)
  print(format_table(result))
  if args.output:
    writers.write_json(args.output, result)
    print(f"wrote {args.output}")
  return difference


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run_a", metavar="RUN_A", help="the run to compare with")
  parser.add_argument("run_b", metavar="RUN_B", help="the run in question")
  parser.add_argument(
    "--name", default="val_best", help="of the JSON in a working directory"
  )
  parser.add_argument("--output", help="JSON file to write")
  parser.add_argument("--draws", type=int, default=10_000)
  parser.add_argument("--confidence", type=float, default=0.95)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--force",
    action="store_true",
    help="compare what both have although protocols, scenes or labels differ",
  )
  args = parser.parse_args(argv)
  if args.draws < 1:
    raise DataError(f"--draws={args.draws}: expected at least 1")
  if not 0 < args.confidence < 1:
    raise DataError(
      f"--confidence={args.confidence}: expected a number between 0 and 1"
    )
  if args.seed < 0:
    raise DataError(f"--seed={args.seed}: expected at least 0")
  return args


def read_run(run: str, name: str) -> Run:
  """Reads the scores of a run.

  Raises:
    DataError: a file is missing or is not one of an evaluation.
  """
  path = Path(run)
  if path.is_dir():
    path = path / "eval" / f"{name}.json"
    if not path.is_file():
      there = sorted(p.stem for p in path.parent.glob("*.json"))
      raise DataError(
        f"{path} not found; --name can be {', '.join(there) or 'nothing yet'}"
      )
  try:
    entry = json.loads(path.read_text(encoding="utf-8"))
    protocol, classes = str(entry["protocol"]), tuple(entry["iou"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
      f"{path}: expected the scores of an evaluation, with protocol and iou "
      f"({error})"
    ) from error
  beside = scene_matrices.beside(path)
  scenes, written = scene_matrices.read(beside)
  if written != classes:
    raise DataError(
      f"{beside}: its classes are {', '.join(written)}, those of {path} "
      f"{', '.join(classes)}"
    )
  return Run(path, protocol, classes, scenes)


def align(
  a: Run, b: Run, *, force: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Confusion matrices of the scenes of both, in one order, and warnings.

  Raises:
    DataError: the classes differ, no scene is in both, or, unless forced,
      protocols, scenes or the labels of a scene differ.
  """
  if a.classes != b.classes:
    raise DataError(
      f"classes differ: {a.path} has {', '.join(a.classes)}, {b.path} "
      f"{', '.join(b.classes)}"
    )
  faults = []
  if a.protocol != b.protocol:
    faults.append(f"protocols differ: {a.protocol!r} and {b.protocol!r}")
  rows = [{n: i for i, n in enumerate(r.scenes.names)} for r in (a, b)]
  names = [n for n in a.scenes.names if n in rows[1]]
  if differing := sorted(rows[0].keys() ^ rows[1].keys()):
    faults.append(
      f"scenes differ: {len(differing)} are in one run only, such as "
      f"{differing[0]}; {len(names)} are in both"
    )
  if not names:
    raise DataError(f"{a.path} and {b.path} have no scored scene in common")
  confusion = [
    run.scenes.confusion[[row[n] for n in names]]
    for run, row in zip((a, b), rows, strict=True)
  ]
  other = (confusion[0].sum(2) != confusion[1].sum(2)).any(1)
  if other.any():
    faults.append(
      f"labels differ: {int(other.sum())} scenes have other numbers of points "
      f"a class, such as {names[int(np.argmax(other))]}"
    )
  if faults and not force:
    raise DataError(f"{faults[0]}; --force compares nevertheless")
  return *confusion, faults


def to_json(a, b, scores, difference, num_scenes, warnings) -> dict:
  """All numbers of a comparison, JSON-able; None = no such score."""

  def number(value):
    return None if np.isnan(value) else float(value)

  def entry(first, second, delta, low, high):
    return {
      "a": number(first),
      "b": number(second),
      "difference": number(delta),
      "low": number(low),
      "high": number(high),
    }

  iou_a, iou_b = (s[0] for s in scores)
  mean_a, mean_b = (bootstrap.mean_iou(s)[0] for s in scores)
  columns = (iou_a, iou_b, difference.iou)
  columns += (difference.iou_low, difference.iou_high)
  return {
    "a": str(a.path),
    "b": str(b.path),
    "protocol": {"a": a.protocol, "b": b.protocol},
    "scenes": num_scenes,
    "method": "paired bootstrap over scenes, percentile intervals",
    "draws": difference.draws,
    "confidence": difference.confidence,
    "warnings": warnings,
    "miou": entry(
      mean_a,
      mean_b,
      difference.miou,
      difference.miou_low,
      difference.miou_high,
    ),
    "b_better": difference.better,
    "iou": {
      name: entry(*row) for name, *row in zip(a.classes, *columns, strict=True)
    },
  }


def format_table(result: dict) -> str:
  """The comparison in percent; * = the interval does not hold 0."""
  width = max(len(name) for name in (*result["iou"], "class"))
  title = f"{100 * result['confidence']:g} % interval"

  def row(name, entry):
    cells = [
      "-" if value is None else f"{100 * value:{sign}.2f}"
      for sign, value in zip(
        ("", "", "+", "+", "+"), entry.values(), strict=True
      )
    ]
    text = f"{name:<{width}}" + "".join(f"{c:>9}" for c in cells[:3])
    # One scene is drawn again and again: nothing varies.
    if entry["low"] is None or result["scenes"] < 2:
      return f"{text}   -"
    # A class of a single scene does not vary, which is not to be sure of it.
    varies = entry["low"] < entry["high"]
    sure = varies and (entry["low"] > 0 or entry["high"] < 0)
    return f"{text}   {cells[3]:>7} .. {cells[4]:>7}{' *' if sure else ''}"

  line = "-" * (width + 50)
  few = result["scenes"] < _FEW
  return "\n".join(
    [
      f"A: {result['a']}",
      f"B: {result['b']}",
      f"{result['scenes']} scenes; IoU in %",
      f"{'class':<{width}}{'A':>9}{'B':>9}{'B - A':>9}   {title}",
      line,
      *(row(name, entry) for name, entry in result["iou"].items()),
      line,
      row("mean", result["miou"]),
      f"B is better in {100 * result['b_better']:.1f} % of "
      f"{result['draws']} draws of the scenes"
      if result["scenes"] > 1
      else "no intervals: they come from drawing scenes, and there is one",
      *(
        ["intervals of so few scenes are too narrow"]
        if few and result["scenes"] > 1
        else []
      ),
    ]
  )


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
