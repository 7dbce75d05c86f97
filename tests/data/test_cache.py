"""A cached data set gives what the data set itself gives, and reads it once."""

import dataclasses
import threading

import numpy as np
import pytest

from wsegpc_jax.data import box_rooms, samples
from wsegpc_jax.data.cache import cached
from wsegpc_jax.types import DataError

SIZE = (24, 32)


class _Counting:
  """Counts what is read of a data set."""

  def __init__(self, source):
    self._source = source
    self.read = []

  def __getattr__(self, name):
    return getattr(self._source, name)

  def load_scene(self, scene_name):
    self.read.append(scene_name)
    return self._source.load_scene(scene_name)

  def load_frame(self, scene_name, frame_name, *, image_size=None):
    self.read.append((scene_name, frame_name, image_size))
    return self._source.load_frame(
      scene_name, frame_name, image_size=image_size
    )


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
  root = tmp_path_factory.mktemp("rooms") / "set"
  return box_rooms.write_rooms(
    root, train=2, val=0, seed=0, image_size=(48, 64), views=3
  )


def _assert_same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype, field.name
      np.testing.assert_array_equal(x, y, err_msg=field.name)
    else:
      assert x == y, field.name


def test_the_same_scenes_and_frames_read_once(rooms, tmp_path):
  source = _Counting(rooms)
  for _ in range(2):  # the second time as a new run would
    dataset = cached(source, tmp_path / "cache")
    for name in rooms.splits["train"]:
      scene = dataset.load_scene(name)
      _assert_same(scene, rooms.load_scene(name))
      for frame in scene.frames:
        for size in (None, SIZE):
          _assert_same(
            dataset.load_frame(name, frame, image_size=size),
            rooms.load_frame(name, frame, image_size=size),
          )
  assert len(source.read) == len(set(source.read)) == 2 * (1 + 3 * 2)
  assert dataset.has_labels("room_00000")
  assert isinstance(dataset.load_scene("room_00000").coord, np.memmap)


def test_a_training_sample_is_the_same(rooms, tmp_path):
  settings = samples.SampleSettings(
    voxel_size=0.1, num_views=2, image_size=SIZE, num_pairs=32
  )
  make = [
    samples.training_sample(d, "room_00001", np.random.default_rng(5), settings)
    for d in (
      rooms,
      cached(rooms, tmp_path / "c"),
      cached(rooms, tmp_path / "c"),
    )
  ]
  for other in make[1:]:
    np.testing.assert_array_equal(
      other.student.features, make[0].student.features
    )
    np.testing.assert_array_equal(other.images.student, make[0].images.student)
    np.testing.assert_array_equal(other.images.region, make[0].images.region)


def test_threads_that_fill_it_together(rooms, tmp_path):
  dataset = cached(rooms, tmp_path / "cache")
  gate, out = threading.Barrier(4), []

  def read():
    gate.wait()
    out.append(dataset.load_scene("room_00000"))

  threads = [threading.Thread(target=read) for _ in range(4)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  assert len(out) == 4
  for scene in out:
    _assert_same(scene, rooms.load_scene("room_00000"))
  left = [p.name for p in (tmp_path / "cache" / "room_00000").iterdir()]
  assert left == ["scene"]


def test_another_data_set_is_refused(rooms, tmp_path):
  cached(rooms, tmp_path / "cache")
  other = box_rooms.write_rooms(
    tmp_path / "other", train=1, val=0, seed=1, image_size=SIZE, views=1
  )
  with pytest.raises(DataError, match="is the cache of .*set.* not of .*other"):
    cached(other, tmp_path / "cache")
  with pytest.raises(DataError, match="holds other files"):
    cached(rooms, tmp_path / "other")
  (tmp_path / "cache" / "cache.json").write_text("{")
  with pytest.raises(DataError, match="cache.json: cannot be read"):
    cached(rooms, tmp_path / "cache")


def test_a_damaged_cache_is_named(rooms, tmp_path):
  dataset = cached(rooms, tmp_path / "cache")
  dataset.load_scene("room_00000")
  path = tmp_path / "cache" / "room_00000" / "scene" / "coord.npy"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(DataError, match="room_00000.*the cache is damaged"):
    dataset.load_scene("room_00000")


def test_another_process_that_begins_at_the_same_time(rooms, tmp_path):
  folder = tmp_path / "cache"
  folder.mkdir()
  (folder / ".cache.json.123.tmp").write_text("{")  # it is writing this
  _assert_same(
    cached(rooms, folder).load_scene("room_00000"),
    rooms.load_scene("room_00000"),
  )


def test_what_is_no_record_is_named(rooms, tmp_path):
  cached(rooms, tmp_path / "cache")
  (tmp_path / "cache" / "cache.json").write_text("[]")
  with pytest.raises(DataError, match="is the cache of None"):
    cached(rooms, tmp_path / "cache")


def test_a_reader_with_other_options_is_another_data_set(rooms, tmp_path):
  from wsegpc_jax.data.scannet_processed import ScanNetDataset

  def reader(align):
    return ScanNetDataset(tmp_path, "x", ("wall",), {"train": ()}, align=align)

  cached(reader(True), tmp_path / "cache")
  with pytest.raises(DataError, match="as it is read now"):
    cached(reader(False), tmp_path / "cache")
