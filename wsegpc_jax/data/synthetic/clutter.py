"""Small things: lamps, plants, pillows, pictures and boxes.

Lamps, plants and boxes stand on z = 0 around the z axis; pillows lie there.
Pictures hang on the wall y = 0, centred on x = 0, z = 0, and look along y.
"""

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


def _shade(rng, r, z, h):
  material = draw(rng, "paint", "fabric", "metal", "vivid")
  t = rng.uniform(0.45, 1.0)
  if rng.random() < 0.3:
    half = np.linspace(-np.pi / 2 + 0.3, np.pi / 2 - 0.3, 7)
    profile = [(r * np.cos(v), z + h / 2 * (1 + np.sin(v))) for v in half]
  else:
    profile = [(r, z), (t * r, z + h)]
  return material, lathe(profile, 16)


def floor_lamp(rng: np.random.Generator) -> Mesh:
  """A pole on a disc or three legs, a shade on top."""
  u, a = rng.uniform, Assembly()
  metal = draw(rng, "metal", "wood", "paint")
  z, h, r = u(1.1, 1.5), u(0.24, 0.4), u(0.18, 0.28)
  if rng.random() < 0.6:
    a.add(
      metal,
      cylinder(u(0.12, 0.18), 0, 0.03),
      cylinder(0.018, 0.03, z, segments=8),
    )
  else:
    for k in range(3):
      i, j = np.cos(2.1 * k), np.sin(2.1 * k)
      a.add(metal, rod((0.24 * i, 0.24 * j, 0), (0, 0, z), 0.016))
  a.add(*_shade(rng, r, z - 0.05, h))
  return a.mesh("floor")


def table_lamp(rng: np.random.Generator) -> Mesh:
  """A turned body with a shade."""
  u, a = rng.uniform, Assembly()
  body = draw(rng, "paint", "wood", "vivid", "metal")
  h, r = u(0.2, 0.34), u(0.05, 0.09)
  n = 7
  radii = r * (0.6 + 0.4 * np.sin(np.linspace(0, u(2.5, 7.0), n) + u(0, 3)))
  a.add(
    body, lathe([(r, 0), *zip(radii, np.linspace(0.03, h, n), strict=True)])
  )
  a.add(*_shade(rng, u(0.13, 0.2), h - 0.02, u(0.15, 0.24)))
  return a.mesh("table")


def desk_lamp(rng: np.random.Generator) -> Mesh:
  """A foot, two arms with a joint and a cone."""
  u, a = rng.uniform, Assembly()
  metal = draw(rng, "metal", "vivid", "paint")
  a.add(metal, cylinder(u(0.07, 0.1), 0, 0.025))
  knee = np.array([u(-0.16, -0.05), 0.0, u(0.2, 0.32)])
  head = knee + (u(0.16, 0.28), 0.0, u(0.05, 0.16))
  a.add(metal, rod((0, 0, 0.02), knee, 0.012), rod(knee, head, 0.012))
  r = u(0.06, 0.09)
  cone = lathe([(r, -0.1), (0.4 * r, 0.0), (0.3 * r, 0.05)])
  a.add(metal, moved(moved(cone, (0, 0, 0), "y", u(-0.6, -0.1)), head))
  return a.mesh("desk")


def arc_lamp(rng: np.random.Generator) -> Mesh:
  """A heavy foot, a bow and a round shade at its end."""
  u, a = rng.uniform, Assembly()
  metal = draw(rng, "metal", "wood")
  reach, z = u(0.35, 0.6), u(1.4, 1.75)
  a.add(metal, cylinder(u(0.12, 0.17), 0, 0.06))
  t = np.linspace(0, np.pi * 0.8, 10)
  bow = np.stack([reach * (1 - np.cos(t)) / 2, 0 * t, z * np.sin(t / 1.6)], 1)
  for p, q in zip(bow[:-1], bow[1:], strict=True):
    a.add(metal, rod(p, q, 0.014))
  material, shade = _shade(rng, u(0.13, 0.2), -0.2, u(0.15, 0.24))
  a.add(material, moved(shade, bow[-1]))
  return a.mesh("arc")


def _pot(a, rng, r, h):
  """A pot with earth in it; returns the height of the earth."""
  pot = draw(rng, "paint", "wood", "vivid", "metal", "fabric")
  earth = draw(rng, "wood", kind="cloud")
  style = rng.integers(3)
  if style == 0:
    a.add(pot, lathe([(0.7 * r, 0), (r, h)], 14))
  elif style == 1:
    a.add(pot, lathe([(0.6 * r, 0), (1.05 * r, 0.5 * h), (0.85 * r, h)], 14))
  else:
    s = 0.85 * r
    a.add(
      pot, taper((-0.8 * s, 0.8 * s, -0.8 * s, 0.8 * s), (-s, s, -s, s), 0, h)
    )
  a.add(earth, lathe([(0.75 * r, h - 0.01), (0.75 * r, h + 0.004)], 12))
  return h


