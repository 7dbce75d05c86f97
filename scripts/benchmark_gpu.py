"""Measures the GPU kernels: against floors, XLA, and a Triton peer.

    python scripts/benchmark_gpu.py --output=FOLDER [--seconds=N]

Checks every kernel before timing it, prints a table and keeps
FOLDER/benchmark_gpu.json up to date. Sections, in the order they run for the
first shape (the others are tuned and compared with the peer before the table):

    floors    measured rates of copying and of matrix products
    tune      tiles of the convolution of the first shape; with --others also
              of the others. The fastest go to FOLDER/tiles.json, which is what
              kernels/gather_conv/tiles.json holds
    peer      with torch, the peer on the same numbers
    train     a training step of MinkUNet18A on 4 x 120,000 voxels in bfloat16;
              compiling it takes minutes
    parts     building row tiles and plans, the strided pair, segment reductions
    table     all sizes with the fastest tile known, and XLA

What is begun after --seconds (540) is left out and named; `--sections table`
and the like run one section by itself, `--tiles=FOLDER/tiles.json` with the
tiles found before. Whatever fails is recorded with its message, and the rest
goes on. A time of an operation is the median of several runs of one program of
many calls that wait for each other on the device only, or of one call that is
long.
"""

import argparse
import functools
import os
import time
from pathlib import Path

import benchmark_gpu_parts as parts_lib
import jax
from benchmark_gpu_cases import Case, candidates, case_of, row_tiles
from benchmark_gpu_measure import (
  DTYPE,
  Session,
  measure,
  precision,
)
from benchmark_gpu_train import train

from wsegpc_jax.kernels.gather_conv import tile_table as tiles_lib
from wsegpc_jax.kernels.gather_conv import xla
from wsegpc_jax.kernels.gather_conv.tile_table import OPERATIONS

SECTIONS = ("floors", "tune", "peer", "train", "parts", "table")


def tune(session: Session, case: Case, limit: int, blocks: list[int]) -> None:
  """Times tiles of both operations on built row tiles, and XLA."""
  jobs = {}
  for operation in OPERATIONS:
    tiles = candidates(operation, case.c, case.fmt)[:limit]
    for tile in tiles:
      jobs[operation, "pallas", tile] = case.kernel(operation, tile)
    for block in blocks:
      by = f"pallas, block {block}"
      jobs[operation, by, tiles[0]] = case.kernel(operation, tiles[0], block)
    jobs[operation, "xla", xla.GPU_TILE] = case.whole(operation, xla.GPU_TILE)
  for (operation, by, tile), ms in measure(session, "tune", case, jobs).items():
    key = (operation, case.fmt, case.c, case.c)
    if by == "pallas" and ms < session.best.get(key, (float("inf"),))[0]:
      session.best[key] = (ms, tile)


def table(session: Session, case: Case, building: bool) -> None:
  """One size: our fastest tile, with and without building row tiles, and XLA."""
  jobs = {}
  for operation in OPERATIONS:
    best = session.best.get((operation, case.fmt, case.c, case.c))
    with precision(case.fmt):
      tile = tiles_lib.choose(operation, case.c, case.c, dtype=DTYPE[case.fmt])
    tile = best[1] if best else tile
    jobs[operation, "pallas", tile] = case.kernel(operation, tile)
    jobs[operation, "xla", xla.GPU_TILE] = case.whole(operation, xla.GPU_TILE)
    if building:
      jobs[operation, "pallas+tiles", tile] = case.whole(operation, tile)
  measure(session, "table", case, jobs)


