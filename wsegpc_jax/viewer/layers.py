"""What can be shown of a scene: a colour for each point, and a legend.

Pure functions of arrays; nothing here knows how it is shown. Dimension letters:
N points, K classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from wsegpc_jax.palette import GREY, RIGHT, WRONG, number_colors, palette
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, Scene
from wsegpc_jax.viewer.frames import LinkedFrame, first_link

_MANY_FRAMES = 24  # a legend of more lines is no help
# Confidence from 0 to 1, dark to light.
_RAMP = np.array([[30, 15, 75], [190, 55, 85], [252, 230, 130]], np.float64)


@dataclasses.dataclass(frozen=True)
class Layer:
  """One way to colour the points of a scene.

  Attributes:
    name: short name, unique in a scene: "truth".
    title: name for the screen.
    color: uint8 [N, 3].
    legend: text and colour of each thing shown; () where colours speak for
      themselves.
  """

  name: str
  title: str
  color: np.ndarray
  legend: tuple[tuple[str, tuple[int, int, int]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a network says of the points of a scene.

  Attributes:
    label: int32 [N] in 0..K-1, IGNORE_LABEL = none.
    probability: float32 [N], of that label; None if unknown.
  """

  label: np.ndarray
  probability: np.ndarray | None = None


def scene_layers(
  scene: Scene,
  classes: Sequence[str],
  *,
  pseudo: np.ndarray | None = None,
  prediction: Prediction | None = None,
  frames: Sequence[LinkedFrame] = (),
) -> list[Layer]:
  """All layers that a scene has something for, in the order of a menu.

  Args:
    scene: the scan.
    classes: K class names.
    pseudo: pseudo-labels int32 [N].
    prediction: of a network.
    frames: posed images with their links, see `frames.link_frames`.
  """
  layers = [Layer("color", "Colours", scene.color)]
  for name, title, label in (
    ("truth", "Truth", scene.label),
    ("pseudo", "Pseudo-labels", pseudo),
    ("prediction", "Prediction", prediction and prediction.label),
  ):
    if label is None:
      continue
    layers.append(class_layer(name, title, label, classes))
    if name != "truth" and scene.label is not None:
      title = f"{title}: right or wrong"
      right = agreement_layer(f"{name}_right", title, label, scene.label)
      layers.append(right)
  if prediction is not None and prediction.probability is not None:
    layers.append(confidence_layer(prediction.probability))
  if scene.superpoint is not None:
    layers.append(superpoint_layer(scene.superpoint))
  layers.append(normal_layer(scene.normal))
  return layers + (link_layers(frames) if frames else [])


def class_layer(
  name: str, title: str, label: np.ndarray, classes: Sequence[str]
) -> Layer:
  """Colours by class; the legend has the classes that occur and their shares.

  Args:
    name: of the layer.
    title: of the layer.
    label: int [N] in 0..K-1 or IGNORE_LABEL.
    classes: K class names.
  """
  known = label != IGNORE_LABEL
  table = palette(len(classes))
  color = np.full((len(label), 3), GREY, np.uint8)
  color[known] = table[label[known]]
  counts = np.bincount(label[known], minlength=len(classes))
  parts = [
    (classes[k], counts[k], tuple(table[k].tolist()))
    for k in np.flatnonzero(counts)
  ]
  parts.append(("not labelled", np.sum(~known), GREY))
  return Layer(name, title, color, _shares(parts))


def agreement_layer(
  name: str, title: str, label: np.ndarray, truth: np.ndarray
) -> Layer:
  """Right or wrong; points without truth are not scored.

  Args:
    name: of the layer.
    title: of the layer.
    label: int [N]; IGNORE_LABEL is wrong where there is a truth.
    truth: int [N], IGNORE_LABEL = not scored.
  """
  scored = truth != IGNORE_LABEL
  right = scored & (label == truth)
  wrong = scored & (label != truth)
  color = np.full((len(truth), 3), GREY, np.uint8)
  color[right], color[wrong] = RIGHT, WRONG
  # Shares of what is scored, so that "right" is the accuracy.
  legend = _shares(
    [("right", right.sum(), RIGHT), ("wrong", wrong.sum(), WRONG)]
  )
  if not scored.all():
    legend += (("not scored", GREY),)
  return Layer(name, title, color, legend)


