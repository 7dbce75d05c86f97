"""Run files and progress lines: nothing lost, nothing twice, valid JSON."""

import errno
import io
import json
import math
import pathlib
import sys

import numpy as np
import pytest

from wsegpc_jax import writers
from wsegpc_jax.types import DataError


def _rows(workdir):
  def no_constant(name):
    raise AssertionError(f"{name} is not JSON")

  text = (workdir / "metrics.jsonl").read_text()
  assert not text or text.endswith("\n")
  return [
    json.loads(line, parse_constant=no_constant) for line in text.splitlines()
  ]


def _run(workdir, steps, *, resume_step=0):
  with writers.Writer(workdir, total_steps=9, resume_step=resume_step) as w:
    for step in steps:
      w.write(step, {"loss": step / 2})


def test_rows_hold_what_was_written(tmp_path):
  with writers.Writer(tmp_path, total_steps=9) as writer:
    writer.write(3, {"loss": np.float32(0.5), "lr": 0.1})
    # Each row is there at once: the run may be killed any time.
    (row,) = _rows(tmp_path)
  assert (row["step"], row["total_steps"]) == (3, 9)
  assert (row["loss"], row["lr"]) == (0.5, 0.1)
  assert row["time"].endswith("+00:00")


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
  with writers.Writer(tmp_path, total_steps=9) as writer:
    writer.write(1, {"a": math.nan, "b": -math.inf, "c": 1.0})
  (row,) = _rows(tmp_path)
  assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)
  assert row["nonfinite"] == {"a": "nan", "b": "-inf"}


def test_scalars_cannot_hide_the_fields_of_a_row(tmp_path):
  with writers.Writer(tmp_path, total_steps=9) as writer:
    with pytest.raises(ValueError, match="'step'"):
      writer.write(1, {"step": 2.0})
  assert _rows(tmp_path) == []


