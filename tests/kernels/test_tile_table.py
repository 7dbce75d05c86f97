"""The stored tiles, and what is taken where nothing was measured."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from wsegpc_jax.kernels.gather_conv import tile_table
from wsegpc_jax.kernels.gather_conv.tile_table import Tile


def entry(operation="forward", fmt="bfloat16", c=64, d=64, **tile):
  fields = {"operation": operation, "format": fmt, "c": c, "d": d}
  return fields | dataclasses.asdict(Tile(**tile))


def parse(*entries):
  return tile_table.parse(json.dumps({"tiles": entries}), "tiles.json")


def test_an_entry_is_read_back():
  table = parse(entry(rows=32, by_mask=False), entry(c=128, stages=4))
  assert table == {
    ("forward", "bfloat16", 64, 64): Tile(rows=32, by_mask=False),
    ("forward", "bfloat16", 128, 64): Tile(stages=4),
  }


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"operation": "backward"}, "operation must be one of forward"),
    ({"format": "int8"}, "format must be one of bfloat16"),
    ({"rows": 48}, "rows must be a power of two"),
    ({"block_c": 8}, "block_c must be a power of two, at least 16, got 8"),
    ({"warps": "4"}, "warps must be of type int, got '4'"),
    ({"c": None}, "c must be of type int"),
    ({"by_mask": 1}, "by_mask must be of type bool"),
    ({"split": True}, "split is for the format tf32 only, got 'bfloat16'"),
    ({"group": 2}, "group must be one of 1, 3, got 2"),
  ],
)
def test_a_wrong_entry_is_named(change, message):
  with pytest.raises(ValueError, match=rf"tiles.json: tiles\[1\]: {message}"):
    parse(entry(), entry() | change)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_no_table(text):
  with pytest.raises(ValueError, match="tiles.json: expected a JSON object"):
    tile_table.parse(text, "tiles.json")


def test_the_nearest_ratio_of_channels_is_taken():
  table = parse(
    entry(c=32, d=32, rows=16),
    entry(c=128, d=128, rows=128),
    entry("weight_gradient", c=64, d=64, rows=256),
  )

  def rows(c, d):
    return tile_table.nearest(table, "forward", "bfloat16", c, d).rows

  assert [rows(c, c) for c in (3, 32, 48, 96, 512)] == [16, 16, 16, 128, 128]
  # Another operation or number format is no neighbour.
  other = tile_table.nearest(table, "forward", "tf32", 64, 64)
  assert other == tile_table._FALLBACK["forward", "tf32"]


def test_used_entries_come_before_the_stored_ones(monkeypatch):
  monkeypatch.setattr(tile_table, "_measured", {})
  tile_table.use(parse(entry(c=7, d=7, rows=16, stages=5)))
  got = tile_table.choose("forward", 7, 7, dtype=jnp.bfloat16)
  assert got == Tile(rows=16, stages=5)


def test_every_operation_and_format_has_a_fallback():
  for operation in tile_table.OPERATIONS:
    for fmt in tile_table.FORMATS:
      tile = tile_table.nearest({}, operation, fmt, 96, 3)
      assert tile.rows * tile.block_d <= 64 * 128


def test_the_format_follows_type_and_precision():
  assert tile_table.number_format(jnp.bfloat16) == "bfloat16"
  assert tile_table.number_format(jnp.float64) == "float64"
  assert tile_table.number_format(jnp.float32) == "tf32"
  with jax.default_matmul_precision("highest"):
    assert tile_table.number_format(jnp.float32) == "float32"
    assert tile_table.number_format(jnp.float16) == "bfloat16"


def test_the_stored_table():
  table = tile_table.parse(tile_table.PATH.read_text(), "tiles.json")
  for operation in tile_table.OPERATIONS:
    for fmt, channels in (("bfloat16", (32, 64, 96, 128)), ("tf32", (64, 128))):
      for c in channels:
        dtype = jnp.bfloat16 if fmt == "bfloat16" else jnp.float32
        chosen = tile_table.choose(operation, c, c, dtype=dtype)
        assert chosen == table[operation, fmt, c, c]
