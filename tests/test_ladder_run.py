"""Stopping the ladder anywhere and calling again gives the same results."""

import json
import os

import ladder_parts
import pytest

from wsegpc_jax import inputs
from wsegpc_jax.ladder import results, rows, run
from wsegpc_jax.types import DataError

SEEDS = (0, 4)
NAMES = ("cam", "seg", "cam_long")
WITH = ("cam", "cmg", "rpc", "seg", "cam_long")  # and what they come after


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("rooms") / "rooms"
  ladder_parts.write_rooms(root)
  return root


@pytest.fixture(autouse=True)
def keep_programs(monkeypatch):
  """Other tests of this process keep what they compiled."""
  monkeypatch.setattr(run.jax, "clear_caches", lambda: None)


def _config(root):
  ladder = ladder_parts.make_ladder(root, root, ladder_parts.Pretend())
  return ladder.config(rows.find("full"), 0)


def go(ladder, seeds=SEEDS, names=NAMES):
  return run.run_all(ladder, seeds, names, command="c")


def without_times(found):
  found = json.loads(json.dumps(found))
  for entry in found["rows"].values():
    entry.pop("seconds")
  found.pop("date")
  return found


def test_any_interrupt_is_made_good(root, tmp_path, monkeypatch):
  chance = run.baseline.score(inputs.open_data(_config(root)), SEEDS)
  monkeypatch.setattr(run.baseline, "score", lambda *_, **__: chance)
  whole = ladder_parts.Pretend()
  expected = go(ladder_parts.make_ladder(tmp_path / "whole", root, whole))
  assert [c[0] for c in whole.calls] == ["train", "score"] * 10
  assert [c[1] for c in whole.calls] == [0] * 10 + [4] * 10
  assert [c[2] for c in whole.calls[::2]] == 2 * list(WITH)
  for stop in (0, 3, 8, 15, 19):  # training or scoring, first and last
    workdir = tmp_path / f"stop_{stop}"
    first = ladder_parts.Pretend(stop)
    with pytest.raises(KeyboardInterrupt):
      go(ladder_parts.make_ladder(workdir, root, first))
    again = ladder_parts.Pretend()
    found = go(ladder_parts.make_ladder(workdir, root, again))
    assert without_times(found) == without_times(expected)
    # What was done is not done twice; the row that was stopped is gone on with.
    done = stop // 2
    assert again.calls == whole.calls[2 * done :]


def test_results_hold_each_seed_in_its_place(root, tmp_path):
  found = go(ladder_parts.make_ladder(tmp_path, root, ladder_parts.Pretend()))
  assert set(found["rows"]) == set(WITH)
  classes = tuple(found["classes"])
  for name, entry in found["rows"].items():
    for key in ("pseudo_label_miou", "val_miou", "val_miou_tags"):
      if name == "seg" and key == "pseudo_label_miou":
        assert entry[key] is None and entry[f"{key}_objects"] is None
        continue
      made = [
        ladder_parts.made_up_summary(classes, seed, name, key) for seed in SEEDS
      ]
      assert entry[key] == [m["miou"] for m in made]
      assert entry[f"{key}_objects"] == [m["miou_objects"] for m in made]
    assert len(entry["seconds"]) == 2
  assert found["rooms"] == {"train": 2, "val": 1}
  assert found["structural"] == ["wall", "floor"]
  results.write(tmp_path / "r.json", found)
  assert results.read(tmp_path / "r.json") == json.loads(json.dumps(found))


def test_other_settings_are_refused(root, tmp_path):
  def ladder(**overrides):
    return ladder_parts.make_ladder(
      tmp_path, root, ladder_parts.Pretend(), **overrides
    )

  go(ladder(), (0,), ("rpc",))
  # Places and speed may change.
  other = ladder(**{"data.threads": 1, "train.log_every": 77})
  go(other, (0,), ("rpc",))
  assert not other.programs.train.__self__.calls
  with pytest.raises(DataError) as error:
    go(ladder(**{"train.lr": 0.123}), (0,), ("rpc",))
  assert "train.lr was 0.003 and is now 0.123" in str(error.value)
  assert "remove it" in str(error.value)


def test_a_changed_predecessor_is_noticed(root, tmp_path):
  ladder = ladder_parts.make_ladder(tmp_path, root, ladder_parts.Pretend())
  go(ladder, (0,), ("rpc",))
  path = ladder.row_dir(0, "cmg") / run.ROW_FILE
  entry = json.loads(path.read_text())
  path.write_text(json.dumps({**entry, "fingerprint": "other"}))
  with pytest.raises(
    DataError, match="rpc was made with other settings: after"
  ):
    go(ladder, (0,), ("rpc",))


def test_other_rooms_are_noticed(root, tmp_path):
  go(
    ladder_parts.make_ladder(tmp_path / "l", root, ladder_parts.Pretend()),
    (0,),
    ("cam",),
  )
  other = tmp_path / "rooms"
  ladder_parts.box_rooms.write_rooms(
    other, train=1, val=1, seed=9, image_size=(6, 8), views=1
  )
  with pytest.raises(DataError, match="other settings: rooms was"):
    go(
      ladder_parts.make_ladder(tmp_path / "l", other, ladder_parts.Pretend()),
      (0,),
      ("cam",),
    )


def test_a_damaged_row_is_told(root, tmp_path):
  ladder = ladder_parts.make_ladder(tmp_path, root, ladder_parts.Pretend())
  go(ladder, (0,), ("cam",))
  path = ladder.row_dir(0, "cam") / run.ROW_FILE
  path.write_text(path.read_text()[:-40])
  with pytest.raises(DataError, match="row.json: expected a result .*remove"):
    go(ladder, (0,), ("cam",))


def test_stopwatch_adds_up_over_runs_and_kills(tmp_path):
  path = tmp_path / "row" / "seconds.json"
  now = [1000.0]

  def watch():
    return run.Stopwatch(path, clock=lambda: now[0])

  with watch() as clock:
    now[0] += 5
    assert clock.seconds() == 5
  now[0] += 100  # not at work
  with pytest.raises(KeyboardInterrupt), watch():
    now[0] += 7
    raise KeyboardInterrupt
  watch().__enter__()  # and killed 4 seconds later
  trace = path.parent / "metrics.jsonl"
  trace.write_text("")
  for file in (path, trace):
    os.utime(file, (now[0] + 4, now[0] + 4))
  now[0] += 50
  with watch() as clock:
    assert clock.seconds() == pytest.approx(5 + 7 + 4)
    now[0] += 2
  assert json.loads(path.read_text()) == {"seconds": 18.0, "since": None}
  path.write_text("{")
  with pytest.raises(DataError, match="seconds.json: expected the seconds"):
    watch().__enter__()


def test_rows_of_the_demo():
  assert set(rows.DEMO) == {"cam", "cmg", "rpc", "seg", "full"}
