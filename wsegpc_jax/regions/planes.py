"""Floor, ceiling and walls of a room, found without labels.

A real scan bends: a floor can be a bowl 10 cm deep. So a plane is only the
start; its relief, the distance of the surface from the plane as a picture with
10 cm pixels, grows outwards from the points that fit the plane.

Dimension letters: N points, M cells (one point of each small cube, so that the
sizes of surfaces do not depend on how densely they were scanned).
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from wsegpc_jax.regions.graph import grid_cells
from wsegpc_jax.types import NO_REGION, DataError

_CELL = 0.05  # metres; edge of the cube that one point stands for
_PIXEL = 0.1  # metres; of the picture of a plane
_GAP = 3  # pixels; parts of a wall up to twice this far apart are connected
_STEP = 0.03  # metres; a surface stays this close to the relief around it
_TOUCH = 0.09  # metres; cells of one surface this close belong to one part
_MAX_STEP = 0.02  # metres; between parts of one surface, across a gap
_TIGHT = 0.02  # metres; so close to a surface, normals no longer tell
_MAX_RELIEF = 0.2  # metres
_AGREE_PLANE = np.cos(np.deg2rad(20))  # normals, to find a plane
_AGREE_POINT = np.cos(np.deg2rad(30))  # normals, to belong to it
_OUTSIDE = 0.05  # share of the cells that may lie beyond floor or ceiling
_MIN_CEILING = 1.6  # metres above the floor
_MIN_SEED = 0.5  # square metres
_MAX_LEAN = 0.2  # of a wall: cosine between its normal and up
_MIN_WALL_WIDTH = 1.0  # metres
_MAX_WALL_NEED = 1.2  # metres; walls are this high or half the room's height
_MAX_EXTENT = 1000.0  # metres; pictures of planes would not fit in memory
_SIDES = (0.12, 0.5)  # metres; where to look for things before and behind


@dataclasses.dataclass(frozen=True)
class _Surface:
  """A plane normal . p = offset with the relief and extent of its surface.

  Attributes:
    kind: "floor", "ceiling" or "wall".
    normal: [3], unit length.
    offset: metres.
    axes: [2, 3], of the picture, perpendicular to the normal; for a wall the
      second one points up.
    origin: [2], metres along the axes, corner of the picture.
    relief: [U, V], metres off the plane, filled beyond the surface.
    cells: int [m], the cells that lie on it.
    pixel: int [m, 2], their pixels.
  """

  kind: str
  normal: np.ndarray
  offset: float
  axes: np.ndarray
  origin: np.ndarray
  relief: np.ndarray
  cells: np.ndarray
  pixel: np.ndarray


def structural_planes(
  coord: np.ndarray, normal: np.ndarray, *, up_axis: int = 2
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Finds floor, ceiling and walls.

  The floor is the largest nearly level plane (some degrees of tilt are fine)
  that has next to nothing below it, the ceiling likewise above. Walls are
  perpendicular to the floor, at least 1 m wide and half as high as the room (or
  1.2 m), whatever their direction; parts that lie far apart on one plane belong
  to one wall. What has something right before and right behind it, as the side
  of a table has, must reach nearly as high as the room to be a wall.

  Args:
    coord: float [N, 3], metres.
    normal: float [N, 3], unit length; the sign does not matter.
    up_axis: the axis that points up.

  Returns:
    int32 [N], the plane of each point or NO_REGION, and the kind of each plane:
    "floor", "ceiling" or "wall".

  Raises:
    DataError: on wrong shapes, values that are not finite, or a cloud larger
      than 1 km, which may be in millimetres.
  """
  coord, normal = _checked(coord, normal, up_axis)
  if len(coord) < 3:
    return np.full(len(coord), NO_REGION, np.int32), ()
  cell, _ = grid_cells(coord, _CELL)
  points, normals = coord[cell], normal[cell]

  up = np.array([0.0, 0.0, 1.0])
  floor = _level_plane(points, normals, up)
  if floor is not None:
    up = floor[0]
  base = floor[1] if floor is not None else np.percentile(points @ up, 1)
  ceiling = _level_plane(points, normals, -up)
  if ceiling is not None and -ceiling[1] < base + _MIN_CEILING:
    ceiling = None

  surfaces = []
  free = np.ones(len(points), bool)
  for kind, plane in (("floor", floor), ("ceiling", ceiling)):
    surface = plane and _grow(kind, points, normals, free, *plane, up)
    if surface:
      surfaces.append(surface)
      free[surface.cells] = False
  surfaces += _walls(points, normals, free, up, base)
  kinds = tuple(s.kind for s in surfaces)
  return _assign(coord, normal, surfaces), kinds


