"""The bootstrap against enumeration of all draws, and its coverage."""

import itertools

import numpy as np
import pytest

from wsegpc_jax.metrics import bootstrap, segmentation
from wsegpc_jax.types import DataError


def random_matrices(seed, scenes, classes, *, right=30):
  """Confusion matrices in which classes are missing here and there."""
  rng = np.random.default_rng(seed)
  matrix = rng.integers(0, 9, (scenes, classes, classes))
  matrix += right * np.eye(classes, dtype=int)
  return matrix * (rng.random((scenes, classes, 1)) < 0.7)


def enumerated(a, b):
  """(mIoU, IoU [K]) differences of all S^S draws, scored one by one."""
  miou, iou = [], []
  for draw in itertools.product(range(len(a)), repeat=len(a)):
    of_a, of_b = (segmentation.scores(m[list(draw)].sum(0)) for m in (a, b))
    miou.append(of_b.miou - of_a.miou)
    iou.append(of_b.iou - of_a.iou)
  return np.array(miou), np.array(iou)


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_is_scored_as_a_split(seed):
  a, b = (random_matrices(seed + i, 4, 3) for i in (0, 100))
  draws = list(itertools.product(range(4), repeat=4))
  counts = np.array([np.bincount(d, minlength=4) for d in draws])
  miou, iou = enumerated(a, b)
  of_a, of_b = (bootstrap.resampled_iou(m, counts) for m in (a, b))
  np.testing.assert_allclose(of_b - of_a, iou, atol=1e-12)
  np.testing.assert_allclose(
    bootstrap.mean_iou(of_b) - bootstrap.mean_iou(of_a), miou, atol=1e-12
  )


@pytest.mark.parametrize("seed", range(4))
def test_intervals_equal_enumeration(seed):
  """The ends lie where the exact distribution has its quantiles."""
  a, b = (random_matrices(seed + i, 4, 2) for i in (0, 100))
  found = bootstrap.compare(a, b, draws=60_000, confidence=0.8, seed=seed)
  miou, iou = enumerated(a, b)
  assert found.miou == pytest.approx(
    segmentation.scores(b.sum(0)).miou - segmentation.scores(a.sum(0)).miou
  )
  columns = [(miou, found.miou_low, found.miou_high)]
  columns += zip(iou.T, found.iou_low, found.iou_high, strict=True)
  for exact, low, high in columns:
    exact = exact[~np.isnan(exact)]
    # The distribution has steps; 0.01 is five standard errors of a share.
    for end, tail in ((low, 0.1), (high, 0.9)):
      assert (exact < end - 1e-9).mean() <= tail + 0.01
      assert (exact <= end + 1e-9).mean() >= tail - 0.01
  better = (miou > 1e-12).mean() + (np.abs(miou) <= 1e-12).mean() / 2
  assert found.better == pytest.approx(better, abs=0.011)


def test_a_run_against_itself_is_exactly_zero():
  a = random_matrices(0, 10, 4)
  found = bootstrap.compare(a, a, draws=500)
  assert found.miou == found.miou_low == found.miou_high == 0
  assert (found.iou == 0).all() and (found.iou_low == 0).all()
  assert found.better == 0.5


def test_swapping_the_runs_swaps_signs():
  a, b = (random_matrices(i, 12, 4) for i in (0, 1))
  one, two = bootstrap.compare(a, b), bootstrap.compare(b, a)
  assert one.miou == -two.miou
  assert one.miou_low == pytest.approx(-two.miou_high)
  np.testing.assert_allclose(one.iou_low, -two.iou_high)
  assert one.better == pytest.approx(1 - two.better)


def test_the_seed_decides():
  a, b = (random_matrices(i, 12, 4) for i in (0, 1))
  one, same, other = (
    bootstrap.compare(a, b, draws=300, seed=s) for s in (3, 3, 4)
  )
  assert one.miou_low == same.miou_low and one.miou_low != other.miou_low
  # However many are drawn at a time.
  assert one.miou == other.miou


def test_a_class_that_no_scene_has():
  a = random_matrices(0, 6, 3)
  a[:, 2] = a[:, :, 2] = 0
  found = bootstrap.compare(a, a, draws=50)
  assert np.isnan(found.iou[2]) and np.isnan(found.iou_low[2])
  assert not np.isnan(found.miou)


def test_points_without_a_class_are_wrong():
  """Four of ten points of the class are given none: IoU 6 / 10."""
  matrix = np.array([[[6, 0, 4], [0, 5, 0]]])
  iou = bootstrap.resampled_iou(matrix, np.array([[1], [3]]))
  np.testing.assert_allclose(iou, [[0.6, 1], [0.6, 1]])
  scores = segmentation.scores(matrix[0, :, :2], missed=matrix[0, :, 2])
  np.testing.assert_allclose(scores.iou, iou[0])
  np.testing.assert_allclose(scores.accuracy, [0.6, 1])
  assert scores.points == 15 and scores.allacc == pytest.approx(11 / 15)


def test_pairing_tells_more_than_two_intervals():
  """Scenes differ a lot, the runs differ by a little in each of them."""
  rng = np.random.default_rng(0)
  right = rng.integers(100, 900, 40)
  a = np.zeros((40, 2, 2), int)
  a[:, 0, 0], a[:, 0, 1], a[:, 1, 1] = right, 1000 - right, 1000
  b = a.copy()
  b[:, 0, 0] += 20
  b[:, 0, 1] -= 20
  found = bootstrap.compare(a, b, draws=2000)
  assert 0 < found.miou_low < found.miou < found.miou_high
  # One run alone is far less sure than that.
  counts = rng.multinomial(40, np.full(40, 1 / 40), 2000)
  alone = bootstrap.mean_iou(bootstrap.resampled_iou(a, counts))
  assert np.ptp(np.quantile(alone, [0.025, 0.975])) > 4 * (
    found.miou_high - found.miou_low
  )


def test_coverage():
  """90 % intervals hold the true difference in about 90 % of the trials."""

  def draw(rng, scenes):
    """Two runs on scenes of varying difficulty; B is a little better."""
    points = rng.integers(200, 2000, (scenes, 3))
    level = rng.beta(6, 3, (scenes, 1))
    out = np.zeros((2, scenes, 3, 3), int)
    for run, gain in enumerate((0, 0.05)):
      right = rng.binomial(points, np.minimum(level + gain, 0.98))
      for c in range(3):
        out[run, :, c, c] = right[:, c]
        out[run, :, c, (c + 1) % 3] = points[:, c] - right[:, c]
    return out

  rng = np.random.default_rng(1)
  a, b = draw(rng, 50_000)
  truth = (
    segmentation.scores(b.sum(0)).miou - segmentation.scores(a.sum(0)).miou
  )
  assert truth > 0.01
  hits = 0
  for trial in range(300):
    a, b = draw(rng, 40)
    found = bootstrap.compare(a, b, draws=400, confidence=0.9, seed=trial)
    hits += found.miou_low <= truth <= found.miou_high
  # 300 trials: a standard error of 0.017; percentile intervals of 40 scenes
  # are a little narrow.
  assert 0.83 <= hits / 300 <= 0.96


def test_what_cannot_be_compared():
  a = random_matrices(0, 4, 3)
  for b in (a[:3], random_matrices(0, 4, 2)):
    with pytest.raises(DataError, match="same scenes and classes"):
      bootstrap.compare(a, b)
  with pytest.raises(DataError, match="same scenes"):
    bootstrap.compare(a[:0], a[:0])
  for wrong in (dict(draws=0), dict(confidence=1.0)):
    with pytest.raises(ValueError):
      bootstrap.compare(a, a, **wrong)
