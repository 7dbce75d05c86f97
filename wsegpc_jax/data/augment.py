"""Random changes of a scan's points and colours for training.

Source: Duan et al., "High-quality Pseudo-labeling for Point Cloud Segmentation
with Scene-level Annotation", TPAMI 2025; strengths as in its official code. The
colour transforms are those of Choy et al., "4D Spatio-Temporal ConvNets", CVPR
2019.

Dimension letter: N points. Arrays are numpy, `coord` float32 [N, 3] in metres
with z up, `color` float32 [N, 3] in 0..255. All randomness comes from the
generator that is passed in. No function writes to its arguments or returns
them: points and colours are always new float32 arrays.
"""

import numpy as np

from wsegpc_jax.sparse.voxelize import bounds

AUTO_CONTRAST = 0.2  # how often
SCALES = 0.8, 1.2  # of the student's view, smallest and largest
ALL = slice(None)


def color_auto_contrast(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  probability: float = AUTO_CONTRAST,
  points: np.ndarray | slice = ALL,
) -> np.ndarray:
  """Stretches each channel towards the full range 0..255.

  Args:
    color: [N, 3] in 0..255, float32 or uint8.
    rng: source of all randomness.
    probability: how often anything is changed.
    points: the M whose colours are wanted, as an index into `color`. What is
      stretched is the range of all.

  Returns:
    float32 [M, 3]: a blend of the colours and their stretched copy, one
    uniformly random share for all points. A constant channel has no range to
    stretch and stays as it is.
  """
  everything, color = color, np.array(color[points], np.float32)
  if rng.random() >= probability or not len(color):
    return color
  share = np.float32(rng.random())
  low, high = (np.asarray(b, np.float32) for b in bounds(everything))
  extent = high - low
  gain = np.float32(255) / np.where(extent > 0, extent, np.float32(255))
  low[extent == 0] = 0
  # (1 - share) * color + share * gain * (color - low), in two passes.
  color *= 1 + share * (gain - 1)
  color -= share * gain * low
  return np.clip(color, 0, 255, out=color)


def color_translation(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  ratio: float = 0.1,
  probability: float = 0.95,
) -> np.ndarray:
  """Adds one random offset per channel, uniform in +-255 * ratio.

  Args:
    color: float32 [N, 3] in 0..255.
    rng: source of all randomness.
    ratio: largest offset as a share of the full range.
    probability: how often anything is changed.

  Returns:
    float32 [N, 3], clipped to 0..255.
  """
  color = np.array(color, np.float32)
  if rng.random() >= probability:
    return color
  color += rng.uniform(-255 * ratio, 255 * ratio, 3).astype(np.float32)
  return np.clip(color, 0, 255, out=color)


def color_jitter(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  std: float = 0.05,
  probability: float = 0.95,
) -> np.ndarray:
  """Adds Gaussian noise to every channel of every point.

  Args:
    color: float32 [N, 3] in 0..255.
    rng: source of all randomness.
    std: standard deviation as a share of the full range.
    probability: how often anything is changed.

  Returns:
    float32 [N, 3], clipped to 0..255.
  """
  color = np.array(color, np.float32)
  if rng.random() >= probability:
    return color
  noise = rng.standard_normal(color.shape, dtype=np.float32)
  color += noise * np.float32(255 * std)
  return np.clip(color, 0, 255, out=color)


def shift_hue(
  planes: np.ndarray, turn: float, *, saturation: float = 1.0
) -> np.ndarray:
  """Turns the hue and scales the saturation in the HSV model; V is kept.

  Written in value and chroma instead of value and saturation: nothing divides
  by the value, and the unit of the colours does not matter. The way back is
  channel = V - C * clip(min(k, 4 - k), 0, 1), k = (n + 6 * hue) mod 6, with
  n = 5, 3, 1 for red, green, blue.

  Args:
    planes: float32 [3, ...], red, green and blue, not negative.
    turn: added to the hue; 1 is the whole circle.
    saturation: factor of the saturation, at least 0; the product is limited to
      1.

  Returns:
    float32 [3, ...], within the range of `planes`' full colours.
  """
  red, green, blue = planes
  value = planes.max(axis=0)
  chroma = value - planes.min(axis=0)
  # Greys have no hue; any will do, as their chroma stays 0.
  divisor = np.maximum(chroma, np.finfo(np.float32).tiny)
  # Masks are multiplied rather than selected by: twice as fast in numpy.
  red_leads = value == red
  green_leads = (value == green) & ~red_leads
  blue_leads = ~(red_leads | green_leads)
  sextant = red_leads * (green - blue)
  sextant += green_leads * (blue - red + 2 * divisor)
  sextant += blue_leads * (red - green + 4 * divisor)
  sextant /= divisor
  chroma = np.minimum(chroma * np.float32(saturation), value)
  shifted = np.empty_like(planes)
  for channel, offset in enumerate((5, 3, 1)):
    place = sextant + np.float32(offset + 6 * turn)
    place -= 6 * np.floor(place / 6)
    ramp = np.minimum(place, 4 - place)
    np.clip(ramp, 0, 1, out=ramp)
    np.subtract(value, chroma * ramp, out=shifted[channel])
  return shifted


def hue_saturation(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  hue: float = 0.5,
  saturation: float = 0.2,
) -> np.ndarray:
  """Turns the hue and scales the saturation of all points alike, every time.

  Args:
    color: float32 [N, 3] in 0..255.
    rng: source of all randomness.
    hue: largest turn either way, as a share of the circle.
    saturation: the factor is uniform in 1 +- saturation.

  Returns:
    float32 [N, 3] in 0..255, not rounded.
  """
  planes = np.ascontiguousarray(np.asarray(color, np.float32).T)
  turn = rng.uniform(-hue, hue)
  factor = rng.uniform(1 - saturation, 1 + saturation)
  return np.ascontiguousarray(shift_hue(planes, turn, saturation=factor).T)


