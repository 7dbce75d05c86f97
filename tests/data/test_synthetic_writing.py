"""Writing synthetic rooms: the same whatever happens, and clear refusals."""

import errno
import hashlib
import json
import shutil
import sys

import numpy as np
import pytest

from wsegpc_jax import defaults, inputs
from wsegpc_jax.config_checks import check_config
from wsegpc_jax.data import assets
from wsegpc_jax.data.synthetic import CLASSES, __main__, rooms, write_rooms
from wsegpc_jax.types import DataError

SMALL = {"image_size": (12, 16), "views": 2}


@pytest.fixture(autouse=True)
def few_rays(request, monkeypatch):
  """Scans of a few thousand points, but where other processes make them."""
  if "workers" not in request.node.name:
    monkeypatch.setattr(rooms.scanner, "_ROWS", 30)
    monkeypatch.setattr(rooms.scanner, "_COLUMNS", 60)


def digests(root):
  """Checksum of every file of the rooms, by path."""
  return {
    str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in root.rglob("*")
    if path.is_file() and path.parent != root
  }


def one_line(error):
  text = str(error.value)
  assert "\n" not in text
  return text


def test_workers_do_not_matter(tmp_path):
  a, b = tmp_path / "a", tmp_path / "b"
  write_rooms(a, train=1, val=1, workers=1, **SMALL)
  dataset = write_rooms(b, train=1, val=1, workers=2, **SMALL)
  assert digests(a) == digests(b) and len(digests(a)) > 20
  # Read by the ordinary loader.
  assert dataset.classes == CLASSES
  (name,) = dataset.splits["val"]
  scene = assets.load_scene(dataset, name)
  made, frames = rooms.make_room(0, "val", 0, **SMALL)
  for field in ("coord", "color", "normal", "label", "superpoint", "tags"):
    np.testing.assert_array_equal(getattr(scene, field), getattr(made, field))
  assert scene.frames == ("0", "1")
  for frame in frames:
    read = assets.load_frame(dataset, name, frame.name)
    for field in ("color", "depth", "region", "label", "pose", "intrinsics"):
      np.testing.assert_array_equal(getattr(read, field), getattr(frame, field))


def test_more_rooms_leave_the_others_as_they_are(tmp_path):
  write_rooms(tmp_path, train=1, val=0, seed=4, **SMALL)
  before = digests(tmp_path)
  dataset = write_rooms(tmp_path, train=2, val=1, seed=4, **SMALL)
  after = digests(tmp_path)
  assert {k: after[k] for k in before} == before
  assert dataset.splits == {
    "train": ("train_4_0000", "train_4_0001"), "val": ("val_4_0000",),
  }  # fmt: skip
  # No room is like another one, in the same split or not.
  names = [n for split in dataset.splits.values() for n in split]
  assert len({after[f"{name}/coord.npy"] for name in names}) == 3
  with pytest.raises(DataError, match="splits.train has 2 rooms.* the 1 asked"):
    write_rooms(tmp_path, train=1, val=1, seed=4, **SMALL)
  # Nothing is made again, and one that was removed is, as it was.
  stamp = (tmp_path / "train_4_0000" / "coord.npy").stat().st_mtime_ns
  shutil.rmtree(tmp_path / "train_4_0001")
  write_rooms(tmp_path, train=2, val=1, seed=4, **SMALL)
  assert digests(tmp_path) == after
  assert (tmp_path / "train_4_0000" / "coord.npy").stat().st_mtime_ns == stamp


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch, capsys):
  whole = tmp_path / "whole"
  write_rooms(whole, train=2, val=1, **SMALL)
  root, make = tmp_path / "root", rooms.make_room
  made = []

  def interrupted(seed, split, index, **settings):
    if len(made) == 1:
      raise KeyboardInterrupt
    made.append((split, index))
    return make(seed, split, index, **settings)

  command = ["--root", str(root), "--train", "2", "--val", "1", "--views", "2"]
  command += ["--image_size", "12", "16", "--workers", "1"]
  monkeypatch.setattr(rooms, "make_room", interrupted)
  assert __main__.main(command) == 130
  assert "call it again to go on" in capsys.readouterr().err
  assert not (root / "dataset.json").exists()
  # As one that was killed while it wrote.
  (root / "train_0_0001.partial-0" / "color").mkdir(parents=True)

  def counted(seed, split, index, **settings):
    made.append((split, index))
    return make(seed, split, index, **settings)

  monkeypatch.setattr(rooms, "make_room", counted)
  assert __main__.main(command) == 0
  assert made == [("train", 0), ("train", 1), ("val", 0)]
  assert "2 train, 1 val rooms, 15 classes" in capsys.readouterr().out
  assert digests(root) == digests(whole)


