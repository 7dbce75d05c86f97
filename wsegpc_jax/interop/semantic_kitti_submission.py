"""Submissions to the benchmark of SemanticKITTI: one zip archive.

  sequences/NN/predictions/FFFFFF.label    uint32 raw ids, one a point
  description.txt                          what the method is; may be missing

The benchmark takes the test sequences, 11 to 21; the same archive can be made
of any others.
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.types import IGNORE_LABEL, DataError

# A fixed date, so that one set of predictions always gives one archive.
_DATE = (1980, 1, 1, 0, 0, 0)
_DESCRIPTION = """\
method name: unnamed
method description:
project url:
publication url:
bibtex:
organization or affiliation:
"""


@dataclasses.dataclass(frozen=True)
class Submission:
  """What a submission holds.

  Attributes:
    scans, points: their numbers.
  """

  scans: int
  points: int


def submitted_scans(
  root: str | Path, sequences: Sequence[str]
) -> dict[str, int]:
  """Points of each scan that a submission must have, by scene name.

  Raises:
    DataError: the data set lacks a sequence, or a scan is malformed.
  """
  there = kitti.list_scans(root)
  for sequence in sequences:
    if sequence not in there:
      raise DataError(
        f"{Path(root) / 'sequences' / sequence / 'velodyne'}: has no scans, "
        f"expected those of sequence {sequence}"
      )
  names = [name for s in sequences for name in there[s]]
  return {
    name: kitti.count_points(kitti.scan_path(root, name)) for name in names
  }


def write_submission(
  path: str | Path,
  folder: str | Path,
  scans: dict[str, int],
  *,
  remap: kitti.LabelMap | None = None,
  description: str | None = None,
) -> None:
  """Packs predictions for the benchmark's server.

  Args:
    path: <name>.zip; it appears only when it is complete.
    folder: predictions, see `semantic_kitti.write_prediction`.
    scans: of `submitted_scans`.
    remap: the files hold 0 for none and class + 1 (as other programs write
      them), which become raw ids; None = they hold raw ids.
    description: text of description.txt; None = a form to fill in.

  Raises:
    DataError: a file is missing, of another length, or has an unknown id.
    OSError: the archive cannot be written.
  """
  path = Path(path)
  _check_suffix(path)
  sequences = sorted({kitti.split_name(name)[0] for name in scans})
  with (
    atomic_write(path) as file,
    zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
  ):
    # The validator of the benchmark asks for entries of the folders.
    for member in _folders(sequences):
      archive.writestr(_member(member, 0o40755), b"")
    text = _DESCRIPTION if description is None else description
    archive.writestr(_member("description.txt"), text.encode())
    for name, points in scans.items():
      source = kitti.prediction_path(folder, name)
      raw = kitti.read_labels(source, points)
      if remap is not None:
        raw = _from_learning_ids(raw, remap, source)
      _check_ids(raw, source)
      archive.writestr(
        _member(kitti.prediction_path("", name).as_posix()),
        raw.astype("<u4").tobytes(),
      )


def validate_submission(path: str | Path, scans: dict[str, int]) -> Submission:
  """Checks an archive as the benchmark's own validator does, and its ids.

  The folders must have entries of their own, and every scan one label a point.
  Other members are not looked at.

  Args:
    path: <name>.zip.
    scans: of `submitted_scans`.

  Raises:
    DataError: names the first member that is at fault.
  """
  path = Path(path)
  _check_suffix(path)
  try:
    with zipfile.ZipFile(path) as archive:
      members = {info.filename: info for info in archive.infolist()}
      for folder in _folders(sorted({kitti.split_name(n)[0] for n in scans})):
        if folder not in members:
          raise DataError(f"{path}: has no entry {folder!r} for the folder")
      for name, points in scans.items():
        member = kitti.prediction_path("", name).as_posix()
        if member not in members:
          raise DataError(f"{path}: lacks {member}")
        if members[member].file_size != 4 * points:
          raise DataError(
            f"{path}: {member} has {members[member].file_size} bytes, expected "
            f"{4 * points}: one uint32 label for each of the {points} points"
          )
        raw = np.frombuffer(archive.read(members[member]), "<u4")
        _check_ids(raw, f"{path}: {member}")
  except DataError:
    raise
  # A damaged archive can fail in any way that zip and struct can.
  except Exception as e:
    raise DataError(f"{path}: expected an intact zip archive ({e})") from e
  return Submission(len(scans), sum(scans.values()))


def _check_suffix(path: Path) -> None:
  if path.suffix != ".zip":
    raise DataError(f"{path}: expected a name that ends in .zip")


def _folders(sequences: Iterable[str]) -> list[str]:
  own = [(f"sequences/{s}/", f"sequences/{s}/predictions/") for s in sequences]
  return ["sequences/", *sum(own, ())]


def _member(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
  info = zipfile.ZipInfo(name, _DATE)
  info.compress_type = zipfile.ZIP_DEFLATED
  info.external_attr = mode << 16
  return info


def _from_learning_ids(raw, remap, path) -> np.ndarray:
  """Raw ids of 0 = none, 1..K = class + 1; instances stay."""
  ids, k = raw & np.uint32(0xFFFF), len(remap.classes)
  if ids.max() > k:
    raise DataError(
      f"{path}: has id {ids.max()}, expected 0..{k} (class + 1) to be remapped"
    )
  label = np.where(ids == 0, IGNORE_LABEL, ids.astype(np.int32) - 1)
  return remap.to_raw(label) | (raw & np.uint32(0xFFFF0000))


def _check_ids(raw, where) -> None:
  unknown = set(np.unique(raw & np.uint32(0xFFFF)).tolist()) - kitti.RAW_IDS
  if unknown:
    raise DataError(
      f"{where}: has id {min(unknown)}, expected raw ids such as 10 (car) or 40 "
      "(road); classes from a learning map have to be remapped"
    )
