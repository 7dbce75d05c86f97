import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import script_modules

from wsegpc_jax.data import box_rooms
from wsegpc_jax.data.assets import load_frame, load_scene, open_dataset
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.normals import estimate_normals
from wsegpc_jax.regions.quality import pixel_pairs, region_quality
from wsegpc_jax.regions.superpoints import (
  graph_superpoints,
  plane_aware_superpoints,
)
from wsegpc_jax.types import DataError

_SCRIPT = script_modules.SCRIPTS / "region_quality.py"
script = script_modules.load("region_quality")

K = len(box_rooms.CLASSES)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
  root = tmp_path_factory.mktemp("rooms") / "rooms"
  return box_rooms.write_rooms(
    root,
    train=2,
    val=1,
    seed=5,
    image_size=(48, 64),
    views=2,
    points_per_square_metre=150,
  )


@pytest.fixture
def bare(rooms, tmp_path):
  """The same rooms without labels, superpoints and regions."""
  root = tmp_path / "bare"
  shutil.copytree(rooms.root, root)
  for name in ("room_00000", "room_00001", "room_00002"):
    for file in ("label.npy", "superpoint.npy"):
      (root / name / file).unlink()
    for folder in ("region", "label_2d"):
      shutil.rmtree(root / name / folder)
  return root


def measure(root, *options):
  return script.main(["--root", str(root), *options])


def test_stored_regions_of_boxes_are_perfect(rooms, tmp_path, capsys):
  path = tmp_path / "new" / "quality.json"
  report = measure(rooms.root, "--images", "stored", "--json", str(path))
  assert json.loads(path.read_text()) == report
  for kind in ("points", "images"):
    assert list(report[kind]["scenes"]) == [f"room_0000{i}" for i in range(3)]
    for summary in (*report[kind]["scenes"].values(), report[kind]["total"]):
      assert summary["oracle_accuracy"] == summary["purity"] == 1
      assert summary["boundary_recall"] == 1
  scenes = [load_scene(rooms, name) for name in report["points"]["scenes"]]
  total = report["points"]["total"]
  assert total["elements"] == sum(len(s.coord) for s in scenes)
  assert total["regions"] == sum(len(np.unique(s.superpoint)) for s in scenes)
  assert total["classes"]["wall"]["regions"] == 12
  assert report["images"]["total"]["elements"] == 3 * 2 * 48 * 64
  shown = capsys.readouterr().out.splitlines()
  row = next(line for line in shown if line.startswith("all")).split()
  assert row[1] == str(total["regions"]) and row[3:] == ["0.00%"] + 5 * [
    "1.0000"
  ]
  assert any(line.split()[:2] == ["wall", "12"] for line in shown)


@pytest.mark.parametrize(
  "options, make",
  [
    (["planes"], lambda c, k, n: plane_aware_superpoints(c, k, n)),
    (
      ["planes", "--normals", "estimated", "--scale", "3", "--min_size", "50"],
      lambda c, k, n: plane_aware_superpoints(
        c, k, estimate_normals(c), scale=3, min_size=50
      ),
    ),
    (
      ["graph", "--neighbors", "6", "--min_size", "40"],
      lambda c, k, n: graph_superpoints(c, k, n, neighbors=6, min_size=40),
    ),
  ],
)
def test_regions_made_here(rooms, options, make):
  report = measure(rooms.root, "--split", "val", "--method", *options)
  (found,) = report["points"]["scenes"].values()
  scene = load_scene(rooms, "room_00002")
  region = make(scene.coord, scene.color, scene.normal)
  expected = region_quality(region, scene.label, K).summary(box_rooms.CLASSES)
  assert 0 < found.pop("boundary_recall") < 1
  assert expected.pop("boundary_recall") is None
  assert found == expected and found["regions"] > 5


def test_superpixels_made_here(rooms):
  report = measure(
    rooms.root, "--scenes", "room_00001", "--images", "graph",
    "--image_scale", "50", "--image_min_size", "20",
  )  # fmt: skip
  total = None
  for name in ("0", "1"):
    frame = load_frame(rooms, "room_00001", name)
    region = image_regions(frame.color, frame.depth, scale=50, min_size=20)
    quality = region_quality(region, frame.label, K, pairs=pixel_pairs(48, 64))
    total = quality if total is None else total + quality
  assert report["images"]["total"] == total.summary(box_rooms.CLASSES)
  assert list(report["points"]["scenes"]) == ["room_00001"]


def test_unknown_normals_are_estimated(rooms, tmp_path):
  root = tmp_path / "rooms"
  shutil.copytree(rooms.root, root)
  path = root / "room_00002" / "normal.npy"
  np.save(path, np.zeros_like(np.load(path)))
  options = "--split", "val", "--method", "planes"
  found = measure(root, *options)["points"]
  known = measure(rooms.root, *options, "--normals", "estimated")["points"]
  assert found == known


def test_without_labels_regions_are_counted(bare, capsys):
  report = measure(bare, "--method", "graph", "--images", "graph")
  for kind in ("points", "images"):
    total = report[kind]["total"]
    assert total["oracle_accuracy"] is None and total["regions"] > 5
  shown = capsys.readouterr().out
  assert "wall" not in shown
  assert [line.split()[-5:] for line in shown.splitlines()
          if line.startswith("all")] == 2 * [5 * ["-"]]  # fmt: skip


def test_faults_are_named(rooms, bare, tmp_path):
  with pytest.raises(DataError, match="dataset.json: not found"):
    measure(tmp_path)
  with pytest.raises(DataError, match="dataset.json.*'test' in train, val"):
    measure(rooms.root, "--split", "test")
  with pytest.raises(DataError, match="dataset.json.*no scene 'room_00002'"):
    measure(rooms.root, "--split", "train", "--scenes", "room_00002")
  with pytest.raises(DataError, match="superpoint.npy.*--method planes"):
    measure(bare)
  with pytest.raises(DataError, match="region.*--images graph"):
    measure(bare, "--method", "graph", "--images", "stored")
  for name in ("color", "depth", "pose"):
    for scene in open_dataset(bare).splits["val"]:
      shutil.rmtree(bare / scene / name)
  with pytest.raises(DataError, match="no scene has frames"):
    measure(bare, "--split", "val", "--method", "graph", "--images", "graph")


@pytest.mark.parametrize(
  "options",
  [
    ["--scale", "2"],
    ["--method", "planes", "--neighbors", "5"],
    ["--image_scale", "2"],
    ["--method", "planes", "--scale", "0"],
    ["--method", "planes", "--min_size", "no"],
    ["--method", "mesh"],
  ],
)
def test_useless_options_are_refused(rooms, options, capsys):
  with pytest.raises(SystemExit, match="2"):
    measure(rooms.root, *options)
  assert options[-2] in capsys.readouterr().err


def test_errors_end_in_one_line(rooms, tmp_path):
  path = tmp_path / "file"
  path.write_text("")
  done = subprocess.run(
    [sys.executable, _SCRIPT, "--root", rooms.root, "--json", path / "q.json"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert done.stderr.splitlines()[-1].startswith("error: ")
  assert str(path) in done.stderr.splitlines()[-1]
