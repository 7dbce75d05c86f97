"""The authors' layout, written by miniature_s3dis, read back."""

import shutil

import miniature_s3dis
import numpy as np
import pytest
from PIL import Image

from wsegpc_jax.data import s3dis_processed
from wsegpc_jax.data.links import link_points
from wsegpc_jax.types import NO_REGION, DataError

ROOMS = ((1, "office_1"), (2, "office_1"), (5, "office_1"), (5, "office_11"))
SMALL = {"edge": 48, "views": 3, "points_per_square_metre": 150.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processed")
  return folder, miniature_s3dis.write_processed(folder, rooms=ROOMS, **SMALL)


@pytest.fixture
def copy(written, tmp_path):
  root = tmp_path / "s3dis"
  shutil.copytree(written[0], root)
  return root


def test_splits_and_classes(written):
  dataset = s3dis_processed.open_dataset(written[0])
  assert dataset.name == "s3dis"
  assert dataset.classes == tuple(miniature_s3dis.CLASSES)
  assert dataset.splits == {
    "train": ("Area_1_office_1", "Area_2_office_1"),
    "val": ("Area_5_office_1", "Area_5_office_11"),
  }


def test_everything_comes_back(written):
  dataset = s3dis_processed.open_dataset(written[0])
  assert len(written[1]) == len(ROOMS)
  for name, room in written[1].items():
    assert dataset.has_labels(name)
    scene = dataset.load_scene(name)
    for field, dtype in (
      ("coord", np.float32),
      ("color", np.uint8),
      ("normal", np.float32),
      ("label", np.int32),
      ("superpoint", np.int32),
      ("tags", bool),
    ):
      array = getattr(scene, field)
      assert array.dtype == dtype
      np.testing.assert_array_equal(array, getattr(room.scene, field), field)
    assert scene.frames == room.scene.frames and scene.name == name
    for frame in room.frames:
      found = dataset.load_frame(name, frame.name)
      assert found.name == frame.name
      for field, dtype in (
        ("color", np.uint8),
        ("depth", np.float32),
        ("label", np.int32),
        ("region", np.int32),
      ):
        array = getattr(found, field)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, getattr(frame, field), field)
      np.testing.assert_allclose(found.pose, frame.pose, atol=1e-12)
      np.testing.assert_allclose(found.intrinsics, frame.intrinsics, rtol=1e-12)


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_points_are_linked_to_pixels_of_their_class(written, size):
  dataset = s3dis_processed.open_dataset(written[0])
  linked = right = 0
  for name in written[1]:
    scene = dataset.load_scene(name)
    for frame in scene.frames:
      frame = dataset.load_frame(name, frame, image_size=size)
      link = link_points(
        scene.coord, frame.depth, frame.pose, frame.intrinsics, tolerance=0.05
      )
      on = link[:, 0] >= 0
      linked += on.sum()
      right += (frame.label[tuple(link[on].T)] == scene.label[on]).sum()
  assert linked > 5000
  assert right > 0.97 * linked


def test_validation_frames_are_those_on_disk(copy):
  """Of area 5 the lists do not count, of other areas the folder does not."""
  for area in (1, 5):
    (copy / f"s3dis_3d/Area_{area}/office_1.txt").write_text(
      f"/x/Area_{area}/data/rgb/camera_0_office_1_frame_7_domain_rgb.png\n"
    )
  dataset = s3dis_processed.open_dataset(copy)
  frames = dataset.load_scene("Area_1_office_1").frames
  assert frames == ("camera_0_office_1_frame_7_domain",)
  frames = dataset.load_scene("Area_5_office_1").frames
  assert len(frames) == 3
  assert all("_office_1_frame_" in name for name in frames)


@pytest.mark.parametrize("prefix", ["", "/", "/a b/Area_2/data/", "./"])
def test_what_is_before_the_area_does_not_count(copy, prefix):
  path = copy / "s3dis_3d" / "Area_1" / "office_1.txt"
  lines = [line.split("/Area_1/")[1] for line in path.read_text().splitlines()]
  path.write_text("\r\n".join(f"{prefix}Area_1/{line} " for line in lines * 2))
  dataset = s3dis_processed.open_dataset(copy)
  assert len(dataset.load_scene("Area_1_office_1").frames) == 3


def test_training_rooms_without_frames_are_left_out(copy, caplog):
  (copy / "s3dis_3d/Area_1/office_1.txt").write_text("\n")
  (copy / "s3dis_3d/Area_5/office_1.txt").write_text("\n")
  dataset = s3dis_processed.open_dataset(copy)
  assert dataset.splits["train"] == ("Area_2_office_1",)
  assert len(dataset.splits["val"]) == 2
  assert "without frames are left out: Area_1_office_1" in caplog.text


