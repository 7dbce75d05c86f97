"""Cabinets and bookshelves. All stand on z = 0, their back at -y."""

import numpy as np

from wsegpc_jax.data.synthetic.materials import draw
from wsegpc_jax.data.synthetic.mesh import (
  Assembly,
  Mesh,
  box,
  cylinder,
  moved,
  rod,
)


def _top(x, y, z):
  return ((-x + 0.02, -y + 0.02, x - 0.02, y - 0.02, z, 1.0),)


def _front(a, rng, material, knob, x, y, z0, z1, columns, rows):
  """Doors or drawers with handles on a front at y."""
  xs, zs = np.linspace(-x, x, columns + 1), np.linspace(z0, z1, rows + 1)
  gap, t = 0.006, rng.uniform(0.012, 0.022)
  style = rng.integers(3)
  for i in range(columns):
    for k in range(rows):
      x0, x1 = xs[i] + gap, xs[i + 1] - gap
      low, high = zs[k] + gap, zs[k + 1] - gap
      a.add(material, box(x0, x1, y, y + t, low, high))
      upright = high - low > 1.2 * (x1 - x0)
      if upright:  # a door: its handle at the side, mid-height
        m = x1 - 0.05 if i % 2 == 0 else x0 + 0.05
        n, w, h = (low + high) / 2, 0.01, min(0.12, 0.3 * (high - low))
      else:
        m, n, w, h = (
          (x0 + x1) / 2,
          (low + high) / 2,
          min(0.1, 0.3 * (x1 - x0)),
          0.009,
        )
      if style == 0:
        a.add(knob, box(m - w, m + w, y + t, y + t + 0.025, n - h, n + h))
      elif style == 1:
        ball = moved(
          cylinder(0.018, 0, 0.03, segments=8), (m, y + t, n), "x", -np.pi / 2
        )
        a.add(knob, ball)


def wardrobe(rng: np.random.Generator) -> Mesh:
  """Tall, with doors, sometimes drawers below them."""
  u, a = rng.uniform, Assembly()
  body = draw(rng, "wood", "paint")
  doors = body if rng.random() < 0.6 else draw(rng, "paint", "wood", "vivid")
  knob = draw(rng, "metal", "wood")
  columns = int(rng.integers(1, 4))
  x, y, z = columns * u(0.2, 0.3) + 0.05, u(0.22, 0.3), u(1.5, 2.0)
  a.add(body, box(-x, x, -y, y, 0, z))
  low = 0.06
  if rng.random() < 0.4:
    high = low + u(0.2, 0.35)
    _front(a, rng, doors, knob, x, y, low, high, columns, 1)
    low = high
  _front(a, rng, doors, knob, x, y, low, z - 0.03, columns, 1)
  if rng.random() < 0.4:
    a.add(body, box(-x - 0.02, x + 0.02, -y, y + 0.03, z, z + 0.04))
  return a.mesh("wardrobe")


def chest_of_drawers(rng: np.random.Generator) -> Mesh:
  """Drawers above each other, on feet or a plinth."""
  u, a = rng.uniform, Assembly()
  body = draw(rng, "wood", "paint", "metal")
  front = body if rng.random() < 0.6 else draw(rng, "paint", "wood", "vivid")
  knob = draw(rng, "metal", "wood", "paint")
  x, y, z = u(0.24, 0.55), u(0.2, 0.27), u(0.6, 1.25)
  foot = max(u(-0.05, 0.14), 0.0)
  a.add(body, box(-x, x, -y, y, foot, z))
  if foot > 0:
    for i in (-x + 0.04, x - 0.04):
      for j in (-y + 0.04, y - 0.04):
        a.add(body, cylinder(0.022, 0, foot, (i, j), 7))
  rows = max(2, int((z - foot) / u(0.16, 0.26)))
  _front(a, rng, front, knob, x, y, foot + 0.02, z - 0.03, 1 + (x > 0.45), rows)
  a.add(body, box(-x - 0.012, x + 0.012, -y, y + 0.02, z, z + 0.02))
  return a.mesh("drawers", tops=_top(x, y, z + 0.02))


def sideboard(rng: np.random.Generator) -> Mesh:
  """Low and wide, doors and drawers side by side, on legs."""
  u, a = rng.uniform, Assembly()
  body = draw(rng, "wood", "paint")
  front = body if rng.random() < 0.5 else draw(rng, "paint", "wood", "metal")
  legs = draw(rng, "wood", "metal")
  x, y, foot = u(0.5, 0.85), u(0.19, 0.26), u(0.06, 0.24)
  z = foot + u(0.38, 0.6)
  a.add(body, box(-x, x, -y, y, foot, z))
  for i in (-x + 0.07, x - 0.07):
    for j in (-y + 0.05, y - 0.05):
      tilt = 0.04 * np.sign(i)
      a.add(legs, rod((i + tilt, j, 0), (i, j, foot), 0.018))
  columns, rows = int(rng.integers(2, 5)), int(rng.integers(1, 3))
  _front(a, rng, front, legs, x, y, foot + 0.02, z - 0.02, columns, rows)
  return a.mesh("sideboard", tops=_top(x, y, z))