def _checked(coord, normal, up_axis):
  """Float64 copies with the up axis last."""
  if up_axis not in (0, 1, 2):
    raise DataError(f"up_axis: expected 0, 1 or 2, got {up_axis}")
  coord = np.asarray(coord, np.float64)
  normal = np.asarray(normal, np.float64)
  if coord.ndim != 2 or coord.shape[1] != 3:
    raise DataError(f"coord: expected shape [N, 3], got {coord.shape}")
  if normal.shape != coord.shape:
    raise DataError(
      f"normal: shape {normal.shape} differs from coord's {coord.shape}"
    )
  for name, value in (("coord", coord), ("normal", normal)):
    if not np.isfinite(value).all():
      raise DataError(f"{name}: expected finite values, got NaN or infinity")
  if len(coord) and np.ptp(coord, axis=0).max() > _MAX_EXTENT:
    raise DataError(
      f"coord: extends over {np.ptp(coord, axis=0).max():.0f} m, expected"
      f" metres and at most {_MAX_EXTENT:.0f}"
    )
  return np.roll(coord, 2 - up_axis, 1), np.roll(normal, 2 - up_axis, 1)


def _level_plane(points, normals, up):
  """Largest nearly level plane with next to nothing beyond it, against `up`."""
  height = points @ up
  low = height.min()
  bins = ((height - low) / _CELL).astype(np.int64)
  level = np.abs(normals @ up) > _AGREE_PLANE
  count = np.bincount(bins[level], minlength=bins.max() + 2)
  count = count[:-1] + count[1:]
  beyond = np.concatenate([[0, 0], np.cumsum(np.bincount(bins))])
  count[beyond[: len(count)] > _OUTSIDE * len(points)] = 0
  peak = count.argmax()
  if count[peak] * _CELL**2 < _MIN_SEED:
    return None
  # Of a tilted plane this is a strip, from which the fit finds the rest.
  return _refine(points, normals, up, low + (peak + 1) * _CELL)


def _horizontal(up):
  """Two unit vectors [2, 3] perpendicular to `up` and to each other."""
  first = np.cross(up, np.eye(3)[np.abs(up).argmin()])
  first /= np.linalg.norm(first)
  return np.stack([first, np.cross(up, first)])


def _refine(points, normals, normal, offset):
  """Least-squares plane through the points near it, which it chooses anew.

  It starts from the mean of the normals and the offset most common with it: the
  points alone would also fit a plane that cuts askew through a wall and the
  front of a shelf before it.
  """
  on = _near(points, normals, normal, offset, 0.1)
  if on.any():
    facing = np.sign(normals[on] @ normal)[:, None] * normals[on]
    normal = facing.sum(axis=0) / np.linalg.norm(facing.sum(axis=0))
    offset = _mode(points[on] @ normal)
  for tolerance in (0.08, 0.06, 0.05, 0.05, 0.03, 0.03):
    on = _near(points, normals, normal, offset, tolerance)
    if on.sum() < 3:
      break
    _, vector = np.linalg.eigh(np.cov(points[on].T))
    normal = vector[:, 0] * (1 if vector[:, 0] @ normal > 0 else -1)
    offset = normal @ points[on].mean(axis=0)
  return normal, offset


def _near(points, normals, normal, offset, tolerance):
  near = np.abs(points @ normal - offset) < tolerance
  return near & (np.abs(normals @ normal) > _AGREE_PLANE)


def _mode(values):
  """Middle of the two neighbouring bins with most of the values."""
  low = values.min()
  count = np.bincount(((values - low) / (_CELL / 2)).astype(np.int64))
  count[:-1] += count[1:]
  return low + (count.argmax() + 1) * _CELL / 2


