"""Laser scans in SemanticKITTI's layout; see `interop.semantic_kitti`.

Dimension letters: N points of a scene, P points of a scan, S scans.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.types import IGNORE_LABEL, DataError, Frame, Scene

# Entries of a split: a sequence, a scan, or scans from one to another.
_ENTRY = re.compile(r"([0-9]{2})(?:_([0-9]{6})(?:-([0-9]{6}))?)?")


@dataclasses.dataclass(frozen=True)
class SemanticKitti(Dataset):
  """Scans as scenes; a scene is called 08_000123.

  Attributes:
    label_map: of the labels that `load_scene` gives.
    past_scans: scans before a scene's own that are added to it.
  """

  label_map: kitti.LabelMap
  past_scans: int = 0

  def load_scene(self, scene_name: str) -> Scene:
    """Reads a scan, its labels if it has any, and scans before it if asked to.

    The P points of the scan itself come first, in the order of its file, so
    they represent the voxels that they share with others. The points of past
    scans follow, moved into the scan's frame; they are not labelled.
    """
    path = kitti.scan_path(self.root, scene_name)
    coord, intensity = kitti.read_scan(path)
    label, used = None, []
    if self.has_labels(scene_name):
      raw = kitti.read_labels(
        kitti.label_path(self.root, scene_name), len(coord)
      )
      label = self.label_map.to_class(raw)
      used = label[label != IGNORE_LABEL]
    if self.past_scans:
      past, past_intensity = self._past(scene_name)
      coord = np.concatenate([coord, past])
      intensity = np.concatenate([intensity, past_intensity])
      if label is not None:
        label = _pad(label, len(coord))
    return Scene(
      name=scene_name,
      coord=coord,
      color=None,
      normal=None,
      tags=np.isin(np.arange(len(self.classes)), used),
      label=label,
      intensity=intensity,
    )

  def load_frame(
    self,
    scene_name: str,
    frame_name: str,
    *,
    image_size: tuple[int, int] | None = None,
  ) -> Frame:
    raise DataError(
      f"{self.root}: scene {scene_name} has no frame {frame_name!r}; images of "
      "laser scans are not read"
    )

  def has_labels(self, scene_name: str) -> bool:
    return kitti.label_path(self.root, scene_name).is_file()

  def _past(self, scene_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Points of scans before, the latest first, in the scan's own frame."""
    sequence, scan = kitti.split_name(scene_name)
    poses = _poses(os.fspath(self.root), sequence)
    now = int(scan)
    if now >= len(poses):
      raise DataError(
        f"{self.root / 'sequences' / sequence / 'poses.txt'}: has {len(poses)} "
        f"poses, none for scan {scan}"
      )
    coords, intensities = [np.zeros((0, 3), np.float32)], [np.zeros(0, "f4")]
    for i in range(now - 1, max(now - self.past_scans, 0) - 1, -1):
      path = kitti.scan_path(self.root, kitti.scene_name(sequence, f"{i:06d}"))
      if not path.is_file():
        continue
      coord, intensity = kitti.read_scan(path)
      move = np.linalg.inv(poses[now]) @ poses[i]
      moved = coord.astype(np.float64) @ move[:3, :3].T + move[:3, 3]
      coords.append(moved.astype(np.float32))
      intensities.append(intensity)
    return np.concatenate(coords), np.concatenate(intensities)


def open_dataset(
  root: str | os.PathLike,
  *,
  label_map: str = "official",
  splits: Mapping[str, str | Sequence[str]] | None = None,
  past_scans: int = 0,
) -> SemanticKitti:
  """Opens the folder that has `sequences`; any part of the data set will do.

  Args:
    root: the folder.
    label_map: of the scenes' labels, see `interop.semantic_kitti`:
      "official", "spvnas", "multiscan", "motion", or a .yaml file. It is what
      is scored; `labels_of` gives others to train on.
    splits: scans of each split, a list or a text with commas in between. An
      entry is a sequence ("08"), a scan ("00_000002") or all scans from one to
      another ("00_000000-000099"). None = the official splits: train is 00 to
      07, 09 and 10, val is 08, trainval both, test 11 to 21.
    past_scans: see `SemanticKitti`; needs poses.txt and calib.txt.

  Raises:
    DataError: there are no scans, an option is unknown, or an entry of a split
      names no scan that is there.
  """
  root = Path(root)
  if not (isinstance(past_scans, int) and past_scans >= 0):
    raise DataError(f"past_scans={past_scans!r}: expected a number from 0")
  table = kitti.get_label_map(label_map)
  there = kitti.list_scans(root)
  if not there:
    raise DataError(f"{root}: no scans, expected sequences/NN/velodyne/*.bin")
  if splits:
    chosen = {
      name: _chosen(root, there, name, entries)
      for name, entries in splits.items()
    }
  else:
    official = {
      "train": kitti.TRAIN_SEQUENCES,
      "val": kitti.VAL_SEQUENCES,
      "trainval": sorted(kitti.TRAIN_SEQUENCES + kitti.VAL_SEQUENCES),
      "test": kitti.TEST_SEQUENCES,
    }
    chosen = {
      name: sum((there.get(s, ()) for s in sequences), ())
      for name, sequences in official.items()
    }
  return SemanticKitti(
    root, "semantic_kitti", table.classes, chosen, table, past_scans
  )


def labels_of(
  dataset: Dataset, label_map: str
) -> Callable[[Scene], np.ndarray]:
  """Labels by another map of the same classes, for training.

  For example "spvnas", with a data set that is scored by "official".

  Args:
    dataset: of this layout, possibly behind a cache.
    label_map: as for `open_dataset`.

  Returns:
    A function from a scene to int32 [N], IGNORE_LABEL = none.

  Raises:
    DataError: the map has other classes. The function: the scan's labels are
      missing or malformed.
  """
  table = kitti.get_label_map(label_map)
  if table.classes != tuple(dataset.classes):
    raise DataError(
      f"label map {label_map!r} has the classes {', '.join(table.classes)}; "
      f"expected those of the data set, {', '.join(dataset.classes)}"
    )

  def labels(scene: Scene) -> np.ndarray:
    points = kitti.count_points(kitti.scan_path(dataset.root, scene.name))
    raw = kitti.read_labels(kitti.label_path(dataset.root, scene.name), points)
    return _pad(table.to_class(raw), len(scene.coord))

  return labels


def _pad(label: np.ndarray, length: int) -> np.ndarray:
  """Labels of a scan, then IGNORE_LABEL for the points of past scans."""
  return np.pad(label, (0, length - len(label)), constant_values=IGNORE_LABEL)


def _chosen(root, there, split, entries) -> tuple[str, ...]:
  if isinstance(entries, str):
    entries = entries.split(",")
  chosen = []
  for entry in (str(e).strip() for e in entries):
    match = _ENTRY.fullmatch(entry)
    if not match:
      raise DataError(
        f"split {split!r} has {entry!r}, expected a sequence like '08', a scan "
        "like '00_000002' or scans like '00_000000-000099'"
      )
    sequence, first, last = match.groups()
    names = there.get(sequence, ())
    if first is not None:
      low, high = (f"{sequence}_{scan}" for scan in (first, last or first))
      names = tuple(name for name in names if low <= name <= high)
    if not names:
      raise DataError(f"split {split!r}: {root} has no scans of {entry!r}")
    chosen += names
  return tuple(dict.fromkeys(chosen))


# A text file of thousands of lines, needed for every scene of its sequence.
@functools.lru_cache(maxsize=32)
def _poses(root: str, sequence: str) -> np.ndarray:
  return kitti.read_poses(root, sequence)
