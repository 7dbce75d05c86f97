"""Scoring a network on whole scenes, per original point."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import checkpoints, experiment, writers
from wsegpc_jax.data import batching, parts, samples
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.interop import scannet
from wsegpc_jax.metrics import segmentation as metrics
from wsegpc_jax.types import DataError, Frame, Scene

logger = logging.getLogger(__name__)

_MASKED = -1e6  # logit of a class that is known to be absent


@dataclasses.dataclass(frozen=True)
class ScenePrediction:
  """What a network says of a scene.

  Attributes:
    probabilities: float32 [N, K], of each point.
    label_2d: int32 [S, H, W], of the views; None without images.
    truth_2d: int32 [S, H, W], IGNORE_LABEL = unknown; None without images.
  """

  probabilities: np.ndarray
  label_2d: np.ndarray | None = None
  truth_2d: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a split in 3D, and in 2D where the views are labelled."""

  points: metrics.SegmentationScores
  pixels: metrics.SegmentationScores | None = None


class Predictor:
  """Runs a network on scenes of any size, one compiled program a bucket."""

  def __init__(self, config: ConfigDict, method: Any, num_classes: int):
    """method: has `predict(variables, batch)`, see `methods`."""
    self._settings = experiment.sample_settings(config)
    self._layout = experiment.layout(config, slots=1)
    self._num_classes = num_classes

    def run(variables, batch, tags):
      out = method.predict(variables, batch)
      logits = jnp.where(tags, out["logits_3d"], _MASKED)
      probabilities = jax.nn.softmax(logits)
      label_2d = None
      if "logits_2d" in out:
        logits = jnp.where(tags, out["logits_2d"], _MASKED)
        label_2d = logits.argmax(-1).astype(jnp.int32)
      return probabilities, label_2d

    self._run = jax.jit(run)

  def __call__(
    self,
    variables: dict,
    scene: Scene,
    frames: tuple[Frame, ...] = (),
    *,
    tags: np.ndarray | None = None,
  ) -> ScenePrediction:
    """Predicts all points of a scene.

    A scene larger than the largest bucket is predicted in overlapping parts,
    each point by the part in whose core it lies.

    Args:
      variables: "params" and "batch_stats".
      scene: the scan; its labels are not looked at.
      frames: of the 2D branch; () leaves it out.
      tags: bool [K], classes that may be predicted; None = all.
    """
    if tags is None:
      tags = np.ones(self._num_classes, bool)
    probabilities = np.empty((len(scene.coord), self._num_classes), np.float32)
    label_2d = truth_2d = None
    for part in parts.split(scene.coord, fits=self._fits):
      # The images belong to the whole scene: they go with its first part.
      own = frames if label_2d is None else ()
      subset = parts.take(scene, part.points)
      sample = samples.evaluation_sample(subset, own, self._settings)
      out, pixels = self._run(variables, self._batch(sample), tags)
      rows = np.asarray(out)[sample.inverse[part.core]]
      probabilities[part.points[part.core]] = rows
      if pixels is not None:
        label_2d, truth_2d = np.asarray(pixels), sample.images.label
    return ScenePrediction(probabilities, label_2d, truth_2d)

  def _fits(self, coord: np.ndarray) -> bool:
    voxels = samples.voxel_lib.voxelize(coord, self._settings.voxel_size)
    room = self._layout.capacities(len(self._layout.buckets) - 1).levels
    pairs = zip(voxels.level_counts, room, strict=True)
    return all(n <= m for n, m in pairs)

  def _batch(self, sample):
    bucket = batching.choose_bucket([sample], self._layout)
    layout = self._layout
    if sample.images is None:
      layout = dataclasses.replace(layout, num_views=0)
    return batching.collate(
      [sample],
      dataclasses.replace(layout, num_pairs=0),
      bucket,
      num_classes=self._num_classes,
      teacher=False,
    )


def average_superpoints(
  probabilities: np.ndarray, superpoint: np.ndarray | None, how: str
) -> np.ndarray:
  """Mean over each superpoint ("mean"), or half of it and half the own.

  Args:
    probabilities: float32 [N, K].
    superpoint: int32 [N], negative = none: such points keep their own.
    how: "none", "mean" or "half".
  """
  if how == "none" or superpoint is None or not (superpoint >= 0).any():
    return probabilities
  inside = superpoint >= 0
  _, region = np.unique(superpoint[inside], return_inverse=True)
  own = probabilities[inside]
  number = np.bincount(region)
  mean = np.stack(
    [np.bincount(region, own[:, k]) for k in range(own.shape[1])], 1
  )
  mean = (mean / number[:, None])[region].astype(np.float32)
  out = probabilities.copy()
  out[inside] = mean if how == "mean" else (mean + own) / 2
  return out


