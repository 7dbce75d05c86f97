"""The .sens reader against files put together field by field."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from wsegpc_jax.interop.sens import open_sens
from wsegpc_jax.types import DataError

sys.path.append(str(Path(__file__).parents[1] / "data"))
import miniature_scannet as miniature  # noqa: E402

COLOR_SIZE = (2 * miniature.SIZE[0], 2 * miniature.SIZE[1])


def some_shots(indices=(0, 3, 20)):
  """Frames with noise in the depth and a gradient in the colour."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[: COLOR_SIZE[0], : COLOR_SIZE[1]]
  shots = []
  for index in indices:
    color = np.stack([rows, columns, 0 * rows + index], axis=-1)
    depth = rng.integers(0, 1 << 16, miniature.SIZE)
    pose = np.eye(4)
    pose[:3, 3] = index, 0.5, -2
    shots.append((index, pose, color.astype(np.uint8), depth))
  return shots


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
@pytest.mark.parametrize("depth_codec", ["raw_ushort", "zlib_ushort"])
def test_frames_come_back(tmp_path, codec, depth_codec):
  shots = some_shots()
  path = tmp_path / "a.sens"
  miniature.write_sens(
    path, shots, codec, depth_codec=depth_codec, depth_focal=570.0
  )
  sens = open_sens(path)
  assert sens.sensor == "miniature" and sens.num_frames == 41
  assert (sens.color_codec, sens.depth_codec) == (codec, depth_codec)
  assert (sens.color_size, sens.depth_size) == (COLOR_SIZE, miniature.SIZE)
  assert sens.depth_scale == 1000
  np.testing.assert_allclose(sens.depth_intrinsics[0, 0], 57.0)
  np.testing.assert_allclose(sens.color_intrinsics[1, 2], 239.5 * 95 / 479)
  found = {frame.index: frame for frame in sens.frames()}
  assert list(found) == list(range(41))
  for index, pose, color, depth in shots:
    frame = found[index]
    np.testing.assert_array_equal(frame.pose, pose)
    assert (frame.color_time, frame.depth_time) == (
      33_000 * index,
      33_000 * index + 7,
    )
    np.testing.assert_array_equal(sens.decode_depth(frame), depth)
    off = np.abs(sens.decode_color(frame).astype(int) - color)
    assert off.max() <= (4 if codec == "jpeg" else 0)
  assert np.isinf(found[40].pose).all()


def test_skipped_frames_are_neither_read_nor_decoded(tmp_path, monkeypatch):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots())
  sens = open_sens(path)
  read = []

  class Spy:
    def __init__(self, file):
      self._file = file

    def __enter__(self):
      return self

    def __exit__(self, *unused):
      self._file.close()

    def read(self, size):
      read.append(size)
      return self._file.read(size)

    def __getattr__(self, name):
      return getattr(self._file, name)

  monkeypatch.setattr(
    "wsegpc_jax.interop.sens._opened", lambda p: Spy(open(p, "rb"))
  )
  indices = [frame.index for frame in sens.frames(every=20)]
  assert indices == [0, 20, 40]
  # A head of 96 bytes for each frame, two images for each that is wanted.
  assert read.count(96) == 41 and len(read) == 41 + 2 * 3


def test_small_sizes_are_decoded_from_all_pixels(tmp_path):
  """Resized by half is the mean of four pixels (bilinear, antialiased)."""
  path = tmp_path / "a.sens"
  shots = some_shots((0,))
  miniature.write_sens(path, shots, "png")
  sens = open_sens(path)
  (frame, *_) = sens.frames()
  small = sens.decode_color(frame, size=(12, 16)).astype(float)
  expected = shots[0][2].reshape(12, 8, 16, 8, 3).mean(axis=(1, 3))
  inner = np.abs(small - expected)[1:-1, 1:-1]
  assert inner.max() <= 1


def test_a_jpeg_is_decoded_at_a_fraction_alike(tmp_path):
  path = tmp_path / "a.sens"
  shots = some_shots((0,))
  miniature.write_sens(path, shots, "jpeg")
  sens = open_sens(path)
  (frame, *_) = sens.frames()
  small = sens.decode_color(frame, size=(12, 16)).astype(float)
  expected = shots[0][2].reshape(12, 8, 16, 8, 3).mean(axis=(1, 3))
  assert np.abs(small - expected)[1:-1, 1:-1].max() <= 4


