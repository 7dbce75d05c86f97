"""Tables and beds. All stand on z = 0 around the z axis, their back at -y."""

import numpy as np

from wsegpc_jax.data.synthetic.materials import draw
from wsegpc_jax.data.synthetic.mesh import (
  Assembly,
  Mesh,
  box,
  cushion,
  cylinder,
  lathe,
  rod,
  taper,
)


def _seats(rng, x, y, sides):
  """Places for chairs at the sides of a table, in random order."""
  there = []
  for side in sides:
    along, away = (x, y) if side in "fb" else (y, x)
    n = max(1, int(2 * along // 0.65))
    for k in range(n):
      t = along * ((2 * k + 1) / n - 1)
      place = {
        "f": (t, away, -np.pi / 2), "b": (t, -away, np.pi / 2),
        "r": (away, t, np.pi), "l": (-away, t, 0.0),
      }[side]  # fmt: skip
      there.append(tuple(float(v) for v in place))
  return tuple(there[k] for k in rng.permutation(len(there)))


def _top(a, material, x, y, z, thick):
  a.add(material, box(-x, x, -y, y, z - thick, z))
  return ((-x, -y, x, y, z, 1.0),)


def four_leg_table(rng: np.random.Generator) -> Mesh:
  """A board on four square, round or tapered legs, often with an apron."""
  u, a = rng.uniform, Assembly()
  board = draw(rng, "wood", "paint", "metal")
  legs = board if rng.random() < 0.6 else draw(rng, "metal", "wood", "paint")
  x, y, z = u(0.45, 0.85), u(0.33, 0.48), u(0.68, 0.79)
  thick, w = u(0.02, 0.05), u(0.02, 0.04)
  tops = _top(a, board, x, y, z, thick)
  style, inset = rng.integers(3), u(0.0, 0.06)
  for i in (-1, 1):
    for j in (-1, 1):
      px, py = i * (x - w - inset), j * (y - w - inset)
      if style == 0:
        leg = box(px - w, px + w, py - w, py + w, 0, z - thick)
      elif style == 1:
        foot = (px + i * inset, py + j * inset, 0)
        leg = rod(foot, (px, py, z - thick), w)
      else:
        s = 0.5 * w
        leg = taper(
          (px - s, px + s, py - s, py + s), (px - w, px + w, py - w, py + w),
          0, z - thick,
        )  # fmt: skip
      a.add(legs, leg)
  if rng.random() < 0.6:
    h, e = u(0.05, 0.1), inset + 2 * w
    for j in (-1, 1):
      m = j * (y - w - inset)
      a.add(
        legs, box(-x + e, x - e, m - 0.01, m + 0.01, z - thick - h, z - thick)
      )
      m = j * (x - w - inset)
      a.add(
        legs, box(m - 0.01, m + 0.01, -y + e, y - e, z - thick - h, z - thick)
      )
  return a.mesh("four_leg", tops=tops, seats=_seats(rng, x, y, "fbrl"))


def pedestal_table(rng: np.random.Generator) -> Mesh:
  """A round board on one column."""
  u, a = rng.uniform, Assembly()
  board, foot = draw(rng, "wood", "paint"), draw(rng, "metal", "wood", "paint")
  r, z, thick = u(0.36, 0.62), u(0.66, 0.78), u(0.02, 0.05)
  a.add(board, lathe([(r, z - thick), (r, z)], 24))
  c = u(0.03, 0.06)
  if rng.random() < 0.6:
    f = u(0.5, 0.7) * r
    a.add(
      foot,
      lathe(
        [
          (f, 0),
          (f, 0.02),
          (c, 0.07),
          (c, z - thick - 0.04),
          (3 * c, z - thick),
        ]
      ),
    )
  else:
    a.add(foot, cylinder(c, 0.06, z - thick))
    for k in range(4):
      i, j = np.cos(k * np.pi / 2 + 0.4), np.sin(k * np.pi / 2 + 0.4)
      a.add(foot, rod((0, 0, 0.16), (0.7 * r * i, 0.7 * r * j, 0.02), 0.02))
  s = 0.62 * r
  n = int(rng.integers(3, 5))
  angles = 2 * np.pi * (np.arange(n) + rng.random()) / n
  seats = tuple(
    (float(r * np.cos(t)), float(r * np.sin(t)), float(t + np.pi))
    for t in angles
  )
  return a.mesh("pedestal", tops=((-s, -s, s, s, z, 1.0),), seats=seats)


def trestle_table(rng: np.random.Generator) -> Mesh:
  """A board on two A-shaped trestles or two panels with a rail."""
  u, a = rng.uniform, Assembly()
  board, legs = draw(rng, "wood", "paint"), draw(rng, "wood", "metal", "vivid")
  x, y, z, thick = u(0.55, 0.9), u(0.33, 0.45), u(0.7, 0.78), u(0.02, 0.05)
  tops = _top(a, board, x, y, z, thick)
  e = x - u(0.1, 0.25)
  if rng.random() < 0.5:
    for i in (-e, e):
      for side in (-1, 1):
        for j in (-0.75 * y, 0.75 * y):
          a.add(legs, rod((i + 0.14 * side, j, 0), (i, j, z - thick), 0.018))
      a.add(
        legs,
        box(
          i - 0.03, i + 0.03, -0.85 * y, 0.85 * y, z - thick - 0.05, z - thick
        ),
      )
  else:
    for i in (-e, e):
      a.add(legs, box(i - 0.02, i + 0.02, -0.8 * y, 0.8 * y, 0, z - thick))
    a.add(legs, box(-e + 0.02, e - 0.02, -0.02, 0.02, 0.2, 0.32))
  return a.mesh("trestle", tops=tops, seats=_seats(rng, x, y, "fb"))


def desk(rng: np.random.Generator) -> Mesh:
  """A board on a chest of drawers at one side and legs at the other."""
  u, a = rng.uniform, Assembly()
  board = draw(rng, "wood", "paint", "metal")
  chest = board if rng.random() < 0.5 else draw(rng, "paint", "wood", "metal")
  knob = draw(rng, "metal", "vivid")
  x, y, z, thick = u(0.55, 0.8), u(0.28, 0.38), u(0.7, 0.77), u(0.02, 0.04)
  tops = _top(a, board, x, y, z, thick)
  w, n = u(0.3, 0.42), int(rng.integers(2, 5))
  side = rng.choice([-1, 1])
  x0, x1 = sorted((side * x, side * (x - w)))
  a.add(chest, box(x0, x1, -y, y - 0.03, 0.03, z - thick))
  step = (z - thick - 0.05) / n
  for k in range(n):
    low = 0.04 + k * step
    a.add(
      chest,
      box(x0 + 0.01, x1 - 0.01, y - 0.03, y - 0.01, low, low + step - 0.012),
    )
    m = (x0 + x1) / 2
    a.add(
      knob,
      box(
        m - 0.05,
        m + 0.05,
        y - 0.01,
        y + 0.01,
        low + step / 2,
        low + step / 2 + 0.012,
      ),
    )
  other = -side * (x - 0.03)
  if rng.random() < 0.5:
    a.add(chest, box(other - 0.02, other + 0.02, -y, y - 0.02, 0, z - thick))
  else:
    for j in (-y + 0.04, y - 0.04):
      a.add(knob, rod((other, j, 0), (other, j, z - thick), 0.02))
  seat = (-side * w / 2, y, -np.pi / 2)
  return a.mesh("desk", tops=tops, seats=(tuple(map(float, seat)),))


def low_table(rng: np.random.Generator) -> Mesh:
  """A low one for the sofa, with a second board or closed sides."""
  u, a = rng.uniform, Assembly()
  wood = draw(rng, "wood", "paint", "metal")
  x, y, z, thick = u(0.35, 0.6), u(0.25, 0.4), u(0.36, 0.5), u(0.02, 0.06)
  tops = _top(a, wood, x, y, z, thick)
  if rng.random() < 0.5:
    other = wood if rng.random() < 0.5 else draw(rng, "metal", "wood")
    for i in (-x + 0.03, x - 0.03):
      for j in (-y + 0.03, y - 0.03):
        a.add(other, box(i - 0.02, i + 0.02, j - 0.02, j + 0.02, 0, z - thick))
    a.add(wood, box(-x + 0.05, x - 0.05, -y + 0.05, y - 0.05, 0.1, 0.12))
  else:
    for i in (-x + 0.02, x - 0.02):
      a.add(wood, box(i - 0.02, i + 0.02, -y, y, 0, z - thick))
    a.add(wood, box(-x + 0.04, x - 0.04, -0.01, 0.01, 0.05, z - thick))
  return a.mesh("low", tops=tops)


def _bedding(a, rng, x, y0, y1, low, high):
  """A mattress, and a blanket over a part of it."""
  u = rng.uniform
  sheet = draw(rng, "paint", "fabric", size=(0.06, 0.25))
  mid = (y0 + y1) / 2
  half = (x - 0.02, (y1 - y0) / 2 - 0.01, (high - low) / 2)
  a.add(sheet, cushion((0, mid, (low + high) / 2), half, 9))
  if rng.random() < 0.8:
    cover = draw(rng, "fabric", "fabric", "vivid", "paint", size=(0.06, 0.3))
    start = y0 + (y1 - y0) * u(0.2, 0.5)
    drop = high - u(0.05, 0.2)
    end = y1 - u(0.0, 0.1)
    a.add(
      cover,
      cushion(
        (0, (start + end) / 2, high), (x + 0.01, (end - start) / 2, 0.035), 9
      ),
    )
    for i in (-x - 0.012, x - 0.008):
      a.add(cover, box(i, i + 0.02, start + 0.05, end - 0.05, drop, high))
  return ((-x + 0.1, y0 + 0.1, x - 0.1, y0 + 0.55, high, 0.7),)


def headboard_bed(rng: np.random.Generator) -> Mesh:
  """A frame with a board, a padded wall or bars at the head."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "wood", "paint", "metal")
  x, y, z = u(0.45, 0.85), u(0.95, 1.06), u(0.25, 0.36)
  style = rng.integers(3)
  head = draw(rng, "fabric", "paint", "wood") if style == 1 else frame
  tall = u(0.75, 1.15)
  if style < 2:
    t = u(0.04, 0.1)
    a.add(head, box(-x, x, -y, -y + t, 0, tall))
  else:
    t = 0.04
    for i in np.linspace(-x + 0.02, x - 0.02, int(rng.integers(6, 10))):
      a.add(
        head,
        box(
          i - 0.015,
          i + 0.015,
          -y,
          -y + t,
          0 if abs(i) > x - 0.03 else 0.2,
          tall - 0.05,
        ),
      )
    a.add(head, box(-x, x, -y, -y + t, tall - 0.05, tall))
  a.add(frame, box(-x, x, -y + t, y, z - u(0.1, 0.18), z))
  for i in (-x + 0.04, x - 0.04):
    for j in (-y + t + 0.05, y - 0.05):
      a.add(frame, box(i - 0.03, i + 0.03, j - 0.03, j + 0.03, 0, z - 0.05))
  foot = rng.random() < 0.4
  if foot:
    a.add(frame, box(-x, x, y, y + 0.04, 0.05, z + u(0.1, 0.35)))
  tops = _bedding(a, rng, x, -y + t, y, z, z + u(0.14, 0.24))
  return a.mesh("headboard", tops=tops)


def box_bed(rng: np.random.Generator) -> Mesh:
  """A divan down to the floor, without a head."""
  u, a = rng.uniform, Assembly()
  base = draw(rng, "fabric", "paint", "wood")
  x, y, z = u(0.42, 0.8), u(0.95, 1.04), u(0.2, 0.34)
  a.add(base, box(-x, x, -y, y, u(0.02, 0.08), z))
  for i in (-x + 0.06, x - 0.06):
    for j in (-y + 0.06, y - 0.06):
      a.add(base, cylinder(0.03, 0, 0.1, (i, j), 7))
  tops = _bedding(a, rng, x, -y, y, z, z + u(0.15, 0.26))
  return a.mesh("box", tops=tops)


def bunk_bed(rng: np.random.Generator) -> Mesh:
  """Two beds above each other, with a ladder."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "wood", "paint", "metal", "vivid")
  x, y = u(0.42, 0.5), u(0.95, 1.02)
  low, high, tall = u(0.28, 0.38), u(1.2, 1.4), u(1.6, 1.78)
  w = u(0.02, 0.035)
  for i in (-x + w, x - w):
    for j in (-y + w, y - w):
      a.add(frame, box(i - w, i + w, j - w, j + w, 0, tall))
  tops = ()
  for z in (low, high):
    a.add(frame, box(-x, x, -y + 2 * w, y - 2 * w, z - 0.1, z))
    tops += _bedding(a, rng, x - 0.03, -y + 2 * w, y - 2 * w, z, z + 0.14)
    for j in (-y + w, y - w):
      a.add(frame, box(-x + 2 * w, x - 2 * w, j - 0.01, j + 0.01, z, z + 0.25))
  for i in (-x, x - 0.02):
    a.add(
      frame,
      box(i, i + 0.02, -y + 0.1, y * u(0.2, 0.9), high + 0.2, high + 0.27),
    )
  j = y - 0.5
  for k in (j, j + 0.32):
    a.add(frame, box(x, x + 0.03, k, k + 0.03, 0, high + 0.15))
  for z in np.arange(0.25, high, 0.27):
    a.add(frame, box(x, x + 0.03, j + 0.03, j + 0.32, z, z + 0.03))
  return a.mesh("bunk", tops=tops[:1])


def day_bed(rng: np.random.Generator) -> Mesh:
  """Curved boards at head and foot, as of a sleigh."""
  u, a = rng.uniform, Assembly()
  wood = draw(rng, "wood", "paint", "fabric")
  x, y, z = u(0.42, 0.7), u(0.93, 1.02), u(0.26, 0.36)
  for sign, tall in ((-1, u(0.7, 0.95)), (1, u(0.5, 0.75))):
    end, out = sign * y, sign * (y + u(0.04, 0.14))
    t = 0.025
    a.add(wood, taper(
      (-x, x, end - t, end + t), (-x, x, out - t, out + t), 0, tall - 0.04
    ))  # fmt: skip
    a.add(wood, rod((-x, out, tall - 0.04), (x, out, tall - 0.04), 0.04, 10))
  a.add(wood, box(-x, x, -y + 0.03, y - 0.03, z - 0.16, z))
  tops = _bedding(a, rng, x, -y + 0.06, y - 0.06, z, z + u(0.14, 0.22))
  return a.mesh("sleigh", tops=tops)


def lounger(rng: np.random.Generator) -> Mesh:
  """A low mattress on pallets or slats."""
  u, a = rng.uniform, Assembly()
  wood = draw(rng, "wood", "metal")
  x, y = u(0.45, 0.8), u(0.95, 1.05)
  h = u(0.08, 0.16)
  for j in np.linspace(-y + 0.05, y - 0.05, 8):
    a.add(wood, box(-x - 0.05, x + 0.05, j - 0.045, j + 0.045, h - 0.03, h))
  for i in (-0.8 * x, 0.0, 0.8 * x):
    a.add(wood, box(i - 0.04, i + 0.04, -y, y, 0, h - 0.03))
  tops = _bedding(a, rng, x, -y, y, h, h + u(0.16, 0.26))
  return a.mesh("pallet", tops=tops)


TABLES = (four_leg_table, pedestal_table, trestle_table, desk, low_table)
BEDS = (headboard_bed, box_bed, bunk_bed, day_bed, lounger)
