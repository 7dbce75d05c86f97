"""The rows differ in what is trained, and in nothing else."""

import json
import re

import ladder_parts
import pytest

from wsegpc_jax import config_checks
from wsegpc_jax.ladder import rows
from wsegpc_jax.ladder.run import _flatten
from wsegpc_jax.types import DataError

VARIANTS = ("", "demo", "gpu", "smoke")


def configs(variant, tmp_path):
  load = rows.config_loader(ladder_parts.CONFIGS, variant)
  built = {
    row.name: rows.build_config(
      row, load=load, seed=3, workdir=tmp_path, overrides={"data.threads": 7}
    )
    for row in rows.ROWS
  }
  for config in built.values():
    config_checks.check_config(config)
  return {k: _flatten(json.loads(c.to_json())) for k, c in built.items()}


def differing(a, b):
  return {key for key in a if a[key] != b[key]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_intended_fields_differ(variant, tmp_path):
  flat = configs(variant, tmp_path)
  assert set(flat) == set(rows.NAMES)
  assert all(f["seed"] == 3 and f["data.threads"] == 7 for f in flat.values())
  cmg_off = {"loss.cmg_3d", "loss.cmg_2d"}
  assert differing(flat["cmg"], flat["cam"]) == cmg_off
  assert differing(flat["cmg_long"], flat["cam_long"]) == cmg_off
  for name in ("cam", "cmg"):
    assert differing(flat[name], flat[f"{name}_long"]) == {"train.total_steps"}
  assert differing(flat["seg"], flat["full"]) == {"data.labels_from"}
  assert differing(flat["cmg"], flat["rpc"]) <= {
    "init_from", "loss.rpc_3d", "loss.rpc_2d", "train.lr",
    "loss.cam_warmup", "loss.cmg_warmup", "model.image_weights",
  }  # fmt: skip
  # Rooms, augmentation of the student, networks and scores are the same.
  for name, f in flat.items():
    changed = differing(flat["cmg"], f)
    assert not {k for k in changed if k.startswith("data.")} - {
      "data.labels_from", "data.max_rotation",
    }, name  # fmt: skip
    assert not {k for k in changed if k.startswith("model.")} - {
      "model.image_weights"
    }, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_controls_take_as_many_steps_as_both_stages(variant, tmp_path):
  flat = configs(variant, tmp_path)
  steps = {name: f["train.total_steps"] for name, f in flat.items()}
  assert steps["cam"] == steps["cmg"] > 0
  assert steps["cam_long"] == steps["cmg_long"] == steps["cmg"] + steps["rpc"]
  assert steps["seg"] == steps["full"]


def test_nothing_is_chosen_by_the_held_out_rooms(tmp_path):
  for f in configs("", tmp_path).values():
    assert f["train.eval_every"] == -1
    assert f["init_checkpoint"] == f["eval.checkpoint"] == "latest"


def test_chain(tmp_path):
  flat = configs("", tmp_path)
  assert flat["rpc"]["init_from"] == str(tmp_path / "cmg")
  labels = tmp_path / "rpc" / "pseudo_labels"
  assert flat["seg"]["data.labels_from"] == str(labels)
  for name, f in flat.items():
    fresh = name != "rpc"
    assert (f["init_from"] == "") == fresh
    assert (f["data.labels_from"] == "") == (name != "seg")
    # The 2D network starts pre-trained where there is one that starts.
    weak = f["method"] == "wsegpc"
    assert bool(f["model.image_weights"]) == (weak and fresh)


def test_predecessors_run_first():
  def names(*wanted):
    return [row.name for row in rows.with_predecessors(wanted)]

  assert names("seg") == ["cmg", "rpc", "seg"]
  assert names("cam_long", "rpc") == ["cmg", "rpc", "cam_long"]
  assert names(*rows.NAMES) == list(rows.NAMES)
  seen = set()
  for row in rows.ROWS:
    assert not row.after or row.after in seen
    seen.add(row.name)
  with pytest.raises(DataError, match="no row 'nope'; expected one of cam"):
    names("nope")


def test_fields_set_as_text():
  load = rows.config_loader(ladder_parts.CONFIGS, "smoke")
  fields = rows.set_fields(
    ["dtype=bfloat16", "train.lr=0.25", "data.threads=3", "train.lr=1"], load
  )
  assert fields == {"dtype": "bfloat16", "train.lr": 1, "data.threads": 3}
  config = load("synthetic_rpc")
  config.update_from_flattened_dict(fields)
  assert (config.dtype, config.train.lr) == ("bfloat16", 1.0)
  assert rows.set_fields(["dtype={[]:1}"], load) == {"dtype": "{[]:1}"}
  for text in ("seed=3", "init_from=exp/cmg", "data.labels_from=x"):
    with pytest.raises(DataError, match="the ladder sets seed, init_from"):
      rows.set_fields([text], load)
  for text in (
    "nope=1",
    "train.nope=1",
    "data.threads=x",
    "dtype",
    "data=1",
  ):
    with pytest.raises(
      DataError, match=re.escape(f"{text!r}: expected a field")
    ):
      rows.set_fields([text], load)


def test_missing_config_folder(tmp_path):
  load = rows.config_loader(tmp_path)
  with pytest.raises(DataError, match="synthetic_cam.py not found"):
    load("synthetic_cam")