def test_a_truncated_file_says_how_much_is_good(tmp_path):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots())
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) - 8 - 15 - 1])  # within the last images
  sens = open_sens(path)
  good = []
  with pytest.raises(DataError, match="the first 40 frames are good"):
    for frame in sens.frames(every=20):
      good.append(frame.index)
  assert good == [0, 20]
  path.write_bytes(whole[: sens.start + 50])  # within the first head
  with pytest.raises(DataError, match="the first 0 frames are good"):
    next(open_sens(path).frames())


@pytest.mark.parametrize("end", [0, 3, 11, 15, 100, 290, 310])
def test_a_truncated_header(tmp_path, end):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots((0,)))
  path.write_bytes(path.read_bytes()[:end])
  with pytest.raises(DataError, match="a.sens: is truncated"):
    open_sens(path)


HEADER = 4 + 8 + 9 + 256  # bytes before the formats


@pytest.mark.parametrize(
  ("offset", "value", "message"),
  [
    (0, struct.pack("<I", 3), "version is 3, expected 4"),
    (4, struct.pack("<Q", 1 << 60), "sensor's name"),
    (HEADER, struct.pack("<i", -1), "color_codec is unknown"),
    (HEADER, struct.pack("<i", 9), "color_codec is 9"),
    (HEADER + 4, struct.pack("<i", 2), "depth_codec is occi_ushort"),
    (HEADER + 8, struct.pack("<I", 1 << 31), "color_size"),
    (HEADER + 20, struct.pack("<I", 0), "depth_size"),
    (HEADER + 24, struct.pack("<f", np.nan), "depth_scale is nan"),
  ],
)
def test_a_header_of_something_else(tmp_path, offset, value, message):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots((0,)))
  data = bytearray(path.read_bytes())
  data[offset : offset + len(value)] = value
  path.write_bytes(data)
  with pytest.raises(DataError, match=message):
    open_sens(path)


def test_hostile_frames(tmp_path):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots((0,)), "png")
  start = open_sens(path).start
  whole = path.read_bytes()

  def frame_of(change):
    data = bytearray(whole)
    change(data)
    path.write_bytes(data)
    sens = open_sens(path)
    return sens, next(sens.frames())

  def claim(data):
    data[start + 80 : start + 88] = struct.pack("<Q", 1 << 40)

  with pytest.raises(DataError, match="color has 1099511627776 bytes"):
    frame_of(claim)

  def damage_color(data):
    data[start + 96 : start + 120] = bytes(24)

  sens, frame = frame_of(damage_color)
  with pytest.raises(DataError, match="frame 0: color is no png"):
    sens.decode_color(frame)
  length = struct.unpack("<Q", whole[start + 80 : start + 88])[0]

  def damage_depth(data):
    data[start + 96 + length : start + 110 + length] = bytes(14)

  sens, frame = frame_of(damage_depth)
  with pytest.raises(DataError, match="frame 0: depth is damaged"):
    sens.decode_depth(frame)

  def damage_pixels(data):
    middle = start + 96 + length // 2
    data[middle : middle + 40] = bytes(40)

  sens, frame = frame_of(damage_pixels)
  with pytest.raises(DataError, match="frame 0: color is a damaged png"):
    sens.decode_color(frame)


def test_images_of_another_size_are_refused(tmp_path):
  path = tmp_path / "a.sens"
  miniature.write_sens(path, some_shots((0,)), "png")
  data = bytearray(path.read_bytes())
  data[HEADER + 8 : HEADER + 12] = struct.pack("<I", 127)
  data[HEADER + 16 : HEADER + 20] = struct.pack("<I", 63)
  path.write_bytes(data)
  sens = open_sens(path)
  (frame, *_) = sens.frames()
  with pytest.raises(
    DataError, match=r"shape \(96, 128\), expected \(96, 127\)"
  ):
    sens.decode_color(frame)
  with pytest.raises(DataError, match="6049 bytes, expected 48 x 63 x 2"):
    sens.decode_depth(frame)


def test_a_missing_file(tmp_path):
  with pytest.raises(DataError, match="none.sens: cannot be read"):
    open_sens(tmp_path / "none.sens")
