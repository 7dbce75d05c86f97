"""The files of ScanNet's release, as they are downloaded.

Labels come from either of two places. `<scene>_vh_clean_2.labels.ply` has the
NYU40 id of each vertex. Without it they are put together: `.segs.json` says
which segment each vertex is in, `.aggregation.json` which segments are an
object and its raw category, and `scannetv2-labels.combined.tsv` the NYU40 id of
each raw category.

Axis alignment turns a scan about z so that its walls follow x and y. The
points and poses of the release are not turned.

Dimension letters: N vertices, F faces, H and W image height and width.
"""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsegpc_jax.interop.capture import read_axis_align, read_text
from wsegpc_jax.interop.ply import read_point_cloud
from wsegpc_jax.interop.scannet import classes_of_nyu40
from wsegpc_jax.types import IGNORE_LABEL, DataError

_MAX_IMAGE = 1 << 26  # bytes of a label image unpacked


@dataclasses.dataclass(frozen=True)
class LabelMap:
  """What `scannetv2-labels.combined.tsv` says.

  Attributes:
    path: the file.
    of_category: NYU40 id of each raw category.
    of_id: int64 [65536], NYU40 id of each raw id (those in 2D label images); 0
      where there is none.
  """

  path: Path
  of_category: dict[str, int]
  of_id: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mesh:
  """A scan.

  Attributes:
    coord: float32 [N, 3], metres, not axis-aligned.
    color: uint8 [N, 3], RGB.
    normal: float32 [N, 3], unit length; zero for vertices without a face.
  """

  coord: np.ndarray
  color: np.ndarray
  normal: np.ndarray


def read_label_map(path: str | Path) -> LabelMap:
  """Reads the columns raw_category, id and nyu40id of the label map.

  Some raw ids come in several rows; the last one counts, as in the scripts of
  the release.

  Raises:
    DataError: the file is missing, lacks a column, or has a malformed row.
  """
  lines = read_text(path).splitlines()
  rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
  columns = ("raw_category", "id", "nyu40id")
  for column in columns:
    if column not in (rows.fieldnames or ()):
      raise DataError(
        f"{path}: lacks the column {column!r}, expected ScanNet's"
        " scannetv2-labels.combined.tsv"
      )
  of_category, of_id = {}, np.zeros(1 << 16, np.int64)
  for number, row in enumerate(rows, 2):
    try:
      raw_id, nyu40 = int(row["id"]), int(row["nyu40id"])
    except (TypeError, ValueError):
      raw_id = -1
    if not (0 <= raw_id < len(of_id) and 0 <= nyu40 <= 40):
      raise DataError(
        f"{path}: line {number}: id and nyu40id are {row['id']} and"
        f" {row['nyu40id']}, expected 16 bits and 0..40"
      )
    of_category[row["raw_category"]] = nyu40
    of_id[raw_id] = nyu40
  return LabelMap(Path(path), of_category, of_id)


def read_mesh(path: str | Path) -> Mesh:
  """Reads `<scene>_vh_clean_2.ply`; normals follow from its faces.

  Raises:
    DataError: the file is missing or damaged, or has no faces.
  """
  cloud = read_point_cloud(path)
  if cloud["faces"] is None:
    raise DataError(f"{path}: has no faces, expected a mesh")
  normal = vertex_normals(cloud["coord"], cloud["faces"])
  return Mesh(cloud["coord"], cloud["color"], normal)


