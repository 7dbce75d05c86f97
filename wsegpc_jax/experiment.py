"""From a configuration to the pieces that the programs share."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from wsegpc_jax import schedules
from wsegpc_jax.data import batching, pipeline
from wsegpc_jax.methods import cluster_step, clustering, common
from wsegpc_jax.methods.cluster_step import ClusterSettings
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models import minkunet, spvcnn
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.projection import ProjectionHead
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.parallel import AXIS
from wsegpc_jax.types import DataError, TrainState

MINKUNET_SPVNAS = "minkunet_spvnas"  # SPVCNN without its point branch
# Fields that another program on a run's working directory may see changed.
NOT_OF_THE_NETWORK = (
  "cluster",
  "eval",
  "init_checkpoint",
  "init_from",
  "loss",
  "parallel",
  "seed",
  "train",
  "data.box_rooms",
  "data.bucket_ratio",
  "data.cache",
  "data.cap",
  "data.drop_probability",
  "data.format",
  "data.how_to_get",
  "data.labels_from",
  "data.largest_bucket",
  "data.level_ratios",
  "data.max_rotation",
  "data.max_voxels",
  "data.mix3d",
  "data.num_pairs",
  "data.prefetch",
  "data.root",
  "data.scans",
  "data.smallest_bucket",
  "data.synthetic",
  "data.threads",
  "data.train_label_map",
  "data.train_split",
  "model.image_weights",
  "model.implementation",
  "model.remat",
)


Method = WSegPC | Segmentation | clustering.Clustering


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Steps of a run; `eval_every` is 0 for a run without evaluations."""

  steps_per_epoch: int
  total_steps: int
  eval_every: int


def schedule(config: ConfigDict, num_scenes: int) -> Schedule:
  """Steps of the run that trains on this many scenes."""
  train = config.train
  epoch = pipeline.steps_per_epoch(
    num_scenes, loop=train.loop, batch_size=train.batch_size
  )
  total = train.total_steps or epoch * train.epochs
  every = epoch if train.eval_every == 0 else max(train.eval_every, 0)
  return Schedule(epoch, total, every)


