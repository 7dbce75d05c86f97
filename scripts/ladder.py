"""Measures what each stage of WSegPC adds, over several seeds.

  python scripts/ladder.py --seeds 0,1,2
  python scripts/ladder.py --table

Trains and scores the rows of the ladder (CAM only, CMG, CMG + RPC, stage 3,
full labels, and CAM and CMG for as many steps as stages 1 and 2 together) on
synthetic rooms, one seed after the other. It may be stopped at any time; the
same command goes on. When all rows of all seeds are there it writes --out and
says which claims hold. Variants of size: --preset=cpu (two cores) or gpu.
"""

import argparse
import shlex
import sys
from pathlib import Path

from wsegpc_jax.ladder import rows, tables
from wsegpc_jax.types import DataError

_ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> None:
  """Runs the ladder, or prints the table of results that are there."""
  args = parse_args(argv)
  if args.table is not None:
    from wsegpc_jax.ladder import results

    files = args.table or [args.out]
    print(tables.markdown([results.read(path) for path in files]))
    return
  run(args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seeds", default="0,1,2", help="such as 0,1,2")
  parser.add_argument(
    "--rows",
    default=",".join(rows.NAMES),
    help=f"of {', '.join(rows.NAMES)}; those they come after run as well",
  )
  parser.add_argument("--out", default="results/ladder.json")
  parser.add_argument("--workdir", default="exp/ladder")
  parser.add_argument("--preset", default="cpu", choices=tuple(rows.PRESETS))
  parser.add_argument(
    "--data", default="", help="folder of rooms (default: they are made)"
  )
  parser.add_argument(
    "--set",
    action="extend",
    nargs="+",
    default=[],
    metavar="FIELD=VALUE",
    help="config fields of all rows, such as dtype=bfloat16",
  )
  parser.add_argument(
    "--table",
    nargs="*",
    metavar="RESULTS",
    help="print the README's table of these results (default: --out), no run",
  )
  args = parser.parse_args(argv)
  try:
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
  except ValueError:
    parser.error(f"--seeds={args.seeds!r}: expected numbers such as 0,1,2")
  if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
    parser.error("--seeds: expected different numbers from 0 on")
  args.rows = [name for name in args.rows.split(",") if name]
  rows.with_predecessors(args.rows)
  return args


def run(args: argparse.Namespace) -> None:
  """Runs what is not there yet, then writes and prints the results."""
  from wsegpc_jax.ladder import claims, results
  from wsegpc_jax.ladder import run as runs

  command = shlex.join(["python", "scripts/ladder.py", *sys.argv[1:]])
  load = rows.config_loader(_ROOT / "configs", rows.PRESETS[args.preset])
  ladder = runs.Ladder(
    workdir=Path(args.workdir),
    load=load,
    overrides=rows.prepared_rooms(args.data) | rows.set_fields(args.set, load),
  )
  found = runs.run_all(ladder, args.seeds, args.rows, command=command)
  print(tables.text(found))
  for objects in (False, True):
    for claim in claims.check(found, objects=objects):
      print(claim)
  results.write(args.out, found)
  print(f"wrote {args.out}")


if __name__ == "__main__":
  try:
    main()
  except (DataError, FloatingPointError, OSError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print("interrupted; the same command goes on", file=sys.stderr)
    sys.exit(130)
