"""Point clouds in .ply and .npz files.

Dimension letters: N points, F triangles.
"""

import os

import numpy as np
import plyfile

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import DataError

_FIELDS = {
  "coord": ("x", "y", "z"),
  "color": ("red", "green", "blue"),
  "normal": ("nx", "ny", "nz"),
}


def read_point_cloud(
  path: str | os.PathLike,
) -> dict[str, np.ndarray | None]:
  """Reads a coloured point cloud or the vertices of a mesh.

  .ply: ascii or binary, element `vertex` with x y z, red green blue and maybe
  nx ny nz and label; element `face` if there is one (polygons become fans).
  .npz: arrays coord and color and maybe normal, label and faces.

  Colours are integers in 0..255, or floats in 0..1 (scaled) or 0..255
  (rounded): floats are taken for 0..1 if none is above 1.

  Args:
    path: file that ends in .ply or .npz.

  Returns:
    coord float32 [N, 3], color uint8 [N, 3], normal float32 [N, 3] of unit or
    zero length or None, label int32 [N] or None, faces int32 [F, 3] or None.

  Raises:
    DataError: if the file is missing or damaged, or lacks a field, or a field
      has a wrong shape, NaN, infinity, or values out of range.
  """
  path = os.fspath(path)
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in (".ply", ".npz"):
    raise DataError(f"{path}: expected a .ply or .npz file")
  if not os.path.isfile(path):
    raise DataError(f"{path}: no such file")
  raw = _read_ply(path) if suffix == ".ply" else _read_npz(path)
  return _checked(path, raw)


def write_point_cloud(
  path: str | os.PathLike,
  *,
  coord: np.ndarray,
  color: np.ndarray,
  normal: np.ndarray | None = None,
  label: np.ndarray | None = None,
) -> None:
  """Writes a binary little-endian .ply, whole or not at all.

  Args:
    path: file that ends in .ply; replaced if it exists.
    coord: float [N, 3].
    color: uint8 [N, 3], or floats as `read_point_cloud` takes them.
    normal: float [N, 3].
    label: integer [N].

  Raises:
    DataError: on the faults that `read_point_cloud` reports.
  """
  path = os.fspath(path)
  if not path.lower().endswith(".ply"):
    raise DataError(f"{path}: expected a name that ends in .ply")
  raw = dict(coord=coord, color=color, normal=normal, label=label, faces=None)
  cloud = _checked(path, raw)
  columns = {}
  for field, names in _FIELDS.items():
    if cloud[field] is not None:
      columns |= zip(names, cloud[field].T, strict=True)
  if cloud["label"] is not None:
    columns["label"] = cloud["label"]
  vertex = np.empty(
    len(cloud["coord"]), [(k, v.dtype) for k, v in columns.items()]
  )
  for name, column in columns.items():
    vertex[name] = column
  element = plyfile.PlyElement.describe(vertex, "vertex")

  with atomic_write(path) as f:
    plyfile.PlyData([element], byte_order="<").write(f)


def _read_ply(path):
  try:
    ply = plyfile.PlyData.read(path, mmap=False)
  # A damaged header can ask for anything, such as more memory than there is.
  except Exception as e:
    raise DataError(f"{path}: expected an intact PLY file ({e})") from e
  if "vertex" not in ply:
    raise DataError(f"{path}: expected an element 'vertex'")
  vertex = ply["vertex"].data
  have = vertex.dtype.names or ()
  raw = {}
  for field, names in _FIELDS.items():
    missing = [name for name in names if name not in have]
    if missing and field != "normal":
      raise DataError(
        f"{path}: vertices lack the property {missing[0]!r}, they have"
        f" {', '.join(have)}"
      )
    stack = None if missing else np.stack([vertex[n] for n in names], axis=1)
    raw[field] = stack
  raw["label"] = vertex["label"] if "label" in have else None
  raw["faces"] = _read_faces(path, ply["face"].data) if "face" in ply else None
  return raw


