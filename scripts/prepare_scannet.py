"""Converts ScanNet v2 to the asset layout (docs/scannet.md tells more).

  python scripts/prepare_scannet.py --raw /data/scannet --root data/scannet \\
    --label_map /data/scannet/scannetv2-labels.combined.tsv \\
    --split train=scannetv2_train.txt val=scannetv2_val.txt --workers 8

--raw is the release: scans/<scene>/ with <scene>_vh_clean_2.ply, <scene>.txt,
<scene>.sens, and <scene>_vh_clean_2.labels.ply or, in its place,
<scene>_vh_clean_2.0.010000.segs.json and <scene>.aggregation.json; the scans of
the test split may be in scans_test/. With <scene>_2d-label-filt.zip the image
branch can be scored. Exported frames may take the place of .sens files: color/,
depth/ and pose/ in the folder of the scan, or in <scene>/ of --frames.

--processed is the layout of the method's authors, scannet_3d/ and scannet_2d/.
The programs read it as it is (--config.data.format=scannet); converted, it is
checked as a whole once, and has checksums.

Run it again to go on after an interruption: finished scenes are compared with
their checksums and kept. --verify does only that.
"""

import argparse
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from absl import logging

from wsegpc_jax.arguments import count
from wsegpc_jax.data import preparation, scannet_processed
from wsegpc_jax.interop.capture import (
  Camera,
  find_frames,
  load_posed,
  read_text,
)
from wsegpc_jax.interop.scannet import CLASSES
from wsegpc_jax.interop.scannet_raw import (
  label_image_reader,
  read_alignment,
  read_color_camera,
  read_label_map,
  read_labels,
  read_mesh,
)
from wsegpc_jax.interop.sens import SensFile, open_sens
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.superpoints import plane_aware_superpoints
from wsegpc_jax.types import DataError, Frame, Scene