def vertex_normals(coord: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Normals of vertices: those of their faces, weighted by area.

  Args:
    coord: float [N, 3].
    faces: int [F, 3], vertices of triangles, counterclockwise from outside.

  Returns:
    float32 [N, 3] of unit length; zero where all faces have no area or there
    are none.
  """
  corner = coord.astype(np.float64)[faces]
  # Twice the area long.
  face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
  normal = np.stack(
    [
      np.bincount(faces.ravel(), np.repeat(axis, 3), minlength=len(coord))
      for axis in face.T
    ],
    axis=1,
  )
  length = np.linalg.norm(normal, axis=1, keepdims=True)
  unit = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
  return unit.astype(np.float32)


def read_vertex_ids(path: str | Path, coord: np.ndarray) -> np.ndarray:
  """Reads NYU40 ids from `<scene>_vh_clean_2.labels.ply`.

  Args:
    path: the file.
    coord: float32 [N, 3] of the scan; those of the file must be the same.

  Returns:
    int32 [N].

  Raises:
    DataError: the file is missing or damaged, has no property `label`, or has
      other vertices.
  """
  cloud = read_point_cloud(path)
  if cloud["label"] is None:
    raise DataError(f"{path}: vertices lack the property 'label'")
  if not np.array_equal(cloud["coord"], coord):
    raise DataError(
      f"{path}: coord has shape {cloud['coord'].shape} or other points,"
      f" expected the {coord.shape} of the scan"
    )
  return cloud["label"]


def read_aggregated_ids(
  segments: str | Path,
  aggregation: str | Path,
  label_map: LabelMap,
  num_points: int,
) -> np.ndarray:
  """Puts NYU40 ids together: vertex, segment, object, raw category, id.

  Args:
    segments: `<scene>_vh_clean_2.0.010000.segs.json`.
    aggregation: `<scene>.aggregation.json` (that of the release named
      `_vh_clean.aggregation.json` is of another mesh).
    label_map: NYU40 ids of the raw categories.
    num_points: number of vertices, N.

  Returns:
    int64 [N]; 0 = not annotated.

  Raises:
    DataError: a file is missing or malformed, or names a category that is not
      in the label map.
  """
  of_vertex = _field(segments, "segIndices", list)
  try:
    of_vertex = np.array(of_vertex, np.int64)
  except (OverflowError, TypeError, ValueError) as e:
    raise DataError(f"{segments}: segIndices: expected integers") from e
  if of_vertex.shape != (num_points,):
    raise DataError(
      f"{segments}: segIndices has shape {of_vertex.shape}, expected"
      f" {(num_points,)} as the scan has vertices"
    )
  names, segment = np.unique(of_vertex, return_inverse=True)
  of_segment = np.zeros(len(names), np.int64)
  for group in _field(aggregation, "segGroups", list):
    try:
      label = str(group["label"])
      members = np.array(group["segments"], np.int64)
    except (KeyError, OverflowError, TypeError, ValueError) as e:
      raise DataError(
        f"{aggregation}: segGroups: expected a label and a list of segments in"
        " each group"
      ) from e
    if label not in label_map.of_category:
      raise DataError(
        f"{aggregation}: segGroups: label {label!r} is no raw_category of"
        f" {label_map.path}"
      )
    of_segment[np.isin(names, members)] = label_map.of_category[label]
  return of_segment[segment]


def read_labels(
  folder: Path, scene_name: str, coord: np.ndarray, label_map: LabelMap | None
) -> np.ndarray | None:
  """Labels of a scan, from whichever of the two places there is.

  Args:
    folder: of the scan.
    scene_name: beginning of its file names.
    coord: float32 [N, 3] of its vertices.
    label_map: needed if there is no `_vh_clean_2.labels.ply`.

  Returns:
    int32 [N] in 0..19 or IGNORE_LABEL; None if there are no annotations (the
    test scans).

  Raises:
    DataError: a file is malformed, or there is no label map.
  """
  ply = folder / f"{scene_name}_vh_clean_2.labels.ply"
  aggregation = folder / f"{scene_name}.aggregation.json"
  if ply.is_file():
    return classes_of_nyu40(read_vertex_ids(ply, coord), f"{ply}: label")
  if not aggregation.is_file():
    return None
  if label_map is None:
    raise DataError(
      f"{aggregation}: has raw categories; without {ply.name} the label map is"
      " needed, expected scannetv2-labels.combined.tsv"
    )
  segments = folder / f"{scene_name}_vh_clean_2.0.010000.segs.json"
  ids = read_aggregated_ids(segments, aggregation, label_map, len(coord))
  return classes_of_nyu40(ids, f"{aggregation}: segGroups")


def read_alignment(path: str | Path) -> np.ndarray:
  """Reads axisAlignment of `<scene>.txt`; float64 [4, 4].

  It is the identity if the file has no such line (the test scans).

  Raises:
    DataError: the file is missing, or the matrix is not a rigid motion.
  """
  if "axisAlignment" not in read_text(path):
    return np.eye(4)
  matrix = read_axis_align(str(path), "")
  if not np.isfinite(matrix).all():
    raise DataError(f"{path}: axisAlignment: expected finite numbers")
  return matrix


def read_color_camera(path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads the colour camera of `<scene>.txt`.

  Returns:
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels.
    size: (H, W) of the images they are for.

  Raises:
    DataError: the file is missing, or lacks one of the numbers.
  """
  lines = (line.split("=", 1) for line in read_text(path).splitlines())
  info = {pair[0].strip(): pair[1] for pair in lines if len(pair) == 2}
  fields = ("fx", "fy", "mx", "my")
  names = [f"{field}_color" for field in fields]
  names += ["colorHeight", "colorWidth"]
  try:
    values = np.array([float(info[name]) for name in names])
  except (KeyError, ValueError) as e:
    raise DataError(
      f"{path}: expected lines <name> = <number> of {', '.join(names)} ({e})"
    ) from e
  positive = values[[0, 1, 4, 5]] > 0
  if not (np.isfinite(values).all() and positive.all()):
    raise DataError(f"{path}: {', '.join(names)}: expected numbers above 0")
  return values[:4], (int(values[4]), int(values[5]))


def label_image_reader(
  folder: Path, scene_name: str, label_map: LabelMap | None
) -> Callable[[str, tuple[int, int]], np.ndarray] | None:
  """Finds the 2D labels of a scan.

  They are `<scene>_2d-label-filt.zip` of the release, or what it unpacks to
  (`label-filt/<frame>.png`, raw ids), or exported images of NYU40 ids
  (`label/<frame>.png`).

  Args:
    folder: where to look.
    scene_name: beginning of the name of the zip file.
    label_map: needed for raw ids.

  Returns:
    A function of a frame's name and a size (H, W), to which labels are resized
    by nearest pixel. It returns int32 [H, W] in 0..19 or IGNORE_LABEL
    (everywhere, if there is no image of the frame), and raises DataError for a
    damaged one. None if there are no 2D labels.

  Raises:
    DataError: raw ids without a label map, or a damaged zip file.
  """
  archive = folder / f"{scene_name}_2d-label-filt.zip"
  raw, exported = folder / "label-filt", folder / "label"
  where = next((p for p in (archive, raw, exported) if p.exists()), None)
  if where is None:
    return None
  if where != exported and label_map is None:
    raise DataError(
      f"{where}: has raw ids, which need the label map, expected"
      " scannetv2-labels.combined.tsv"
    )

  def read(frame_name, size):
    name = f"label-filt/{frame_name}.png"
    image = _open_member(archive, name) if where == archive else None
    if where != archive:
      path = where / f"{frame_name}.png"
      image = _open_labels(path, path) if path.is_file() else None
    if image is None:
      return np.full(size, IGNORE_LABEL, np.int32)
    if image.min() < 0 or image.max() >= 1 << 16:
      raise DataError(f"{where}: {frame_name}: label: expected 16 bits")
    ids = image if where == exported else label_map.of_id[image]
    h, w = ids.shape
    rows = (2 * np.arange(size[0]) + 1) * h // (2 * size[0])
    columns = (2 * np.arange(size[1]) + 1) * w // (2 * size[1])
    ids = ids[rows[:, None], columns]
    return classes_of_nyu40(ids, f"{where}: {frame_name}: label")

  return read


def _open_member(archive: Path, name: str) -> np.ndarray | None:
  try:
    with zipfile.ZipFile(archive) as file:
      if name not in file.namelist():
        return None
      if file.getinfo(name).file_size > _MAX_IMAGE:
        raise ValueError(f"{name} has more than {_MAX_IMAGE} bytes")
      data = file.read(name)
  # A damaged archive can fail in any way that zip and zlib can.
  except Exception as e:
    raise DataError(f"{archive}: expected an intact zip file ({e})") from e
  return _open_labels(io.BytesIO(data), f"{archive}: {name}")


def _open_labels(file: Any, where: Any) -> np.ndarray:
  try:
    with Image.open(file, formats=["PNG"]) as image:
      if image.mode not in ("L", "P", "I;16", "I;16B", "I"):
        raise DataError(f"{where}: label has mode {image.mode}, expected ids")
      return np.array(image, np.int64)
  except (OSError, SyntaxError, ValueError) as e:
    if isinstance(e, DataError):
      raise
    raise DataError(f"{where}: expected an intact PNG image ({e})") from e


def _field(path: str | Path, name: str, kind: type) -> Any:
  """One field of a JSON object."""
  try:
    content = json.loads(read_text(path))
  except (RecursionError, ValueError) as e:
    if isinstance(e, DataError):
      raise
    raise DataError(f"{path}: expected a JSON object ({e})") from e
  value = content.get(name) if isinstance(content, dict) else None
  if not isinstance(value, kind):
    raise DataError(f"{path}: {name}: expected a {kind.__name__}")
  return value
