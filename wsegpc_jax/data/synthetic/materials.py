"""Colours and procedural textures, shared by all classes.

A texture is a function of a place in the object, so that it needs no unwrapping
and runs through a board from face to face. Classes draw from the same families
of colours, so that the colour of a point alone does not tell its class.

Dimension letters: P places, M materials.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

FAMILIES = {
  "wood": [
    (120, 82, 50), (160, 120, 80), (92, 62, 44), (192, 158, 118),
    (72, 54, 46), (146, 102, 70), (206, 182, 148),
  ],
  "paint": [
    (226, 222, 214), (204, 198, 186), (188, 194, 198), (214, 202, 176),
    (174, 190, 178), (176, 188, 206), (206, 180, 168), (150, 152, 154),
  ],
  "fabric": [
    (70, 80, 110), (122, 62, 56), (90, 112, 84), (150, 146, 140),
    (62, 62, 66), (182, 162, 132), (160, 112, 62), (198, 194, 190),
  ],
  "metal": [
    (62, 62, 64), (122, 124, 128), (42, 40, 40), (182, 184, 186),
    (104, 92, 74),
  ],
  "vivid": [
    (168, 62, 52), (62, 108, 150), (198, 168, 72), (82, 128, 78),
    (120, 84, 130), (70, 130, 126),
  ],
  "leaf": [
    (66, 112, 52), (92, 124, 56), (54, 90, 62), (84, 108, 48),
    (120, 104, 62), (124, 146, 84),
  ],
  "sky": [
    (190, 208, 222), (150, 174, 200), (60, 70, 90), (176, 200, 222),
    (222, 226, 228), (112, 132, 150),
  ],
}  # fmt: skip

KINDS = ("plain", "grain", "cloud", "stripes", "checks", "tiles", "speckle")
_USUAL = {
  "wood": ("grain", "grain", "grain", "plain"),
  "paint": ("plain", "plain", "cloud", "stripes"),
  "fabric": ("cloud", "checks", "stripes", "speckle", "plain"),
  "metal": ("plain", "plain", "speckle"),
  "vivid": ("plain", "cloud", "checks", "stripes"),
  "leaf": ("cloud", "plain"),
  "sky": ("cloud", "plain"),
}
_JITTER = 12.0  # of a colour of a family, in 0..255


@dataclasses.dataclass(frozen=True)
class Material:
  """A procedural texture of two colours.

  Attributes:
    kind: one of KINDS.
    first, second: RGB, 0..255.
    size: metres, of a stripe, a check, a tile or a cloud.
    angle: radians about z, of the pattern.
    seed: of its noise.
    shine: 0..1, share of the rays that a scanner gets nothing back from.
  """

  kind: str
  first: tuple[float, float, float]
  second: tuple[float, float, float]
  size: float
  angle: float = 0.0
  seed: int = 0
  shine: float = 0.0


def draw(
  rng: np.random.Generator,
  *families: str,
  kind: str | None = None,
  size: tuple[float, float] = (0.04, 0.2),
  shine: float | None = None,
) -> Material:
  """Draws a material.

  Args:
    rng: where randomness comes from.
    *families: keys of FAMILIES, one of which is taken.
    kind: one of KINDS; None = one that is usual in the family.
    size: bounds of its size, metres.
    shine: see Material; None = little, more of metal.
  """
  family = families[rng.integers(len(families))]
  colors = np.array(FAMILIES[family], np.float64)
  first = colors[rng.integers(len(colors))] + rng.normal(0, _JITTER, 3)
  usual = _USUAL[family]
  kind = kind or usual[rng.integers(len(usual))]
  # Grain and clouds are shades of one colour; patterns may be of two.
  second = first * rng.uniform(0.72, 0.92)
  if kind in ("stripes", "checks", "tiles") and rng.random() < 0.4:
    second = colors[rng.integers(len(colors))] + rng.normal(0, _JITTER, 3)
  if shine is None:
    shine = 0.15 if family == "metal" else 0.02
  return Material(
    kind=kind,
    first=tuple(first.clip(8, 247).tolist()),
    second=tuple(second.clip(8, 247).tolist()),
    size=float(rng.uniform(*size)),
    angle=float(rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.03)),
    seed=int(rng.integers(2**31)),
    shine=float(shine),
  )


def toned(
  material: Material, color: tuple[float, float, float], lean: float
) -> Material:
  """The material with both colours moved towards another, by a share 0..1."""

  def moved(own):
    both = zip(own, color, strict=True)
    return tuple((1 - lean) * a + lean * b for a, b in both)

  return dataclasses.replace(
    material, first=moved(material.first), second=moved(material.second)
  )


def colors_at(
  materials: tuple[Material, ...],
  index: Int[np.ndarray, " p"],
  place: Float[np.ndarray, "p 3"],
) -> Float[np.ndarray, "p 3"]:
  """Albedo of places, 0..255.

  Args:
    materials: the M materials.
    index: which of them each place has.
    place: metres, in the coordinates of the texture.
  """
  first = np.array([m.first for m in materials])[index]
  second = np.array([m.second for m in materials])[index]
  kind = np.array([KINDS.index(m.kind) for m in materials])[index]
  size = np.array([m.size for m in materials])[index]
  angle = np.array([m.angle for m in materials])[index]
  seed = np.array([m.seed for m in materials], np.uint32)[index]
  cosine, sine = np.cos(angle), np.sin(angle)
  x, y, z = place.T
  turned = np.stack([cosine * x + sine * y, cosine * y - sine * x, z], 1)
  turned = turned / size[:, None]
  mix = np.zeros(len(place))
  for k, name in enumerate(KINDS):
    rows = np.flatnonzero(kind == k)
    if len(rows):
      mix[rows] = _PATTERNS[name](turned[rows], seed[rows])
  # Nothing is quite even.
  mix = mix + 0.25 * (_noise(place * 9.0, seed) - 0.5)
  return (first + mix[:, None] * (second - first)).clip(0, 255)


def _plain(place, seed):
  return np.zeros(len(place))


def _grain(place, seed):
  # Long along x, rings across.
  stretched = place * (0.6, 6.0, 6.0)
  return 0.65 * _noise(stretched, seed) + 0.35 * _noise(stretched * 3, seed)


def _cloud(place, seed):
  return 0.6 * _noise(place, seed) + 0.4 * _noise(place * 2.7, seed)


def _stripes(place, seed):
  # Upright ones: those of a level face run along y.
  return (np.floor(place[:, 0] + place[:, 1] + _TINY) % 2).astype(np.float64)


def _checks(place, seed):
  return np.floor(place + _TINY).sum(1) % 2


def _tiles(place, seed):
  # Joints, and tiles that differ a little; a face through the origin, as the
  # floor is, must not lie in a joint.
  part = place * 0.4 + 0.37
  cell = np.floor(part)
  edge = np.abs(part - cell - 0.5).max(1) > 0.47
  return np.where(edge, 1.0, 0.35 * _hash(*cell.T, seed))


def _speckle(place, seed):
  return (_noise(place * 8, seed) > 0.62).astype(np.float64)


_TINY = 0.0137  # so that no face lies right on a border of the pattern
_PATTERNS = {
  "plain": _plain,
  "grain": _grain,
  "cloud": _cloud,
  "stripes": _stripes,
  "checks": _checks,
  "tiles": _tiles,
  "speckle": _speckle,
}


def _hash(x, y, z, seed):
  """Numbers in 0..1 that look random, of whole coordinates."""
  x, y, z = (v.astype(np.int64).astype(np.uint32) for v in (x, y, z))
  h = x * np.uint32(0x8DA6B343) ^ y * np.uint32(0xD8163841)
  h = h ^ z * np.uint32(0xCB1AB31F) ^ seed
  h = (h ^ (h >> np.uint32(13))) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> np.uint32(16))) * np.uint32(0xC2B2AE35)
  return (h ^ (h >> np.uint32(15))) / 2.0**32


def _noise(place, seed):
  """Value noise in 0..1: random at whole coordinates, smooth between."""
  cell = np.floor(place)
  part = place - cell
  part = part * part * (3 - 2 * part)
  total = 0.0
  for corner in np.ndindex(2, 2, 2):
    weight = np.where(corner, part, 1 - part).prod(1)
    total = total + weight * _hash(*(cell + corner).T, seed)
  return total