def summary(session: Session) -> str:
  """Our fastest of each operation and size: shares of floors, ratios to others.

  A ratio is the other's time over ours.
  """
  best = {}
  for row in session.results:
    if "op" not in row or "ms" not in row or not row.get("ok", True):
      continue
    sizes = tuple(f"{k}={row[k]}" for k in ("n", "p", "s", "c") if k in row)
    key, by = (row["op"], row["format"], sizes), row["by"]
    found = best.setdefault(key, {})
    if by not in found or row["ms"] < found[by]["ms"]:
      found[by] = row
  lines = [
    f"{'operation':21}{'format':9}{'size':27}{'ms':>9}{'arith':>7}{'mem':>7}"
    f"{'XLA':>7}{'Triton':>7}  tile"
  ]
  for (op, fmt, sizes), found in sorted(best.items()):
    ours = [row for by, row in found.items() if by.startswith("pallas")]
    row = min(ours or found.values(), key=lambda row: row["ms"])
    line = f"{op:21}{fmt:9}{' '.join(sizes):27}{row['ms']:9.3f}"
    for share in ("arithmetic", "memory"):
      line += f"{row[share]:7.3f}" if share in row else f"{'-':>7}"
    for other in ("xla", "triton"):
      shown = other in found and bool(ours)
      line += f"{found[other]['ms'] / row['ms']:7.2f}" if shown else f"{'-':>7}"
    lines.append(f"{line}  {row['tile']}")
  lines.append("spconv: not measured, its wheels are for another CUDA version")
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  kinds = ("pallas", "xla")
  parser.add_argument("--output", default=os.environ.get("OUT", "."))
  parser.add_argument("--seconds", type=float, default=540)
  parser.add_argument("--sections", nargs="+", choices=SECTIONS,
                      default=SECTIONS)  # fmt: skip
  parser.add_argument("--rows", type=int, default=1_000_000, help="to tune on")
  parser.add_argument("--table-rows", type=int, nargs="*",
                      default=[100_000, 1_000_000, 4_000_000])  # fmt: skip
  parser.add_argument("--channels", type=int, nargs="+",
                      default=[64, 128, 32, 96, 256])  # fmt: skip
  parser.add_argument("--formats", nargs="+", choices=tuple(DTYPE),
                      default=tuple(DTYPE))  # fmt: skip
  parser.add_argument("--first", type=int, default=8,
                      help="variants of the first shape")  # fmt: skip
  parser.add_argument("--others", type=int, default=0,
                      help="variants of every other shape")  # fmt: skip
  parser.add_argument("--sort-blocks", type=int, nargs="*", default=[],
                      help="of the first shape, also sorted so")  # fmt: skip
  parser.add_argument("--peer-channels", type=int, nargs="*",
                      default=[64, 128])  # fmt: skip
  parser.add_argument("--peer-formats", nargs="*", choices=tuple(DTYPE),
                      default=["bfloat16", "tf32"])  # fmt: skip
  parser.add_argument("--train-voxels", type=int, default=120_000,
                      help="of each scene")  # fmt: skip
  parser.add_argument("--train-arch", default="18A")
  parser.add_argument("--train-by", nargs="+", choices=kinds, default=kinds)
  parser.add_argument("--part-scale", type=float, default=1.0,
                      help="of the rows of the parts")  # fmt: skip
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
      session.add_failure(name, error)
    print(f"-- {name}: {time.monotonic() - began:.1f} s", flush=True)

  def with_case(function, n, c, fmt, *arguments):
    # Made here, so that one that fails is recorded, and freed when done.
    attempt(
      f"{function.__name__} {n} {c} {fmt}",
      lambda: function(session, case_of(n, c, fmt), *arguments),
    )

  def tune_and_compare(c, fmt, limit, blocks=()):
    if "tune" in args.sections and limit:
      with_case(tune, args.rows, c, fmt, limit, blocks)
      # What follows takes the tiles just found.
      tiles_lib.use({key: tile for key, (_, tile) in session.best.items()})
    if "peer" in args.sections and (c, fmt) in peer_shapes:
      with_case(parts_lib.peer, args.rows, c, fmt)

  tiles_lib.use({key: tile for key, (_, tile) in session.best.items()})
  if "floors" in args.sections:
    on_gpu = jax.default_backend() == "gpu"
    small = {} if on_gpu else {"megabytes": 8, "side": 256}
    attempt("floors", functools.partial(parts_lib.floors, session, **small))
  tune_and_compare(*shapes[0], args.first, args.sort_blocks)
  if "train" in args.sections:
    row_tiles.cache_clear()
    attempt(
      "train",
      functools.partial(train, arch=args.train_arch),
      session,
      args.train_voxels,
      args.train_by,
    )
  if "parts" in args.sections:
    attempt("plans", parts_lib.plans, session, args.rows)
    for spec in parts_lib.strided_specs.GPU:
      spec = parts_lib.scaled(spec, args.part_scale)
      attempt(f"links {spec}", parts_lib.links, session, spec)
    for spec in parts_lib.segment_specs.GPU:
      spec = parts_lib.scaled(spec, args.part_scale)
      attempt(f"segments {spec}", parts_lib.segments, session, spec)
  for c, fmt in shapes[1:]:
    tune_and_compare(c, fmt, args.others)
  if "table" in args.sections:
    for n in sorted(args.table_rows, key=lambda n: n != args.rows):
      row_tiles.cache_clear()
      for c, fmt in shapes:
        with_case(table, n, c, fmt, n == args.rows)
  session.write()
  print(summary(session))


if __name__ == "__main__":
  main()