def _grow(kind, points, normals, free, normal, offset, up):
  """Follows the surface away from where it is flat; None if it is nowhere."""
  axes = _horizontal(normal)
  if kind == "wall":
    axes = np.stack(
      [np.cross(up, normal), np.cross(normal, np.cross(up, normal))]
    )
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
  away = points @ normal - offset
  agree = np.abs(normals @ normal) > _AGREE_PLANE
  some = np.flatnonzero(free & agree & (np.abs(away) < _MAX_RELIEF))
  if not (np.abs(away[some]) < _CELL).any():
    return None
  away, uv = away[some], points[some] @ axes.T
  origin = uv.min(axis=0) - (_GAP + 1) * _PIXEL
  pixel = ((uv - origin) / _PIXEL).astype(np.int64)
  shape = tuple(pixel.max(axis=0) + _GAP + 2)
  flat = np.ravel_multi_index(pixel.T, shape)
  on = np.abs(away) < _CELL
  # Each round reaches the pixels next to the last one's.
  for _ in range(sum(shape)):
    relief = _relief(flat[on], away[on], shape)
    before, on = on, np.abs(away - relief.ravel()[flat]) < _STEP
    if not on.any():
      return None
    if (on == before).all():
      break
  on = np.flatnonzero(on)
  on = on[_continued(points[some[on]], flat[on], away[on], shape)]
  relief = _relief(flat[on], away[on], shape)
  return _Surface(
    kind, normal, offset, axes, origin, relief, some[on], pixel[on]
  )


def _continued(points, flat, away, shape):
  """Bool [M]: the largest part and those that continue it across a gap.

  The bottom of a bath tub is nearly as low as the floor; only the step between
  the two tells them apart.
  """
  pairs = cKDTree(points).query_pairs(_TOUCH, output_type="ndarray")
  edges = np.ones(len(pairs), bool), tuple(pairs.T)
  n, part = connected_components(coo_array(edges, shape=2 * points.shape[:1]))
  size = np.bincount(part, minlength=n)
  joined = part == size.argmax()
  waiting = set(np.flatnonzero(size)) - {size.argmax()}
  changed = True
  while changed:
    changed = False
    mask = np.ones(shape, bool)
    mask.ravel()[flat[joined]] = False
    gap = ndimage.distance_transform_edt(mask).ravel()[flat]
    step = away - _relief(flat[joined], away[joined], shape).ravel()[flat]
    for i in sorted(waiting):
      rows = np.flatnonzero(part == i)
      rim = rows[gap[rows] <= np.percentile(gap[rows], 25)]
      if abs(np.median(step[rim])) < _MAX_STEP:
        joined[rows] = True
        waiting.remove(i)
        changed = True
  return joined


def _relief(flat, away, shape):
  size = shape[0] * shape[1]
  total = np.bincount(flat, away, size).reshape(shape)
  count = np.bincount(flat, minlength=size).reshape(shape).astype(np.float64)
  known = count > 0
  total, count = (ndimage.gaussian_filter(x, 1.0) for x in (total, count))
  relief = np.divide(total, count, out=np.zeros(shape), where=known)
  nearest = ndimage.distance_transform_edt(
    ~known, return_distances=False, return_indices=True
  )
  return relief[tuple(nearest)]


def _walls(points, normals, free, up, base):
  """Greedy Hough transform over azimuth and offset, largest wall first."""
  height = np.percentile(points @ up, 99) - base
  azimuth = np.deg2rad(np.arange(0, 180, 3))
  directions = np.stack([np.cos(azimuth), np.sin(azimuth)], 1) @ _horizontal(up)
  offsets = points @ directions.T
  low = offsets.min()
  bins = ((offsets - low) / _CELL).astype(np.int32)
  del offsets  # the largest array here
  width = int(bins.max()) + 2
  votes = np.abs(normals @ directions.T) > _AGREE_PLANE
  votes[~free] = False
  free = votes.any(axis=1)
  keys = bins + width * np.arange(len(azimuth), dtype=np.int32)
  count = np.bincount(keys[votes], minlength=width * len(azimuth))

  def take_out(cells):
    free[cells] = False
    # Counting anew for each wall would take most of the time.
    lost = keys[cells][votes[cells]]
    count[:] -= np.bincount(lost, minlength=len(count))
    votes[cells] = False

  walls = []
  while True:
    pairs = count.reshape(len(azimuth), width).copy()
    pairs[:, :-1] += pairs[:, 1:]
    a, b = np.unravel_index(pairs.argmax(), pairs.shape)
    if pairs[a, b] * _CELL**2 < _MIN_SEED:
      return walls
    spent = votes[:, a] & ((bins[:, a] == b) | (bins[:, a] == b + 1))
    before = free.copy()
    normal, offset = _refine(
      points[free], normals[free], directions[a], low + (b + 1) * _CELL
    )
    take_out(np.flatnonzero(spent))
    if abs(normal @ up) > _MAX_LEAN:
      continue
    surface = _grow("wall", points, normals, before, normal, offset, up)
    if surface:
      # Also if it is no wall: half of it would pull another plane askew.
      take_out(surface.cells)
      wall = _wall_parts(surface, points, up, base, height)
      if wall:
        walls.append(wall)


