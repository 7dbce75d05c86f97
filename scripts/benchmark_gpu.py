"""Measures the GPU kernels: against floors, XLA, and a Triton peer.

    python scripts/benchmark_gpu.py --output=FOLDER [--seconds=N]

Checks every variant of a kernel before timing it, then prints a table and
keeps FOLDER/benchmark_gpu.json up to date. Sections, in the order they run:

    floors    measured rates of copying and of matrix products
    tune      tiles of the convolution, by channels and number format; the
              fastest go to FOLDER/tiles.json, which is what
              kernels/gather_conv/tiles.json holds
    peer      with torch, the peer on the same numbers
    table     all sizes with the fastest tile, XLA and the peer
    parts     building row tiles, the strided pair, segment reductions
    train     a training step of MinkUNet18A on 4 x 120,000 voxels in bfloat16,
              with the fastest tiles; compiling it takes minutes

With `--output=OTHER --sections train --tiles=FOLDER/tiles.json` the last runs
by itself.
Whatever fails is recorded with its message, and the rest goes on; no case is
begun after --seconds. A time is the median of several runs of many calls that
wait for each other on the device only.
"""

import argparse
import functools
import os
import time
from pathlib import Path

import benchmark_gpu_parts as parts_lib
import jax
from benchmark_gpu_cases import (
  DTYPE,
  OPERATIONS,
  TOLERANCE,
  Case,
  Session,
  candidates,
  case_of,
  compile_all,
  error_of,
  milliseconds,
  precision,
  row_tiles,
  short,
)

from wsegpc_jax.kernels.gather_conv import row_tiles as row_tiles_lib
from wsegpc_jax.kernels.gather_conv import tile_table as tiles_lib
from wsegpc_jax.kernels.gather_conv import xla


def tune(session: Session, case: Case, limit: int, blocks: list[int]) -> None:
  """Times tiles of both operations on built row tiles, and XLA."""
  jobs = {}
  for operation in OPERATIONS:
    tiles = candidates(operation, case.c, case.fmt)[:limit]
    for tile in tiles:
      jobs[operation, "pallas", tile] = kernel_job(case, operation, tile)
    for block in blocks:
      by = f"pallas, block {block}"
      jobs[operation, by, tiles[0]] = kernel_job(
        case, operation, tiles[0], block
      )
    jobs[operation, "xla", xla.GPU_TILE] = whole_job(
      case, operation, xla.GPU_TILE
    )
  measure(session, "tune", case, jobs)


def kernel_job(case: Case, operation, tile, block=row_tiles_lib.SORT_BLOCK):
  built = row_tiles(case.n, tile.rows, tile.by_mask, block)
  return case.kernel(operation, tile), (*case.operands, built), case.repeats


def whole_job(case: Case, operation: str, how: tiles_lib.Tile | int):
  return case.whole(operation, how), (*case.operands, case.table), 1


def measure(session: Session, section: str, case: Case, jobs: dict) -> None:
  """Compiles, checks and times (operation, by, tile) -> job."""
  began = time.monotonic()
  compiled = compile_all(session, jobs, case.fmt)
  print(f"compiled {len(compiled)} in {time.monotonic() - began:.1f} s")
  for (operation, by, tile), run in compiled.items():
    if not session.has_time():
      return
    where = {"op": operation, "n": case.n, "c": case.c, "format": case.fmt}
    where |= {"by": by, "tile": tile if by == "xla" else short(tile)}
    _, arguments, repeats = jobs[operation, by, tile]
    try:
      out, expected = run(*arguments), case.expected[operation]
      if repeats > 1:
        expected = case.sample(operation, expected)
      error = error_of(out, expected)
      if not error <= TOLERANCE[case.fmt]:
        session.add("wrong", **where, error=error)
        continue
      ms = milliseconds(lambda: run(*arguments)) / repeats  # noqa: B023
    except Exception as failure:
      message = f"{type(failure).__name__}: {failure}"[:400]
      session.add("failed", **where, error=message)
      continue
    session.add(
      section,
      **where,
      ms=round(ms, 4),
      error=float(f"{error:.1e}"),
      **case.shares(operation, ms, session.rates),
    )
    key = (operation, case.fmt, case.c, case.c)
    known = session.best.get(key, (float("inf"),))[0]
    if section == "tune" and by == "pallas" and ms < known:
      session.best[key] = (ms, tile)


def table(session: Session, case: Case) -> None:
  """One size: our fastest tile with and without its row tiles, and XLA."""
  jobs = {}
  for operation in OPERATIONS:
    best = session.best.get((operation, case.fmt, case.c, case.c))
    with precision(case.fmt):
      tile = tiles_lib.choose(operation, case.c, case.c, dtype=DTYPE[case.fmt])
    tile = best[1] if best else tile
    jobs[operation, "pallas", tile] = kernel_job(case, operation, tile)
    jobs[operation, "pallas+tiles", tile] = whole_job(case, operation, tile)
    jobs[operation, "xla", xla.GPU_TILE] = whole_job(
      case, operation, xla.GPU_TILE
    )
  measure(session, "table", case, jobs)


