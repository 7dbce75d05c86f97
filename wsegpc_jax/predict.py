"""--mode=predict: a segmentation of the user's own scan."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import evaluate, inputs
from wsegpc_jax.data import test_time
from wsegpc_jax.files import atomic_write
from wsegpc_jax.interop import ply, semantic_kitti
from wsegpc_jax.palette import palette
from wsegpc_jax.predictor import Predictor
from wsegpc_jax.regions import normals
from wsegpc_jax.types import DataError, Scene

logger = logging.getLogger(__name__)


def predict(
  config: ConfigDict,
  workdir: str,
  *,
  source: str,
  target: str,
  tags: tuple[str, ...] = (),
) -> np.ndarray:
  """Segments a scan and writes a labelled, coloured PLY and probabilities.

  A scan larger than the largest bucket is predicted in overlapping parts.

  Args:
    config: of the run in workdir.
    workdir: holds the checkpoint.
    source: PLY or npz with coordinates in metres, z up, and colours; normals
      are computed where they are missing. Of a laser: .bin as KITTI has it.
    target: PLY to write; <target>.npz gets probabilities float16 [N, K],
      label uint8 [N] and the class names.
    tags: classes that may be predicted; () = all.

  Returns:
    label uint8 [N].

  Raises:
    DataError: the scan, the checkpoint or a tag is at fault.
  """
  if not source or not target:
    raise DataError("--mode=predict needs --input=scan.ply --output=out.ply")
  if Path(target).suffix != ".ply":
    raise DataError(f"--output={target!r}: expected a name that ends in .ply")
  archive = Path(target).with_suffix(".npz")
  if Path(source).resolve() in (Path(target).resolve(), archive.resolve()):
    raise DataError(
      f"--output={target!r} and {str(archive)!r} would overwrite --input="
      f"{source!r}; give another name"
    )
  classes = inputs.read_classes(workdir)
  unknown = [t for t in tags if t not in classes]
  if unknown:
    raise DataError(
      f"--tags: {unknown[0]!r} is not a class; expected some of "
      f"{', '.join(classes)}"
    )
  predictor, variables, _, _ = evaluate.load_network(
    config, workdir, len(classes)
  )
  allowed = np.array([not tags or c in tags for c in classes])
  lidar = config.data.sensor == "lidar"
  read = _read_laser_scan if lidar else _read_cloud
  scene = read(source, allowed, predictor)
  probabilities = predictor(
    variables, scene, tags=allowed, views=test_time.SETS[config.eval.tta]
  ).probabilities
  label = probabilities.argmax(1).astype(np.uint8)
  ply.write_point_cloud(
    target,
    coord=scene.coord,
    color=palette(len(classes))[label],
    normal=scene.normal,
    label=label,
  )
  with atomic_write(archive) as file:
    np.savez_compressed(
      file,
      probabilities=probabilities.astype(np.float16),
      label=label,
      classes=np.asarray(classes),
    )
  shares = np.bincount(label, minlength=len(classes)) / len(label)
  for i in np.argsort(-shares):
    if shares[i]:
      print(f"{classes[i]:<20}{100 * shares[i]:6.1f} %")
  print(f"wrote {target} and {archive}")
  return label


def _read_cloud(source: str, tags: np.ndarray, predictor: Predictor) -> Scene:
  """A PLY or npz file, with normals."""
  cloud = ply.read_point_cloud(source)
  # Estimating normals takes minutes: what cannot be predicted is said first.
  predictor.check(cloud["coord"])
  normal = cloud["normal"]
  if normal is None:
    logger.info("%s has no normals: estimating them", source)
    normal = normals.estimate_normals(cloud["coord"])
  return Scene(
    name=Path(source).stem,
    coord=cloud["coord"],
    color=cloud["color"],
    normal=normal,
    tags=tags,
  )


def _read_laser_scan(
  source: str, tags: np.ndarray, predictor: Predictor
) -> Scene:
  """A .bin file of x, y, z and remission."""
  if Path(source).suffix != ".bin":
    raise DataError(
      f"--input={source!r}: expected a laser scan, a name that ends in .bin"
    )
  coord, intensity = semantic_kitti.read_scan(source)
  predictor.check(coord)
  return Scene(
    name=Path(source).stem,
    coord=coord,
    color=None,
    normal=None,
    tags=tags,
    intensity=intensity,
  )
