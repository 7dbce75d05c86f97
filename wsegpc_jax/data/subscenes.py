"""Cutting one capture into several scenes with tags of their own.

Scene tags teach only through what differs between scenes. Where captures are
few but large, tags of their parts say more (sub-cloud labels, as in Wei et al.,
"Multi-Path Region Mining for Weakly Supervised 3D Semantic Segmentation on
Point Clouds", CVPR 2020).

Dimension letters: N points of the capture, F frames, K classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wsegpc_jax.types import IGNORE_LABEL

MIN_POINTS = 1000  # fewer are no part of their own
_BOX_POINTS = 30  # of a box that make its class present in a part
_BOX_SHARE = 0.2  # and the share of the box's points, unless there are many
_MANY_POINTS = 200
_LABEL_POINTS = 30
_PLANE_POINTS = 100
_SEEN_SHARE = 0.5  # of what a frame shows; then it belongs to the part
_FEWEST_FRAMES = 3


@dataclasses.dataclass(frozen=True)
class Box:
  """An annotated box, parallel to the axes.

  Attributes:
    label: class index.
    center, size: float64 [3], metres.
  """

  label: int
  center: np.ndarray
  size: np.ndarray

  def contains(self, coord: np.ndarray) -> np.ndarray:
    """bool [N]: which points [N, 3] lie in it, 2 cm around it included."""
    return (np.abs(coord - self.center) <= self.size / 2 + 0.02).all(1)


def grid_parts(coord: np.ndarray, size: float) -> dict[str, np.ndarray]:
  """Cuts points along x and y into equal cells of about `size` metres.

  Args:
    coord: float [N, 3], metres, z up.
    size: edge of a cell; the cells of an axis are equally long.

  Returns:
    bool [N] by name, "00", "01", ...: number of the cell along x, then along
    y. Cells with fewer than 1000 points are left out.
  """
  low, extent = coord[:, :2].min(0), np.ptp(coord[:, :2], axis=0)
  number = np.maximum(1, np.round(extent / size)).astype(int)
  width = np.maximum(extent / number, 1e-9)
  cell = np.minimum(((coord[:, :2] - low) / width).astype(int), number - 1)
  parts = {}
  for i, j in np.ndindex(*number):
    inside = (cell == (i, j)).all(1)
    if np.count_nonzero(inside) >= MIN_POINTS:
      parts[f"{i}{j}" if number.max() <= 10 else f"{i:02}{j:02}"] = inside
  return parts


def tags_from_labels(label: np.ndarray, num_classes: int) -> np.ndarray:
  """bool [K]: classes with at least 30 points, label int [n] of a part."""
  number = np.bincount(label[label != IGNORE_LABEL], minlength=num_classes)
  return number[:num_classes] >= _LABEL_POINTS


def tags_from_boxes(
  coord: np.ndarray,
  inside: np.ndarray,
  boxes: Sequence[Box],
  planes: Sequence[tuple[int, np.ndarray]],
  num_classes: int,
) -> np.ndarray:
  """Tags of a part, from boxes around objects and from floor and walls found.

  A box counts if at least 30 of its points and a fifth of them, or 200, lie in
  the part.

  Args:
    coord: float [N, 3], of the whole capture.
    inside: bool [N], the part.
    boxes: of the objects.
    planes: (class index, bool [N]) of structures that no box surrounds.
    num_classes: K.

  Returns:
    bool [K].
  """
  tags = np.zeros(num_classes, bool)
  for box in boxes:
    points = box.contains(coord)
    number = np.count_nonzero(points & inside)
    share = number / max(np.count_nonzero(points), 1)
    if number >= _BOX_POINTS and (
      share >= _BOX_SHARE or number >= _MANY_POINTS
    ):
      tags[box.label] = True
  for label, points in planes:
    if np.count_nonzero(points & inside) >= _PLANE_POINTS:
      tags[label] = True
  return tags


def frames_of_part(seen: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Frames that show mostly this part: tags of a scene hold for its images.

  Args:
    seen: bool [F, N], points that each frame shows.
    inside: bool [N], the part.

  Returns:
    int [f], ascending: frames at least half of whose points are in the part,
    and if there are fewer than three, those with the largest share.
  """
  share = seen[:, inside].sum(1) / np.maximum(seen.sum(1), 1)
  best = np.argsort(-share, kind="stable")
  number = max(_FEWEST_FRAMES, np.count_nonzero(share >= _SEEN_SHARE))
  return np.sort(best[:number])
