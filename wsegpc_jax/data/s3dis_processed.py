"""S3DIS in the layout that the authors of WSegPC processed it to.

  s3dis_3d/Area_<k>/<room>.npz     coord, color, normal, semantic_gt
  s3dis_3d/Area_<k>/<room>.txt     the frames of the room, absolute paths
  s3dis_3d/initial_superpoints_wypr/Area_<k>/<room>.npz     a
  s3dis_2d/Area_<k>/data/          rgb, depth and pose as in 2D-3D-S,
    semantic_my/<frame>_semantic.png    classes, 8 bits, 255 = none
    label_sp_sparse/<frame>.npz         a, regions, negative = none

docs/s3dis.md tells more. Dimension letters: N points, H and W image height and
width.
"""

import contextlib
import dataclasses
import math
import os
import re
from pathlib import Path

import numpy as np
from absl import logging

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import NUMPY_READING
from wsegpc_jax.interop import s3dis
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError, Frame, Scene

_SUPERPOINTS = "initial_superpoints_wypr"


@dataclasses.dataclass(frozen=True)
class S3disProcessed(Dataset):
  """The rooms of the authors' layout; splits as with area 5 held out."""

  def load_scene(self, scene_name: str) -> Scene:
    area, room = s3dis.split_name(scene_name)
    path = self._room_path(scene_name)
    arrays = _read_npz(path, ("coord", "color", "normal"), ("semantic_gt",))
    coord = arrays["coord"].astype(np.float32)
    if coord.ndim != 2 or coord.shape[1] != 3 or not len(coord):
      raise DataError(f"{path}: coord has shape {coord.shape}, expected (N, 3)")
    n = len(coord)
    if not np.isfinite(coord).all():
      raise DataError(f"{path}: coord is not finite, expected metres")
    label = arrays["semantic_gt"]
    if label is not None:
      label = _integers(path, "semantic_gt", label.reshape(-1), n)
      _check_classes(path, "semantic_gt", label)
    tags = [] if label is None else label[label != IGNORE_LABEL]
    return Scene(
      name=scene_name,
      coord=coord,
      color=_colors(path, arrays["color"], n),
      normal=_normals(path, arrays["normal"], n),
      tags=np.isin(np.arange(len(self.classes)), tags),
      label=label,
      superpoint=self._superpoints(area, room, n),
      frames=self._frames(area, room),
    )

  def load_frame(
    self,
    scene_name: str,
    frame_name: str,
    *,
    image_size: tuple[int, int] | None = None,
  ) -> Frame:
    area, room = s3dis.split_name(scene_name)
    if not re.fullmatch(rf"camera_\w+_{room}_frame_\w+", frame_name):
      raise DataError(
        f"{self.root}: {frame_name!r} is no frame of {scene_name}, expected"
        f" camera_*_{room}_frame_*_domain"
      )
    data = self._images(area)
    frame = s3dis.read_frame(data, frame_name, image_size)
    size = frame.depth.shape
    label = region = None
    if (data / "semantic_my").is_dir():
      path = data / "semantic_my" / f"{frame_name}_semantic.png"
      image = s3dis.read_image(path, ("L", "P"))
      label = s3dis.nearest(image, size).astype(np.int32)
      _check_classes(path, "semantic_my", label)
    if (data / "label_sp_sparse").is_dir():
      path = data / "label_sp_sparse" / f"{frame_name}.npz"
      region = np.full(size, NO_REGION, np.int32)
      if path.is_file():  # the authors do without where there is none
        region = s3dis.nearest(_read_regions(path), size)
    return dataclasses.replace(frame, label=label, region=region)

  def has_labels(self, scene_name: str) -> bool:
    with _opened_npz(self._room_path(scene_name)) as archive:
      return "semantic_gt" in archive.files

  def _room_path(self, scene_name: str) -> Path:
    area, room = s3dis.split_name(scene_name)
    return self.root / "s3dis_3d" / f"Area_{area}" / f"{room}.npz"

  def _images(self, area: int) -> Path:
    return self.root / "s3dis_2d" / f"Area_{area}" / "data"

  def _superpoints(self, area: int, room: str, n: int) -> np.ndarray | None:
    folder = self.root / "s3dis_3d" / _SUPERPOINTS
    if not folder.is_dir():
      return None
    path = folder / f"Area_{area}" / f"{room}.npz"
    superpoint = _read_npz(path, ("a",))["a"].reshape(-1)
    return np.maximum(_integers(path, "a", superpoint, n), NO_REGION)

  def _frames(self, area: int, room: str) -> tuple[str, ...]:
    if area in s3dis.VAL_AREAS:
      return tuple(s3dis.list_frames(self._images(area), room))
    return _listed_frames(self.root, area, room)


