"""Doors and windows, built into the wall y = 0, x along it, the room at y > 0.

The hole reaches from y = 0 into the wall, to y = -DEPTH.
"""

import numpy as np

from wsegpc_jax.data.synthetic.materials import draw
from wsegpc_jax.data.synthetic.mesh import Assembly, Mesh, box, moved, rod

DEPTH = 0.12  # metres, of a hole


def _frame(a, material, x, z0, z1, *, sill: bool):
  """Boards around a hole on the wall, and lining inside it."""
  w, t = 0.05, 0.018
  for i, j in ((-x - w, -x), (x, x + w)):
    a.add(material, box(i, j, 0, t, z0, z1 + w))
  a.add(material, box(-x, x, 0, t, z1, z1 + w))
  if sill:
    a.add(material, box(-x - w, x + w, 0, 0.08, z0 - 0.03, z0))


def _panels(a, rng, material, x0, x1, y, z1):
  """Raised fields on a door leaf."""
  n = int(rng.integers(0, 4))
  edges = np.linspace(0.1, z1 - 0.1, n + 1) if n else []
  for low, high in zip(edges[:-1], edges[1:], strict=True):
    a.add(
      material, box(x0 + 0.09, x1 - 0.09, y, y + 0.012, low + 0.03, high - 0.03)
    )


def _handle(a, rng, x, y):
  metal = draw(rng, "metal", "vivid")
  z, way = rng.uniform(0.95, 1.1), -np.sign(x)
  a.add(metal, rod((x, y, z), (x, y + 0.05, z), 0.01))
  a.add(metal, rod((x, y + 0.05, z), (x + 0.11 * way, y + 0.05, z), 0.01))


def closed_door(rng: np.random.Generator) -> Mesh:
  """A leaf with fields and a handle in a frame."""
  u, a = rng.uniform, Assembly()
  leaf = draw(rng, "wood", "paint", "paint", "metal")
  frame = leaf if rng.random() < 0.5 else draw(rng, "wood", "paint", "metal")
  x, z, y = u(0.38, 0.48), u(1.85, 2.0), -u(0.02, 0.08)
  a.add(leaf, box(-x, x, y - 0.04, y, 0, z))
  _panels(a, rng, leaf, -x, x, y, z)
  _handle(a, rng, rng.choice([-1, 1]) * (x - 0.07), y)
  _frame(a, frame, x, 0, z, sill=False)
  return a.mesh("closed", hole=(2 * x, 0.0, z))


def double_door(rng: np.random.Generator) -> Mesh:
  """Two leaves, often with panes above."""
  u, a = rng.uniform, Assembly()
  leaf = draw(rng, "wood", "paint", "metal")
  x, z, y = u(0.5, 0.7), u(1.85, 2.0), -u(0.02, 0.07)
  glass = draw(rng, "sky", shine=0.35) if rng.random() < 0.5 else leaf
  cut = u(0.6, 1.1)
  for x0, x1 in ((-x, -0.004), (0.004, x)):
    if glass is leaf:
      a.add(leaf, box(x0, x1, y - 0.04, y, 0, z))
      _panels(a, rng, leaf, x0, x1, y, z)
    else:
      a.add(leaf, box(x0, x1, y - 0.04, y, 0, cut))
      a.add(leaf, box(x0, x1, y - 0.04, y, z - 0.1, z))
      for i in (x0, x1 - 0.09):
        a.add(leaf, box(i, i + 0.09, y - 0.04, y, cut, z - 0.1))
      a.add(
        glass, box(x0 + 0.09, x1 - 0.09, y - 0.025, y - 0.015, cut, z - 0.1)
      )
  _handle(a, rng, 0.05, y)
  _frame(a, leaf, x, 0, z, sill=False)
  return a.mesh("double", hole=(2 * x, 0.0, z))


def open_door(rng: np.random.Generator) -> Mesh:
  """A leaf that stands open into the room; one looks through the hole."""
  u, a = rng.uniform, Assembly()
  leaf = draw(rng, "wood", "paint", "metal")
  frame = leaf if rng.random() < 0.5 else draw(rng, "wood", "paint", "metal")
  x, z = u(0.36, 0.44), u(1.85, 2.0)
  part = Assembly()
  part.add(leaf, box(0, 2 * x, -0.04, 0, 0.01, z - 0.005))
  _panels(part, rng, leaf, 0, 2 * x, 0, z)
  _handle(part, rng, 2 * x - 0.07, 0.0)
  flat = part.mesh("")
  angle = u(0.35, 1.75)
  for i, material in enumerate(flat.materials):
    shape = flat.vertices, flat.triangles[flat.material == i]
    a.add(material, moved(moved(shape, (0, 0, 0), "z", angle), (-x, 0.045, 0)))
  _frame(a, frame, x, 0, z, sill=False)
  return a.mesh("open", hole=(2 * x, 0.0, z))


