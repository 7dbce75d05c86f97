"""ScanNet's over-segmentation of a mesh.

Dimension letters: V vertices, F triangles.
"""

import numpy as np

from wsegpc_jax.regions.graph import graph_segments
from wsegpc_jax.types import DataError


def mesh_segments(
  vertex: np.ndarray,
  triangle: np.ndarray,
  *,
  threshold: float = 0.01,
  min_vertices: int = 20,
) -> np.ndarray:
  """Segments a mesh by the rule of ScanNet's Segmentator (Dai, CVPR 2017).

  Graph-based segmentation over the edges of the triangles, in single precision.
  The normal of a vertex is the plain mean of the unit normals of its triangles,
  of whatever length it comes out. An edge from a to b weighs w = 1 - n_a . n_b,
  or w^2 where it is convex: where n_b . (b - a) > 0. A triangle (i, j, k) has
  the edges i to j, i to k and k to j, so one that two triangles share may count
  in both directions, with two weights.

  Where no two weights are equal this is the partition that ScanNet's program
  makes. Equal weights it sorts in no particular order; here the edge of the
  earlier triangle comes first. Triangles without area, of which it makes NaN,
  have no normal here.

  Args:
    vertex: float [V, 3]; single precision is used.
    triangle: int [F, 3], vertices 0..V-1, counterclockwise from outside.
    threshold: kThresh; larger gives larger segments.
    min_vertices: segMinVerts; smaller segments join a neighbour.

  Returns:
    int32 [V], segments 0.. without gaps, in the order of their first vertices.
    (In ScanNet's files a segment has the number of one of its vertices.)

  Raises:
    DataError: on wrong shapes, vertices out of range or not finite.
  """
  vertex, triangle = _checked(vertex, triangle)
  if not (np.isfinite(threshold) and threshold >= 0):
    raise DataError(f"threshold: expected a number from 0, got {threshold}")
  normal = vertex_normals(vertex, triangle)
  a = triangle[:, [0, 0, 2]].ravel()
  b = triangle[:, [1, 2, 1]].ravel()
  along = vertex[b] - vertex[a]
  # Two ends in one place have no direction and are not convex.
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    along /= np.sqrt(_dot(along, along))[:, None]
    convex = _dot(normal[b], along) > 0
  weight = 1 - _dot(normal[a], normal[b])
  weight[convex] *= weight[convex]
  return graph_segments(
    len(vertex),
    np.stack([a, b]),
    weight,
    scale=threshold,
    min_size=min_vertices,
  )


def vertex_normals(vertex: np.ndarray, triangle: np.ndarray) -> np.ndarray:
  """Mean of the unit normals of the triangles around each vertex.

  Args:
    vertex: float [V, 3]; single precision is used.
    triangle: int [F, 3], counterclockwise from outside. Those without area do
      not count.

  Returns:
    float32 [V, 3], shorter than 1 where the surface bends, 0 where there is no
    triangle.

  Raises:
    DataError: on wrong shapes, vertices out of range or not finite.
  """
  vertex, triangle = _checked(vertex, triangle)
  p, q, r = (vertex[triangle[:, k]] for k in range(3))
  u, v = q - p, r - p
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    face = np.stack(
      [u[:, i - 2] * v[:, i - 1] - u[:, i - 1] * v[:, i - 2] for i in range(3)],
      axis=1,
    )
    face /= np.sqrt(_dot(face, face))[:, None]
  real = np.isfinite(face).all(axis=1)
  corner = triangle[real].ravel()
  face = np.repeat(face[real], 3, axis=0)

  # A running mean in the order of the triangles, as rounding depends on it: in
  # round k each vertex takes in its k-th triangle.
  order = np.argsort(corner, kind="stable")
  count = np.bincount(corner, minlength=len(vertex))
  rank = np.arange(len(corner)) - (np.cumsum(count) - count)[corner[order]]
  order = order[np.argsort(rank, kind="stable")]
  ends = np.cumsum(np.bincount(rank)) if len(rank) else []
  normal = np.zeros_like(vertex)
  start = 0
  for k, end in enumerate(ends):
    rows = order[start:end]
    share = np.float32(1) / np.float32(k + 1)
    old = normal[corner[rows]]
    normal[corner[rows]] = share * face[rows] + (np.float32(1) - share) * old
    start = end
  return normal


def _dot(a, b):
  """Summed from the left, as a compiler does, and not by BLAS."""
  return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _checked(vertex, triangle):
  with np.errstate(over="ignore"):
    vertex = np.array(vertex, np.float32)
  triangle = np.asarray(triangle)
  if vertex.ndim != 2 or vertex.shape[1] != 3:
    raise DataError(f"vertex: expected shape [V, 3], got {vertex.shape}")
  if not np.isfinite(vertex).all():
    raise DataError("vertex: expected finite values, got NaN or infinity")
  if (
    triangle.ndim != 2
    or triangle.shape[1] != 3
    or triangle.dtype.kind not in "iu"
  ):
    raise DataError(
      f"triangle: expected integers [F, 3], got {triangle.dtype}"
      f" {triangle.shape}"
    )
  if triangle.size and not 0 <= triangle.min() <= triangle.max() < len(vertex):
    raise DataError(
      f"triangle: expected vertices 0..{len(vertex) - 1}, got"
      f" {triangle.min()} to {triangle.max()}"
    )
  return vertex, triangle.astype(np.int64)
