"""One row's scores: the same protocols for every row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import evaluate, inputs, label
from wsegpc_jax.metrics.scene_matrices import SceneMatrices

# Large surfaces that every room has; the mean over the other classes ("objects")
# says more about the method.
STRUCTURAL = ("wall", "floor", "ceiling", "door", "window")
PROTOCOLS = {
  "pseudo_label_miou": "training rooms; classes absent from the room's tags "
  "masked out; probabilities averaged over superpoints",
  "val_miou": "held-out rooms, every point, no tags",
  "val_miou_tags": "held-out rooms, every point; classes absent from the room's "
  "tags masked out",
}


def object_classes(classes: Sequence[str]) -> np.ndarray:
  """Bool [K]: the classes that are not structural."""
  return np.array([name not in STRUCTURAL for name in classes])


def summary(scenes: SceneMatrices, classes: Sequence[str]) -> dict:
  """mIoU, that of the objects, and the IoU of each class, as fractions.

  Args:
    scenes: confusion matrices of a split.
    classes: K names.

  Returns:
    {"miou", "miou_objects", "iou": {class: fraction or None}}; a mean over no
    class is None.
  """
  iou = scenes.scores().iou
  objects = iou[object_classes(classes)]

  def mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None

  return {
    "miou": mean(iou),
    "miou_objects": mean(objects),
    "iou": {
      name: None if np.isnan(x) else float(x)
      for name, x in zip(classes, iou, strict=True)
    },
  }


def score(config: ConfigDict, workdir: str | Path) -> dict:
  """Scores the last checkpoint of a row by all protocols.

  WSegPC's teacher also labels the training rooms, into the workdir.

  Args:
    config: of the row.
    workdir: its working directory; scores and confusion matrices of the scenes
      go into its eval/.

  Returns:
    {protocol: `summary`, or None where it does not apply}, by the keys of
    PROTOCOLS.

  Raises:
    DataError: see `evaluate.load_network`.
  """
  workdir = Path(workdir)
  dataset = inputs.open_data(config)
  classes = dataset.classes
  network = evaluate.load_network(config, str(workdir), len(classes))
  predictor, variables, host, weights = network
  found = dict.fromkeys(PROTOCOLS)
  if config.method == "wsegpc":
    scores = label.label_split(config, str(workdir), dataset, network)
    found["pseudo_label_miou"] = summary(scores.scenes, classes)
  names = inputs.split_scenes(dataset, config.eval.split)
  for key, use_tags in (("val_miou", False), ("val_miou_tags", True)):
    asked = config.copy_and_resolve_references()
    asked.eval.use_tags = use_tags
    scores = evaluate.score_split(
      evaluate.predict_scenes(
        predictor,
        variables,
        dataset,
        names,
        asked,
        use_tags=use_tags,
        superpoints=config.eval.superpoints,
      ),
      len(classes),
    )
    evaluate.write_scores(
      workdir / "eval" / f"{key.replace('_miou', '')}.json",
      scores,
      classes,
      protocol=evaluate.protocol(
        asked, split=config.eval.split, weights=weights
      ),
      step=host["step"],
    )
    found[key] = summary(scores.scenes, classes)
  return found