def test_a_killed_and_resumed_run_has_each_step_once(tmp_path):
  _run(tmp_path, range(1, 6))
  _run(tmp_path, range(4, 10), resume_step=3)
  rows = _rows(tmp_path)
  assert [row["step"] for row in rows] == list(range(1, 10))
  assert [row["loss"] for row in rows] == [s / 2 for s in range(1, 10)]
  dropped = (tmp_path / "metrics.dropped.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in dropped] == [4, 5]


def test_a_run_that_starts_anew_keeps_no_row(tmp_path):
  _run(tmp_path, range(0, 3))
  _run(tmp_path, range(0, 2))
  assert [row["step"] for row in _rows(tmp_path)] == [0, 1]


def test_every_way_to_cut_the_last_row(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  _run(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  second = whole.index(b"\n") + 1
  for end in range(second, len(whole) + 1):
    path.write_bytes(whole[:end])
    _run(tmp_path, [3], resume_step=2)
    # The row is whole even if its newline is missing.
    kept = [1, 2, 3] if end >= len(whole) - 1 else [1, 3]
    assert [row["step"] for row in _rows(tmp_path)] == kept


def test_lines_of_other_kinds_do_not_stop_a_run(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n\x00\x00\n[1]\n{"loss": 1}\n{"step": "x"}\n')
  _run(tmp_path, [2], resume_step=5)
  assert [row["step"] for row in _rows(tmp_path)] == [1, 2]


def test_tensorboard_has_the_finite_scalars(tmp_path):
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  with writers.Writer(tmp_path, total_steps=9) as writer:
    writer.write(1, {"loss": 0.5, "bad": math.nan})
  with writers.Writer(tmp_path, total_steps=9, resume_step=1) as writer:
    writer.write(2, {"loss": 0.25})
  seen = {}
  for path in sorted((tmp_path / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      # A record: length (8 bytes), checksum (4), event, checksum (4).
      size = int.from_bytes(data[:8], "little")
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      for value in event.summary.value:
        seen[event.step, value.tag] = value.simple_value
  assert seen == {(1, "loss"): 0.5, (2, "loss"): 0.25}


def test_without_tensorboard_there_is_json_and_a_word(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  _run(tmp_path, [1, 2])
  assert [row["step"] for row in _rows(tmp_path)] == [1, 2]
  assert not (tmp_path / "tensorboard").exists()
  assert caplog.text.count("tensorboardX is not installed") == 1


class _Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _drive(stream, steps=10, total=10, every=4.0, scalars=None):
  clock = _Clock()
  with writers.Progress(
    total, start=0, every_seconds=every, stream=stream, clock=clock
  ) as progress:
    for step in range(1, steps + 1):
      clock.now += 30.0 if step == 1 else 2.0  # the first step compiles
      progress.update(
        step,
        scalars={"loss": 1 / step, "lr": 0.1} if scalars is None else scalars,
        scenes=4,
        wait_seconds=0.5,
      )


def test_progress_lines_say_how_fast_and_how_long():
  stream = io.StringIO()
  _drive(stream)
  lines = stream.getvalue().splitlines()
  # The first, one every 4 seconds, the last.
  steps = [line.split()[1] for line in lines]
  assert steps == ["1/10", "3/10", "5/10", "7/10", "9/10", "10/10"]
  assert "loss 0.3333  lr 0.1  2.00 scenes/s" in lines[1]
  assert "waiting for data 25%" in lines[1]
  # 7 steps of 2 seconds, whatever the first one took.
  assert lines[1].endswith("left 0:00:14")
  assert lines[-1].endswith("left 0:00:00")


def test_progress_of_a_resumed_run_counts_its_own_steps():
  stream, clock = io.StringIO(), _Clock()
  progress = writers.Progress(
    100, start=50, every_seconds=0, stream=stream, clock=clock
  )
  clock.now += 5
  progress.update(51, scalars={}, scenes=1, wait_seconds=0)
  clock.now += 2
  progress.update(52, scalars={}, scenes=1, wait_seconds=0)
  assert stream.getvalue().splitlines()[1].endswith("left 0:01:36")


def test_progress_reads_scalars_only_for_a_line():
  reads = []

  class Device:
    def __float__(self):
      reads.append(1)
      return 0.0

  stream = io.StringIO()
  _drive(stream, scalars={"loss": Device()})
  assert len(reads) == len(stream.getvalue().splitlines()) == 6


def test_progress_rewrites_its_line_on_a_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")
  stream = _Terminal()
  _drive(stream)
  text = stream.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  parts = text.rstrip("\n").split("\r")[1:]
  assert len(parts) == 6
  assert all(len(part) <= 39 for part in parts)
  # A shorter line blanks what is left of the longer one before it.
  stream, clock = _Terminal(), _Clock()
  progress = writers.Progress(
    9, start=0, every_seconds=0, stream=stream, clock=clock
  )
  progress.update(1, scalars={"a": 123.4}, scenes=1, wait_seconds=0)
  progress.update(2, scalars={}, scenes=1, wait_seconds=0)
  first, second = stream.getvalue().split("\r")[1:]
  assert len(second) == len(first) and second.rstrip() == "step 2/9"


def test_run_info_says_what_runs(tmp_path):
  writers.save_run_info(tmp_path / "run", {"lr": 0.1}, "scannet_cmg")
  run = tmp_path / "run"
  assert json.loads((run / "config.json").read_text()) == {"lr": 0.1}
  versions = json.loads((run / "versions.json").read_text())
  assert versions["config_name"] == "scannet_cmg"
  assert versions["packages"]["numpy"] == np.__version__
  assert set(versions["packages"]) == {
    *("wsegpc-jax", "numpy", "jax", "jaxlib", "flax", "optax"),
    "orbax-checkpoint",
  }
  assert versions["command"] == sys.argv
  assert versions["devices"]


def test_run_info_keeps_what_it_replaces(tmp_path):
  for lr in ("1", "1", "2", "3"):
    writers.save_run_info(tmp_path, f'{{"lr": {lr}}}', "name")
  names = ("config.1.json", "config.2.json", "config.json")
  kept = [json.loads((tmp_path / name).read_text())["lr"] for name in names]
  assert kept == [1, 2, 3]
  assert not (tmp_path / "config.3.json").exists()
  assert not (tmp_path / "versions.1.json").exists()


def test_another_config_is_refused_and_nothing_changed(tmp_path):
  old = {"lr": 0.1, "data": {"root": "/a", "views": 6}, "sizes": [1, 2]}
  writers.save_run_info(tmp_path, old, "name")
  before = (tmp_path / "config.json").read_bytes()
  new = {"lr": 0.2, "data": {"root": "/b", "views": 6}, "sizes": (1, 2)}
  with pytest.raises(DataError) as caught:
    writers.check_same_config(tmp_path, new)
  message = str(caught.value)
  assert str(tmp_path / "config.json") in message
  assert "lr was 0.1 and is now 0.2" in message
  assert 'data.root was "/a" and is now "/b"' in message
  assert "views" not in message and "sizes" not in message
  assert (tmp_path / "config.json").read_bytes() == before
  writers.check_same_config(tmp_path, new, ignore=("lr", "data"))
  with pytest.raises(DataError, match="data.root"):
    writers.check_same_config(tmp_path, new, ignore=("lr", "dat"))


def test_added_and_removed_entries_differ(tmp_path):
  writers.check_same_config(tmp_path, {"a": 1})  # no run here yet
  writers.save_run_info(tmp_path, {"a": 1, "b": None}, "name")
  writers.check_same_config(tmp_path, {"b": None, "a": 1})
  with pytest.raises(DataError, match="b was null and is now not set"):
    writers.check_same_config(tmp_path, {"a": 1})
  with pytest.raises(DataError, match="c was not set and is now 2"):
    writers.check_same_config(tmp_path, {"a": 1, "b": None, "c": 2})
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(DataError, match="config.json is not JSON"):
    writers.check_same_config(tmp_path, {"a": 1})


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "scores.json"
  writers.write_json(path, {"miou": 0.5})

  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(writers.os, "fsync", full)
  with pytest.raises(OSError, match="the disk is full") as caught:
    writers.write_json(path, {"miou": 0.6})
  assert caught.value.errno == errno.ENOSPC
  assert str(path) in str(caught.value)
  assert json.loads(path.read_text()) == {"miou": 0.5}
  assert list(tmp_path.iterdir()) == [path]  # no temporary file left


@pytest.mark.skipif(
  not pathlib.Path("/dev/full").exists(), reason="needs /dev/full"
)
def test_a_full_disk_stops_the_writer_by_name(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  writer = writers.Writer(tmp_path, total_steps=9)
  writer._file.close()
  writer._file = open("/dev/full", "w", buffering=1)
  with pytest.raises(OSError, match="disk is full.*metrics.jsonl"):
    writer.write(1, {"loss": 1.0})
  with pytest.raises(OSError):
    writer._file.close()


def test_write_json_makes_folders_and_refuses_what_is_not_json(tmp_path):
  path = tmp_path / "a" / "b.json"
  writers.write_json(path, [1, {"x": None}])
  assert json.loads(path.read_text()) == [1, {"x": None}]
  for value in (math.nan, {"x": object()}):
    with pytest.raises(ValueError, match="b.json"):
      writers.write_json(path, value)
  assert json.loads(path.read_text()) == [1, {"x": None}]
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot write it.*c.json"):
    writers.write_json(tmp_path / "file" / "c.json", 1)


def test_fields_that_a_run_did_not_have_yet_count_as_their_defaults(tmp_path):
  (tmp_path / "config.json").write_text('{"a": 1, "data": {"root": "x"}}')
  defaults = {"a": 9, "data": {"root": "", "cache": "", "size": (2, 3)}}
  new = {"a": 1, "data": {"root": "x", "cache": "", "size": [2, 3]}}
  writers.check_same_config(tmp_path, new, defaults=defaults)
  with pytest.raises(DataError, match="data.cache was not set"):
    writers.check_same_config(tmp_path, new)
  new["data"]["cache"] = "y"
  with pytest.raises(DataError, match='data.cache was "" and is now "y"'):
    writers.check_same_config(tmp_path, new, defaults=defaults)
