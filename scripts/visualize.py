"""Shows a scene of a data set: layers, posed images and their links.

  python scripts/visualize.py --root data/box_rooms --scene room_00000
  python scripts/visualize.py --root data/box_rooms --scene room_00000 \\
    --workdir exp/tiny_rpc --prediction out.npz --record room.html

opens a viewer for a browser (extra `viz`), or writes with --record one HTML
page that shows the same offline, with --png a picture of all layers, for which
no extra is needed. Layers are colours, true labels, pseudo-labels of a working
directory, a prediction, right and wrong, its confidence, superpoints, normals,
and the links of points to images: to which frame, pixel and region. In the
viewer the cameras show the images, the points linked to them and the regions;
a click on one looks through it.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from wsegpc_jax.arguments import count, length
from wsegpc_jax.data.layouts import LAYOUTS, open_dataset
from wsegpc_jax.data.links import choose_views
from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import DataError
from wsegpc_jax.viewer.browser import (
  Exhibit,
  import_viser,
  open_server,
  record,
)
from wsegpc_jax.viewer.frames import link_frames
from wsegpc_jax.viewer.layers import scene_layers
from wsegpc_jax.viewer.picture import VIEWS, sheet
from wsegpc_jax.viewer.prediction import read_prediction

_POINT_FIELDS = ("coord", "color", "normal", "label", "superpoint")


def main(argv: list[str] | None = None) -> None:
  """Serves a scene until interrupted, or writes the files asked for."""
  args = parse_args(argv)
  check_outputs(args)
  exhibit = load_exhibit(args)
  if args.png:
    picture = sheet(
      exhibit.coord,
      exhibit.layers,
      tuple(args.size),
      view=args.view,
      frames=exhibit.frames,
    )
    with atomic_write(args.png) as file:
      picture.save(file, "PNG")
    print(f"wrote {args.png}")
  if args.record:
    page = record(exhibit)
    with atomic_write(args.record, "w") as file:
      file.write(page)
    print(f"wrote {args.record} ({len(page) / 1e6:.1f} MB)")
  if args.png or args.record:
    return
  server = open_server(exhibit, host=args.host, port=args.port)
  names = " | ".join(layer.title for layer in exhibit.layers)
  print(f"layers: {names}")
  print(f"open http://{args.host}:{args.port} (stop with Ctrl-C)", flush=True)
  try:
    while True:
      time.sleep(3600)
  except KeyboardInterrupt:
    server.stop()


def parse_args(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--root", required=True, help="folder of the data set")
  add(
    "--format",
    default="assets",
    choices=LAYOUTS,
    help="layout of the data set (default: %(default)s)",
  )
  add("--scene", required=True, help="name of the scene")
  source = parser.add_mutually_exclusive_group()
  source.add_argument(
    "--workdir", help="of stage 2, whose pseudo_labels/<scene>.npz is shown"
  )
  source.add_argument(
    "--labels", help="folder with <scene>.npz that has pred_label"
  )
  add("--prediction", help=".npz or .ply of --mode=predict on this scene")
  add("--record", help=".html file to write instead of opening a viewer")
  add("--png", help=".png file to write instead of opening a viewer")
  add(
    "--layers",
    help="some of color, truth, pseudo, pseudo_right, prediction,"
    " prediction_right, confidence, superpoint, normal, frame, pixel, region,"
    " separated by commas; the first is shown first",
  )
  add("--view", default="room", choices=VIEWS, help="of --png")
  add(
    "--size",
    nargs=2,
    type=count,
    default=(480, 640),
    metavar=("H", "W"),
    help="of each picture of --png (default: 480 640)",
  )
  add(
    "--frames",
    type=int,
    default=12,
    help="most posed images, spread over the capture; 0 = none"
    " (default: %(default)s)",
  )
  add(
    "--tolerance",
    type=length,
    default=0.05,
    help="metres between a point and the depth image for a link"
    " (default: %(default)s)",
  )
  add(
    "--max_points",
    type=count,
    default=500_000,
    help="most points shown, drawn at random (default: %(default)s)",
  )
  add(
    "--host",
    default="127.0.0.1",
    help="address to serve on; 0.0.0.0 lets other machines look"
    " (default: %(default)s)",
  )
  add("--port", type=_port, default=8080, help="default: %(default)s")
  return parser.parse_args(argv)


def _port(text):
  value = int(text)
  if not 0 < value < 1 << 16:
    raise argparse.ArgumentTypeError(f"expected 1..65535, got {text}")
  return value


def check_outputs(args) -> None:
  """Fails before the scene is read, not after it."""
  for option, suffix in (("record", ".html"), ("png", ".png")):
    name = getattr(args, option)
    if name and Path(name).suffix != suffix:
      raise DataError(
        f"--{option}={name!r}: expected a name that ends in {suffix}"
      )
  if args.record or not args.png:
    import_viser()


def load_exhibit(args) -> Exhibit:
  """Reads the scene and all that is to be shown of it."""
  dataset = open_dataset(args.root, args.format)
  names = [name for split in dataset.splits.values() for name in split]
  if args.scene not in names and not (dataset.root / args.scene).is_dir():
    raise DataError(
      f"--scene={args.scene!r}: not in {dataset.root}, which has"
      f" {', '.join(names[:5]) or 'no scenes'}"
      f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
    )
  scene = dataset.load_scene(args.scene)
  classes = dataset.classes
  pseudo = prediction = None
  if args.workdir or args.labels:
    # Imported here, because all that trains a network comes with it.
    from wsegpc_jax.inputs import read_labels
    from wsegpc_jax.label import FOLDER

    folder = Path(args.labels or Path(args.workdir) / FOLDER)
    if not folder.is_dir():
      raise DataError(
        f"{folder}: not found, expected a folder of pseudo-labels"
      )
    pseudo = read_labels(folder, scene, len(classes))
  if args.prediction:
    prediction = read_prediction(
      args.prediction, points=len(scene.coord), classes=classes
    )
  if len(scene.coord) > args.max_points:
    print(f"{args.max_points} of {len(scene.coord)} points are shown")
    points = np.random.default_rng(0).permutation(len(scene.coord))
    points = np.sort(points[: args.max_points])
    scene = _subset(scene, points, *_POINT_FIELDS)
    pseudo = pseudo if pseudo is None else pseudo[points]
    if prediction is not None:
      prediction = _subset(prediction, points, "label", "probability")
  frames = []
  if scene.frames and args.frames > 0:
    number = min(args.frames, len(scene.frames))
    names = [
      scene.frames[k] for k in choose_views(len(scene.frames), number, None)
    ]
    images = (dataset.load_frame(args.scene, name) for name in names)
    frames = link_frames(scene.coord, images, tolerance=args.tolerance)
  layers = scene_layers(
    scene, classes, pseudo=pseudo, prediction=prediction, frames=frames
  )
  layers = choose_layers(layers, args.layers)
  return Exhibit(scene.name, scene.coord, layers, frames)


def _subset(value, points, *fields):
  """The struct with only those points in the fields; None stays None."""
  arrays = {name: getattr(value, name) for name in fields}
  parts = {k: a if a is None else a[points] for k, a in arrays.items()}
  return dataclasses.replace(value, **parts)


def choose_layers(layers, wanted: str | None):
  """Those of a comma-separated list of names, in its order."""
  if not wanted:
    return layers
  by_name = {layer.name: layer for layer in layers}
  names = [name.strip() for name in wanted.split(",") if name.strip()]
  for name in names:
    if name not in by_name:
      raise DataError(
        f"--layers: no layer {name!r} here, expected some of"
        f" {', '.join(by_name)}"
      )
  return [by_name[name] for name in names]


if __name__ == "__main__":
  try:
    main()
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