def predict_scenes(
  predictor: Predictor,
  variables: dict,
  dataset: Dataset,
  names: Sequence[str],
  config: ConfigDict,
  *,
  use_tags: bool,
  superpoints: str,
) -> Iterator[tuple[Scene, ScenePrediction]]:
  """Scenes with their predictions, one after the other."""
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
      variables, scene, frames, tags=scene.tags if known else None
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
) -> Scores:
  """Scores predictions against the truth, summed over scenes and processes.

  Args:
    predictions: of `predict_scenes`.
    num_classes: K.
    visit: called with every scene, to write it somewhere.
  """
  points = np.zeros((num_classes, num_classes), np.int64)
  pixels = np.zeros_like(points)
  for scene, prediction in predictions:
    if visit is not None:
      visit(scene, prediction)
    if scene.label is not None:
      points += metrics.confusion_matrix(
        prediction.probabilities.argmax(1), scene.label, num_classes
      )
    if prediction.label_2d is not None:
      pixels += metrics.confusion_matrix(
        prediction.label_2d.reshape(-1),
        prediction.truth_2d.reshape(-1),
        num_classes,
      )
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    # As pairs of int32: without x64 an int64 would be cut.
    lanes = np.stack([points, pixels]).view(np.int32)
    lanes = multihost_utils.process_allgather(lanes)
    points, pixels = np.asarray(lanes).view(np.int64).sum(0)
  return Scores(
    metrics.scores(points),
    metrics.scores(pixels) if pixels.any() else None,
  )


def protocol(config: ConfigDict, *, split: str, weights: str) -> str:
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
    workdir, resolved, ignore=experiment.NOT_OF_THE_NETWORK
  )
  teacher = config.eval.weights == "teacher" and config.method == "wsegpc"
  prefix = "ema_" if teacher else ""
  keys = (f"{prefix}params", f"{prefix}batch_stats")
  loaded, host = checkpoints.restore_partial(
    workdir, keys=keys, which=config.eval.checkpoint
  )
  variables = {"params": loaded[keys[0]], "batch_stats": loaded[keys[1]]}
  return variables, host, "teacher" if teacher else "student"


def evaluate(config: ConfigDict, workdir: str) -> Scores:
  """--mode=eval: scores the checkpoint on a split and writes the result."""
  dataset = experiment.open_data(config)
  classes = dataset.classes
  split = config.eval.split
  names = experiment.split_scenes(dataset, split)
  names = names[: config.eval.max_scenes or None]
  variables, host, weights = load_variables(config, workdir)
  experiment.check_same_data(workdir, dataset)
  steps = experiment.schedule(config, len(names))
  method = experiment.build_method(config, len(classes), steps)
  predictor = Predictor(config, method, len(classes))
  visit = None
  if config.eval.export == "scannet":
    scannet.check_classes(classes)
    folder = Path(workdir) / "submission"
    folder.mkdir(parents=True, exist_ok=True)

    def visit(scene, prediction):
      label = prediction.probabilities.argmax(1)
      scannet.write_submission(folder / f"{scene.name}.txt", label)

  predictions = predict_scenes(
    predictor,
    variables,
    dataset,
    names,
    config,
    use_tags=config.eval.use_tags,
    superpoints=config.eval.superpoints,
  )
  scores = score_split(predictions, len(classes), visit=visit)
  write_scores(
    Path(workdir) / "eval" / f"{split}_{config.eval.checkpoint}.json",
    scores,
    classes,
    protocol=protocol(config, split=split, weights=weights),
    step=host["step"],
  )
  if scores.points.points:
    print(metrics.format_table(scores.points, classes))
  else:
    print(f"split {split} has no labels: nothing to score")
  return scores


def write_scores(
  path: Path,
  scores: Scores,
  classes: Sequence[str],
  *,
  protocol: str,
  step: int,
) -> None:
  """Writes eval/<name>.json: 3D scores, and those of the views under "2d"."""
  entry = metrics.to_json(
    scores.points, classes, protocol=protocol, step=int(step)
  )
  if scores.pixels is not None:
    entry["2d"] = metrics.to_json(
      scores.pixels, classes, protocol=f"{protocol}; per pixel of the views"
    )
  writers.write_json(path, entry)
  logger.info("wrote %s", path)
