"""How well regions could serve: measures that need the true labels.

Counts of scenes or images add up and are divided once, at the end.

Dimension letters: N elements (points, or pixels in any shape), R regions, K
classes, P pairs of neighbours.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsegpc_jax.regions.graph import neighbor_graph
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError

_NEIGHBORS = 6  # nearest points among which borders are sought


@dataclasses.dataclass(frozen=True)
class RegionQuality:
  """Counts over one or more scenes; `a + b` are the counts of both.

  The label of a region is that most of its labelled elements have, the lowest
  class of several. `summary` tells what is made of the counts.

  Attributes:
    elements: N.
    assigned: elements that have a region.
    regions: regions that have an element.
    judged: regions that have a labelled element.
    purity: sum over the judged regions of the share, among the labelled
      elements of a region, of those with its label.
    labelled: int64 [K], elements of each class.
    regional: int64 [K], those that have a region.
    given: int64 [K], labelled elements of regions of each class.
    correct: int64 [K], elements of each class that lie in a region of it.
    class_regions: int64 [K], judged regions of each class.
    borders: pairs of neighbours of different classes.
    found: those of them that different regions, or none, have.
  """

  elements: int
  assigned: int
  regions: int
  judged: int
  purity: float
  labelled: np.ndarray
  regional: np.ndarray
  given: np.ndarray
  correct: np.ndarray
  class_regions: np.ndarray
  borders: int = 0
  found: int = 0

  def __add__(self, other: "RegionQuality") -> "RegionQuality":
    if len(self.labelled) != len(other.labelled):
      raise DataError(
        f"quality of {len(self.labelled)} classes cannot be added to that of"
        f" {len(other.labelled)}"
      )
    names = [field.name for field in dataclasses.fields(self)]
    return RegionQuality(
      *(getattr(self, name) + getattr(other, name) for name in names)
    )

  def summary(self, classes: Sequence[str]) -> dict[str, Any]:
    """The measures by name; None where there is nothing to measure.

    - regions, elements, elements_per_region (of those that have a region),
      without_region (share of all elements);
    - oracle_accuracy: the accuracy of giving each region its label, of all
      labelled elements; those without a region count as wrong;
    - purity_weighted: the same among elements that have a region, which is the
      mean purity of regions by their labelled elements; purity: the plain mean;
    - oracle_miou: mean IoU of the same labels over the classes that occur;
    - boundary_recall: share of the borders between classes that are borders
      between regions;
    - classes: by name oracle_accuracy, oracle_iou, elements and regions.
    """
    if len(classes) != len(self.labelled):
      raise DataError(
        f"classes: expected {len(self.labelled)} names, got {len(classes)}"
      )
    union = self.labelled + self.given - self.correct
    by_class = {
      name: {
        "oracle_accuracy": _ratio(self.correct[k], self.labelled[k]),
        "oracle_iou": _ratio(self.correct[k], union[k]),
        "elements": int(self.labelled[k]),
        "regions": int(self.class_regions[k]),
      }
      for k, name in enumerate(classes)
    }
    iou = [self.correct[k] / union[k] for k in np.flatnonzero(self.labelled)]
    return {
      "elements": int(self.elements),
      "regions": int(self.regions),
      "elements_per_region": _ratio(self.assigned, self.regions),
      "without_region": _ratio(self.elements - self.assigned, self.elements),
      "oracle_accuracy": _ratio(self.correct.sum(), self.labelled.sum()),
      "oracle_miou": _ratio(sum(iou), len(iou)),
      "purity_weighted": _ratio(self.correct.sum(), self.regional.sum()),
      "purity": _ratio(self.purity, self.judged),
      "boundary_recall": _ratio(self.found, self.borders),
      "classes": by_class,
    }


def region_quality(
  region: np.ndarray,
  label: np.ndarray | None,
  num_classes: int,
  *,
  pairs: np.ndarray | None = None,
) -> RegionQuality:
  """Counts how regions and labels agree.

  Args:
    region: int [N] or any other shape, from 0 with or without gaps, or
      NO_REGION.
    label: int, the shape of `region`, in 0..K-1 or IGNORE_LABEL; None if
      unknown, so that only regions are counted.
    num_classes: K.
    pairs: int [2, P], neighbours, positions in the flat arrays, to measure the
      recall of borders; see `point_pairs` and `pixel_pairs`.

  Raises:
    DataError: shapes differ, or values are no integers or out of range.
  """
  region, label = _checked(region, label, num_classes)
  assigned = region != NO_REGION
  _, own = np.unique(region[assigned], return_inverse=True)
  known = label != IGNORE_LABEL
  table = np.bincount(
    own[known[assigned]] * num_classes + label[known & assigned],
    minlength=(own.max() + 1 if len(own) else 0) * num_classes,
  ).reshape(-1, num_classes)
  size = table.sum(axis=1)
  best = table.argmax(axis=1)[size > 0]
  judged = table[size > 0]
  most = judged.max(axis=1)
  borders = found = 0
  if pairs is not None:
    a, b = pairs
    border = known[a] & known[b] & (label[a] != label[b])
    a, b = a[border], b[border]
    parted = (region[a] != region[b]) | ~assigned[a]
    borders, found = len(a), int(parted.sum())
  return RegionQuality(
    elements=region.size,
    assigned=int(assigned.sum()),
    regions=len(table),
    judged=len(judged),
    purity=float((most / size[size > 0]).sum()),
    labelled=np.bincount(label[known], minlength=num_classes),
    regional=table.sum(axis=0),
    given=_sum_by(best, size[size > 0], num_classes),
    correct=_sum_by(best, most, num_classes),
    class_regions=np.bincount(best, minlength=num_classes),
    borders=borders,
    found=found,
  )


def point_pairs(coord: np.ndarray) -> np.ndarray:
  """Neighbouring points, int64 [2, P], each pair once.

  Args:
    coord: float [N, 3], finite.
  """
  return neighbor_graph(np.asarray(coord, np.float64), _NEIGHBORS)[0]


def pixel_pairs(height: int, width: int) -> np.ndarray:
  """Pixels side by side or one above the other, int64 [2, P], once each."""
  index = np.arange(height * width).reshape(height, width)
  first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
  second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
  return np.stack([first, second])


def _checked(region, label, num_classes):
  """Flat int64 copies; a label of IGNORE_LABEL everywhere if it is None."""
  region = np.asarray(region)
  if label is None:
    label = np.full(region.shape, IGNORE_LABEL)
  label = np.asarray(label)
  if label.shape != region.shape:
    raise DataError(
      f"label: shape {label.shape} differs from region's {region.shape}"
    )
  for name, value in (("region", region), ("label", label)):
    if value.dtype.kind not in "iu":
      raise DataError(f"{name}: expected integers, got {value.dtype}")
  region = region.ravel().astype(np.int64)
  label = label.ravel().astype(np.int64)
  if (region < NO_REGION).any():
    raise DataError(
      f"region: expected numbers from 0, or {NO_REGION} for none, got"
      f" {region.min()}"
    )
  bad = ((label < 0) | (label >= num_classes)) & (label != IGNORE_LABEL)
  if bad.any():
    raise DataError(
      f"label: expected 0..{num_classes - 1} or {IGNORE_LABEL}, got"
      f" {label[bad][0]}"
    )
  return region, label


def _sum_by(key, value, length):
  total = np.zeros(length, np.int64)
  np.add.at(total, key, value)
  return total


def _ratio(part, whole) -> float | None:
  return float(part / whole) if whole else None