def test_what_may_be_missing(copy):
  """No truth, superpoints, image labels or regions; no images of area 5."""
  path = copy / "s3dis_3d/Area_1/office_1.npz"
  with np.load(path) as archive:
    arrays = {k: archive[k] for k in archive.files if k != "semantic_gt"}
  np.savez_compressed(path, **arrays)
  shutil.rmtree(copy / "s3dis_3d/initial_superpoints_wypr")
  shutil.rmtree(copy / "s3dis_2d/Area_1/data/semantic_my")
  shutil.rmtree(copy / "s3dis_2d/Area_5")
  (region, *_) = sorted(
    (copy / "s3dis_2d/Area_2/data/label_sp_sparse").iterdir()
  )
  region.unlink()
  shutil.rmtree(copy / "s3dis_2d/Area_1/data/label_sp_sparse")
  dataset = s3dis_processed.open_dataset(copy)
  assert not dataset.has_labels("Area_1_office_1")
  scene = dataset.load_scene("Area_1_office_1")
  assert scene.label is None and scene.superpoint is None
  assert not scene.tags.any()
  frame = dataset.load_frame("Area_1_office_1", scene.frames[0])
  assert frame.label is None and frame.region is None
  assert dataset.load_scene("Area_5_office_1").frames == ()
  frame = dataset.load_frame("Area_2_office_1", region.stem)
  assert (frame.region == NO_REGION).all() and frame.label is not None


def test_ignored_points_are_no_tag(copy):
  _change(copy / "s3dis_3d/Area_1/office_1.npz", semantic_gt=_ignore_walls)
  scene = s3dis_processed.open_dataset(copy).load_scene("Area_1_office_1")
  assert (scene.label == 255).any()
  assert not scene.tags[miniature_s3dis.CLASSES.index("wall")]
  assert scene.tags[miniature_s3dis.CLASSES.index("floor")]


def _ignore_walls(label):
  wall = miniature_s3dis.CLASSES.index("wall")
  return np.where(label == wall, 255, label)


def _change(path, **changes):
  with np.load(path, allow_pickle=True) as archive:
    arrays = {k: archive[k] for k in archive.files}
  for name, change in changes.items():
    arrays[name] = change(arrays[name])
  np.savez(path, **arrays)


def _put(value):
  def change(array):
    array = array.astype(np.float64)
    array[(0,) * array.ndim] = value
    return array

  return change


@pytest.mark.parametrize(
  "field, change, found",
  [
    ("coord", lambda a: a[:, :2], r"coord has shape .* expected \(N, 3\)"),
    ("coord", lambda a: a[:0], "coord has shape"),
    ("coord", _put(np.nan), "coord is not finite"),
    ("coord", lambda a: a.astype(object), "coord cannot be read"),
    ("coord", lambda a: a.astype(str), "coord is of .* expected numbers"),
    ("color", lambda a: a[1:], "color has shape"),
    ("color", _put(256), r"color is out of range, expected 0\.\.255"),
    ("color", _put(np.nan), "color is out of range"),
    ("normal", lambda a: a[1:], "normal has shape"),
    ("normal", _put(np.inf), "normal is not finite"),
    ("semantic_gt", lambda a: a[1:], "semantic_gt has shape"),
    ("semantic_gt", _put(13), "semantic_gt has 13, expected classes below 13"),
    ("semantic_gt", _put(-1), "semantic_gt has -1"),
    ("semantic_gt", _put(0.5), "semantic_gt is not whole"),
  ],
)
def test_malformed_points(copy, field, change, found):
  path = copy / "s3dis_3d" / "Area_1" / "office_1.npz"
  _change(path, **{field: change})
  dataset = s3dis_processed.open_dataset(copy)
  with pytest.raises(DataError, match=found) as error:
    dataset.load_scene("Area_1_office_1")
  assert str(path) in str(error.value)


