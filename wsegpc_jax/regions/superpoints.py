"""Superpoints of a room without labels: planes first, then the rest.

The scene-level method (Duan et al., TPAMI 2025) drops the floor and the walls
of a scene by dropping the largest superpoint near each side of its bounding
box, and clears their tags. That is right only if the floor is one region and
each wall is one region, so these are found first, over the whole room and past
whatever hides parts of them. Only what is left is segmented from neighbour to
neighbour (Felzenszwalb and Huttenlocher, IJCV 2004).

Dimension letters: N points, E edges of the neighbour graph.
"""

import numpy as np

from wsegpc_jax.regions.graph import graph_segments, grid_cells, neighbor_graph
from wsegpc_jax.regions.planes import structural_planes
from wsegpc_jax.types import NO_REGION, DataError

_CELL = 0.03  # metres; edge of the cube that one point stands for
_PIXEL = 0.1  # metres; to measure the area of a patch
_NEIGHBORS = 10
_COLOR_UNIT = 50.0  # Lab units that weigh as much as perpendicular normals
_MAX_REACH = 4.0  # times the median distance; longer edges join nothing
_PATCH_SIZE = 60  # cubes; what hangs on a wall has at least so many
_PATCH_SCALE = 10.0  # times that: of the segmentation of a wall by colour
_PATCH_CONTRAST = 15.0  # Lab units between a wall and what hangs on it
_PATCH_WIDTH = 0.8  # of the wall; wider ones are paint
_PATCH_HEIGHT = 0.25  # metres; lower ones are baseboards
_PATCH_FILL = 0.5  # of the box around it; the others are frames and shadows


def plane_aware_superpoints(
  coord: np.ndarray,
  color: np.ndarray,
  normal: np.ndarray,
  *,
  up_axis: int = 2,
  scale: float = 1.0,
  min_size: int = 30,
  planes: tuple[np.ndarray, tuple[str, ...]] | None = None,
) -> np.ndarray:
  """Groups points into regions that rarely cross the border of an object.

  The floor, the ceiling and each wall are one region each. What lies flat on a
  wall and differs from it in colour (doors, pictures, windows) becomes regions
  of its own; bands as long as the wall are taken for paint and stay with it.

  Args:
    coord: float [N, 3], metres.
    color: uint8 [N, 3], RGB.
    normal: float [N, 3], unit length; the sign does not matter.
    up_axis: the axis that points up.
    scale: larger gives larger regions apart from the planes.
    min_size: cubes of 3 cm with a point in them; smaller regions join the
      neighbour most alike.
    planes: `structural_planes(coord, normal)` if it is known already.

  Returns:
    int32 [N], regions 0.. without gaps.

  Raises:
    DataError: on wrong shapes, values that are not finite, or, without
      `planes`, a cloud larger than 1 km, which may be in millimetres.
  """
  plane, kinds = planes or structural_planes(coord, normal, up_axis=up_axis)
  coord, color, normal = _checked(coord, color, normal)
  if len(plane) != len(color):
    raise DataError(f"planes: {len(plane)} points differ from {len(color)}")
  if len(color) < 2:
    return np.zeros(len(color), np.int32)
  # One point stands for all of its plane in a small cube, so that sizes mean
  # the same wherever the scan is dense or sparse.
  first, cell = grid_cells(coord, _CELL, group=plane)
  coord, normal, fixed = coord[first], normal[first], plane[first]
  lab = _mean_lab(color, cell)
  edge, reach = _cell_graph(coord, _NEIGHBORS)
  contrast = _contrast(lab, edge)

  walls = [i for i, kind in enumerate(kinds) if kind == "wall"]
  patch_size = max(min_size, _PATCH_SIZE)
  part = _wall_parts(fixed, walls, edge, contrast, patch_size)
  for wall in walls:
    _split_patches(fixed, wall, part, coord, lab, up_axis, patch_size)

  free = (fixed[edge[0]] == NO_REGION) & (fixed[edge[1]] == NO_REGION) & reach
  region = graph_segments(
    len(coord),
    edge[:, free],
    _unlike(normal, edge[:, free], contrast[free]),
    scale=scale,
    min_size=min_size,
  )
  region = np.where(fixed == NO_REGION, region + fixed.max() + 1, fixed)
  _absorb_crumbs(region, fixed, edge[:, reach], min_size)
  _, region = np.unique(region[cell], return_inverse=True)
  return region.astype(np.int32)


def graph_superpoints(
  coord: np.ndarray,
  color: np.ndarray,
  normal: np.ndarray,
  *,
  neighbors: int = _NEIGHBORS,
  scale: float = 1.0,
  min_size: int = 30,
) -> np.ndarray:
  """Segments the neighbour graph of a cloud by normals and colour alone.

  Nodes are cubes of 3 cm with a point in them; edges lead to the nearest ones
  and weigh 1 - |n . n'| + (difference in CIE Lab / 50)^2. Large surfaces may
  fall into several regions, as nothing looks past what interrupts them.

  Args:
    coord: float [N, 3], metres.
    color: uint8 [N, 3], RGB.
    normal: float [N, 3], unit length; the sign does not matter.
    neighbors: edges of each cube.
    scale: larger gives larger regions.
    min_size: cubes; smaller regions join the neighbour most alike.

  Returns:
    int32 [N], regions 0.. without gaps.

  Raises:
    DataError: on wrong shapes or values that are not finite.
  """
  coord, color, normal = _checked(coord, color, normal)
  if neighbors < 1:
    raise DataError(f"neighbors: expected at least 1, got {neighbors}")
  if len(coord) < 2:
    return np.zeros(len(coord), np.int32)
  first, cell = grid_cells(coord, _CELL)
  edge, reach = _cell_graph(coord[first], neighbors)
  edge = edge[:, reach]
  contrast = _contrast(_mean_lab(color, cell), edge)
  weight = _unlike(normal[first], edge, contrast)
  region = graph_segments(
    len(first), edge, weight, scale=scale, min_size=min_size
  )
  return region[cell]