_REGION_SIZE = 200 / (240 * 320)  # smallest region, share of the image


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a release is and what is taken from it."""

  raw: Path
  frames: Path | None  # of exported frames
  label_map: Path | None
  every: int
  image_size: tuple[int, int]
  without_frames: bool


def main(argv: list[str] | None = None) -> None:
  args = parse_args(argv)
  if args.verify:
    report = preparation.verify(args.root, workers=args.workers)
    report.check()
    print(f"{args.root}: all files of {len(report.finished)} scenes are intact")
    return
  if args.processed:
    dataset = scannet_processed.open_dataset(args.processed)
    splits = dict(dataset.splits)
    if args.split:
      splits = read_splits(args.split)
    image_size = tuple(args.image_size) if args.image_size else None
    convert = functools.partial(convert_processed, dataset, image_size)
    made_by = {"from": "processed", "image_size": image_size}
  else:
    splits = read_splits(args.split)
    source = Source(
      raw=Path(args.raw),
      frames=args.frames and Path(args.frames),
      label_map=args.label_map and Path(args.label_map),
      every=args.every,
      image_size=tuple(args.image_size or (240, 320)),
      without_frames=args.without_frames,
    )
    check_source(source)
    convert = functools.partial(convert_raw, source)
    # Where it lies does not change what comes out.
    made_by = {
      "from": "raw",
      "every": source.every,
      "image_size": source.image_size,
      "without_frames": source.without_frames,
    }
  preparation.prepare(
    splits,
    convert,
    root=args.root,
    name="scannet",
    classes=CLASSES,
    made_by=made_by,
    workers=args.workers,
  ).check()


def parse_args(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--raw", help="folder of the release")
  what.add_argument("--processed", help="folder of the processed layout")
  what.add_argument(
    "--verify", action="store_true", help="only compare --root with checksums"
  )
  add("--root", required=True, help="folder of the data set, made if needed")
  add(
    "--split",
    nargs="+",
    metavar="NAME=FILE",
    help="files with one scene a line, such as train=scannetv2_train.txt;"
    " --processed goes by its folders without them",
  )
  add("--label_map", help="scannetv2-labels.combined.tsv of the release")
  add("--frames", help="folder of exported frames, <scene>/color and so on")
  add(
    "--without_frames",
    action="store_true",
    help="points only, enough for stage 3 and the benchmark's test split",
  )
  add(
    "--every",
    type=count,
    default=20,
    help="keep each k-th frame (default: %(default)s)",
  )
  add(
    "--image_size",
    nargs=2,
    type=count,
    metavar=("H", "W"),
    help="size to store; default: 240 320, or as --processed has it",
  )
  add("--workers", type=count, default=1, help="processes (default: 1)")
  args = parser.parse_args(argv)
  if args.raw and not args.split:
    parser.error("--raw needs --split, such as train=scannetv2_train.txt")
  return args


def read_splits(arguments: list[str]) -> dict[str, list[str]]:
  """Scene names by split, from files with one a line."""
  splits = {}
  for argument in arguments:
    split, _, path = argument.partition("=")
    if not split or not path or split in splits:
      raise DataError(
        f"--split: {argument!r}: expected different NAME=FILE, such as"
        " train=scannetv2_train.txt"
      )
    splits[split] = read_text(path).split()
    if not splits[split]:
      raise DataError(f"{path}: lists no scenes, expected one a line")
  return splits


def check_source(source: Source) -> None:
  """Fails on what would fail for each scene."""
  if not source.raw.is_dir():
    raise DataError(f"{source.raw}: no such folder, expected ScanNet's release")
  if source.label_map:
    read_label_map(source.label_map)
  if not source.without_frames and not importlib.util.find_spec("skimage"):
    raise ImportError(
      'regions of images need scikit-image: pip install "wsegpc-jax[prepare]"'
    )


def convert_processed(
  dataset: scannet_processed.ScanNetDataset,
  image_size: tuple[int, int] | None,
  scene_name: str,
) -> tuple[Scene, Iterable[Frame]]:
  """A scene of the processed layout."""
  scene = dataset.load_scene(scene_name)
  return scene, (
    dataset.load_frame(scene_name, name, image_size=image_size)
    for name in scene.frames
  )


def convert_raw(
  source: Source, scene_name: str
) -> tuple[Scene, Iterable[Frame]]:
  """A scan of the release, its walls turned parallel to x and y."""
  places = [source.raw / "scans", source.raw / "scans_test", source.raw]
  folders = [place / scene_name for place in places]
  folder = next((f for f in folders if f.is_dir()), None)
  if folder is None:
    raise DataError(f"{folders[0]}: no such folder, expected the scan")
  label_map = source.label_map and read_label_map(source.label_map)
  align = read_alignment(folder / f"{scene_name}.txt")
  mesh = read_mesh(folder / f"{scene_name}_vh_clean_2.ply")
  label = read_labels(folder, scene_name, mesh.coord, label_map)
  if label is None and folder.parent.name != "scans_test":
    raise DataError(
      f"{folder / scene_name}_vh_clean_2.labels.ply: not found, and no"
      f" {scene_name}.aggregation.json, expected the scan's labels (only scans"
      " in scans_test have none)"
    )
  turn = align[:3, :3].T
  coord = (mesh.coord @ turn + align[:3, 3]).astype(np.float32)
  normal = (mesh.normal @ turn).astype(np.float32)
  scene = Scene(
    name=scene_name,
    coord=coord,
    color=mesh.color,
    normal=normal,
    tags=np.isin(np.arange(len(CLASSES)), [] if label is None else label),
    label=label,
    superpoint=plane_aware_superpoints(coord, mesh.color, normal),
  )
  if source.without_frames:
    return scene, ()
  return scene, raw_frames(source, folder, scene_name, align, label_map)


def raw_frames(source, folder, scene_name, align, label_map) -> Iterator[Frame]:
  """Frames of a scan with regions and, where there are any, labels."""
  exported = (source.frames or folder.parent) / scene_name
  sens = folder / f"{scene_name}.sens"
  if (exported / "color").is_dir():
    frames = exported_frames(source, exported, folder, align)
  elif sens.is_file():
    frames = sens_frames(open_sens(sens), source, align)
  else:
    raise DataError(
      f"{sens}: not found, and no {exported / 'color'}, expected the frames of"
      " the scan (or --without_frames)"
    )
  readers = [
    label_image_reader(place, scene_name, label_map)
    for place in (folder, exported)
  ]
  labels = readers[0] or readers[1]
  for frame in frames:
    size = frame.depth.shape
    region = image_regions(
      frame.color,
      frame.depth,
      min_size=max(int(_REGION_SIZE * size[0] * size[1]), 1),
    )
    label = labels(frame.name, size) if labels else None
    yield dataclasses.replace(frame, region=region, label=label)


def exported_frames(source, exported, folder, align) -> Iterator[Frame]:
  """Frames in color/, depth/ and pose/; those with a lost pose are left out."""
  intrinsics, size = read_color_camera(folder / f"{folder.name}.txt")
  found = find_frames(exported, align)
  for one in found:
    if isinstance(one, str):
      continue  # it has no pose
    if not one.name.isdecimal():
      raise DataError(f"{one.color}: expected a number as its name")
    # Not each k-th file: some exporters leave frames out themselves.
    if int(one.name) % source.every == 0:
      yield load_posed(one, Camera(intrinsics, size), source.image_size)


def sens_frames(sens: SensFile, source, align) -> Iterator[Frame]:
  """Frames of a .sens file; those with a lost pose are left out."""
  extrinsics = [sens.color_extrinsics, sens.depth_extrinsics]
  if not np.allclose(extrinsics, np.eye(4), atol=1e-3):
    logging.warning(
      "%s: depth is not seen from the colour camera, links are a little off",
      sens.path,
    )
  color = sens.color_intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
  depth = sens.depth_intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
  for name, camera in (("color", color), ("depth", depth)):
    if not np.isfinite(camera).all() or camera[:2].min() <= 0:
      raise DataError(
        f"{sens.path}: {name}_intrinsics are {camera.tolist()}, expected fx and"
        " fy above 0"
      )
  h, w = sens.color_size
  new_h, new_w = source.image_size
  center = (new_w - 1) / max(w - 1, 1), (new_h - 1) / max(h - 1, 1)
  intrinsics = color * (new_w / w, new_h / h, *center)
  # The depth pixel on the ray of each colour pixel; -1 = outside.
  rows = _pixels(new_h, intrinsics[1::2], depth[1::2], sens.depth_size[0])
  columns = _pixels(new_w, intrinsics[::2], depth[::2], sens.depth_size[1])
  inside = (rows >= 0)[:, None] & (columns >= 0)
  for frame in sens.frames(every=source.every):
    if not np.isfinite(frame.pose).all():
      continue
    image = sens.decode_depth(frame)[rows[:, None], columns]
    # In whole millimetres, as they will be stored.
    metres = (
      np.rint(image * (1000 / sens.depth_scale)).astype(np.float32) / 1000
    )
    yield Frame(
      name=str(frame.index),
      color=sens.decode_color(frame, size=source.image_size),
      depth=np.where(inside, metres, 0).astype(np.float32),
      pose=align @ frame.pose,
      intrinsics=intrinsics,
    )


def _pixels(new_size, new_camera, camera, size) -> np.ndarray:
  """Nearest pixels of one camera on the rays of another's, along one axis.

  Args:
    new_size: pixels of the other camera.
    new_camera: its (f, c).
    camera: (f, c) of the first.
    size: its pixels.

  Returns:
    int64 [new_size]; -1 = outside.
  """
  (new_f, new_c), (f, c) = new_camera, camera
  pixel = np.rint((np.arange(new_size) - new_c) / new_f * f + c).astype(int)
  return np.where((pixel >= 0) & (pixel < size), pixel, -1)


if __name__ == "__main__":
  try:
    main()
  except KeyboardInterrupt:
    sys.exit("error: interrupted; run it again to go on")
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
