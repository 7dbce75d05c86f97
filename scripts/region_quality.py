"""Measures how good the regions of a data set could be, from its true labels.

  python scripts/region_quality.py --root /data/rooms
  python scripts/region_quality.py --root /data/rooms --method planes \\
    --min_size 60 --normals estimated --images stored --json quality.json

The data set is in the asset layout (docs/assets.md). For each scene: how many
regions it has, how many points each, and, where there are labels, the accuracy
that giving each region one label can reach (oracle), the purity of the regions
and the share of the borders between classes that they follow. --method and
--images choose between what is stored and regions made here.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from wsegpc_jax.arguments import count
from wsegpc_jax.data.assets import AssetDataset, open_dataset
from wsegpc_jax.files import atomic_write
from wsegpc_jax.regions.image_regions import image_regions
from wsegpc_jax.regions.normals import estimate_normals
from wsegpc_jax.regions.quality import (
  RegionQuality,
  pixel_pairs,
  point_pairs,
  region_quality,
)
from wsegpc_jax.regions.superpoints import (
  graph_superpoints,
  plane_aware_superpoints,
)
from wsegpc_jax.types import DataError, Scene

_COLUMNS = (
  ("regions", "regions", "{}"),
  ("elements/region", "elements_per_region", "{:.1f}"),
  ("without", "without_region", "{:.2%}"),
  ("oracle acc", "oracle_accuracy", "{:.4f}"),
  ("oracle mIoU", "oracle_miou", "{:.4f}"),
  ("purity", "purity", "{:.4f}"),
  ("weighted", "purity_weighted", "{:.4f}"),
  ("borders", "boundary_recall", "{:.4f}"),
)
_CLASS_COLUMNS = (
  ("regions", "regions", "{}"),
  ("elements", "elements", "{}"),
  ("oracle acc", "oracle_accuracy", "{:.4f}"),
  ("oracle IoU", "oracle_iou", "{:.4f}"),
)


def main(argv: list[str] | None = None) -> dict:
  """Prints the tables; returns what --json holds."""
  args = parse_args(argv)
  dataset = open_dataset(args.root)
  scenes = chosen_scenes(dataset, args.split, args.scenes)
  report = {"root": str(args.root), "settings": settings(args)}
  points = {}
  for name in tqdm(scenes, desc="points", unit="scene"):
    points[name] = measure_points(dataset, name, args)
  report["points"] = summaries(points, dataset.classes)
  print(tables("points", report["points"]))
  if args.images != "none":
    images = {}
    for name in tqdm(scenes, desc="images", unit="scene"):
      counts = list(measure_images(dataset, name, args))
      if counts:
        images[name] = sum(counts[1:], counts[0])
    if not images:
      raise DataError(f"{args.root}: --images: no scene has frames")
    report["images"] = summaries(images, dataset.classes)
    print(tables("images", report["images"]))
  if args.json:
    with atomic_write(args.json, "w") as f:
      json.dump(report, f, indent=1)
  return report


def parse_args(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--root", required=True, help="folder of the data set")
  add("--split", help="default: all splits")
  add("--scenes", help="only these of them: kitchen,office")
  add(
    "--method",
    default="stored",
    choices=("stored", "planes", "graph"),
    help="superpoints: those stored, plane-aware ones, or by the neighbour"
    " graph alone (default: %(default)s)",
  )
  add(
    "--normals",
    default="stored",
    choices=("stored", "estimated"),
    help="for --method planes and graph; stored ones that are unknown are"
    " estimated (default: %(default)s)",
  )
  add("--scale", type=_positive, help="larger gives larger superpoints")
  add("--min_size", type=count, help="smallest superpoint, cubes of 3 cm")
  add("--neighbors", type=count, help="edges a cube, for --method graph")
  add(
    "--images",
    default="none",
    choices=("none", "stored", "graph"),
    help="regions of the frames: those stored, or graph-based superpixels"
    " (default: %(default)s)",
  )
  add("--image_scale", type=_positive, help="larger gives larger superpixels")
  add("--image_min_size", type=count, help="smallest superpixel, pixels")
  add("--json", help="file to write all numbers to")
  args = parser.parse_args(argv)
  for option, needs in (
    ("scale", ("method", ("planes", "graph"))),
    ("min_size", ("method", ("planes", "graph"))),
    ("neighbors", ("method", ("graph",))),
    ("image_scale", ("images", ("graph",))),
    ("image_min_size", ("images", ("graph",))),
  ):
    chosen, values = needs
    if getattr(args, option) is not None and (
      getattr(args, chosen) not in values
    ):
      parser.error(f"--{option} needs --{chosen} {' or '.join(values)}")
  return args


def _positive(text):
  value = float(text)
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
  return value


def settings(args) -> dict:
  """The options that decide about the numbers, for the report."""
  return {k: v for k, v in vars(args).items() if k not in ("root", "json")}


def chosen_scenes(dataset: AssetDataset, split, names) -> list[str]:
  """Scenes to measure, each once."""
  path = dataset.root / "dataset.json"
  if split and split not in dataset.splits:
    raise DataError(
      f"{path}: --split: no split {split!r} in {', '.join(dataset.splits)}"
    )
  splits = [split] if split else dataset.splits
  scenes = list(dict.fromkeys(n for s in splits for n in dataset.splits[s]))
  if names:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
      if name not in scenes:
        raise DataError(f"{path}: --scenes: no scene {name!r} in its splits")
    scenes = list(dict.fromkeys(wanted))
  if not scenes:
    raise DataError(f"{path}: expected at least one scene to measure")
  return scenes


def measure_points(dataset: AssetDataset, name: str, args) -> RegionQuality:
  scene = dataset.load_scene(name)
  pairs = None if scene.label is None else point_pairs(scene.coord)
  return region_quality(
    superpoints(dataset, scene, args),
    scene.label,
    len(dataset.classes),
    pairs=pairs,
  )


def superpoints(dataset: AssetDataset, scene: Scene, args) -> np.ndarray:
  """Superpoints int32 [N] of the scene, stored or made here."""
  if args.method == "stored":
    if scene.superpoint is None:
      raise DataError(
        f"{dataset.root / scene.name / 'superpoint.npy'}: not found, expected"
        " superpoints; --method planes or graph makes some"
      )
    return scene.superpoint
  normal = scene.normal
  unknown = np.linalg.norm(normal, axis=1) < 0.5
  if args.normals == "estimated":
    unknown[:] = True
  if unknown.any():
    estimated = estimate_normals(scene.coord)
    normal = np.where(unknown[:, None], estimated, normal)
  options = {"scale": args.scale, "min_size": args.min_size}
  make = plane_aware_superpoints
  if args.method == "graph":
    make = graph_superpoints
    options["neighbors"] = args.neighbors
  options = {k: v for k, v in options.items() if v is not None}
  return make(scene.coord, scene.color, normal, **options)


def measure_images(
  dataset: AssetDataset, name: str, args
) -> Iterator[RegionQuality]:
  """Quality of the regions of each frame of a scene."""
  options = {"scale": args.image_scale, "min_size": args.image_min_size}
  options = {k: v for k, v in options.items() if v is not None}
  for frame_name in dataset.load_scene(name).frames:
    frame = dataset.load_frame(name, frame_name)
    region = frame.region
    if args.images == "graph":
      region = image_regions(frame.color, frame.depth, **options)
    if region is None:
      raise DataError(
        f"{dataset.root / name / 'region'}: not found, expected regions of the"
        " frames; --images graph makes some"
      )
    pairs = None if frame.label is None else pixel_pairs(*region.shape)
    yield region_quality(region, frame.label, len(dataset.classes), pairs=pairs)


def summaries(counts: dict[str, RegionQuality], classes) -> dict:
  """The measures of each scene, and of all of them together."""
  all_counts = list(counts.values())
  total = sum(all_counts[1:], all_counts[0])
  return {
    "scenes": {name: c.summary(classes) for name, c in counts.items()},
    "total": total.summary(classes),
  }


def tables(title: str, report: dict) -> str:
  """Two tables in plain text: the scenes, and the classes of all of them."""
  rows = {**report["scenes"], "all": report["total"]}
  text = f"\n{title}\n{_table(rows, _COLUMNS)}\n"
  classes = report["total"]["classes"]
  classes = {name: c for name, c in classes.items() if c["elements"]}
  if classes:
    text += f"\n{_table(classes, _CLASS_COLUMNS)}\n"
  return text


def _table(rows, columns) -> str:
  lines = [["", *(head for head, _, _ in columns)]]
  for name, row in rows.items():
    values = [
      "-" if row[key] is None else form.format(row[key])
      for _, key, form in columns
    ]
    lines.append([name, *values])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )


if __name__ == "__main__":
  try:
    main()
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
