"""Scoring a network on whole scenes, per original point."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import checkpoints, experiment, inputs, writers
from wsegpc_jax.data import samples, test_time
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.semantic_kitti import SemanticKitti
from wsegpc_jax.defaults import get_defaults
from wsegpc_jax.interop import scannet
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.metrics import scene_matrices
from wsegpc_jax.metrics import segmentation as metrics
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.predictor import (
  Predictor,
  ScenePrediction,
  average_superpoints,
)
from wsegpc_jax.types import DataError, Scene

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a split.

  Attributes:
    points: in 3D.
    pixels: in 2D, where the views are labelled.
    scenes: what `points` is the sum of; scenes without labels are not there.
  """

  points: metrics.SegmentationScores
  pixels: metrics.SegmentationScores | None = None
  scenes: SceneMatrices | None = None


def predict_scenes(
  predictor: Predictor,
  variables: dict,
  dataset: Dataset,
  names: Sequence[str],
  config: ConfigDict,
  *,
  use_tags: bool,
  superpoints: str,
  tta: str = "none",
) -> Iterator[tuple[Scene, ScenePrediction]]:
  """Scenes with their predictions, one after the other.

  Args:
    predictor, variables: the network.
    dataset, names: the scenes.
    config: for the views that the 2D branch sees.
    use_tags: whether only the scene's tags may be predicted.
    superpoints: how they are averaged, see `average_superpoints`.
    tta: test-time augmentation, a key of `test_time.SETS`.
  """
  data = config.data
  for name in names:
    scene = dataset.load_scene(name)
    frames = ()
    if config.method == "wsegpc" and scene.frames:
      frames = samples.load_views(
        dataset, scene, data.num_views, tuple(data.image_size), None
      )
    # A scene without a single tag says nothing of what is absent.
    known = use_tags and scene.tags.any()
    prediction = predictor(
      variables,
      scene,
      frames,
      tags=scene.tags if known else None,
      views=test_time.SETS[tta],
    )
    averaged = average_superpoints(
      prediction.probabilities, scene.superpoint, superpoints
    )
    yield scene, dataclasses.replace(prediction, probabilities=averaged)


def score_split(
  predictions: Iterator[tuple[Scene, ScenePrediction]],
  num_classes: int,
  *,
  visit: Callable[[Scene, ScenePrediction], None] | None = None,
  absent: str = "skip",
) -> Scores:
  """Scores predictions against the truth, summed over scenes and processes.

  Args:
    predictions: of `predict_scenes`.
    num_classes: K.
    absent: see `metrics.segmentation.scores`.
    visit: called with every scene, to write it somewhere.
  """
  names, matrices = [], []
  pixels = np.zeros((num_classes, num_classes), np.int64)
  for scene, prediction in predictions:
    if visit is not None:
      visit(scene, prediction)
    if scene.label is not None:
      names.append(scene.name)
      matrices.append(
        metrics.confusion_matrix(
          prediction.probabilities.argmax(1), scene.label, num_classes
        )
      )
    if prediction.label_2d is not None:
      pixels += metrics.confusion_matrix(
        prediction.label_2d.reshape(-1),
        prediction.truth_2d.reshape(-1),
        num_classes,
      )
  confusion = np.array(matrices, np.int64).reshape(-1, num_classes, num_classes)
  scenes = SceneMatrices(tuple(names), confusion)
  if jax.process_count() > 1:
    scenes, pixels = _gather(scenes, pixels)
  return Scores(
    scenes.scores(absent),
    metrics.scores(pixels, absent=absent) if pixels.any() else None,
    scenes,
  )


def _gather(
  scenes: SceneMatrices, pixels: np.ndarray
) -> tuple[SceneMatrices, np.ndarray]:
  """Scenes of all processes, one of each in turn, and the sum of the pixels.

  Of P processes, number i has the scenes i, i + P, i + 2 P, ... of the split.
  """
  from jax.experimental import multihost_utils

  def gather(a):
    return np.asarray(multihost_utils.process_allgather(a))

  text = [name.encode() for name in scenes.names]
  need = np.array([len(text), max(map(len, text), default=1)], np.int32)
  needs = gather(need)
  number, width = np.maximum(needs.max(0), 1)
  # All processes have to send the same shape.
  names = np.zeros((number, width), np.uint8)
  for row, name in zip(names, text, strict=False):
    row[: len(name)] = np.frombuffer(name, np.uint8)
  confusion = np.zeros((number + 1, *pixels.shape), np.int64)
  confusion[: len(text)] = scenes.confusion
  confusion[-1] = pixels
  # As pairs of int32: without x64 an int64 would be cut.
  confusion = np.ascontiguousarray(gather(confusion.view(np.int32)))
  confusion, names = confusion.view(np.int64), gather(names)
  order = [
    (process, row)
    for row in range(number)
    for process in range(len(needs))
    if row < needs[process, 0]
  ]
  decoded = (names[at].tobytes().rstrip(b"\0").decode() for at in order)
  gathered = SceneMatrices(
    tuple(decoded),
    np.array([confusion[at] for at in order], np.int64).reshape(
      -1, *pixels.shape
    ),
  )
  return gathered, confusion[:, -1].sum(0)


