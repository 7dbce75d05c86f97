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
from scipy.spatial import cKDTree

from wsegpc_jax.regions.planes import structural_planes
from wsegpc_jax.types import NO_REGION, DataError

_CELL = 0.03  # metres; edge of the cube that one point stands for
_PIXEL = 0.1  # metres; to measure the area of a patch
_NEIGHBORS = 10
_COLOR_UNIT = 50.0  # Lab units that weigh as much as perpendicular normals
_MAX_REACH = 4.0  # times the median distance; longer edges join nothing
_PATCH_SCALE = 10.0  # of the graph segmentation of a wall, by colour only
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
  scale: float = 2.0,
  min_size: int = 60,
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
    DataError: on wrong shapes or values that are not finite.
  """
  color = np.asarray(color)
  if color.shape != np.shape(coord):
    raise DataError(
      f"color: shape {color.shape} differs from coord's {np.shape(coord)}"
    )
  plane, kinds = planes or structural_planes(coord, normal, up_axis=up_axis)
  if len(plane) != len(color):
    raise DataError(f"planes: {len(plane)} points differ from {len(color)}")
  if len(color) < 2:
    return np.zeros(len(color), np.int32)
  coord = np.asarray(coord, np.float64)
  normal = np.asarray(normal, np.float64)
  coord = coord - coord.min(axis=0)
  # One point stands for all of its plane in a small cube, so that sizes mean
  # the same wherever the scan is dense or sparse.
  key = np.floor(coord / _CELL).astype(np.int64) @ (1, 1 << 19, 1 << 38)
  _, first, cell = np.unique(
    np.stack([key, plane]), axis=1, return_index=True, return_inverse=True
  )
  cell = cell.reshape(-1)
  coord, normal, fixed = coord[first], normal[first], plane[first]
  lab = _lab(color)
  lab = np.stack([np.bincount(cell, x) for x in lab.T], axis=1)
  lab /= np.bincount(cell)[:, None]
  edge, reach = _neighbor_graph(coord)
  contrast = np.linalg.norm(lab[edge[0]] - lab[edge[1]], axis=1)

  for i, kind in enumerate(kinds):
    if kind == "wall":
      _split_patches(fixed, i, coord, lab, edge, contrast, up_axis, min_size)

  free = (fixed[edge] == NO_REGION).all(axis=0) & reach
  cosine = np.abs(np.sum(normal[edge[0]] * normal[edge[1]], axis=1))
  weight = 1 - cosine + (contrast / _COLOR_UNIT) ** 2
  region = _graph_segments(
    len(coord), edge[:, free], weight[free], scale, min_size
  )
  region = np.where(fixed == NO_REGION, region + fixed.max() + 1, fixed)
  _absorb_crumbs(region, fixed, edge[:, reach], min_size)
  _, region = np.unique(region[cell], return_inverse=True)
  return region.astype(np.int32)


def _neighbor_graph(coord):
  """Edges [2, E], each once, and bool [E]: those of ordinary length."""
  k = min(_NEIGHBORS + 1, len(coord))
  distance, index = cKDTree(coord).query(coord, k=k, workers=-1)
  distance = distance.reshape(len(coord), k)
  source = np.repeat(np.arange(len(coord)), k)
  edge = np.stack([source, index.ravel()])
  edge.sort(axis=0)
  key, first = np.unique(edge[0] * len(coord) + edge[1], return_index=True)
  first = first[key // len(coord) != key % len(coord)]
  length = distance.ravel()[first]
  return edge[:, first], length <= _MAX_REACH * np.median(distance[:, -1])


def _graph_segments(n, edge, weight, scale, min_size):
  """Felzenszwalb and Huttenlocher's segmentation; int [N], any numbers.

  Two regions join over their lightest edge when it is not heavier than the
  heaviest edge inside either of them plus scale / size.
  """
  order = np.argsort(weight, kind="stable")
  source, target = edge[:, order].tolist()
  weights = weight[order].tolist()
  parent = list(range(n))
  size = [1] * n
  limit = [scale] * n

  def find(i):
    while parent[i] != i:
      parent[i] = parent[parent[i]]
      i = parent[i]
    return i

  def join(a, b, w):
    if size[a] < size[b]:
      a, b = b, a
    parent[b] = a
    size[a] += size[b]
    limit[a] = w + scale / size[a]

  for a, b, w in zip(source, target, weights, strict=True):
    a, b = find(a), find(b)
    if a != b and w <= limit[a] and w <= limit[b]:
      join(a, b, w)
  for a, b, w in zip(source, target, weights, strict=True):
    a, b = find(a), find(b)
    if a != b and (size[a] < min_size or size[b] < min_size):
      join(a, b, w)
  return np.array([find(i) for i in range(n)])


def _split_patches(fixed, wall, coord, lab, edge, contrast, up_axis, min_size):
  """Gives patches of another colour on a wall numbers of their own."""
  members = np.flatnonzero(fixed == wall)
  if not len(members):
    return
  inside = (fixed[edge] == wall).all(axis=0)
  part = _graph_segments(
    len(members),
    np.searchsorted(members, edge[:, inside]),
    contrast[inside],
    _PATCH_SCALE * min_size,
    min_size,
  )
  names, part, size = np.unique(part, return_inverse=True, return_counts=True)
  # Light changes along a wall: lightness counts half.
  shade = lab[members] * (0.5, 1.0, 1.0)
  middle = [np.median(shade[part == i], axis=0) for i in range(len(names))]
  contrast = np.linalg.norm(middle - middle[size.argmax()], axis=1)
  level = np.delete(coord[members], up_axis, axis=1)
  _, _, axis = np.linalg.svd(level - level.mean(axis=0), full_matrices=False)
  along = np.stack([level @ axis[0], coord[members, up_axis]], axis=1)
  width = np.ptp(along[:, 0])
  for i in np.flatnonzero((contrast > _PATCH_CONTRAST) & (size >= min_size)):
    place = along[part == i]
    extent = np.ptp(place, axis=0)
    area = len(np.unique(np.floor(place / _PIXEL), axis=0)) * _PIXEL**2
    if (
      extent[0] < _PATCH_WIDTH * width
      and extent[1] > _PATCH_HEIGHT
      and area > _PATCH_FILL * (extent + _PIXEL).prod()
    ):
      fixed[members[part == i]] = fixed.max() + 1


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
