"""Miniature S3DIS and 2D-3D-S of box rooms, raw and as the authors process it.

`write_raw` writes both releases, with the faults that the real ones have,
`write_processed` the layout of the authors of WSegPC. Both return the rooms
that a reader should give. Images are small squares (64 pixels, not 1080), with
intrinsics for 1080 as in 2D-3D-S; the rooms have no ceiling.

  rooms = miniature_s3dis.write_raw(folder)
  rooms = miniature_s3dis.write_processed(folder)

Dimension letters: N points, H and W image height and width.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsegpc_jax.data import box_rooms
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, Frame, Scene

CLASSES = (
  "ceiling floor wall beam column window door table chair sofa bookcase board"
  " clutter"
).split()
ROOMS = (
  (1, "office_1"),
  (1, "office_10"),
  (2, "office_1"),
  (3, "hallway_2"),
  (5, "office_1"),
  (5, "hallway_6"),
)
_CLASS_OF = {
  "wall": "wall",
  "floor": "floor",
  "table": "table",
  "chair": "chair",
  "bed": "sofa",
  "cabinet": "bookcase",
  "box": "clutter",
}
# Where the world of area_5b lies in that of area 5, and how it is turned: by
# hand, a point (x, y, z) of area_5b is (y - 4.097, 6.226 - x, z) in area 5.
_MOVE_5B = (-4.09703582, 6.22617759)


@dataclasses.dataclass(frozen=True)
class Room:
  """A room as a reader should give it.

  Attributes:
    scene: named Area_<k>_<room>; points in the order of the files, coordinates
      as exact as the text; labels of S3DIS; superpoints those of the box room.
    frames: named as in 2D-3D-S, in order; depth in whole 512ths of a metre,
      labels of S3DIS.
  """

  scene: Scene
  frames: tuple[Frame, ...]


def write_raw(
  folder: Path,
  *,
  rooms=ROOMS,
  faults: bool = True,
  turned: dict[str, int] | None = None,
  **settings,
) -> dict[str, Room]:
  """Writes <folder>/Stanford3dDataset_v1.2 and <folder>/2D-3D-Semantics.

  Half of the frames of area 5 are in area_5b, whose world is another one.

  Args:
    rooms: pairs of area and room name.
    faults: write what is known to be wrong with the releases, and repairable:
      a blank that is NUL and a digit that is a control character in the first
      object of every room, more blanks than needed, a copied file, a class
      "stairs", hidden and "Icon\\r" files, a misnamed room file.
    turned: degrees (90, 180, 270) by which the points of a scene are turned
      about the middle of the room, and its images are not, as in the "aligned"
      release. The rooms returned are turned whole.
    settings: of `make_rooms`.

  Returns:
    The rooms by scene name, without superpoints.
  """
  raw = folder / "Stanford3dDataset_v1.2"
  images = folder / "2D-3D-Semantics"
  # So many that all three bytes of an index count.
  names = ["<UNK>_0_<UNK>_0_0"] * 70_000
  out = {}
  for (area, name), room in zip(
    rooms, make_rooms(rooms, **settings), strict=True
  ):
    scene, objects = _in_file_order(room.scene, stairs=faults)
    _write_frames_raw(images, area, name, room.frames, names)
    degrees = (turned or {}).get(scene.name, 0)
    scene, frames = _turned(scene, room.frames, degrees)
    _write_room(raw / f"Area_{area}" / name, scene, objects, faults)
    coord = np.round(scene.coord.astype(np.float64), 3).astype(np.float32)
    scene = dataclasses.replace(scene, coord=coord, superpoint=None)
    out[scene.name] = Room(scene, frames)
  for area in {area for area, _ in rooms}:
    angles = "".join(f"{name} 0\n" for k, name in rooms if k == area)
    head = f"## Global alignment angle per disjoint space in Area_{area} ##\n"
    (raw / f"Area_{area}" / f"Area_{area}_alignmentAngle.txt").write_text(
      head + "## Disjoint Space Name Global Alignment Angle ##\n" + angles
    )
  (images / "assets").mkdir()
  (images / "assets" / "semantic_labels.json").write_text(json.dumps(names))
  return out


def write_processed(
  folder: Path, *, rooms=ROOMS, prefix="/data/authors/s3dis/2d3ds", **settings
) -> dict[str, Room]:
  """Writes <folder>/s3dis_3d and <folder>/s3dis_2d.

  Args:
    rooms: pairs of area and room name.
    prefix: where the authors had the images, before Area_<k> in <room>.txt.
    settings: of `make_rooms`.

  Returns:
    The rooms by scene name, with superpoints and regions.
  """
  out = {}
  for (area, name), room in zip(
    rooms, make_rooms(rooms, **settings), strict=True
  ):
    scene, _ = _in_file_order(room.scene)
    superpoint = scene.superpoint.copy()
    superpoint[::50] = NO_REGION
    scene = dataclasses.replace(scene, superpoint=superpoint)
    out[scene.name] = Room(scene, room.frames)
    place = folder / "s3dis_3d" / f"Area_{area}"
    superpoints = folder / "s3dis_3d/initial_superpoints_wypr" / f"Area_{area}"
    for path in (place, superpoints):
      path.mkdir(parents=True, exist_ok=True)
    np.savez(
      place / f"{name}.npz",
      coord=scene.coord,
      color=scene.color.astype(np.float32),
      normal=scene.normal,
      semantic_gt=scene.label[:, None],
    )
    # Any negative number means none.
    a = np.where(superpoint == NO_REGION, -5, superpoint)
    np.savez(superpoints / f"{name}.npz", a=a)
    lines = [
      f"{prefix}/Area_{area}/data/rgb/{frame.name}_rgb.png\n"
      for frame in room.frames
    ]
    (place / f"{name}.txt").write_text("".join(lines[::-1]))
    data = folder / "s3dis_2d" / f"Area_{area}" / "data"
    for frame in room.frames:
      _write_frame(data, frame, frame.pose)
      label = data / "semantic_my" / f"{frame.name}_semantic.png"
      region = data / "label_sp_sparse" / f"{frame.name}.npz"
      for path in (label, region):
        path.parent.mkdir(exist_ok=True)
      Image.fromarray(frame.label.astype(np.uint8)).save(label)
      a = np.where(frame.region == NO_REGION, -100, frame.region)
      np.savez_compressed(region, a=a.reshape(-1))
  return out


def make_rooms(
  rooms=ROOMS,
  *,
  seed: int = 0,
  edge: int = 64,
  views: int = 6,
  points_per_square_metre: float = 400.0,
) -> list[Room]:
  """Box rooms with the classes and names of S3DIS.

  Args:
    rooms: pairs of area and room name.
    seed: of the rooms.
    edge: H and W of the images.
    views: frames of a room.
    points_per_square_metre: density of the points.
  """
  made = []
  kinds = [CLASSES.index(_CLASS_OF[name]) for name in box_rooms.CLASSES]
  to_s3dis = np.full(256, IGNORE_LABEL, np.int32)
  to_s3dis[: len(kinds)] = kinds
  for index, (area, name) in enumerate(rooms):
    scene, frames = box_rooms.make_room(
      seed,
      index,
      image_size=(edge, edge),
      views=views,
      points_per_square_metre=points_per_square_metre,
    )
    label = to_s3dis[scene.label]
    named = [
      dataclasses.replace(
        frame,
        name=f"camera_{_uuid(index, k // 4)}_{name}_frame_{k % 4}_domain",
        depth=(np.rint(frame.depth * 512) / 512).astype(np.float32),
        label=to_s3dis[frame.label],
      )
      for k, frame in enumerate(frames)
    ]
    named.sort(key=lambda frame: frame.name)
    scene = dataclasses.replace(
      scene,
      name=f"Area_{area}_{name}",
      label=label,
      tags=np.isin(np.arange(len(CLASSES)), label),
      frames=tuple(frame.name for frame in named),
    )
    made.append(Room(scene, tuple(named)))
  return made


def _uuid(room: int, camera: int) -> str:
  return f"{31 * room + camera:032x}"


def _in_file_order(
  scene: Scene, *, stairs: bool = False
) -> tuple[Scene, list[tuple[str, int]]]:
  """Points sorted by object, and name and number of points of each object."""
  kinds = [*CLASSES[:-1], "stairs" if stairs else "clutter"]
  objects = [f"{kinds[k]}_1" for k in scene.label]
  wall = scene.label == CLASSES.index("wall")
  # Each wall is an object, and every other point of chairs is another chair.
  for i in np.flatnonzero(wall):
    objects[i] = f"wall_{scene.superpoint[i]}"
  for i in np.flatnonzero(scene.label == CLASSES.index("chair"))[::2]:
    objects[i] = "chair_2"
  names, which, count = np.unique(
    objects, return_inverse=True, return_counts=True
  )
  order = np.argsort(which, kind="stable")
  arrays = {
    field: getattr(scene, field)[order]
    for field in ("coord", "color", "normal", "label", "superpoint")
  }
  scene = dataclasses.replace(scene, **arrays)
  return scene, list(zip(names.tolist(), count.tolist(), strict=True))


def _turned(scene, frames, degrees):
  """Points, normals and poses turned about the middle of the points."""
  angle = np.deg2rad(degrees)
  turn = np.eye(3)
  turn[:2, :2] = np.rint(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  middle = (scene.coord.min(0) + scene.coord.max(0)) / 2
  coord = (scene.coord - middle) @ turn.T + middle
  scene = dataclasses.replace(
    scene,
    coord=coord.astype(np.float32),
    normal=(scene.normal @ turn.T).astype(np.float32),
  )
  whole = np.eye(4)
  whole[:3, :3], whole[:3, 3] = turn, middle - turn @ middle
  moved = (dataclasses.replace(f, pose=whole @ f.pose) for f in frames)
  return scene, tuple(moved)


def _write_room(folder, scene, objects, faults):
  annotations = folder / "Annotations"
  annotations.mkdir(parents=True)
  lines = [
    "{:.3f} {:.3f} {:.3f} {} {} {}".format(*xyz, *rgb)
    for xyz, rgb in zip(scene.coord.tolist(), scene.color.tolist(), strict=True)
  ]
  name = folder.name
  if faults:  # as Area_6/copyRoom_1/copy_Room_1.txt
    name = name.replace("_", "_Room_")
  (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
  start = 0
  for number, (name, count) in enumerate(objects):
    part = lines[start : start + count]
    start += count
    text = "\n".join(part).encode() + b"\n"
    if faults:
      if number == 0:
        text = b"\n".join(_break(line.encode()) for line in part[:2])
        text += "\n".join(["", *part[2:], ""]).encode()
      if number == 1:
        text = text.replace(b" ", b"  ", 7) + b"\n"
      if name == "wall_3":
        (annotations / "wall_3 (1).txt").write_bytes(text)
    (annotations / f"{name}.txt").write_bytes(text)
  if faults:
    for junk in (".DS_Store", "Icon\r", ".wall_1.txt"):
      (annotations / junk).write_bytes(b"\0\0\1junk")
    (folder.parent / ".DS_Store").write_bytes(b"\0")


def _break(line: bytes) -> bytes:
  """Clears a bit of the last but one blank and of the last digit."""
  at = line.rindex(b" ", 0, line.rindex(b" "))
  line = line[:at] + b"\0" + line[at + 1 :]
  return line[:-1] + bytes([line[-1] & ~0x20])


def _write_frames_raw(images, area, room, frames, names):
  for index, frame in enumerate(frames):
    half = "ab"[index % 2] if area == 5 else ""
    pose = frame.pose
    if half == "b":
      pose = pose.copy()
      x, y = pose[0].copy(), pose[1].copy()
      pose[0], pose[1] = -y, x
      pose[0, 3] += _MOVE_5B[1]
      pose[1, 3] -= _MOVE_5B[0]
    data = images / f"area_{area}{half}" / "data"
    _write_frame(data, frame, pose)
    index = np.full(frame.label.shape, 0x0D0D0D)
    for label in set(np.unique(frame.label)) - {IGNORE_LABEL}:
      name = f"{CLASSES[label]}_1_{room}_{area}{half}"
      if name not in names:
        names.append(name)
      index[frame.label == label] = names.index(name)
    rgb = np.stack([index >> 16, index >> 8 & 255, index & 255], -1)
    path = data / "semantic" / f"{frame.name}_semantic.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def _write_frame(data: Path, frame: Frame, pose: np.ndarray) -> None:
  """rgb, depth and pose as 2D-3D-S has them."""
  for field in ("rgb", "depth", "pose"):
    (data / field).mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(frame.color)
  image.save(data / "rgb" / f"{frame.name}_rgb.png")
  depth = np.rint(frame.depth * 512)
  depth = np.where(depth == 0, 65535, depth).astype(np.uint16)
  Image.fromarray(depth).save(data / "depth" / f"{frame.name}_depth.png")
  h, w = frame.depth.shape
  fx, fy, cx, cy = frame.intrinsics
  camera = [
    [fx * 1080 / w, 0, cx * 1079 / (w - 1)],
    [0, fy * 1080 / h, cy * 1079 / (h - 1)],
    [0, 0, 1],
  ]
  content = {
    "camera_k_matrix": camera,
    "camera_rt_matrix": np.linalg.inv(pose)[:3].tolist(),
    "camera_location": pose[:3, 3].tolist(),
  }
  path = data / "pose" / f"{frame.name}_pose.json"
  path.write_text(json.dumps(content))
