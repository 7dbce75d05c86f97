"""The rows of the ladder: which trainings it compares, and how they depend.

All rows have the same rooms, augmentation, networks and evaluation; only what
is trained differs. A longer schedule helps by itself, so stage 2, which goes on
from stage 1, is compared with stage 1 trained for as many steps as both
together ("cam_long", "cmg_long").
"""

import ast
import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from wsegpc_jax import label
from wsegpc_jax.types import DataError

LoadConfig = Callable[[str], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Row:
  """One training.

  Attributes:
    name: its key in the results.
    title: of the tables.
    config: stem of a file in configs/.
    init_from: row whose network it starts from, "" = fresh weights.
    labels_from: row whose pseudo-labels it learns from, "" = none.
    steps_of: rows whose steps it trains together; () = those of its config.
  """

  name: str
  title: str
  config: str
  init_from: str = ""
  labels_from: str = ""
  steps_of: tuple[str, ...] = ()

  @property
  def after(self) -> str:
    """The row that must be there before, or ""."""
    return self.init_from or self.labels_from


ROWS = (
  Row("cam", "CAM only", "synthetic_cam"),
  Row("cmg", "CMG (stage 1)", "synthetic_cmg"),
  Row("rpc", "CMG + RPC (stage 2)", "synthetic_rpc", init_from="cmg"),
  Row("seg", "stage 3", "synthetic_seg", labels_from="rpc"),
  Row("full", "full labels", "synthetic_full"),
  Row(
    "cam_long",
    "CAM only, steps of stages 1 + 2",
    "synthetic_cam",
    steps_of=("cmg", "rpc"),
  ),
  Row(
    "cmg_long",
    "CMG, steps of stages 1 + 2",
    "synthetic_cmg",
    steps_of=("cmg", "rpc"),
  ),
)
NAMES = tuple(row.name for row in ROWS)
PRESETS = {"cpu": "", "gpu": "gpu"}  # variants of the configs, by name
# Fields that differ between rows and seeds.
OF_A_ROW = ("seed", "init_from", "data.labels_from")
# Whatever `ast.literal_eval` may raise.
_NOT_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
DEMO = ("cam", "cmg", "rpc", "seg", "full")  # without the controls


def find(name: str) -> Row:
  """The row of a name.

  Raises:
    DataError: there is none.
  """
  for row in ROWS:
    if row.name == name:
      return row
  raise DataError(f"no row {name!r}; expected one of {', '.join(NAMES)}")


def with_predecessors(names: Sequence[str]) -> tuple[Row, ...]:
  """The rows, and those that they come after, in the order they run in.

  Raises:
    DataError: an unknown name.
  """
  wanted = set()
  for name in names:
    while name:
      wanted.add(name)
      name = find(name).after
  return tuple(row for row in ROWS if row.name in wanted)


def config_loader(folder: str | Path, variant: str = "") -> LoadConfig:
  """What loads configs/<stem>.py anew.

  Args:
    folder: of the config files.
    variant: passed to their get_config.
  """

  def load(stem: str) -> ConfigDict:
    path = Path(folder) / f"{stem}.py"
    if not path.is_file():
      raise DataError(f"{path} not found, expected a config of the ladder")
    spec = importlib.util.spec_from_file_location(f"ladder_{stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)

  return load


def prepared_rooms(root: str) -> dict[str, Any]:
  """Overrides that read the rooms of a folder; "" = none, rooms are made."""
  if not root:
    return {}
  return {"data.root": root, "data.synthetic.train": 0, "data.synthetic.val": 0}


def set_fields(settings: Sequence[str], load: LoadConfig) -> dict[str, Any]:
  """Overrides that are written as text.

  Args:
    settings: such as "dtype=bfloat16" or "train.lr=0.1".
    load: gives a fresh config by its stem.

  Raises:
    DataError: no such field, a value of another type, or a field that differs
      between rows or seeds.
  """
  config, fields = load(ROWS[0].config).lock(), {}
  for text in settings:
    name, equals, value = text.partition("=")
    if name in OF_A_ROW:
      raise DataError(
        f"{text!r}: the ladder sets {', '.join(OF_A_ROW)} itself, for each row"
      )
    with contextlib.suppress(*_NOT_LITERAL):
      value = ast.literal_eval(value)
    try:
      if not equals:
        raise KeyError("no value")
      config.update_from_flattened_dict({name: value})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise DataError(
        f"{text!r}: expected a field of the configs and a value of its type, "
        f"such as train.lr=0.1 ({type(error).__name__}: {error})"
      ) from error
    fields[name] = value
  return fields


def build_config(
  row: Row,
  *,
  load: LoadConfig,
  seed: int,
  workdir: Path,
  overrides: Mapping[str, Any],
) -> ConfigDict:
  """The locked config of one row.

  Args:
    row: the row.
    load: gives a fresh config by its stem.
    seed: of the training.
    workdir: folder of this seed; a row's own is workdir / row.name.
    overrides: fields, by dotted name, that all rows share.
  """

  def loaded(one: Row) -> ConfigDict:
    config = load(one.config)
    config.update_from_flattened_dict(dict(overrides))
    return config

  config = loaded(row)
  config.seed = seed
  if row.steps_of:
    config.train.total_steps = sum(
      loaded(find(name)).train.total_steps for name in row.steps_of
    )
  if row.init_from:
    config.init_from = str(workdir / row.init_from)
  if row.labels_from:
    config.data.labels_from = str(workdir / row.labels_from / label.FOLDER)
  return config.lock()
