"""The scripts as modules, for tests."""

import importlib.util
import sys
from pathlib import Path

from absl import flags

SCRIPTS = Path(__file__).parents[1] / "scripts"
# As for `python scripts/<name>.py`, but behind everything else.
sys.path.append(str(SCRIPTS))


def load(name: str):
  """scripts/<name>.py as a module of its own.

  Its command-line flags are taken back: another script, loaded by another test
  of the same process, may define the same.
  """
  spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for value in vars(module).values():
    if isinstance(value, flags.FlagHolder):
      delattr(flags.FLAGS, value.name)
  return module
