"""Writing synthetic rooms as a data set in the asset layout.

Dimension letters: N points, H and W image height and width.
"""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from wsegpc_jax.data import assets, preparation
from wsegpc_jax.data.synthetic import render, scanner
from wsegpc_jax.data.synthetic.layout import make_layout
from wsegpc_jax.data.synthetic.objects import CLASSES
from wsegpc_jax.files import exclusive
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.superpoints import plane_aware_superpoints
from wsegpc_jax.types import IGNORE_LABEL, DataError, Frame, Scene

VERSION = 3  # to be raised whenever a seed gives another room

SPLITS = ("train", "val")
_NAME = "synthetic"
_INFO = "dataset.json"
_MIN_POINTS = 30  # a class with fewer is left out of the room
_REGION_SIZE = 200 / (240 * 320)  # smallest region, share of the image


def make_room(
  seed: int,
  split: str,
  index: int,
  *,
  image_size: tuple[int, int] = (96, 128),
  views: int = 6,
) -> tuple[Scene, list[Frame]]:
  """Makes a room, the same for the same arguments.

  Args:
    seed: of the data set, from 0.
    split: "train" or "val"; no room is in both.
    index: number of the room in its split.
    image_size: (H, W) of the frames, pixels.
    views: number of frames.

  Returns:
    The scene, with superpoints, and its frames, with regions; neither are made
    from labels. Tags are the classes that have points. A pixel of a class
    without points is not scored.

  Raises:
    DataError: no such split, or embreex is not installed.
    ImportError: scikit-image is not installed.
  """
  if split not in SPLITS:
    raise DataError(f"split: expected one of {SPLITS}, got {split!r}")
  key = [seed, SPLITS.index(split), index]
  draws = np.random.default_rng(key).spawn(4)
  room = make_layout(draws[0])
  bounds = [m.vertices for m in room.meshes]
  low = np.min([v.min(0) for v in bounds], axis=0)
  high = np.max([v.max(0) for v in bounds], axis=0)
  lights = render.draw_lights(draws[1], low, high)
  world = render.World(room.meshes, room.label, lights)
  cloud = scanner.scan(draws[2], room, world)
  count = np.bincount(cloud["label"], minlength=len(CLASSES))
  tags = count >= _MIN_POINTS
  cloud = {k: v[tags[cloud["label"]]] for k, v in cloud.items()}
  coord, color, normal = (cloud[k] for k in ("coord", "color", "normal"))
  scene = Scene(
    name=room_name(seed, split, index),
    tags=tags,
    superpoint=plane_aware_superpoints(coord, color, normal),
    frames=tuple(str(k) for k in range(views)),
    **cloud,
  )
  frames = []
  poses = scanner.choose_poses(draws[3], room, world, views)
  for k, pose in enumerate(poses):
    frames.append(
      _take(draws[3], world, str(k), pose, image_size, np.append(tags, True))
    )
  return scene, frames


def _take(rng, world, name, pose, image_size, tags) -> Frame:
  intrinsics = scanner.intrinsics_of(image_size)
  color, depth, label = render.render(world, pose, intrinsics, image_size, rng)
  known = tags[np.minimum(label, len(CLASSES))]
  h, w = image_size
  return Frame(
    name=name,
    color=color,
    depth=depth,
    pose=pose,
    intrinsics=intrinsics,
    region=image_regions(
      color, depth, min_size=max(int(_REGION_SIZE * h * w), 1)
    ),
    label=np.where(known, label, IGNORE_LABEL).astype(np.int32),
  )


def room_name(seed: int, split: str, index: int) -> str:
  """Name of a room, which says all that it is drawn from."""
  return f"{split}_{seed}_{index:04d}"