def _read_faces(path, face):
  for name in ("vertex_indices", "vertex_index"):
    if name in (face.dtype.names or ()):
      polygons = face[name]
      break
  else:
    raise DataError(f"{path}: faces lack the property 'vertex_indices'")
  if all(len(p) == 3 for p in polygons):
    return np.stack(list(polygons)) if len(polygons) else np.zeros((0, 3), int)
  fans = [
    np.stack([np.full(len(p) - 2, p[0]), p[1:-1], p[2:]], axis=1)
    for p in polygons
    if len(p) > 2
  ]
  return np.concatenate(fans) if fans else np.zeros((0, 3), int)


def _read_npz(path):
  fields = (*_FIELDS, "label", "faces")
  try:
    # Opened here, because numpy leaves the file open when it is damaged.
    with open(path, "rb") as f, np.load(f, allow_pickle=False) as archive:
      raw = {k: archive[k] for k in fields if k in archive.files}
  # A damaged archive can fail in any way that zip, zlib and numpy can.
  except Exception as e:
    raise DataError(f"{path}: expected an intact .npz file ({e})") from e
  for name in ("coord", "color"):
    if name not in raw:
      raise DataError(
        f"{path}: lacks the array {name!r}, it has {', '.join(raw) or 'none'}"
      )
  return dict.fromkeys(fields) | raw


def _checked(path, raw):
  """Converts to the dtypes promised, or says which field is wrong."""
  with np.errstate(over="ignore"):  # found by the check for infinity
    coord = np.asarray(raw["coord"])
    if coord.dtype.kind in "iuf":
      coord = coord.astype(np.float32)
  coord = _numbers(path, "coord", coord)
  if coord.ndim != 2 or coord.shape[1] != 3:
    raise DataError(f"{path}: coord: expected [N, 3], got {coord.shape}")
  if not len(coord):
    raise DataError(f"{path}: coord: expected at least one point, got none")
  n = len(coord)
  cloud = {"coord": coord, "normal": None, "label": None}
  cloud["color"] = _colors(path, _numbers(path, "color", raw["color"], (n, 3)))
  if raw["normal"] is not None:
    normal = _numbers(path, "normal", raw["normal"], (n, 3)).astype(np.float64)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.divide(
      normal, length, out=np.zeros_like(normal), where=length > 0
    )
    cloud["normal"] = normal.astype(np.float32)
  if raw["label"] is not None:
    label = _numbers(path, "label", raw["label"], (n,))
    cloud["label"] = _integers(path, "label", label)
  cloud["faces"] = raw["faces"]
  if raw["faces"] is not None:
    faces = _integers(path, "faces", _numbers(path, "faces", raw["faces"]))
    if faces.ndim != 2 or faces.shape[1] != 3:
      raise DataError(f"{path}: faces: expected [F, 3], got {faces.shape}")
    if faces.size and not (faces.min() >= 0 and faces.max() < n):
      raise DataError(
        f"{path}: faces: expected point numbers in 0..{n - 1}, got"
        f" {faces.min()}..{faces.max()}"
      )
    cloud["faces"] = faces
  return cloud


def _numbers(path, field, value, shape=None):
  value = np.asarray(value)
  if value.dtype.kind not in "iufb":
    raise DataError(f"{path}: {field}: expected numbers, got {value.dtype}")
  if shape is not None and value.shape != shape:
    raise DataError(
      f"{path}: {field}: shape {value.shape} does not fit coord's"
      f" {(shape[0], 3)}, expected {shape}"
    )
  if not np.isfinite(value).all():
    bad = int((~np.isfinite(value)).sum())
    raise DataError(
      f"{path}: {field}: expected finite numbers, got {bad} NaN or infinite"
    )
  return value


def _integers(path, field, value):
  limit = np.iinfo(np.int32)
  if value.size and (
    (value != np.floor(value)).any()
    or value.min() < limit.min
    or value.max() > limit.max
  ):
    raise DataError(f"{path}: {field}: expected integers of 32 bits")
  return value.astype(np.int32)


def _colors(path, color):
  low, high = color.min(), color.max()
  if low < 0 or high > 255:
    raise DataError(
      f"{path}: color: expected 0..255 or floats in 0..1, got {low}..{high}"
    )
  if color.dtype.kind == "f":
    color = np.rint(color * 255.0 if high <= 1 else color)
  return color.astype(np.uint8)
