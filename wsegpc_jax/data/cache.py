"""Decoded scenes and frames on disk, mapped into memory when they are read.

Decoding JPEG and PNG images and unpickling scenes takes most of the time that
a training sample takes. A cache keeps the arrays as they come out, so that
every later epoch reads them through the operating system's page cache.
"""

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import NUMPY_READING, atomic_write
from wsegpc_jax.types import DataError, Frame, Scene

_RECORD = "cache.json"
VERSION = 1  # to be raised whenever the files change


@dataclasses.dataclass(frozen=True)
class CachedDataset(Dataset):
  """A data set read through a cache; arrays are read-only.

  Attributes:
    source: the data set itself.
    folder: of the cache.
  """

  source: Dataset
  folder: Path

  def load_scene(self, scene_name: str) -> Scene:
    folder = self.folder / scene_name / "scene"
    if not folder.is_dir():
      _write(folder, self.source.load_scene(scene_name))
    return Scene(**_read(folder))

  def load_frame(
    self,
    scene_name: str,
    frame_name: str,
    *,
    image_size: tuple[int, int] | None = None,
  ) -> Frame:
    size = "x".join(map(str, image_size)) if image_size else "full"
    folder = self.folder / scene_name / f"frames_{size}" / frame_name
    if not folder.is_dir():
      frame = self.source.load_frame(
        scene_name, frame_name, image_size=image_size
      )
      _write(folder, frame)
    return Frame(**_read(folder))

  def has_labels(self, scene_name: str) -> bool:
    return self.source.has_labels(scene_name)


def cached(source: Dataset, folder: str | os.PathLike) -> CachedDataset:
  """The data set, read through a cache in `folder`, which is made if need be.

  The cache fills as scenes are read. It does not notice that the data set
  changes: delete it then. Several processes may share one.

  Raises:
    DataError: the folder is the cache of another data set, or no cache.
    OSError: it cannot be written.
  """
  folder = Path(folder)
  path = folder / _RECORD
  record = {
    "version": VERSION,
    "root": os.path.abspath(source.root),
    "kind": type(source).__name__,
    "classes": list(source.classes),
    # Options of the reader, which change what it gives.
    "options": {
      f.name: repr(getattr(source, f.name))
      for f in dataclasses.fields(source)
      if f.name not in ("root", "name", "classes", "splits")
    },
  }
  if not path.exists():
    # Hidden: what another process, which starts at the same time, writes.
    others = [p for p in folder.glob("*") if not p.name.startswith(".")]
    if others and not path.exists():
      raise DataError(
        f"{folder}: holds other files, expected an empty folder or a cache"
      )
    with atomic_write(path, "w") as file:
      json.dump(record, file, indent=1)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise DataError(f"{path}: cannot be read ({error})") from error
  if found != record:
    root = found.get("root") if isinstance(found, dict) else None
    raise DataError(
      f"{path}: is the cache of {root!r}, not of {record['root']!r} as it is "
      f"read now; delete {folder}, or use another"
    )
  return CachedDataset(
    root=source.root,
    name=source.name,
    classes=source.classes,
    splits=source.splits,
    source=source,
    folder=folder,
  )


def _write(folder: Path, item: Scene | Frame) -> None:
  """An array a file, the rest as JSON; whole or not at all."""
  temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
  temporary.mkdir(parents=True)
  try:
    rest = {}
    for field in dataclasses.fields(item):
      value = getattr(item, field.name)
      if isinstance(value, np.ndarray):
        np.save(temporary / f"{field.name}.npy", value)
      else:
        rest[field.name] = value
    (temporary / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
    try:
      os.rename(temporary, folder)
    except OSError:
      # Another thread was faster.
      if not folder.is_dir():
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path) -> dict:
  try:
    fields = json.loads((folder / "rest.json").read_text(encoding="utf-8"))
    for path in folder.glob("*.npy"):
      with NUMPY_READING:
        fields[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError) as error:
    raise DataError(
      f"{folder}: the cache is damaged ({error}); delete it"
    ) from error
  if "frames" in fields:
    fields["frames"] = tuple(fields["frames"])
  return fields
