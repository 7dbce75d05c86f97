"""A capture of a box room, made by casting rays, and the script on it."""

import numpy as np
import script_modules
from PIL import Image

prepare = script_modules.load("prepare_posed_rgbd")

ROOM = np.array([4.0, 3.0, 2.4])
BLOCK = np.array([[1.6, 1.0, 0.0], [2.6, 1.8, 0.8]])  # a table in the middle
# Of the faces x=0, y=0, z=0 and the opposite ones of the room, and the block.
COLORS = np.array(
  [[200, 60, 60], [60, 200, 60], [90, 90, 90], [60, 60, 200], [200, 200, 60],
   [230, 230, 230], [150, 80, 20]]
)  # fmt: skip
SIZE = (48, 64)
INTRINSICS = np.array([[40.0, 0, 31.5], [0, 40, 23.5], [0, 0, 1]])


def cast(pose, size=SIZE, intrinsics=INTRINSICS):
  """Depth [H, W] in metres and index of the colour [H, W]."""
  v, u = np.mgrid[: size[0], : size[1]]
  pixels = np.stack([u, v, np.ones_like(u)], axis=-1).astype(float)
  ray = pixels @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
  origin = pose[:3, 3]
  with np.errstate(divide="ignore", invalid="ignore"):
    far = np.where(ray > 0, (ROOM - origin) / ray, -origin / ray)
    low, high = (BLOCK - origin)[:, None, None] / ray
  axis = far.argmin(axis=-1)
  depth = far.min(axis=-1)
  face = axis + 3 * (np.take_along_axis(ray, axis[..., None], -1)[..., 0] > 0)
  enter = np.minimum(low, high).max(axis=-1)
  leave = np.maximum(low, high).min(axis=-1)
  hit = (0 < enter) & (enter < leave)
  return np.where(hit, enter, depth), np.where(hit, 6, face)


def look(position, target):
  """Camera-to-world with x right, y down, z forward."""
  forward = np.subtract(target, position).astype(float)
  forward /= np.linalg.norm(forward)
  right = np.cross(forward, [0, 0, 1.0])
  right /= np.linalg.norm(right)
  pose = np.eye(4)
  pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
  pose[:3, 3] = position
  return pose


def poses():
  places = [(0.5, 0.5), (3.5, 0.5), (3.5, 2.5), (0.5, 2.5)]
  some = [look((*p, 1.5), (2, 1.5, 0.6)) for p in places]
  some += [look((*p, 1.2), (4 - p[0], p[1] + 0.1, 1.1)) for p in places]
  return some + [look((2.0, 0.4, 1.4), (2, 3, z)) for z in (0.2, 2.3)]


def surface(n=9000, seed=0):
  """Points on what the cameras see and their colours."""
  rng = np.random.default_rng(seed)
  coord, color = [], []
  boxes = [(np.stack([0 * ROOM, ROOM]), range(6)), (BLOCK, [6] * 6)]
  for (low, high), faces in boxes:
    size = high - low
    for side, face in enumerate(faces):
      axis = side % 3
      if face == 6 and side == 2:
        continue
      area = size.prod() / size[axis]
      part = low + rng.random((int(area * n / 60), 3)) * size
      part[:, axis] = (low, high)[side // 3][axis]
      coord.append(part)
      color.append(np.tile(COLORS[face], (len(part), 1)))
  coord, color = np.concatenate(coord), np.concatenate(color)
  x, y, z = coord.T
  (x0, y0, _), (x1, y1, _) = BLOCK
  under = (z == 0) & (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
  return coord[~under].astype(np.float32), color[~under]


def save_frame(folder, name, pose, *, apart=False, depth_size=SIZE):
  parts = ("color", "depth", "pose") if apart else ("", "", "")
  color_dir, depth_dir, pose_dir = (folder / p for p in parts)
  for part in (color_dir, depth_dir, pose_dir):
    part.mkdir(parents=True, exist_ok=True)
  _, index = cast(pose)
  image = Image.fromarray(COLORS[index].astype(np.uint8))
  if apart:
    image.save(color_dir / f"{name}.png")
  else:
    image.save(color_dir / f"{name}.jpg", quality=98, subsampling=0)
  h, w = depth_size
  scale = [
    w / SIZE[1],
    h / SIZE[0],
    (w - 1) / (SIZE[1] - 1),
    (h - 1) / (SIZE[0] - 1),
  ]
  intrinsics = np.eye(3)
  intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]] = (
    INTRINSICS[[0, 1, 0, 1], [0, 1, 2, 2]] * scale
  )
  depth, _ = cast(pose, depth_size, intrinsics)
  millimetres = np.rint(1000 * depth).astype(np.uint16)
  Image.fromarray(millimetres).save(depth_dir / f"{name}.png")
  np.savetxt(pose_dir / f"{name}.txt", pose)


def write_capture(folder):
  """One folder, as mmdetection3d has it, and points as .bin."""
  frames = folder / "frames"
  for i, pose in enumerate(poses()):
    save_frame(frames, f"{i:05d}", pose)
  matrix = np.eye(4)
  matrix[:3, :3] = INTRINSICS
  np.savetxt(frames / "intrinsic.txt", matrix)
  coord, color = surface()
  np.column_stack([coord, color]).astype(np.float32).tofile(folder / "room.bin")
  (folder / "classes.txt").write_text("wall\nfloor\n\ntable \nceiling\nchair\n")
  return folder


def convert(capture, root, options, *, scene="room", points=True):
  """Runs the script; what `options` repeats overrides the defaults."""
  argv = (
    f"--root {root} --scene {scene} --frames {capture}/frames"
    f" --classes {capture}/classes.txt"
  )
  argv += f" --points {capture}/room.bin" * points
  return prepare.main(f"{argv} {options}".split())


def info(scene="room", **changes):
  entry = {
    "lidar_points": {"lidar_path": f"{scene}.bin"},
    "instances": [
      {"bbox_label_3d": i, "bbox_3d": [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]}
      for i in (3, 17, 13, 3)
    ],
    "axis_align_matrix": np.eye(4).tolist(),
  } | changes
  other = {"lidar_points": {"lidar_path": "other.bin"}, "instances": []}
  categories = {"table": 3, "chair": 2, "garbagebin": 17, "showercurtrain": 13}
  return {"metainfo": {"categories": categories}, "data_list": [other, entry]}
