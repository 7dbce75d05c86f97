"""SemanticKITTI (Behley et al., ICCV 2019): files, label maps, poses.

  <root>/sequences/NN/velodyne/FFFFFF.bin    float32 x4: x, y, z, remission
  <root>/sequences/NN/labels/FFFFFF.label    uint32: low 16 bits class id, high
                                             16 bits instance
  <root>/sequences/NN/poses.txt, calib.txt   as in KITTI odometry

Class ids of the files ("raw ids") have gaps and tell what moves apart; a label
map turns them into classes 0..K-1 and back. docs/semantic_kitti.md tells more.
Dimension letters: N points, K classes, S scans of a sequence.
"""

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import IGNORE_LABEL, DataError

TRAIN_SEQUENCES = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
VAL_SEQUENCES = ("08",)
TEST_SEQUENCES = tuple(str(n) for n in range(11, 22))  # labels are not public

_POINT_BYTES = 16
_NUM_IDS = 1 << 16
_POSE_ERROR = 1e-2  # of what is a rotation in a pose


@dataclasses.dataclass(frozen=True)
class LabelMap:
  """Which raw ids make up which class.

  Attributes:
    name: a key of `LABEL_MAPS`, or the file that it was read from.
    classes: the K names.
    ids: raw ids of each class; the first one is written for the class. Ids of
      no class are ignored.
  """

  name: str
  classes: tuple[str, ...]
  ids: tuple[tuple[int, ...], ...]

  @functools.cached_property
  def _table(self) -> np.ndarray:
    table = np.full(_NUM_IDS, IGNORE_LABEL, np.int32)
    for label, ids in enumerate(self.ids):
      table[list(ids)] = label
    return table

  def to_class(self, raw: np.ndarray) -> np.ndarray:
    """int32 classes, IGNORE_LABEL = none, of uint32 labels (low 16 bits)."""
    return self._table[np.asarray(raw, np.uint32) & np.uint32(0xFFFF)]

  def to_raw(self, label: np.ndarray) -> np.ndarray:
    """uint32 raw ids of classes; 0 ("unlabeled") for IGNORE_LABEL.

    Raises:
      DataError: a label is neither a class nor IGNORE_LABEL.
    """
    label = np.asarray(label)
    k = len(self.classes)
    bad = ((label < 0) | (label >= k)) & (label != IGNORE_LABEL)
    if label.dtype.kind not in "iu" or bad.any():
      found = label[bad][0] if bad.any() else label.dtype
      raise DataError(
        f"predicted label {found}: expected integers below {k}, or "
        f"{IGNORE_LABEL} for none"
      )
    written = np.zeros(IGNORE_LABEL + 1, np.uint32)
    written[:k] = [ids[0] for ids in self.ids]
    return written[label]


def _label_map(name: str, ids: dict[str, tuple[int, ...]]) -> LabelMap:
  return LabelMap(name, tuple(ids), tuple(ids.values()))


_SINGLE = {
  "car": (10, 252),
  "bicycle": (11,),
  "motorcycle": (15,),
  "truck": (18, 258),
  "other-vehicle": (20, 13, 16, 256, 257, 259),
  "person": (30, 254),
  "bicyclist": (31, 253),
  "motorcyclist": (32, 255),
  "road": (40, 60),
  "parking": (44,),
  "sidewalk": (48,),
  "other-ground": (49,),
  "building": (50,),
  "fence": (51,),
  "vegetation": (70,),
  "trunk": (71,),
  "terrain": (72,),
  "pole": (80,),
  "traffic-sign": (81,),
}
_MOVING = {
  "moving-car": (252,),
  "moving-bicyclist": (253,),
  "moving-person": (254,),
  "moving-motorcyclist": (255,),
  "moving-other-vehicle": (259, 256, 257),
  "moving-truck": (258,),
}
_STILL = {
  name: tuple(i for i in ids if i < 252) for name, ids in _SINGLE.items()
}
_OTHERS = (52, 99)  # other-structure, other-object: of no semantic class
_STATIC_ID, _MOVING_ID = 9, 251  # stand for all that is static, or moves

LABEL_MAPS: dict[str, LabelMap] = {
  m.name: m
  for m in (
    _label_map("official", _SINGLE),
    # As SPVNAS trains: buses, trains and lane markings are ignored.
    _label_map("spvnas", _SINGLE | {"other-vehicle": (20, 259), "road": (40,)}),
    _label_map("multiscan", _STILL | _MOVING),
    _label_map(
      "motion",
      {
        "static": (_STATIC_ID, *sum(_STILL.values(), ()), *_OTHERS),
        "moving": (_MOVING_ID, *sum(_MOVING.values(), ())),
      },
    ),
  )
}
# All ids that a file may have; 0 = unlabeled, 1 = outlier.
RAW_IDS = frozenset((0, 1, *sum(LABEL_MAPS["motion"].ids, ())))