def test_damaged_files(copy):
  dataset = s3dis_processed.open_dataset(copy)
  room = copy / "s3dis_3d" / "Area_1" / "office_1.npz"
  superpoints = copy / "s3dis_3d/initial_superpoints_wypr/Area_1/office_1.npz"
  _change(superpoints, a=lambda a: a[1:])
  with pytest.raises(DataError, match="Area_1/office_1.npz: a has shape"):
    dataset.load_scene("Area_1_office_1")
  superpoints.unlink()
  with pytest.raises(DataError, match="wypr/Area_1/office_1.npz: not found"):
    dataset.load_scene("Area_1_office_1")
  whole = room.read_bytes()
  for length in (0, 10, len(whole) // 2, len(whole) - 30):
    room.write_bytes(whole[:length])
    with pytest.raises(DataError, match="office_1.npz: .*intact"):
      dataset.load_scene("Area_1_office_1")
    with pytest.raises(DataError, match="office_1.npz: .*intact"):
      dataset.has_labels("Area_1_office_1")
  middle = len(whole) // 2
  room.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
  with pytest.raises(DataError, match="office_1.npz: .* cannot be read"):
    dataset.load_scene("Area_1_office_1")
  np.save(room.with_suffix(".npy"), np.zeros(3))
  room.with_suffix(".npy").rename(room)
  with pytest.raises(DataError, match="intact .npz file .*single array"):
    dataset.load_scene("Area_1_office_1")
  np.savez(room, coord=np.zeros((2, 3)))
  with pytest.raises(DataError, match="lacks 'color', it has the arrays coord"):
    dataset.load_scene("Area_1_office_1")
  room.unlink()
  with pytest.raises(DataError, match="office_1.npz: not found"):
    dataset.load_scene("Area_1_office_1")


def test_malformed_frame_list(copy):
  path = copy / "s3dis_3d" / "Area_1" / "office_1.txt"
  for line in (
    "/x/Area_2/data/rgb/camera_0_office_1_frame_1_domain_rgb.png",
    "/x/Area_1/data/rgb/camera_0_office_10_frame_1_domain_rgb.png",
    "/x/Area_1/data/rgb/../camera_0_office_1_frame_1_domain_rgb.png",
    "/x/Area_1/data/depth/camera_0_office_1_frame_1_domain_depth.png",
    "camera",
  ):
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match="office_1.txt: line 2 is"):
      s3dis_processed.open_dataset(copy)
  path.write_bytes(b"\xff\xff")
  with pytest.raises(DataError, match="expected a text file"):
    s3dis_processed.open_dataset(copy)
  path.unlink()
  with pytest.raises(DataError, match="office_1.txt: not found"):
    s3dis_processed.open_dataset(copy)


def test_malformed_frames(copy):
  dataset = s3dis_processed.open_dataset(copy)
  frame = dataset.load_scene("Area_1_office_1").frames[0]
  data = copy / "s3dis_2d" / "Area_1" / "data"
  region = data / "label_sp_sparse" / f"{frame}.npz"
  np.savez(region, a=np.zeros(48 * 48 - 1, int))
  with pytest.raises(DataError, match="a has shape .* a square image"):
    dataset.load_frame("Area_1_office_1", frame)
  np.savez(region, a=np.full(48 * 48, 0.5))
  with pytest.raises(DataError, match="a is not whole"):
    dataset.load_frame("Area_1_office_1", frame)
  label = data / "semantic_my" / f"{frame}_semantic.png"
  Image.fromarray(np.full((48, 48), 13, np.uint8)).save(label)
  with pytest.raises(DataError, match="semantic_my has 13, expected classes"):
    dataset.load_frame("Area_1_office_1", frame)
  Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(label)
  with pytest.raises(DataError, match="mode RGB, expected L or P"):
    dataset.load_frame("Area_1_office_1", frame)
  label.unlink()
  with pytest.raises(DataError, match="semantic.png: not found"):
    dataset.load_frame("Area_1_office_1", frame)
  for name in ("../x", "camera_0_office_10_frame_0_domain", "camera_office_1"):
    with pytest.raises(DataError, match="is no frame of Area_1_office_1"):
      dataset.load_frame("Area_1_office_1", name)


def test_other_folders_are_refused(tmp_path):
  with pytest.raises(DataError, match="has no rooms, expected s3dis_3d/Area"):
    s3dis_processed.open_dataset(tmp_path)
  room = tmp_path / "s3dis_3d" / "Area_5" / "an office.npz"
  room.parent.mkdir(parents=True)
  room.touch()
  with pytest.raises(DataError, match="'Area_5_an office' is no room"):
    s3dis_processed.open_dataset(tmp_path)


def test_normals_are_made_unit_vectors(copy):
  path = copy / "s3dis_3d" / "Area_1" / "office_1.npz"
  _change(path, normal=lambda a: np.concatenate([0 * a[:1], 3 * a[1:]]))
  scene = s3dis_processed.open_dataset(copy).load_scene("Area_1_office_1")
  length = np.linalg.norm(scene.normal, axis=1)
  assert length[0] == 0
  np.testing.assert_allclose(length[1:], 1, rtol=1e-6)
