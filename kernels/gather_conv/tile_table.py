"""The tile of a shape: measured where it was, else that of the nearest one.

`tiles.json` beside this file holds, for each operation, number format and pair
of channel counts that was measured, the fastest tile: the file of this name
that `scripts/benchmark_gpu.py` writes.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from wsegpc_jax.kernels.gather_conv.row_tiles import GROUPS

PATH = Path(__file__).with_name("tiles.json")
OPERATIONS = ("forward", "weight_gradient")
# How float32 products are made: exactly, or by matrix units from 19 bits.
FORMATS = ("bfloat16", "tf32", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Tile:
  """What a kernel is compiled with.

  Attributes:
    rows: rows of a tile.
    block_c, block_d: blocks of input and output channels; fewer channels
      than that are one block.
    warps, stages: of Triton: threads of a program / 32, loads in flight.
    by_mask: sort the rows by their taps first.
    ahead: look up a step ahead which rows to read.
    transposed: hold the weight as [K, D, C].
    unpadded: cut channel counts that are no power of two into pieces that
      are, instead of padding them.
    split: make float32 products from sums of two bfloat16 each (three
      products, 16 bits: more than TF32 has). For the format "tf32" only.
    group: taps that a program of the weight gradient takes at once.
  """

  rows: int = 64
  block_c: int = 64
  block_d: int = 128
  warps: int = 4
  stages: int = 3
  by_mask: bool = True
  ahead: bool = True
  transposed: bool = False
  unpadded: bool = False
  split: bool = False
  group: int = 1


# Where nothing near was measured. Exact float32 and float64 products are made
# without matrix units: their large tiles spill registers.
_FALLBACK = {
  ("forward", "bfloat16"): Tile(),
  ("forward", "tf32"): Tile(block_c=32, block_d=64),
  ("forward", "float32"): Tile(rows=32, block_c=32, block_d=64, stages=2),
  ("forward", "float64"): Tile(rows=16, block_c=16, block_d=32, stages=1),
  ("weight_gradient", "bfloat16"): Tile(block_c=64, block_d=64),
  ("weight_gradient", "tf32"): Tile(block_c=64, block_d=64),
  ("weight_gradient", "float32"): Tile(
    rows=32, block_c=32, block_d=32, stages=2
  ),
  ("weight_gradient", "float64"): Tile(
    rows=16, block_c=16, block_d=32, stages=1
  ),
}


def number_format(dtype) -> str:
  """How products of `dtype` are made under the present precision setting."""
  dtype = jnp.dtype(dtype)
  if dtype.itemsize == 2:
    return "bfloat16"  # float16 has the same matrix units
  if dtype == jnp.float64:
    return "float64"
  exact = jax.config.jax_default_matmul_precision in ("highest", "float32")
  return "float32" if exact else "tf32"


def parse(text: str, source: str) -> dict[tuple, Tile]:
  """The entries of a tile table.

  Args:
    text: JSON, {"tiles": [{"operation", "format", "c", "d", fields of a Tile},
      ...]}.
    source: file name, for errors.

  Raises:
    ValueError: an entry is not of this form.
  """
  fields = {f.name: type(f.default) for f in dataclasses.fields(Tile)}
  try:
    entries = json.loads(text)["tiles"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{source}: expected a JSON object with a list 'tiles': {error}"
    ) from None
  table = {}
  for i, entry in enumerate(entries):
    where = f"{source}: tiles[{i}]"
    for name, kind in {"c": int, "d": int, **fields}.items():
      if type(entry.get(name)) is not kind:
        raise ValueError(
          f"{where}: {name} must be of type {kind.__name__}, got "
          f"{entry.get(name)!r}"
        )
    for name, choices in (("operation", OPERATIONS), ("format", FORMATS)):
      if entry.get(name) not in choices:
        raise ValueError(
          f"{where}: {name} must be one of {', '.join(choices)}, got "
          f"{entry.get(name)!r}"
        )
    for name in ("rows", "block_c", "block_d"):
      if entry[name] < 16 or entry[name] & (entry[name] - 1):
        raise ValueError(
          f"{where}: {name} must be a power of two, at least 16, got "
          f"{entry[name]}"
        )
    if entry["split"] and entry["format"] != "tf32":
      raise ValueError(
        f"{where}: split is for the format tf32 only, got {entry['format']!r}"
      )
    if entry["group"] not in GROUPS:
      raise ValueError(
        f"{where}: group must be one of {', '.join(map(str, GROUPS))}, got "
        f"{entry['group']}"
      )
    key = (entry["operation"], entry["format"], entry["c"], entry["d"])
    table[key] = Tile(**{name: entry[name] for name in fields})
  return table


@functools.cache
def _stored() -> dict[tuple, Tile]:
  return parse(PATH.read_text(), PATH.name)


_measured: dict[tuple, Tile] = {}  # by this program, before the stored ones


def use(tiles: dict[tuple, Tile]) -> None:
  """Takes these entries, as `parse` returns them, before the stored ones.

  What is compiled already keeps its tiles.
  """
  _measured.update(tiles)


def nearest(
  table: dict[tuple, Tile], operation: str, fmt: str, c: int, d: int
) -> Tile:
  """The entry whose channel counts have the nearest ratios to c and d."""

  def distance(key):
    return abs(math.log2(key[2] / c)) + abs(math.log2(key[3] / d)), key

  keys = [k for k in table if k[:2] == (operation, fmt)]
  if not keys:
    return _FALLBACK[operation, fmt]
  return table[min(keys, key=distance)]


def choose(operation: str, c: int, d: int, *, dtype) -> Tile:
  """The tile of an operation on C input and D output channels."""
  return nearest(_stored() | _measured, operation, number_format(dtype), c, d)
