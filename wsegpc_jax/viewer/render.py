"""Pictures of points without a display: splats into a z-buffer.

Dimension letters: N points, H and W picture height and width. Poses and
intrinsics are those of `data/links.py`.
"""

import numpy as np
from scipy.spatial import cKDTree

from wsegpc_jax.data.links import project_points

_MAX_RADIUS = 16  # pixels; a point next to the eye must not fill the picture
_CELL = 0.25  # metres, of the grid that looks for a ceiling


def visible_points(
  coord: np.ndarray,
  pose: np.ndarray,
  intrinsics: np.ndarray,
  size: tuple[int, int],
  *,
  point_size: float | np.ndarray = 0.0,
) -> np.ndarray:
  """Finds the point that each pixel shows; points are discs facing the camera.

  A nearer point hides those behind it; of points at the same depth, the first
  one is seen.

  Args:
    coord: float [N, 3], metres.
    pose: float64 [4, 4], camera-to-world.
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels.
    size: (H, W).
    point_size: diameter in metres, of all points or float [N] of each; 0
      covers one pixel.

  Returns:
    int64 [H, W], -1 where there is none.
  """
  height, width = size
  row, col, depth = project_points(coord, pose, intrinsics)
  with np.errstate(invalid="ignore"):
    near = (np.abs(row) < 1e6) & (np.abs(col) < 1e6)  # else NaN or far outside
  # The farthest first: what is drawn last stays.
  point = np.flatnonzero(near)[::-1]
  point = point[np.argsort(-depth[point], kind="stable")]
  row = np.rint(row[point]).astype(np.int64)
  col = np.rint(col[point]).astype(np.int64)
  depth = depth[point]
  diameter = np.broadcast_to(point_size, len(coord))[point]
  radius = np.rint(diameter / 2 * intrinsics[0] / depth)
  radius = np.clip(radius, 0, _MAX_RADIUS)

  seen = np.full((height, width), -1)
  buffer = np.full((height, width), np.inf)
  reach = int(radius.max(initial=0))
  for down in range(-reach, reach + 1):
    for right in range(-reach, reach + 1):
      # A pixel belongs to the disc when its centre does, with half a pixel.
      wide = np.flatnonzero((radius + 0.5) ** 2 >= down**2 + right**2)
      r, c = row[wide] + down, col[wide] + right
      inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
      r, c, wide = r[inside], c[inside], wide[inside]
      # At the same depth the first point wins, whatever offset came before.
      nearer = (depth[wide] < buffer[r, c]) | (
        (depth[wide] == buffer[r, c]) & (point[wide] < seen[r, c])
      )
      r, c, wide = r[nearer], c[nearer], wide[nearer]
      buffer[r, c], seen[r, c] = depth[wide], point[wide]
  return seen


