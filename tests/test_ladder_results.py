"""Results files, tables and claims, on numbers made up here."""

import copy
import json
import statistics

import pytest

from wsegpc_jax.ladder import claims, results, rows, tables
from wsegpc_jax.types import DataError

_PSEUDO = {
  "cam": [0.20, 0.22, 0.21],
  "cmg": [0.30, 0.31, 0.33],
  "rpc": [0.40, 0.42, 0.38],
  "cam_long": [0.25, 0.23, 0.24],
  "cmg_long": [0.41, 0.40, 0.41],
}
_VAL = {
  "cam": [0.15, 0.16, 0.17],
  "cmg": [0.2, 0.2, 0.2],
  "rpc": [0.3, 0.2, 0.4],
  "seg": [0.31, 0.3, 0.31],
  "full": [0.6, 0.61, 0.62],
  "cam_long": [0.16, 0.16, 0.16],
  "cmg_long": [0.21, 0.2, 0.2],
}


def made_up() -> dict:
  return {
    "command": "python scripts/ladder.py",
    "date": "2026-01-02",
    "machine": "some machine",
    "seeds": [0, 1, 2],
    "rooms": {"train": 36, "val": 12},
    "rows": {
      name: {
        "pseudo_label_miou": _PSEUDO.get(name),
        "val_miou": _VAL[name],
        "val_miou_tags": [0.5, 0.5, 0.5],
        "steps": 300,
        "seconds": [10.0, 11.0, 15.0],
      }
      for name in rows.NAMES
    },
    "baseline": {"pseudo_label_miou": [0.1] * 3, "val_miou": [0.16] * 3},
  }


@pytest.fixture
def path(tmp_path):
  results.write(tmp_path / "ladder.json", made_up())
  return tmp_path / "ladder.json"


def test_file_comes_back(path):
  assert results.read(path) == made_up()


@pytest.mark.parametrize(
  "place, value, message",
  [
    (("rows",), {}, "rows: expected some rows"),
    (("date",), 3, "date: expected a string"),
    (("rows", "nope"), {}, "rows.nope: expected one of"),
    (("rows", "cam"), 1, "rows.cam: expected an object"),
    (("rows", "cam", "val_miou"), [0.1, 2.0, 0.1], "fractions of 0 to 1"),
    (("rows", "cam", "val_miou"), [0.1, None, 0.1], "fractions of 0 to 1"),
    (
      ("rows", "seg", "val_miou"),
      [0.1],
      "rows.seg.val_miou: expected 3 values",
    ),
    (("baseline", "val_miou"), [0.1, 0.2], "baseline.val_miou: expected 3"),
  ],
)
def test_broken_files_are_one_line(path, place, value, message):
  broken = made_up()
  entry = broken
  for key in place[:-1]:
    entry = entry[key]
  entry[place[-1]] = value
  path.write_text(json.dumps(broken))
  with pytest.raises(DataError, match=message) as error:
    results.read(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_field_and_cut_file(path):
  broken = made_up()
  del broken["rows"]["cam"]["val_miou"]
  path.write_text(json.dumps(broken))
  with pytest.raises(DataError, match="rows.cam.val_miou: expected fractions"):
    results.read(path)
  path.write_text(json.dumps(made_up())[:-9])
  with pytest.raises(DataError, match="expected the results of"):
    results.read(path)


def test_table_holds_the_numbers():
  text = tables.markdown([made_up()])
  line = {
    cells[0]: cells[1:]
    for cells in (
      [c.strip() for c in row.strip("|").split("|")]
      for row in text.splitlines()
      if row.startswith("|")
    )
  }
  assert len(line) == 2 + 1 + len(rows.NAMES)
  for row in rows.ROWS:
    own = line[row.title]
    for column, values in ((0, _PSEUDO.get(row.name)), (2, _VAL[row.name])):
      if values is None:
        assert own[column] == "-"
        continue
      mean, spread = map(float, own[column].split(" ± "))
      assert mean == pytest.approx(100 * sum(values) / 3, abs=0.05)
      assert spread == pytest.approx(100 * statistics.stdev(values), abs=0.05)
    assert own[-2:] == ["300", "12"]
  assert "3 seeds" in text and "some machine" in text
  screen = tables.text(made_up()).splitlines()
  assert len({len(row) for row in screen}) == 1


def test_two_results_are_two_tables():
  other = {**made_up(), "machine": "another one"}
  text = tables.markdown([made_up(), other])
  assert text.count("| row |") == 2 and "another one" in text


def found(entry=None, **changed):
  entry = entry or made_up()
  return {
    (c.lower, c.higher, c.measure): c for c in claims.check(entry, **changed)
  }


def test_claims():
  said = found()
  pseudo = "pseudo_label_miou"
  assert said["cam", "cmg", pseudo].holds
  assert said["cam_long", "cmg_long", pseudo].holds
  assert said["cam_long", "rpc", pseudo].holds
  # Lower by 0.7 points on average, with a spread of 2.1: not beyond it.
  equal = said["cmg_long", "rpc", pseudo]
  assert equal.mean == pytest.approx(-0.02 / 3)
  assert equal.holds and not equal.strict
  # Higher on average by 0.7 points, with a spread of 9.5.
  seg = said["rpc", "seg", "val_miou"]
  assert seg.mean > 0 and seg.holds is False
  assert "DOES NOT HOLD" in str(seg) and "2 of 3" in str(seg)
  assert said["baseline", "full", "val_miou"].holds
  assert not said["baseline", "cam", "val_miou"].holds
  assert ("baseline", "seg", pseudo) not in said


def test_claims_turn_with_the_numbers():
  entry = made_up()
  values = entry["rows"]["cam"], entry["rows"]["cmg"]
  values[0][_P], values[1][_P] = values[1][_P], values[0][_P]
  assert found(entry)["cam", "cmg", _P].holds is False
  entry = made_up()
  entry["rows"]["rpc"][_P] = [0.2, 0.21, 0.22]
  assert found(entry)["cmg_long", "rpc", _P].holds is False


_P = "pseudo_label_miou"


def test_one_seed_says_nothing():
  entry = copy.deepcopy(made_up())
  for row in (*entry["rows"].values(), entry["baseline"]):
    for key, value in row.items():
      if isinstance(value, list):
        row[key] = value[:1]
  said = found(entry)
  assert said and all(c.holds is None for c in said.values())
  assert "±" not in tables.text(entry)


def test_claims_of_rows_that_are_there():
  entry = made_up()
  for name in ("cam_long", "cmg_long", "seg"):
    del entry["rows"][name]
  entry["baseline"] = None
  assert set(found(entry)) == {("cam", "cmg", "pseudo_label_miou")}
  assert not found(objects=True)  # not measured