def build_method(
  config: ConfigDict, num_classes: int, steps: Schedule
) -> Method:
  """The method that config.method names, with its networks."""
  model, dtype = config.model, jnp.dtype(config.dtype)
  net_3d = _network(config, num_classes)
  optimizer = _optimizer(config, steps)
  if config.method == "segmentation":
    return Segmentation(net_3d, optimizer, **_memory(config))
  if config.method == "clustering":
    return _clustering(config, num_classes, net_3d, optimizer)
  net_2d = DilatedResNet(
    depth=model.image_depth,
    num_classes=num_classes,
    width=model.image_width,
    axis_name=AXIS,
    dtype=dtype,
  )
  _, planes, expansion = minkunet.ARCHITECTURES[model.arch]
  features_3d = max(1, planes[-1] * model.width // 32) * expansion
  features_2d = 8 * model.image_width * (4 if model.image_depth >= 50 else 1)
  names = {f.name for f in dataclasses.fields(LossWeights)}
  weights = {k: v for k, v in config.loss.items() if k in names}
  return WSegPC(
    model=TwoBranchNet(net_3d, net_2d, features_2d, features_3d),
    optimizer=optimizer,
    weights=LossWeights(**weights),
    temperature=config.loss.temperature,
    p_cutoff=config.loss.p_cutoff,
    ema_keep=config.ema_keep,
    compat_steps=steps.steps_per_epoch if config.compat else None,
    **_memory(config),
  )


def first_state(
  config: ConfigDict, method: Method, layout: batching.Layout, num_classes: int
) -> TrainState:
  """Random variables; shapes depend on the method, not on the data."""
  batch = batching.collate(
    [], layout, 0, num_classes=num_classes, teacher=config.method == "wsegpc"
  )
  return jax.device_get(method.init(config.seed, batch))


def fit(loaded: Any, expected: Any, where: str) -> Any:
  """Loaded arrays in the structure expected, or one clear error.

  Args:
    loaded: nested dict of arrays, as `checkpoints.restore_partial` gives it.
    expected: the same of arrays or `jax.ShapeDtypeStruct`s.
    where: of the loaded ones, for the error.

  Raises:
    DataError: a name or a shape differs: they are of another network.
  """
  if not isinstance(expected, dict):
    if np.shape(loaded) != np.shape(expected):
      raise DataError(
        f"{where} has shape {list(np.shape(loaded))}, this config's network "
        f"{list(np.shape(expected))}"
      )
    return loaded
  differing = sorted(set(loaded) ^ set(expected))
  if differing:
    lacks = "lacks" if differing[0] in expected else "has the unexpected"
    raise DataError(f"{where} {lacks} {differing[0]!r}: another network")
  return {k: fit(loaded[k], v, f"{where}/{k}") for k, v in expected.items()}


def learning_rate(
  config: ConfigDict, steps: Schedule
) -> Callable[[int | jax.Array], jax.Array]:
  """The schedule that config.train.schedule names."""
  train = config.train
  if train.schedule == "cosine":
    return schedules.cosine_decay(
      train.lr, steps.total_steps, warmup_steps=train.warmup_steps
    )
  return schedules.polynomial_decay(train.lr, steps.total_steps, train.power)


def _optimizer(config, steps) -> optax.GradientTransformation:
  train = config.train
  if train.optimizer == "adamw":
    rate = learning_rate(config, steps)
    return common.adamw(rate, weight_decay=train.weight_decay)
  shared = dict(momentum=train.momentum, weight_decay=train.weight_decay)
  if train.schedule == "cosine":
    return common.cosine_sgd(
      train.lr, steps.total_steps, warmup_steps=train.warmup_steps, **shared
    )
  return common.sgd(train.lr, steps.total_steps, power=train.power, **shared)


def _memory(config) -> dict:
  """What a method does to need less memory in training."""
  return {"parts": config.train.accumulate, "remat": config.model.remat}


def _network(config, num_classes) -> minkunet.MinkUNet | spvcnn.SPVCNN:
  model = config.model
  shared = dict(
    num_classes=num_classes,
    axis_name=AXIS,
    dtype=jnp.dtype(config.dtype),
    implementation=model.implementation or None,
  )
  if model.arch in minkunet.ARCHITECTURES:
    return minkunet.MinkUNet(arch=model.arch, width=model.width, **shared)
  plain = model.arch == MINKUNET_SPVNAS
  return spvcnn.SPVCNN(
    arch="spvcnn" if plain else model.arch,
    width=model.width / minkunet.STEM_WIDTH,
    point_branch=not plain,
    dropout=model.dropout,
    **shared,
  )


def _clustering(
  config, num_classes, network, optimizer
) -> clustering.Clustering:
  numbers = config.cluster.to_dict()
  source = numbers.pop("feature_source")
  numbers["short_classes"] = tuple(numbers["short_classes"])
  loss = config.loss
  try:
    settings = ClusterSettings(**numbers, compat=config.compat)
    cluster_step.check_classes(settings, num_classes)
  except ValueError as error:
    raise DataError(f"config.cluster: {error}") from error
  try:
    weights = clustering.LossWeights(
      ce=loss.ce, lovasz=loss.lovasz, cluster=loss.cluster
    )
  except ValueError as error:
    raise DataError(f"config.loss: {error}") from error
  if config.model.arch in minkunet.ARCHITECTURES and source == "bottleneck":
    raise DataError(
      f"config.cluster.feature_source='bottleneck' needs a network with a point "
      f"branch, such as 'spvcnn'; with config.model.arch={config.model.arch!r} "
      "expected 'decoder'"
    )
  return clustering.Clustering(
    model=network,
    projection=ProjectionHead(axis_name=AXIS, dtype=jnp.dtype(config.dtype)),
    optimizer=optimizer,
    weights=weights,
    settings=settings,
    feature_source=source,
    seed=config.seed,
  )
