import numpy as np
import pytest

from wsegpc_jax.regions.quality import (
  pixel_pairs,
  point_pairs,
  region_quality,
)
from wsegpc_jax.types import DataError

NAMES = ("wall", "floor", "chair", "bed")


def test_by_hand():
  """Regions 3, 5 and 9 of labels 0 0 1, 1 1 2 2 and ignored only; one point of
  class 2 has no region. Region 5 is a tie, so it is of the lower class."""
  region = np.array([3, 3, 3, 5, 5, 5, 5, 9, -1])
  label = np.array([0, 0, 1, 1, 1, 2, 2, 255, 2])
  pairs = np.array([[0, 1, 2, 4, 5, 6, 7], [1, 2, 3, 5, 6, 8, 8]])
  quality = region_quality(region, label, 4, pairs=pairs)
  summary = quality.summary(NAMES)
  classes = summary.pop("classes")
  assert summary == {
    "elements": 9,
    "regions": 3,
    "elements_per_region": pytest.approx(8 / 3),
    "without_region": pytest.approx(1 / 9),
    "oracle_accuracy": pytest.approx((2 + 2) / 8),
    "oracle_miou": pytest.approx((2 / 3 + 2 / 5 + 0) / 3),
    "purity_weighted": pytest.approx(4 / 7),
    "purity": pytest.approx((2 / 3 + 2 / 4) / 2),
    # Borders are 1-2 and 4-5, inside regions. 6-8 is none.
    "boundary_recall": 0.0,
  }
  assert classes == {
    "wall": {
      "oracle_accuracy": 1.0,
      "oracle_iou": pytest.approx(2 / 3),
      "elements": 2,
      "regions": 1,
    },
    "floor": {
      "oracle_accuracy": pytest.approx(2 / 3),
      "oracle_iou": pytest.approx(2 / 5),
      "elements": 3,
      "regions": 1,
    },
    "chair": {
      "oracle_accuracy": 0.0,
      "oracle_iou": 0.0,
      "elements": 3,
      "regions": 0,
    },
    "bed": {
      "oracle_accuracy": None,
      "oracle_iou": None,
      "elements": 0,
      "regions": 0,
    },
  }


def test_borders_by_hand():
  """Of 0|1 1|2 2|0 two are followed; points without a region are apart."""
  label = np.array([0, 1, 1, 2, 2, 0, 255])
  region = np.array([0, 1, 1, 1, -1, -1, 5])
  pairs = np.stack([np.arange(6), np.arange(1, 7)])
  quality = region_quality(region, label, 3, pairs=pairs)
  assert (quality.borders, quality.found) == (3, 2)


def slowly(region, label, k):
  """Accuracy, weighted and plain purity from dictionaries of lists."""
  inside = {}
  for r, c in zip(region.ravel(), label.ravel(), strict=True):
    if r >= 0 and c != 255:
      inside.setdefault(r, []).append(c)
  most = {r: max(map(cs.count, range(k))) for r, cs in inside.items()}
  right = sum(most.values())
  sizes = {r: len(cs) for r, cs in inside.items()}
  return (
    right / (label != 255).sum(),
    right / sum(sizes.values()),
    np.mean([most[r] / sizes[r] for r in inside]),
  )


