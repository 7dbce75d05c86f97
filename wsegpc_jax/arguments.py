"""Numbers on the command line of a script, for argparse's `type`."""

import argparse


def count(text: str) -> int:
  """A whole number from 1."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
  return value


def length(text: str) -> float:
  """A finite number above 0."""
  value = float(text)
  if not 0 < value < float("inf"):
    raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
  return value
