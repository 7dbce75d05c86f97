"""Running a network on whole scenes, whatever their size."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import inputs
from wsegpc_jax.data import batching, parts, test_time
from wsegpc_jax.experiment import MINKUNET_SPVNAS
from wsegpc_jax.models import minkunet, spvcnn
from wsegpc_jax.sparse.voxelize import ALIGNMENT
from wsegpc_jax.types import Frame, Scene

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


class Predictor:
  """Runs a network on scenes of any size, one compiled program a bucket."""

  def __init__(self, config: ConfigDict, method: Any, num_classes: int):
    """method: has `predict(variables, batch)`, see `methods`."""
    self._sampler = inputs.sampler(config)
    self._layout = inputs.layout(config, slots=1)
    self._num_classes = num_classes
    self._reach = receptive_field(config.model.arch)

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
    views: Sequence[test_time.View] = test_time.SETS["none"],
  ) -> ScenePrediction:
    """Predicts all points of a scene.

    A scene larger than the largest bucket is predicted in overlapping parts,
    each point by the part in whose core it lies. (Averaging the overlaps, with
    weights that fall towards a part's border, was measured, too: with margins
    of 48 voxels and more the result is farther from that in one piece.)

    Args:
      variables: "params" and "batch_stats".
      scene: the scan; its labels are not looked at.
      frames: of the 2D branch; () leaves it out.
      tags: bool [K], classes that may be predicted; None = all.
      views: of the scene, whose probabilities are averaged; frames go with the
        first.

    Raises:
      DataError: the scene is too dense or too wide (see `parts.split`,
        `voxelize`).
    """
    if tags is None:
      tags = np.ones(self._num_classes, bool)
    first = self._predict(variables, views[0].apply(scene), frames, tags)
    if len(views) == 1:
      return first
    total = first.probabilities
    for view in views[1:]:
      other = self._predict(variables, view.apply(scene), (), tags)
      total += other.probabilities
    total /= len(views)
    return dataclasses.replace(first, probabilities=total)

  def check(self, coord: np.ndarray) -> None:
    """Finds out soon whether points [N, 3] can be predicted.

    Raises:
      DataError: they are too dense or too wide.
    """
    self._parts(coord)

  def _parts(self, coord) -> Iterator[parts.Part]:
    room = self._layout.capacities(len(self._layout.buckets) - 1).levels
    voxels = self._sampler.voxelize(coord)
    return parts.split(voxels, room=room, reach=self._reach)

  def _predict(self, variables, scene, frames, tags) -> ScenePrediction:
    probabilities = np.empty((len(scene.coord), self._num_classes), np.float32)
    label_2d = truth_2d = None
    for part in self._parts(scene.coord):
      # The images belong to the whole scene: they go with its first part.
      own = frames if label_2d is None else ()
      subset = parts.take(scene, part.points)
      sample = self._sampler.evaluation(subset, own)
      out, pixels = self._run(variables, self._batch(sample), tags)
      rows = np.asarray(out)[sample.inverse[part.core]]
      probabilities[part.points[part.core]] = rows
      if pixels is not None:
        label_2d, truth_2d = np.asarray(pixels), sample.images.label
    return ScenePrediction(probabilities, label_2d, truth_2d)

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


def receptive_field(arch: str) -> int:
  """Voxels from a voxel to the farthest that its logits depend on, at most.

  Along an axis, for the worst place of the voxel in its cell of the coarsest
  level, by walking the network from its end to its beginning.

  Args:
    arch: a key of `models.minkunet.ARCHITECTURES` or of `models.spvcnn`'s, or
      `experiment.MINKUNET_SPVNAS`.
  """
  if arch in minkunet.ARCHITECTURES:
    layers, _, expansion = minkunet.ARCHITECTURES[arch]
    # 3^3 convolutions of each stage: two a basic block, one a bottleneck.
    radius = [n * (2 if expansion == 1 else 1) for n in layers]
    around = 0
  else:
    if arch == MINKUNET_SPVNAS:
      arch = "spvcnn"
    stages = spvcnn.ARCHITECTURES[arch]
    radius = [2 * len(s.blocks) for s in (*stages.down, *stages.up)]
    # Points read the corners around them at strides 16 and 4, and voxels of
    # these strides all of their points.
    around = 2 * (16 + 4)
  farthest = 0
  for start in range(ALIGNMENT):
    low = high = start
    for r in radius[:3:-1]:  # up the decoder, each stage after its upsampling
      low, high = (low - r) // 2, (high + r) // 2
    for r in radius[3::-1]:  # and the encoder, each after its downsampling
      low, high = 2 * (low - r), 2 * (high + r) + 1
    low, high = low - 2, high + 2  # the stem: 5^3, or twice 3^3
    farthest = max(farthest, start - low, high - start)
  return farthest + around


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
  mean = (mean / number[:, None]).astype(np.float32)[region]
  out = probabilities.copy()
  out[inside] = mean if how == "mean" else (mean + own) / 2
  return out
