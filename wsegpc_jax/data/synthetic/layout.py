"""What stands where in a synthetic room.

Whether a class occurs is drawn first, each by itself with a chance that depends
a little on what the room is for; then things are put where such things stand:
beds, sofas and cabinets with their backs at walls, chairs at tables, pillows on
beds and sofas, lamps and plants on the floor or on what has a top. Nothing is
put where it would cut into something else.

Dimension letters: F footprints.
"""

import dataclasses

import numpy as np

from wsegpc_jax.data.synthetic import structure
from wsegpc_jax.data.synthetic.mesh import Mesh
from wsegpc_jax.data.synthetic.objects import CLASSES, build

# Chance that a room has the class: mean over what rooms are for, and by how
# much living room, bedroom, study and dining room differ from it.
_CHANCE = {
  "door": (0.5, (0, 0, 0, 0)),
  "window": (0.49, (0, 0, 0, 0)),
  "bed": (0.43, (-0.26, 0.4, -0.04, -0.1)),
  "sofa": (0.49, (0.3, -0.08, -0.12, -0.1)),
  "cabinet": (0.43, (-0.05, 0.15, -0.05, -0.05)),
  "bookshelf": (0.41, (0.0, -0.1, 0.2, -0.1)),
  "table": (0.53, (-0.02, -0.2, 0.11, 0.2)),
  "chair": (0.4, (-0.12, -0.15, 0.15, 0.2)),
  "picture": (0.43, (0.08, 0.0, -0.04, -0.04)),
  "lamp": (0.45, (0.08, 0.06, 0.0, -0.14)),
  "plant": (0.46, (0.06, -0.06, 0.0, 0.0)),
  "pillow": (0.38, (0.12, 0.12, -0.12, -0.12)),
  "box": (0.43, (-0.06, 0.02, 0.06, -0.02)),
}
_MOST = {
  "door": 2, "window": 2, "bed": 2, "sofa": 2, "cabinet": 2, "bookshelf": 2,
  "table": 2, "chair": 4, "picture": 3, "lamp": 3, "plant": 3, "pillow": 5,
  "box": 4,
}  # fmt: skip
_ON_WALL = ("door", "window", "picture")
_AT_WALL = {"bed": 0.9, "sofa": 0.75, "cabinet": 1.0, "bookshelf": 0.95}
_SMALL = ("lamp", "plant", "pillow", "box")
_GAP = 0.02  # metres, between things
_TRIES = 60


@dataclasses.dataclass(frozen=True)
class Placed:
  """A thing in a room.

  Attributes:
    name: its class.
    mesh: where it stands.
    corners: float64 [4, 2], its footprint, metres.
    low, high: metres, its extent along z.
  """

  name: str
  mesh: Mesh
  corners: np.ndarray
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Room:
  """Everything in a room; the floor and the walls come first.

  Attributes:
    plan: outline; its first corner may be anywhere.
    meshes: in the coordinates of the room.
    label: class of each mesh, position in CLASSES.
    things: what has a footprint, for finding a place to stand.
  """

  plan: structure.Plan
  meshes: tuple[Mesh, ...]
  label: tuple[int, ...]
  things: tuple[Placed, ...]

  def stands_free(self, eye: np.ndarray, gap: float) -> bool:
    """Whether a place [3] is in the room, `gap` metres off all things."""
    probe = eye[:2] + gap * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    if not _inside(self.plan, probe):
      return False
    near = [t.corners for t in self.things if t.high > eye[2] - gap]
    return not near or not _overlaps(probe, np.array(near), 0.0).any()


def make_layout(rng: np.random.Generator) -> Room:
  """Draws a room with at least three kinds of furniture or clutter."""
  while True:
    builder = _Builder(rng)
    if len({t.name for t in builder.things} - set(_ON_WALL)) >= 3:
      return builder.room()