def augment_color(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  auto_contrast: float = AUTO_CONTRAST,
  points: np.ndarray | slice = ALL,
) -> np.ndarray:
  """The whole colour augmentation of one view of a scan.

  Auto-contrast, translation, jitter, then hue and saturation, each with the
  method's strength.

  Args:
    color: [N, 3] in 0..255, float32 or uint8.
    rng: source of all randomness.
    auto_contrast: how often the colours are stretched.
    points: the M whose colours are wanted, as an index into `color`. All others
      count for the auto-contrast only.

  Returns:
    float32 [M, 3] in 0..255.
  """
  color = color_auto_contrast(
    color, rng, probability=auto_contrast, points=points
  )
  color = color_translation(color, rng)
  color = color_jitter(color, rng)
  return hue_saturation(color, rng)


def view_colors(
  color: np.ndarray,
  rng: np.random.Generator,
  *,
  student: np.ndarray,
  teacher: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Colours of the points that a student's and a teacher's view show.

  The student sees the teacher's colours augmented once more. Every change but
  the auto-contrast is of each point alone, so that only the points asked for
  are changed unless the student's view is to be stretched.

  Args:
    color: [N, 3] in 0..255, as scanned, float32 or uint8.
    rng: source of all randomness.
    student: int [S], which points the student's view shows.
    teacher: int [T], which points the teacher's view shows.

  Returns:
    Colours of the student's view, float32 [S, 3], and of the teacher's [T, 3].
  """
  stretched = rng.random(2) < AUTO_CONTRAST
  shown = np.full(len(color), stretched[1])
  shown[student] = shown[teacher] = True
  place = np.cumsum(shown) - 1
  seen = augment_color(color, rng, auto_contrast=stretched[0], points=shown)
  again = augment_color(
    seen, rng, auto_contrast=stretched[1], points=place[student]
  )
  return again, seen[place[teacher]]


def flip(rng: np.random.Generator, *, probability: float = 0.5) -> np.ndarray:
  """Mirrors x, and independently y, through the origin.

  Args:
    rng: source of all randomness.
    probability: how often each axis is mirrored.

  Returns:
    float64 [3, 3], for `move`.
  """
  mirrored = rng.random(2) < probability
  return np.diag([*np.where(mirrored, -1.0, 1.0), 1.0])


def rotation_z(
  rng: np.random.Generator, *, max_angle: float, probability: float = 0.5
) -> np.ndarray:
  """Turns about the z axis through the origin.

  Args:
    rng: source of all randomness.
    max_angle: the angle is uniform in +-max_angle, radians.
    probability: how often anything is turned.

  Returns:
    float64 [3, 3], for `move`.
  """
  angle = 0.0
  if rng.random() < probability:
    angle = rng.uniform(-max_angle, max_angle)
  cosine, sine = np.cos(angle), np.sin(angle)
  return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def move(points: np.ndarray, linear: np.ndarray) -> np.ndarray:
  """Applies a linear map to points or normals.

  Args:
    points: float32 [N, 3].
    linear: [3, 3].

  Returns:
    float32 [N, 3], points @ linear.T.
  """
  # Not a matmul: BLAS threads of many data workers would fight for the cores.
  x, y, z = np.ascontiguousarray(points.T, np.float32)
  rows = np.asarray(linear, np.float32)
  return np.stack([a * x + b * y + c * z for a, b, c in rows], axis=1)


def jitter(
  coord: np.ndarray,
  rng: np.random.Generator,
  *,
  sigma: float = 0.005,
  clip: float = 0.02,
) -> np.ndarray:
  """Moves every point by clipped Gaussian noise.

  Args:
    coord: float32 [N, 3], metres.
    rng: source of all randomness.
    sigma: standard deviation before clipping, metres.
    clip: largest shift along an axis, metres.

  Returns:
    float32 [N, 3].
  """
  noise = rng.standard_normal(coord.shape, dtype=np.float32)
  noise *= np.float32(sigma)
  noise = np.clip(noise, -clip, clip, out=noise)
  return np.add(coord, noise, out=noise)


def teacher_view(
  coord: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Where a scan's points are in the teacher's view: flips, a small turn.

  Args:
    coord: float32 [N, 3], metres.
    rng: source of all randomness.

  Returns:
    The new `coord`, and how normals turn: float64 [3, 3], for `move`.
  """
  mirrored = flip(rng)
  turn = rotation_z(rng, max_angle=np.pi / 36) @ mirrored
  return move(coord, turn), turn


def student_view(
  coord: np.ndarray,
  rng: np.random.Generator,
  *,
  max_rotation: float = np.pi / 6,
) -> tuple[np.ndarray, np.ndarray]:
  """Where they are in the student's view: flips, a turn, a scale and jitter.

  Args:
    coord: float32 [N, 3], metres, as scanned (not the teacher view's).
    rng: source of all randomness.
    max_rotation: largest angle about z, radians; pi / 6 while a teacher is
      followed, pi when training on pseudo-labels.

  Returns:
    The new `coord`, and how normals turn: float64 [3, 3], for `move`. They do
    not change under one factor for all axes, and jitter has no direction.
  """
  mirrored = flip(rng)
  turn = rotation_z(rng, max_angle=max_rotation) @ mirrored
  factor = rng.uniform(*SCALES)
  return jitter(move(coord, factor * turn), rng), turn
