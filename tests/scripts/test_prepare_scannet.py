"""From miniature releases through the script to scenes as they were."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import script_modules

from wsegpc_jax.data import assets
from wsegpc_jax.data.links import link_points
from wsegpc_jax.interop.scannet import CLASSES
from wsegpc_jax.types import DataError

sys.path.append(str(Path(__file__).parents[1] / "data"))
import miniature_scannet as miniature  # noqa: E402

_SCRIPT = script_modules.SCRIPTS / "prepare_scannet.py"
script = script_modules.load("prepare_scannet")

A, B, C = "scene0000_00", "scene0000_01", "scene0707_00"
H, W = miniature.SIZE


def lists(folder, **splits):
  """--split arguments."""
  for split, scenes in splits.items():
    (folder / f"{split}.txt").write_text("\n".join(scenes) + "\n")
  return ["--split", *(f"{s}={folder / s}.txt" for s in splits)]


def raw_arguments(folder, **splits):
  return [
    "--raw", str(folder), "--root", str(folder / "out"),
    "--label_map", str(folder / "labels.tsv"),
    "--image_size", str(H), str(W), *lists(folder, **splits),
  ]  # fmt: skip


def check_scene(dataset, original, *, color_off=3.0, labels_2d=True):
  """All that must come back, and links that land on the right pixels."""
  scene, expected = dataset.load_scene(original.scene.name), original.scene
  np.testing.assert_allclose(scene.coord, expected.coord, atol=2e-6)
  for field in ("color", "label", "tags"):
    np.testing.assert_array_equal(
      getattr(scene, field), getattr(expected, field), field
    )
  cosine = np.sum(scene.normal * expected.normal, axis=1)
  assert np.mean(cosine > 0.95) > 0.95
  assert scene.frames == expected.frames
  right = total = 0
  for old in original.frames:
    frame = dataset.load_frame(scene.name, old.name)
    np.testing.assert_allclose(frame.pose, old.pose, atol=1e-5)
    np.testing.assert_allclose(frame.intrinsics, old.intrinsics, atol=1e-4)
    np.testing.assert_array_equal(frame.depth, old.depth)
    off = np.abs(frame.color.astype(int) - old.color)
    assert off.mean() < color_off
    assert frame.region.min() == 0 and frame.region.max() > 0
    if labels_2d:
      np.testing.assert_array_equal(frame.label, old.label)
    else:
      assert frame.label is None
    link = link_points(
      scene.coord, frame.depth, frame.pose, frame.intrinsics, tolerance=0.04
    )
    seen = (link[:, 0] >= 0) & (original.nyu40 > 0)
    right += np.sum(old.label[tuple(link[seen].T)] == scene.label[seen])
    total += seen.sum()
  assert right > 0.98 * total and total > 2000
  return scene


def test_a_release(tmp_path, capsys):
  originals = miniature.write_raw(tmp_path, scenes=(A, B))
  script.main(raw_arguments(tmp_path, train=[A], val=[B]))
  dataset = assets.open_dataset(tmp_path / "out")
  assert dataset.classes == CLASSES and dataset.name == "scannet"
  assert dataset.splits == {"train": (A,), "val": (B,)}
  for original in originals.values():
    scene = check_scene(dataset, original)
    # The floor and the walls, which the method drops, are one region each.
    for region in (0, 1, 2, 3, 4):
      inside = original.scene.superpoint == region
      _, counts = np.unique(scene.superpoint[inside], return_counts=True)
      assert counts.max() > 0.85 * inside.sum()
  summary = json.loads((tmp_path / "out" / "summary.json").read_text())
  for split, name in (("train", A), ("val", B)):
    label = originals[name].scene.label
    found = summary[split]["labels"]
    assert found["wall"]["points"] == np.sum(label == 0)
    assert found["ignored"]["points"] == np.sum(label == 255) > 0
    assert summary[split]["frames"] == 4
  assert "other furniture" in capsys.readouterr().out
  script.main(["--verify", "--root", str(tmp_path / "out")])
  assert "all files of 2 scenes are intact" in capsys.readouterr().out


def test_other_forms_of_a_release(tmp_path):
  """Labels put together, JPEG, exported frames, no 2D labels."""
  first, second = tmp_path / "a", tmp_path / "b"
  originals = miniature.write_raw(
    first, scenes=(A,), labels=("aggregation",), codec="jpeg", labels_2d=False
  )
  script.main(raw_arguments(first, train=[A]))
  dataset = assets.open_dataset(first / "out")
  check_scene(dataset, originals[A], labels_2d=False)
  originals = miniature.write_raw(second, scenes=(B,), frames="exported")
  # Exported to another place, and a scan that is not in scans/.
  frames = second / "frames" / B
  frames.mkdir(parents=True)
  for kind in ("color", "depth", "pose"):
    (second / "scans" / B / kind).rename(frames / kind)
  (second / "scans" / B).rename(second / B)
  arguments = raw_arguments(second, train=[B])
  script.main([*arguments, "--frames", str(second / "frames")])
  check_scene(assets.open_dataset(second / "out"), originals[B])


def test_depth_of_a_camera_of_its_own(tmp_path):
  """Another focal length than that of the colour camera."""
  originals = miniature.write_raw(tmp_path, scenes=(A,), depth_focal=540.0)
  script.main(raw_arguments(tmp_path, train=[A]))
  dataset = assets.open_dataset(tmp_path / "out")
  for old in originals[A].frames:
    frame = dataset.load_frame(A, old.name)
    np.testing.assert_allclose(frame.intrinsics, old.intrinsics, atol=1e-4)
    seen = (old.depth > 0) & (frame.depth > 0)
    off = np.abs(frame.depth - old.depth)[seen]
    assert np.mean(off < 0.05) > 0.9 and seen.mean() > 0.8


def test_points_alone(tmp_path):
  """A test scan: no labels, no alignment, and here no frames."""
  originals = miniature.write_raw(
    tmp_path, scenes=(A,), labels=(), labels_2d=False
  )
  (tmp_path / "scans").rename(tmp_path / "scans_test")
  (tmp_path / "scans_test" / A / f"{A}.sens").unlink()
  arguments = raw_arguments(tmp_path, test=[A])
  with pytest.raises(DataError, match=f"{A}.sens: not found.*without_frames"):
    script.main(arguments)
  script.main([*arguments, "--without_frames"])
  scene = assets.open_dataset(tmp_path / "out").load_scene(A)
  assert scene.label is None and scene.frames == () and not scene.tags.any()
  np.testing.assert_array_equal(
    scene.coord,
    miniature.to_raw(originals[A].scene.coord, miniature.alignment(A)),
  )


def test_the_processed_layout(tmp_path):
  originals = miniature.write_processed(tmp_path / "in", scenes=(A,), val=(B,))
  script.main(
    ["--processed", str(tmp_path / "in"), "--root", str(tmp_path / "out")]
  )
  dataset = assets.open_dataset(tmp_path / "out")
  assert dataset.splits == {"train": (A,), "val": (B,)}
  for original in originals.values():
    scene = check_scene(dataset, original)
    np.testing.assert_array_equal(scene.superpoint, original.scene.superpoint)
    for old in original.frames:
      frame = dataset.load_frame(scene.name, old.name)
      np.testing.assert_array_equal(frame.region, old.region)


def run(*arguments):
  return subprocess.run(
    [sys.executable, str(_SCRIPT), *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_bad_scan_does_not_stop_the_others(tmp_path, monkeypatch):
  """As a program of two processes: one scan is cut off, then whole again."""
  originals = miniature.write_raw(tmp_path, scenes=(A, B, C))
  sens = tmp_path / "scans" / B / f"{B}.sens"
  whole = sens.read_bytes()
  sens.write_bytes(whole[: len(whole) // 2])
  arguments = [*raw_arguments(tmp_path, train=[A, B, C]), "--workers", "2"]
  ended = run(*arguments)
  assert ended.returncode == 1 and "Traceback" not in ended.stderr
  last = ended.stderr.strip().splitlines()[-1]
  assert last.startswith(f"error: 1 of 3 scenes failed, the first is {B}")
  assert "frames are good" in last
  root = tmp_path / "out"
  there = {p.name for p in root.iterdir()}
  assert there == {A, C, "checksums"}
  times = {n: (root / n / "coord.npy").stat().st_mtime_ns for n in (A, C)}
  sens.write_bytes(whole)
  script.main(arguments[:-2])
  dataset = assets.open_dataset(root)
  assert dataset.splits["train"] == (A, B, C)
  for name, original in originals.items():
    check_scene(dataset, original)
    if name in times:
      now = (root / name / "coord.npy").stat().st_mtime_ns
      assert now == times[name]
  (root / C / "label.npy").write_bytes(b"x")
  with pytest.raises(DataError, match=f"1 of 3 scenes failed, .*{C}"):
    script.main(["--verify", "--root", str(root)])


def test_the_same_scene_whatever_the_source_of_its_labels(tmp_path):
  """Byte for byte."""
  outputs = []
  for labels in (("ply",), ("aggregation",)):
    folder = tmp_path / labels[0]
    miniature.write_raw(folder, scenes=(A,), labels=labels)
    script.main(raw_arguments(folder, train=[A]))
    outputs.append((folder / "out" / "checksums" / f"{A}.sha256").read_text())
  assert outputs[0] == outputs[1] and "label.npy" in outputs[0]


def test_a_training_scan_without_labels_is_an_incomplete_download(tmp_path):
  miniature.write_raw(tmp_path, scenes=(A,), labels=(), labels_2d=False)
  with pytest.raises(DataError, match="labels.ply: not found.*aggregation"):
    script.main(raw_arguments(tmp_path, train=[A]))
  assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (["--raw", "none"], "none: no such folder"),
    (["--label_map", "none.tsv"], "none.tsv: expected a readable"),
    (["--split", "train"], "'train': expected different NAME=FILE"),
    (["--split", "train=none.txt"], "none.txt: expected a readable"),
  ],
)
def test_mistakes_in_arguments(tmp_path, change, match):
  miniature.write_label_map(tmp_path / "labels.tsv")
  arguments = raw_arguments(tmp_path, train=[A])
  with pytest.raises(DataError, match=match):
    script.main([*arguments, *change])


def test_a_mistake_is_one_line(tmp_path):
  ended = run("--processed", str(tmp_path), "--root", str(tmp_path / "out"))
  assert ended.returncode == 1
  (line,) = ended.stderr.splitlines()
  assert line.startswith("error: ") and "scannet_3d" in line
  assert not (tmp_path / "out").exists()


def test_without_scikit_image_it_says_so_first(tmp_path, monkeypatch):
  miniature.write_label_map(tmp_path / "labels.tsv")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match="wsegpc-jax\\[prepare\\]"):
    script.main(raw_arguments(tmp_path, train=[A]))