def open_cabinet(rng: np.random.Generator) -> Mesh:
  """Doors below, an open niche above them."""
  u, a = rng.uniform, Assembly()
  body = draw(rng, "wood", "paint", "metal")
  front = draw(rng, "paint", "wood", "vivid")
  knob = draw(rng, "metal", "wood")
  x, y, z = u(0.28, 0.5), u(0.18, 0.25), u(0.75, 1.3)
  cut, t = u(0.5, 0.7) * z, 0.02
  a.add(body, box(-x, x, -y, y, 0, cut))
  _front(
    a, rng, front, knob, x, y, 0.05, cut - 0.02, int(rng.integers(1, 3)), 1
  )
  a.add(body, box(-x, x, -y, -y + t, cut, z - t))
  for i in (-x, x - t):
    a.add(body, box(i, i + t, -y + t, y, cut, z - t))
  a.add(body, box(-x, x, -y, y, z - t, z))
  return a.mesh("niche", tops=_top(x, y, z))


def _books(a, rng, x0, x1, y0, y1, z, room):
  """A row of books with gaps, some of them lying."""
  u, x = rng.uniform, x0 + 0.01
  filled = x0 + (x1 - x0) * u(0.4, 1.0)
  palette = [
    draw(rng, "vivid", "fabric", "paint", "wood", kind="plain")
    for _ in range(4)
  ]
  while x < filled - 0.05:
    width = min(u(0.02, 0.09), filled - x)
    deep = min(y1 - y0, u(0.13, 0.24))
    material = palette[rng.integers(4)]
    if rng.random() < 0.08 and filled - x > 0.3:
      high = min(u(0.04, 0.14), 0.8 * room)
      a.add(material, box(x, x + 0.22, y0, y0 + deep, z, z + high))
      x += 0.23
      continue
    high = room * u(0.55, 0.93)
    a.add(material, box(x, x + width, y0, y0 + deep, z, z + high))
    x += width + (0.002 if rng.random() < 0.9 else u(0.03, 0.12))


def _case(rng, x, y, z, columns, shelves, *, back, name, low=0.05) -> Mesh:
  """An upright case of boards, filled with books."""
  u, a = rng.uniform, Assembly()
  wood, t = draw(rng, "wood", "paint", "metal"), u(0.015, 0.03)
  for i in (-x, x - t):
    a.add(wood, box(i, i + t, -y, y, 0, z))
  levels = np.linspace(low, z - t, shelves + 1)
  for h in levels:
    a.add(wood, box(-x + t, x - t, -y, y, h, h + t))
  xs = np.linspace(-x, x - t, columns + 1)
  for i in xs[1:-1]:
    for h, top in zip(levels[:-1], levels[1:], strict=True):
      a.add(wood, box(i, i + t, -y, y, h + t, top))
  if back:
    a.add(wood, box(-x + t, x - t, -y, -y + 0.008, low + t, z - t))
  tops = ()
  for h, top in zip(levels[:-1], levels[1:], strict=True):
    for i, j in zip(xs[:-1], xs[1:], strict=True):
      if rng.random() < 0.8:
        _books(a, rng, i + t, j, -y + 0.02, y - 0.02, h + t, top - h - t)
      elif top - h > 0.28 and j - i > 0.3:
        room = top - h - t - 0.01
        tops += ((i + t + 0.02, -y + 0.03, j - 0.02, y - 0.02, h + t, room),)
  if z < 1.5:
    tops += _top(x, y, z)
  return a.mesh(name, tops=tops)


def bookcase(rng: np.random.Generator) -> Mesh:
  """Tall with a back."""
  u = rng.uniform
  x, z = u(0.32, 0.6), u(1.4, 2.0)
  shelves = int(z / u(0.3, 0.4))
  columns = 1 + (x > 0.5)
  return _case(
    rng, x, u(0.12, 0.18), z, columns, shelves, back=True, name="case"
  )


def open_shelf(rng: np.random.Generator) -> Mesh:
  """A grid of cells that one looks through."""
  u = rng.uniform
  columns, rows = int(rng.integers(2, 5)), int(rng.integers(2, 5))
  cell = u(0.28, 0.37)
  return _case(
    rng, columns * cell / 2, u(0.14, 0.19), rows * cell + 0.05, columns, rows,
    back=False, name="grid", low=0.0,
  )  # fmt: skip


def low_bookcase(rng: np.random.Generator) -> Mesh:
  """Wide and low with a back."""
  u = rng.uniform
  x, z = u(0.4, 0.75), u(0.6, 1.05)
  return _case(
    rng, x, u(0.13, 0.18), z, int(rng.integers(1, 4)), int(rng.integers(2, 4)),
    back=True, name="low",
  )  # fmt: skip


def ladder_shelf(rng: np.random.Generator) -> Mesh:
  """Boards between leaning rails, deeper from board to board downwards."""
  u, a = rng.uniform, Assembly()
  wood = draw(rng, "wood", "metal", "paint")
  boards = wood if rng.random() < 0.5 else draw(rng, "wood", "paint")
  x, y, z = u(0.3, 0.45), u(0.17, 0.22), u(1.4, 1.9)
  n = int(rng.integers(4, 6))
  for i in (-x, x):
    a.add(wood, rod((i, y, 0), (i, -y + 0.05, z), 0.018))
    a.add(wood, rod((i, -y + 0.02, 0), (i, -y + 0.02, z), 0.018))
  for k in range(n):
    h = 0.12 + (z - 0.3) * k / (n - 1)
    front = y - (2 * y - 0.1) * h / z
    a.add(boards, box(-x, x, -y, front + 0.04, h, h + 0.022))
    room = (z - 0.3) / (n - 1) - 0.03
    _books(
      a,
      rng,
      -x + 0.03,
      x - 0.03,
      -y + 0.04,
      front + 0.02,
      h + 0.022,
      min(room, 0.3),
    )
  return a.mesh("ladder")


CABINETS = (wardrobe, chest_of_drawers, sideboard, open_cabinet)
BOOKSHELVES = (bookcase, open_shelf, low_bookcase, ladder_shelf)
