"""Flags of a program, a user's mistakes in them told in one line."""

import sys
from collections.abc import Sequence

from absl import flags


def parse(
  argv: list[str], config: flags.FlagHolder, *, required: Sequence[str]
) -> list[str]:
  """Parses flags, or ends the program with one line and exit status 2.

  Args:
    argv: the command line.
    config: flag of a config file, which is loaded.
    required: names of flags that must be given.

  Returns:
    What is no flag, the program's name first.
  """
  try:
    args = flags.FLAGS(argv)
    flags.mark_flags_as_required(required)
    flags.FLAGS.validate_all_flags()
    _ = config.value.method  # raises what went wrong in loading the file
    return args
  except (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    flags.Error,
  ) as error:
    print(f"error: {_in_words(error)}", file=sys.stderr)
    sys.exit(2)


def _in_words(error: Exception) -> str:
  """What went wrong, without the traceback some libraries put in there."""
  text = str(error)
  if isinstance(error, KeyError | AttributeError):  # a field, quoted twice
    text = text.replace("\\n", " ").replace("\\'", "").strip("'\"")
    text = f"unknown field of --config: {text}"
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if any(line.startswith("Traceback") for line in lines):
    return f"{lines[0]} {lines[-1]}"
  return " ".join(lines)
