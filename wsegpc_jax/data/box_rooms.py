"""Synthetic rooms made of axis-aligned boxes: small data without a download.

A room has a floor and four walls, always, and some furniture, each kind with
probability about a half, so that the scene-level tags say something. Every
object is 1 to 5 boxes. Points are drawn on the faces that can be seen; posed
RGB-D frames are ray cast against the same boxes. Colours tell the classes
apart only in part: those of different classes overlap.

Dimension letters: N points, B boxes, H and W image height and width, P pixels.
Boxes are float64 [B, 2, 3], the lowest and the highest corner, metres, z up.
Faces of a box are -x, +x, -y, +y, -z, +z, numbered 0..5.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from wsegpc_jax.data import assets
from wsegpc_jax.types import (
  IGNORE_LABEL,
  NO_REGION,
  DataError,
  Frame,
  Scene,
)

CLASSES = ("wall", "floor", "table", "chair", "bed", "cabinet", "box")
VERSION = 1  # to be raised whenever a seed gives another room

_WALL, _FLOOR = 0, 1
_FURNITURE = range(2, len(CLASSES))
_STRUCTURE = 5  # the first boxes of a room: the floor and the four walls
_THICKNESS = 0.1  # of floor and walls; their outer sides are never seen
_GAP = 0.06  # between objects that do not touch
_TOUCH = 1e-3  # boxes closer than that touch

# Mean colour of each class; the spread below makes them overlap.
_COLORS = np.array([
  [186, 182, 172],
  [140, 118, 96],
  [150, 108, 74],
  [104, 92, 98],
  [160, 150, 178],
  [142, 122, 90],
  [172, 142, 104],
])  # fmt: skip
_OBJECT_SPREAD = 22.0
_TEXTURE_SPREAD = 8.0
_BACKGROUND = 30  # colour where a ray leaves the room, which has no ceiling

_NORMALS = np.kron(np.eye(3), [[-1.0], [1.0]])  # [6, 3]


@dataclasses.dataclass(frozen=True)
class Layout:
  """The boxes of one room; the floor comes first, then the four walls.

  Attributes:
    boxes: float64 [B, 2, 3], metres.
    label: int32 [B], class of each box.
    color: float64 [B, 6, 3], shaded colour of each face, 0..255.
    visible: bool [B, 6], faces that have points.
    region: int32 [B, 6], region of each face: 0 for the floor, 1 to 4 for the
      walls, then one for each face of each box.
  """

  boxes: np.ndarray
  label: np.ndarray
  color: np.ndarray
  visible: np.ndarray
  region: np.ndarray


def make_room(
  seed: int,
  index: int,
  *,
  image_size: tuple[int, int] = (60, 80),
  views: int = 6,
  points_per_square_metre: float = 400.0,
  occlude: bool = True,
) -> tuple[Scene, list[Frame]]:
  """Makes a room, the same for the same arguments.

  Args:
    seed: seed of a data set.
    index: number of the room in it.
    image_size: (H, W) of the frames, pixels.
    views: number of frames.
    points_per_square_metre: density of the points on the faces.
    occlude: leave out points where boxes touch, which no one can see: below a
      cabinet, on the wall behind it, where a leg meets its table.

  Returns:
    The scene, named after the index, with superpoints (floor and each wall
    one, otherwise one for each face of each box), and its frames, whose
    regions have the numbers of the superpoints. Depth is in whole
    millimetres.
  """
  rng = np.random.default_rng([seed, index])
  layout = make_layout(rng)
  scene = _sample_points(
    rng, layout, f"room_{index:05d}", points_per_square_metre, occlude
  )
  poses = [_draw_pose(rng, layout.boxes, k, views) for k in range(views)]
  frames = [
    _render(rng, layout, str(k), pose, image_size)
    for k, pose in enumerate(poses)
  ]
  names = tuple(frame.name for frame in frames)
  return dataclasses.replace(scene, frames=names), frames


def write_rooms(
  root: str | os.PathLike,
  *,
  train: int,
  val: int,
  seed: int,
  image_size: tuple[int, int] = (60, 80),
  views: int = 6,
  points_per_square_metre: float = 400.0,
  occlude: bool = True,
) -> assets.AssetDataset:
  """Writes rooms as a data set in the asset layout (docs/assets.md).

  Rooms that are there already are kept, so an interrupted call is continued by
  calling again; dataset.json is written last.

  Args:
    root: folder of the data set.
    train: number of rooms in the split "train".
    val: number of rooms in the split "val".
    seed: seed of the data set; other arguments as in `make_room`.

  Raises:
    DataError: the folder holds a data set or a room made otherwise.
  """
  settings = {
    "image_size": image_size,
    "views": views,
    "points_per_square_metre": points_per_square_metre,
    "occlude": occlude,
  }
  made_by = {"name": "box_rooms", "version": VERSION, "seed": seed}
  made_by.update(settings, image_size=list(image_size))
  whole = {**made_by, "train": train, "val": val}
  root = Path(root)
  if (root / "dataset.json").exists():
    _check_generator(root / "dataset.json", whole)
  names = []
  for index in range(train + val):
    names.append(f"room_{index:05d}")
    info = root / names[-1] / "scene.json"
    if info.exists():
      _check_generator(info, made_by)
      continue
    scene, frames = make_room(seed, index, **settings)
    extra = {"generator": made_by}
    assets.write_scene(root, scene, frames, classes=CLASSES, extra=extra)
  return assets.write_dataset(
    root,
    name="box_rooms",
    classes=CLASSES,
    splits={"train": names[:train], "val": names[train:]},
    extra={"generator": whole},
  )


def _check_generator(path: Path, expected: dict[str, Any]) -> None:
  found = assets.read_json(path).get("generator")
  if found != expected:
    raise DataError(
      f"{path}: generator is {found}, expected {expected}; write to another "
      f"folder or with the same arguments"
    )


def make_layout(rng: np.random.Generator) -> Layout:
  """Draws the boxes of a room and their colours; at least one is furniture."""
  width, depth = rng.uniform(2.5, 3.8, 2)
  height = rng.uniform(1.6, 2.0)
  t = _THICKNESS
  outer = np.array([[-t, -t, -t], [width + t, depth + t, height]])
  boxes = [outer.copy() for _ in range(_STRUCTURE)]
  boxes[0][1, 2] = 0.0
  boxes[1][1, 0] = 0.0
  boxes[2][0, 0] = width
  boxes[3][1, 1] = 0.0
  boxes[4][0, 1] = depth
  labels = [_FLOOR] + 4 * [_WALL]
  objects = [0, 1, 1, 1, 1]  # of each box; the walls are painted alike

  kinds = [kind for kind in _FURNITURE if rng.random() < 0.5]
  kinds = kinds or [int(rng.choice(_FURNITURE))]
  # More than one chair or box is common; large objects come first.
  counts = {CLASSES.index("chair"): 3, CLASSES.index("box"): 3}
  order = ("bed", "cabinet", "table", "chair", "box")
  footprints: list[np.ndarray] = []
  tops: list[np.ndarray] = []  # what a box may stand on
  for kind in sorted(kinds, key=lambda k: order.index(CLASSES[k])):
    for _ in range(rng.integers(1, counts.get(kind, 1) + 1)):
      name = CLASSES[kind]
      parts = _draw_object(rng, name)
      if name == "box" and tops and rng.random() < 0.5:
        placed = _put_on(rng, parts, tops.pop())
      else:
        by_wall = name in ("bed", "cabinet")
        placed = _put_down(rng, parts, (width, depth), footprints, by_wall)
      if placed is None:
        continue
      if name in ("table", "cabinet"):
        tops.append(placed[0])
      objects += len(placed) * [objects[-1] + 1]
      boxes += list(placed)
      labels += len(placed) * [kind]

  label = np.array(labels, np.int32)
  albedo = _COLORS[label[np.unique(objects, return_index=True)[1]]]
  albedo = albedo + rng.normal(0, _OBJECT_SPREAD, albedo.shape)
  light = rng.normal(size=3)
  shade = 0.85 + 0.15 * (_NORMALS @ (light / np.linalg.norm(light)))
  visible = np.ones((len(boxes), 6), bool)
  visible[:_STRUCTURE] = False
  visible[range(_STRUCTURE), [5, 1, 0, 3, 2]] = True
  region = np.arange(6 * len(boxes)).reshape(-1, 6) - 5 * _STRUCTURE
  region[:_STRUCTURE] = np.arange(_STRUCTURE)[:, None]
  # A capture has its origin anywhere.
  origin = np.append(rng.uniform(-1.0, 1.0, 2), rng.uniform(-0.1, 0.1))
  return Layout(
    boxes=np.stack(boxes) + origin,
    label=label,
    color=(albedo[objects][:, None] * shade[:, None]).clip(0, 255),
    visible=visible,
    region=region.astype(np.int32),
  )


def _draw_object(rng: np.random.Generator, name: str) -> np.ndarray:
  """Returns boxes [1..5, 2, 3] above z = 0 around the z axis, back at -y."""

  def box(x0, x1, y0, y1, z0, z1):
    return [[x0, y0, z0], [x1, y1, z1]]

  def legs(x, y, z, side):
    return [
      box(min(i, i - a), max(i, i - a), min(j, j - b), max(j, j - b), 0, z)
      for i, a in ((-x, -side), (x, side))
      for j, b in ((-y, -side), (y, side))
    ]

  u = rng.uniform
  if name == "table":
    x, y, z = u(0.35, 0.7), u(0.25, 0.45), u(0.65, 0.78)
    top = box(-x, x, -y, y, z - u(0.03, 0.06), z)
    parts = [top, *legs(x, y, top[0][2], u(0.05, 0.08))]
  elif name == "chair":
    x, y, z = u(0.18, 0.25), u(0.18, 0.25), u(0.4, 0.5)
    seat = box(-x, x, -y, y, z - u(0.04, 0.08), z)
    if rng.random() < 0.2:  # a stool
      parts = [seat, *legs(x, y, seat[0][2], 0.05)]
    else:
      back = box(-x, x, -y, -y + u(0.04, 0.06), z, z + u(0.3, 0.5))
      foot = u(0.06, 0.12)
      stem = box(-foot, foot, -foot, foot, 0, seat[0][2])
      parts = [seat, back, stem]
  elif name == "bed":
    x, y, z = u(0.4, 0.7), u(0.85, 1.0), u(0.2, 0.3)
    head = box(-x, x, -y, -y + 0.06, 0, u(0.7, 1.0))
    base = box(-x, x, -y + 0.06, y, 0, z)
    inset = u(0.02, 0.04)
    high = z + u(0.12, 0.22)
    mattress = box(-x + inset, x - inset, -y + 0.06, y - inset, z, high)
    pillow = box(-0.3, 0.3, -y + 0.1, -y + 0.4, high, high + u(0.08, 0.14))
    parts = [head, base, mattress, pillow]
  elif name == "cabinet":
    x, y, z = u(0.25, 0.6), u(0.18, 0.3), u(0.6, 1.3)
    body = box(-x, x, -y, y, 0, z)
    door = u(0.02, 0.04)
    parts = [
      body,
      box(-x + 0.03, -0.02, y, y + door, 0.08, z - 0.04),
      box(0.02, x - 0.03, y, y + door, 0.08, z - 0.04),
    ]
  else:
    x, y, z = u(0.1, 0.22), u(0.1, 0.22), u(0.12, 0.4)
    parts = [box(-x, x, -y, y, 0, z)]
  return np.array(parts, np.float64)


def _put_down(rng, parts, room, footprints, by_wall) -> np.ndarray | None:
  """Turns and moves an object to free floor; None where there is none."""
  for _ in range(50):
    turns = int(rng.integers(4))
    turned = _turn(parts, turns)
    low, high = turned[:, 0].min(0)[:2], turned[:, 1].max(0)[:2]
    first, last = _GAP - low, np.array(room) - _GAP - high
    place = rng.uniform(first, last)
    if by_wall:  # touch the wall that the back, at -y unturned, looks at
      axis = 1 - turns % 2
      place[axis] = (-low, room - high)[turns in (1, 2)][axis]
    footprint = np.stack([low + place, high + place + _GAP])
    free = all(
      (footprint[0] >= other[1]).any() or (footprint[1] <= other[0]).any()
      for other in footprints
    )
    if free:
      footprints.append(footprint)
      return turned + np.append(place, 0.0)
  return None


def _put_on(rng, parts, support: np.ndarray) -> np.ndarray | None:
  """Moves an object onto the top of a box; None if it is too large for it."""
  first = support[0, :2] - parts[:, 0].min(0)[:2] + _GAP
  last = support[1, :2] - parts[:, 1].max(0)[:2] - _GAP
  if (first > last).any():
    return None
  return parts + np.append(rng.uniform(first, last), support[1, 2])


def _turn(boxes: np.ndarray, quarters: int) -> np.ndarray:
  """Turns boxes about the z axis, counterclockwise from above."""
  for _ in range(quarters):
    (x0, y0, z0), (x1, y1, z1) = boxes[:, 0].T, boxes[:, 1].T
    low, high = np.stack([-y1, x0, z0], 1), np.stack([-y0, x1, z1], 1)
    boxes = np.stack([low, high], 1)
  return boxes


def _sample_points(rng, layout: Layout, name, density, occlude) -> Scene:
  box, face = np.nonzero(layout.visible)
  low, high = layout.boxes[box, 0], layout.boxes[box, 1]
  # Flatten each box to its face.
  rows, axis = np.arange(len(face)), face // 2
  side = np.where(face % 2, high[rows, axis], low[rows, axis])
  low[rows, axis] = high[rows, axis] = side
  extent = high - low
  extent[rows, axis] = 1.0
  count = rng.poisson(extent.prod(1) * density)
  which = rng.permutation(np.repeat(rows, count))
  coord = rng.uniform(low[which], high[which])
  hidden = np.zeros(len(which), bool)
  for k, (box_low, box_high) in enumerate(layout.boxes):
    # Structure hides always: faces of walls and floor go on behind each other.
    if occlude or k < _STRUCTURE:
      inside = (coord > box_low - _TOUCH) & (coord < box_high + _TOUCH)
      hidden |= inside.all(1) & (box[which] != k)
  coord, which = coord[~hidden], which[~hidden]
  box, face = box[which], face[which]
  spread = rng.uniform(0.001, 0.003)
  noise = rng.normal(0, spread, len(coord)).clip(-3 * spread, 3 * spread)
  texture = rng.normal(0, _TEXTURE_SPREAD, coord.shape)
  color = np.rint(layout.color[box, face] + texture).clip(0, 255)
  label = layout.label[box]
  return Scene(
    name=name,
    coord=(coord + noise[:, None] * _NORMALS[face]).astype(np.float32),
    color=color.astype(np.uint8),
    normal=_NORMALS[face].astype(np.float32),
    tags=np.isin(np.arange(len(CLASSES)), label),
    label=label,
    superpoint=layout.region[box, face],
  )


def _draw_pose(rng, boxes: np.ndarray, view: int, views: int) -> np.ndarray:
  """Draws a pose [4, 4]; the views go once around along the walls."""
  low = np.append(boxes[[1, 3], 1, [0, 1]], boxes[0, 1, 2])
  high = np.append(boxes[[2, 4], 0, [0, 1]], boxes[1, 1, 2])
  half = (high - low) / 2
  spread = 0.3  # of the angle between two views
  while True:
    angle = 2 * np.pi * (view + rng.uniform(-spread, spread)) / views
    outward = np.array([np.cos(angle), np.sin(angle)])
    place = rng.uniform(0.5, 0.85) * outward
    eye = low + half * np.append(1 + place, rng.uniform(1.2, 1.8))
    away = np.maximum(boxes[:, 0] - eye, eye - boxes[:, 1]).clip(0)
    # A camera close to a box shows nothing else.
    if np.linalg.norm(away[_STRUCTURE:], axis=1).min() > 0.3:
      break
    spread *= 1.1  # a cabinet may stand wherever the first tries are
  aside = half * rng.uniform(-0.25, 0.25, 3)
  target = low + half * np.array([1.0, 1.0, 0.4]) + aside
  forward = (target - eye) / np.linalg.norm(target - eye)
  right = np.cross(forward, [0.0, 0.0, 1.0])
  right /= np.linalg.norm(right)
  pose = np.eye(4)
  pose[:3] = np.stack([right, np.cross(forward, right), forward, eye], 1)
  return pose


def _render(rng, layout: Layout, name, pose, image_size) -> Frame:
  h, w = image_size
  focal = 0.6 * w  # 80 degrees across
  intrinsics = np.array([focal, focal, (w - 1) / 2, (h - 1) / 2])
  rows, columns = np.mgrid[:h, :w]
  x, y = (columns - intrinsics[2]) / focal, (rows - intrinsics[3]) / focal
  # One unit along a ray is one metre along the optical axis.
  rays = np.stack([x, y, np.ones((h, w))], -1).reshape(-1, 3) @ pose[:3, :3].T
  depth, box, face = cast_rays(layout.boxes, pose[:3, 3], rays)
  hit = box >= 0
  color = layout.color[box, face]
  color += rng.normal(0, _TEXTURE_SPREAD, color.shape)
  color = np.where(hit[:, None], np.rint(color).clip(0, 255), _BACKGROUND)
  millimetres = np.where(hit, np.rint(depth * 1000), 0)
  # The division that reading a depth image does, so that nothing changes.
  metres = millimetres.astype(np.float32) / np.float32(1000)
  region = np.where(hit, layout.region[box, face], NO_REGION)
  label = np.where(hit, layout.label[box], IGNORE_LABEL)
  return Frame(
    name=name,
    color=color.astype(np.uint8).reshape(h, w, 3),
    depth=metres.reshape(h, w),
    pose=pose,
    intrinsics=intrinsics,
    region=region.astype(np.int32).reshape(h, w),
    label=label.astype(np.int32).reshape(h, w),
  )


def cast_rays(
  boxes: np.ndarray, eye: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Finds the first box that each ray enters (slab method).

  Args:
    boxes: float64 [B, 2, 3], metres.
    eye: float64 [3], metres, outside all boxes.
    rays: float64 [P, 3], directions of any length.

  Returns:
    distance: float64 [P], in lengths of the ray; infinite where none is hit.
    box: int [P], -1 where none is hit.
    face: int [P], 0..5.
  """
  rays = np.where(np.abs(rays) < 1e-12, 1e-12, rays)
  distance = np.full(len(rays), np.inf)
  hit_box = np.full(len(rays), -1)
  hit_face = np.zeros(len(rays), int)
  entered = np.where(rays > 0, 0, 1) + 2 * np.arange(3)  # face, by axis
  for k, (low, high) in enumerate(boxes):
    to_low, to_high = (low - eye) / rays, (high - eye) / rays
    enter = np.minimum(to_low, to_high)
    axis = enter.argmax(1)
    near = enter.max(1)
    far = np.maximum(to_low, to_high).min(1)
    hit = (near > 0) & (near < far) & (near < distance)
    distance[hit] = near[hit]
    hit_box[hit] = k
    hit_face[hit] = entered[hit, axis[hit]]
  return distance, hit_box, hit_face