class _Builder:
  """Puts things into a room one by one."""

  def __init__(self, rng: np.random.Generator):
    self.rng = rng
    self.plan = structure.draw_plan(rng)
    self.things: list[Placed] = []
    # What nothing may stand in: the ways to doors, the light of windows.
    self.zones: list[tuple[np.ndarray, float, float]] = []
    self.holes: list[list] = [[] for _ in self.plan.corners]
    self.tops: list[tuple[int, tuple, np.ndarray, float]] = []
    self.seats: list[tuple[int, np.ndarray, float]] = []
    purpose = int(rng.integers(4))
    counts = {}
    for name, (mean, differ) in _CHANCE.items():
      there = rng.random() < mean + differ[purpose]
      counts[name] = int(rng.integers(1, _MOST[name] + 1)) if there else 0
    for name in _CHANCE:
      for _ in range(counts[name]):
        mesh = build(name, rng)
        if name in _ON_WALL:
          self._hang(name, mesh)
        elif name == "chair" and self.seats and rng.random() < 0.8:
          self._seat(mesh)
        elif name in _SMALL:
          self._put_small(name, mesh)
        else:
          self._put_down(name, mesh, _AT_WALL.get(name, 0.4))

  def room(self) -> Room:
    """The whole, moved: a capture has its origin anywhere."""
    rng, plan = self.rng, self.plan
    meshes, label = [structure.floor(rng, plan)], [CLASSES.index("floor")]
    for k, material in enumerate(structure.wall_materials(rng, plan)):
      start, way, _, length = plan.wall(k)
      mesh = structure.wall(material, length, plan.height, self.holes[k])
      meshes.append(mesh.placed((*start, 0), np.arctan2(way[1], way[0])))
      label.append(CLASSES.index("wall"))
    meshes += [t.mesh for t in self.things]
    label += [CLASSES.index(t.name) for t in self.things]
    origin = np.append(rng.uniform(-1, 1, 2), rng.uniform(-0.1, 0.1))
    return Room(
      plan=dataclasses.replace(
        plan,
        corners=plan.corners + origin[:2],
        cut=None if plan.cut is None else plan.cut + origin[:2],
      ),
      meshes=tuple(mesh.placed(origin) for mesh in meshes),
      label=tuple(label),
      things=tuple(
        dataclasses.replace(
          t,
          mesh=t.mesh.placed(origin),
          corners=t.corners + origin[:2],
          low=t.low + origin[2],
          high=t.high + origin[2],
        )
        for t in self.things
      ),
    )

  def _place(
    self, name, mesh: Mesh, place, angle, *, tilt=0.0, ignore=(), wall=False
  ) -> bool:
    """Puts a thing there if it fits."""
    there = mesh.placed(place, angle, tilt)
    flat = mesh.placed((0, 0, 0), 0.0, tilt).vertices
    (x0, y0, _), (x1, y1, _) = flat.min(0), flat.max(0)
    corners = _turned([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], angle)
    corners = corners + np.asarray(place)[:2]
    low, high = there.vertices[:, 2].min(), there.vertices[:, 2].max()
    if not wall and not _inside(self.plan, corners):
      return False
    others = [
      (t.corners, t.low, t.high)
      for k, t in enumerate(self.things)
      if k not in ignore
    ] + self.zones
    near = [c for c, z0, z1 in others if z0 < high - 1e-6 and z1 > low + 1e-6]
    if near and _overlaps(corners, np.array(near), _GAP).any():
      return False
    if high > self.plan.height:
      return False
    number = len(self.things)
    self.things.append(Placed(name, there, corners, low, high))
    if not tilt:
      place = np.array(place, np.float64)
      self.tops += [(number, top, place, angle) for top in mesh.tops]
      for x, y, way in mesh.seats:
        seat = _turned([(x, y)], angle)[0] + place[:2]
        self.seats.append((number, seat, way + angle))
    return True

  def _draw_wall(self, width: float):
    """A wall that has room for the width, and a place on it; or None."""
    lengths = np.array([self.plan.wall(k)[3] for k in range(len(self.holes))])
    usable = (lengths - width).clip(0)
    if not usable.any():
      return None
    k = int(self.rng.choice(len(usable), p=usable / usable.sum()))
    along = self.rng.uniform(width / 2, lengths[k] - width / 2)
    start, way, inward, _ = self.plan.wall(k)
    return (
      k,
      float(along),
      start + along * way,
      inward,
      np.arctan2(way[1], way[0]),
    )

  def _hang(self, name: str, mesh: Mesh) -> bool:
    (x0, _, z0), (x1, y1, z1) = mesh.vertices.min(0), mesh.vertices.max(0)
    width = 2 * max(-x0, x1) + 0.2
    for _ in range(_TRIES):
      found = self._draw_wall(width)
      if found is None:
        return False
      k, along, spot, inward, angle = found
      z = 0.0
      if name == "picture":
        z = self.rng.uniform(1.25, 1.6)
        if z + z1 > self.plan.height - 0.05:
          continue
      if not self._place(name, mesh, (*spot, z), angle, wall=True):
        continue
      if mesh.hole:
        half = mesh.hole[0] / 2
        self.holes[k].append((along - half, along + half, *mesh.hole[1:]))
      if name != "picture":
        deep = max(0.65, y1 + 0.05) if name == "door" else 0.25
        zone = [(x0, 0), (x1, 0), (x1, deep), (x0, deep)]
        low = 0.0 if name == "door" else z0
        self.zones.append((_turned(zone, angle) + spot, low, z1))
      return True
    return False

  def _put_down(self, name: str, mesh: Mesh, at_wall: float) -> bool:
    rng = self.rng
    (x0, y0, _), (x1, *_) = mesh.vertices.min(0), mesh.vertices.max(0)
    low, high = self.plan.corners.min(0), self.plan.corners.max(0)
    by_wall = rng.random() < at_wall
    for trial in range(_TRIES):
      if by_wall and trial < _TRIES // 2:
        found = self._draw_wall(x1 - x0 + 0.06)
        if found is None:
          continue
        _, _, spot, inward, angle = found
        skew = rng.normal(0, 0.02) * (rng.random() < 0.5)
        angle = angle + skew
        away = rng.uniform(0.01, 0.05) + abs(skew) * (x1 - x0) / 2 - y0
        place = (*(spot + away * inward), 0.0)
      else:
        turns = rng.integers(4) * np.pi / 2
        angle = turns + rng.normal(0, 0.12)
        if rng.random() < 0.25:
          angle = rng.uniform(0, 2 * np.pi)
        place = (*rng.uniform(low, high), 0.0)
      if self._place(name, mesh, place, angle):
        return True
    return False

  def _seat(self, mesh: Mesh) -> bool:
    """A chair at a table, drawn up to it or pushed back."""
    front = mesh.vertices[:, 1].max()
    for _ in range(len(self.seats)):
      number, spot, way = self.seats.pop(0)
      away = front + self.rng.uniform(-0.12, 0.2)
      place = spot - away * np.array([np.cos(way), np.sin(way)])
      angle = way - np.pi / 2 + self.rng.normal(0, 0.15)
      if self._place("chair", mesh, (*place, 0.0), angle, ignore=(number,)):
        return True
    return self._put_down("chair", mesh, 0.4)

  def _put_small(self, name: str, mesh: Mesh) -> bool:
    rng, size = self.rng, np.ptp(mesh.vertices, axis=0)
    soft = [t for t in self.tops if self.things[t[0]].name in ("bed", "sofa")]
    hard = [
      t for t in self.tops if self.things[t[0]].name not in ("bed", "sofa")
    ]
    tops, share = (soft, 0.9) if name == "pillow" else (hard, 0.75)
    if name == "box":
      share = 0.3
    if tops and size[2] < 0.75 and rng.random() < share:
      for _ in range(_TRIES // 2):
        number, top, place, angle = tops[rng.integers(len(tops))]
        x0, y0, x1, y1, z, room = top
        tilt = 0.0
        if name == "pillow" and rng.random() < 0.5:
          tilt = rng.uniform(0.9, 1.35)  # upright
        tilted = mesh.placed((0, 0, 0), 0.0, tilt).vertices
        half = np.ptp(tilted, axis=0)[:2] / 2
        if (
          np.ptp(tilted[:, 2]) > room
          or x1 - x0 < 2 * half[0]
          or y1 - y0 < 2 * half[1]
        ):
          continue
        spot = rng.uniform((x0, y0), (x1, y1), 2)
        spot = spot.clip((x0, y0) + half, (x1, y1) - half)
        center = (tilted.min(0) + tilted.max(0))[:2] / 2
        turn = angle + rng.normal(0, 0.2)
        spot = _turned([spot], angle)[0] - _turned([center], turn)[0]
        spot = (*(spot + place[:2]), z - tilted[:, 2].min())
        if self._place(name, mesh, spot, turn, tilt=tilt, ignore=(number,)):
          return True
    return self._put_down(name, mesh, 0.3)


def _turned(points, angle: float) -> np.ndarray:
  """Points [..., 2] of the plane turned counterclockwise by radians."""
  c, s = np.cos(angle), np.sin(angle)
  x, y = np.asarray(points, np.float64).T
  return np.stack([c * x - s * y, s * x + c * y], -1)


def _inside(plan: structure.Plan, corners: np.ndarray) -> bool:
  """Whether a convex footprint [4, 2] is within the outline."""
  low, high = plan.corners.min(0), plan.corners.max(0)
  if (corners < low).any() or (corners > high).any():
    return False
  if plan.cut is None:
    return True
  (x0, y0), (x1, y1) = plan.cut
  cut = np.array([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]])
  return not _overlaps(corners, cut, 0.0).any()


def _overlaps(corners, others, gap: float) -> np.ndarray:
  """Which footprints [F, 4, 2] come closer than `gap` to one: bool [F].

  Rectangles are apart if they are along a side of one of them (separating
  axes).
  """
  apart = np.zeros(len(others), bool)
  for side in (0, 1):
    for axis in (
      corners[side + 1] - corners[side],
      others[:, side + 1] - others[:, side],
    ):
      axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
      axis = np.broadcast_to(axis, (len(others), 2))
      a = np.einsum("fd,cd->fc", axis, corners)
      b = np.einsum("fd,fcd->fc", axis, others)
      apart |= (a.min(1) > b.max(1) + gap) | (b.min(1) > a.max(1) + gap)
  return ~apart