def protocol(
  config: ConfigDict, *, split: str, weights: str, tta: str = "none"
) -> str:
  """What was scored and how, in words."""
  words = [
    f"{weights} network on split {split}",
    "every original point through the voxel inverse map",
    "logits of classes absent from the scene's tags masked out"
    if config.eval.use_tags
    else "no tags used",
  ]
  superpoints = {
    "none": "no superpoints",
    "mean": "probabilities averaged over superpoints",
    "half": "probabilities averaged over superpoints, half and half with the "
    "point's own",
  }
  words.append(superpoints[config.eval.superpoints])
  if config.eval.absent == "zero":
    words.append("classes that do not occur count as 0")
  if tta != "none":
    words.append(test_time.describe(tta))
  words.append(f"voxels of {config.data.voxel_size} m")
  return "; ".join(words)


def load_variables(config: ConfigDict, workdir: str) -> tuple[dict, dict, str]:
  """Variables of the workdir's checkpoint, its host record, whose they are.

  Raises:
    DataError: there is no such checkpoint, or it is of another config.
  """
  if jax.process_count() > 1:
    raise DataError("only --mode=train runs in several processes")
  resolved = json.loads(config.to_json())
  writers.check_same_config(
    workdir,
    resolved,
    ignore=experiment.NOT_OF_THE_NETWORK,
    defaults=get_defaults().to_dict(),
  )
  teacher = config.eval.weights == "teacher" and config.method == "wsegpc"
  prefix = "ema_" if teacher else ""
  keys = (f"{prefix}params", f"{prefix}batch_stats")
  loaded, host = checkpoints.restore_partial(
    workdir, keys=keys, which=config.eval.checkpoint
  )
  variables = {"params": loaded[keys[0]], "batch_stats": loaded[keys[1]]}
  return variables, host, "teacher" if teacher else "student"


def load_network(
  config: ConfigDict, workdir: str, num_classes: int
) -> tuple[Predictor, dict, dict, str]:
  """The network of a working directory's checkpoint, ready to predict.

  Returns:
    What runs it, its variables, the host record, and whose they are.

  Raises:
    DataError: there is no such checkpoint, or it is of another network.
  """
  variables, host, weights = load_variables(config, workdir)
  method = experiment.build_method(
    config, num_classes, experiment.schedule(config, 1)
  )
  layout = inputs.layout(config, slots=1)
  state = experiment.first_state(config, method, layout, num_classes)
  for key, expected in (
    ("params", state.params),
    ("batch_stats", state.batch_stats),
  ):
    where = f"{workdir}: {key} of the {weights}"
    variables[key] = experiment.fit(variables[key], expected, where)
  return Predictor(config, method, num_classes), variables, host, weights


def evaluate(config: ConfigDict, workdir: str) -> Scores:
  """--mode=eval: scores the checkpoint on a split and writes the result."""
  dataset = inputs.open_data(config)
  classes = dataset.classes
  split, tta = config.eval.split, config.eval.tta
  names = inputs.split_scenes(dataset, split)
  names = names[: config.eval.max_scenes or None]
  inputs.check_same_data(workdir, dataset)
  predictor, variables, host, weights = load_network(
    config, workdir, len(classes)
  )
  visit = _exporter(config.eval.export, dataset, Path(workdir) / "submission")
  predictions = predict_scenes(
    predictor,
    variables,
    dataset,
    names,
    config,
    use_tags=config.eval.use_tags,
    superpoints=config.eval.superpoints,
    tta=tta,
  )
  scores = score_split(
    predictions, len(classes), visit=visit, absent=config.eval.absent
  )
  if scores.points.points:
    print(f"step {host['step']}, {weights} network on split {split}, in %:")
    print(metrics.format_table(scores.points, classes))
  else:
    print(f"split {split} has no labels: nothing to score")
  name = f"{split}_{config.eval.checkpoint}"
  if tta != "none":
    name += f"_{tta}"
  write_scores(
    Path(workdir) / "eval" / f"{name}.json",
    scores,
    classes,
    protocol=protocol(config, split=split, weights=weights, tta=tta),
    step=host["step"],
  )
  return scores


def _exporter(export: str, dataset: Dataset, folder: Path):
  """What writes each scene's prediction as a benchmark wants it, or None."""
  if not export:
    return None
  if export == "scannet":
    scannet.check_classes(dataset.classes)

    def write(scene, label):
      scannet.write_submission(folder / f"{scene.name}.txt", label)
  else:
    if not isinstance(dataset, SemanticKitti):
      raise DataError(
        "config.eval.export='semantic_kitti' needs config.data.format="
        "'semantic_kitti'"
      )

    def write(scene, label):
      own = kitti.count_points(kitti.scan_path(dataset.root, scene.name))
      raw = dataset.label_map.to_raw(label[:own])
      kitti.write_prediction(folder, scene.name, raw)

  folder.mkdir(parents=True, exist_ok=True)
  return lambda scene, out: write(scene, out.probabilities.argmax(1))


def write_scores(
  path: Path,
  scores: Scores,
  classes: Sequence[str],
  *,
  protocol: str,
  step: int | None = None,
) -> None:
  """Writes <name>.json and, first, <name>.scenes.npz beside it.

  The JSON has the 3D scores, and those of the views under "2d".

  Args:
    path: <name>.json, in an existing or a new folder.
    scores: of a split.
    classes: K names.
    protocol: what was scored and how, in words.
    step: of the network, if it is known.
  """
  extra = {} if step is None else {"step": int(step)}
  entry = metrics.to_json(scores.points, classes, protocol=protocol, **extra)
  if scores.pixels is not None:
    entry["2d"] = metrics.to_json(
      scores.pixels, classes, protocol=f"{protocol}; per pixel of the views"
    )
  if scores.scenes is not None:
    entry["scenes"] = len(scores.scenes.names)
    scene_matrices.write(scene_matrices.beside(path), scores.scenes, classes)
  writers.write_json(path, entry)
  logger.info("wrote %s", path)
