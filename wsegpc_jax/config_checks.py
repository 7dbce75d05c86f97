"""Refusing a configuration that no program can run with."""

import itertools

from ml_collections import ConfigDict

from wsegpc_jax.data import layouts, test_time
from wsegpc_jax.experiment import MINKUNET_SPVNAS
from wsegpc_jax.kernels import gather_conv
from wsegpc_jax.models import minkunet, spvcnn
from wsegpc_jax.parallel import RUNNERS
from wsegpc_jax.sparse.voxelize import LEVELS
from wsegpc_jax.types import DataError

METHODS = ("wsegpc", "segmentation", "clustering")
SENSORS = ("rgbd", "lidar")


def check_config(config: ConfigDict) -> None:
  """Refuses values that no program can run with.

  Raises:
    DataError: names the field and what was expected.
  """

  def expect(field, value, choices):
    if value not in choices:
      raise DataError(
        f"config.{field}={value!r}; expected one of "
        f"{', '.join(repr(c) for c in choices)}"
      )

  expect("method", config.method, METHODS)
  expect("compat", config.compat, ("", "reference"))
  expect("dtype", config.dtype, ("float32", "bfloat16"))
  expect("parallel", config.parallel, RUNNERS)
  expect("data.format", config.data.format, layouts.LAYOUTS)
  expect("data.sensor", config.data.sensor, SENSORS)
  expect("data.cap", config.data.cap, ("random", "nearest"))
  point_voxel = (*spvcnn.ARCHITECTURES, MINKUNET_SPVNAS)
  expect(
    "model.arch",
    config.model.arch,
    (*minkunet.ARCHITECTURES, *point_voxel),
  )
  if config.method != "clustering" and config.model.arch in point_voxel:
    raise DataError(
      f"config.model.arch={config.model.arch!r} is for config.method="
      f"'clustering'; with {config.method!r} expected one of "
      f"{', '.join(minkunet.ARCHITECTURES)}"
    )
  expect("train.optimizer", config.train.optimizer, ("sgd", "adamw"))
  expect("train.schedule", config.train.schedule, ("polynomial", "cosine"))
  expect(
    "cluster.feature_source",
    config.cluster.feature_source,
    ("bottleneck", "decoder"),
  )
  if config.method == "clustering":
    if config.train.accumulate != 1:
      raise DataError(
        f"config.train.accumulate={config.train.accumulate!r}; expected 1 with "
        "config.method='clustering', which samples voxels of the whole batch"
      )
    if config.model.remat:
      raise DataError(
        "config.model.remat=True; expected False with config.method="
        "'clustering'"
      )
  if config.method == "wsegpc" and config.data.sensor == "lidar":
    raise DataError(
      "config.data.sensor='lidar' has no images; config.method='wsegpc' needs "
      "'rgbd'"
    )
  kitti = config.data.format == "semantic_kitti"
  if kitti and (config.data.cache or config.data.sensor != "lidar"):
    raise DataError(
      "config.data.format='semantic_kitti' needs config.data.sensor='lidar' "
      "and no config.data.cache: scans are stored decoded"
    )
  expect("model.image_depth", config.model.image_depth, (18, 34, 50, 101))
  expect("eval.weights", config.eval.weights, ("teacher", "student"))
  expect("eval.superpoints", config.eval.superpoints, ("none", "mean", "half"))
  expect("eval.tta", config.eval.tta, tuple(test_time.SETS))
  expect("eval.checkpoint", config.eval.checkpoint, ("best", "latest"))
  expect("eval.absent", config.eval.absent, ("skip", "zero"))
  expect("eval.export", config.eval.export, ("", "scannet", "semantic_kitti"))
  expect("init_checkpoint", config.init_checkpoint, ("best", "latest"))
  expect(
    "model.implementation",
    config.model.implementation,
    ("", *gather_conv.IMPLEMENTATIONS),
  )
  for field, size in (
    ("data.image_size", config.data.image_size),
    ("data.box_rooms.image_size", config.data.box_rooms.image_size),
    ("data.synthetic.image_size", config.data.synthetic.image_size),
  ):
    if len(size) != 2:
      raise DataError(
        f"config.{field}={tuple(size)!r}; expected height and width"
      )
  if config.data.box_rooms.train > 0 and config.data.synthetic.train > 0:
    raise DataError(
      f"config.data.synthetic.train={config.data.synthetic.train!r}; expected "
      "0 as config.data.box_rooms.train writes rooms to the same folder"
    )
  positive = {
    "data.voxel_size": config.data.voxel_size,
    "train.batch_size": config.train.batch_size,
    "train.accumulate": config.train.accumulate,
    "train.epochs": config.train.epochs,
    "train.loop": config.train.loop,
    "train.log_every": config.train.log_every,
    "model.width": config.model.width,
    "model.image_width": config.model.image_width,
    "data.smallest_bucket": config.data.smallest_bucket,
    "loss.temperature": config.loss.temperature,
    "train.lr": config.train.lr,
    "data.image_size": min(config.data.image_size),
  }
  not_negative = {
    **{f"loss.{k}": v for k, v in config.loss.items()},
    "ema_keep": config.ema_keep,
    "train.total_steps": config.train.total_steps,
    "train.checkpoint_every": config.train.checkpoint_every,
    "train.patience": config.train.patience,
    "train.power": config.train.power,
    "train.momentum": config.train.momentum,
    "train.weight_decay": config.train.weight_decay,
    "eval.max_scenes": config.eval.max_scenes,
    "data.max_voxels": config.data.max_voxels,
    "data.num_pairs": config.data.num_pairs,
    "data.num_views": config.data.num_views,
    "data.threads": config.data.threads,
    "data.link_tolerance": config.data.link_tolerance,
    "data.past_scans": config.data.past_scans,
    "data.synthetic.train": config.data.synthetic.train,
    "data.synthetic.val": config.data.synthetic.val,
    "data.synthetic.seed": config.data.synthetic.seed,
    "train.warmup_steps": config.train.warmup_steps,
  }
  if config.method == "wsegpc":
    positive["data.num_views"] = config.data.num_views
  for field, value in positive.items():
    if not value > 0:
      raise DataError(f"config.{field}={value!r}; expected a positive number")
  for field, value in not_negative.items():
    if not value >= 0:
      raise DataError(f"config.{field}={value!r}; expected at least 0")
  for field, value in (
    ("ema_keep", config.ema_keep),
    ("data.drop_probability", config.data.drop_probability),
    ("data.mix3d", config.data.mix3d),
    ("model.dropout", config.model.dropout),
  ):
    if not 0 <= value <= 1:
      raise DataError(f"config.{field}={value!r}; expected 0 to 1")
  if not config.data.bucket_ratio > 1:
    raise DataError(
      f"config.data.bucket_ratio={config.data.bucket_ratio!r}; expected more "
      "than 1"
    )
  ratios = tuple(config.data.level_ratios)
  falling = all(
    isinstance(low, float) and 0 < low <= high
    for high, low in itertools.pairwise(ratios)
  )
  if ratios[:1] != (1.0,) or len(ratios) != LEVELS or not falling:
    raise DataError(
      f"config.data.level_ratios={ratios}; expected {LEVELS} numbers that fall "
      "from 1.0, above 0"
    )
  if config.data.largest_bucket < config.data.smallest_bucket:
    raise DataError(
      f"config.data.largest_bucket={config.data.largest_bucket}; expected at "
      f"least config.data.smallest_bucket={config.data.smallest_bucket}"
    )
