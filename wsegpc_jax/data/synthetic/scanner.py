"""Scanning a room: stands for a scanner, poses for a camera, the points.

A scanner sends rays evenly over all directions from a few stands, so points are
dense nearby and sparse far off and on what is seen askew, and there are none
behind objects.

Dimension letters: R rays, N points.
"""

import numpy as np

from wsegpc_jax.data.synthetic.layout import Room
from wsegpc_jax.data.synthetic.render import (
  Hits,
  World,
  camera_rays,
  look_at,
)

_STANDS = 4
_COLUMNS, _ROWS = 220, 90  # rays of a stand
_ELEVATION = np.deg2rad((-78.0, 8.0))
# Share of the rays that are sent, by elevation in degrees.
_INTEREST = (-78, -50, -20, -8, 8), (0.2, 0.6, 1.0, 0.7, 0.5)
_GRAZE = 0.1  # cosine below which rays return nothing
_LOST = 0.04  # share of the other rays that return nothing
_NOISE = (0.0015, 0.0008)  # metres, and of the distance
_MAX_NOISE = 3  # standard deviations
_NORMAL_NOISE = 0.06
_CANDIDATES = 28  # poses to choose a view from
_COARSE = (18, 24)  # size of the images to choose by
MAX_VIEWS = _CANDIDATES
_FOCAL = 0.6  # of the width: 80 degrees across


def intrinsics_of(image_size: tuple[int, int]) -> np.ndarray:
  """(fx, fy, cx, cy) of the cameras, pixels."""
  h, w = image_size
  return np.array([_FOCAL * w, _FOCAL * w, (w - 1) / 2, (h - 1) / 2])


def free_place(
  rng: np.random.Generator, room: Room, *, gap: float = 0.3
) -> np.ndarray:
  """A place [3] at the height of a head, off walls and furniture."""
  low, high = room.plan.corners.min(0), room.plan.corners.max(0)
  base = room.meshes[0].vertices[:, 2].min()
  while True:
    height = base + rng.uniform(1.25, 1.8)
    eye = np.append(rng.uniform(low, high), height)
    if room.stands_free(eye, gap):
      return eye
    gap *= 0.97  # there may be little free space


def scan(
  rng: np.random.Generator, room: Room, world: World
) -> dict[str, np.ndarray]:
  """Scans a room from several stands far from each other.

  Returns:
    coord float32 [N, 3], color uint8 [N, 3], normal float32 [N, 3] towards the
    scanner, label int32 [N].
  """
  stands = [free_place(rng, room)]
  while len(stands) < _STANDS:
    choice = np.array([free_place(rng, room) for _ in range(8)])
    away = np.linalg.norm(choice[:, None] - np.array(stands), axis=2).min(1)
    stands.append(choice[away.argmax()])
  clouds = [_scan_from(rng, world, eye) for eye in stands]
  return {k: np.concatenate([c[k] for c in clouds]) for k in clouds[0]}


def _scan_from(rng, world, eye):
  jitter = rng.uniform(0, 1, (2, _ROWS, _COLUMNS))
  low, high = _ELEVATION
  row, column = np.mgrid[:_ROWS, :_COLUMNS] + jitter
  elevation = low + (high - low) * row.ravel() / _ROWS
  azimuth = 2 * np.pi * column.ravel() / _COLUMNS
  # Who scans by hand looks at the furniture more than at walls or at the feet.
  share = np.interp(np.rad2deg(elevation), *_INTEREST)
  kept = rng.random(len(azimuth)) < share
  elevation, azimuth = elevation[kept], azimuth[kept]
  level = np.cos(elevation)
  ray = np.stack(
    [level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], 1
  )
  origin = np.broadcast_to(eye, ray.shape)
  hits = world.cast(origin, ray)
  rows = np.flatnonzero(hits.triangle >= 0)
  normal = world.normal[hits.triangle[rows]]
  cosine = -np.einsum("rd,rd->r", normal, ray[rows])
  shine = world.shine(
    Hits(hits.distance[rows], hits.triangle[rows], hits.weight[rows])
  )
  lost = _LOST + (1 - _LOST) * shine
  good = (np.abs(cosine) > _GRAZE) & (rng.random(len(rows)) > lost)
  rows, normal, cosine = rows[good], normal[good], cosine[good]
  hits = Hits(hits.distance[rows], hits.triangle[rows], hits.weight[rows])
  ray, origin = ray[rows], origin[rows]
  spread = _NOISE[0] + _NOISE[1] * hits.distance
  error = rng.normal(0, 1, len(rows)).clip(-_MAX_NOISE, _MAX_NOISE) * spread
  coord = world.places(hits) + error[:, None] * ray
  normal = normal * np.where(cosine < 0, -1.0, 1.0)[:, None]
  normal = normal + rng.normal(0, _NORMAL_NOISE, normal.shape)
  normal /= np.linalg.norm(normal, axis=1, keepdims=True)
  gain = rng.uniform(0.94, 1.06)
  color = world.colors(hits, origin) * gain + rng.normal(0, 4.0, coord.shape)
  return {
    "coord": coord.astype(np.float32),
    "color": np.rint(color).clip(0, 255).astype(np.uint8),
    "normal": normal.astype(np.float32),
    "label": world.label[hits.triangle].astype(np.int32),
  }


def choose_poses(
  rng: np.random.Generator, room: Room, world: World, views: int
) -> list[np.ndarray]:
  """Poses [4, 4] that show, together, as many of the objects as they can.

  Many are drawn, each looking at an object from somewhere; the one that shows
  most that was not seen well before is taken first, and so on.
  """
  intrinsics = intrinsics_of((_COARSE[0], _COARSE[1]))
  things = [m.vertices.mean(0) for m in room.meshes[1:]]
  poses, shows, gains = [], [], []
  for k in range(_CANDIDATES):
    eye = free_place(rng, room)
    target = things[k % len(things)] + rng.normal(0, 0.3, 3)
    target[2] = min(target[2], eye[2] - 0.1)
    away = target[:2] - eye[:2]
    if np.hypot(*away) < 0.8:  # do not look down one's own feet
      target[:2] = eye[:2] + 0.8 * away / max(np.hypot(*away), 1e-6)
    pose = look_at(eye, target)
    rays = camera_rays(pose, intrinsics, _COARSE)
    hits = world.cast(np.broadcast_to(eye, rays.shape), rays)
    hit = hits.triangle >= 0
    seen = np.bincount(
      world.owner[hits.triangle[hit]], minlength=len(room.meshes)
    )
    near = np.median(hits.distance[hit]) if hit.any() else 0.0
    poses.append(pose)
    shows.append(np.sqrt(np.minimum(seen, 60)))
    # A wall at arm's length shows nothing.
    gains.append((0.3 if near < 1.0 else 1.0) * hit.mean())
  shows, gains = np.array(shows), np.array(gains)
  best, chosen = np.zeros(len(room.meshes)), []
  for _ in range(views):
    gain = gains * (np.maximum(shows, best) - best).sum(1) + 0.1 * gains
    gain[chosen] = -1.0
    if len(chosen) < len(poses):
      chosen.append(int(gain.argmax()))
      best = np.maximum(best, shows[chosen[-1]])
  return [poses[k] for k in chosen]