def _leaf(rng, start, direction, length, width):
  """A thin lens from `start` along `direction`."""
  forward = direction / np.linalg.norm(direction)
  side = np.cross(forward, rng.normal(size=3))
  side /= np.linalg.norm(side)
  vertices, triangles = cushion((1, 0, 0), (1, 1, 1), 2.2, 7, 5)
  vertices = vertices * (length / 2, width / 2, 0.006)
  axes = np.stack([forward, side, np.cross(forward, side)])
  return start + vertices @ axes, triangles


def bush(rng: np.random.Generator) -> Mesh:
  """Many leaves around the top of a pot."""
  u, a = rng.uniform, Assembly()
  size = u(0.7, 1.5)
  h = _pot(a, rng, 0.16 * size, u(0.16, 0.3) * size)
  leaves = [draw(rng, "leaf", size=(0.05, 0.2)) for _ in range(2)]
  high = u(0.3, 0.6) * size
  stem = draw(rng, "wood", "leaf")
  a.add(stem, rod((0, 0, h), (0, 0, h + 0.6 * high), 0.02 * size))
  for _ in range(int(rng.integers(24, 42))):
    t, angle = u(0.1, 0.9), u(0, 2 * np.pi)
    out = np.array([np.cos(angle), np.sin(angle), u(-0.1, 1.1)])
    start = np.array([0, 0, h + high * t]) + 0.05 * size * out
    leaf = _leaf(rng, start, out, u(0.14, 0.3) * size, u(0.06, 0.14) * size)
    a.add(leaves[rng.integers(2)], leaf)
  return a.mesh("bush")


def blades(rng: np.random.Generator) -> Mesh:
  """Long upright leaves, as of a snake plant or a palm."""
  u, a = rng.uniform, Assembly()
  size = u(0.7, 1.4)
  h = _pot(a, rng, 0.15 * size, u(0.15, 0.28) * size)
  green = draw(rng, "leaf", size=(0.03, 0.1))
  bend = u(0.05, 0.5)
  for _ in range(int(rng.integers(9, 18))):
    angle, tall = u(0, 2 * np.pi), u(0.35, 0.75) * size
    out = np.array([np.cos(angle), np.sin(angle), 0.0])
    start = 0.07 * size * u(0, 1) * out + (0, 0, h)
    way = bend * u(0.3, 1.0) * out + (0, 0, 1)
    a.add(green, _leaf(rng, start, way, tall, u(0.04, 0.08) * size))
  return a.mesh("blades")


def small_tree(rng: np.random.Generator) -> Mesh:
  """A trunk and balls of leaves."""
  u, a = rng.uniform, Assembly()
  size = u(0.7, 1.4)
  h = _pot(a, rng, 0.16 * size, u(0.16, 0.26) * size)
  trunk, green = (
    draw(rng, "wood"),
    draw(rng, "leaf", size=(0.02, 0.06), kind="speckle"),
  )
  top = np.array([u(-0.06, 0.06), u(-0.06, 0.06), h + u(0.4, 0.6) * size])
  a.add(trunk, rod((0, 0, h), top, 0.025 * size, tip=0.7))
  for _ in range(int(rng.integers(2, 6))):
    center = top + rng.normal(0, 0.09, 3) * size
    half = np.array([u(0.12, 0.2), u(0.12, 0.2), u(0.1, 0.17)]) * size
    a.add(green, cushion(center, half, 2.0, 12, 8))
  return a.mesh("tree")


def cactus(rng: np.random.Generator) -> Mesh:
  """A ribbed column with arms."""
  u, a = rng.uniform, Assembly()
  size = u(0.7, 1.5)
  h = _pot(a, rng, 0.15 * size, u(0.15, 0.26) * size)
  green = draw(rng, "leaf", size=(0.02, 0.06), kind="stripes")
  tall, r = u(0.35, 0.7) * size, u(0.06, 0.09) * size
  a.add(green, cushion((0, 0, h + tall / 2), (r, r, tall / 2), 2.4, 10, 9))
  for k in range(int(rng.integers(1, 4))):
    angle = 2.2 * k + u(0, 1)
    out = np.array([np.cos(angle), np.sin(angle), 0.0])
    start = np.array([0, 0, h + tall * u(0.3, 0.6)])
    elbow = start + 1.9 * r * out
    a.add(
      green,
      rod(start, elbow, 0.5 * r),
      rod(elbow, elbow + (0, 0, u(0.2, 0.4) * tall), 0.5 * r, tip=0.6),
    )
  return a.mesh("cactus")


