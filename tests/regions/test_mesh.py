"""ScanNet's rule against a slow second writing of it, and by hand."""

import zlib

import numpy as np
import pytest

from wsegpc_jax.regions.mesh import mesh_segments, vertex_normals
from wsegpc_jax.types import DataError

F = np.float32


def slowly(vertex, triangle, threshold, min_vertices):
  """One number after the other, in single precision; segments are lists."""
  points = [[F(x) for x in p] for p in vertex]
  normals = [[F(0)] * 3 for _ in points]
  seen = [0] * len(points)

  def minus(p, q):
    return [x - y for x, y in zip(p, q, strict=True)]

  def dot(p, q):
    return (p[0] * q[0] + p[1] * q[1]) + p[2] * q[2]

  def unit(p):
    length = np.sqrt(dot(p, p))
    return [x / length for x in p] if length > 0 else None

  edges = []
  for i, j, k in triangle.tolist():
    edges += [(i, j), (i, k), (k, j)]
    u, v = minus(points[j], points[i]), minus(points[k], points[i])
    cross = [
      u[1] * v[2] - u[2] * v[1],
      u[2] * v[0] - u[0] * v[2],
      u[0] * v[1] - u[1] * v[0],
    ]
    face = unit(cross)
    for corner in (i, j, k) if face else ():
      new = F(1) / (F(seen[corner]) + F(1))
      old = F(1) - new
      normals[corner] = [
        new * f + old * n for f, n in zip(face, normals[corner], strict=True)
      ]
      seen[corner] += 1

  weighted = []
  for a, b in edges:
    w = F(1) - dot(normals[a], normals[b])
    along = unit(minus(points[b], points[a]))
    if along and dot(normals[b], along) > 0:
      w = w * w
    weighted.append((w, a, b))
  weighted.sort(key=lambda e: e[0])

  segment = {i: [i] for i in range(len(points))}
  limit = [F(threshold)] * len(points)  # of a segment: that of its first vertex

  def join(a, b):
    joined = segment[a] + segment[b]
    for i in joined:
      segment[i] = joined

  for w, a, b in weighted:
    one, two = segment[a], segment[b]
    if one is not two and w <= limit[one[0]] and w <= limit[two[0]]:
      join(a, b)
      size = F(len(segment[a]))
      limit[segment[a][0]] = w + F(threshold) / size
  for _, a, b in weighted:
    one, two = segment[a], segment[b]
    if one is not two and min(len(one), len(two)) < min_vertices:
      join(a, b)
  return [min(segment[i]) for i in range(len(points))]


