"""The command line.

python -m wsegpc_jax.main --config=configs/tiny_rpc.py --workdir=exp/rpc
"""

import logging
import os
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from wsegpc_jax import command_line

_MODES = ("train", "eval", "label", "predict")
# Seconds after which a process that is gone ends the others, too.
_HEARTBEAT = 20

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/; file.py:variant selects a variant."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and results go."
)
_MODE = flags.DEFINE_enum("mode", "train", _MODES, "What to do.")
_INPUT = flags.DEFINE_string(
  "input", "", "predict: the scan, .ply or .npz; of a laser .bin."
)
_OUTPUT = flags.DEFINE_string("output", "", "predict: the .ply to write.")
_TAGS = flags.DEFINE_list(
  "tags", [], "predict: classes that may occur, if they are known."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "Several processes: host:port of the first one."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which one this is.")


def _run() -> None:
  # Imported after the flags are known: several processes have to find each
  # other before jax looks for devices.
  import jax

  from wsegpc_jax.types import DataError

  if _NUM_PROCESSES.value > 1 and not _COORDINATOR.value:
    raise DataError("--num_processes above 1 needs --coordinator=HOST:PORT")
  if _COORDINATOR.value:
    jax.distributed.initialize(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      heartbeat_timeout_seconds=_HEARTBEAT,
    )
  if not jax.config.jax_compilation_cache_dir:
    # A resumed run, and the other modes, find what was compiled already.
    cache = os.path.abspath(os.path.join(_WORKDIR.value, "compiled"))
    jax.config.update("jax_compilation_cache_dir", cache)
  from wsegpc_jax import config_checks, evaluate, label, predict, train

  config, workdir = _CONFIG.value, _WORKDIR.value
  config_checks.check_config(config)
  match _MODE.value:
    case "train":
      name = config_flags.get_config_filename(flags.FLAGS["config"])
      train.train(config, workdir, config_name=name)
    case "eval":
      evaluate.evaluate(config, workdir)
    case "label":
      label.label(config, workdir)
    case "predict":
      predict.predict(
        config,
        workdir,
        source=_INPUT.value,
        target=_OUTPUT.value,
        tags=tuple(_TAGS.value),
      )


def main(argv: list[str]) -> None:
  """Runs a mode; a user's mistake ends in one line, not a traceback."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}")
  # Orbax and grain say too much at INFO; ours is the standard library's.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logger = logging.getLogger("wsegpc_jax")
  logger.setLevel(logging.INFO)
  logger.propagate = False
  handler = logging.StreamHandler()
  # On a terminal a progress line may stand there: it is overwritten.
  clear = "\r\x1b[K" if sys.stderr.isatty() else ""
  handler.setFormatter(
    logging.Formatter(f"{clear}%(asctime)s %(message)s", "%H:%M:%S")
  )
  logger.addHandler(handler)
  from wsegpc_jax.types import DataError

  try:
    _run()
  except (DataError, FloatingPointError, OSError) as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    if _COORDINATOR.value:
      # An ordinary exit would wait for the others, which wait for this one.
      os._exit(2)
    sys.exit(2)
  except KeyboardInterrupt:
    training = "; the same command goes on from the last checkpoint"
    more = training if _MODE.value == "train" else ""
    print(f"interrupted{more}", file=sys.stderr)
    sys.exit(130)


def _parse(argv: list[str]) -> list[str]:
  return command_line.parse(argv, _CONFIG, required=["config", "workdir"])


if __name__ == "__main__":
  app.run(main, flags_parser=_parse)
