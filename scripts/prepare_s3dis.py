"""Converts S3DIS, and its images 2D-3D-S, to a data set in our asset layout.

  python scripts/prepare_s3dis.py --raw Stanford3dDataset_v1.2 \\
    --images 2D-3D-Semantics --root data/s3dis --workers 8

--raw has Area_<k>/<room>/Annotations/*.txt; with --images it should be the
release that is not "aligned", as the poses are in its world. --images has
area_1 ... area_4, area_5a, area_5b, area_6, each with data/rgb, data/depth,
data/pose and maybe data/semantic, and assets/semantic_labels.json. Areas 1, 2,
3, 4 and 6 become the split train, area 5 becomes val.

Every room is checked against the depth images. Where they fit better after a
quarter or half turn about the middle of the room (all the rooms that an
"aligned" release has turned, and a few of the other), the poses are turned.

Run again, it goes on with the rooms that are missing. docs/s3dis.md tells more.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from scipy.spatial import cKDTree

from wsegpc_jax.arguments import count
from wsegpc_jax.data.links import link_points
from wsegpc_jax.data.preparation import prepare
from wsegpc_jax.interop import s3dis
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.normals import estimate_normals
from wsegpc_jax.regions.superpoints import plane_aware_superpoints
from wsegpc_jax.types import DataError, Frame, Scene

VERSION = 1  # to be raised whenever the same arguments give another data set

_LINK_TOLERANCE = 0.05  # metres, as in training
_SOME_POINTS = 500_000  # of a room, enough to see whether poses fit
_MIN_LINKED = 64  # of them that a frame must show
_REGION_SIZE = 200 / (240 * 320)  # smallest region, share of the image
_MAX_DEPTH = 65.535  # metres that the asset layout can hold
_FIT_FRAMES = 8
_FIT_SIZE = (24, 24)  # pixels of them that are looked at
_FIT_GAIN = 0.1  # share of pixels a turn must gain: rooms are symmetrical
_FIT_LOW = 0.5  # share of pixels below which something must be wrong


def main(argv: list[str] | None = None) -> None:
  """Converts all rooms."""
  args = parse_args(argv)
  raw, images = Path(args.raw), args.images and Path(args.images)
  splits, without = choose_rooms(raw, images, args.areas, args.exclude)
  if without:
    print(f"left out, being without images: {', '.join(without)}")
  convert_one = functools.partial(
    convert_room, raw, images, args.every, tuple(args.image_size),
    args.min_spacing,
  )  # fmt: skip
  report = prepare(
    splits,
    convert_one,
    root=args.root,
    name=args.name,
    classes=s3dis.CLASSES,
    made_by={
      "script": "prepare_s3dis",
      "version": VERSION,
      "release": raw.resolve().name,
      "every": args.every if images else None,
      "image_size": args.image_size if images else None,
      "min_spacing": args.min_spacing,
    },
    workers=args.workers,
  )
  report.check()


def parse_args(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--raw", required=True, help="folder of the release, with Area_1 ...")
  add("--root", required=True, help="folder of the data set, made if needed")
  add("--images", help="folder of 2D-3D-S; without it scenes have no frames")
  add(
    "--areas",
    nargs="+",
    type=int,
    choices=range(1, 7),
    help="areas to convert; default: all that are there",
  )
  add(
    "--exclude",
    nargs="+",
    default=[],
    metavar="SCENE",
    help="rooms to leave out, such as Area_1_office_1",
  )
  add(
    "--every",
    type=count,
    default=5,
    help="keep each k-th frame of a room (default: %(default)s)",
  )
  add(
    "--image_size",
    nargs=2,
    type=count,
    default=[256, 256],
    metavar=("H", "W"),
    help="size to store (default: 256 256)",
  )
  add(
    "--min_spacing",
    type=_length,
    default=0.0,
    help="keep one point, the first, of each cube of this edge in metres;"
    " scores are then over the points kept (default: 0, keep all)",
  )
  add("--workers", type=count, default=1, help="rooms at a time")
  add("--name", default="s3dis", help="of the data set (default: %(default)s)")
  return parser.parse_args(argv)


def _length(text):
  value = float(text)
  if not 0 <= value < float("inf"):
    raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
  return value


def choose_rooms(raw, images, areas, exclude):
  """Scene names by split, and the training rooms without a single image."""
  scenes = s3dis.find_rooms(raw, areas and tuple(areas))
  unknown = sorted(set(exclude) - set(scenes))
  if unknown:
    raise DataError(f"--exclude: {unknown[0]!r} is none of the rooms in {raw}")
  splits, without = {}, []
  for scene in scenes:
    area, _ = s3dis.split_name(scene)
    split = s3dis.split_of(area)
    if scene in exclude:
      continue
    # Training needs images wherever there are some.
    if images and split == "train" and not find_frames(images, scene):
      without.append(scene)
      continue
    splits.setdefault(split, []).append(scene)
  return splits, without


def find_frames(images: Path, scene: str) -> list[tuple[Path, str]]:
  """Folder `data` and name of all frames of a room, in order."""
  area, room = s3dis.split_name(scene)
  folders = s3dis.image_folders(images, area)
  found = [(d, name) for d in folders for name in s3dis.list_frames(d, room)]
  return sorted(found, key=lambda source: source[1])


def convert_room(
  raw: Path,
  images: Path | None,
  every: int,
  image_size: tuple[int, int],
  min_spacing: float,
  scene_name: str,
) -> tuple[Scene, Iterator[Frame]]:
  """Reads a room and computes its normals, superpoints and image regions.

  Raises:
    DataError: a file is missing or malformed, or no frame of a training room
      shows the room.
  """
  area, room = s3dis.split_name(scene_name)
  coord, color, label = s3dis.read_room(raw / f"Area_{area}" / room)
  if min_spacing:
    kept = thin_out(coord, min_spacing)
    coord, color, label = coord[kept], color[kept], label[kept]
  sources = find_frames(images, scene_name)[::every] if images else []
  turn = np.eye(4)
  if sources:
    turn, share = fit_poses(coord, sources)
    if not np.array_equal(turn, np.eye(4)):
      logging.warning("%s: poses are turned to fit the points", scene_name)
    if share < _FIT_LOW:
      logging.warning(
        "%s: only %.0f%% of the pixels looked at lie on points of the room; do"
        " --raw and --images have the same world?", scene_name, 100 * share,
      )  # fmt: skip
  cameras = [(turn @ s3dis.read_camera(*s)[0])[:3, 3] for s in sources]
  normal = estimate_normals(
    coord, viewpoints=np.array(cameras) if cameras else None
  )
  scene = Scene(
    name=scene_name,
    coord=coord,
    color=color,
    normal=normal,
    tags=np.isin(np.arange(len(s3dis.CLASSES)), label),
    label=label,
    superpoint=plane_aware_superpoints(coord, color, normal),
  )
  return scene, make_frames(scene, images, sources, turn, image_size)


def make_frames(scene, images, sources, turn, image_size) -> Iterator[Frame]:
  """The frames that show something of the room, one at a time."""
  names = s3dis.read_semantic_names(images) if sources else None
  some = scene.coord[:: -(-len(scene.coord) // _SOME_POINTS)]
  kept = 0
  for data, name in sources:
    frame = s3dis.read_frame(data, name, image_size)
    depth = np.where(frame.depth > _MAX_DEPTH, 0, frame.depth)
    frame = dataclasses.replace(frame, pose=turn @ frame.pose, depth=depth)
    link = link_points(
      some, depth, frame.pose, frame.intrinsics, tolerance=_LINK_TOLERANCE
    )
    if np.count_nonzero(link[:, 0] >= 0) < _MIN_LINKED:
      continue
    kept += 1
    least = max(int(_REGION_SIZE * depth.size), 1)
    region = image_regions(frame.color, depth, min_size=least)
    label = None
    if names is not None and (data / "semantic").is_dir():
      label = s3dis.read_semantic(data, name, depth.shape, names)
    yield dataclasses.replace(frame, region=region, label=label)
  area, _ = s3dis.split_name(scene.name)
  if sources and not kept and s3dis.split_of(area) == "train":
    raise DataError(
      f"{scene.name}: none of {len(sources)} frames shows {_MIN_LINKED} points"
      " of the room, expected images and points of one world; --exclude it"
    )


def thin_out(coord: np.ndarray, spacing: float) -> np.ndarray:
  """Indices of the first point in each cube of edge `spacing`, ascending."""
  cell = np.floor((coord - coord.min(0)) / spacing).astype(np.int64)
  key = cell @ (1, 1 << 21, 1 << 42)
  _, first = np.unique(key, return_index=True)
  return np.sort(first)


def fit_poses(
  coord: np.ndarray, sources: list[tuple[Path, str]]
) -> tuple[np.ndarray, float]:
  """Finds the turn of the poses after which depth images lie on the points.

  Args:
    coord: float32 [N, 3], metres.
    sources: the frames of the room; a few of them are looked at.

  Returns:
    A quarter turn about the vertical through the middle of the room, float64
    [4, 4], the identity unless another is much better; and the share of the
    pixels that are then within 5 cm of a point.
  """
  few = sources[:: -(-len(sources) // _FIT_FRAMES)]
  pixels = np.concatenate([_back_project(data, name) for data, name in few])
  if not len(pixels):
    return np.eye(4), 0.0
  tree = cKDTree(coord[:: -(-len(coord) // _SOME_POINTS)])
  middle = (coord.min(0) + coord.max(0)).astype(np.float64) / 2
  turns, shares = [], []
  for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
    turn = np.eye(4)
    turn[:2, :2] = [[cos, -sin], [sin, cos]]
    turn[:2, 3] = middle[:2] - turn[:2, :2] @ middle[:2]
    near, _ = tree.query(
      pixels @ turn[:3, :3].T + turn[:3, 3],
      distance_upper_bound=_LINK_TOLERANCE,
    )
    turns.append(turn)
    shares.append(np.isfinite(near).mean())
  best = int(np.argmax(shares))
  if shares[best] < shares[0] + _FIT_GAIN:
    best = 0
  return turns[best], float(shares[best])


def _back_project(data: Path, name: str) -> np.ndarray:
  """Float64 [P, 3], metres, the measured pixels of a small copy of a frame."""
  pose, intrinsics = s3dis.read_camera(data, name)
  depth = s3dis.read_depth(data, name, _FIT_SIZE)
  row, column = np.nonzero(depth)
  z = depth[row, column].astype(np.float64)
  # The middle of the pixels that a pixel of the copy stands for.
  step = s3dis.CAMERA_EDGE / _FIT_SIZE[0]
  row, column = (step * (x + 0.5) - 0.5 for x in (row, column))
  fx, fy, cx, cy = intrinsics
  rays = np.stack([(column - cx) / fx, (row - cy) / fy, np.ones(len(z))], 1)
  return (rays * z[:, None]) @ pose[:3, :3].T + pose[:3, 3]


if __name__ == "__main__":
  try:
    main()
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
