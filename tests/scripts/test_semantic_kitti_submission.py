"""Submissions made and checked from the command line."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import script_modules

from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.types import DataError

_SCRIPT = script_modules.SCRIPTS / "semantic_kitti_submission.py"
script = script_modules.load("semantic_kitti_submission")

OFFICIAL = kitti.LABEL_MAPS["official"]


@pytest.fixture
def written(tmp_path):
  """A data set of val and test sequences, and predictions as classes."""
  rng = np.random.default_rng(0)
  labels = {}
  for sequence in ("08", *kitti.TEST_SEQUENCES):
    for scan in range(2):
      name = f"{sequence}_{scan:06d}"
      n = int(rng.integers(5, 30))
      path = kitti.scan_path(tmp_path / "data", name)
      path.parent.mkdir(parents=True, exist_ok=True)
      rng.normal(0, 9, (n, 4)).astype("<f4").tofile(path)
      labels[name] = rng.integers(0, 19, n)
      kitti.write_prediction(
        tmp_path / "predictions", name, OFFICIAL.to_raw(labels[name])
      )
  return tmp_path, labels


def arguments(folder, command, *more):
  target = ["--input" if command == "validate" else "--output"]
  target.append(str(folder / "submission.zip"))
  if command == "make":
    target += ["--predictions", str(folder / "predictions")]
  return [command, "--root", str(folder / "data"), *target, *more]


def test_make_then_validate(written, capsys):
  folder, labels = written
  (folder / "about.txt").write_text("method name: ours\n")
  description = ("--description", str(folder / "about.txt"))
  found = script.main(arguments(folder, "make", *description))
  points = sum(len(v) for k, v in labels.items() if not k.startswith("08"))
  assert (found.scans, found.points) == (22, points)
  assert f"22 scans, {points} points" in capsys.readouterr().out
  assert script.main(arguments(folder, "validate")) == found
  with zipfile.ZipFile(folder / "submission.zip") as archive:
    names = archive.namelist()
    assert archive.read("description.txt") == b"method name: ours\n"
    assert not any(n.startswith("sequences/08") for n in names)
  with pytest.raises(DataError, match="no entry 'sequences/08/'"):
    script.main(arguments(folder, "validate", "--split", "val"))


def test_other_sequences_and_remapping(written):
  folder, labels = written
  found = script.main(arguments(folder, "make", "--split", "val"))
  assert found.scans == 2
  found = script.main(arguments(folder, "make", "--sequences", "11", "08"))
  assert found.scans == 4
  for name, label in labels.items():
    kitti.write_prediction(folder / "predictions", name, label + 1)
  with pytest.raises(DataError, match="expected raw ids"):
    script.main(arguments(folder, "make", "--split", "val"))
  script.main(
    arguments(folder, "make", "--split", "val", "--remap", "official")
  )
  with zipfile.ZipFile(folder / "submission.zip") as archive:
    raw = archive.read("sequences/08/predictions/000001.label")
  np.testing.assert_array_equal(
    OFFICIAL.to_class(np.frombuffer(raw, "<u4")), labels["08_000001"]
  )


def test_mistakes(written):
  folder, _ = written
  with pytest.raises(DataError, match="07/velodyne: has no scans, expected"):
    script.main(arguments(folder, "make", "--sequences", "07"))
  with pytest.raises(DataError, match="'x': expected one of official"):
    script.main(arguments(folder, "make", "--remap", "x"))
  with pytest.raises(DataError, match="--description=.* expected a text file"):
    script.main(arguments(folder, "make", "--description", str(folder)))
  assert not (folder / "submission.zip").exists()


def test_one_line_for_a_missing_file(written):
  folder, _ = written
  kitti.prediction_path(folder / "predictions", "14_000001").unlink()
  done = subprocess.run(
    [sys.executable, str(_SCRIPT), *arguments(folder, "make")],
    capture_output=True,
    text=True,
    env=os.environ,
  )
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert "14/predictions/000001.label: not found" in done.stderr
