"""The asset layout: the one form on disk that every data set is converted to.

docs/assets.md describes the files. Whatever is read is checked, and a fault
raises `DataError` naming the file, the field and what was expected. What is
written is checked the same way, so that it can be read again.

Dimension letters: N points of a scene, H and W image height and width, K
classes.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import NUMPY_READING
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError, Frame, Scene

FORMAT = "wsegpc-assets"
VERSION = 1

# Name: (dtype on disk, shape after N).
_ARRAYS = {
  "coord": (np.dtype(np.float32), (3,)),
  "color": (np.dtype(np.uint8), (3,)),
  "normal": (np.dtype(np.float32), (3,)),
  "label": (np.dtype(np.uint8), ()),
  "superpoint": (np.dtype(np.int32), ()),
}
_OPTIONAL = ("label", "superpoint")
_COLOR_SUFFIXES = (".jpg", ".png")
# Name: (pillow modes, dtype on disk); older pillow opens 16 bits as "I".
_MAPS = {
  "depth": (("I;16", "I;16B", "I"), np.uint16),
  "region": (("I;16", "I;16B", "I"), np.uint16),
  "label_2d": (("L", "P"), np.uint8),
}
_NO_REGION_PNG = 65535


@dataclasses.dataclass(frozen=True)
class AssetDataset(Dataset):
  """A data set in the asset layout."""

  def load_scene(self, scene_name: str) -> Scene:
    return load_scene(self, scene_name)

  def load_frame(self, scene_name, frame_name, *, image_size=None) -> Frame:
    return load_frame(self, scene_name, frame_name, image_size=image_size)

  def has_labels(self, scene_name: str) -> bool:
    return (self.root / scene_name / "label.npy").is_file()


def open_dataset(root: str | os.PathLike) -> AssetDataset:
  """Reads `<root>/dataset.json`, whose unknown keys are left alone.

  Raises:
    DataError: dataset.json is missing, malformed, of another version, or lists
      a scene that has no folder.
  """
  path = Path(root) / "dataset.json"
  if not path.is_file():
    raise DataError(
      f"{path}: not found, expected the format, version, name, classes and "
      f"splits of a data set; docs/assets.md and write_dataset tell more"
    )
  return _parse_dataset(path, read_json(path))


def load_scene(dataset: Dataset, scene_name: str) -> Scene:
  """Reads the points of a scene and lists its usable frames.

  Frames are sorted by name, numerically when all names are integers. Those
  whose pose is not finite (ScanNet writes -inf where tracking was lost) are
  left out with one warning.

  Raises:
    DataError: a file is missing, truncated or malformed.
  """
  check_name(dataset.root, "scene", scene_name)
  folder = dataset.root / scene_name
  info_path = folder / "scene.json"
  info = read_json(info_path)
  points = info.get("points")
  if type(points) is not int or points < 1:
    raise _fault(info_path, "points", f"is {points!r}", "a number from 1")
  arrays = dict.fromkeys(_ARRAYS)
  for field, (dtype, tail) in _ARRAYS.items():
    path = folder / f"{field}.npy"
    if field in _OPTIONAL and not path.exists():
      continue
    with _reading(path, field), NUMPY_READING, open(path, "rb") as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype != dtype:
      raise _fault(path, field, f"has dtype {array.dtype}", dtype)
    _check_shape(path, field, array, (points, *tail), " (points of scene.json)")
    _check_values(path, field, array, len(dataset.classes))
    wide = np.int32 if field == "label" else None
    arrays[field] = np.ascontiguousarray(array, wide)
  tags = _parse_tags(info_path, info, dataset.classes, arrays["label"])
  frames = _list_frames(folder)
  return Scene(name=scene_name, tags=tags, frames=frames, **arrays)


def load_frame(
  dataset: Dataset,
  scene_name: str,
  frame_name: str,
  *,
  image_size: tuple[int, int] | None = None,
) -> Frame:
  """Reads one posed image, resized to `image_size` = (H', W').

  Colour is resized bilinearly (antialiased), depth, regions and labels by
  nearest pixel; without `image_size` all take the size of the colour image on
  disk. The intrinsics follow: fx by W'/W, cx by (W'-1)/(W-1), y alike.

  Raises:
    DataError: a file is missing, truncated or malformed, or the pose is not
      finite.
  """
  check_name(dataset.root, "scene", scene_name)
  check_name(dataset.root, "frame", frame_name)
  folder = dataset.root / scene_name
  color, (h, w) = _read_color(folder, frame_name, image_size)
  new_h, new_w, _ = color.shape
  depth, region, label = (
    _read_map(folder, frame_name, field, dataset, (h, w), (new_h, new_w))
    for field in _MAPS
  )
  if region is not None:
    region[region == _NO_REGION_PNG] = NO_REGION
  pose = _read_pose(folder, frame_name)
  if not np.isfinite(pose).all():
    raise _fault(folder, f"pose of {frame_name}", "is lost", "finite numbers")
  # A single pixel has its centre at 0, at any scale.
  center = (new_w - 1) / max(w - 1, 1), (new_h - 1) / max(h - 1, 1)
  scale = np.array([new_w / w, new_h / h, *center])
  return Frame(
    name=frame_name,
    color=color,
    depth=depth.astype(np.float32) / np.float32(1000),
    pose=pose,
    intrinsics=_read_intrinsics(folder, frame_name) * scale,
    region=region,
    label=label,
  )


def write_dataset(
  root: str | os.PathLike,
  *,
  name: str,
  classes: Sequence[str],
  splits: Mapping[str, Sequence[str]],
  extra: Mapping[str, Any] | None = None,
) -> AssetDataset:
  """Writes `<root>/dataset.json`, once the scenes of all splits are there.

  `extra` holds more keys to store, for example where the data comes from.

  Raises:
    DataError: an argument is not what `open_dataset` accepts, or the file
      exists with another content.
  """
  path = Path(root) / "dataset.json"
  splits = {split: list(scenes) for split, scenes in splits.items()}
  content = dict(extra or {}, format=FORMAT, version=VERSION, name=name)
  content.update(classes=list(classes), splits=splits)
  content = json.loads(json.dumps(content))  # as it will be read back
  dataset = _parse_dataset(path, content)
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".dataset.json.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)
  elif read_json(path) != content:
    found = f"{path}: describes another data set"
    raise DataError(f"{found}, expected the same one or no such file yet")
  return dataset


def write_scene(
  root: str | os.PathLike,
  scene: Scene,
  frames: Iterable[Frame],
  *,
  classes: Sequence[str],
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes `<root>/<scene.name>/`, whole or not at all.

  Frames are taken one at a time, so `frames` may be a generator; their names
  are `scene.frames`, or that is empty. Colour is stored losslessly, depth in
  whole millimetres. `extra` holds more keys to store in scene.json.

  Raises:
    DataError: the scene folder exists, or the layout cannot hold an array.
  """
  check_name("write_scene", "scene", scene.name)
  folder = Path(root) / scene.name
  if os.path.lexists(folder):
    raise DataError(f"{folder}: exists, expected a scene not yet written")
  temporary = folder.with_name(f"{scene.name}.partial-{uuid.uuid4().hex}")
  temporary.mkdir(parents=True)
  try:
    _write_points(temporary, scene, classes, extra or {})
    names = _write_frames(temporary, frames)
    # Reading it back applies all checks of the layout.
    dataset = AssetDataset(Path(root), "", tuple(classes), {})
    written = load_scene(dataset, temporary.name)
    for name in names:
      load_frame(dataset, temporary.name, name)
    if scene.frames and scene.frames != written.frames:
      found = f"are {scene.frames}"
      raise _fault(folder, "frames", found, f"those given, {written.frames}")
    os.rename(temporary, folder)
  except DataError as e:
    raise DataError(str(e).replace(str(temporary), str(folder))) from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object; raises DataError when it is missing or malformed."""
  with _reading(path, "a JSON object"):
    content = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(content, dict):
    raise DataError(f"{path}: has no braces, expected a JSON object")
  return content


def _fault(where, field: str, found: str, expected: Any) -> DataError:
  return DataError(f"{where}: {field} {found}, expected {expected}")


@contextlib.contextmanager
def _reading(path: Path, what: str):
  try:
    yield
  except DataError:
    raise
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found, expected {what}") from e
  except (EOFError, OSError, SyntaxError, ValueError) as e:
    raise DataError(f"{path}: cannot be read, expected {what} ({e})") from e


def _parse_dataset(path: Path, content: dict[str, Any]) -> AssetDataset:
  name, classes, splits = map(content.get, ("name", "classes", "splits"))
  few = _is_strings(classes) and 1 <= len(classes) <= IGNORE_LABEL
  for field, valid, expected in (
    ("format", content.get("format") == FORMAT, repr(FORMAT)),
    ("version", content.get("version") == VERSION, VERSION),
    ("name", isinstance(name, str) and name, "a string"),
    ("classes", few, f"a list of 1 to {IGNORE_LABEL} different names"),
    ("splits", isinstance(splits, dict), "lists of scenes by split"),
  ):
    if not valid:
      raise _fault(path, field, f"is {content.get(field)!r}", expected)
  root = path.parent
  there = set(os.listdir(root)) if root.is_dir() else set()
  for split, scenes in splits.items():
    field = f"splits.{split}"
    if not _is_strings(scenes):
      raise _fault(path, field, f"is {scenes!r}", "a list of different scenes")
    for scene in scenes:
      check_name(path, field, scene)
      if scene not in there:
        raise _fault(path, field, f"lists {scene!r}", "a folder of that name")
  splits = {split: tuple(scenes) for split, scenes in splits.items()}
  return AssetDataset(root, name, tuple(classes), splits)


def _is_strings(value: Any) -> bool:
  strings = isinstance(value, list) and all(isinstance(s, str) for s in value)
  return strings and "" not in value and len(set(value)) == len(value)


def check_name(where, field: str, name: str) -> None:
  """Refuses a name that is no file name; `where` and `field` tell whose."""
  if not name or name.startswith(".") or set(name) & set("/\\\0"):
    expected = "a file name without slashes that does not begin with a dot"
    raise _fault(where, field, f"is named {name!r}", expected)


def _check_shape(where, field, array, shape, why="") -> None:
  if array.shape != shape:
    raise _fault(where, field, f"has shape {array.shape}", f"{shape}{why}")


def _check_values(where, field: str, array: np.ndarray, num_classes) -> None:
  if field == "coord":
    bad = ~np.isfinite(array).all(axis=1)
    expected = "finite numbers"
  elif field == "normal":
    # Written so that NaN is bad.
    length = np.sqrt(np.einsum("ij,ij->i", array, array))
    bad = ~((np.abs(length - 1) < 0.05) | (length < 1e-6))
    expected = "vectors of length 1, or 0 where unknown"
  elif field in ("label", "label_2d"):
    bad = (array >= num_classes) & (array != IGNORE_LABEL)
    expected = f"classes below {num_classes}, or {IGNORE_LABEL} to ignore"
  elif field == "superpoint":
    bad = array < NO_REGION
    expected = f"numbers from 0, or {NO_REGION} for none"
  else:
    return
  if bad.any():
    index = tuple(np.argwhere(bad)[0].tolist())
    found = f"is {array[index].tolist()} at index {index}"
    raise _fault(where, field, found, expected)


def _parse_tags(path, info, classes, label) -> np.ndarray:
  names = info.get("tags")
  if "tags" not in info and label is not None:
    names = [classes[k] for k in np.unique(label) if k != IGNORE_LABEL]
  if not _is_strings(names):
    expected = "a list of class names, or no tags but a label.npy"
    raise _fault(path, "tags", f"is {names!r}", expected)
  for name in names:
    if name not in classes:
      raise _fault(path, "tags", f"has {name!r}", f"one of {list(classes)}")
  return np.array([name in names for name in classes])


def _list_frames(folder: Path) -> tuple[str, ...]:
  there = {}
  for field in ("color", "depth", "pose"):
    visible = (folder / field).glob("[!.]*")
    there[field] = {path.name for path in visible}
  images = [os.path.splitext(name) for name in there["color"]]
  names = sorted(stem for stem, _ in images)
  if all(name.isdecimal() for name in names):
    names.sort(key=int)
  alien = any(suffix not in _COLOR_SUFFIXES for _, suffix in images)
  if alien or len(set(names)) < len(names):
    found = f"has the files {', '.join(sorted(there['color'])[:20])}"
    expected = "one .jpg or .png for each frame and nothing else"
    raise _fault(folder / "color", "color", found, expected)
  if there["pose"] and not names:
    raise _fault(folder / "color", "color", "is empty", "images as in pose/")
  for name in names:
    for field, file in (("pose", f"{name}.txt"), ("depth", f"{name}.png")):
      if file not in there[field]:
        found = f"{folder / field / file}: not found"
        raise DataError(f"{found}, expected {field} as color/ has the frame")
  good = [n for n in names if np.isfinite(_read_pose(folder, n)).all()]
  if len(good) < len(names):
    lost = ", ".join(sorted(set(names) - set(good)))
    _warn_once(f"{folder}: frames without a finite pose are left out: {lost}")
  return tuple(good)


@functools.cache
def _warn_once(message: str) -> None:
  # A scene is loaded anew in every epoch.
  logging.warning("%s", message)


def _read_color(folder, frame_name, size):
  """Returns uint8 [H', W', 3] of `size` = (H', W'), and (H, W) on disk."""
  paths = [folder / "color" / f"{frame_name}{s}" for s in _COLOR_SUFFIXES]
  path = next((p for p in paths if p.is_file()), paths[0])
  with _reading(path, "color"), Image.open(path) as image:
    if image.mode not in ("RGB", "RGBA", "L", "P"):
      raise _fault(path, "color", f"has mode {image.mode}", "8-bit RGB")
    width, height = image.size
    new_h, new_w = size or (height, width)
    # A JPEG can be decoded at a fraction of its size, which is much faster;
    # twice the size wanted leaves enough for the resampling to average.
    draft = image.draft(None, (2 * new_w, 2 * new_h))
    image = image.convert("RGB").resize(
      (new_w, new_h), Image.Resampling.BILINEAR, box=draft and draft[1]
    )
    return np.array(image), (height, width)


def _read_map(folder, frame_name, field, dataset, color_size, size):
  """Returns int32 [H', W'] of `size` = (H', W'); None if not in the scene."""
  path = folder / field / f"{frame_name}.png"
  if field != "depth" and not path.parent.is_dir():
    return None
  modes, dtype = _MAPS[field]
  with _reading(path, field), Image.open(path) as image:
    if image.mode not in modes:
      expected = f"one channel of {np.dtype(dtype)}"
      raise _fault(path, field, f"has mode {image.mode}", expected)
    array = np.array(image, np.int32)
  _check_values(path, field, array, len(dataset.classes))
  (h, w), (color_h, color_w) = array.shape, color_size
  # The field of view is that of the colour image, but for rounded sizes.
  if abs(h * color_w - w * color_h) > 0.05 * w * color_h:
    expected = f"{color_size} as color, or the same view in another resolution"
    raise _fault(path, field, f"has shape {(h, w)}", expected)
  rows = (2 * np.arange(size[0]) + 1) * h // (2 * size[0])
  columns = (2 * np.arange(size[1]) + 1) * w // (2 * size[1])
  return array[rows[:, None], columns]


def _read_matrix(path: Path, size: int) -> np.ndarray:
  with _reading(path, f"{size}x{size} numbers"):
    values = [float(word) for word in path.read_text("utf-8").split()]
    return np.array(values).reshape(size, size)


def _read_pose(folder: Path, frame_name: str) -> np.ndarray:
  """Returns a rigid motion, or numbers not all finite: tracking was lost."""
  path = folder / "pose" / f"{frame_name}.txt"
  pose = _read_matrix(path, 4)
  rotation, last = pose[:3, :3], np.array([0, 0, 0, 1])
  if np.isfinite(pose).all() and not (
    (np.abs(pose[3] - last) <= 1e-6 + 1e-5 * last).all()
    and np.abs(rotation @ rotation.T - np.eye(3)).max() < 0.01
    and np.linalg.det(rotation) > 0
  ):
    expected = "a rotation, a translation and a last row of 0 0 0 1"
    raise _fault(path, "pose", f"is {pose.tolist()}", expected)
  return pose


def _read_intrinsics(folder: Path, frame_name: str) -> np.ndarray:
  path = folder / "intrinsics" / f"{frame_name}.txt"
  if not path.exists():
    path = folder / "intrinsics.txt"
  matrix = _read_matrix(path, 3)
  fx, fy, cx, cy = intrinsics = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
  # Comparing refuses NaN as well.
  pinhole = np.array_equal(matrix, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
  if not pinhole or np.isinf(matrix).any() or min(fx, fy) <= 0:
    expected = "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy above 0"
    raise _fault(path, "intrinsics", f"is {matrix.tolist()}", expected)
  return intrinsics


def _write_points(folder: Path, scene: Scene, classes, extra) -> None:
  for field, (dtype, _) in _ARRAYS.items():
    path, array = folder / f"{field}.npy", getattr(scene, field)
    if array is not None:
      np.save(path, _convert(path, field, array, dtype))
  path = folder / "scene.json"
  _check_shape(path, "tags", scene.tags, (len(classes),), " as classes")
  tags = [classes[k] for k in np.flatnonzero(scene.tags)]
  content = {**extra, "points": len(scene.coord), "tags": tags}
  path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_frames(folder: Path, frames: Iterable[Frame]) -> list[str]:
  names = []
  for frame in frames:
    check_name(folder, "frame", frame.name)
    if frame.name in names:
      raise _fault(folder, "frame", f"{frame.name!r} comes twice", "once")
    names.append(frame.name)
    images = {"color": frame.color, "label_2d": frame.label}
    # In double precision, so that millimetres come back as they were.
    images["depth"] = np.rint(frame.depth * np.float64(1000))
    if frame.region is not None:
      # Beyond 16 bits, so that it is refused instead of read back as none.
      region = np.where(frame.region == _NO_REGION_PNG, 1 << 16, frame.region)
      region[region == NO_REGION] = _NO_REGION_PNG
      images["region"] = region
    for field, image in images.items():
      path = folder / field / f"{frame.name}.png"
      if image is not None:
        shape = frame.depth.shape[:2] + (3,) * (field == "color")
        _check_shape(path, field, image, shape)
        dtype = np.uint8 if field == "color" else _MAPS[field][1]
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(_convert(path, field, image, dtype)).save(path)
    fx, fy, cx, cy = frame.intrinsics
    camera = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    for field, matrix in (("pose", frame.pose), ("intrinsics", camera)):
      path = folder / field / f"{frame.name}.txt"
      path.parent.mkdir(exist_ok=True)
      np.savetxt(path, matrix, fmt="%.17g")
  return names


def _convert(path: Path, field: str, array: np.ndarray, dtype) -> np.ndarray:
  with np.errstate(invalid="ignore"):
    converted = array.astype(dtype)
  if not np.array_equal(converted, array, equal_nan=True):
    expected = f"numbers that {np.dtype(dtype)} holds exactly"
    found = f"of {array.dtype} is from {array.min()} to {array.max()}"
    raise _fault(path, field, found, expected)
  return converted