def render_points(
  coord: np.ndarray,
  color: np.ndarray,
  pose: np.ndarray,
  intrinsics: np.ndarray,
  size: tuple[int, int],
  *,
  point_size: float | np.ndarray = 0.0,
  background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
  """uint8 [H, W, 3]: the points in their colours uint8 [N, 3].

  Arguments as of `visible_points`; `background` is RGB.
  """
  seen = visible_points(coord, pose, intrinsics, size, point_size=point_size)
  return paint(seen, color, background)


def paint(
  seen: np.ndarray,
  color: np.ndarray,
  background: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
  """uint8 [H, W, 3]: colours uint8 [N, 3] of the points int [H, W]."""
  # The last row is that of -1.
  table = np.concatenate([color, np.array([background], np.uint8)])
  return table[seen]


def point_spacing(coord: np.ndarray) -> float:
  """Median distance in metres to the fourth nearest neighbour.

  On a square grid this is its step; points at random are not closer together
  than that where it matters, in the gaps. 0 for fewer than five points.
  """
  if len(coord) < 5:
    return 0.0
  some = coord[:: max(len(coord) // 2000, 1)]
  distance, _ = cKDTree(coord).query(some, k=5)  # the first is the point
  return float(np.median(distance[:, 4]))


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Pose float64 [4, 4] of a camera at `eye` that looks at `target`, z up.

  Straight down or up, the top of the picture is +y.
  """
  forward = np.subtract(target, eye, dtype=np.float64)
  forward /= np.linalg.norm(forward)
  up = [0.0, 1.0, 0.0] if abs(forward[2]) > 1 - 1e-9 else [0.0, 0.0, 1.0]
  right = np.cross(forward, up)
  right /= np.linalg.norm(right)
  pose = np.eye(4)
  pose[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
  return pose


def has_ceiling(coord: np.ndarray) -> bool:
  """Whether the upper tenth of the height covers most of the floor plan."""
  low, high = coord.min(axis=0), coord.max(axis=0)
  cell = np.floor((coord[:, :2] - low[:2]) / _CELL).astype(np.int64)
  upper = coord[:, 2] > high[2] - 0.1 * (high[2] - low[2])
  plan = len(np.unique(cell, axis=0))
  return len(np.unique(cell[upper], axis=0)) > plan / 2


def room_view(coord: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Where to stand and what to look at to see into a room.

  The eye is over a corner of the floor plan, so that no wall comes between:
  below the ceiling if there is one, else well above the walls. Of the four
  corners it is the one with the fewest points in the way.

  Args:
    coord: float [N, 3], metres, z up.

  Returns:
    eye and target, float64 [3], and the angle of view in degrees.
  """
  low, high = (
    np.asarray(f(axis=0), np.float64) for f in (coord.min, coord.max)
  )
  extent = high - low
  target = low + extent * (0.5, 0.5, 0.3)
  if has_ceiling(coord):
    inset, z, degrees = 0.06, low[2] + 0.88 * extent[2], 80.0
  else:
    inset, degrees = 0.0, 60.0
    z = high[2] + 0.8 * max(*extent[:2], extent[2] / 2)
  corners = [
    np.append(low[:2] + extent[:2] * (x, y), z)
    for x in (inset, 1 - inset)
    for y in (inset, 1 - inset)
  ]
  eye = min(corners, key=lambda eye: _in_the_way(coord, eye, target))
  return eye, target, degrees


def _in_the_way(coord, eye, target) -> int:
  """Points in a narrow cone before the eye, in the first half of the way."""
  distance = np.linalg.norm(target - eye)
  if not distance:
    return 0
  forward = (target - eye) / distance
  offset = coord - eye
  along = offset @ forward
  aside = np.sqrt(np.maximum((offset**2).sum(axis=1) - along**2, 0))
  return int(((0 < along) & (along < distance / 2) & (aside < along / 2)).sum())


def top_view(coord: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Straight above the middle of the points; returns what `room_view` does."""
  low, high = (
    np.asarray(f(axis=0), np.float64) for f in (coord.min, coord.max)
  )
  middle = (low + high) / 2
  # Far up, so that walls hardly hide the floor beside them.
  far = 4 * max(*(high - low), 1e-3)
  return middle + (0, 0, far), middle, 30.0


def fitted(
  coord: np.ndarray,
  pose: np.ndarray,
  size: tuple[int, int],
  degrees: float,
) -> np.ndarray:
  """Intrinsics float64 [4] of a picture that just holds all the points.

  If some lie behind the camera, as in a room seen from inside, the angle in
  degrees across the shorter side of (H, W) counts instead.
  """
  height, width = size
  y, x, depth = project_points(coord, pose, np.array([1.0, 1.0, 0.0, 0.0]))
  middle = np.array([(width - 1) / 2, (height - 1) / 2])
  if depth.min() <= 0:
    focal = min(size) / 2 / np.tan(np.radians(degrees) / 2)
    return np.array([focal, focal, *middle])
  low, high = np.array([[f(x), f(y)] for f in (np.min, np.max)])
  extent = np.maximum(high - low, 1e-9)
  focal = 0.94 * min(width / extent[0], height / extent[1])
  return np.array([focal, focal, *(middle - focal * (low + high) / 2)])