def _checked(coord, color, normal):
  coord = np.asarray(coord, np.float64)
  normal = np.asarray(normal, np.float64)
  color = np.asarray(color)
  if coord.ndim != 2 or coord.shape[1] != 3:
    raise DataError(f"coord: expected shape [N, 3], got {coord.shape}")
  for name, value in (("color", color), ("normal", normal)):
    if value.shape != coord.shape:
      raise DataError(
        f"{name}: shape {value.shape} differs from coord's {coord.shape}"
      )
  if color.dtype != np.uint8:
    raise DataError(f"color: expected uint8, got {color.dtype}")
  for name, value in (("coord", coord), ("normal", normal)):
    if not np.isfinite(value).all():
      raise DataError(f"{name}: expected finite values, got NaN or infinity")
  return coord, color, normal


def _cell_graph(coord, neighbors):
  """Edges [2, E], each once, and bool [E]: those of ordinary length."""
  edge, length, far = neighbor_graph(coord, neighbors)
  return edge, length <= _MAX_REACH * np.median(far)


def _contrast(lab, edge):
  """Difference in colour along edges [2, E], Lab units."""
  return np.linalg.norm(lab[edge[0]] - lab[edge[1]], axis=1)


def _unlike(normal, edge, contrast):
  """Weights of edges [2, E], 0 within a surface of one colour."""
  cosine = np.einsum("ej,ej->e", normal[edge[0]], normal[edge[1]])
  return 1 - np.abs(cosine) + (contrast / _COLOR_UNIT) ** 2


def _wall_parts(fixed, walls, edge, contrast, min_size):
  """Segments each wall by colour; int32 [N], also for what is on none."""
  on_wall = np.append(np.isin(np.arange(fixed.max() + 1), walls), False)
  own = np.where(on_wall[fixed], fixed, NO_REGION)
  inside = (own[edge[0]] == own[edge[1]]) & (own[edge[0]] != NO_REGION)
  return graph_segments(
    len(fixed),
    edge[:, inside],
    contrast[inside],
    scale=_PATCH_SCALE * min_size,
    min_size=min_size,
  )


def _split_patches(fixed, wall, part, coord, lab, up_axis, min_size):
  """Gives parts of another colour on a wall numbers of their own."""
  members = np.flatnonzero(fixed == wall)
  if not len(members):
    return
  _, part, size = np.unique(
    part[members], return_inverse=True, return_counts=True
  )
  # Light changes along a wall: lightness counts half.
  shade = lab[members] * (0.5, 1.0, 1.0)
  rows = np.split(np.argsort(part, kind="stable"), np.cumsum(size)[:-1])
  middle = np.array([np.median(shade[r], axis=0) for r in rows])
  contrast = np.linalg.norm(middle - middle[size.argmax()], axis=1)
  level = np.delete(coord[members], up_axis, axis=1)
  level = level - level.mean(axis=0)
  _, axis = np.linalg.eigh(level.T @ level)
  along = np.stack([level @ axis[:, -1], coord[members, up_axis]], axis=1)
  width = np.ptp(along[:, 0])
  for i in np.flatnonzero((contrast > _PATCH_CONTRAST) & (size >= min_size)):
    place = along[rows[i]]
    extent = np.ptp(place, axis=0)
    area = len(np.unique(np.floor(place / _PIXEL), axis=0)) * _PIXEL**2
    if (
      extent[0] < _PATCH_WIDTH * width
      and extent[1] > _PATCH_HEIGHT
      and area > _PATCH_FILL * (extent + _PIXEL).prod()
    ):
      fixed[members[rows[i]]] = fixed.max() + 1


def _absorb_crumbs(region, fixed, edge, min_size):
  """Joins small leftovers, enclosed by planes and patches, to one of them."""
  size = np.bincount(region)
  small = (size[region] < min_size) & (fixed == NO_REGION)
  for a, b in (edge, edge[::-1]):
    rows = small[a] & ~small[b]
    if not rows.any():
      continue
    pairs, votes = np.unique(
      np.stack([region[a[rows]], region[b[rows]]]), axis=1, return_counts=True
    )
    best = np.lexsort((votes, pairs[0]))
    new = np.arange(len(size))
    new[pairs[0][best]] = pairs[1][best]  # the last of each crumb stays
    region[:] = np.where(small, new[region], region)
    small &= size[region] < min_size


def _mean_lab(color, cell):
  """Mean CIE L*a*b* of the points [N] of each cell, float64 [M, 3]."""
  lab = np.stack([np.bincount(cell, x) for x in _lab(color).T], axis=1)
  return lab / np.bincount(cell)[:, None]


def _lab(color):
  """CIE L*a*b* [N, 3] of sRGB bytes: distances are those that eyes see."""
  value = np.asarray(color, np.float64) / 255
  linear = np.where(
    value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92
  )
  to_xyz = np.array(
    [
      [0.4124, 0.3576, 0.1805],
      [0.2126, 0.7152, 0.0722],
      [0.0193, 0.1192, 0.9505],
    ]
  )
  # Divided by the white point, which is the sum of each row.
  xyz = linear @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
  f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  x, y, z = f.T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
