"""The authors' processed layout, written from box rooms, read as it is."""

import dataclasses
import shutil

import miniature_scannet as miniature
import numpy as np
import pytest

from wsegpc_jax.data import scannet_processed
from wsegpc_jax.data.links import link_points
from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.interop.scannet import CLASSES
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError

SCENES, VAL = ("scene0000_00", "scene0011_01"), ("scene0020_00",)
NAME = SCENES[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processed")
  originals = miniature.write_processed(folder, scenes=SCENES, val=VAL)
  return folder, originals


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  folder = tmp_path_factory.mktemp("single")
  miniature.write_processed(folder, scenes=(NAME,))
  return folder


@pytest.fixture
def fresh(tmp_path, single):
  """A scene to be damaged: its folder of points, of images, a way to read."""
  shutil.copytree(single, tmp_path, dirs_exist_ok=True)

  def read():
    dataset = scannet_processed.open_dataset(tmp_path)
    scene = dataset.load_scene(NAME)
    for frame in scene.frames:
      dataset.load_frame(NAME, frame)
    return scene

  return tmp_path / "scannet_3d", tmp_path / "scannet_2d" / NAME, read


def test_scenes_equal_what_was_written(written):
  folder, originals = written
  dataset = scannet_processed.open_dataset(folder)
  assert dataset.splits == {"train": SCENES, "val": VAL}
  assert dataset.classes == CLASSES and dataset.name == "scannet"
  for name, original in originals.items():
    scene, expected = dataset.load_scene(name), original.scene
    np.testing.assert_allclose(scene.coord, expected.coord, atol=2e-6)
    np.testing.assert_allclose(scene.normal, expected.normal, atol=2e-6)
    for field in ("color", "label", "superpoint", "tags"):
      np.testing.assert_array_equal(
        getattr(scene, field), getattr(expected, field), field
      )
    assert scene.coord.dtype == scene.normal.dtype == np.float32
    assert scene.color.dtype == np.uint8
    assert scene.label.dtype == scene.superpoint.dtype == np.int32
    assert scene.name == name and dataset.has_labels(name)
    # Only each 20th, without the last, whose pose is lost.
    assert scene.frames == ("0", "20", "40", "60")


def test_frames_equal_what_was_written(written):
  folder, originals = written
  dataset = scannet_processed.open_dataset(folder)
  for name, original in originals.items():
    for expected in original.frames:
      frame = dataset.load_frame(name, expected.name)
      np.testing.assert_array_equal(frame.depth, expected.depth)
      np.testing.assert_array_equal(frame.label, expected.label)
      np.testing.assert_array_equal(frame.region, expected.region)
      np.testing.assert_allclose(frame.pose, expected.pose, atol=1e-5)
      np.testing.assert_allclose(frame.intrinsics, expected.intrinsics)
      off = np.abs(frame.color.astype(int) - expected.color)
      assert np.mean(off) < 2  # JPEG


def test_intrinsics_of_the_authors(written):
  """288.935 and 159.5, 119.5 for images of 240 x 320."""
  folder, _ = written
  dataset = scannet_processed.open_dataset(folder)
  frame = dataset.load_frame(NAME, "0", image_size=(240, 320))
  np.testing.assert_allclose(
    frame.intrinsics, [288.9353025, 288.9353025, 159.5, 119.5]
  )
  assert frame.color.shape == (240, 320, 3)
  assert frame.region.shape == frame.label.shape == (240, 320)


def links_of(scene, frames):
  """Links [V, N, 2] of a scene to some frames of its own."""
  return np.stack(
    [
      link_points(scene.coord, f.depth, f.pose, f.intrinsics, tolerance=0.04)
      for f in frames
    ]
  )


@pytest.mark.parametrize("align", [True, False])
def test_links_land_on_the_right_pixels(written, align):
  folder, originals = written
  dataset = scannet_processed.open_dataset(folder, align=align)
  for name, original in originals.items():
    scene = dataset.load_scene(name)
    frames = [dataset.load_frame(name, f) for f in scene.frames]
    links = links_of(scene, frames)
    # The same as before the room was turned and written, but for rounding.
    expected = links_of(original.scene, original.frames)
    assert np.mean(links == expected) > 0.999
    view, point = np.nonzero(links[..., 0] >= 0)
    row, col = links[view, point].T
    labels = np.stack([frame.label for frame in frames])[view, row, col]
    known = original.nyu40[point] > 0
    right = labels[known] == scene.label[point[known]]
    assert right.mean() > 0.98 and len(right) > 2000


def test_alignment_turns_walls_parallel_to_the_axes(written):
  folder, originals = written
  raw = scannet_processed.open_dataset(folder, align=False).load_scene(NAME)
  align = miniature.alignment(NAME)
  np.testing.assert_allclose(
    raw.coord @ align[:3, :3].T + align[:3, 3],
    originals[NAME].scene.coord,
    atol=1e-5,
  )
  turned = scannet_processed.open_dataset(folder).load_scene(NAME)
  walls = turned.label == 0
  straight = np.abs(turned.normal[walls]).max(axis=1)
  assert straight.min() > 0.999
  assert np.abs(raw.normal[walls]).max(axis=1).max() < 0.98
  # Points and poses of different worlds are what must not happen.
  mixed = dataclasses.replace(turned, coord=raw.coord)
  frames = originals[NAME].frames
  assert np.mean(links_of(mixed, frames) == links_of(turned, frames)) < 0.95


def test_optional_parts(tmp_path):
  miniature.write_processed(
    tmp_path, scenes=(NAME,), superpoints=False, regions=False
  )
  dataset = scannet_processed.open_dataset(tmp_path)
  scene = dataset.load_scene(NAME)
  assert scene.superpoint is None and len(scene.frames) == 4
  assert dataset.load_frame(NAME, "0").region is None
  # Points alone, as for the test split, are not aligned.
  images = tmp_path / "scannet_2d"
  images.rename(tmp_path / "elsewhere")
  test = tmp_path / "scannet_3d" / "test"
  (tmp_path / "scannet_3d" / "train").rename(test)
  arrays = torch_pickle.load(test / f"{NAME}.pth", max_bytes=1 << 30)
  arrays.pop("semantic_gt20")
  torch_pickle.save(test / f"{NAME}.pth", arrays)
  dataset = scannet_processed.open_dataset(tmp_path)
  scene = dataset.load_scene(NAME)
  assert scene.label is None and not scene.tags.any() and not scene.frames
  assert not dataset.has_labels(NAME)
  np.testing.assert_array_equal(scene.coord, arrays["coord"])


def test_other_types_of_the_same_numbers(fresh):
  """Columns, floats, -1 for ignored: what versions of the tool have written."""
  points, _, read = fresh
  expected = read()
  path = points / "train" / f"{NAME}.pth"
  arrays = torch_pickle.load(path, max_bytes=1 << 30)
  label = arrays["semantic_gt20"].astype(np.float64)
  label[label == IGNORE_LABEL] = -1
  arrays.update(
    coord=arrays["coord"].astype(np.float64),
    color=arrays["color"].astype(np.float32),
    normal=arrays["normal"] * np.float32(0.3),
    semantic_gt20=label[:, None],
  )
  torch_pickle.save(path, arrays)
  folder = points / "initial_superpoints_wypr"
  superpoint = np.where(expected.superpoint == 0, -5, expected.superpoint)
  np.savez(folder / f"{NAME}_superpoint.npz", a=superpoint[:, None] * 1.0)
  scene = read()
  np.testing.assert_array_equal(scene.label, expected.label)
  np.testing.assert_array_equal(scene.color, expected.color)
  np.testing.assert_allclose(scene.normal, expected.normal, atol=1e-6)
  none = expected.superpoint == 0
  assert none.any() and (scene.superpoint[none] == NO_REGION).all()
  np.testing.assert_array_equal(scene.superpoint[~none], superpoint[~none])


def _without(field):
  return lambda a: a.pop(field)


def _with(field, value):
  return lambda a: a.update({field: value(a[field])})


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (_without("coord"), "lacks coord, it has color"),
    (_without("semantic_gt20"), "lacks semantic_gt20"),
    (_with("coord", lambda x: x[:, :2]), r"coord has shape .* expected \(N, 3\)"),
    (_with("coord", lambda x: x * np.nan), "coord has NaN"),
    (_with("coord", lambda x: x[:0]), "coord has no points"),
    (_with("color", lambda x: x[:-1]), "color has shape .* as coord"),
    (_with("color", lambda x: x.astype(int) + 99), "color has .*expected 0..255"),
    (_with("normal", lambda x: x[:-1]), "normal has shape"),
    (_with("semantic_gt20", lambda x: x[:-1]), "semantic_gt20 has .* labels, expected"),
    (_with("semantic_gt20", lambda x: x * 0 + 20), "semantic_gt20 has 20 at point 0"),
    (_with("semantic_gt20", lambda x: x + 0.5), "semantic_gt20 has"),
  ],
)  # fmt: skip
def test_faults_of_points_name_file_and_field(fresh, change, match):
  points, _, read = fresh
  path = points / "train" / f"{NAME}.pth"
  arrays = torch_pickle.load(path, max_bytes=1 << 30)
  change(arrays)
  torch_pickle.save(path, arrays)
  with pytest.raises(DataError, match=f"{NAME}.pth: {match}"):
    read()


