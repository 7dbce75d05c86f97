"""ScanNet in the processed layout of the method's authors, read as it is.

    scannet_3d/{train,val,test}/<scene>.pth    torch-saved dict of arrays
    scannet_3d/initial_superpoints_wypr/<scene>_superpoint.npz      key a
    scannet_2d/<scene>/<scene>.txt             axisAlignment = 16 numbers
    scannet_2d/<scene>/color/<n>.jpg, depth/<n>.png (millimetres),
      pose/<n>.txt, label/<n>.png (NYU40 ids), label_sp_sparse/<n>.npz (key a)

The points and the poses of these files share one world, that of the release,
whose walls point anywhere: the official code links points to pixels as they
are, and turns the points by the axis alignment only to find the floor and the
walls that its augmentation drops. Here points, normals and poses are all
turned when they are read, so the links are the same and whatever looks for
walls finds them. The networks see a room turned about z by that angle, which
they are trained to bear; `align=False` gives them the room as the official
networks see it, and the augmentation then looks for walls at the sides of a
box that is not parallel to them.

docs/scannet.md tells more. Dimension letters: N points of a scene, H and W
image height and width.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import NUMPY_READING
from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.interop.capture import Camera, Source, load_posed, read_numbers
from wsegpc_jax.interop.scannet import CLASSES, classes_of_nyu40
from wsegpc_jax.interop.scannet_raw import read_alignment
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError, Frame, Scene

EVERY = 20  # the frames in use, of those whose numbers go up by one
# Of all scenes, for images of 480 x 640 pixels.
_CAMERA = Camera(np.array([577.870605, 577.870605, 319.5, 239.5]), (480, 640))
_SPLITS = ("train", "val", "test")
_MAX_BYTES = 1 << 30  # of the arrays of a scene; 500,000 points take 0.03 GiB


@dataclasses.dataclass(frozen=True)
class ScanNetDataset(Dataset):
  """ScanNet in the authors' processed layout.

  Attributes:
    align: whether points, normals and poses are turned so that walls follow x
      and y.
  """

  align: bool = True

  def load_scene(self, scene_name: str) -> Scene:
    """See `Dataset`; the scenes of "test" have neither labels nor tags."""
    path = self._points_path(scene_name)
    arrays = torch_pickle.load(path, max_bytes=_MAX_BYTES)
    if not isinstance(arrays, dict):
      raise DataError(
        f"{path}: holds a {type(arrays).__name__}, expected a dict of arrays"
      )
    coord = _numbers(path, arrays, "coord", (3,))
    n = len(coord)
    if not n:
      raise DataError(f"{path}: coord has no points, expected at least one")
    color = _numbers(path, arrays, "color", (3,), n)
    if color.min() < 0 or color.max() > 255:
      raise DataError(
        f"{path}: color has {color.min()}..{color.max()}, expected 0..255"
      )
    normal = _numbers(path, arrays, "normal", (3,), n)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    # Those of tiny triangles are shorter than one.
    normal = np.divide(
      normal, length, out=np.zeros_like(normal), where=length > 0
    )
    label = None
    if self.has_labels(scene_name):
      label = _labels(path, arrays, n)
    alignment = self._alignment(scene_name)
    turn = alignment[:3, :3].T
    return Scene(
      name=scene_name,
      coord=(coord @ turn + alignment[:3, 3]).astype(np.float32),
      color=np.rint(color).astype(np.uint8),
      normal=(normal @ turn).astype(np.float32),
      tags=np.isin(np.arange(len(CLASSES)), [] if label is None else label),
      label=label,
      superpoint=self._superpoints(scene_name, n),
      frames=_list_frames(self._frames_folder(scene_name)),
    )

  def load_frame(self, scene_name, frame_name, *, image_size=None) -> Frame:
    folder = self._frames_folder(scene_name)
    pose = _read_pose(folder, frame_name)
    if not np.isfinite(pose).all():
      path = folder / "pose" / f"{frame_name}.txt"
      raise DataError(f"{path}: pose is lost, expected finite numbers")
    source = Source(
      name=frame_name,
      color=folder / "color" / f"{frame_name}.jpg",
      depth=folder / "depth" / f"{frame_name}.png",
      pose=self._alignment(scene_name) @ pose,
    )
    frame = load_posed(source, _CAMERA, image_size)
    size = frame.depth.shape
    region = label = None
    if (folder / "label_sp_sparse").is_dir():
      region = _read_regions(folder, frame_name, source.depth, size)
    if (folder / "label").is_dir():
      path = folder / "label" / f"{frame_name}.png"
      label = classes_of_nyu40(_read_image(path, "label"), f"{path}: label")
      label = _nearest(label, size)
    return dataclasses.replace(frame, region=region, label=label)

  def has_labels(self, scene_name: str) -> bool:
    return scene_name not in self.splits.get("test", ())

  def _points_path(self, scene_name: str) -> Path:
    for split, scenes in self.splits.items():
      if scene_name in scenes:
        return self.root / "scannet_3d" / split / f"{scene_name}.pth"
    raise DataError(f"{self.root}: has no scene {scene_name!r}")

  def _frames_folder(self, scene_name: str) -> Path:
    return self.root / "scannet_2d" / scene_name

  def _alignment(self, scene_name: str) -> np.ndarray:
    folder = self._frames_folder(scene_name)
    # Scenes without images, such as those of the test split, have none.
    if not self.align or not folder.is_dir():
      return np.eye(4)
    return read_alignment(folder / f"{scene_name}.txt")

  def _superpoints(self, scene_name: str, num_points: int):
    folder = self.root / "scannet_3d" / "initial_superpoints_wypr"
    path = folder / f"{scene_name}_superpoint.npz"
    if not path.is_file():
      return None
    return _regions(path, (num_points,))


def open_dataset(
  root: str | os.PathLike, *, align: bool = True
) -> ScanNetDataset:
  """Lists the scenes of `<root>/scannet_3d/{train,val,test}`.

  Args:
    root: folder that has scannet_3d and scannet_2d.
    align: see the module.

  Raises:
    DataError: there is no such folder, or no scene in it.
  """
  root = Path(root)
  splits = {}
  for split in _SPLITS:
    folder = root / "scannet_3d" / split
    if folder.is_dir():
      paths = folder.glob("[!.]*.pth")
      splits[split] = tuple(sorted(path.stem for path in paths))
  if not any(splits.values()):
    raise DataError(
      f"{root / 'scannet_3d'}: has no train/<scene>.pth and no val/<scene>.pth,"
      " expected ScanNet as the authors process it; docs/scannet.md tells more"
    )
  return ScanNetDataset(root, "scannet", CLASSES, splits, align=align)


def _numbers(path, arrays, field, tail, n=None) -> np.ndarray:
  """Float64 [N, *tail], finite."""
  array = _array(path, arrays, field, "iuf")
  if array.ndim != 1 + len(tail) or array.shape[1:] != tail:
    raise DataError(f"{path}: {field} has shape {array.shape}, expected (N, 3)")
  if n is not None and len(array) != n:
    raise DataError(
      f"{path}: {field} has shape {array.shape}, expected {(n, *tail)} as coord"
    )
  array = array.astype(np.float64)
  if not np.isfinite(array).all():
    raise DataError(f"{path}: {field} has NaN or infinity, expected numbers")
  return array


def _labels(path, arrays, n) -> np.ndarray:
  array = _array(path, arrays, "semantic_gt20", "iuf").reshape(-1)
  if len(array) != n:
    raise DataError(
      f"{path}: semantic_gt20 has {len(array)} labels, expected {n} as coord"
    )
  # Newer versions of the authors' tool write -1 for what older ones ignore.
  known = ~np.isin(array, (IGNORE_LABEL, -1))
  bad = known & ~np.isin(array, np.arange(len(CLASSES)))
  if bad.any():
    raise DataError(
      f"{path}: semantic_gt20 has {array[bad][0]} at point {bad.argmax()},"
      f" expected 0..{len(CLASSES) - 1}, or {IGNORE_LABEL} or -1 to ignore"
    )
  return np.where(known, array, IGNORE_LABEL).astype(np.int32)


def _array(path, arrays, field, kinds) -> np.ndarray:
  if field not in arrays:
    have = ", ".join(map(str, list(arrays)[:20]))
    raise DataError(f"{path}: lacks {field}, it has {have}")
  array = arrays[field]
  if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
    found = getattr(array, "dtype", type(array).__name__)
    raise DataError(f"{path}: {field} is of {found}, expected numbers")
  return array


def _regions(path: Path, shape: tuple[int, ...]) -> np.ndarray:
  """Array `a`, of any shape of that size; int32, negative = NO_REGION."""
  try:
    with (
      NUMPY_READING,
      open(path, "rb") as file,
      np.load(file, allow_pickle=False) as content,
    ):
      array = content["a"]
  # A damaged archive can fail in any way that zip, zlib and numpy can.
  except Exception as e:
    raise DataError(
      f"{path}: expected an .npz file with an array a ({e})"
    ) from e
  if array.size != np.prod(shape) or array.dtype.kind not in "iuf":
    raise DataError(
      f"{path}: a is of {array.dtype} with shape {array.shape}, expected"
      f" {shape} integers"
    )
  # Comparing refuses NaN as well.
  if not (array <= np.iinfo(np.int32).max).all() or (array % 1).any():
    raise DataError(f"{path}: a has {array.max()}, expected 32-bit integers")
  array = np.where(array < 0, NO_REGION, array)
  return array.reshape(shape).astype(np.int32)


def _read_regions(folder, frame_name, depth_path, size) -> np.ndarray:
  path = folder / "label_sp_sparse" / f"{frame_name}.npz"
  # Stored flat: the depth image, of the same size, knows its edges.
  with Image.open(depth_path) as image:
    shape = image.size[::-1]
  return _nearest(_regions(path, shape), size)


def _read_image(path: Path, field: str) -> np.ndarray:
  try:
    with Image.open(path) as image:
      array = np.array(image)
  except (OSError, SyntaxError, ValueError) as e:
    raise DataError(f"{path}: {field}: expected an intact image ({e})") from e
  if array.ndim != 2:
    raise DataError(
      f"{path}: {field} has shape {array.shape}, expected one channel"
    )
  return array


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  h, w = array.shape
  rows = (2 * np.arange(size[0]) + 1) * h // (2 * size[0])
  columns = (2 * np.arange(size[1]) + 1) * w // (2 * size[1])
  return array[rows[:, None], columns]


def _list_frames(folder: Path) -> tuple[str, ...]:
  """Numbers of the frames in use, in order; none without images."""
  if not (folder / "color").is_dir():
    return ()
  names = [path.stem for path in (folder / "color").glob("[!.]*.jpg")]
  alien = [name for name in names if not name.isdecimal()]
  if alien:
    raise DataError(
      f"{folder / 'color' / alien[0]}.jpg: expected a number as its name"
    )
  frames = sorted((n for n in names if int(n) % EVERY == 0), key=int)
  for name in frames:
    for path in (folder / "depth" / f"{name}.png", folder / f"pose/{name}.txt"):
      if not path.is_file():
        raise DataError(f"{path}: not found, expected as color/ has the frame")
  good = [n for n in frames if np.isfinite(_read_pose(folder, n)).all()]
  if len(good) < len(frames):
    lost = ", ".join(n for n in frames if n not in good)
    found = f"{folder}: frames without a finite pose are left out: {lost}"
    _warn_once("%s", found)
  return tuple(good)


# A scene is loaded anew in every epoch.
_warn_once = functools.cache(logging.warning)


def _read_pose(folder: Path, frame_name: str) -> np.ndarray:
  """Returns a rigid motion, or numbers not all finite: tracking was lost."""
  path = folder / "pose" / f"{frame_name}.txt"
  values = read_numbers(path)
  if values.size != 16:
    raise DataError(f"{path}: pose has {values.size} numbers, expected 4x4")
  pose = values.reshape(4, 4)
  rotation = pose[:3, :3]
  if np.isfinite(pose).all() and not (
    np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6)
    and np.allclose(rotation @ rotation.T, np.eye(3), atol=0.01)
    and np.linalg.det(rotation) > 0
  ):
    raise DataError(
      f"{path}: pose is {pose.tolist()}, expected a rotation, a translation and"
      " a last row of 0 0 0 1"
    )
  return pose