def get_label_map(name: str) -> LabelMap:
  """A label map of `LABEL_MAPS`, or one in the format of the official API.

  Args:
    name: a key of `LABEL_MAPS`, or a path that ends in .yaml.

  Raises:
    DataError: there is no such map, or the file is malformed.
  """
  if name in LABEL_MAPS:
    return LABEL_MAPS[name]
  if str(name).endswith((".yaml", ".yml")):
    return read_label_map(name)
  raise DataError(
    f"label map {name!r}: expected one of {', '.join(LABEL_MAPS)}, or a .yaml "
    "file of the SemanticKITTI API"
  )


def read_label_map(path: str | Path) -> LabelMap:
  """Reads labels, learning_map, learning_map_inv and learning_ignore of a YAML.

  Classes are numbered from 0 in the order of the learning map, without those
  that are ignored.

  Raises:
    DataError: the file is missing, or not such a file.
  """
  import yaml

  try:
    content = yaml.safe_load(Path(path).read_text("utf-8"))
  except (OSError, ValueError, yaml.YAMLError, RecursionError) as e:
    raise DataError(f"{path}: expected a YAML label map ({e})") from e

  def field(name, kind):
    table = content.get(name) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(
      isinstance(k, int) and isinstance(v, kind) for k, v in table.items()
    ):
      raise DataError(
        f"{path}: {name} is missing or malformed, expected a table from ids "
        f"to {kind.__name__}"
      )
    return table

  names, ignored = field("labels", str), field("learning_ignore", bool)
  forward, inverse = field("learning_map", int), field("learning_map_inv", int)
  if bad := [i for i in forward if not 0 <= i < _NUM_IDS]:
    raise DataError(f"{path}: learning_map has id {bad[0]}, expected 16 bits")
  classes = {}
  for label in sorted(k for k in inverse if not ignored.get(k, False)):
    first = inverse[label]
    if forward.get(first) != label or first not in names:
      raise DataError(
        f"{path}: learning_map_inv[{label}] is {first}, expected an id with a "
        f"name that learning_map takes to {label}"
      )
    rest = (i for i, k in forward.items() if k == label and i != first)
    classes[names[first]] = (first, *rest)
  if not 0 < len(classes) < IGNORE_LABEL:
    raise DataError(f"{path}: has {len(classes)} classes, expected 1 to 254")
  return _label_map(str(path), classes)


def scene_name(sequence: str, scan: str) -> str:
  """Name of a scan that is unique over sequences: 08_000123."""
  return f"{sequence}_{scan}"


def split_name(name: str) -> tuple[str, str]:
  """Sequence and scan of a scene's name.

  Raises:
    DataError: it is not such a name.
  """
  match = re.fullmatch(r"([0-9]{2})_([0-9]{6})", name)
  if not match:
    raise DataError(
      f"{name!r} is no scan of SemanticKITTI, expected a name like 08_000123"
    )
  return match[1], match[2]


def scan_path(root: str | Path, name: str) -> Path:
  """The .bin file of a scene."""
  return _path(root, name, "velodyne", "bin")


def label_path(root: str | Path, name: str) -> Path:
  """The .label file of a scene, which the test sequences lack."""
  return _path(root, name, "labels", "label")


def prediction_path(folder: str | Path, name: str) -> Path:
  """Where predictions of a scene go."""
  return _path(folder, name, "predictions", "label")


def _path(root, name, kind, suffix) -> Path:
  sequence, scan = split_name(name)
  return Path(root) / "sequences" / sequence / kind / f"{scan}.{suffix}"


def list_scans(root: str | Path) -> dict[str, tuple[str, ...]]:
  """Scene names of each sequence that has scans, sorted; others are left out.

  Raises:
    DataError: there is no folder `sequences`, or a .bin file has another name
      than six digits.
  """
  folder = Path(root) / "sequences"
  if not folder.is_dir():
    hint = ""
    if Path(root).name == "sequences":
      hint = f"; did you mean {Path(root).parent}?"
    raise DataError(
      f"{folder}: not found, expected sequences/NN/velodyne/*.bin{hint}"
    )
  found = {}
  for sequence in sorted(p.name for p in folder.iterdir() if p.is_dir()):
    if not re.fullmatch("[0-9]{2}", sequence):
      continue
    paths = sorted((folder / sequence / "velodyne").glob("[!.]*.bin"))
    for path in paths:
      if not re.fullmatch("[0-9]{6}", path.stem):
        raise DataError(f"{path}: expected a name of six digits and .bin")
    if paths:
      found[sequence] = tuple(scene_name(sequence, p.stem) for p in paths)
  return found


