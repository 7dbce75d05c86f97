"""Casting rays at meshes: what they hit, in which colour, and posed images.

Rays are cast by Embree, in single precision; everything else is numpy. Light is
diffuse: an even part and a few lamps that throw shadows.

Dimension letters: R rays, P places hit, T triangles, L lamps, H and W image
height and width.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int32, UInt8

from wsegpc_jax.data.synthetic.materials import colors_at
from wsegpc_jax.data.synthetic.mesh import Mesh
from wsegpc_jax.types import IGNORE_LABEL, DataError

_FAR = 1e30  # Embree's distance where nothing is hit is larger
_LIFT = 2e-3  # metres; shadow rays start this far off the surface
_BACKGROUND = 40.0  # colour where a ray leaves the scene


def require_embree():
  """Returns embreex's classes for a scene and for its triangles.

  Raises:
    DataError: embreex is not installed.
  """
  try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
  except ImportError as error:
    raise DataError(
      "synthetic rooms need the ray caster embreex: "
      'pip install "wsegpc-jax[synthetic]"'
    ) from error
  return EmbreeScene, TriangleMesh


@dataclasses.dataclass(frozen=True)
class Lights:
  """How a scene is lit.

  Attributes:
    place: float64 [L, 3], of the lamps, metres.
    power: float64 [L], light of each at a distance of 1 m.
    even: light from everywhere.
  """

  place: Float[np.ndarray, "l 3"]
  power: Float[np.ndarray, " l"]
  even: float


@dataclasses.dataclass(frozen=True)
class Hits:
  """Where rays end.

  Attributes:
    distance: float64 [R], in lengths of the ray; infinite where nothing is hit.
    triangle: int32 [R]; -1 where nothing is hit.
    weight: float64 [R, 3], of the corners of the triangle.
  """

  distance: Float[np.ndarray, " r"]
  triangle: Int32[np.ndarray, " r"]
  weight: Float[np.ndarray, "r 3"]


class World:
  """Meshes with a class each, to be looked at.

  Attributes:
    corners: float64 [T, 3, 3], metres.
    label: int32 [T], class of each triangle.
    owner: int32 [T], mesh of each triangle.
    normal: float64 [T, 3], outward.
  """

  def __init__(
    self, meshes: Sequence[Mesh], label: Sequence[int], lights: Lights
  ):
    """Args: meshes; the class of each; how they are lit.

    Raises:
      DataError: embreex is not installed.
    """
    counts = [len(m.triangles) for m in meshes]
    self.corners = np.concatenate([m.vertices[m.triangles] for m in meshes])
    self._texture = np.concatenate([m.texture[m.triangles] for m in meshes])
    self.owner = np.repeat(np.arange(len(meshes), dtype=np.int32), counts)
    self.label = np.asarray(label, np.int32)[self.owner]
    first = np.cumsum([0] + [len(m.materials) for m in meshes])
    self._material = np.concatenate(
      [m.material + k for m, k in zip(meshes, first, strict=False)]
    )
    self._materials = tuple(x for m in meshes for x in m.materials)
    self._shine = np.array([m.shine for m in self._materials])
    a, b, c = np.moveaxis(self.corners, 1, 0)
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    self.normal = normal / np.maximum(length, 1e-12)
    self.lights = lights
    require_embree()

  @functools.cached_property
  def _scene(self):
    scene_class, triangles = require_embree()
    scene = scene_class(robust=True)
    triangles(scene, self.corners.astype(np.float32))
    return scene

  def cast(
    self, origin: Float[np.ndarray, "r 3"], ray: Float[np.ndarray, "r 3"]
  ) -> Hits:
    """The first surface along each ray, seen from either side."""
    found = self._scene.run(
      np.ascontiguousarray(origin, np.float32),
      np.ascontiguousarray(ray, np.float32),
      query="INTERSECT",
      output=True,
    )
    triangle = found["primID"].astype(np.int32)
    hit = (triangle >= 0) & (found["tfar"] < _FAR)
    u, v = found["u"].astype(np.float64), found["v"].astype(np.float64)
    return Hits(
      distance=np.where(hit, found["tfar"].astype(np.float64), np.inf),
      triangle=np.where(hit, triangle, -1),
      weight=np.stack([1 - u - v, u, v], 1),
    )

  def places(self, hits: Hits) -> Float[np.ndarray, "r 3"]:
    """Where the rays end, on the surface; only for rays that hit something."""
    return np.einsum("rc,rcd->rd", hits.weight, self.corners[hits.triangle])

  def shine(self, hits: Hits) -> Float[np.ndarray, " r"]:
    """Share of rays that a scanner gets nothing back from."""
    return self._shine[self._material[hits.triangle]]

  def colors(
    self, hits: Hits, eye: Float[np.ndarray, "r 3"]
  ) -> Float[np.ndarray, "r 3"]:
    """Lit colour, about 0..255, of rays that hit something, seen from `eye`."""
    triangle = hits.triangle
    place = self.places(hits)
    texture = np.einsum("rc,rcd->rd", hits.weight, self._texture[triangle])
    albedo = colors_at(self._materials, self._material[triangle], texture)
    normal = self.normal[triangle]
    away = np.einsum("rd,rd->r", normal, eye - place)
    normal = normal * np.where(away < 0, -1.0, 1.0)[:, None]
    light = np.full(len(place), self.lights.even)
    start = place + _LIFT * normal
    for lamp, power in zip(self.lights.place, self.lights.power, strict=True):
      way = lamp - start
      distance = np.linalg.norm(way, axis=1)
      cosine = np.einsum("rd,rd->r", normal, way) / distance
      rows = np.flatnonzero(cosine > 0)
      blocked = self.cast(start[rows], way[rows]).distance < 1.0
      fall = power / (0.5 + 0.5 * distance[rows] ** 1.5)
      light[rows] += np.where(blocked, 0.0, cosine[rows] * fall)
    return albedo * light[:, None]


def draw_lights(
  rng: np.random.Generator, low: np.ndarray, high: np.ndarray
) -> Lights:
  """Two or three lamps in the upper part of a box [3], [3], and even light."""
  n = int(rng.integers(2, 4))
  part = rng.uniform((0.15, 0.15, 0.85), (0.85, 0.85, 1.2), (n, 3))
  return Lights(
    place=low + (high - low) * part,
    power=rng.uniform(0.35, 0.85, n) * 2 / n,
    even=float(rng.uniform(0.58, 0.82)),
  )


def look_at(eye: np.ndarray, target: np.ndarray) -> Float[np.ndarray, "4 4"]:
  """Camera-to-world pose of an upright camera (x right, y down, z forward)."""
  forward = (target - eye) / np.linalg.norm(target - eye)
  right = np.cross(forward, [0.0, 0.0, 1.0])
  right /= np.linalg.norm(right)
  pose = np.eye(4)
  pose[:3] = np.stack([right, np.cross(forward, right), forward, eye], 1)
  return pose


def camera_rays(
  pose: Float[np.ndarray, "4 4"],
  intrinsics: Float[np.ndarray, " 4"],
  image_size: tuple[int, int],
) -> Float[np.ndarray, "r 3"]:
  """World rays of all pixels, row by row; 1 along the optical axis."""
  h, w = image_size
  fx, fy, cx, cy = intrinsics
  rows, columns = np.mgrid[:h, :w]
  x, y = (columns - cx) / fx, (rows - cy) / fy
  rays = np.stack([x, y, np.ones((h, w))], -1).reshape(-1, 3)
  return np.einsum("ij,rj->ri", pose[:3, :3], rays)


def render(
  world: World,
  pose: Float[np.ndarray, "4 4"],
  intrinsics: Float[np.ndarray, " 4"],
  image_size: tuple[int, int],
  rng: np.random.Generator,
  *,
  noise: bool = True,
) -> tuple[
  UInt8[np.ndarray, "h w 3"],
  Float[np.ndarray, "h w"],
  Int32[np.ndarray, "h w"],
]:
  """Takes a posed RGB-D image.

  Args:
    world: what is seen.
    pose: camera-to-world, x right, y down, z forward.
    intrinsics: (fx, fy, cx, cy), pixels.
    image_size: (H, W).
    rng: of the noise, and of exposure and white balance.
    noise: False = neither noise nor holes, even exposure.

  Returns:
    colour; depth along the optical axis, whole millimetres in metres, 0 = not
    measured; class, IGNORE_LABEL where nothing is seen.
  """
  rays = camera_rays(pose, intrinsics, image_size)
  eye = np.broadcast_to(pose[:3, 3], rays.shape)
  hits = world.cast(eye, rays)
  rows = np.flatnonzero(hits.triangle >= 0)
  seen = Hits(hits.distance[rows], hits.triangle[rows], hits.weight[rows])
  color = np.full((len(rays), 3), _BACKGROUND)
  color[rows] = world.colors(seen, eye[rows])
  depth = np.zeros(len(rays))
  depth[rows] = seen.distance
  label = np.full(len(rays), IGNORE_LABEL, np.int32)
  label[rows] = world.label[seen.triangle]
  if noise:
    gain = rng.uniform(0.85, 1.15) * rng.normal(1.0, 0.025, 3)
    color = color * gain + rng.normal(0, rng.uniform(2.0, 6.0), color.shape)
    spread = rng.normal(0, 0.0015, len(rays)).clip(-0.004, 0.004)
    depth = depth * (1 + spread)
    ray = rays[rows] / np.linalg.norm(rays[rows], axis=1, keepdims=True)
    graze = np.abs(np.einsum("rd,rd->r", world.normal[seen.triangle], ray))
    lost = rng.random(len(rows)) < 0.3 * world.shine(seen)
    depth[rows[lost | (graze < 0.05)]] = 0.0
  h, w = image_size
  # The division that reading a depth image does, so that nothing changes.
  metres = np.rint(depth * 1000).astype(np.float32) / np.float32(1000)
  return (
    np.rint(color).clip(0, 255).astype(np.uint8).reshape(h, w, 3),
    metres.reshape(h, w),
    label.reshape(h, w),
  )
