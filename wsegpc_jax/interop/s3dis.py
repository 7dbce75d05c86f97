"""S3DIS and its images, 2D-3D-S, as they are released; see docs/s3dis.md.

S3DIS (Armeni et al., CVPR 2016) has a folder for each room, with one text file
for each object. 2D-3D-S (Armeni et al., arXiv 1702.01105) has images of the
same rooms, with poses in the world of the S3DIS release that is not "aligned".

Dimension letters: N points, H and W image height and width.
"""

import json
import re
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from wsegpc_jax.types import IGNORE_LABEL, DataError, Frame

CLASSES = (
  "ceiling",
  "floor",
  "wall",
  "beam",
  "column",
  "window",
  "door",
  "table",
  "chair",
  "sofa",
  "bookcase",
  "board",
  "clutter",
)
TRAIN_AREAS = (1, 2, 3, 4, 6)
VAL_AREAS = (5,)

CAMERA_EDGE = 1080  # pixels of the images that intrinsics are for
_DEPTH_SCALE = 512  # units of depth images a metre
_NO_DEPTH = 65535
_NO_SEMANTIC = 0x0D0D0D
# Control characters but tabs get back a bit.
_SET_BIT = bytes(b | 0x20 if b < 32 and b != 9 else b for b in range(256))
_MAX_REPAIRS = 8  # lines of a file; one with more of them is damaged

# From the world of area_5b, which is another than that of area_5a and of the
# points of area 5, to theirs.
_FROM_5B = np.array([
  [0.0, 1.0, 0.0, -4.09703582],
  [-1.0, 0.0, 0.0, 6.22617759],
  [0.0, 0.0, 1.0, 0.0],
  [0.0, 0.0, 0.0, 1.0],
])  # fmt: skip


def scene_name(area: int, room: str) -> str:
  """Name of a room that is unique over areas: Area_1_office_1."""
  return f"Area_{area}_{room}"


def split_name(scene: str) -> tuple[int, str]:
  """Area and room of a scene's name.

  Raises:
    DataError: it is not such a name.
  """
  match = re.fullmatch(r"Area_([1-6])_(\w+)", scene)
  if not match:
    raise DataError(
      f"{scene!r} is no room of S3DIS, expected a name like Area_1_office_1"
    )
  return int(match[1]), match[2]


def split_of(area: int) -> str:
  """The split that an area belongs to when area 5 is held out."""
  return "val" if area in VAL_AREAS else "train"


def pseudo_label_file(scene: str) -> str:
  """What the authors of WSegPC call the pseudo-labels of a scene.

  This project writes <scene>.npz, so Area_1_office_1.npz; their code reads and
  writes Area_1__office_1.npz, the array `pred_label` in it alike.
  """
  area, room = split_name(scene)
  return f"Area_{area}__{room}.npz"


def find_rooms(raw: Path, areas: tuple[int, ...] | None = None) -> list[str]:
  """Scene names of all rooms of a release, sorted.

  Args:
    raw: Stanford3dDataset_v1.2 or Stanford3dDataset_v1.2_Aligned_Version.
    areas: those wanted; None = all that are there.

  Raises:
    DataError: an area that is wanted is not there, or there is none.
  """
  there = {k: raw / f"Area_{k}" for k in range(1, 7)}
  there = {k: folder for k, folder in there.items() if folder.is_dir()}
  for area in areas or ():
    if area not in there:
      raise DataError(f"{raw / f'Area_{area}'}: not found, expected the area")
  rooms = [
    scene_name(area, room.name)
    for area, folder in there.items()
    for room in folder.iterdir()
    if (areas is None or area in areas)
    and room.is_dir()
    and not room.name.startswith(".")
  ]
  if not rooms:
    raise DataError(f"{raw}: has no rooms, expected folders Area_<k>/<room>")
  return sorted(rooms)