def random_case(rng, shape=(30, 20)):
  region = rng.integers(-1, 40, shape) * 7
  region[region < 0] = -1
  label = (region // 90 + (rng.random(shape) < 0.2)) % 4
  label[rng.random(shape) < 0.1] = 255
  return region, label.astype(rng.choice([np.uint8, np.int32]))


@pytest.mark.parametrize("seed", range(8))
def test_random_regions(seed):
  rng = np.random.default_rng(seed)
  region, label = random_case(rng)
  quality = region_quality(region, label, 4)
  summary = quality.summary(NAMES)
  names = "oracle_accuracy", "purity_weighted", "purity"
  found = [summary[name] for name in names]
  assert found == pytest.approx(slowly(region, label, 4))
  assert summary["regions"] == len(set(region[region >= 0]))
  # Nothing but the partition counts.
  renamed = np.where(region >= 0, rng.permutation(300)[region], -1)
  order = rng.permutation(region.size)
  again = region_quality(renamed.ravel()[order], label.ravel()[order], 4)
  again = again.summary(NAMES)
  assert again.pop("classes") == summary.pop("classes")
  assert again == pytest.approx(summary)


def test_counts_of_scenes_add_up():
  rng = np.random.default_rng(1)
  cases = [random_case(rng) for _ in range(3)]
  pairs = pixel_pairs(30, 20)
  parts = [region_quality(*case, 4, pairs=pairs) for case in cases]
  # The same in one: regions and pixels of the scenes are different ones.
  region = np.stack([np.where(r < 0, r, r + 1000 * i) for i, (r, _) in
                     enumerate(cases)])  # fmt: skip
  label = np.stack([label for _, label in cases])
  all_pairs = np.concatenate([pairs + 600 * i for i in range(3)], axis=1)
  whole = region_quality(region, label, 4, pairs=all_pairs).summary(NAMES)
  total = (parts[0] + parts[1] + parts[2]).summary(NAMES)
  assert total.pop("classes") == whole.pop("classes")
  assert total == pytest.approx(whole)


def test_perfect_and_single_regions():
  label = np.random.default_rng(2).integers(0, 4, 200)
  pairs = np.stack([np.arange(199), np.arange(1, 200)])
  best = region_quality(label, label, 4, pairs=pairs).summary(NAMES)
  for name in ("oracle_accuracy", "oracle_miou", "purity", "boundary_recall"):
    assert best[name] == 1
  one = region_quality(np.zeros(200, int), label, 4, pairs=pairs)
  one = one.summary(NAMES)
  share = np.bincount(label).max() / 200
  assert one["oracle_accuracy"] == one["purity"] == pytest.approx(share)
  assert one["boundary_recall"] == 0


def test_without_labels_or_regions():
  region = np.array([0, 0, 4, -1])
  summary = region_quality(region, None, 4).summary(NAMES)
  assert summary["regions"] == 2 and summary["elements_per_region"] == 1.5
  assert summary["oracle_accuracy"] is summary["purity"] is None
  none = region_quality(np.full(3, -1), np.array([0, 1, 255]), 4)
  none = none.summary(NAMES)
  assert none["oracle_accuracy"] == 0 and none["regions"] == 0
  assert none["purity"] is none["elements_per_region"] is None
  empty = region_quality(np.zeros(0, int), np.zeros(0, int), 4).summary(NAMES)
  assert empty["elements"] == 0 and empty["oracle_accuracy"] is None


def test_neighbours_of_pixels_and_points():
  assert set(map(tuple, pixel_pairs(2, 3).T.tolist())) == {
    (0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5),
  }  # fmt: skip
  assert pixel_pairs(1, 1).shape == (2, 0)
  coord = np.zeros((20, 3), np.float32)
  coord[:, 0] = np.arange(20) ** 1.01
  pairs = set(map(tuple, point_pairs(coord).T.tolist()))
  assert {(i, i + 1) for i in range(19)} <= pairs


def test_faults_are_named():
  region, label = np.zeros(4, int), np.zeros(4, int)
  with pytest.raises(DataError, match=r"label.*\(3,\).*\(4,\)"):
    region_quality(region, label[:3], 4)
  with pytest.raises(DataError, match="label.*integers.*float64"):
    region_quality(region, label * 1.0, 4)
  with pytest.raises(DataError, match="region.*integers"):
    region_quality(region * 1.0, label, 4)
  with pytest.raises(DataError, match="region.*-2"):
    region_quality(region - 2, label, 4)
  for bad in (-1, 4):
    with pytest.raises(DataError, match=rf"label.*0\.\.3 or 255.*{bad}"):
      region_quality(region, label + bad, 4)
  quality = region_quality(region, label, 4)
  with pytest.raises(DataError, match="4 names, got 2"):
    quality.summary(NAMES[:2])
  with pytest.raises(DataError, match="4 classes.*3"):
    quality + region_quality(region, label, 3)