def confidence_layer(probability: np.ndarray) -> Layer:
  """The probability of the predicted class, float [N] in 0..1."""
  stops = np.linspace(0, 1, len(_RAMP))

  def ramp(values):
    channels = [np.interp(values, stops, channel) for channel in _RAMP.T]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)

  ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
  legend = tuple(
    (f"{tick:.0%}", tuple(color))
    for tick, color in zip(ticks, ramp(ticks).tolist(), strict=True)
  )
  return Layer("confidence", "Confidence", ramp(probability), legend)


def superpoint_layer(superpoint: np.ndarray) -> Layer:
  """Superpoints int [N], negative = none; numbers that differ look apart."""
  inside = superpoint >= 0
  legend = () if inside.all() else (("no superpoint", GREY),)
  title = f"Superpoints: {len(np.unique(superpoint[inside]))}"
  return Layer("superpoint", title, number_colors(superpoint), legend)


def normal_layer(normal: np.ndarray) -> Layer:
  """Normals float [N, 3] of length 1: x is red, y green, z blue; 0 = unknown."""
  known = (normal != 0).any(axis=1)
  color = np.rint((np.clip(normal, -1, 1) + 1) * 127.5).astype(np.uint8)
  color[~known] = GREY
  axes = np.kron(np.eye(3), [[1], [-1]])  # +x, -x, +y, ...
  names = ("+x", "-x", "+y", "-y", "+z (up)", "-z (down)")
  chips = np.rint((axes + 1) * 127.5).astype(int).tolist()
  legend = [(n, tuple(c)) for n, c in zip(names, chips, strict=True)]
  if not known.all():
    legend.append(("unknown", GREY))
  return Layer("normal", "Normals", color, tuple(legend))


def link_layers(frames: Sequence[LinkedFrame]) -> list[Layer]:
  """Which frame a point is linked to, with which pixel, in which region.

  A point seen in several frames is shown by the first of them.
  """
  first = first_link(frames)
  pixel = np.full((len(first), 3), GREY, np.uint8)
  region = np.full(len(first), NO_REGION)
  offset = 0
  for index, linked in enumerate(frames):
    own = first == index
    at = tuple(linked.link[own].T)
    pixel[own] = linked.frame.color[at]
    if linked.frame.region is not None:
      number = linked.frame.region[at]
      # Regions of different frames are different regions.
      region[own] = np.where(number >= 0, number + offset, NO_REGION)
      offset += linked.frame.region.max() + 1
  colors = number_colors(np.arange(len(frames))).tolist()
  parts = [
    (f"frame {linked.frame.name}", np.sum(first == k), tuple(color))
    for k, (linked, color) in enumerate(zip(frames, colors, strict=True))
  ]
  none = [("in no frame", np.sum(first < 0), GREY)]
  shown = parts + none if len(frames) <= _MANY_FRAMES else none
  layers = [
    Layer(
      "frame", "Links: frame", number_colors(first), _shares(shown, len(first))
    ),
    Layer("pixel", "Links: pixel", pixel, _shares(none, len(first))),
  ]
  if any(linked.frame.region is not None for linked in frames):
    none = [("no region", np.sum(region < 0), GREY)]
    legend = _shares(none, len(first))
    layers.append(Layer("region", "2D regions", number_colors(region), legend))
  return layers


def _shares(parts, whole=None):
  """Legend of (text, count, colour): those that occur, with their shares."""
  whole = whole or sum(count for _, count, _ in parts)
  return tuple(
    (f"{text}, {100 * count / whole:.1f} %", color)
    for text, count, color in parts
    if count
  )
