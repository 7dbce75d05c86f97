"""Pictures of rooms, as PNG within the page.

One camera a room, so that its pictures can be compared point by point; what is
empty around the room is cropped and transparent. Colours of classes are those
of `palette`, only darkened along edges in depth; the number of a class stands
where much of it is seen, so that the colour is not the only carrier.

Dimension letters: N points, K classes, H and W height and width of a picture.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from wsegpc_jax.data.links import project_points
from wsegpc_jax.palette import GREY, palette
from wsegpc_jax.types import IGNORE_LABEL
from wsegpc_jax.viewer import render

_SUPERSAMPLING = 2
_MOST_POINTS = 500_000  # of a room that are drawn
_SIZE = 2.0  # of a point, in spacings of the points: surfaces look closed
_EDGE = 110.0  # how strongly edges in depth are darkened
_MARGIN = 6  # pixels around the room
_FONT = 1 / 17  # of class numbers, of the width of the picture
_LEAST = 0.004  # share of a picture that a class needs to be numbered


def label_colors(label: np.ndarray, num_classes: int) -> np.ndarray:
  """uint8 [..., 3]: colours of int [...] classes, grey where there is none."""
  known = (label >= 0) & (label < num_classes)
  table = np.concatenate([palette(num_classes), np.uint8([GREY])])
  return table[np.where(known, label, num_classes)]


class Camera:
  """The view of one room, from which any colours of its points are painted."""

  def __init__(self, coord: np.ndarray, size: tuple[int, int] = (420, 560)):
    """Finds what each pixel shows.

    Args:
      coord: float [N, 3], metres, z up; at least one point.
      size: largest (H, W) of the pictures.
    """
    s = _SUPERSAMPLING
    large = (s * size[0], s * size[1])
    drawn = np.arange(len(coord))
    if len(coord) > _MOST_POINTS:
      rng = np.random.default_rng(0)
      drawn = np.sort(rng.choice(drawn, _MOST_POINTS, replace=False))
      coord = coord[drawn]
    eye, target, degrees = render.room_view(coord)
    if np.array_equal(eye, target):  # all points in one place
      eye = target + (0.0, 0.0, 1.0)
    pose = render.look_at(eye, target)
    intrinsics = render.fitted(coord, pose, large, degrees)
    seen = render.visible_points(
      coord,
      pose,
      intrinsics,
      large,
      point_size=_SIZE * render.point_spacing(coord),
    )
    rows, cols = _content(seen, s, s * _MARGIN)
    seen = seen[rows, cols]
    _, _, depth = project_points(coord, pose, intrinsics)
    self._shade = _edges(np.append(depth, np.nan)[seen])
    # Points by their number in the whole room; -1 stays.
    self._seen = np.append(drawn, -1)[seen]

  @property
  def size(self) -> tuple[int, int]:
    """(H, W) of the pictures."""
    height, width = self._seen.shape
    return height // _SUPERSAMPLING, width // _SUPERSAMPLING

  def paint(self, color: np.ndarray, *, shaded: bool = True) -> np.ndarray:
    """uint8 [H, W, 4]: the points in their colours uint8 [N, 3]."""
    s = _SUPERSAMPLING
    table = np.concatenate([color, np.zeros((1, 3), np.uint8)])
    picture = table[self._seen].astype(np.float64)
    if shaded:
      picture *= self._shade[..., None]
    alpha = (self._seen >= 0).astype(np.float64)
    height, width = self.size

    def pool(a):
      return a.reshape(height, s, width, s, -1).sum(axis=(1, 3))

    # The mean over what is covered, or the background would show in it.
    weight = pool(alpha)
    mean = pool(picture * alpha[..., None]) / np.maximum(weight, 1)
    alpha = 255 * weight / s**2
    return np.rint(np.concatenate([mean, alpha], axis=2)).astype(np.uint8)

  def labels(self, label: np.ndarray) -> np.ndarray:
    """int [H, W]: labels int [N] of what is seen; IGNORE_LABEL where nothing."""
    table = np.append(label, IGNORE_LABEL)
    return table[self._seen[::_SUPERSAMPLING, ::_SUPERSAMPLING]]


def _content(seen, multiple: int, margin: int) -> tuple[slice, slice]:
  """Rows and columns that hold what is seen, of sizes that s divides."""
  slices = []
  for axis in (1, 0):
    there = np.flatnonzero((seen >= 0).any(axis=axis))
    length = seen.shape[1 - axis]
    first, last = (there[0], there[-1] + 1) if len(there) else (0, length)
    first, last = max(first - margin, 0), min(last + margin, length)
    first -= first % multiple
    last += -last % multiple
    slices.append(slice(first, last))
  return slices[0], slices[1]


def _edges(depth: np.ndarray) -> np.ndarray:
  """Brightness 0..1 of pixels: darker where neighbours are nearer.

  Boucheny, Interactive scientific visualization of large datasets (2009),
  eye-dome lighting, with a ring of eight pixels. Depth float [H, W] in metres
  along the optical axis, NaN where there is nothing.
  """
  far = np.log(depth)
  padded = np.pad(far, 2, constant_values=np.nan)
  height, width = depth.shape
  total = np.zeros_like(far)
  for down, right in ((-2, 0), (2, 0), (0, -2), (0, 2)):
    for step in (1, 2):
      d, r = down * step // 2, right * step // 2
      other = padded[2 + d : 2 + d + height, 2 + r : 2 + r + width]
      # Nothing beside a point makes no edge.
      nearer = np.nan_to_num(far - other, nan=0.0)
      total += np.clip(nearer - 0.003, 0, 0.02)
  return 1 - 0.65 * (1 - np.exp(-_EDGE * total / 8))


def numbered(
  picture: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
  """The picture with the number of each class where much of it is seen.

  Args:
    picture: uint8 [H, W, 3] or [H, W, 4].
    label: int [H, W], IGNORE_LABEL = none.
    num_classes: K; numbers begin at 1.
  """
  image = Image.fromarray(picture)
  draw = ImageDraw.Draw(image)
  size = max(round(_FONT * picture.shape[1]), 14)
  font = ImageFont.load_default(size)
  for k in range(num_classes):
    mask = label == k
    if mask.mean() < _LEAST:
      continue
    # A hole of a pixel in a sampled surface is none.
    mask = ndimage.binary_closing(np.pad(mask, 4), iterations=3)[4:-4, 4:-4]
    inner = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    if inner.max() < size / 2.5:
      continue
    row, col = np.unravel_index(inner.argmax(), inner.shape)
    draw.text(
      (int(col), int(row)),
      str(k + 1),
      font=font,
      anchor="mm",
      fill=(255, 255, 255),
      stroke_width=max(size // 9, 2),
      stroke_fill=(20, 20, 20),
    )
  return np.asarray(image)


def enlarged(picture: np.ndarray, width: int) -> np.ndarray:
  """At least that wide, each pixel a square of a whole number of pixels."""
  factor = max(-(-width // picture.shape[1]), 1)
  return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def data_uri(picture: np.ndarray) -> str:
  """A PNG uint8 [H, W, 3] or [H, W, 4] within an address.

  A picture with an alpha channel, of a room, is reduced to 256 colours, which
  makes it five times smaller; the colour of a class moves by a few levels.
  """
  image = Image.fromarray(picture)
  if picture.shape[2] == 4:
    image = image.quantize(
      256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
  file = io.BytesIO()
  image.save(file, "PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def share_right(label: np.ndarray, truth: np.ndarray) -> float:
  """Share of what has a truth that is labelled right; NaN without any."""
  scored = truth != IGNORE_LABEL
  return float((label == truth)[scored].mean()) if scored.any() else np.nan


def seen_classes(
  labels: Sequence[np.ndarray], num_classes: int
) -> tuple[int, ...]:
  """Classes that occur in any of the arrays, in order."""
  found = set()
  for label in labels:
    found.update(np.unique(label).tolist())
  return tuple(k for k in sorted(found) if 0 <= k < num_classes)
