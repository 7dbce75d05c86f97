"""Converts one posed RGB-D capture into a scene of a data set.

  python scripts/prepare_posed_rgbd.py --root /data/rooms --scene kitchen \\
    --frames capture/kitchen --points capture/kitchen.ply \\
    --classes classes.txt --tags wall,floor,table,chair \\
    --every 10 --image_size 240 320 --preview kitchen.png

--frames is a folder with color/<id>.jpg (or .png), depth/<id>.png (16 bits,
along the optical axis, 0 = not measured; the view of the colour image in any
resolution) and pose/<id>.txt (4x4, camera-to-world, camera looking along +z, x
right, y down), or one folder with <id>.jpg, <id>.png and <id>.txt. Frames
without a depth image or with a lost pose are dropped.

--points is a .ply or .npz file, or a .bin file of float32 x y z r g b (as
mmdetection3d has them), in metres, in the world of the poses. Without it the
depth images are fused into a cloud. z must point up, and training drops walls
best when they are parallel to x and y: --axis_align turns points and poses.

Run it again for the next scene: the data set grows by one scene each time.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from wsegpc_jax.arguments import count, length
from wsegpc_jax.data import subscenes
from wsegpc_jax.data.assets import (
  check_name,
  open_dataset,
  read_json,
  write_dataset,
  write_scene,
)
from wsegpc_jax.data.links import link_points
from wsegpc_jax.data.parts import take
from wsegpc_jax.files import atomic_write
from wsegpc_jax.interop import scannet
from wsegpc_jax.interop.annotation import Annotation, read_annotation
from wsegpc_jax.interop.capture import (
  find_frames,
  load_posed,
  read_axis_align,
  read_camera,
  read_points,
  read_text,
  thin_out,
)
from wsegpc_jax.interop.depth_fusion import fuse
from wsegpc_jax.palette import number_colors
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.normals import estimate_normals
from wsegpc_jax.regions.planes import structural_planes
from wsegpc_jax.regions.superpoints import plane_aware_superpoints
from wsegpc_jax.types import DataError, Frame, Scene

_LINK_TOLERANCE = 0.05  # metres, for the summary and the preview
_FEW_LINKED = 0.3  # share of the points below which something must be wrong
_REGION_SIZE = 200 / (240 * 320)  # smallest region, share of the image


def main(argv: list[str] | None = None) -> str:
  """Converts a capture; returns the line that sums it up."""
  args = parse_args(argv)
  root = Path(args.root)
  classes = read_classes(args.classes)
  check_is_new(root, args.scene, classes)
  if args.preview:
    Path(args.preview).parent.mkdir(parents=True, exist_ok=True)
  align = read_axis_align(args.axis_align, args.scene)
  size = args.intrinsics_size
  camera = read_camera(
    Path(args.frames), path=args.intrinsics, size=size and (size[1], size[0]),
    depth_scale=args.depth_scale,
  )  # fmt: skip
  found = find_frames(Path(args.frames), align)
  kept, dropped = thin_out(found, args.every)

  if args.points:
    cloud = read_points(args.points, align)
  else:
    cloud = fuse(
      thin_out(found, args.fuse_every)[0], camera,
      voxel=args.fuse_voxel, max_depth=args.fuse_max_depth,
    )  # fmt: skip
  coord, color = cloud["coord"], cloud["color"]
  cells = {}
  if args.part_size:
    cells = subscenes.grid_parts(coord, args.part_size)
    check_parts(root, args, classes, cells)
  known = read_annotation(
    args.scene, classes, cloud,
    tags=args.tags, tags_pickle=args.tags_pickle, labels=args.labels,
  )  # fmt: skip

  print(f"{len(coord)} points; normals and superpoints ...", flush=True)
  normal = cloud["normal"]
  if normal is None:
    centers = np.array([s.pose[:3, 3] for s in kept])
    normal = estimate_normals(coord, viewpoints=centers)
  planes = structural_planes(coord, normal)
  superpoint = plane_aware_superpoints(coord, color, normal, planes=planes)
  scene = Scene(
    name=args.scene, coord=coord, color=color, normal=normal, tags=known.tags,
    label=known.label, superpoint=superpoint,
  )  # fmt: skip

  def load(source):
    frame = load_posed(source, camera, args.image_size)
    link = link_points(
      coord, frame.depth, frame.pose, frame.intrinsics,
      tolerance=_LINK_TOLERANCE,
    )  # fmt: skip
    return frame, link

  seen = np.stack(
    [
      load(source)[1][:, 0] >= 0
      for source in tqdm(kept, desc="looking", unit="frame")
    ]
  )
  chosen = {kept[i].name for i in (0, len(kept) // 2, -1)} & (
    {source.name for source in kept} if args.preview else set()
  )
  counts, panels = [], {}

  def frames(sources):
    for source in tqdm(sources, desc="frames", unit="frame"):
      frame, link = load(source)
      h, w = frame.depth.shape
      region = image_regions(
        frame.color, frame.depth, min_size=max(int(_REGION_SIZE * h * w), 1)
      )
      counts.append(region.max() + 1)
      frame = dataclasses.replace(frame, region=region)
      if frame.name in chosen:
        panels[frame.name] = preview(frame, link, superpoint)
      yield frame

  parts = {args.scene: (scene, range(len(kept)))}
  prefix = f"{args.scene}_"
  if cells:
    parts = cut(scene, seen, known, planes, classes, cells)
  for name, (part, numbers) in parts.items():
    write_scene(root, part, frames([kept[i] for i in numbers]), classes=classes)
    add_to_dataset(root, args.name or root.name, classes, args.split, name)
    if cells:
      describe_part(part, classes, seen[numbers], cells[name[len(prefix) :]])
  if panels:
    with atomic_write(args.preview) as f:
      Image.fromarray(np.concatenate(list(panels.values()))).save(f, "PNG")
  linked = seen.any(0)
  if linked.mean() < _FEW_LINKED:
    print(
      f"warning: only {linked.mean():.0%} of the points are seen in a frame;"
      " are the poses camera-to-world, points and poses in the same world, the"
      " intrinsics those of --intrinsics_size?",
      file=sys.stderr,
    )
  reasons = ", ".join(f"{n} {why}" for why, n in dropped.items())
  line = (
    f"{args.scene}: {len(coord)} points ({linked.mean():.0%} seen in a frame),"
    f" {len(kept)} frames kept, {sum(dropped.values())} dropped"
    f"{f' ({reasons})' if reasons else ''}, {superpoint.max() + 1} superpoints,"
    f" {np.mean(counts):.1f} regions/frame,"
    f" floor {'found' if 'floor' in planes[1] else 'NOT found'},"
    f" walls found: {planes[1].count('wall')};"
    f" tags {names(scene, classes)}"
  )
  print(line)
  return line


def names(scene: Scene, classes: tuple[str, ...]) -> str:
  """The scene's tags in words."""
  return ", ".join(c for c, t in zip(classes, scene.tags, strict=True) if t)


