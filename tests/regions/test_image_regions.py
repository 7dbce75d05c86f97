import sys

import numpy as np
import pytest

from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.types import DataError


def quadrants(rng, size=60):
  """Four colours and the numbers 0..3 of their squares, noise on top."""
  truth = np.zeros((size, size), int)
  truth[:, size // 2 :] += 1
  truth[size // 2 :] += 2
  colors = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220] * 3])
  image = colors[truth] + rng.normal(0, 3, (size, size, 3))
  return np.clip(image, 0, 255).astype(np.uint8), truth


def test_colours_are_regions():
  color, truth = quadrants(np.random.default_rng(0))
  region = image_regions(color)
  assert region.dtype == np.int32 and region.shape == truth.shape
  assert np.array_equal(np.unique(region), np.arange(4))
  pairs = np.zeros((4, 4), int)
  np.add.at(pairs, (region, truth), 1)
  # Smoothing moves borders by a pixel or two.
  assert pairs.max(axis=1).sum() > 0.93 * truth.size


def test_depth_parts_what_colour_does_not():
  color = np.full((60, 80, 3), 90, np.uint8)
  depth = np.full((60, 80), 3.0)
  depth[20:40, 30:60] = 1.5
  depth[5:8, 5:9] = 0  # a hole is no edge
  assert image_regions(color).max() == 0
  region = image_regions(color, depth)
  assert region.max() == 1
  assert (region[22:38, 32:58] == region[30, 40]).all()
  assert (region[:18] == region[0, 0]).all()
  # Slopes are no edges either.
  slope = np.linspace(1, 3, 80) * np.ones((60, 1))
  assert image_regions(color, slope).max() == 0


def test_unmeasured_depth_changes_nothing():
  color, _ = quadrants(np.random.default_rng(1))
  nothing = np.zeros(color.shape[:2], np.float32)
  assert np.array_equal(image_regions(color, nothing), image_regions(color))


def test_scale_and_min_size():
  rng = np.random.default_rng(2)
  color = rng.integers(0, 255, (80, 80, 3)).astype(np.uint8)
  fine = image_regions(color, scale=10, min_size=20)
  coarse = image_regions(color, scale=10, min_size=200)
  assert fine.max() > coarse.max()
  assert np.bincount(coarse.ravel()).min() >= 200
  assert np.bincount(fine.ravel()).min() >= 20


def test_faults_are_named(monkeypatch):
  color = np.zeros((4, 5, 3), np.uint8)
  with pytest.raises(DataError, match="color.*uint8.*float64"):
    image_regions(color / 255)
  with pytest.raises(DataError, match=r"depth.*\(5, 4\).*\(4, 5\)"):
    image_regions(color, np.zeros((5, 4)))
  monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
  with pytest.raises(ImportError, match=r"wsegpc-jax\[prepare\]"):
    image_regions(color)
