"""--mode=label: the stage 2 teacher labels the training split."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import evaluate, inputs
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.files import atomic_write
from wsegpc_jax.metrics import segmentation as metrics
from wsegpc_jax.predictor import Predictor, ScenePrediction
from wsegpc_jax.types import Scene

logger = logging.getLogger(__name__)

FOLDER = "pseudo_labels"
_PROTOCOL = (
  "pseudo-labels of the {weights} network on split {split}; every original "
  "point; logits of classes absent from the scene's tags masked out; "
  "probabilities averaged over superpoints"
)


def label(config: ConfigDict, workdir: str) -> evaluate.Scores:
  """Writes <workdir>/pseudo_labels/<scene>.npz with pred_label uint8 [N].

  The teacher's logits of absent classes are masked, its probabilities averaged
  over superpoints. Scored against the truth where that is known.
  """
  dataset = inputs.open_data(config)
  names = inputs.split_scenes(dataset, config.data.train_split)
  inputs.check_same_data(workdir, dataset, names)
  network = evaluate.load_network(config, workdir, len(dataset.classes))
  scores = label_split(config, workdir, dataset, network)
  print(f"{len(names)} scenes labelled in {Path(workdir) / FOLDER}")
  if scores.points.points:
    print("pseudo-labels against the labels of the training split, in %:")
    print(metrics.format_table(scores.points, dataset.classes))
  return scores


def label_split(
  config: ConfigDict,
  workdir: str,
  dataset: Dataset,
  network: tuple[Predictor, dict, dict, str],
) -> evaluate.Scores:
  """Labels the training split with a network and scores the labels.

  Args:
    config, workdir: of the run.
    dataset: its data set.
    network: as `evaluate.load_network` gives it.
  """
  predictor, variables, host, weights = network
  split, classes = config.data.train_split, dataset.classes
  folder = Path(workdir) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)

  def write(scene: Scene, prediction: ScenePrediction):
    labels = prediction.probabilities.argmax(1).astype(np.uint8)
    with atomic_write(folder / f"{scene.name}.npz") as file:
      np.savez_compressed(file, pred_label=labels)
    logger.info("labelled %s: %d points", scene.name, len(labels))

  predictions = evaluate.predict_scenes(
    predictor,
    variables,
    dataset,
    inputs.split_scenes(dataset, split),
    config,
    use_tags=True,
    superpoints="mean",
  )
  scores = evaluate.score_split(predictions, len(classes), visit=write)
  evaluate.write_scores(
    Path(workdir) / "eval" / f"{FOLDER}.json",
    scores,
    classes,
    protocol=_PROTOCOL.format(weights=weights, split=split),
    step=host["step"],
  )
  return scores
