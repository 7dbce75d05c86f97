"""The script on working directories made by hand: its page, its mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import script_modules
from report_pages import CONFUSION, check_self_contained, write_run

from wsegpc_jax.data import box_rooms
from wsegpc_jax.defaults import get_tiny
from wsegpc_jax.types import DataError

_SCRIPT = script_modules.SCRIPTS / "report.py"
script = script_modules.load("report")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A stage 2 that has labelled a data set of one room, and a stage 3."""
  folder = tmp_path_factory.mktemp("runs")
  dataset = box_rooms.write_rooms(
    folder / "data", train=1, val=1, seed=0, views=1, image_size=(30, 40),
    points_per_square_metre=60.0,
  )  # fmt: skip
  config = get_tiny("smoke")
  config.data.root = str(folder / "data")
  found = []
  for name, method in (("rpc", "wsegpc"), ("seg", "segmentation")):
    config.method = method
    run = write_run(
      folder / name,
      config=json.loads(config.to_json()),
      pseudo=CONFUSION if name == "rpc" else None,
    )
    found.append(str(run))
  labels = folder / "rpc" / "pseudo_labels"
  labels.mkdir()
  [room] = dataset.splits["train"]
  label = dataset.load_scene(room).label.astype(np.uint8)
  np.savez(labels / f"{room}.npz", pred_label=label)
  return found


def test_page_of_two_runs(runs, tmp_path, capsys):
  out = tmp_path / "new" / "r.html"
  script.main([*runs, "--out", str(out), "--no-predict", "--title", "T"])
  assert f"wrote {out} (" in capsys.readouterr().out
  page = check_self_contained(out.read_text("utf-8"))
  words = page.text()
  assert "rpc, pseudo-labels" in words and "100 % of points right" in words
  # Colours, truth, pseudo-labels; a frame and its truth.
  assert len(page.all("img")) == 5


def test_a_data_set_that_has_moved(runs, tmp_path, capsys):
  run = write_run(
    tmp_path / "one", config={"method": "wsegpc", "data": {"root": "gone"}}
  )
  (run / "pseudo_labels").mkdir()
  path = script.main([str(run), "--no-predict"])
  assert path == run / "report.html"
  sentence = "No room is shown, as the data set cannot be read: "
  assert sentence in capsys.readouterr().out
  assert sentence in check_self_contained(path.read_text("utf-8")).text()
  # With its new place, but without a room that is labelled.
  root = str(Path(runs[0]).parent / "data")
  script.main([str(run), "--no-predict", "--root", root])
  assert "Split train of" in check_self_contained(path.read_text()).text()


def test_no_rooms(runs, tmp_path):
  out = tmp_path / "r.html"
  script.main([runs[1], "--out", str(out), "--scenes", "0"])
  assert "No room is shown." in check_self_contained(out.read_text()).text()
  script.main([runs[1], "--out", str(out), "--no-predict"])
  assert "no run has pseudo-labels" in check_self_contained(out.read_text()).text()  # fmt: skip


def test_checkpoints_that_cannot_be_read_are_told(runs, tmp_path):
  run = tmp_path / "seg"
  config = json.loads((Path(runs[1]) / "config.json").read_text())
  write_run(run, config=config)
  (run / "checkpoints" / "3").mkdir(parents=True)
  out = tmp_path / "r.html"
  script.main([str(run), "--out", str(out)])
  words = check_self_contained(out.read_text()).text()
  assert "Rooms of split val are not shown: " in words


def test_names_of_stages(tmp_path):
  assert script.stage_names(["exp/a", "exp/b/"]) == ["a", "b"]
  assert script.stage_names(["x/seed_0/a", "x/seed_1/a"]) == [
    "seed_0/a", "seed_1/a",
  ]  # fmt: skip
  with pytest.raises(DataError, match="exp/a/ is given twice"):
    script.stage_names(["exp/a/", "exp/a"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["nowhere"], "error: nowhere: no config.json, expected the working"),
    ([".", "--out", "r.txt"], "error: --out='r.txt': expected a name that"),
  ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
  done = subprocess.run(
    [sys.executable, str(_SCRIPT), *arguments],
    capture_output=True, text=True, cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
