"""Writes the report of one or several runs as one HTML file.

  python scripts/report.py exp/tiny_cmg exp/tiny_rpc exp/tiny_seg --out report.html

The page needs nothing from elsewhere: the stage table, loss and mIoU curves,
IoU by class, confusion matrices, pseudo-labels by class, pictures of some rooms
with their 2D views, and all settings. Runs are shown in the order given. What a
working directory does not have is told in a sentence in its place.

Training rooms are shown with the pseudo-labels that --mode=label wrote, rooms
of the split --split with what the networks predict; --no-predict leaves the
networks alone and shows what is on disk.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from wsegpc_jax.types import DataError

_LARGE = 10e6  # bytes; more is a burden to open


def main(argv: list[str] | None = None) -> Path:
  """Writes the page and returns its path."""
  args = parse_args(argv)
  from wsegpc_jax import report

  names = stage_names(args.workdirs)
  stages = [
    report.read_stage(folder, name=name, score=args.score)
    for folder, name in zip(args.workdirs, names, strict=True)
  ]
  rooms, note = [], ""
  if args.scenes:
    rooms, note = read_rooms(args, stages)
  path = Path(args.out or Path(args.workdirs[-1]) / "report.html")
  title = args.title or f"Report of {', '.join(names)}"
  if note:
    print(note)
  size = report.write(path, stages, title=title, rooms=rooms, rooms_note=note)
  print(f"wrote {path} ({size / 1e6:.1f} MB)")
  if size > _LARGE:
    print("fewer --scenes or --views make it smaller")
  return path


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("workdirs", nargs="+", metavar="WORKDIR", help="of a training run")
  add("--out", help="HTML file (default: report.html in the last workdir)")
  add("--title", help="headline of the page")
  add(
    "--score",
    help="name of the JSON in eval/ that is each run's score (default:"
    " val_best if it is there, else the latest)",
  )
  add(
    "--scenes",
    type=_number,
    default=3,
    help="most rooms of each split, spread over it; 0 = none"
    " (default: %(default)s)",
  )
  add(
    "--views",
    type=_number,
    default=2,
    help="most posed images of a room (default: %(default)s)",
  )
  add(
    "--split",
    default="val",
    help="whose rooms are shown with predictions (default: %(default)s)",
  )
  add("--root", help="the data set, where it is not at config.data.root now")
  add(
    "--no-predict",
    action="store_true",
    help="show stored pseudo-labels only, run no network",
  )
  args = parser.parse_args(argv)
  if args.out and Path(args.out).suffix not in (".html", ".htm"):
    raise DataError(f"--out={args.out!r}: expected a name that ends in .html")
  return args


def _number(text: str) -> int:
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
  return value


def stage_names(workdirs: list[str]) -> list[str]:
  """Short names of folders, all different.

  Raises:
    DataError: a folder is given twice.
  """
  resolved = [Path(folder).resolve() for folder in workdirs]
  for folder, path in zip(workdirs, resolved, strict=True):
    if resolved.count(path) > 1:
      raise DataError(f"{folder} is given twice")
  for depth in range(1, max(len(path.parts) for path in resolved) + 1):
    names = ["/".join(path.parts[-depth:]) for path in resolved]
    if len(set(names)) == len(names):
      break
  return names


def read_rooms(args, stages) -> tuple[list, str]:
  """Rooms to show, and a sentence where some cannot be."""
  if not args.no_predict:
    use_compilation_cache(args.workdirs[0])
  # Imported here, because all that runs a network comes with it.
  from wsegpc_jax import inputs
  from wsegpc_jax.report import rooms as report_rooms

  shown, faults = [], []
  try:
    config = report_rooms.read_config(args.workdirs[0])
    if args.root:
      config.data.root = args.root
    dataset = inputs.open_data(config)
  except (DataError, OSError) as error:
    return [], f"No room is shown, as the data set cannot be read: {error}"
  for split, note, sources in (
    (
      config.data.train_split,
      "A training room.",
      training_sources(args, stages, report_rooms),
    ),
    (
      args.split,
      f"A room of the split {args.split}.",
      held_out_sources(args, stages, report_rooms),
    ),
  ):
    if not sources:
      continue
    names = dataset.splits.get(split, ())
    for source in sources:
      if source.stored:
        folder = Path(source.workdir) / report_rooms.FOLDER
        names = [n for n in names if (folder / f"{n}.npz").is_file()]
    if not names:
      faults.append(f"Split {split} of {dataset.root} has no rooms to show.")
      continue
    try:
      shown += report_rooms.read_rooms(
        dataset,
        report_rooms.spread(names, args.scenes),
        sources,
        views=args.views,
        note=note,
      )
    except (DataError, OSError) as error:
      faults.append(f"Rooms of split {split} are not shown: {error}")
  if not shown and not faults:
    faults.append(
      "No room is shown: no run has pseudo-labels, and networks are not run "
      "with --no-predict."
    )
  return shown, " ".join(faults)


def training_sources(args, stages, report_rooms) -> list:
  """Columns of training rooms, if any run has labelled them."""
  stored = [
    (Path(folder) / report_rooms.FOLDER).is_dir() for folder in args.workdirs
  ]
  if not any(stored):
    return []
  sources = []
  for folder, stage, there in zip(args.workdirs, stages, stored, strict=True):
    # As pseudo-labels are made, so that the columns compare.
    weak = (stage.config or {}).get("method") == "wsegpc"
    if not there and args.no_predict:
      continue
    sources.append(
      report_rooms.Source(
        title=f"{stage.name}, pseudo-labels" if there or weak else stage.name,
        workdir=folder,
        pixels=f"{stage.name}, 2D network",
        stored=there,
        network=not args.no_predict and has_checkpoint(folder),
        use_tags=True if weak else None,
        superpoints="mean" if weak else None,
      )
    )
  return [s for s in sources if s.stored or s.network]


def held_out_sources(args, stages, report_rooms) -> list:
  """Columns of rooms that nothing was trained on."""
  if args.no_predict:
    return []
  sources = []
  for folder, stage in zip(args.workdirs, stages, strict=True):
    if not has_checkpoint(folder):
      continue
    tags = ((stage.config or {}).get("eval") or {}).get("use_tags")
    sources.append(
      report_rooms.Source(
        title=f"{stage.name}, {'tags known' if tags else 'no tags'}",
        workdir=folder,
        pixels=f"{stage.name}, 2D network",
      )
    )
  return sources


def has_checkpoint(workdir: str) -> bool:
  folder = Path(workdir) / "checkpoints"
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def use_compilation_cache(workdir: str) -> None:
  """Finds what training or evaluating in a working directory compiled."""
  import jax

  if not jax.config.jax_compilation_cache_dir:
    cache = os.path.abspath(os.path.join(workdir, "compiled"))
    jax.config.update("jax_compilation_cache_dir", cache)


if __name__ == "__main__":
  logging.basicConfig(format="%(message)s", level=logging.WARNING)
  logging.getLogger("wsegpc_jax").setLevel(logging.INFO)
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit("interrupted: no report was written")
