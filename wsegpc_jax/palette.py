"""Colours for classes, for numbers without names, and for what has none.

Dimension letters: K classes.
"""

import colorsys

import numpy as np

GREY = (128, 128, 128)  # not labelled, not scored, seen in no frame
RIGHT = (46, 160, 67)
WRONG = (207, 34, 46)

_HUES = 360
_TONES = ((0.8, 0.9), (0.5, 0.95), (0.9, 0.6))  # saturation and value


def palette(num_classes: int) -> np.ndarray:
  """uint8 [K, 3]: one colour a class, neighbours far apart in hue.

  Hues come near each other again after 8 and 13 classes (Fibonacci numbers, as
  the step is the golden angle); the tone then differs.
  """
  colors = [
    colorsys.hsv_to_rgb(i * 0.618034 % 1, *_TONES[i % len(_TONES)])
    for i in range(num_classes)
  ]
  return np.round(np.asarray(colors) * 255).astype(np.uint8)


def number_colors(number: np.ndarray) -> np.ndarray:
  """Vivid colours for superpoints or regions; neighbouring numbers differ most.

  Args:
    number: int, any shape; negative = none, which is grey.

  Returns:
    uint8 [..., 3]; numbers that are equal modulo 360 share a colour.
  """
  # Nearly the golden angle; prime to 360, so that all hues come before one
  # comes again.
  hue = np.arange(_HUES) * 223 % _HUES / _HUES
  value = np.abs((hue[:, None] + (0, 4 / 6, 2 / 6)) % 1 * 6 - 3) - 1
  table = (255 * np.clip(value, 0, 1)).astype(np.uint8)
  number = np.asarray(number)
  colors = table[number % _HUES]
  colors[number < 0] = GREY
  return colors
