"""Posed RGB-D captures as people have them: a folder of images and poses.

Dimension letters: N points, H and W image height and width.
"""

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np
from PIL import Image

from wsegpc_jax.interop.ply import read_point_cloud
from wsegpc_jax.interop.safe_pickle import load_pickle
from wsegpc_jax.types import DataError, Frame


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one frame is.

  Attributes:
    name: file stem.
    color: path of the colour image.
    depth: path of the depth image.
    pose: float64 [4, 4], camera-to-world, aligned already.
  """

  name: str
  color: Path
  depth: Path
  pose: np.ndarray


@dataclasses.dataclass(frozen=True)
class Camera:
  """The pinhole of all frames.

  Attributes:
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels.
    size: (H, W) of the images they are for; None = that of the colour images.
    depth_scale: units of the depth images a metre.
  """

  intrinsics: np.ndarray
  size: tuple[int, int] | None = None
  depth_scale: float = 1000.0


def find_frames(folder: Path, align: np.ndarray) -> list[Source | str]:
  """Lists the frames of a capture.

  Args:
    folder: has color/<id>.jpg or .png, depth/<id>.png and pose/<id>.txt, or all
      in one place: <id>.jpg, <id>.png and <id>.txt.
    align: float64 [4, 4], applied to the poses.

  Returns:
    The frames in order; a string says why a frame cannot be used.

  Raises:
    DataError: there are no colour images, or a pose is malformed.
  """
  apart = (folder / "color").is_dir()
  color, depth, pose = (
    folder / name if apart else folder for name in ("color", "depth", "pose")
  )
  if not color.is_dir():
    raise DataError(f"{folder}: no such folder, expected the frames")
  # In one folder a .png is a depth image.
  suffixes = (".jpg", ".jpeg", ".png") if apart else (".jpg", ".jpeg")
  images = {}
  for path in sorted(color.glob("[!.]*")):
    if path.suffix.lower() in suffixes:
      if path.stem in images:
        raise DataError(
          f"{path}: the frame is also in {images[path.stem].name}"
        )
      images[path.stem] = path
  if not images:
    expected = " or ".join(suffixes)
    raise DataError(f"{color}: no colour images, expected <id>{expected}")
  numeric = all(name.isdecimal() for name in images)
  found = []
  for name in sorted(images, key=int if numeric else None):
    depth_path, pose_path = depth / f"{name}.png", pose / f"{name}.txt"
    if not depth_path.is_file():
      found.append("without depth")
    elif not pose_path.is_file():
      found.append("without pose")
    else:
      matrix = _rigid(pose_path, "pose", read_numbers(pose_path))
      if not np.isfinite(matrix).all():
        found.append("with a lost pose")
      else:
        found.append(Source(name, images[name], depth_path, align @ matrix))
  return found


def thin_out(
  found: list[Source | str], every: int
) -> tuple[list[Source], collections.Counter]:
  """Each `every`-th frame if it can be used, and why others cannot."""
  some = found[::every]
  kept = [s for s in some if isinstance(s, Source)]
  dropped = collections.Counter(s for s in some if isinstance(s, str))
  if not kept:
    raise DataError(
      f"--frames: none of {len(some)} frames can be used:"
      f" {', '.join(f'{n} {why}' for why, n in dropped.items())}"
    )
  return kept, dropped


def load_posed(
  source: Source, camera: Camera, size: tuple[int, int] | str | None
) -> Frame:
  """Reads a frame, colour and depth resized to fit each other.

  Args:
    source: its files.
    camera: of all frames.
    size: (H, W), or "depth" for that of the depth image, or None for that of
      the colour image.

  Raises:
    DataError: an image is missing or damaged, or depth is not of 16 bits, or
      the two have other proportions.
  """
  color = _open_image(source.color).convert("RGB")
  depth = np.asarray(_open_image(source.depth))
  if depth.ndim != 2 or depth.dtype.kind not in "iu" or depth.itemsize < 2:
    raise DataError(
      f"{source.depth}: expected one channel of 16 bits, got {depth.dtype}"
      f" {depth.shape}"
    )
  (h, w), (depth_h, depth_w) = color.size[::-1], depth.shape
  if abs(depth_h * w - depth_w * h) > 0.05 * depth_w * h:
    raise DataError(
      f"{source.depth}: shape {depth.shape} is no other resolution of"
      f" {source.color.name}'s {(h, w)}"
    )
  new_h, new_w = depth.shape if size == "depth" else size or (h, w)
  rows = (2 * np.arange(new_h) + 1) * depth_h // (2 * new_h)
  columns = (2 * np.arange(new_w) + 1) * depth_w // (2 * new_w)
  depth = depth[rows[:, None], columns].astype(np.float64) / camera.depth_scale
  h, w = camera.size or (h, w)
  # Pixel centres are whole numbers: the corners of the images meet.
  center = (new_w - 1) / max(w - 1, 1), (new_h - 1) / max(h - 1, 1)
  return Frame(
    name=source.name,
    color=np.array(color.resize((new_w, new_h), Image.Resampling.BILINEAR)),
    depth=depth.astype(np.float32),
    pose=source.pose,
    intrinsics=camera.intrinsics * (new_w / w, new_h / h, *center),
  )


def read_camera(
  folder: Path,
  *,
  path: str | None = None,
  size: tuple[int, int] | None = None,
  depth_scale: float = 1000.0,
) -> Camera:
  """Reads a 3x3 or 4x4 matrix of intrinsics.

  Args:
    folder: of the frames, where the file is looked for.
    path: the file itself.
    size: (H, W) the intrinsics are for; None = that of the colour images.
    depth_scale: units of the depth images a metre.

  Raises:
    DataError: the file is missing or no pinhole matrix.
  """
  places = ["intrinsic.txt", "intrinsics.txt", "intrinsic/intrinsic_color.txt"]
  paths = [Path(path)] if path else [folder / place for place in places]
  path = next((p for p in paths if p.is_file()), paths[0])
  values = read_numbers(path)
  if values.size not in (9, 16):
    raise DataError(
      f"{path}: intrinsics: expected 3x3 or 4x4 numbers, got {values.size}"
    )
  edge = 3 if values.size == 9 else 4
  matrix = values.reshape(edge, edge)[:3, :3]
  fx, fy, cx, cy = intrinsics = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
  # Comparing refuses NaN as well.
  pinhole = np.array_equal(matrix, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
  if not pinhole or np.isinf(matrix).any() or min(fx, fy) <= 0:
    raise DataError(
      f"{path}: intrinsics: expected fx 0 cx, 0 fy cy, 0 0 1 with fx and fy"
      f" above 0, got {matrix.tolist()}"
    )
  return Camera(intrinsics, size, depth_scale)


def read_axis_align(path: str | None, scene: str) -> np.ndarray:
  """Reads the matrix that turns the walls of a scene parallel to x and y.

  Args:
    path: text file of 16 numbers, ScanNet's <scene>.txt with a line
      axisAlignment = 16 numbers, or an info file of mmdetection3d (.pkl); None
      for the identity.
    scene: name of the scene in an info file.

  Returns:
    float64 [4, 4].

  Raises:
    DataError: the file has no such matrix, or it is not rigid.
  """
  if path is None:
    return np.eye(4)
  if path.endswith(".pkl"):
    entry, _ = read_info(path, scene)
    values = np.array(entry.get("axis_align_matrix", ()), object).ravel()
    text = " ".join(map(str, values))
  else:
    text = read_text(path)
    line = re.search(r"axisAlignment\s*=(.*)", text)
    text = line.group(1) if line else text
  return _rigid(path, "axis_align", read_numbers(path, text))


def read_info(path: str, scene: str) -> tuple[dict, dict[str, int]]:
  """Entry of a scene, and the categories, in an info file of mmdetection3d 1.1.

  Raises:
    DataError: the file is malformed, refused (see `load_pickle`), or does not
      list the scene.
  """
  content = load_pickle(path)
  try:
    categories = content["metainfo"]["categories"]
    for entry in content["data_list"]:
      if Path(entry["lidar_points"]["lidar_path"]).stem == scene:
        return entry, categories
  except (KeyError, TypeError) as e:
    raise DataError(
      f"{path}: expected an info file of mmdetection3d 1.1 with metainfo and"
      " data_list"
    ) from e
  raise DataError(f"{path}: lists no scene {scene!r}")


def read_points(path: str, align: np.ndarray) -> dict[str, np.ndarray | None]:
  """Fields of `read_point_cloud`, aligned, also of .bin files.

  Args:
    path: .ply, .npz, or .bin: float32 [N, 6], x y z r g b.
    align: float64 [4, 4], applied to points and normals.

  Raises:
    DataError: as `read_point_cloud`.
  """
  if not path.endswith(".bin"):
    cloud = read_point_cloud(path)
  else:
    try:
      values = np.fromfile(path, np.float32)
    except OSError as e:
      raise DataError(f"{path}: cannot be read ({e.strerror})") from e
    if not values.size or values.size % 6:
      raise DataError(
        f"{path}: expected float32 x y z r g b of at least one point, got"
        f" {values.size} numbers"
      )
    coord, color = np.split(values.reshape(-1, 6), 2, axis=1)
    low, high = color.min(), color.max()
    if not (np.isfinite(coord).all() and 0 <= low <= high <= 255):
      raise DataError(
        f"{path}: expected finite x y z and r g b in 0..255, got colours"
        f" {low}..{high}"
      )
    color = np.rint(color).astype(np.uint8)
    cloud = {"coord": coord, "color": color, "normal": None, "label": None}
  turn = align[:3, :3].T
  cloud["coord"] = (cloud["coord"] @ turn + align[:3, 3]).astype(np.float32)
  if cloud["normal"] is not None:
    cloud["normal"] = (cloud["normal"] @ turn).astype(np.float32)
  return cloud


def read_text(path: str | Path) -> str:
  """Raises DataError where the file cannot be read."""
  try:
    return Path(path).read_text("utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise DataError(f"{path}: expected a readable text file ({e})") from e


def read_numbers(path: str | Path, text: str | None = None) -> np.ndarray:
  """Float64 [n], all numbers of a text file, or of `text` out of it."""
  text = read_text(path) if text is None else text
  try:
    return np.array([float(word) for word in text.split()])
  except ValueError as e:
    raise DataError(f"{path}: expected numbers only ({e})") from e


def _open_image(path):
  try:
    with Image.open(path) as image:
      image.load()
      return image
  except (OSError, SyntaxError, ValueError) as e:
    raise DataError(f"{path}: expected an intact image ({e})") from e


def _rigid(path, field, values):
  """Matrix [4, 4]; lost poses, which are not finite, pass."""
  if values.size != 16:
    raise DataError(f"{path}: {field}: expected 4x4 numbers, got {values.size}")
  matrix = values.reshape(4, 4)
  turn = matrix[:3, :3]
  if np.isfinite(matrix).all() and not (
    np.allclose(turn @ turn.T, np.eye(3), atol=0.01)
    and np.linalg.det(turn) > 0
    and np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6)
  ):
    raise DataError(
      f"{path}: {field}: expected a rotation, a translation and 0 0 0 1, got"
      f" {matrix.tolist()}"
    )
  return matrix