def count_points(path: str | Path) -> int:
  """Number of points of a .bin file, from its size.

  Raises:
    DataError: it is missing, empty, or no whole number of points.
  """
  if not Path(path).is_file():
    raise DataError(f"{path}: not found, expected a .bin file")
  return _num_points(path, Path(path).stat().st_size)


def read_scan(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads a .bin file.

  Returns:
    coord float32 [N, 3], metres in the frame of the laser (x ahead, y left, z
    up), and remission float32 [N].

  Raises:
    DataError: it is missing, empty, truncated, or has numbers not finite.
  """
  content = _read(path)
  n = _num_points(path, len(content))
  points = np.frombuffer(content, "<f4").reshape(n, 4)
  finite = np.isfinite(points).all(1)
  if not finite.all():
    raise DataError(
      f"{path}: point {np.argmin(finite)} is {points[np.argmin(finite)]}, "
      "expected finite x, y, z and remission"
    )
  return points[:, :3].astype(np.float32), points[:, 3].astype(np.float32)


def read_labels(path: str | Path, num_points: int) -> np.ndarray:
  """Reads a .label file, of the data set or of predictions.

  Returns:
    uint32 [N]: raw id in the low 16 bits, instance in the high 16.

  Raises:
    DataError: it is missing, or of another number of points.
  """
  content = _read(path)
  if len(content) != 4 * num_points:
    raise DataError(
      f"{path}: has {len(content)} bytes, expected {4 * num_points}: one "
      f"uint32 label for each of the {num_points} points"
    )
  return np.frombuffer(content, "<u4").astype(np.uint32)


def _num_points(path, size) -> int:
  if not size or size % _POINT_BYTES:
    raise DataError(
      f"{path}: has {size} bytes, expected {_POINT_BYTES} for each point (x, "
      "y, z, remission as float32) and at least one point"
    )
  return size // _POINT_BYTES


def _read(path) -> bytes:
  try:
    return Path(path).read_bytes()
  except FileNotFoundError as e:
    raise DataError(f"{path}: not found") from e
  except OSError as e:
    raise DataError(f"{path}: cannot be read ({e.strerror})") from e


def write_prediction(folder: str | Path, name: str, raw: np.ndarray) -> Path:
  """Writes sequences/NN/predictions/FFFFFF.label in a folder, whole or not.

  Args:
    folder: made if need be.
    name: of the scene.
    raw: [N], raw ids of all points of the scan, see `LabelMap.to_raw`.

  Returns:
    The file.

  Raises:
    OSError: it cannot be written.
  """
  path = prediction_path(folder, name)
  with atomic_write(path) as file:
    file.write(np.ascontiguousarray(raw, "<u4").tobytes())
  return path


def read_poses(root: str | Path, sequence: str) -> np.ndarray:
  """Poses of the laser, float64 [S, 4, 4], from each scan to the first.

  The files give poses of the left camera; calib.txt has the laser in its frame.

  Raises:
    DataError: poses.txt or calib.txt is missing or malformed.
  """
  folder = Path(root) / "sequences" / sequence
  path = folder / "calib.txt"
  lines = [line.partition(":") for line in _read_lines(path)]
  calibration = [numbers for key, _, numbers in lines if key.strip() == "Tr"]
  if len(calibration) != 1:
    raise DataError(f"{path}: expected one line 'Tr: ' and 12 numbers")
  laser = _rigid(calibration, path)[0]
  path = folder / "poses.txt"
  camera = _rigid(_read_lines(path), path)
  return np.linalg.inv(laser) @ camera @ laser


def _read_lines(path) -> list[str]:
  try:
    lines = path.read_text("ascii").splitlines()
  except (OSError, ValueError) as e:
    raise DataError(
      f"{path}: expected a text file, needed to join scans ({e})"
    ) from e
  lines = [line for line in lines if line.strip()]
  if not lines:
    raise DataError(f"{path}: is empty, expected 12 numbers a line")
  return lines


def _rigid(lines, path) -> np.ndarray:
  """Rigid motions [S, 4, 4] from lines with the upper three rows of each."""
  motions = np.tile(np.eye(4), (len(lines), 1, 1))
  for i, line in enumerate(lines):
    try:
      numbers = np.array(line.split(), np.float64)
    except ValueError:
      numbers = np.zeros(0)
    if len(numbers) != 12 or not np.isfinite(numbers).all():
      raise DataError(f"{path}: {line[:40]!r}: expected 12 finite numbers")
    motions[i, :3] = numbers.reshape(3, 4)
  turn = motions[:, :3, :3]
  error = np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
  bad = (error > _POSE_ERROR) | (np.linalg.det(turn) < 0)
  if bad.any():
    raise DataError(
      f"{path}: {lines[np.argmax(bad)][:40]!r}: expected a rotation and a "
      "translation, row by row"
    )
  return motions
