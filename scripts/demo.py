"""All stages of WSegPC on synthetic rooms, with a report, in some minutes.

  python scripts/demo.py

Makes rooms, trains stages 1 to 3 and their neighbours (CAM only, full labels)
with narrow networks and a short schedule, scores them beside a naive baseline,
prints a table and writes a report. It may be stopped at any time; the same
command goes on. One seed on small rooms shows that the stages work, not how
much each adds: scripts/ladder.py measures that.
"""

import argparse
import logging
import sys
from pathlib import Path

from wsegpc_jax.types import DataError

_ROOT = Path(__file__).resolve().parents[1]
_SEED = 0
_INTRO = (
  "All stages on generated rooms, with narrow networks and a short schedule: "
  "it shows that they work, from one seed, and not how well the method does. "
  "scripts/ladder.py compares them over several seeds, with controls."
)
_LEGEND = """mIoU in %. pseudo-labels: training rooms, tags known, averaged over superpoints.
held-out: no tags (with tags: absent classes masked). chance: a random class that
may occur, floor and walls by geometry, under the protocol of the column before."""


def main(argv: list[str] | None = None) -> dict:
  """Runs what is not there yet; returns what summary.json holds."""
  args = parse_args(argv)
  from wsegpc_jax import writers
  from wsegpc_jax.ladder import page, rows, run

  workdir = Path(args.workdir)
  ladder = run.Ladder(
    workdir=workdir,
    load=rows.config_loader(_ROOT / "configs", args.variant),
    overrides=rows.prepared_rooms(args.data),
  )
  report = workdir / "report.html"
  with run.Stopwatch(workdir / "seconds.json") as clock:
    results = run.run_all(
      ladder, [_SEED], rows.DEMO, command="make demo", show=False
    )
    page.write(
      report,
      ladder,
      _SEED,
      results,
      title="WSegPC on synthetic rooms: the demo",
      intro=_INTRO,
    )
    seconds = clock.seconds()
  found = summary(results, report=str(report), seconds=seconds)
  writers.write_json(workdir / "summary.json", found)
  print(format_table(found))
  print(_LEGEND)
  print(f"report: {report}\nsummary: {workdir / 'summary.json'}")
  print(f"{seconds:.0f} seconds in all")
  return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", default="exp/demo")
  parser.add_argument(
    "--data", default="", help="folder of rooms (default: they are made)"
  )
  parser.add_argument(
    "--variant",
    default="demo",
    choices=("demo", "smoke"),
    help="of configs/synthetic_*.py; smoke takes two steps a stage",
  )
  return parser.parse_args(argv)


def summary(results: dict, *, report: str, seconds: float) -> dict:
  """The content of summary.json.

  Args:
    results: of `run.run_all`, of one seed.
    report: path of the page.
    seconds: of the demo in all.
  """
  keys = ("pseudo_label_miou", "val_miou", "val_miou_tags")

  def only(entry, key):
    return entry[key][0] if entry[key] else None

  return {
    "stages": [
      {
        "name": name,
        **{key: only(entry, key) for key in keys},
        "seconds": entry["seconds"][0],
      }
      for name, entry in results["rows"].items()
    ],
    "baseline": {key: only(results["baseline"], key) for key in keys},
    "report": report,
    "seconds": round(seconds, 1),
  }


def format_table(found: dict) -> str:
  """The table at the end; a stage beside chance, in percent."""
  from wsegpc_jax.ladder import rows, tables

  def percent(value):
    return "-" if value is None else f"{100 * value:.1f}"

  columns = (
    ("pseudo-labels", "pseudo_label_miou"),
    ("held-out", "val_miou"),
    ("with tags", "val_miou_tags"),
  )
  head = ["stage"]
  for title, _ in columns:
    head += [title, "chance"]
  lines = [[*head, "seconds"]]
  for stage in found["stages"]:
    line = [rows.find(stage["name"]).title]
    for _, key in columns:
      chance = None if stage[key] is None else found["baseline"][key]
      line += [percent(stage[key]), percent(chance)]
    lines.append([*line, f"{stage['seconds']:.0f}"])
  return tables.grid(lines)


if __name__ == "__main__":
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  try:
    main()
  except (DataError, FloatingPointError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print("interrupted; the same command goes on", file=sys.stderr)
    sys.exit(130)