def _wall_parts(wall, points, up, base, height):
  """The surface without the parts that are no wall; None if nothing is left."""
  need = min(_MAX_WALL_NEED, 0.5 * height)
  keep = _one_sided_or_tall(wall, points, up, base, height)[wall.pixel[:, 0]]
  cells, pixel = wall.cells[keep], wall.pixel[keep]
  if not len(cells):
    return None
  mask = np.zeros(wall.relief.shape, bool)
  mask[tuple(pixel.T)] = True
  square = np.ones((3, 3), bool)
  part, n = ndimage.label(
    ndimage.binary_dilation(mask, square, iterations=_GAP), square
  )
  part = part[tuple(pixel.T)]
  tall = ndimage.labeled_comprehension(
    points[cells] @ up, part, np.arange(n + 1), np.ptp, float, 0.0
  )
  keep = tall[part] >= need
  cells, pixel = cells[keep], pixel[keep]
  if len(cells) * _CELL**2 < _MIN_SEED:
    return None
  if np.ptp(points[cells] @ wall.axes[0]) < _MIN_WALL_WIDTH:
    return None
  return dataclasses.replace(wall, cells=cells, pixel=pixel)


def _one_sided_or_tall(wall, points, up, base, height):
  """Bool [U]: columns with nothing on one side, or as high as the room."""
  columns = len(wall.relief)
  away = points @ wall.normal - wall.offset
  u = np.floor((points @ wall.axes[0] - wall.origin[0]) / _PIXEL).astype(int)
  inside = (u >= 0) & (u < columns)
  taken = []
  for sign in (-1, 1):
    side = inside & (sign * away > _SIDES[0]) & (sign * away < _SIDES[1])
    taken.append(np.bincount(u[side], minlength=columns) >= 2)
  top = np.full(columns, -np.inf)
  np.maximum.at(top, wall.pixel[:, 0], points[wall.cells] @ up)
  tall = top - base >= max(0.75 * height, 1.5)
  keep = tall | ~(taken[0] & taken[1])
  return ndimage.median_filter(keep.astype(np.uint8), 5, mode="nearest") > 0


def _assign(coord, normal, surfaces):
  """Surface of each point, int32 [N]: the nearest that its normal allows."""
  found = np.full((2, len(coord)), NO_REGION, np.int32)
  nearest = np.full((2, len(coord)), np.inf)
  for i, surface in enumerate(surfaces):
    mask = np.zeros(surface.relief.shape, bool)
    mask[tuple(surface.pixel.T)] = True
    mask = ndimage.binary_dilation(mask, np.ones((3, 3), bool))
    height = coord @ surface.normal - surface.offset
    rows = np.flatnonzero(np.abs(height) < np.abs(surface.relief).max() + _STEP)
    pixel = (coord[rows] @ surface.axes.T - surface.origin) / _PIXEL
    pixel = np.floor(pixel).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < mask.shape)).all(axis=1)
    inside[inside] = mask[tuple(pixel[inside].T)]
    rows, pixel = rows[inside], tuple(pixel[inside].T)
    distance = np.abs(height[rows] - surface.relief[pixel])
    agree = np.abs(normal[rows] @ surface.normal) > _AGREE_POINT
    # Where surfaces meet, the normals of neither hold.
    for k, fits in enumerate((agree & (distance < _STEP), distance < _TIGHT)):
      better = fits & (distance < nearest[k, rows])
      nearest[k, rows[better]] = distance[better]
      found[k, rows[better]] = i
  return np.where(found[0] != NO_REGION, found[0], found[1])