def square_pillow(rng: np.random.Generator) -> Mesh:
  """Square or oblong, round towards its corners."""
  u, a = rng.uniform, Assembly()
  soft = draw(rng, "fabric", "paint", "vivid", size=(0.03, 0.12))
  x, y, z = u(0.18, 0.36), u(0.17, 0.24), u(0.06, 0.1)
  a.add(soft, cushion((0, 0, z), (x, y, z), u(3, 5)))
  return a.mesh("square")


def round_pillow(rng: np.random.Generator) -> Mesh:
  """A disc with a button."""
  u, a = rng.uniform, Assembly()
  soft = draw(rng, "fabric", "paint", "vivid", size=(0.03, 0.12))
  r, z = u(0.17, 0.25), u(0.05, 0.09)
  a.add(soft, cushion((0, 0, z), (r, r, z), 2.0))
  a.add(
    draw(rng, "fabric", "vivid"),
    cushion((0, 0, 2 * z), (0.02, 0.02, 0.01), 2, 8, 5),
  )
  return a.mesh("round")


def bolster(rng: np.random.Generator) -> Mesh:
  """A lying roll."""
  u, a = rng.uniform, Assembly()
  soft = draw(rng, "fabric", "paint", "vivid", size=(0.03, 0.12))
  r, x = u(0.07, 0.11), u(0.2, 0.34)
  profile = [(0.6 * r, -x), (r, -x + 0.03), (r, x - 0.03), (0.6 * r, x)]
  a.add(soft, moved(lathe(profile, 14), (0, 0, r), "y", np.pi / 2))
  return a.mesh("bolster")


def framed_picture(rng: np.random.Generator) -> Mesh:
  """A canvas in a frame of four boards."""
  u, a = rng.uniform, Assembly()
  frame = draw(rng, "wood", "metal", "paint", "vivid")
  x, z, w = u(0.2, 0.5), u(0.2, 0.4), u(0.02, 0.06)
  t = u(0.02, 0.04)
  a.add(frame, box(-x, x, 0, t, -z, -z + w), box(-x, x, 0, t, z - w, z))
  for i in (-x, x - w):
    a.add(frame, box(i, i + w, 0, t, -z + w, z - w))
  _canvas(a, rng, x - w, z - w, 0.6 * t)
  return a.mesh("framed")


def _canvas(a, rng, x, z, t):
  """A painted board, mostly with a mount or a horizon."""
  families = ("vivid", "fabric", "paint", "leaf", "wood")
  ground = draw(rng, *families, size=(0.08, 0.3))
  if rng.random() < 0.5:
    a.add(draw(rng, "paint", kind="plain"), box(-x, x, 0, t, -z, z))
    a.add(ground, box(-0.75 * x, 0.75 * x, t, t + 0.004, -0.75 * z, 0.75 * z))
  else:
    cut = z * rng.uniform(-0.5, 0.5)
    a.add(ground, box(-x, x, 0, t, -z, cut))
    a.add(
      draw(rng, *families, kind="cloud", size=(0.1, 0.3)),
      box(-x, x, 0, t, cut, z),
    )


def canvas_picture(rng: np.random.Generator) -> Mesh:
  """One to three canvases without frames, side by side."""
  u, a = rng.uniform, Assembly()
  n, x, z = int(rng.integers(1, 4)), u(0.14, 0.3), u(0.22, 0.45)
  t = u(0.025, 0.05)
  for k in range(n):
    part = Assembly()
    _canvas(part, rng, x, z, t)
    whole = part.mesh("")
    shift = (k - (n - 1) / 2) * (2 * x + 0.05)
    for i, material in enumerate(whole.materials):
      a.add(
        material,
        (whole.vertices + (shift, 0, 0), whole.triangles[whole.material == i]),
      )
  return a.mesh("canvas")


