"""What people know of a capture: class names, boxes around objects, or labels.

Dimension letters: N points of the capture, K classes.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from wsegpc_jax.data.subscenes import Box
from wsegpc_jax.interop.capture import read_info
from wsegpc_jax.types import IGNORE_LABEL, DataError


@dataclasses.dataclass(frozen=True)
class Annotation:
  """What is known of a capture: tags bool [K], and perhaps more.

  Attributes:
    tags: bool [K].
    label: int32 [N], or None.
    boxes: around objects, in the aligned world.
  """

  tags: np.ndarray
  label: np.ndarray | None = None
  boxes: tuple[Box, ...] = ()


def read_annotation(
  scene: str,
  classes: Sequence[str],
  cloud: Mapping[str, np.ndarray | None],
  *,
  tags: str | None = None,
  tags_pickle: str | None = None,
  labels: str | None = None,
) -> Annotation:
  """What is known of a capture, from one of three sources.

  Args:
    scene: its name, in `tags_pickle`.
    classes: the K class names.
    cloud: of `read_points`; its coord [N, 3] and label.
    tags: class names, separated by commas.
    tags_pickle: mmdetection3d info file that lists the scene's boxes; wall and
      floor, which no box surrounds, are added, names of no class left out.
    labels: .npy file, integers [N], or "points" for the label of `cloud`.

  Raises:
    DataError: a file is missing or malformed, a name is no class, or there is
      no tag.
  """
  if labels:
    own = labels == "points"
    label = cloud["label"] if own else _load_npy(labels)
    return _from_labels(labels, label, len(cloud["coord"]), classes)
  boxes = []
  if tags_pickle:
    boxes = _pickle_boxes(tags_pickle, scene)
    # Boxes are drawn around objects only; every room has these two.
    names = sorted({name for name, _, _ in boxes} | {"wall", "floor"})
  else:
    names = [name.strip() for name in tags.split(",") if name.strip()]
  # "shower curtain" and "showercurtain" are one class.
  known = {_plain(c): i for i, c in enumerate(classes)}
  unknown = sorted(set(names) - {n for n in names if _plain(n) in known})
  if unknown and not tags_pickle:
    raise DataError(f"--tags: no class {unknown[0]!r} in {', '.join(classes)}")
  if unknown:
    print(f"{tags_pickle}: left out, being no class: {', '.join(unknown)}")
  present = np.zeros(len(classes), bool)
  present[[known[_plain(n)] for n in names if _plain(n) in known]] = True
  if not present.any():
    raise DataError("--tags: expected at least one class")
  return Annotation(
    present,
    boxes=tuple(
      Box(known[_plain(name)], center, size)
      for name, center, size in boxes
      if _plain(name) in known
    ),
  )


def _from_labels(where, label, n, classes):
  if label is None or label.shape != (n,) or label.dtype.kind not in "iu":
    found = "none" if label is None else f"{label.dtype} {label.shape}"
    raise DataError(
      f"{where}: labels: expected integers {(n,)} for as many points,"
      f" got {found}"
    )
  known = label != IGNORE_LABEL
  if ((label < 0) | (label >= len(classes)))[known].any():
    raise DataError(
      f"{where}: labels: expected 0..{len(classes) - 1} or {IGNORE_LABEL}, got"
      f" {label[known].min()}..{label[known].max()}"
    )
  tags = np.isin(np.arange(len(classes)), label[known])
  if not tags.any():
    raise DataError(f"{where}: labels: expected some that are not ignored")
  return Annotation(tags, label.astype(np.int32))


def _plain(name):
  name = re.sub(r"[\s_-]", "", name.lower())
  # A misspelling in the info files of mmdetection3d.
  return name.replace("showercurtrain", "showercurtain")


def _pickle_boxes(path, scene):
  """(name, centre, size) of each box of a scene."""
  entry, categories = read_info(path, scene)
  try:
    names = {index: name for name, index in categories.items()}
    boxes = []
    for box in entry["instances"]:
      numbers = np.asarray(box["bbox_3d"], np.float64)
      if numbers.shape not in ((6,), (7,)) or not np.isfinite(numbers).all():
        raise ValueError
      boxes.append((names[box["bbox_label_3d"]], numbers[:3], numbers[3:6]))
    return boxes
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise DataError(
      f"{path}: expected instances with bbox_label_3d and bbox_3d, six or seven"
      " numbers"
    ) from e


def _load_npy(path):
  try:
    array = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as e:
    raise DataError(f"{path}: expected an intact .npy file ({e})") from e
  if not isinstance(array, np.ndarray):
    raise DataError(f"{path}: is an archive, expected one array, an .npy file")
  return array