def summary(session: Session) -> str:
  """The fastest of each implementation, a row each."""
  best = {}
  for row in session.results:
    if row["section"] in ("tune", "table", "peer") and row.get("ok", True):
      key = tuple(row[k] for k in ("op", "format", "n", "c", "by"))
      if key not in best or row["ms"] < best[key]["ms"]:
        best[key] = row
  lines = [
    f"{'operation':16}{'format':9}{'N':>8}{'C':>5} {'by':21}{'ms':>9}"
    f"{'TFLOP/s':>9}{'arith':>7}{'mem':>7}  tile"
  ]
  for (op, fmt, n, c, by), row in sorted(best.items()):
    lines.append(
      f"{op:16}{fmt:9}{n:8}{c:5} {by:21}{row['ms']:9.3f}{row['tflops']:9.1f}"
      f"{row.get('arithmetic', 0):7.3f}{row.get('memory', 0):7.3f}"
      f"  {row['tile']}"
    )
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  sections = ("floors", "tune", "peer", "table", "parts", "train")
  kinds = ("pallas", "xla")
  parser.add_argument("--output", default=os.environ.get("OUT", "."))
  parser.add_argument("--seconds", type=float, default=3600)
  parser.add_argument("--sections", nargs="+", choices=sections,
                      default=sections)  # fmt: skip
  parser.add_argument("--rows", type=int, default=1_000_000, help="to tune on")
  parser.add_argument("--table-rows", type=int, nargs="*",
                      default=[100_000, 1_000_000, 4_000_000])  # fmt: skip
  parser.add_argument("--channels", type=int, nargs="+",
                      default=[64, 128, 32, 96, 256])  # fmt: skip
  parser.add_argument("--formats", nargs="+", choices=tuple(DTYPE),
                      default=tuple(DTYPE))  # fmt: skip
  parser.add_argument("--first", type=int, default=40,
                      help="variants of the first shape")  # fmt: skip
  parser.add_argument("--others", type=int, default=8,
                      help="variants of every other shape")  # fmt: skip
  parser.add_argument("--sort-blocks", type=int, nargs="*", default=[],
                      help="of the first shape, also sorted so")  # fmt: skip
  parser.add_argument("--peer-channels", type=int, nargs="*",
                      default=[64, 128])  # fmt: skip
  parser.add_argument("--peer-formats", nargs="*", choices=tuple(DTYPE),
                      default=["bfloat16", "tf32"])  # fmt: skip
  parser.add_argument("--train-voxels", type=int, default=120_000,
                      help="of each scene")  # fmt: skip
  parser.add_argument("--train-by", nargs="+", choices=kinds, default=kinds)
  parser.add_argument("--tiles", help="start from the tiles of this file")
  args = parser.parse_args(argv)
  output = Path(args.output)
  output.mkdir(parents=True, exist_ok=True)
  session = Session(output, args.seconds, min(14, os.cpu_count() or 1))
  if args.tiles:
    try:
      given = tiles_lib.parse(Path(args.tiles).read_text(), args.tiles)
    except (OSError, ValueError) as error:
      parser.error(str(error))
    session.best = {key: (float("inf"), tile) for key, tile in given.items()}
  print(jax.devices()[0].device_kind, "jax", jax.__version__)

  shapes = [(c, fmt) for fmt in args.formats for c in args.channels]
  peer_shapes = {
    (c, fmt) for c in args.peer_channels for fmt in args.peer_formats
  }

  def attempt(name, function, *arguments):
    if not session.has_time():
      print("no time for", name)
      return
    began = time.monotonic()
    try:
      function(*arguments)
    except Exception as error:
      message = f"{type(error).__name__}: {error}"[:600]
      session.add("failed", name=name, error=message)
    print(f"-- {name}: {time.monotonic() - began:.1f} s", flush=True)

  if "floors" in args.sections:
    on_gpu = jax.default_backend() == "gpu"
    small = {} if on_gpu else {"megabytes": 8, "side": 256}
    attempt("floors", functools.partial(parts_lib.floors, session, **small))
  for i, (c, fmt) in enumerate(shapes):
    case = None
    if {"tune", "peer"} & set(args.sections) and session.has_time():
      case = case_of(args.rows, c, fmt)
    if "tune" in args.sections:
      limit = args.first if i == 0 else args.others
      blocks = [] if i else args.sort_blocks
      attempt(f"tune {c} {fmt}", tune, session, case, limit, blocks)
    if "peer" in args.sections and (c, fmt) in peer_shapes:
      attempt(f"peer {c} {fmt}", parts_lib.peer, session, case)
  # What follows takes the tiles just found.
  tiles_lib.use({key: tile for key, (_, tile) in session.best.items()})
  if "table" in args.sections:
    for n in args.table_rows:
      for c, fmt in shapes:
        name = f"table {n} {c} {fmt}"
        if not session.has_time():
          print("no time for", name)
          continue
        case = case_of(n, c, fmt)
        attempt(name, table, session, case)
        if "peer" in args.sections and (c, fmt) in peer_shapes:
          attempt("peer of " + name, parts_lib.peer, session, case)
  if "parts" in args.sections:
    attempt("parts", parts_lib.parts, session, args.rows)
  if "train" in args.sections:
    attempt("train", parts_lib.train, session, args.train_voxels,
            args.train_by)  # fmt: skip
  session.write()
  print(summary(session))


if __name__ == "__main__":
  main()
