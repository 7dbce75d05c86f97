"""Scores predictions that were made elsewhere, as --mode=eval scores its own.

  python scripts/evaluate_predictions.py --root data/scannet --split val \\
    --predictions submission/ --format scannet --output scores.json

--format scannet: <scene>.txt, one NYU40 id for each vertex, as the ScanNet
benchmark takes them. --format npz: <scene>.npz with an integer array
pred_label, classes from 0, as --mode=label writes them.

--output also gets <name>.scenes.npz beside it, which compare_runs.py reads.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsegpc_jax import evaluate, inputs
from wsegpc_jax.data import layouts
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.interop import scannet
from wsegpc_jax.metrics import segmentation as metrics
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.types import IGNORE_LABEL, DataError, Scene


def main(argv: list[str] | None = None) -> evaluate.Scores:
  """Scores a folder of predictions."""
  args = parse_args(argv)
  dataset = layouts.open_dataset(args.root, args.data_format)
  names = inputs.split_scenes(dataset, args.split)
  if args.format == "scannet":
    scannet.check_classes(dataset.classes)
  check_complete(Path(args.predictions), args.format, names)
  scenes = score_scenes(dataset, names, args)
  scores = evaluate.Scores(scenes.scores(), scenes=scenes)
  if not scores.points.points:
    raise DataError(f"{args.root}: split {args.split} has no labels to score")
  print(metrics.format_table(scores.points, dataset.classes))
  if args.output:
    protocol = f"predictions of format {args.format} on split {args.split}"
    protocol += "; every original point"
    if args.none_is_wrong:
      protocol += "; points without a class count as wrong"
    evaluate.write_scores(
      Path(args.output), scores, dataset.classes, protocol=protocol
    )
    print(f"wrote {args.output}")
  return scores


def parse_args(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--root", required=True, help="the data set")
  parser.add_argument(
    "--data_format",
    choices=layouts.LAYOUTS,
    default="assets",
    help="how the data set is laid out",
  )
  parser.add_argument("--split", default="val")
  parser.add_argument("--predictions", required=True, help="folder")
  parser.add_argument("--format", choices=("scannet", "npz"), required=True)
  parser.add_argument("--output", help="JSON file to write")
  parser.add_argument(
    "--none_is_wrong",
    action="store_true",
    help="take ids of no class (255 in npz) for wrong predictions, as the "
    "ScanNet benchmark does, instead of an error",
  )
  args = parser.parse_args(argv)
  if args.output and Path(args.output).suffix != ".json":
    raise DataError(
      f"--output={args.output!r}: expected a name that ends in .json"
    )
  return args


def _path(folder: Path, form: str, name: str) -> Path:
  return folder / f"{name}.{'txt' if form == 'scannet' else 'npz'}"


def check_complete(folder: Path, form: str, names: tuple[str, ...]) -> None:
  """Refuses a folder that lacks scenes, before any is scored.

  Raises:
    DataError: names the first missing file and how many there are.
  """
  if not folder.is_dir():
    raise DataError(f"--predictions={str(folder)!r} is not a folder")
  paths = [_path(folder, form, name) for name in names]
  missing = [path for path in paths if not path.is_file()]
  if missing:
    raise DataError(
      f"{missing[0]} not found: {len(missing)} of the {len(names)} scenes of "
      "the split have no prediction"
    )


def score_scenes(
  dataset: Dataset, names: tuple[str, ...], args: argparse.Namespace
) -> SceneMatrices:
  """Confusion matrices of the scenes that have labels.

  With --none_is_wrong int64 [S, K, K + 1], whose last column is no class.

  Raises:
    DataError: a prediction is damaged, too short or long, or of no class.
  """
  k, folder = len(dataset.classes), Path(args.predictions)
  scored, matrices = [], []
  for scene, label in _labelled(dataset, names):
    path = _path(folder, args.format, scene.name)
    if args.format == "scannet":
      prediction = scannet.read_submission(path, len(label))
    else:
      prediction = inputs.read_labels(folder, scene, k)
    none = (prediction == IGNORE_LABEL) & (label != IGNORE_LABEL)
    if none.any() and not args.none_is_wrong:
      raise DataError(
        f"{path}: {int(none.sum())} labelled points are predicted to be of no "
        f"class, the first is point {int(np.argmax(none))}; expected one of "
        f"the {k} classes (--none_is_wrong counts them as wrong)"
      )
    matrix = np.zeros((k, k + 1), np.int64)
    matrix[:, :k] = metrics.confusion_matrix(
      prediction, np.where(none, IGNORE_LABEL, label), k
    )
    matrix[:, k] = np.bincount(label[none], minlength=k)
    scored.append(scene.name)
    matrices.append(matrix if args.none_is_wrong else matrix[:, :k])
  shape = (-1, k, k + 1 if args.none_is_wrong else k)
  return SceneMatrices(
    tuple(scored), np.array(matrices, np.int64).reshape(shape)
  )


def _labelled(dataset, names) -> Iterator[tuple[Scene, np.ndarray]]:
  for name in names:
    scene = dataset.load_scene(name)
    if scene.label is not None:
      yield scene, scene.label


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
