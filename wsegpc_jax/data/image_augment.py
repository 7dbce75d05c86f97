"""Random changes of an image's colours for training.

Dimension letters: H and W image height and width. Every image is changed on
its own: the views of one scene, and the student's and the teacher's copy of one
view, each get draws of their own.
"""

import numpy as np

from wsegpc_jax.data.augment import shift_hue

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in pillow's "L" images


def color_jitter(
  image: np.ndarray,
  rng: np.random.Generator,
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue in a random order.

  The semantics are those of torchvision's ColorJitter: three factors, each
  uniform in [max(0, 1 - x), 1 + x], blend the image with black, with the mean
  of its greys, and with its greys; the hue is turned by a share of the circle
  that is uniform in [-hue, hue]. Values are clipped after every change and
  rounded once, at the end. The method uses (0.3, 0.3, 0.3, 0.1) for the student
  and half of each for the teacher.

  Args:
    image: uint8 [H, W, 3], RGB.
    rng: source of all randomness.
    brightness: largest change of the brightness factor.
    contrast: largest change of the contrast factor.
    saturation: largest change of the saturation factor.
    hue: largest turn of the hue either way, 0..0.5.

  Returns:
    uint8 [H, W, 3].
  """
  changes = (
    (_change_brightness, _draw_factor(brightness, rng)),
    (_change_contrast, _draw_factor(contrast, rng)),
    (_change_saturation, _draw_factor(saturation, rng)),
    (shift_hue, rng.uniform(-hue, hue)),
  )
  # Whole planes are contiguous, which is what makes numpy fast here.
  planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
  for index in rng.permutation(len(changes)):
    change, amount = changes[index]
    planes = change(planes, amount)
  jittered = np.rint(planes, out=planes).astype(np.uint8)
  return np.ascontiguousarray(jittered.transpose(1, 2, 0))


def _draw_factor(width: float, rng: np.random.Generator) -> float:
  return rng.uniform(max(0.0, 1 - width), 1 + width)


def _greys(planes: np.ndarray) -> np.ndarray:
  red, green, blue = planes
  return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _blend(
  planes: np.ndarray, other: np.ndarray | float, factor: float
) -> np.ndarray:
  """`other` at factor 0, the image at 1, beyond it above 1."""
  blended = planes * np.float32(factor)
  blended += other * np.float32(1 - factor)
  return np.clip(blended, 0, 255, out=blended)


def _change_brightness(planes: np.ndarray, factor: float) -> np.ndarray:
  return _blend(planes, 0.0, factor)


def _change_contrast(planes: np.ndarray, factor: float) -> np.ndarray:
  return _blend(planes, _greys(planes).mean(), factor)


def _change_saturation(planes: np.ndarray, factor: float) -> np.ndarray:
  return _blend(planes, _greys(planes), factor)