def cut(
  scene: Scene,
  seen: np.ndarray,
  known: Annotation,
  planes: tuple[np.ndarray, tuple[str, ...]],
  classes: tuple[str, ...],
  cells: dict[str, np.ndarray],
) -> dict[str, tuple[Scene, np.ndarray]]:
  """Parts of a capture with tags of their own, and the numbers of their frames.

  Args:
    scene: the whole.
    seen: bool [F, N], points that each frame shows.
    known: of the whole.
    planes: of `structural_planes`.
    classes: of the data set.
    cells: of `subscenes.grid_parts`.

  Raises:
    DataError: there are tags in no part.
  """
  structures = [
    (classes.index(kind), planes[0] == i)
    for i, kind in enumerate(planes[1])
    if kind in classes
  ]
  parts = {}
  for suffix, inside in cells.items():
    if known.label is not None:
      tags = subscenes.tags_from_labels(known.label[inside], len(classes))
    else:
      tags = subscenes.tags_from_boxes(
        scene.coord, inside, known.boxes, structures, len(classes)
      )
    if not tags.any():
      print(f"{scene.name}_{suffix}: left out, nothing is known of it")
      continue
    part = dataclasses.replace(
      take(scene, np.flatnonzero(inside)),
      name=f"{scene.name}_{suffix}",
      tags=tags,
    )
    parts[part.name] = part, subscenes.frames_of_part(seen, inside)
  if not parts:
    raise DataError("--part_size: no part has a tag, expected at least one")
  return parts


def describe_part(part, classes, seen, inside) -> None:
  """A line on a part, and on how far its images show it."""
  share = seen[:, inside].sum() / max(seen.sum(), 1)
  print(
    f"{part.name}: {len(part.coord)} points, {share:.0%} of what its"
    f" {len(seen)} frames show, tags {names(part, classes)}"
  )
  if share < 0.5:
    print(
      f"warning: {part.name}: its frames show other parts more, whose classes"
      " they are taught not to be; larger parts suit images better",
      file=sys.stderr,
    )


def check_parts(root, args, classes, cells) -> None:
  """Refuses parts that are too small or there already, before the work."""
  if not cells:
    raise DataError(
      f"--part_size={args.part_size:g}: no part has"
      f" {subscenes.MIN_POINTS} points, expected larger parts"
    )
  for suffix in cells:
    check_is_new(root, f"{args.scene}_{suffix}", classes)
  left = ~np.any(list(cells.values()), axis=0)
  if left.any():
    print(
      f"{left.sum()} points left out, in parts of fewer than"
      f" {subscenes.MIN_POINTS} points"
    )


