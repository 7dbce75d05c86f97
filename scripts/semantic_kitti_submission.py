"""Makes or checks a submission to the benchmark of SemanticKITTI.

  python scripts/semantic_kitti_submission.py make --root data/semantic_kitti \\
    --predictions exp/run/predictions --output submission.zip

packs <predictions>/sequences/NN/predictions/FFFFFF.label, uint32 raw ids, of
the sequences 11 to 21 (--split test, the default), and checks the result.

  python scripts/semantic_kitti_submission.py validate \\
    --root data/semantic_kitti --input submission.zip

--remap official is for predictions of other programs, which hold 0 for none
and class + 1; --remap spvnas, multiscan, motion or a .yaml file of the
SemanticKITTI API alike.
"""

import argparse
import sys
from pathlib import Path

from wsegpc_jax.interop import semantic_kitti, semantic_kitti_submission
from wsegpc_jax.interop.semantic_kitti_submission import Submission
from wsegpc_jax.types import DataError

_SPLITS = {
  "test": semantic_kitti.TEST_SEQUENCES,
  "val": semantic_kitti.VAL_SEQUENCES,
  "train": semantic_kitti.TRAIN_SEQUENCES,
}


def main(argv: list[str] | None = None) -> Submission:
  """Makes or checks a submission."""
  args = parse_args(argv)
  scans = semantic_kitti_submission.submitted_scans(
    args.root, args.sequences or _SPLITS[args.split]
  )
  archive = args.input if args.command == "validate" else args.output
  if args.command == "make":
    remap = description = None
    if args.remap:
      remap = semantic_kitti.get_label_map(args.remap)
    if args.description:
      description = _read_text(args.description)
    semantic_kitti_submission.write_submission(
      archive, args.predictions, scans, remap=remap, description=description
    )
  found = semantic_kitti_submission.validate_submission(archive, scans)
  verb = "wrote" if args.command == "make" else "valid:"
  print(f"{verb} {archive}: {found.scans} scans, {found.points} points")
  return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True)
  make = commands.add_parser("make", help="pack predictions and check them")
  make.add_argument(
    "--predictions", required=True, help="folder that has sequences/"
  )
  make.add_argument("--output", required=True, help=".zip file to write")
  make.add_argument(
    "--remap", help="label map of predictions that hold class + 1"
  )
  make.add_argument(
    "--description", help="text file that becomes description.txt"
  )
  check = commands.add_parser("validate", help="check an archive")
  check.add_argument("--input", required=True, help=".zip file")
  for command in (make, check):
    command.add_argument(
      "--root", required=True, help="the data set, with velodyne/"
    )
    command.add_argument("--split", choices=tuple(_SPLITS), default="test")
    command.add_argument(
      "--sequences", nargs="+", metavar="NN", help="instead of those of a split"
    )
  return parser.parse_args(argv)


def _read_text(path: str) -> str:
  try:
    return Path(path).read_text("utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise DataError(
      f"--description={path!r}: expected a text file ({e})"
    ) from e


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
