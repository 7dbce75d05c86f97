"""Triangle meshes with materials, and the solids they are put together from.

Every solid is closed and its triangles turn counterclockwise seen from outside.
Lengths are metres; z points up.

Dimension letters: V vertices, T triangles, M materials.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int32

from wsegpc_jax.data.synthetic.materials import Material

Shape = tuple[np.ndarray, np.ndarray]  # vertices [V, 3], triangles [T, 3]

_FACES = [  # of a hexahedron whose corners are counted in binary, x the fastest
  [0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4],
  [2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5],
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mesh:
  """One object, and what other objects need to know of it.

  Attributes:
    vertices: float64 [V, 3], metres.
    texture: float64 [V, 3], where each vertex lies in the solid textures; they
      stay with the object when it moves.
    triangles: int32 [T, 3], corners, counterclockwise seen from outside.
    material: int32 [T], index into `materials`.
    materials: the M materials.
    shape: which of the shapes of its class it is.
    tops: level rectangles (x0, y0, x1, y1, z, room) on which small things of
      at most the height `room` may stand.
    seats: places (x, y, angle) at its sides for chairs that look along the
      angle, radians from x.
    hole: (width, z0, z1) of the hole in a wall that a door or window fills,
      centred on x = 0; None where there is none.
  """

  vertices: Float[np.ndarray, "v 3"]
  texture: Float[np.ndarray, "v 3"]
  triangles: Int32[np.ndarray, "t 3"]
  material: Int32[np.ndarray, " t"]
  materials: tuple[Material, ...]
  shape: str = ""
  tops: tuple[tuple[float, ...], ...] = ()
  seats: tuple[tuple[float, float, float], ...] = ()
  hole: tuple[float, float, float] | None = None

  def placed(
    self, place: Sequence[float], angle: float = 0.0, tilt: float = 0.0
  ) -> "Mesh":
    """Tilted about x, turned about z (radians), then moved to `place`.

    Tops and seats stay where they were built.
    """
    moved = turn(turn(self.vertices, "x", tilt), "z", angle)
    return dataclasses.replace(self, vertices=moved + np.asarray(place))


class Assembly:
  """Collects solids of several materials into a mesh."""

  def __init__(self):
    self._vertices: list[np.ndarray] = []
    self._triangles: list[np.ndarray] = []
    self._material: list[np.ndarray] = []
    self._materials: list[Material] = []
    self._count = 0

  def add(self, material: Material, *shapes: Shape) -> None:
    """Adds solids of one material."""
    if material not in self._materials:
      self._materials.append(material)
    index = self._materials.index(material)
    for vertices, triangles in shapes:
      self._vertices.append(vertices)
      self._triangles.append(triangles + self._count)
      self._material.append(np.full(len(triangles), index, np.int32))
      self._count += len(vertices)

  def mesh(self, shape: str, **attributes) -> Mesh:
    """The mesh; `attributes` are further ones of `Mesh`."""
    vertices = np.concatenate(self._vertices).astype(np.float64)
    return Mesh(
      vertices=vertices,
      texture=vertices,
      triangles=np.concatenate(self._triangles).astype(np.int32),
      material=np.concatenate(self._material),
      materials=tuple(self._materials),
      shape=shape,
      **attributes,
    )


def turn(points: np.ndarray, axis: str, angle: float) -> np.ndarray:
  """Points [V, 3] turned about an axis "x", "y" or "z" by radians."""
  c, s = np.cos(angle), np.sin(angle)
  i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
  turned = np.array(points, np.float64)
  turned[:, i] = c * points[:, i] - s * points[:, j]
  turned[:, j] = s * points[:, i] + c * points[:, j]
  return turned


def moved(
  shape: Shape, place=(0.0, 0.0, 0.0), axis: str = "z", angle: float = 0.0
) -> Shape:
  """A solid turned about an axis through the origin, then moved."""
  return turn(shape[0], axis, angle) + np.asarray(place), shape[1]


def box(x0, x1, y0, y1, z0, z1) -> Shape:
  """A box between two corners."""
  return taper((x0, x1, y0, y1), (x0, x1, y0, y1), z0, z1)


def taper(bottom, top, z0, z1) -> Shape:
  """A hexahedron between rectangles (x0, x1, y0, y1) at two heights."""
  corners = [
    (x, y, z)
    for (x0, x1, y0, y1), z in ((bottom, z0), (top, z1))
    for y in (y0, y1)
    for x in (x0, x1)
  ]
  return np.array(corners, np.float64), np.array(_FACES)


def lathe(profile: Sequence[tuple[float, float]], segments: int = 14) -> Shape:
  """A solid of revolution about z.

  Args:
    profile: (radius, z) from the bottom up; the ends are closed by discs.
    segments: sides around.
  """
  radius, z = np.array(profile, np.float64).T
  angle = 2 * np.pi * np.arange(segments) / segments
  ring = np.stack([np.cos(angle), np.sin(angle)], 1)
  rings = [
    np.column_stack([r * ring, np.full(segments, h)])
    for r, h in zip(radius, z, strict=True)
  ]
  poles = np.array([[0, 0, z[0]], [0, 0, z[-1]]])
  vertices = np.concatenate([*rings, poles])
  i = np.arange(segments)
  j = (i + 1) % segments
  bottom, top = len(vertices) - 2, len(vertices) - 1
  last = (len(rings) - 1) * segments
  parts = [np.stack([np.full(segments, bottom), j, i], 1)]
  for k in range(len(rings) - 1):
    low, high = k * segments, (k + 1) * segments
    parts.append(np.stack([low + i, low + j, high + j], 1))
    parts.append(np.stack([low + i, high + j, high + i], 1))
  parts.append(np.stack([np.full(segments, top), last + i, last + j], 1))
  return vertices, np.concatenate(parts)


def cylinder(radius, z0, z1, place=(0.0, 0.0), segments: int = 12) -> Shape:
  """An upright cylinder around (x, y) = `place`."""
  return moved(
    lathe([(radius, z0), (radius, z1)], segments), (place[0], place[1], 0.0)
  )


def rod(start, end, radius, segments: int = 7, tip: float = 1.0) -> Shape:
  """A round rod between two points; `tip` scales the radius at its end."""
  start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
  length = np.linalg.norm(end - start)
  vertices, triangles = lathe([(radius, 0), (tip * radius, length)], segments)
  forward = (end - start) / length
  side = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
  side /= np.linalg.norm(side)
  axes = np.stack([side, np.cross(forward, side), forward])
  return start + vertices @ axes, triangles


def cushion(
  center, half, exponent: float = 3.0, around: int = 16, layers: int = 9
) -> Shape:
  """A rounded block (superellipsoid): exponent 2 is round, 6 nearly a box.

  Args:
    center: [3], metres.
    half: [3], half its size along x, y, z.
    exponent: of the superellipse seen from above; from the side it is rounder.
    around, layers: vertices around and from pole to pole.
  """

  def power(value, e):
    return np.sign(value) * np.abs(value) ** (2 / e)

  angle = 2 * np.pi * np.arange(around) / around
  height = np.pi * (np.arange(1, layers) / layers - 0.5)
  level = max(2.0, 0.75 * exponent)
  radius, z = power(np.cos(height), level), power(np.sin(height), level)
  vertices, triangles = lathe([(1.0, h) for h in z], around)
  ring = np.stack(
    [power(np.cos(angle), exponent), power(np.sin(angle), exponent)]
  )
  n = around * (layers - 1)
  vertices[:n, :2] = (radius[:, None, None] * ring.T).reshape(n, 2)
  vertices[n:, 2] = (-1.0, 1.0)
  return np.asarray(center) + np.asarray(half) * vertices, triangles


def join(*shapes: Shape) -> Shape:
  """Several solids as one."""
  counts = np.cumsum([0] + [len(v) for v, _ in shapes])
  triangles = [t + c for (_, t), c in zip(shapes, counts, strict=False)]
  return np.concatenate([v for v, _ in shapes]), np.concatenate(triangles)
