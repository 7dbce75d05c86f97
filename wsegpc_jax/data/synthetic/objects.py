"""The classes of synthetic rooms, and one object of each to be built.

Every class but wall and floor has at least three shapes, each with proportions,
parts and materials of its own from draw to draw.
"""

import dataclasses

import numpy as np

from wsegpc_jax.data.synthetic import (
  clutter,
  materials,
  openings,
  seating,
  storage,
  tables,
)
from wsegpc_jax.data.synthetic.mesh import Mesh

CLASSES = (
  "wall", "floor", "door", "window", "table", "chair", "sofa", "bed",
  "cabinet", "bookshelf", "picture", "lamp", "plant", "pillow", "box",
)  # fmt: skip

SHAPES = {
  "door": openings.DOORS,
  "window": openings.WINDOWS,
  "table": tables.TABLES,
  "chair": seating.CHAIRS,
  "sofa": seating.SOFAS,
  "bed": tables.BEDS,
  "cabinet": storage.CABINETS,
  "bookshelf": storage.BOOKSHELVES,
  "picture": clutter.PICTURES,
  "lamp": clutter.LAMPS,
  "plant": clutter.PLANTS,
  "pillow": clutter.PILLOWS,
  "box": clutter.BOXES,
}

# Colours that most objects of a class lean towards, as people buy them; several
# classes share them, and the rest of the objects have any colour.
USUAL_COLORS = {
  "door": ((214, 202, 176), (146, 102, 70), (226, 222, 214)),
  "window": ((176, 200, 222), (150, 174, 200), (112, 132, 150)),
  "table": ((192, 158, 118), (160, 120, 80), (206, 182, 148)),
  "chair": ((62, 62, 66), (122, 62, 56), (146, 102, 70)),
  "sofa": ((90, 112, 84), (122, 124, 128), (70, 80, 110)),
  "bed": ((206, 210, 226), (188, 194, 206), (206, 180, 168)),
  "cabinet": ((226, 222, 214), (192, 158, 118), (122, 124, 128)),
  "bookshelf": ((92, 62, 44), (120, 82, 50), (72, 54, 46)),
  "picture": ((62, 108, 150), (198, 168, 72), (168, 62, 52)),
  "lamp": ((222, 208, 150), (182, 184, 186), (198, 168, 72)),
  "plant": ((66, 112, 52), (92, 124, 56), (84, 108, 48)),
  "pillow": ((168, 62, 52), (198, 168, 72), (120, 84, 130)),
  "box": ((176, 140, 96), (62, 108, 150), (150, 152, 154)),
}
USUAL_SHARE = 0.85  # of the objects
_LEAN = (0.5, 0.85)  # how far towards it


def build(name: str, rng: np.random.Generator) -> Mesh:
  """Builds one object of a class, in one of its shapes.

  Furniture stands on z = 0 around the z axis with its back at -y; doors,
  windows and pictures hang on the plane y = 0 and look along y.

  Args:
    name: a class of CLASSES that has objects: all but "wall" and "floor".
    rng: where shape, proportions and materials come from.

  Raises:
    ValueError: there is no such object.
  """
  if name not in SHAPES:
    raise ValueError(
      f"no object is called {name!r}; expected one of {', '.join(SHAPES)}"
    )
  shapes = SHAPES[name]
  mesh = shapes[rng.integers(len(shapes))](rng)
  if rng.random() >= USUAL_SHARE:
    return mesh
  usual = USUAL_COLORS[name]
  color = usual[rng.integers(len(usual))]
  lean = rng.uniform(*_LEAN)
  return dataclasses.replace(
    mesh,
    materials=tuple(
      materials.toned(material, color, lean) for material in mesh.materials
    ),
  )