def sliding_door(rng: np.random.Generator) -> Mesh:
  """A leaf of boards that hangs from a rail before the wall."""
  u, a = rng.uniform, Assembly()
  leaf, rail = draw(rng, "wood", "paint", "vivid"), draw(rng, "metal", "wood")
  x, z, n = u(0.42, 0.55), u(1.85, 1.98), int(rng.integers(3, 6))
  edges = np.linspace(-x, x, n + 1)
  for x0, x1 in zip(edges[:-1], edges[1:], strict=True):
    a.add(leaf, box(x0 + 0.002, x1 - 0.002, 0.03, 0.06, 0.02, z))
  for low in (0.2, z - 0.3):
    a.add(leaf, box(-x, x, 0.06, 0.08, low, low + 0.11))
  a.add(
    rail, rod((-1.25 * x, 0.045, z + 0.06), (1.25 * x, 0.045, z + 0.06), 0.02)
  )
  for i in (-0.6 * x, 0.6 * x):
    a.add(rail, box(i - 0.02, i + 0.02, 0.03, 0.065, z, z + 0.06))
  a.add(rail, box(x - 0.12, x - 0.09, 0.06, 0.1, 0.9, 1.15))
  return a.mesh("sliding")


def _pane(a, rng, x, z0, z1, y):
  a.add(
    draw(rng, "sky", shine=0.4, size=(0.2, 0.8)),
    box(-x, x, y - 0.01, y, z0, z1),
  )


def casement_window(rng: np.random.Generator) -> Mesh:
  """Panes between bars, in a frame with a sill."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "paint", "wood", "metal")
  x, z0 = u(0.35, 0.7), u(0.75, 1.05)
  z1, y = z0 + u(0.7, 1.0), -u(0.05, 0.1)
  _pane(a, rng, x, z0, z1, y)
  w = u(0.02, 0.035)
  for i in np.linspace(-x + w, x - w, int(rng.integers(2, 4)) + 1):
    a.add(frame, box(i - w, i + w, y, y + 0.04, z0, z1))
  for k in np.linspace(z0 + w, z1 - w, int(rng.integers(2, 4))):
    a.add(frame, box(-x, x, y, y + 0.035, k - w, k + w))
  _frame(a, frame, x, z0, z1, sill=True)
  return a.mesh("casement", hole=(2 * x, z0, z1))


def large_window(rng: np.random.Generator) -> Mesh:
  """One pane, low or down to the floor, with a thin frame."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "paint", "metal", "wood")
  x, z0 = u(0.6, 1.0), u(0.1, 0.6)
  z1, y, w = u(1.7, 2.0), -u(0.05, 0.1), u(0.03, 0.06)
  _pane(a, rng, x, z0, z1, y)
  for i in (-x, x - w):
    a.add(frame, box(i, i + w, y, y + 0.05, z0, z1))
  for k in (z0, z1 - w):
    a.add(frame, box(-x + w, x - w, y, y + 0.05, k, k + w))
  if rng.random() < 0.5:
    m = u(-0.4, 0.4) * x
    a.add(frame, box(m - w / 2, m + w / 2, y, y + 0.05, z0 + w, z1 - w))
  return a.mesh("large", hole=(2 * x, z0, z1))


def blind_window(rng: np.random.Generator) -> Mesh:
  """A blind of slats before the upper part of a pane."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "paint", "wood", "metal")
  blind = draw(rng, "paint", "fabric", "wood", "metal", kind="plain")
  x, z0 = u(0.4, 0.75), u(0.7, 1.0)
  z1, y = z0 + u(0.75, 1.05), -0.08
  _pane(a, rng, x, z0, z1, y)
  low = z0 + u(0.0, 0.6) * (z1 - z0)
  for k in np.arange(z1 - 0.06, low, -u(0.04, 0.07)):
    slat = box(-x + 0.01, x - 0.01, -0.02, 0.02, -0.003, 0.003)
    a.add(blind, moved(moved(slat, (0, 0, 0), "x", 0.7), (0, -0.03, k)))
  a.add(blind, box(-x, x, -0.06, 0.0, z1 - 0.05, z1))
  _frame(a, frame, x, z0, z1, sill=True)
  return a.mesh("blind", hole=(2 * x, z0, z1))


DOORS = (closed_door, double_door, open_door, sliding_door)
WINDOWS = (casement_window, large_window, blind_window)