def sheet(rng, rows, columns, *, step=0.5, noise=0.01):
  """A bumpy surface with steps, its triangles in any order."""
  x, y = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
  height = step * (rng.random((rows // 5 + 1, columns // 5 + 1)) < 0.5)
  z = height[x // 5, y // 5] + 0.02 * (x % 7) * (y % 3)
  vertex = np.stack([x, y, z], axis=-1).reshape(-1, 3) * 0.1
  vertex = vertex + rng.normal(0, noise, vertex.shape)
  i = np.arange(rows * columns).reshape(rows, columns)
  a, b, c, d = i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]
  corners = [[a, b, c], [a, c, d]]
  triangle = np.concatenate(
    [np.stack(t, axis=-1).reshape(-1, 3) for t in corners]
  )
  triangle = np.stack([np.roll(t, rng.integers(3)) for t in triangle])
  return vertex, rng.permutation(triangle)


@pytest.mark.parametrize("seed", range(10))
def test_random_surfaces(seed):
  rng = np.random.default_rng(seed)
  rows, columns = rng.integers(6, 24, 2)
  vertex, triangle = sheet(
    rng, rows, columns, noise=(0.0, 0.003, 0.02)[seed % 3]
  )
  for threshold, min_vertices in ((0.01, 20), (0.05, 4), (1e-4, 1)):
    segment = mesh_segments(
      vertex, triangle, threshold=threshold, min_vertices=min_vertices
    )
    expected = slowly(vertex, triangle, threshold, min_vertices)
    _, first = np.unique(segment, return_index=True)
    assert first[segment].tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_random_triangles(seed):
  """No surface at all: edges of three and more triangles, loose vertices."""
  rng = np.random.default_rng(seed)
  vertex = rng.normal(size=(40, 3))
  if seed % 2:
    vertex = np.round(vertex)  # vertices in one place, triangles without area
  triangle = rng.integers(0, 36, (60, 3))
  for threshold in (0.1, 0.7):
    segment = mesh_segments(
      vertex, triangle, threshold=threshold, min_vertices=3
    )
    _, first = np.unique(segment, return_index=True)
    assert first[segment].tolist() == slowly(vertex, triangle, threshold, 3)


def terraces(size=48):
  """A surface of steps and bumps from whole numbers, the same everywhere."""
  x, y = np.divmod(np.arange(size * size), size)
  state, noise = 1, []
  for _ in range(3 * size * size):
    state = (1103515245 * state + 12345) % 2**31
    noise.append(state >> 23)
  vertex = 100 * np.stack([x, y, 0 * x], axis=1)
  vertex[:, 2] = 60 * ((x // 12 + y // 16) % 2) + 25 * (x // 20)
  vertex[:, 2] += (x - 24) ** 2 // 4
  vertex += np.reshape(noise, (-1, 3)) // (32, 32, 8)
  i = np.arange(size * size).reshape(size, size)
  a, b, c, d = i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]
  triangle = [
    np.stack(t, axis=-1).reshape(-1, 3) for t in ((a, b, c), (d, a, c))
  ]
  return vertex.astype(np.float32) / 4096, np.concatenate(triangle)


# What ScanNet's own program makes of it: sizes of the largest segments, their
# number, and the CRC-32 of the first vertex of the segment of each vertex.
@pytest.mark.parametrize(
  "threshold, min_vertices, number, largest, crc",
  [
    (0.01, 20, 23, [219, 213, 185, 183, 176, 154], 3223337973),
    (0.05, 8, 35, [377, 187, 187, 180, 157, 155], 403906897),
    (0.001, 50, 13, [222, 215, 213, 210, 197, 185], 2543869961),
  ],
)
def test_partition_of_scannets_program(
  threshold, min_vertices, number, largest, crc
):
  segment = mesh_segments(
    *terraces(), threshold=threshold, min_vertices=min_vertices
  )
  _, first, size = np.unique(segment, return_index=True, return_counts=True)
  assert len(size) == number
  assert sorted(size.tolist())[::-1][:6] == largest
  assert zlib.crc32(first[segment].astype("<i4").tobytes()) == crc


# Two triangles that share the edge 0 1, at right angles; 2 lies on the first,
# which faces up, and 3 below the edge (a box seen from outside) or above it (a
# corner of a room). All weights by hand:
# the normals of 0 and 1 are the mean (-+1/2, 0, 1/2); those of 2 and 3 of
# length 1; so every edge has 1 - 1/2, squared to 1/4 where it is convex.
BOX = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, -1]])
ROOM = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
TO_FOLD = np.array([[2, 1, 0], [3, 0, 1]])  # edges from 2 and 3 to 0 and 1


def test_normals_are_plain_means():
  normal = vertex_normals(BOX, TO_FOLD)
  assert normal.dtype == np.float32
  assert normal.tolist() == [[-0.5, 0, 0.5]] * 2 + [[0, 0, 1], [-1, 0, 0]]
  room = vertex_normals(ROOM, TO_FOLD[:, [0, 1, 2]])
  assert room.tolist() == [[0.5, 0, 0.5]] * 2 + [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
  "vertex, triangles, threshold, expected",
  [
    # Convex: 2 joins 1 over 1/4 (limit 1/4 + 0.3/2), then 0, then 3.
    (BOX, TO_FOLD, 0.3, [0, 0, 0, 0]),
    (BOX, TO_FOLD, 0.24, [0, 1, 2, 3]),
    (ROOM, TO_FOLD, 0.3, [0, 1, 2, 3]),
    (ROOM, TO_FOLD, 0.5, [0, 0, 0, 0]),
    # Edges are first to second, first to third and third to second. Here none
    # ends at the fold, and at 2 and 3 they are level, which is not convex.
    (BOX, [[0, 2, 1], [1, 3, 0]], 0.3, [0, 1, 2, 3]),
    # Here the edges 2 to 0 and 3 to 1 do; then the limits are 1/4 + 0.3/2, and
    # the fold itself, with 1/2, is level and too heavy.
    (BOX, [[1, 0, 2], [0, 1, 3]], 0.3, [0, 1, 0, 1]),
    (BOX, [[1, 0, 2], [0, 1, 3]], 0.51, [0, 0, 0, 0]),
  ],
)
def test_convex_edges(vertex, triangles, threshold, expected):
  segment = mesh_segments(
    vertex, np.array(triangles), threshold=threshold, min_vertices=1
  )
  assert segment.tolist() == expected and segment.dtype == np.int32


def test_small_segments_join_over_the_lightest_edge():
  triangle = np.array([[1, 0, 2], [0, 1, 3]])
  segment = mesh_segments(BOX, triangle, threshold=0.2, min_vertices=1)
  assert segment.tolist() == [0, 1, 2, 3]
  segment = mesh_segments(BOX, triangle, threshold=0.2, min_vertices=2)
  assert segment.tolist() == [0, 1, 0, 1]
  segment = mesh_segments(BOX, triangle, threshold=0.2, min_vertices=3)
  assert segment.tolist() == [0, 0, 0, 0]


def test_triangles_without_area_have_no_normal():
  vertex = np.concatenate([BOX, [[2, 0, 0]]])
  flat = np.array([[0, 2, 4], [2, 2, 0]])
  triangle = np.concatenate([TO_FOLD, flat])
  normal = vertex_normals(vertex, triangle)
  assert np.array_equal(normal[:4], vertex_normals(BOX, TO_FOLD))
  assert normal[4].tolist() == [0, 0, 0]
  # Without a normal an edge weighs 1; vertices of no triangle stay alone.
  segment = mesh_segments(vertex, triangle, threshold=0.3, min_vertices=1)
  assert segment.tolist() == [0, 0, 0, 0, 1]
  vertex = np.concatenate([BOX, [[2, 0, 0]]])
  segment = mesh_segments(vertex, TO_FOLD, threshold=0.3, min_vertices=9)
  assert segment.tolist() == [0, 0, 0, 0, 1]


def test_no_triangles():
  none = np.zeros((0, 3), int)
  assert mesh_segments(np.zeros((0, 3)), none).shape == (0,)
  assert mesh_segments(np.eye(3), none).tolist() == [0, 1, 2]
  assert (vertex_normals(np.eye(3), none) == 0).all()


def test_faults_are_named():
  with pytest.raises(DataError, match=r"vertex.*\[V, 3\].*\(4, 2\)"):
    mesh_segments(BOX[:, :2], TO_FOLD)
  with pytest.raises(DataError, match="vertex.*finite"):
    mesh_segments(BOX * np.nan, TO_FOLD)
  with pytest.raises(DataError, match="vertex.*finite"):
    mesh_segments(BOX * 1e300, TO_FOLD)
  with pytest.raises(DataError, match=r"triangle.*\[F, 3\].*\(2, 2\)"):
    mesh_segments(BOX, TO_FOLD[:, :2])
  with pytest.raises(DataError, match="triangle.*0..2.*0 to 3"):
    mesh_segments(BOX[:3], TO_FOLD)
  with pytest.raises(DataError, match="threshold"):
    mesh_segments(BOX, TO_FOLD, threshold=float("nan"))