def _write(text):
  return lambda path: path.write_bytes(text)


@pytest.mark.parametrize(
  ("file", "change", "match"),
  [
    ("color/0.jpg", _write(b"x"), "0.jpg: expected an intact image"),
    ("color/x.jpg", _write(b"x"), "x.jpg: expected a number"),
    ("depth/20.png", lambda p: p.unlink(), "20.png: not found"),
    ("depth/20.png", _write(b"x"), "20.png: expected an intact image"),
    ("pose/40.txt", lambda p: p.unlink(), "40.txt: not found"),
    ("pose/40.txt", _write(b"1 2"), "40.txt: pose has 2 numbers"),
    ("pose/40.txt", _write(b"2 " * 16), "40.txt: pose is .*a rotation"),
    ("label/0.png", lambda p: p.unlink(), "0.png: label"),
    ("label/0.png", _write(miniature.encode(np.zeros((4, 4, 3), np.uint8))),
     "0.png: label has shape"),
    ("label_sp_sparse/0.npz", lambda p: p.unlink(), "0.npz: expected an .npz"),
    ("label_sp_sparse/0.npz", lambda p: np.savez(p, b=[1]), "an array a"),
    ("label_sp_sparse/0.npz", lambda p: np.savez(p, a=[1]),
     r"0.npz: a is of int64 with shape \(1,\), expected \(48, 64\)"),
    ("label_sp_sparse/0.npz", lambda p: np.savez(p, a=np.full(3072, 1 << 40)),
     "expected 32-bit integers"),
    ("label_sp_sparse/0.npz", lambda p: np.savez(p, a=np.full(3072, np.nan)),
     "expected 32-bit integers"),
    (f"{NAME}.txt", lambda p: p.unlink(), f"{NAME}.txt"),
    (f"{NAME}.txt", _write(b"axisAlignment = 1"), "expected 4x4"),
    (f"../../scannet_3d/initial_superpoints_wypr/{NAME}_superpoint.npz",
     lambda p: np.savez(p, a=[1, 2]), r"superpoint.npz: a is .*\(2,\)"),
    (f"../../scannet_3d/train/{NAME}.pth", _write(b"x"), f"{NAME}.pth"),
    (f"../../scannet_3d/train/{NAME}.pth",
     lambda p: torch_pickle.save(p, [np.zeros(3)]), "a list, expected a dict"),
  ],
)  # fmt: skip
def test_faults_of_files_name_file_and_field(fresh, file, change, match):
  _, images, read = fresh
  change(images / file)
  with pytest.raises(DataError, match=match):
    read()


def test_no_such_data(tmp_path, single):
  with pytest.raises(DataError, match="scannet_3d: has no train/<scene>.pth"):
    scannet_processed.open_dataset(tmp_path)
  shutil.copytree(single, tmp_path, dirs_exist_ok=True)
  dataset = scannet_processed.open_dataset(tmp_path)
  with pytest.raises(DataError, match="no scene 'scene9'"):
    dataset.load_scene("scene9")
  with pytest.raises(DataError, match="pose is lost"):
    dataset.load_frame(NAME, "80")