def parse_args(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--root", required=True, help="folder of the data set, made if needed")
  add("--scene", required=True, help="name of the new scene")
  add("--frames", required=True, help="folder of the frames, see above")
  add("--points", help=".ply, .npz or .bin; default: fuse the depth images")
  add(
    "--classes",
    required=True,
    help="file with one class name a line, or 'scannet20'; the same each time",
  )
  weak = parser.add_mutually_exclusive_group(required=True)
  weak.add_argument("--tags", help="classes in the scene: wall,floor,chair")
  weak.add_argument(
    "--tags_pickle",
    help="mmdetection3d info file with the scene's boxes; wall and floor are"
    " added, names that are no class are left out",
  )
  weak.add_argument(
    "--labels",
    help=".npy file, integers [N], class of each point or 255, or 'points' for"
    " the field label of --points",
  )
  add("--split", default="train", choices=("train", "val"))
  add("--name", help="of the data set; default: name of its folder")
  add(
    "--intrinsics",
    help="file with a 3x3 or 4x4 matrix; default: intrinsics.txt or intrinsic.txt in --frames, or"
    " intrinsic/intrinsic_color.txt",
  )
  add(
    "--intrinsics_size",
    nargs=2,
    type=count,
    metavar=("W", "H"),
    help="resolution they are for; default: that of the colour images",
  )
  add(
    "--depth_scale",
    type=length,
    default=1000.0,
    help="units of depth a metre (default: %(default)s)",
  )
  add(
    "--axis_align",
    help="4x4 matrix applied to points and poses: a text file, ScanNet's"
    " <scene>.txt, or an mmdetection3d info file (.pkl)",
  )
  add(
    "--every",
    type=count,
    default=1,
    help="keep each k-th frame (default: %(default)s)",
  )
  add(
    "--image_size",
    nargs=2,
    type=count,
    metavar=("H", "W"),
    help="size to store; default: that of the colour images",
  )
  add(
    "--fuse_voxel",
    type=length,
    default=0.02,
    help="metres between fused points (default: %(default)s)",
  )
  add(
    "--fuse_every",
    type=count,
    default=1,
    help="fuse each k-th frame (default: %(default)s)",
  )
  add(
    "--fuse_max_depth",
    type=length,
    default=3.0,
    help="metres; depth beyond is not fused (default: %(default)s)",
  )
  add(
    "--part_size",
    type=length,
    help="cut the capture into parts about this many metres wide, each a scene"
    " with tags of its own, from --labels or the boxes of --tags_pickle: few"
    " captures teach more in parts",
  )
  add("--preview", help=".png file: three frames, the points linked to them")
  args = parser.parse_args(argv)
  if args.part_size and args.tags:
    parser.error(
      "--part_size needs --labels or --tags_pickle: tags of the whole"
      " do not tell what is in its parts"
    )
  if args.part_size and args.tags_pickle and not args.axis_align:
    parser.error(
      "--part_size with --tags_pickle needs --axis_align with the"
      " same file, whose boxes are those of the aligned capture"
    )
  return args


def read_classes(name: str) -> tuple[str, ...]:
  """Class names of the data set, in order."""
  if name == "scannet20":
    return scannet.CLASSES
  lines = read_text(name).splitlines()
  classes = tuple(line.strip() for line in lines if line.strip())
  if not classes or len(set(classes)) < len(classes):
    raise DataError(f"{name}: expected different class names, one a line")
  return classes


def check_is_new(root: Path, scene: str, classes: tuple[str, ...]) -> None:
  """Fails before the work is done, not after it."""
  check_name("--scene", "scene", scene)
  if (root / scene).exists():
    raise DataError(
      f"{root / scene}: exists, expected a new scene; remove it to convert it"
      " again"
    )
  if (root / "dataset.json").exists():
    dataset = open_dataset(root)
    if dataset.classes != classes:
      raise DataError(
        f"{root / 'dataset.json'}: has the classes"
        f" {', '.join(dataset.classes)}, --classes gives {', '.join(classes)}"
      )


def add_to_dataset(root, name, classes, split, scene):
  """Creates dataset.json or adds the scene to one of its splits."""
  path = root / "dataset.json"
  if not path.exists():
    splits = {"train": [], "val": []} | {split: [scene]}
    write_dataset(root, name=name, classes=classes, splits=splits)
    return
  content = read_json(path)
  content["splits"].setdefault(split, []).append(scene)
  with atomic_write(path, "w") as f:
    json.dump(content, f, indent=1)
  open_dataset(root)


def preview(
  frame: Frame, link: np.ndarray, superpoint: np.ndarray
) -> np.ndarray:
  """uint8 [H, 3 W, 3]: the image, the points linked to it, and its regions.

  Where links are right, the colour of points changes at edges of the image.
  """
  dim = frame.color // 2
  points = dim.copy()
  seen = link[:, 0] >= 0
  points[tuple(link[seen].T)] = number_colors(superpoint[seen])
  regions = dim + number_colors(frame.region) // 2
  return np.concatenate([frame.color, points, regions], axis=1)


if __name__ == "__main__":
  try:
    main()
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
