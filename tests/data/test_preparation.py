"""Preparing data sets: resumed, verified, and past a bad scene."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from wsegpc_jax.data import assets, box_rooms, preparation
from wsegpc_jax.types import DataError

SPLITS = {"train": ["room_00000", "room_00001"], "val": ["room_00002"]}


def convert(log, scene_name):
  """A room; some names go wrong in their own way."""
  with open(log, "a") as file:
    file.write(f"{scene_name}\n")
  if scene_name.startswith("bad"):
    raise DataError(f"{scene_name}.ply: is bad")
  if scene_name.startswith("bug"):
    raise KeyError("a bug")
  if scene_name.startswith("killed"):
    os._exit(9)
  if scene_name.startswith("orphan"):
    os.kill(os.getppid(), signal.SIGKILL)
    threading.Event().wait()  # until something else ends this process
  if scene_name == os.environ.get("KILL_AT"):
    os.kill(os.getpid(), signal.SIGKILL)
  scene, frames = box_rooms.make_room(
    0, int(scene_name[-1]), views=2, image_size=(12, 16),
    points_per_square_metre=20.0,
  )  # fmt: skip
  return scene, iter(frames)


def prepare(folder, splits=SPLITS, *, workers=1, made_by=None, log="log"):
  return preparation.prepare(
    splits,
    functools.partial(convert, folder / log),
    root=folder / "root",
    name="rooms",
    classes=box_rooms.CLASSES,
    made_by=made_by or {"seed": 0},
    workers=workers,
  )


def made(folder):
  path = folder / "log"
  return sorted(path.read_text().split()) if path.exists() else []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_set(tmp_path, workers, capsys):
  report = prepare(tmp_path, workers=workers)
  assert not report.errors
  assert list(report.finished) == SPLITS["train"] + SPLITS["val"]
  dataset = assets.open_dataset(tmp_path / "root")
  assert dataset.splits == {k: tuple(v) for k, v in SPLITS.items()}
  # The histogram against a count of the rooms themselves.
  summary = json.loads((tmp_path / "root" / "summary.json").read_text())
  for split, names in SPLITS.items():
    rooms = [convert(tmp_path / "other", name)[0] for name in names]
    assert summary[split]["points"] == sum(len(r.coord) for r in rooms)
    assert summary[split]["frames"] == 2 * len(names)
    for k, name in enumerate(box_rooms.CLASSES):
      count = summary[split]["labels"][name]
      assert count["points"] == sum((r.label == k).sum() for r in rooms)
      assert count["scenes"] == sum((r.label == k).any() for r in rooms)
    assert summary[split]["labels"]["ignored"]["points"] == 0
  table = capsys.readouterr().out
  assert "train: 2 scenes" in table and "cabinet" in table


def test_finished_scenes_are_not_made_again(tmp_path):
  with pytest.raises(DataError, match="1 of 3 scenes failed, .* bad_room"):
    prepare(
      tmp_path, {"train": ["room_00000", "bad_room", "room_00001"]}
    ).check()
  assert not (tmp_path / "root" / "dataset.json").exists()
  # A run was killed while it wrote, and another between scene and checksums.
  left = tmp_path / "root" / "room_00002.partial-123"
  left.mkdir()
  (tmp_path / "root" / "checksums" / "room_00001.sha256").unlink()
  (tmp_path / "log").unlink()
  report = prepare(tmp_path)
  assert not report.errors and made(tmp_path) == ["room_00002"]
  assert [f.made for f in report.finished.values()] == [False, False, True]
  assert not left.exists()
  assert (tmp_path / "root" / "checksums" / "room_00001.sha256").exists()
  # A finished data set may be gone over again, and grow.
  prepare(tmp_path).check()
  prepare(tmp_path, {"val": ["room_00003"], "more": ["room_00004"]}).check()
  dataset = assets.open_dataset(tmp_path / "root")
  assert dataset.splits["train"] == ("room_00000", "room_00001")
  assert dataset.splits["val"] == ("room_00002", "room_00003")
  assert dataset.splits["more"] == ("room_00004",)
  summary = json.loads((tmp_path / "root" / "summary.json").read_text())
  scenes = {split: counts["scenes"] for split, counts in summary.items()}
  assert scenes == {"train": 2, "val": 2, "more": 1}
  # A scene is made again once its folder is gone.
  shutil.rmtree(tmp_path / "root" / "room_00003")
  (tmp_path / "log").unlink()
  prepare(tmp_path, {"val": ["room_00003"]}).check()
  assert made(tmp_path) == ["room_00003"]
  assert not preparation.verify(tmp_path / "root").errors


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_scene_does_not_stop_the_rest(tmp_path, workers, capsys):
  names = ["room_00000", "bad_a", "bug_b", "room_00001"]
  report = prepare(tmp_path, {"train": names}, workers=workers)
  assert list(report.finished) == ["room_00000", "room_00001"]
  assert report.errors["bad_a"] == "bad_a.ply: is bad"
  assert report.errors["bug_b"] == "KeyError: 'a bug'"
  assert "error: bad_a: bad_a.ply: is bad" in capsys.readouterr().err


def test_a_killed_worker_does_not_stop_the_rest(tmp_path):
  names = [f"room_0000{k}" for k in range(4)]
  report = prepare(tmp_path, {"train": ["killed_a", *names]}, workers=2)
  assert "a worker was killed" in report.errors["killed_a"]
  # What ran beside it may have been lost with it, no more.
  assert len(report.finished) >= 3
  report = prepare(tmp_path, {"train": names}, workers=2)
  assert list(report.finished) == names


@pytest.mark.parametrize("change", ["damage", "remove", "add"])
def test_verification_finds_every_change(tmp_path, change):
  prepare(tmp_path).check()
  root = tmp_path / "root"
  assert not preparation.verify(root).errors
  # The same with the common tool.
  subprocess.run(
    ["sha256sum", "-c", "--quiet", "../checksums/room_00000.sha256"],
    cwd=root / "room_00000",
    check=True,
  )
  path = root / "room_00001" / "depth" / "0.png"
  if change == "damage":
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
  elif change == "remove":
    path.unlink()
  else:
    path.with_name("2.png").write_bytes(b"")
  report = preparation.verify(root, workers=1)
  assert list(report.errors) == ["room_00001"]
  match = {"damage": "checksum", "remove": "is missing", "add": "was added"}
  assert match[change] in report.errors["room_00001"]
  assert "depth" in report.errors["room_00001"]
  report = prepare(tmp_path)
  assert list(report.errors) == ["room_00001"]


def test_other_settings_are_refused(tmp_path):
  prepare(tmp_path, {"train": ["room_00000", "bad"]})
  report = prepare(tmp_path, made_by={"seed": 1})
  assert "made_by is {'seed': 0}" in report.errors["room_00000"]
  other = tmp_path / "other"
  other.mkdir()
  prepare(other).check()
  with pytest.raises(DataError, match="dataset.json: made_by is"):
    prepare(other, made_by={"seed": 1})


def in_a_process(folder, splits, workers, **environment):
  """The exit status of `prepare` in a process of its own."""
  code = (
    "import sys, pathlib, test_preparation as t\n"
    f"t.prepare(pathlib.Path({str(folder)!r}), {splits!r}, workers={workers})"
  )
  path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
  # Its output ends when the last of its processes has.
  ended = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": path, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    check=False,
    timeout=120,
  )
  return ended.returncode


def test_a_killed_run_goes_on(tmp_path):
  status = in_a_process(tmp_path, SPLITS, 1, KILL_AT="room_00001")
  assert status == -signal.SIGKILL
  assert made(tmp_path) == ["room_00000", "room_00001"]
  assert not (tmp_path / "root" / "dataset.json").exists()
  (tmp_path / "log").unlink()
  prepare(tmp_path).check()
  assert made(tmp_path) == ["room_00001", "room_00002"]
  assert not preparation.verify(tmp_path / "root").errors


def test_workers_end_with_a_killed_parent(tmp_path):
  status = in_a_process(tmp_path, {"train": ["orphan"]}, 2)
  assert status == -signal.SIGKILL and made(tmp_path) == ["orphan"]


def test_wrong_lists(tmp_path):
  with pytest.raises(DataError, match="room_00000 is listed twice"):
    prepare(tmp_path, {"train": ["room_00000"], "val": ["room_00000"]})
  with pytest.raises(DataError, match="no scenes"):
    prepare(tmp_path, {"train": []})
  prepare(tmp_path).check()
  with pytest.raises(DataError, match="room_00000 in another split"):
    prepare(tmp_path, {"val": ["room_00000"]})
  assert not preparation.verify(tmp_path / "root").errors


@pytest.mark.parametrize(
  "error",
  [
    OSError(28, "No space left on device", "0.png"),
    OSError("1000 requested and 10 written"),  # numpy's
  ],
)
def test_a_full_disk_stops_the_run(tmp_path, monkeypatch, error):
  prepare(tmp_path, {"train": ["room_00000", "bad"]})

  def full(*args, **kwargs):
    raise error

  monkeypatch.setattr(assets, "write_scene", full)
  with pytest.raises(OSError, match="the disk is full.*room_00001"):
    prepare(tmp_path, log="second")
  assert (tmp_path / "second").read_text().split() == ["room_00001"]
  assert (tmp_path / "root" / "room_00000" / "scene.json").exists()


def test_a_scene_without_labels(tmp_path):
  def unlabelled(scene_name):
    scene, _ = box_rooms.make_room(0, 0, views=0)
    return dataclasses.replace(scene, label=None, frames=()), ()

  preparation.prepare(
    {"test": ["room_00000"]}, unlabelled, root=tmp_path, name="rooms",
    classes=box_rooms.CLASSES, made_by={},
  ).check()  # fmt: skip
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["test"]["labels"] is None
  assert "no labels" in preparation.format_summary(summary)


def test_ignored_points_are_counted():
  labels = np.array([5, 0, 3])
  finished = {"a": preparation.Finished(8, 1, labels, True)}
  summary = preparation.summarize(finished, {"train": ["a"]}, ("x", "y"))
  assert summary["train"]["labels"] == {
    "x": {"points": 5, "scenes": 1},
    "y": {"points": 0, "scenes": 0},
    "ignored": {"points": 3, "scenes": 1},
  }
  assert " 37.50%" in preparation.format_summary(summary)
