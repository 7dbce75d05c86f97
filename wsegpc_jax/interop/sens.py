"""ScanNet's .sens files: all RGB-D frames of a scan and their poses in one.

A file has GBs, so nothing is read before it is asked for: frames come one at a
time, and those that are skipped are neither read nor decoded.

The layout (version 4), little-endian: uint32 version; uint64 length and name
of the sensor; four float32 4x4 matrices, by rows: intrinsics and extrinsics of
the colour camera, then of the depth camera; int32 compression of colour and of
depth; uint32 width and height of colour, then of depth; float32 units of depth
a metre; uint64 number of frames. Each frame: float32 4x4 camera-to-world;
uint64 time of colour and of depth, bytes of colour and of depth; the bytes.
Measurements of motion may follow; they are not read.

Dimension letters: H and W height and width of an image.
"""

import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wsegpc_jax.types import DataError

_VERSION = 4
_COLOR_CODECS = {-1: "unknown", 0: "raw", 1: "png", 2: "jpeg"}
_DEPTH_CODECS = {
  -1: "unknown",
  0: "raw_ushort",
  1: "zlib_ushort",
  2: "occi_ushort",
}
_CAMERAS = struct.Struct("<64f")
_FORMATS = struct.Struct("<2i4IfQ")
_FRAME = struct.Struct("<16f4Q")
_MAX_NAME = 4096
_MAX_EDGE = 8192  # pixels


@dataclasses.dataclass(frozen=True)
class SensFrame:
  """One frame, not yet decoded.

  Attributes:
    index: its place in the file, from 0.
    pose: float64 [4, 4], camera-to-world; not finite where tracking was lost.
    color_time, depth_time: time stamps, microseconds.
    color, depth: compressed images.
  """

  index: int
  pose: np.ndarray
  color_time: int
  depth_time: int
  color: bytes
  depth: bytes


@dataclasses.dataclass(frozen=True)
class SensFile:
  """What the header of a file says; `frames` reads the rest.

  Attributes:
    path: the file.
    sensor: name of the sensor.
    color_intrinsics, depth_intrinsics: float64 [4, 4], pixels of either image.
    color_extrinsics, depth_extrinsics: float64 [4, 4]; the identity where both
      cameras are one.
    color_codec: "raw", "png" or "jpeg".
    depth_codec: "raw_ushort" or "zlib_ushort".
    color_size, depth_size: (H, W).
    depth_scale: units of depth a metre.
    num_frames: number of frames.
    start: byte at which the frames begin.
  """

  path: Path
  sensor: str
  color_intrinsics: np.ndarray
  color_extrinsics: np.ndarray
  depth_intrinsics: np.ndarray
  depth_extrinsics: np.ndarray
  color_codec: str
  depth_codec: str
  color_size: tuple[int, int]
  depth_size: tuple[int, int]
  depth_scale: float
  num_frames: int
  start: int

  def frames(self, *, every: int = 1) -> Iterator[SensFrame]:
    """Yields each `every`-th frame, the first included.

    Raises:
      DataError: the file ends before the last frame, or a frame is larger
        than its images can be.
    """
    most = [
      8 * h * w + (1 << 20) for h, w in (self.color_size, self.depth_size)
    ]
    with _opened(self.path) as file:
      end = os.fstat(file.fileno()).st_size
      position = self.start
      for index in range(self.num_frames):
        file.seek(position)
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
          raise self._truncated(index)
        *pose, color_time, depth_time, color, depth = _FRAME.unpack(head)
        for name, size, limit in zip(
          ("color", "depth"), (color, depth), most, strict=True
        ):
          if size > limit:
            raise DataError(
              f"{self.path}: frame {index}: {name} has {size} bytes, expected"
              f" at most {limit} for its image"
            )
        position += _FRAME.size + color + depth
        if position > end:
          raise self._truncated(index)
        if index % every == 0:
          yield SensFrame(
            index=index,
            pose=np.array(pose).reshape(4, 4),
            color_time=color_time,
            depth_time=depth_time,
            color=file.read(color),
            depth=file.read(depth),
          )

  def decode_color(
    self, frame: SensFrame, *, size: tuple[int, int] | None = None
  ) -> np.ndarray:
    """Decodes the colour image; uint8 [H, W, 3], RGB.

    Args:
      frame: a frame of this file.
      size: (H, W) to resize to, bilinearly; None = as it is.

    Raises:
      DataError: the image is damaged or has not the size that the header says.
    """
    height, width = self.color_size
    where = f"{self.path}: frame {frame.index}: color"
    if self.color_codec == "raw":
      if len(frame.color) != 3 * height * width:
        raise DataError(
          f"{where} has {len(frame.color)} bytes, expected"
          f" {height} x {width} x 3"
        )
      image = Image.frombytes("RGB", (width, height), frame.color)
      draft = None
    else:
      # The format is fixed, so that no other decoder is tried.
      image = self._open_image(frame, where)
      # A JPEG can be decoded at a fraction of its size, which is much faster.
      draft = size and image.draft(None, (2 * size[1], 2 * size[0]))
    try:
      image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as e:
      raise DataError(f"{where} is a damaged {self.color_codec} ({e})") from e
    if size:
      image = image.resize(
        size[::-1], Image.Resampling.BILINEAR, box=draft and draft[1]
      )
    return np.array(image)

  def decode_depth(self, frame: SensFrame) -> np.ndarray:
    """Decodes the depth image; uint16 [H, W], `depth_scale` units a metre.

    Raises:
      DataError: the image is damaged or has not the size that the header says.
    """
    height, width = self.depth_size
    where = f"{self.path}: frame {frame.index}: depth"
    data, expected = frame.depth, 2 * height * width
    if self.depth_codec == "zlib_ushort":
      try:
        # One byte more than there can be shows that there are more.
        data = zlib.decompressobj().decompress(data, expected + 1)
      except zlib.error as e:
        raise DataError(f"{where} is damaged zlib data ({e})") from e
    if len(data) != expected:
      raise DataError(
        f"{where} has {len(data)} bytes, expected {height} x {width} x 2"
      )
    return np.frombuffer(data, "<u2").astype(np.uint16).reshape(height, width)

  def _open_image(self, frame, where):
    try:
      image = Image.open(
        io.BytesIO(frame.color), formats=[self.color_codec.upper()]
      )
    except (
      Image.DecompressionBombError,
      OSError,
      SyntaxError,
      ValueError,
    ) as e:
      raise DataError(f"{where} is no {self.color_codec} ({e})") from e
    if image.size != self.color_size[::-1]:
      raise DataError(
        f"{where} has shape {image.size[::-1]}, expected {self.color_size} as"
        " the header says"
      )
    return image

  def _truncated(self, index):
    return DataError(
      f"{self.path}: ends within frame {index} of {self.num_frames}, expected"
      f" all of them; the first {index} frames are good, the file is truncated:"
      " download it again"
    )


