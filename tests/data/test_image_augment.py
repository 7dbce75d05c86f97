"""Image jitter against pillow, colorsys and a plain per-pixel loop."""

import colorsys
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from wsegpc_jax.data import image_augment

STUDENT = dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
NOTHING = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


class _Scripted:
  """A generator whose draws sit at a chosen place of their range."""

  def __init__(self, place, order=(0, 1, 2, 3), permutation=None):
    self._place = place
    self._order = order
    if permutation is not None:
      self.permutation = permutation

  def uniform(self, low, high):
    return low + self._place * (high - low)

  def permutation(self, count):
    assert count == len(self._order)
    return np.array(self._order)


def _image(height=24, width=32, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _levels_apart(first, second):
  return np.abs(np.asarray(first, float) - np.asarray(second, float)).max()


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
  ("name", "enhance"),
  [
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
  ],
)
def test_each_blend_matches_pillow(name, enhance, place):
  image = _image()
  for width in (0.3, 0.9, 1.7):
    low = max(0.0, 1 - width)
    factor = low + place * (1 + width - low)
    expected = enhance(Image.fromarray(image)).enhance(factor)
    out = image_augment.color_jitter(
      image, _Scripted(place), **(NOTHING | {name: width})
    )
    # Pillow rounds its greys and their mean before it blends.
    assert _levels_apart(out, expected) <= 1 + abs(1 - factor)


@pytest.mark.parametrize("place", [0.0, 0.25, 0.8, 1.0])
def test_hue_matches_colorsys(place):
  image = _image(6, 7)
  turn = -0.4 + place * 0.8
  expected = np.empty(image.shape)
  for row, col in np.ndindex(6, 7):
    hue, sat, value = colorsys.rgb_to_hsv(*(image[row, col] / 255.0))
    expected[row, col] = colorsys.hsv_to_rgb((hue + turn) % 1.0, sat, value)
  out = image_augment.color_jitter(
    image, _Scripted(place), **(NOTHING | dict(hue=0.4))
  )
  assert _levels_apart(out, 255 * expected) <= 0.501


def _jitter_by_loop(image, order, factor, turn):
  """All four changes in `order`, pixel by pixel in python floats."""
  pixels = [[float(v) for v in pixel] for pixel in image.reshape(-1, 3)]

  def grey(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

  def blend(pixel, other):
    return [
      min(max(factor * v + (1 - factor) * other, 0.0), 255.0) for v in pixel
    ]

  for step in order:
    if step == 0:
      pixels = [blend(pixel, 0.0) for pixel in pixels]
    elif step == 1:
      mean = sum(grey(pixel) for pixel in pixels) / len(pixels)
      pixels = [blend(pixel, mean) for pixel in pixels]
    elif step == 2:
      pixels = [blend(pixel, grey(pixel)) for pixel in pixels]
    else:
      turned = []
      for pixel in pixels:
        hue, sat, value = colorsys.rgb_to_hsv(*(v / 255 for v in pixel))
        rgb = colorsys.hsv_to_rgb((hue + turn) % 1.0, sat, value)
        turned.append([255 * v for v in rgb])
      pixels = turned
  return np.array(pixels).reshape(image.shape)


def test_changes_are_applied_in_the_drawn_order():
  image = _image(4, 5)
  place = 0.9
  factor, turn = 0.7 + place * 0.6, -0.1 + place * 0.2
  results = {}
  for order in itertools.permutations(range(4)):
    expected = _jitter_by_loop(image, order, factor, turn)
    out = image_augment.color_jitter(image, _Scripted(place, order), **STUDENT)
    assert _levels_apart(out, expected) <= 0.501
    results[order] = out.tobytes()
  # The orders can be told apart, and a real generator draws all of them.
  assert len(set(results.values())) > 12
  rng = np.random.default_rng(0)
  scripted = _Scripted(place, permutation=rng.permutation)
  drawn = {
    image_augment.color_jitter(image, scripted, **STUDENT).tobytes()
    for _ in range(400)
  }
  assert drawn == set(results.values())


def test_nothing_to_change_changes_nothing():
  image = _image(64, 64)
  for seed in range(5):
    out = image_augment.color_jitter(
      image, np.random.default_rng(seed), **NOTHING
    )
    np.testing.assert_array_equal(out, image)


def test_factors_are_uniform_and_not_negative():
  image = np.full((2, 2, 3), 100, np.uint8)
  rng = np.random.default_rng(0)
  settings = NOTHING | dict(brightness=1.5)
  factors = np.array(
    [
      image_augment.color_jitter(image, rng, **settings)[0, 0, 0] / 100
      for _ in range(1000)
    ]
  )
  # Uniform in 0..2.5, not the mirror image of -0.5..0.
  counts = np.histogram(factors, bins=5, range=(0, 2.5))[0]
  assert factors.min() < 0.05
  assert 2.45 < factors.max() <= 2.5
  assert 150 < counts.min()
  assert counts.max() < 250


def test_hue_turns_both_ways_within_its_limit():
  image = np.full((1, 1, 3), (0, 200, 0), np.uint8)
  rng = np.random.default_rng(0)
  turns = []
  for _ in range(300):
    pixel = image_augment.color_jitter(image, rng, **(NOTHING | {"hue": 0.1}))
    turns.append(colorsys.rgb_to_hsv(*(pixel[0, 0] / 255.0))[0] - 1 / 3)
  assert -0.102 < min(turns) < -0.09
  assert 0.09 < max(turns) < 0.102


def test_generator_decides_alone_and_the_image_is_untouched():
  image = _image()
  before = image.copy()
  out = [
    image_augment.color_jitter(image, np.random.default_rng(seed), **STUDENT)
    for seed in (1, 1, 2)
  ]
  assert out[0].dtype == np.uint8
  assert out[0].shape == image.shape
  np.testing.assert_array_equal(out[0], out[1])
  assert (out[0] != out[2]).any()
  np.testing.assert_array_equal(image, before)


def test_strided_images_give_the_same_result():
  image = _image()
  flipped = np.ascontiguousarray(image[:, ::-1])
  jittered = [
    image_augment.color_jitter(a, np.random.default_rng(3), **STUDENT)
    for a in (image[:, ::-1], flipped)
  ]
  np.testing.assert_array_equal(*jittered)