def read_room(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Reads the points of a room from its Annotations, object by object.

  Objects are sorted by file name; Area_k/<room>/<room>.txt, which has the same
  points without labels, is not read. Objects of a class that is none of the
  13, such as stairs, become clutter.

  Args:
    folder: Area_k/<room>.

  Returns:
    coord float32 [N, 3], metres; color uint8 [N, 3]; label int32 [N].

  Raises:
    DataError: a file is missing, or damaged beyond repair (see `read_points`).
  """
  annotations = folder / "Annotations"
  if not annotations.is_dir():
    raise DataError(f"{annotations}: not found, expected a file of each object")
  parts, labels = [], []
  # Finder's "Icon\r" and hidden files are left out.
  for path in sorted(annotations.glob("[!.]*.txt")):
    copy = re.fullmatch(r"(.+) \(\d+\)", path.stem)
    if copy and (original := path.with_name(f"{copy[1]}.txt")).exists():
      same = original.read_bytes() == path.read_bytes()
      logging.warning(
        "%s: left out, as a copy of %s%s", path, original.name,
        "" if same else ", though they differ",
      )  # fmt: skip
      continue
    name = path.stem.split("_")[0]
    if name not in (*CLASSES, "stairs"):
      logging.warning("%s: %r is no class, taken for clutter", path, name)
    label = CLASSES.index(name if name in CLASSES else "clutter")
    parts.append(read_points(path))
    labels.append(np.full(len(parts[-1]), label, np.int32))
  if not sum(map(len, parts)):
    raise DataError(
      f"{annotations}: has no points, expected objects <class>_<n>.txt"
    )
  coord, color = np.split(np.concatenate(parts), 2, axis=1)
  color = np.rint(color).astype(np.uint8)
  return coord.astype(np.float32), color, np.concatenate(labels)


def read_points(path: Path) -> np.ndarray:
  """Reads a text file of S3DIS: x y z r g b a line.

  Some bytes of the release have lost a bit: a blank became NUL, a digit became
  a control character. The bit is set again, with one warning a file. Blank
  lines and more than one blank between numbers do not matter.

  Returns:
    float64 [N, 6], metres and 0..255; N may be 0.

  Raises:
    DataError: the file is missing, or a line is not six numbers, or a colour
      is out of range.
  """
  try:
    text = path.read_bytes()
    if not text.strip():
      return np.empty((0, 6))
    # A lone carriage return is a broken minus; it would begin a line.
    if text.count(b"\r") != text.count(b"\r\n"):
      raise ValueError
    values = np.loadtxt(path, comments=None, ndmin=2)
  except OSError as e:
    raise DataError(f"{path}: cannot be read ({e.strerror})") from e
  except ValueError:
    values = np.array(_repaired(path, text))
  if values.shape[1] != 6:
    raise _line_fault(path, 0, f"has {values.shape[1]} numbers")
  color = values[:, 3:]
  wrong = ~np.isfinite(values).all(1) | ((color < 0) | (color > 255)).any(1)
  if wrong.any():
    row = int(wrong.argmax())
    lines = [i for i, line in enumerate(text.split(b"\n")) if line.strip()]
    raise _line_fault(path, lines[row], f"is {values[row].tolist()}")
  return values


def list_frames(data: Path, room: str) -> list[str]:
  """Names of the frames of a room, sorted: camera_*_<room>_frame_*_domain.

  Args:
    data: Area_k/data (or area_5a/data), which has a folder rgb.
    room: for example office_1.
  """
  pattern = rf"(camera_[^_]+_{re.escape(room)}_frame_\d+_domain)_rgb\.png"
  matches = (re.fullmatch(pattern, p.name) for p in (data / "rgb").glob("*"))
  return sorted(match[1] for match in matches if match)


def image_folders(images: Path, area: int) -> list[Path]:
  """The folders `data` of 2D-3D-S that have the frames of an area.

  Raises:
    DataError: there is none, or not both halves of area 5.
  """
  there = {p.name.lower(): p / "data" for p in images.glob("[Aa]rea_*")}
  names = [f"area_{area}"]
  if names[0] not in there and area == 5:
    names = ["area_5a", "area_5b"]
  for name in names:
    if name not in there or not (there[name] / "rgb").is_dir():
      raise DataError(f"{images}/{name}/data/rgb: not found, expected images")
  return [there[name] for name in names]


def read_camera(data: Path, frame: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads pose/<frame>_pose.json.

  Returns:
    pose: float64 [4, 4], camera-to-world, in the world of S3DIS; poses of
      area_5b are brought into that of the rest of area 5.
    intrinsics: float64 [4], (fx, fy, cx, cy) for 1080 x 1080 pixels.

  Raises:
    DataError: the file is missing or malformed.
  """
  path = data / "pose" / f"{frame}_pose.json"
  try:
    content = json.loads(path.read_text("utf-8"))
    world_to_camera = np.array(content["camera_rt_matrix"], np.float64)
    camera = np.array(content["camera_k_matrix"], np.float64)
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found, expected the pose of a frame") from e
  except (OSError, KeyError, TypeError, ValueError) as e:
    expected = "expected camera_rt_matrix and camera_k_matrix"
    raise DataError(f"{path}: cannot be read, {expected} ({e})") from e
  if world_to_camera.shape not in ((3, 4), (4, 4)):
    found = f"has shape {world_to_camera.shape}"
    raise DataError(f"{path}: camera_rt_matrix {found}, expected (3, 4)")
  turn, move = world_to_camera[:3, :3], world_to_camera[:3, 3]
  if not (
    np.isfinite(world_to_camera).all()
    and np.allclose(turn @ turn.T, np.eye(3), atol=0.01)
    and np.linalg.det(turn) > 0
  ):
    raise DataError(
      f"{path}: camera_rt_matrix is {world_to_camera.tolist()}, expected a"
      " rotation and a translation"
    )
  good = camera.shape == (3, 3) and np.isfinite(camera).all()
  intrinsics = camera[[0, 1, 0, 1], [0, 1, 2, 2]] if good else np.zeros(4)
  fx, fy, cx, cy = intrinsics
  pinhole = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
  if min(fx, fy) <= 0 or not np.allclose(camera, pinhole, atol=1e-6):
    raise DataError(
      f"{path}: camera_k_matrix is {camera.tolist()}, expected fx 0 cx, 0 fy"
      " cy, 0 0 1 with fx and fy above 0"
    )
  pose = np.eye(4)
  pose[:3] = np.column_stack([turn.T, -turn.T @ move])
  if data.parent.name.lower() == "area_5b":
    pose = _FROM_5B @ pose
  return pose, intrinsics


def read_depth(data: Path, frame: str, size: tuple[int, int]) -> np.ndarray:
  """Reads depth/<frame>_depth.png: float32 [H, W], metres, 0 = not measured.

  Raises:
    DataError: the file is missing, damaged or not of 16 bits.
  """
  path = data / "depth" / f"{frame}_depth.png"
  depth = read_image(path, ("I;16", "I;16B", "I"))
  depth = nearest(depth, size).astype(np.float32)
  return np.where(depth == _NO_DEPTH, 0, depth / np.float32(_DEPTH_SCALE))


def read_frame(
  data: Path, frame: str, size: tuple[int, int] | None = None
) -> Frame:
  """Reads a frame without regions and labels.

  Args:
    data: Area_k/data, with folders rgb, depth and pose.
    frame: camera_*_<room>_frame_*_domain.
    size: (H, W) to resize to, colour bilinearly (antialiased), depth by
      nearest pixel; None for that of the colour image. The intrinsics are for
      it: fx by W/1080, cx by (W-1)/1079, y alike.

  Raises:
    DataError: a file is missing or malformed.
  """
  path = data / "rgb" / f"{frame}_rgb.png"
  color = Image.fromarray(read_image(path, ("RGB", "RGBA", "L", "P"), "RGB"))
  h, w = size or color.size[::-1]
  pose, intrinsics = read_camera(data, frame)
  center = (w - 1) / (CAMERA_EDGE - 1), (h - 1) / (CAMERA_EDGE - 1)
  scale = (w / CAMERA_EDGE, h / CAMERA_EDGE, *center)
  return Frame(
    name=frame,
    color=np.array(color.resize((w, h), Image.Resampling.BILINEAR)),
    depth=read_depth(data, frame, (h, w)),
    pose=pose,
    intrinsics=intrinsics * scale,
  )


def read_semantic(
  data: Path, frame: str, size: tuple[int, int], names: np.ndarray
) -> np.ndarray:
  """Reads semantic/<frame>_semantic.png of 2D-3D-S: int32 [H, W] of `size`.

  Args:
    names: as `read_semantic_names` has them.

  Raises:
    DataError: the file is missing or damaged, or has an index out of range.
  """
  path = data / "semantic" / f"{frame}_semantic.png"
  image = nearest(read_image(path, ("RGB", "RGBA"), "RGB"), size)
  index = image.astype(np.int64) @ (1 << 16, 1 << 8, 1)
  missing = index == _NO_SEMANTIC
  if (index[~missing] >= len(names)).any():
    raise DataError(
      f"{path}: has index {index[~missing].max()}, expected one below"
      f" {len(names)}, the length of semantic_labels.json"
    )
  return np.where(missing, IGNORE_LABEL, names[np.where(missing, 0, index)])


def read_semantic_names(images: Path) -> np.ndarray | None:
  """Classes of the indices in semantic images, from semantic_labels.json.

  Args:
    images: folder of 2D-3D-S; the file is in it or in its folder assets.

  Returns:
    int32 [number of indices], IGNORE_LABEL where unknown; None without a file.

  Raises:
    DataError: the file is malformed.
  """
  places = [images / "assets", images]
  paths = [place / "semantic_labels.json" for place in places]
  path = next((p for p in paths if p.is_file()), None)
  if path is None:
    return None
  try:
    names = json.loads(path.read_text("utf-8"))
    kinds = [name.split("_")[0] for name in names]
  except (OSError, AttributeError, TypeError, ValueError) as e:
    raise DataError(f"{path}: expected a list of names ({e})") from e
  known = {name: k for k, name in enumerate(CLASSES)}
  known |= {"stairs": known["clutter"]}
  return np.array([known.get(k, IGNORE_LABEL) for k in kinds], np.int32)


def read_image(
  path: Path, modes: tuple[str, ...], mode: str | None = None
) -> np.ndarray:
  """An image of one of pillow's `modes`, converted to `mode` if given.

  Raises:
    DataError: it is missing, damaged or of another mode.
  """
  try:
    with Image.open(path) as image:
      if image.mode not in modes:
        expected = " or ".join(modes)
        raise DataError(f"{path}: has mode {image.mode}, expected {expected}")
      return np.array(image.convert(mode) if mode else image)
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found, expected an image") from e
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise DataError(f"{path}: expected an intact image ({e})") from e


def nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes [H, W, ...] to `size` by taking the nearest pixel."""
  (h, w), (new_h, new_w) = image.shape[:2], size
  rows = (2 * np.arange(new_h) + 1) * h // (2 * new_h)
  columns = (2 * np.arange(new_w) + 1) * w // (2 * new_w)
  return image[rows[:, None], columns]


def _repaired(path: Path, text: bytes) -> list[list[float]]:
  """The numbers of all lines, with the lost bit of broken bytes set again."""
  rows, repaired = [], []
  for index, line in enumerate(text.split(b"\n")):
    line = line.removesuffix(b"\r")
    fixed = line.translate(_SET_BIT)
    words = fixed.split()
    if not words and fixed == line:
      continue
    try:
      if b"_" in fixed:  # Python's own
        raise ValueError
      rows.append([float(word) for word in words])
    except ValueError as e:
      raise _line_fault(path, index, f"is {line!r}") from e
    if len(words) != 6:
      raise _line_fault(path, index, f"has {len(words)} numbers")
    if fixed != line:
      repaired.append(index + 1)
    if len(repaired) > _MAX_REPAIRS:
      raise DataError(
        f"{path}: has broken bytes in lines {repaired}, expected text; it is"
        " damaged, extract it again"
      )
  places = ", ".join(map(str, repaired))
  logging.warning("%s: broken bytes repaired in line %s", path, places)
  return rows


def _line_fault(path: Path, index: int, found: str) -> DataError:
  expected = "six numbers x y z r g b, colours in 0..255"
  return DataError(f"{path}: line {index + 1} {found}, expected {expected}")