def open_dataset(root: str | os.PathLike) -> S3disProcessed:
  """Opens the folder that has s3dis_3d and s3dis_2d.

  Areas 1, 2, 3, 4 and 6 are the split "train", area 5 is "val"; areas may be
  missing. As with the authors, training rooms that list no frames are left
  out, with a warning.

  Raises:
    DataError: there are no rooms, or the list of frames of one is missing or
      malformed.
  """
  root = Path(root)
  splits = {"train": [], "val": []}
  without = []
  for area in range(1, 7):
    split = s3dis.split_of(area)
    for path in sorted((root / "s3dis_3d" / f"Area_{area}").glob("[!.]*.npz")):
      scene = s3dis.scene_name(area, path.stem)
      s3dis.split_name(scene)
      if split == "train" and not _listed_frames(root, area, path.stem):
        without.append(scene)
      else:
        splits[split].append(scene)
  if without:
    logging.warning(
      "%s: rooms without frames are left out: %s", root, ", ".join(without)
    )
  if not any(splits.values()):
    raise DataError(
      f"{root}: has no rooms, expected s3dis_3d/Area_<k>/<room>.npz; a data set"
      " of scripts/prepare_s3dis.py is opened as assets"
    )
  splits = {split: tuple(scenes) for split, scenes in splits.items()}
  return S3disProcessed(root, "s3dis", s3dis.CLASSES, splits)


def _listed_frames(root: Path, area: int, room: str) -> tuple[str, ...]:
  """Names in <room>.txt, sorted; what is before Area_<k>/ does not count."""
  path = root / "s3dis_3d" / f"Area_{area}" / f"{room}.txt"
  try:
    lines = path.read_text("utf-8").splitlines()
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found, expected the frames of a room") from e
  except (OSError, UnicodeDecodeError) as e:
    raise DataError(f"{path}: expected a text file of paths ({e})") from e
  pattern = (
    rf"(?:.*/)?Area_{area}/data/rgb/(camera_\w+_{room}_frame_\w+)_rgb\.png"
  )
  frames = set()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    match = re.fullmatch(pattern, line.strip())
    if not match:
      raise DataError(
        f"{path}: line {number} is {line!r}, expected a path that ends in"
        f" Area_{area}/data/rgb/camera_*_{room}_frame_*_rgb.png"
      )
    frames.add(match[1])
  return tuple(sorted(frames))


@contextlib.contextmanager
def _opened_npz(path: Path):
  try:
    # Opened here, because numpy leaves the file open when it is damaged.
    file = open(path, "rb")
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found, expected an .npz file") from e
  with file, NUMPY_READING:
    try:
      archive = np.load(file, allow_pickle=False)
      if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    # A damaged archive can fail in any way that zip and numpy can.
    except Exception as e:
      raise DataError(f"{path}: expected an intact .npz file ({e})") from e
    with archive:
      yield archive


def _read_npz(
  path: Path, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray | None]:
  with _opened_npz(path) as archive:
    arrays = dict.fromkeys((*fields, *optional))
    for field in arrays:
      if field not in archive.files:
        if field in optional:
          continue
        found = ", ".join(archive.files) or "none"
        raise DataError(f"{path}: lacks {field!r}, it has the arrays {found}")
      try:
        arrays[field] = archive[field]
      except Exception as e:
        raise DataError(f"{path}: {field} cannot be read ({e})") from e
      if arrays[field].dtype.kind not in "biuf":
        found = arrays[field].dtype
        raise DataError(f"{path}: {field} is of {found}, expected numbers")
  return arrays


def _integers(path: Path, field: str, array: np.ndarray, n: int) -> np.ndarray:
  if array.shape != (n,):
    raise DataError(f"{path}: {field} has shape {array.shape}, expected ({n},)")
  with np.errstate(invalid="ignore"):
    whole = array.astype(np.int32)
  if not np.array_equal(whole, array):
    raise DataError(f"{path}: {field} is not whole, expected int32 numbers")
  return whole


def _check_classes(path: Path, field: str, label: np.ndarray) -> None:
  count = len(s3dis.CLASSES)
  bad = ((label < 0) | (label >= count)) & (label != IGNORE_LABEL)
  if bad.any():
    raise DataError(
      f"{path}: {field} has {label[bad][0]}, expected classes below {count}, or"
      f" {IGNORE_LABEL} to ignore"
    )


def _colors(path: Path, color: np.ndarray, n: int) -> np.ndarray:
  if color.shape != (n, 3):
    raise DataError(f"{path}: color has shape {color.shape}, expected ({n}, 3)")
  if not ((color >= 0) & (color <= 255)).all():  # NaN is bad, too
    raise DataError(f"{path}: color is out of range, expected 0..255")
  return np.rint(color).astype(np.uint8)


def _normals(path: Path, normal: np.ndarray, n: int) -> np.ndarray:
  if normal.shape != (n, 3):
    found = f"has shape {normal.shape}"
    raise DataError(f"{path}: normal {found}, expected ({n}, 3)")
  if not np.isfinite(normal).all():
    raise DataError(f"{path}: normal is not finite, expected unit vectors")
  length = np.linalg.norm(normal, axis=1, keepdims=True)
  # Those of a mesh may be shorter, or zero where a face has no area.
  unit = np.where(length > 1e-6, normal / np.maximum(length, 1e-6), 0)
  return unit.astype(np.float32)


def _read_regions(path: Path) -> np.ndarray:
  """Int32 [H, W], NO_REGION = none; it is stored as a list of H*W numbers."""
  region = _read_npz(path, ("a",))["a"]
  edge = math.isqrt(region.size)
  if region.ndim != 2:
    if edge**2 != region.size or not edge:
      found = f"has shape {region.shape}"
      raise DataError(
        f"{path}: a {found}, expected a square image, H*W numbers"
      )
    region = region.reshape(edge, edge)
  flat = _integers(path, "a", region.reshape(-1), region.size)
  return np.maximum(flat, NO_REGION).reshape(region.shape)