def test_other_rooms_are_refused(tmp_path, monkeypatch, capsys):
  write_rooms(tmp_path, train=1, val=0, **SMALL)
  for change in ({"seed": 1}, {"views": 3}, {"image_size": (12, 20)}):
    (field,) = change
    with pytest.raises(DataError, match=f"made_by has {field} ") as error:
      write_rooms(tmp_path, train=1, val=0, **SMALL | change)
    assert "write to another folder" in one_line(error)
  command = ["--root", str(tmp_path), "--train", "1", "--val", "0"]
  command += ["--image_size", "12", "16", "--views", "2"]
  monkeypatch.setattr(rooms, "VERSION", rooms.VERSION + 1)
  capsys.readouterr()
  assert __main__.main(command) == 1
  err = capsys.readouterr().err
  assert f"made_by.version is {rooms.VERSION - 1}, expected" in err
  assert f"remove {tmp_path} and make it anew: python -m wsegpc_jax" in err
  assert err.count("\n") == 1
  # The command of the message makes it anew.
  (anew,) = err.splitlines()
  shutil.rmtree(tmp_path)
  assert __main__.main(anew.split("data.synthetic ")[1].split()) == 0
  # Also without dataset.json, as an interrupted call leaves it.
  (tmp_path / "dataset.json").unlink()
  monkeypatch.setattr(rooms, "VERSION", rooms.VERSION + 1)
  with pytest.raises(DataError, match="train_0_0000/scene.json.*version"):
    write_rooms(tmp_path, train=1, val=0, **SMALL)
  # Another data set is not called an old one, to be removed.
  other = tmp_path / "other"
  other.mkdir()
  (other / "dataset.json").write_text(json.dumps({"name": "mine"}))
  with pytest.raises(DataError, match="expected synthetic rooms") as error:
    write_rooms(other, train=1, val=0, **SMALL)
  assert "remove" not in one_line(error)


def test_without_the_renderer(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
  assert __main__.main(["--root", str(tmp_path / "new")]) == 1
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "wsegpc-jax[synthetic]" in err
  assert not (tmp_path / "new").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(np, "save", full)
  command = ["--root", str(tmp_path), "--train", "3", "--views", "2"]
  command += ["--image_size", "12", "16", "--workers", "1"]
  assert __main__.main(command) == 1
  err = capsys.readouterr().err
  (line,) = [x for x in err.splitlines() if x.startswith("error")]
  assert "the disk is full" in line and "train_0_0000" in line
  assert "Traceback" not in err
  assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"train": -1}, "train: expected at least 0, got -1"),
    ({"train": 0, "val": 0}, r"train \+ val: expected at least 1"),
    ({"seed": -2}, "seed: expected at least 0"),
    ({"image_size": (4, 64)}, "image_size: expected at least 8, got 4"),
    ({"views": 99}, "views: expected at most"),
    ({"workers": 0}, "workers: expected at least 1"),
  ],
)
def test_arguments_out_of_range(tmp_path, change, message):
  with pytest.raises(DataError, match=message):
    write_rooms(tmp_path / "x", **{"train": 1, "val": 1, **change})
  assert not (tmp_path / "x").exists()


def test_no_such_split():
  with pytest.raises(DataError, match="split: expected one of"):
    rooms.make_room(0, "test", 0)


def test_a_config_has_them_written(tmp_path, monkeypatch):
  config = defaults.get_defaults()
  config.data.root = str(tmp_path / "rooms")
  config.data.synthetic.train = config.data.synthetic.val = 1
  config.data.synthetic.image_size = (12, 16)
  config.data.threads = 1
  check_config(config)
  dataset = inputs.open_data(config)
  assert dataset.splits == {
    "train": ("train_0_0000",), "val": ("val_0_0000",),
  }  # fmt: skip
  assert len(dataset.load_scene("val_0_0000").frames) == 6
  # A second time they are read, without a renderer.
  monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
  assert inputs.open_data(config).splits == dataset.splits


@pytest.mark.parametrize(
  "field, value",
  [("train", -1), ("val", -1), ("seed", -1), ("image_size", (12, 16, 3))],
)
def test_a_config_is_checked(field, value):
  config = defaults.get_defaults()
  with config.unlocked():
    config.data.synthetic[field] = value
  with pytest.raises(DataError, match=f"config.data.synthetic.{field}"):
    check_config(config)


def test_both_kinds_of_rooms_are_refused():
  config = defaults.get_defaults()
  config.data.box_rooms.train = config.data.synthetic.train = 1
  with pytest.raises(DataError, match="synthetic.train=1; expected 0"):
    check_config(config)
