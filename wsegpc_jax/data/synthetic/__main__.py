"""Writes a data set of synthetic rooms.

  python -m wsegpc_jax.data.synthetic --root data/synthetic --train 24 --val 8

A room depends on the version of the generator, the seed, its split and number,
and on the size and number of its images; not on how many rooms there are, nor
on the number of workers. Interrupted, it goes on when it is called again; with
larger numbers it adds rooms.
"""

import argparse
import sys

from wsegpc_jax.arguments import count
from wsegpc_jax.data.synthetic.rooms import write_rooms
from wsegpc_jax.types import DataError


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  args = vars(_parse_args(argv))
  args["image_size"] = tuple(args["image_size"])
  try:
    dataset = write_rooms(args.pop("root"), **args)
  except (DataError, ImportError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(
      "\ninterrupted; finished rooms are kept, call it again to go on",
      file=sys.stderr,
    )
    return 130
  rooms = ", ".join(f"{len(v)} {k}" for k, v in dataset.splits.items())
  print(f"{dataset.root}: {rooms} rooms, {len(dataset.classes)} classes")
  return 0


def _parse_args(argv):
  parser = argparse.ArgumentParser(
    prog="python -m wsegpc_jax.data.synthetic",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--root", required=True, help="folder of the data set, made if needed")
  add("--train", type=_number, default=24, help="rooms (default: %(default)s)")
  add("--val", type=_number, default=8, help="rooms (default: %(default)s)")
  add("--seed", type=_number, default=0, help="default: %(default)s")
  add(
    "--image_size", nargs=2, type=count, default=(96, 128), metavar=("H", "W"),
    help="of the frames, pixels (default: 96 128)",
  )  # fmt: skip
  add("--views", type=count, default=6, help="frames of a room")
  add("--workers", type=count, default=2, help="processes")
  return parser.parse_args(argv)


def _number(text: str) -> int:
  """A whole number from 0."""
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
  return value


if __name__ == "__main__":
  sys.exit(main())