def open_sens(path: str | os.PathLike) -> SensFile:
  """Reads the header of a .sens file.

  Raises:
    DataError: the file is missing, truncated, of another version, or
      compressed in a way that is not supported (depth "occi_ushort").
  """
  path = Path(path)
  with _opened(path) as file:

    def read(size, what):
      data = file.read(size)
      if len(data) < size:
        raise DataError(f"{path}: is truncated, expected {what} in its header")
      return data

    (version,) = struct.unpack("<I", read(4, "the version"))
    if version != _VERSION:
      raise DataError(
        f"{path}: version is {version}, expected {_VERSION} of a .sens file"
      )
    (length,) = struct.unpack("<Q", read(8, "the sensor's name"))
    if length > _MAX_NAME:
      raise DataError(
        f"{path}: the sensor's name has {length} bytes, expected at most"
        f" {_MAX_NAME}"
      )
    sensor = read(length, "the sensor's name").decode("utf-8", "replace")
    matrices = _CAMERAS.unpack(read(_CAMERAS.size, "the cameras"))
    formats = _FORMATS.unpack(read(_FORMATS.size, "the formats"))
    start = file.tell()
  color_codec, depth_codec, *sizes, depth_scale, num_frames = formats
  matrices = np.array(matrices).reshape(4, 4, 4)
  header = SensFile(
    path=path,
    sensor=sensor,
    color_intrinsics=matrices[0],
    color_extrinsics=matrices[1],
    depth_intrinsics=matrices[2],
    depth_extrinsics=matrices[3],
    color_codec=_COLOR_CODECS.get(color_codec, str(color_codec)),
    depth_codec=_DEPTH_CODECS.get(depth_codec, str(depth_codec)),
    color_size=(sizes[1], sizes[0]),
    depth_size=(sizes[3], sizes[2]),
    depth_scale=depth_scale,
    num_frames=num_frames,
    start=start,
  )
  for field, valid, expected in (
    ("color_codec", header.color_codec in ("raw", "png", "jpeg"),
     "raw, png or jpeg"),
    ("depth_codec", header.depth_codec in ("raw_ushort", "zlib_ushort"),
     "raw_ushort or zlib_ushort"),
    ("color_size", min(sizes[:2]) >= 1 and max(sizes[:2]) <= _MAX_EDGE,
     f"1 to {_MAX_EDGE} pixels"),
    ("depth_size", min(sizes[2:]) >= 1 and max(sizes[2:]) <= _MAX_EDGE,
     f"1 to {_MAX_EDGE} pixels"),
    ("depth_scale", 0 < depth_scale < float("inf"), "units a metre, above 0"),
  ):  # fmt: skip
    if not valid:
      found = getattr(header, field)
      raise DataError(f"{path}: {field} is {found}, expected {expected}")
  return header


def _opened(path: Path):
  try:
    return open(path, "rb")
  except OSError as e:
    raise DataError(
      f"{path}: cannot be read, expected a .sens file ({e})"
    ) from e
