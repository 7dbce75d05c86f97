"""A capture that is cut into scenes with tags of their own."""

import pickle

import numpy as np
import pytest
from posed_capture import (
  convert,
  info,
  prepare,
  write_capture,
)

from wsegpc_jax.data.assets import load_scene, open_dataset
from wsegpc_jax.types import DataError


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
  return write_capture(tmp_path_factory.mktemp("capture"))


def test_parts_have_tags_and_frames_of_their_own(capture, tmp_path, capsys):
  # The block, a table, is in the middle of a room of 4 m x 3 m: cut in halves
  # of 2 m, 40 % of it is left of the border; a chair is in the right half only.
  path = tmp_path / "infos.pkl"
  boxes = [
    {"bbox_label_3d": 3, "bbox_3d": [2.1, 1.4, 0.4, 1.0, 0.8, 0.8]},
    {"bbox_label_3d": 2, "bbox_3d": [3.5, 2.5, 0.0, 0.8, 0.8, 0.4]},
  ]
  path.write_bytes(pickle.dumps(info(instances=boxes)))
  few = f"--every 2 --tags_pickle {path} --axis_align {path} --part_size 2.2"
  convert(capture, tmp_path / "set", f"{few} --classes scannet20")
  dataset = open_dataset(tmp_path / "set")
  assert dataset.splits["train"] == ("room_00", "room_10")
  parts = [load_scene(dataset, name) for name in dataset.splits["train"]]
  tags = [
    [dataset.classes[i] for i in np.flatnonzero(part.tags)] for part in parts
  ]
  assert tags[1] == ["wall", "floor", "chair", "table"]
  assert "chair" not in tags[0] and {"wall", "floor"} <= set(tags[0])
  # Together they are the whole, cut in the middle.
  whole = len(parts[0].coord) + len(parts[1].coord)
  assert f"room: {whole} points" in capsys.readouterr().out
  assert parts[0].coord[:, 0].max() <= parts[1].coord[:, 0].min()
  assert all(len(part.frames) >= 3 for part in parts)

  with pytest.raises(DataError, match="room: exists|room_00: exists"):
    convert(capture, tmp_path / "set", f"{few} --classes scannet20")


def test_parts_that_cannot_be(capture, tmp_path, capsys):
  np.save(tmp_path / "none.npy", np.full(9076, 255))
  np.savez(tmp_path / "labels.npz", pred_label=np.zeros(9076, int))
  few = "--every 9 --classes scannet20"
  for options, message in (
    (f"--labels {tmp_path}/none.npy", "expected some that are not ignored"),
    (f"--labels {tmp_path}/labels.npz", "is an archive, expected one array"),
    (
      f"--labels {tmp_path}/none.npy --part_size 0.1",
      "no part has 1000 points",
    ),
    ("--tags wall --scene a/b", "without slashes"),
  ):
    with pytest.raises(DataError, match=message):
      convert(capture, tmp_path / "set", f"{few} {options}")
  assert not (tmp_path / "set").exists()
  # A part of which nothing is known is left out, and said to be.
  coord = np.fromfile(capture / "room.bin", np.float32).reshape(-1, 6)[:, :3]
  label = np.where(coord[:, 0] < 2.1, 255, 1)
  np.save(tmp_path / "half.npy", label)
  convert(
    capture,
    tmp_path / "half",
    f"{few} --labels {tmp_path}/half.npy --part_size 2.2",
  )
  assert open_dataset(tmp_path / "half").splits["train"] == ("room_10",)
  assert "room_00: left out, nothing is known" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags, message",
  [
    ("--tags wall --part_size 2", "--part_size needs --labels"),
    ("--tags_pickle a.pkl --part_size 2", "needs --axis_align"),
  ],
)
def test_parts_need_to_know_more_than_tags(flags, message, capsys):
  flags += " --root a --scene b --frames c --classes scannet20"
  with pytest.raises(SystemExit):
    prepare.parse_args(flags.split())
  assert message in capsys.readouterr().err
