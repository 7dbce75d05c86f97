"""The naive baseline: geometry for floor and walls, chance for the rest.

What a method that learns from tags has to beat. Floor and walls are planes
(`regions.planes`), which no label is needed for; everything else gets a random
class, of those in the room's tags or, without tags, of all. It is scored by the
ladder's protocols, with a class drawn for each point and for each superpoint;
the better of the two counts.

Dimension letters: N points, K classes.
"""

from collections.abc import Sequence

import numpy as np

from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.ladder import scoring
from wsegpc_jax.metrics import segmentation
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.regions import planes
from wsegpc_jax.types import NO_REGION, DataError, Scene

UNITS = ("superpoint", "point")


def structure_labels(scene: Scene, classes: Sequence[str]) -> np.ndarray:
  """Class of each point by geometry alone.

  Args:
    scene: the scan; its labels are not looked at.
    classes: K names; "floor", "ceiling" and "wall" are used if they are there.

  Returns:
    int32 [N], NO_REGION where geometry says nothing.
  """
  plane, kinds = planes.structural_planes(scene.coord, scene.normal)
  known = [
    classes.index(kind) if kind in classes else NO_REGION for kind in kinds
  ]
  table = np.array([*known, NO_REGION], np.int32)
  return table[plane]  # NO_REGION = -1, the last entry


def guess(
  scene: Scene,
  structure: np.ndarray,
  rng: np.random.Generator,
  *,
  allowed: np.ndarray,
  unit: str,
) -> np.ndarray:
  """A random label for what geometry does not tell.

  Args:
    scene: for its superpoints.
    structure: int32 [N], of `structure_labels`.
    rng: source of the randomness.
    allowed: bool [K], classes that may occur. Those that geometry finds are
      drawn only when there are no others; geometry is overruled where its class
      may not occur.
    unit: "point", or "superpoint" = one class for each; points without a
      superpoint draw their own.

  Returns:
    int32 [N].

  Raises:
    ValueError: an unknown unit.
  """
  if unit not in UNITS:
    raise ValueError(f"unit {unit!r}; expected one of {', '.join(UNITS)}")
  found = np.zeros(len(allowed), bool)
  found[structure[structure >= 0]] = True
  choice = np.flatnonzero(allowed & ~found)
  if not len(choice):
    choice = np.flatnonzero(allowed)
  label = rng.choice(choice, len(structure)).astype(np.int32)
  if unit == "superpoint" and scene.superpoint is not None:
    _, first, region = np.unique(
      scene.superpoint, return_index=True, return_inverse=True
    )
    inside = scene.superpoint >= 0
    label[inside] = label[first][region.reshape(-1)][inside]
  by_geometry = (structure >= 0) & allowed[np.maximum(structure, 0)]
  return np.where(by_geometry, structure, label).astype(np.int32)


def score(
  dataset: Dataset,
  seeds: Sequence[int],
  *,
  train_split: str = "train",
  val_split: str = "val",
) -> dict:
  """The baseline by the ladder's protocols.

  Args:
    dataset: rooms with labels.
    seeds: of the draws, one result each.
    train_split: labelled as the pseudo-labels are.
    val_split: of held-out rooms.

  Returns:
    {protocol: [`scoring.summary` a seed], "unit": {protocol: the better unit}}.

  Raises:
    DataError: a scene has no labels.
  """
  classes = dataset.classes
  matrices = {
    (key, unit): [[] for _ in seeds]
    for key in scoring.PROTOCOLS
    for unit in UNITS
  }
  for split, keys in (
    (train_split, ("pseudo_label_miou",)),
    (val_split, ("val_miou", "val_miou_tags")),
  ):
    for number, name in enumerate(dataset.splits[split]):
      scene = dataset.load_scene(name)
      if scene.label is None:
        raise DataError(f"{dataset.root}: scene {name} has no labels")
      structure = structure_labels(scene, classes)
      for key in keys:
        every = key == "val_miou" or not scene.tags.any()
        allowed = np.ones(len(classes), bool) if every else scene.tags
        for unit in UNITS:
          for i, seed in enumerate(seeds):
            rng = np.random.default_rng([seed, number])
            label = guess(scene, structure, rng, allowed=allowed, unit=unit)
            matrices[key, unit][i].append(
              segmentation.confusion_matrix(label, scene.label, len(classes))
            )
  result: dict = {"unit": {}}
  for key in scoring.PROTOCOLS:
    by_unit = {
      unit: [_summary(m, classes) for m in matrices[key, unit]]
      for unit in UNITS
    }
    better = max(
      UNITS, key=lambda u: np.mean([s["miou"] or 0.0 for s in by_unit[u]])
    )
    result[key] = by_unit[better]
    result["unit"][key] = better
  return result


def first(scores: dict, number: int) -> dict:
  """The scores of the first seeds only."""
  kept = {key: scores[key][:number] for key in scoring.PROTOCOLS}
  return {**kept, "unit": scores["unit"]}


def _summary(matrices: list[np.ndarray], classes: Sequence[str]) -> dict:
  names = tuple(map(str, range(len(matrices))))
  return scoring.summary(SceneMatrices(names, np.array(matrices)), classes)