def write_rooms(
  root: str | os.PathLike,
  *,
  train: int,
  val: int,
  seed: int = 0,
  image_size: tuple[int, int] = (96, 128),
  views: int = 6,
  workers: int = 1,
) -> assets.AssetDataset:
  """Writes rooms as a data set in the asset layout (docs/assets.md).

  Rooms that are there are kept: an interrupted call is continued by calling
  again, and larger numbers add rooms. The result does not depend on `workers`.

  Args:
    root: folder of the data set.
    train: number of rooms in the split "train".
    val: number of rooms in the split "val".
    seed: of the data set, from 0; other arguments as in `make_room`.
    workers: number of processes.

  Raises:
    DataError: an argument is out of range, embreex or scikit-image is not
      installed, the folder holds more rooms, rooms with other arguments or
      those of another version of the generator (with the command that makes
      them anew), or a room failed.
    OSError: the disk is full.
  """
  root = Path(root)
  image_size = (int(image_size[0]), int(image_size[1]))
  for field, value, least in (
    ("train", train, 0),
    ("val", val, 0),
    ("train + val", train + val, 1),
    ("seed", seed, 0),
    ("image_size", min(image_size), 8),
    ("views", views, 1),
    ("workers", workers, 1),
  ):
    if value < least:
      raise DataError(f"{field}: expected at least {least}, got {value}")
  if views > scanner.MAX_VIEWS:
    raise DataError(f"views: expected at most {scanner.MAX_VIEWS}, got {views}")
  made_by = {
    "name": _NAME,
    "version": VERSION,
    "seed": seed,
    "image_size": list(image_size),
    "views": views,
  }
  splits = {
    split: [room_name(seed, split, k) for k in range(count)]
    for split, count in (("train", train), ("val", val))
  }
  command = (
    f"python -m wsegpc_jax.data.synthetic --root {root} --train {train} --val "
    f"{val} --seed {seed} --image_size {image_size[0]} {image_size[1]} --views "
    f"{views}"
  )
  if _is_whole(root, splits, made_by, command):
    return assets.open_dataset(root)
  render.require_embree()
  if importlib.util.find_spec("skimage") is None:
    raise DataError(
      "regions of the images need scikit-image: "
      'pip install "wsegpc-jax[synthetic]"'
    )
  with exclusive(root):
    report = preparation.prepare(
      splits,
      functools.partial(_make_named, image_size=image_size, views=views),
      root=root,
      name=_NAME,
      classes=CLASSES,
      made_by=made_by,
      workers=workers,
    )
    report.check()
  return assets.open_dataset(root)


def _make_named(name: str, *, image_size, views) -> tuple[Scene, list[Frame]]:
  split, seed, index = name.split("_")
  return make_room(
    int(seed), split, int(index), image_size=image_size, views=views
  )


def _is_whole(
  root: Path, splits: dict[str, list[str]], made_by: dict[str, Any], command
) -> bool:
  """Whether all rooms are there; refuses a folder that holds others."""
  path = root / _INFO
  infos = [path] if path.exists() else []
  # Of an interrupted call, which has no dataset.json yet.
  for split in SPLITS:
    infos += sorted(root.glob(f"{split}_*_*/scene.json"))
  for info in infos:
    _check_made_by(root, info, made_by, command)
  if not path.exists():
    return False
  # Not opened: a room may have been removed to have it made again.
  there = assets.read_json(path).get("splits", {})
  for split, names in splits.items():
    old = there.get(split, ())
    if set(old) - set(names):
      raise DataError(
        f"{path}: splits.{split} has {len(old)} rooms, expected at most the"
        f" {len(names)} asked for; ask for {len(old)}, or write to another"
        " folder"
      )
  return all(
    name in there.get(split, ()) and (root / name / "scene.json").is_file()
    for split, names in splits.items()
    for name in names
  )


def _check_made_by(
  root: Path, path: Path, made_by: dict[str, Any], command: str
) -> None:
  found = assets.read_json(path).get("made_by")
  if found == made_by:
    return
  if not isinstance(found, dict) or found.get("name") != _NAME:
    raise DataError(
      f"{path}: made_by is {found}, expected synthetic rooms; write to another"
      " folder"
    )
  if found.get("version") != VERSION:
    raise DataError(
      f"{path}: made_by.version is {found.get('version')}, expected {VERSION},"
      f" that of the generator; remove {root} and"
      f" make it anew: {command}"
    )
  differ = [k for k in made_by if found.get(k) != made_by[k]]
  raise DataError(
    f"{path}: made_by has "
    + ", ".join(f"{k} {found.get(k)}" for k in differ)
    + ", expected "
    + ", ".join(f"{k} {made_by[k]}" for k in differ)
    + "; ask for the same, or write to another folder"
  )
