"""Floor and walls of a room, with holes for doors and windows.

The plan is a rectangle or an L; its corners run counterclockwise, so that the
room lies to the left of every wall. Walls are sheets that one sees from inside.

Dimension letters: C corners of the plan, and so walls.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from wsegpc_jax.data.synthetic.materials import Material, draw
from wsegpc_jax.data.synthetic.mesh import Assembly, Mesh, Shape, box
from wsegpc_jax.data.synthetic.openings import DEPTH


@dataclasses.dataclass(frozen=True)
class Plan:
  """The outline of a room.

  Attributes:
    corners: float64 [C, 2], metres, counterclockwise.
    height: of the walls, metres.
    cut: [2, 2], lowest and highest corner of what an L lacks of its bounding
      box; None of a rectangle.
  """

  corners: Float[np.ndarray, "c 2"]
  height: float
  cut: Float[np.ndarray, "2 2"] | None = None

  def wall(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Start, direction, inward normal [2] and length of wall k."""
    start = self.corners[k]
    way = self.corners[(k + 1) % len(self.corners)] - start
    length = float(np.hypot(*way))
    way = way / length
    return start, way, np.array([-way[1], way[0]]), length


def draw_plan(rng: np.random.Generator) -> Plan:
  """Draws a rectangle or, in a third of the rooms, an L."""
  # Small rooms are more common than large ones.
  size = 3.0 + 4.0 * rng.beta(1.0, 6.5, 2)
  height = float(rng.uniform(2.1, 2.5))
  if rng.random() > 0.33 or size.min() < 3.3:
    w, d = size
    return Plan(np.array([[0, 0], [w, 0], [w, d], [0, d]]), height)
  size = size + rng.uniform(0.2, 0.7, 2)
  w, d = size
  a, b = size * rng.uniform(0.3, 0.5, 2)
  # The upper right part is missing; then it is turned.
  corners = np.array(
    [[0, 0], [w, 0], [w, d - b], [w - a, d - b], [w - a, d], [0, d]]
  )
  cut = np.array([[w - a, d - b], [w, d]])
  for _ in range(int(rng.integers(4))):
    corners = np.stack([d - corners[:, 1], corners[:, 0]], 1)
    cut = np.stack([d - cut[::-1, 1], cut[:, 0]], 1)
    w, d = d, w
  return Plan(corners, height, cut)


def floor(rng: np.random.Generator, plan: Plan) -> Mesh:
  """The floor, on to below the walls, sometimes with a rug on it."""
  a = Assembly()
  kind = rng.choice(3, p=[0.55, 0.22, 0.23])
  material = (
    draw(rng, "wood", size=(0.08, 0.25)),
    draw(rng, "paint", "metal", "fabric", kind="tiles", size=(0.08, 0.2)),
    draw(rng, "fabric", "paint", size=(0.05, 0.4)),
  )[kind]
  low, high = plan.corners.min(0) - DEPTH, plan.corners.max(0) + DEPTH
  corners = [
    (low[0], low[1], 0),
    (high[0], low[1], 0),
    (high[0], high[1], 0),
    (low[0], high[1], 0),
  ]
  a.add(material, _sheet(corners))
  if rng.random() < 0.35:
    x, y = rng.uniform(0.5, 1.1, 2)
    middle = low + (high - low) * rng.uniform(0.4, 0.6, 2)
    rug = draw(rng, "fabric", "vivid", "paint", size=(0.06, 0.3))
    i, j = middle
    a.add(rug, box(i - x, i + x, j - y, j + y, 0, 0.012))
  return a.mesh("floor")


def wall_materials(rng: np.random.Generator, plan: Plan) -> list[Material]:
  """One for all walls, and sometimes another one for one of them."""

  def one():
    families, kind = (
      (("paint",), None),
      (("wood",), "grain"),
      (("wood", "metal", "paint"), "tiles"),
      (("paint", "fabric", "vivid"), None),
    )[rng.choice(4, p=[0.75, 0.07, 0.08, 0.1])]
    return draw(rng, *families, kind=kind, size=(0.08, 0.35))

  materials = [one()] * len(plan.corners)
  if rng.random() < 0.35:
    materials[rng.integers(len(materials))] = one()
  return materials


def wall(
  material: Material,
  length: float,
  height: float,
  holes: list[tuple[float, float, float, float]],
) -> Mesh:
  """A wall along x from 0 to `length`, the room at y > 0.

  Args:
    material: of the wall.
    length, height: metres.
    holes: (x0, x1, z0, z1) of holes that do not overlap; their sides reach to
      y = -DEPTH.
  """
  a, last = Assembly(), 0.0

  def front(x0, x1, z0, z1):
    if x1 > x0 and z1 > z0:
      a.add(
        material, _sheet([(x1, 0, z0), (x0, 0, z0), (x0, 0, z1), (x1, 0, z1)])
      )

  for x0, x1, z0, z1 in sorted(holes):
    front(last, x0, 0, height)
    front(x0, x1, 0, z0)
    front(x0, x1, z1, height)
    d = -DEPTH
    a.add(
      material,
      _sheet([(x0, 0, z0), (x0, d, z0), (x0, d, z1), (x0, 0, z1)]),
      _sheet([(x1, d, z0), (x1, 0, z0), (x1, 0, z1), (x1, d, z1)]),
      _sheet([(x0, 0, z1), (x0, d, z1), (x1, d, z1), (x1, 0, z1)]),
    )
    if z0 > 0:  # the floor goes on through a door
      a.add(
        material, _sheet([(x0, d, z0), (x0, 0, z0), (x1, 0, z0), (x1, d, z0)])
      )
    last = x1
  front(last, length, 0, height)
  return a.mesh("wall")


def _sheet(corners) -> Shape:
  """A rectangle whose corners turn counterclockwise for who sees it."""
  return np.array(corners, np.float64), np.array([[0, 1, 2], [0, 2, 3]])