def round_picture(rng: np.random.Generator) -> Mesh:
  """A round plate or clock."""
  u, a = rng.uniform, Assembly()
  r, t = u(0.16, 0.34), u(0.02, 0.04)
  rim = draw(rng, "wood", "metal", "vivid")
  face = draw(rng, "paint", "vivid", "sky", "fabric")
  for material, s, d in ((rim, r, t), (face, 0.85 * r, t + 0.006)):
    disc = lathe([(s, 0), (s, d)], 24)
    a.add(material, moved(disc, (0, 0, 0), "x", -np.pi / 2))
  if rng.random() < 0.4:
    a.add(rim, box(-0.008, 0.008, t, t + 0.014, 0, 0.6 * r))
    a.add(rim, box(0, 0.45 * r, t, t + 0.014, -0.008, 0.008))
  return a.mesh("round")


def carton(rng: np.random.Generator) -> Mesh:
  """Closed, sometimes two stacked."""
  u, a = rng.uniform, Assembly()
  z = 0.0
  for _ in range(int(rng.integers(1, 3))):
    paper = draw(rng, "wood", "paint", kind="plain")
    tape = draw(rng, "paint", "wood", "fabric")
    x, y, h = u(0.18, 0.34), u(0.15, 0.28), u(0.16, 0.4)
    a.add(paper, box(-x, x, -y, y, z, z + h))
    a.add(tape, box(-x, x, -0.025, 0.025, z + h, z + h + 0.002))
    z += h + 0.002
  return a.mesh("carton")


def _hollow(a, material, x, y, z, t, flare=0.0):
  """Four walls and a bottom, wider at the top by `flare`."""
  f = flare
  a.add(material, box(-x, x, -y, y, 0, t))
  a.add(
    material,
    taper((-x, x, -y, -y + t), (-x - f, x + f, -y - f, -y - f + t), t, z),
  )
  a.add(
    material, taper((-x, x, y - t, y), (-x - f, x + f, y + f - t, y + f), t, z)
  )
  for i in (-1, 1):
    low = sorted((i * x, i * (x - t)))
    high = sorted((i * (x + f), i * (x + f - t)))
    a.add(material, taper(
      (*low, -y + t, y - t), (*high, -y - f + t, y + f - t), t, z
    ))  # fmt: skip


def open_carton(rng: np.random.Generator) -> Mesh:
  """Open, its flaps hanging out."""
  u, a = rng.uniform, Assembly()
  paper = draw(rng, "wood", "paint", kind="plain")
  x, y, z, t = u(0.2, 0.34), u(0.17, 0.27), u(0.22, 0.42), 0.006
  _hollow(a, paper, x, y, z, t)
  for i in (-1, 1):
    flap = box(0, 0.8 * y, -y, y, -t, 0)
    flap = moved(flap, (0, 0, 0), "y", u(-0.6, 0.7))
    if i < 0:
      flap = moved(flap, (0, 0, 0), "z", np.pi)
    a.add(paper, moved(flap, (i * x, 0, z + 0.003)))
  return a.mesh("open")


def bin_(rng: np.random.Generator) -> Mesh:
  """A waste bin: tapered and open, square or round."""
  u, a = rng.uniform, Assembly()
  plastic = draw(rng, "metal", "vivid", "paint", "fabric")
  r, z, t = u(0.13, 0.22), u(0.3, 0.5), 0.008
  if rng.random() < 0.5:
    _hollow(a, plastic, r, u(0.7, 1.0) * r, z, t, flare=u(0.01, 0.05))
  else:
    top = r * u(1.05, 1.3)
    a.add(plastic, lathe([(r, 0), (top, z), (top - t, z), (r - t, t)], 18))
  return a.mesh("bin")


def crate(rng: np.random.Generator) -> Mesh:
  """Slats around a bottom."""
  u, a = rng.uniform, Assembly()
  wood = draw(rng, "wood", "paint", "vivid")
  x, y, z, t = u(0.22, 0.34), u(0.17, 0.25), u(0.22, 0.4), 0.012
  a.add(wood, box(-x, x, -y, y, 0, t))
  n = int(rng.integers(2, 4))
  for i in (-x, x - 0.025):
    for j in (-y, y - 0.025):
      a.add(wood, box(i, i + 0.025, j, j + 0.025, t, z))
  for k in range(n):
    low = t + (z - t) * (k + 0.25) / n
    high = low + 0.6 * (z - t) / n
    for j in (-y - t, y):
      a.add(wood, box(-x, x, j, j + t, low, high))
    for i in (-x - t, x):
      a.add(wood, box(i, i + t, -y, y, low, high))
  return a.mesh("crate")


LAMPS = (floor_lamp, table_lamp, desk_lamp, arc_lamp)
PLANTS = (bush, blades, small_tree, cactus)
PILLOWS = (square_pillow, round_pillow, bolster)
PICTURES = (framed_picture, canvas_picture, round_picture)
BOXES = (carton, open_carton, bin_, crate)
