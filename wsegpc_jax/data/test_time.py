"""Views of a scene for test-time augmentation.

The network sees the scene turned about z, mirrored and scaled; probabilities
are averaged for each point. Quarter turns and mirror images only swap axes and
signs, so they are exact, and the set of views of a scene that was turned by 90
degrees is the set of views of the scene.
"""

import dataclasses
import itertools

import numpy as np

from wsegpc_jax.types import Scene

_SCALES = (0.95, 1.05)  # besides 1, as in Pointcept's ScanNet configs


@dataclasses.dataclass(frozen=True)
class View:
  """One way to look at a scene.

  Attributes:
    quarter_turns: about z, counterclockwise, after mirroring.
    mirror: whether x changes its sign.
    scale: of the coordinates.
    angle: about z, radians, after the rest.
  """

  quarter_turns: int = 0
  mirror: bool = False
  scale: float = 1.0
  angle: float = 0.0

  def apply(self, scene: Scene) -> Scene:
    """The scene in this view; all else of a scene does not change.

    Points and normals are mirrored and turned; scaling leaves normals alone.
    """
    if self == View():
      return scene
    coord = self._turn(scene.coord)
    if self.scale != 1:
      coord = coord * np.float32(self.scale)
    normal = None if scene.normal is None else self._turn(scene.normal)
    return dataclasses.replace(scene, coord=coord, normal=normal)

  def _turn(self, vectors: np.ndarray) -> np.ndarray:
    x, y, z = vectors.T
    if self.mirror:
      x = -x
    for _ in range(self.quarter_turns % 4):
      x, y = -y, x
    if self.angle:
      cosine, sine = np.float32([np.cos(self.angle), np.sin(self.angle)])
      x, y = cosine * x - sine * y, sine * x + cosine * y
    return np.stack([x, y, z], 1)


def _views(*, turns=(0,), mirrors=(False,), scales=(1.0,)):
  choices = itertools.product(scales, mirrors, turns)
  return tuple(View(t, m, s) for s, m, t in choices)


_QUARTERS, _BOTH = range(4), (False, True)
_ALL_SCALES = (1.0, *_SCALES)

# The scene as it is comes first in each. With both mirror images and all
# quarter turns there is a mirror image for x, for y and for both.
SETS: dict[str, tuple[View, ...]] = {
  "none": (View(),),
  "rotate": _views(turns=_QUARTERS),
  # As is usual for laser scans, which have no walls along x and y.
  "rotate_5": tuple(View(angle=2 * np.pi * i / 5) for i in range(5)),
  "flip": (View(), View(mirror=True), View(2, mirror=True), View(2)),
  "scale": _views(scales=_ALL_SCALES),
  "rotate_flip": _views(turns=_QUARTERS, mirrors=_BOTH),
  "rotate_scale": _views(turns=_QUARTERS, scales=_ALL_SCALES),
  "rotate_flip_scale": _views(
    turns=_QUARTERS, mirrors=_BOTH, scales=_ALL_SCALES
  ),
}


def describe(name: str) -> str:
  """A set of views in words."""
  views = SETS[name]
  if len(views) == 1:
    return "no test-time augmentation"
  kinds = [
    ("quarter turns about z", {v.quarter_turns for v in views} >= {1, 3}),
    ("turns about z", any(v.angle for v in views)),
    ("mirror images", any(v.mirror for v in views)),
    (
      "scales " + ", ".join(f"{s:g}" for s in sorted({v.scale for v in views})),
      any(v.scale != 1 for v in views),
    ),
  ]
  used = ", ".join(words for words, there in kinds if there)
  return (
    f"test-time augmentation: probabilities averaged over {len(views)} views "
    f"of the scene ({used})"
  )
