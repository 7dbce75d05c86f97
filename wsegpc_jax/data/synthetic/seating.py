"""Chairs and sofas. All stand on z = 0 around the z axis, their back at -y."""

import numpy as np

from wsegpc_jax.data.synthetic.materials import draw
from wsegpc_jax.data.synthetic.mesh import (
  Assembly,
  Mesh,
  box,
  cushion,
  cylinder,
  lathe,
  moved,
  rod,
  taper,
)


def four_leg_chair(rng: np.random.Generator) -> Mesh:
  """Four legs, a board or a cushion, a back of a board or of slats."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "wood", "paint", "metal")
  x, y, z = u(0.19, 0.25), u(0.19, 0.24), u(0.42, 0.49)
  leg, thick, high = u(0.014, 0.024), u(0.02, 0.04), u(0.32, 0.52)
  lean = u(0.0, 0.09)
  for i in (-1, 1):
    i *= x - leg
    a.add(
      frame,
      rod((i, y - leg, 0), (i, y - leg, z - thick), leg, tip=1.2),
      rod((i, leg - y, 0), (i, leg - y, z - thick), leg, tip=1.2),
      rod((i, leg - y, z), (i, leg - y - lean, z + high), leg),
    )
  if rng.random() < 0.5:
    a.add(frame, box(-x, x, -y, y, z - thick, z))
  else:
    soft = draw(rng, "fabric", "vivid", "paint")
    a.add(frame, box(-x, x, -y, y, z - thick, z - thick / 2))
    a.add(soft, cushion((0, 0, z), (x, y, thick / 2), 5))
  style = rng.integers(3)
  back = frame if style else draw(rng, "fabric", "wood", "vivid")
  ys, t = -y + leg, 0.012

  def board(x0, x1, low, h):
    y0, y1 = ys - lean * low / high, ys - lean * h / high
    return taper(
      (x0, x1, y0 - t, y0 + t), (x0, x1, y1 - t, y1 + t), z + low, z + h
    )

  if style == 0:  # one board
    a.add(back, board(-x + leg, x - leg, 0.25 * high, high))
  elif style == 1:  # a ladder
    n = int(rng.integers(2, 5))
    for k in range(n):
      h = high * (k + 1) / n
      a.add(back, board(-x + leg, x - leg, h - u(0.04, 0.07), h))
  else:  # upright slats
    a.add(back, board(-x + leg, x - leg, high - 0.06, high))
    for i in np.linspace(-x + 0.07, x - 0.07, int(rng.integers(3, 6))):
      a.add(back, board(i - 0.012, i + 0.012, 0.0, high - 0.06))
  return a.mesh("four_leg")


def swivel_chair(rng: np.random.Generator) -> Mesh:
  """A star foot on rollers, a column, cushions, often arm rests."""
  u, a = rng.uniform, Assembly()
  metal, soft = draw(rng, "metal", "paint"), draw(rng, "fabric", "vivid")
  z, r = u(0.43, 0.53), u(0.26, 0.32)
  start = u(0, 1)
  for k in range(5):
    angle = 2 * np.pi * (k + start) / 5
    i, j = r * np.cos(angle), r * np.sin(angle)
    a.add(metal, rod((0, 0, 0.11), (i, j, 0.07), 0.022, tip=0.7))
    a.add(metal, cylinder(0.026, 0.0, 0.055, (i, j), 7))
  a.add(metal, cylinder(0.03, 0.08, z - 0.06, segments=8))
  x, y = u(0.22, 0.27), u(0.21, 0.26)
  a.add(soft, cushion((0, 0, z - 0.03), (x, y, u(0.035, 0.05)), 4))
  high = u(0.42, 0.7)
  back = cushion((0, 0, high / 2), (0.9 * x, u(0.03, 0.045), high / 2), 4)
  a.add(soft, moved(back, (0, -y, z + 0.07), "x", u(0.02, 0.2)))
  a.add(metal, rod((0, -y * 0.6, z - 0.05), (0, -y - 0.05, z + 0.2), 0.022))
  if rng.random() < 0.6:
    h = z + u(0.17, 0.24)
    for i in (-x - 0.03, x + 0.03):
      a.add(metal, rod((i * 0.8, 0, z - 0.05), (i, 0, h), 0.015))
      a.add(metal, box(i - 0.03, i + 0.03, -0.15, 0.12, h, h + 0.03))
  return a.mesh("swivel")


def round_chair(rng: np.random.Generator) -> Mesh:
  """A round seat on splayed legs or a foot, with a low curved back."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "metal", "wood", "vivid", "paint")
  seat = draw(rng, "fabric", "wood", "vivid", "paint")
  r, z = u(0.18, 0.23), u(0.44, 0.62)
  if rng.random() < 0.5:
    for k in range(4):
      angle = np.pi / 4 + k * np.pi / 2
      i, j = np.cos(angle), np.sin(angle)
      a.add(
        frame,
        rod(
          (1.05 * r * i, 1.05 * r * j, 0),
          (0.7 * r * i, 0.7 * r * j, z - 0.04),
          0.014,
        ),
      )
  else:
    a.add(frame, lathe([(r, 0), (r, 0.02), (0.03, 0.05), (0.03, z - 0.04)]))
  a.add(
    seat,
    lathe(
      [(0.85 * r, z - 0.045), (r, z - 0.02), (r, z - 0.01), (0.85 * r, z)], 18
    ),
  )
  high, span = u(0.18, 0.36), u(0.7, 1.2)
  n = 7
  angles = -np.pi / 2 + np.linspace(-span, span, n)
  ring = 0.95 * r * np.stack([np.cos(angles), np.sin(angles)], 1)
  for k in range(n - 1):
    p, q = (*ring[k], z + high), (*ring[k + 1], z + high)
    a.add(frame, rod(p, q, u(0.02, 0.03)))
  for k in (0, n // 2, n - 1):
    a.add(frame, rod((*ring[k], z - 0.02), (*ring[k], z + high), 0.013))
  return a.mesh("round")


def easy_chair(rng: np.random.Generator) -> Mesh:
  """Upholstered seat and back between wooden or upholstered arms."""
  u, a = rng.uniform, Assembly()
  soft = draw(rng, "fabric", "vivid", "paint")
  arms = draw(rng, "wood", "metal") if rng.random() < 0.6 else soft
  x, y, z = u(0.3, 0.36), u(0.3, 0.36), u(0.34, 0.42)
  high = u(0.4, 0.6)
  a.add(soft, cushion((0, 0.02, z - 0.06), (x - 0.05, y - 0.03, 0.08), 5))
  back = cushion((0, 0, high / 2), (x - 0.05, 0.07, high / 2), 4)
  a.add(soft, moved(back, (0, -y + 0.1, z - 0.04), "x", u(0.1, 0.25)))
  h = z + u(0.14, 0.22)
  for i in (-x, x):
    w = 0.05 if i < 0 else -0.05
    lo, hi = min(i, i + w), max(i, i + w)
    a.add(arms, box(lo, hi, -y, y, h - 0.035, h))
    if arms is soft:
      a.add(arms, box(lo, hi, -y, y, 0.05, h - 0.035))
    for j in (-y, y - 0.05):
      a.add(arms, box(lo + 0.005, hi - 0.005, j, j + 0.05, 0, h - 0.035))
  a.add(arms, box(-x + 0.05, x - 0.05, -y, y - 0.04, z - 0.16, z - 0.12))
  return a.mesh("easy")


def _sofa(rng, x, y, seats, *, arms, side=0) -> Mesh:
  """Base, arms, back and cushions; side = -1 or 1 with a part to lie on."""
  u, a = rng.uniform, Assembly()
  soft = draw(rng, "fabric", "fabric", "paint", "vivid", size=(0.05, 0.25))
  pads = soft if rng.random() < 0.7 else draw(rng, "fabric", "paint")
  foot = draw(rng, "wood", "metal")
  z, legs, high = u(0.36, 0.44), u(0.03, 0.14), u(0.3, 0.48)
  arm, back = (u(0.1, 0.22) if arms else 0.0), u(0.14, 0.22)
  base = 0.5 * z
  a.add(soft, box(-x, x, -y, y, legs, base))
  long = u(0.45, 0.8)  # of the part to lie on, beyond the front
  x1 = x - arm
  inner = np.linspace(-x1, x1, seats + 1)
  if side:
    k = 0 if side < 0 else seats - 1
    a.add(soft, box(inner[k], inner[k + 1], y, y + long, legs, base))
  for i in (-x + 0.05, x - 0.05):
    for j in (-y + 0.05, y - 0.05):
      a.add(foot, cylinder(0.025, 0, legs, (i, j), 7))
  if side:
    i = (inner[k] + inner[k + 1]) / 2
    a.add(foot, cylinder(0.025, 0, legs, (i, y + long - 0.06), 7))
  tall = z + high
  a.add(
    soft, taper((-x, x, -y, back - y), (-x, x, -y, back - y - 0.04), base, tall)
  )
  arm_high = z + u(0.1, 0.26)
  round_arm = rng.random() < 0.4
  for i in (-x, x1):
    if not arms or (side and i * side > 0 and rng.random() < 0.5):
      continue
    a.add(soft, box(i, i + arm, back - y, y, base, arm_high))
    if round_arm:
      m = i + arm / 2
      a.add(
        soft, rod((m, back - y, arm_high), (m, y, arm_high), 0.55 * arm, 12)
      )
  for k in range(seats):
    m, half = (inner[k] + inner[k + 1]) / 2, (inner[k + 1] - inner[k]) / 2
    ends = y + (long if side and k == (0 if side < 0 else seats - 1) else 0.0)
    y0 = back - y
    a.add(
      pads,
      cushion(
        (m, (y0 + ends) / 2, (base + z) / 2),
        (half, (ends - y0) / 2, (z - base) / 2), 7,
      ),
    )  # fmt: skip
    pad = cushion((0, 0, 0), (0.96 * half, 0.08, 0.42 * high), 4)
    a.add(pads, moved(pad, (m, y0 + 0.07, z + 0.42 * high), "x", u(0.1, 0.25)))
  tops = ((-x1 + 0.15, back - y + 0.3, x1 - 0.15, y - 0.1, z, 1.0),)
  return a.mesh(
    "chaise" if side else "straight" if arms else "armless", tops=tops
  )


def straight_sofa(rng: np.random.Generator) -> Mesh:
  """Two or three seats between arms."""
  seats = int(rng.integers(2, 4))
  x = seats * rng.uniform(0.3, 0.38) + 0.15
  return _sofa(rng, x, rng.uniform(0.38, 0.48), seats, arms=True)


def chaise_sofa(rng: np.random.Generator) -> Mesh:
  """A corner sofa: one of its seats goes on to the front."""
  seats = int(rng.integers(2, 4))
  x = seats * rng.uniform(0.32, 0.4) + 0.15
  side = int(rng.choice([-1, 1]))
  return _sofa(rng, x, rng.uniform(0.38, 0.45), seats, arms=True, side=side)


def armless_sofa(rng: np.random.Generator) -> Mesh:
  """A back and cushions without arms."""
  seats = int(rng.integers(1, 4)) + 1
  x = seats * rng.uniform(0.26, 0.36)
  return _sofa(rng, x, rng.uniform(0.36, 0.48), seats, arms=False)


CHAIRS = (four_leg_chair, swivel_chair, round_chair, easy_chair)
SOFAS = (straight_sofa, chaise_sofa, armless_sofa)
