"""--mode=train: the training program, top to bottom, for every method."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from wsegpc_jax import (
  checkpoints,
  evaluate,
  experiment,
  inputs,
  parallel,
  writers,
)
from wsegpc_jax.data import batching, pipeline
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.defaults import get_defaults
from wsegpc_jax.files import exclusive
from wsegpc_jax.interop import spvnas_weights
from wsegpc_jax.interop import weights as torch_weights
from wsegpc_jax.metrics import segmentation as metrics
from wsegpc_jax.types import DataError, TrainState

logger = logging.getLogger(__name__)

# Fields that may change when a run goes on in its working directory.
_MAY_CHANGE = (
  "data.root",
  "data.cache",
  "data.threads",
  "data.prefetch",
  "data.how_to_get",
  "eval.checkpoint",
  "eval.export",
  "eval.max_scenes",
  "eval.split",
  "eval.tta",
  "parallel",
  "model.implementation",
  "model.remat",
  "train.log_every",
  "train.progress_seconds",
  "train.checkpoint_every",
)


_HEAD = "projection"  # of clustering, which a run without it does not have


@dataclasses.dataclass
class Record:
  """What a resumed run needs besides the state; kept as JSON beside it.

  Attributes:
    step: steps done; also the position of the data iterator.
    best_miou: best 3D mIoU so far, at first that of the stage before.
    without_gain: evaluations since.
    stopped: the run ended early.
  """

  step: int = 0
  best_miou: float = 0.0
  without_gain: int = 0
  stopped: bool = False


def train(
  config: ConfigDict, workdir: str, *, config_name: str = ""
) -> TrainState:
  """Trains until the last step or the early stop; resumes what was begun.

  Args:
    config: see `defaults`.
    workdir: where everything goes.
    config_name: file the config came from, for versions.json.

  Raises:
    DataError: the config, the data or the working directory is at fault.
    FloatingPointError: a loss is not finite.
  """
  is_writer = jax.process_index() == 0
  resolved = json.loads(config.to_json())
  begun = (Path(workdir) / "checkpoints").is_dir()
  if begun:
    writers.check_same_config(
      workdir,
      resolved,
      ignore=_MAY_CHANGE,
      defaults=get_defaults().to_dict(),
    )
  dataset = _open_data(config)
  scenes = inputs.split_scenes(dataset, config.data.train_split)
  if begun:
    inputs.check_same_data(workdir, dataset, scenes)
  steps = experiment.schedule(config, len(scenes))
  if steps.eval_every:  # now, and not after the first epoch
    inputs.split_scenes(dataset, config.eval.split)
  method = experiment.build_method(config, len(dataset.classes), steps)
  mesh = parallel.device_mesh()
  slots = scenes_a_part(config, num_devices=mesh.size)
  layout = inputs.layout(config, slots=slots)
  source = inputs.label_source(config, dataset)
  sampler = inputs.sampler(config, slots=slots)

  def make_sample(name, rng):
    return sampler.training(dataset, name, rng, labels=source, others=scenes)

  state = experiment.first_state(config, method, layout, len(dataset.classes))
  record = Record()
  # Only one process writes, and no other run may meanwhile.
  alone = exclusive(workdir) if is_writer else contextlib.nullcontext()
  with alone, checkpoints.Checkpoints(workdir) as saved:
    if saved.latest_step() is not None:
      state, host = saved.restore(state)
      record = Record(**host)
      logger.info("resumed at step %d of %d", record.step, steps.total_steps)
    else:
      if config.init_from:
        state, record = start_from(
          config.init_from, state, which=config.init_checkpoint
        )
      if config.model.image_weights:  # also over those of init_from
        state = start_images_from(config.model.image_weights, state)
    if record.step >= steps.total_steps or record.stopped:
      logger.info("nothing to do: the run ended at step %d", record.step)
      return state

    if begun and record.step == 0:
      logger.info("there is no checkpoint to go on from: starting at step 0")
    logger.info("the first step is compiled first, which may take a minute")
    if is_writer:
      writers.save_run_info(workdir, resolved, config_name)
      inputs.write_data_record(workdir, dataset, scenes)
    state = parallel.replicate(state, mesh)
    step_fn = parallel.data_parallel(
      method.train_step, runner=config.parallel, mesh=mesh
    )
    predictor = evaluate.Predictor(config, method, len(dataset.classes))
    own_devices = [
      i for i, d in enumerate(mesh.devices.flat) if d in jax.local_devices()
    ]
    batches = pipeline.training_steps(
      make_sample,
      scenes,
      batch_size=config.train.batch_size,
      positions=pipeline.device_positions(
        config.train.batch_size, num_devices=mesh.size, devices=own_devices
      ),
      first_step=record.step,
      total_steps=steps.total_steps,
      seed=config.seed,
      threads=config.data.threads,
      prefetch=config.data.prefetch,
    )
    with _Log(config, workdir, steps, record.step, active=is_writer) as log:
      while record.step < steps.total_steps and not record.stopped:
        began = time.monotonic()
        shares = next(batches)
        waited = time.monotonic() - began
        batch = make_batch(shares, layout, dataset, mesh, config)
        state, step_metrics = step_fn(state, batch)
        record.step += 1
        log.step(record.step, step_metrics, waited)

        scored = None
        if _due(record.step, steps.eval_every, steps.total_steps):
          scored, labelled = _evaluate(
            config, workdir, predictor, dataset, state, record.step
          )
          if labelled:
            _update_best(record, scored, config.train.patience)
            log.scores(record.step, scored)
        every = config.train.checkpoint_every
        if (
          scored
          or record.stopped
          or _due(record.step, every, steps.total_steps)
          or record.step == steps.total_steps
        ):
          log.flush()
          if is_writer:
            saved.save(
              record.step,
              _host_copy(state),
              host=dataclasses.asdict(record),
              metrics=scored,
            )
  if record.best_miou:
    logger.info("done; the best mIoU so far is %.4f", record.best_miou)
  return state


def _open_data(config: ConfigDict) -> Dataset:
  """Opens the data set; one process alone writes it if it is generated."""
  if jax.process_index() == 0:
    dataset = inputs.open_data(config)
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("data set is there")
    dataset = inputs.open_data(config)
  return dataset


def scenes_a_part(config: ConfigDict, *, num_devices: int) -> int:
  """Scenes of a part of a device's share, the largest.

  Raises:
    DataError: a device has fewer scenes than its share has parts.
  """
  train = config.train
  share = -(-train.batch_size // num_devices)
  if train.accumulate > share:
    raise DataError(
      f"config.train.accumulate={train.accumulate}; expected at most {share}, "
      f"the scenes of a device (config.train.batch_size={train.batch_size}, "
      f"{num_devices} device{'s' * (num_devices > 1)})"
    )
  return -(-share // train.accumulate)


def make_batch(shares, layout, dataset, mesh, config):
  """One padded, global batch out of this process's samples.

  With config.train.accumulate above 1 its leaves have an axis of parts after
  that of devices. All parts have the bucket of the largest one.
  """
  size, parts = layout.slots, config.train.accumulate
  split = [
    [share[i * size : (i + 1) * size] for i in range(parts)] for share in shares
  ]
  bucket = max(
    batching.choose_bucket(part, layout) for share in split for part in share
  )
  bucket = parallel.agree_on_max(bucket)

  def collate(part):
    return batching.collate(
      part,
      layout,
      bucket,
      num_classes=len(dataset.classes),
      teacher=config.method == "wsegpc",
    )

  if parts == 1:
    batches = [collate(share) for share in shares]
  else:
    batches = [batching.stack([collate(p) for p in share]) for share in split]
  return parallel.to_devices(
    batching.stack(batches), mesh, runner=config.parallel
  )


def start_from(
  workdir: str, state: TrainState, *, which: str = "best"
) -> tuple[TrainState, Record]:
  """The next stage's first state: student, teacher and best mIoU carry over.

  Args:
    workdir: working directory of the stage before, or a file of weights (see
      `interop.weights`); without a teacher in it, the teacher starts as a copy
      of the student.
    state: fresh; parts of the network that a file does not have stay.
    which: checkpoint of a working directory, "best" or "latest".

  Raises:
    DataError: no such run or file, or it is of another network.
  """
  if torch_weights.is_weights_file(workdir):
    return _start_from_file(workdir, state)
  teacher = state.ema_params is not None
  keys = ("params", "batch_stats") + (
    ("ema_params", "ema_batch_stats") if teacher else ()
  )
  loaded, host = checkpoints.restore_partial(workdir, keys=keys, which=which)
  for key in keys:
    own = getattr(state, key)
    if _HEAD in own and _HEAD not in loaded[key]:
      logger.info("%s has no %s/%s: it starts at random", workdir, key, _HEAD)
      loaded[key][_HEAD] = own[_HEAD]
  state = state.replace(
    **{
      k: experiment.fit(loaded[k], getattr(state, k), f"{workdir}: {k}")
      for k in keys
    }
  )
  logger.info("initialised from step %d of %s", host["step"], workdir)
  return state, Record(best_miou=host["best_miou"] if teacher else 0.0)


def _start_from_file(path: str, state: TrainState) -> tuple[TrainState, Record]:
  own = {"params": state.params, "batch_stats": state.batch_stats}
  if "stem0_conv" in own["params"]:  # SPVCNN and its kin
    student, _ = spvnas_weights.load(path, own)
    return _with(state, student, None), Record()
  student, teacher, file = torch_weights.load(path, own)
  logger.info("initialised from %s, best mIoU %.4f", path, file.best_miou)
  # Without a teacher it is scored in another way.
  best = file.best_miou if state.ema_params is not None else 0.0
  return _with(state, student, teacher), Record(best_miou=best)


def start_images_from(path: str, state: TrainState) -> TrainState:
  """A fresh state whose 2D network, of student and teacher, is a file's.

  Raises:
    DataError: no such file, it is of another ResNet, or the method has no 2D
      network.
  """
  if "net_2d" not in state.params:
    raise DataError(
      f"config.model.image_weights={path!r}: this method has no 2D network; "
      "expected ''"
    )
  own = {"params": state.params, "batch_stats": state.batch_stats}
  student, _, _ = torch_weights.load(path, own, parts=("net_2d",))
  return _with(state, student, None)


def _with(state: TrainState, student: dict, teacher: dict | None) -> TrainState:
  """The state with these variables; a teacher, if it has one, like it."""
  state = state.replace(**student)
  if state.ema_params is None:
    return state
  teacher = teacher or jax.tree.map(np.copy, student)
  return state.replace(**{f"ema_{k}": v for k, v in teacher.items()})


def _due(step: int, every: int, total: int) -> bool:
  return every > 0 and (step % every == 0 or step == total)


def _host_copy(state: TrainState) -> TrainState:
  return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), state)


def _evaluate(config, workdir, predictor, dataset, state, step):
  """Scores the network whose checkpoint is to be kept.

  Returns:
    {metric: value}, and whether there were labels to score against: without
    any the mIoU is 0, so that the latest checkpoint counts as the best.
  """
  local = jax.tree.map(lambda a: a.addressable_data(0), state)
  teacher = state.ema_params is not None and config.eval.weights == "teacher"
  variables = {
    "params": local.ema_params if teacher else local.params,
    "batch_stats": local.ema_batch_stats if teacher else local.batch_stats,
  }
  split = config.eval.split
  names = inputs.split_scenes(dataset, split)
  names = names[: config.eval.max_scenes or None]
  own = names[jax.process_index() :: jax.process_count()]
  scores = evaluate.score_split(
    evaluate.predict_scenes(
      predictor,
      variables,
      dataset,
      own,
      config,
      use_tags=config.eval.use_tags,
      superpoints=config.eval.superpoints,
    ),
    len(dataset.classes),
    absent=config.eval.absent,
  )
  if not scores.points.points:
    logger.info("split %s has no labels: nothing to score", split)
    return {"miou": 0.0}, False
  if jax.process_index() == 0:
    weights = "teacher" if teacher else "student"
    evaluate.write_scores(
      Path(workdir) / "eval" / f"{split}_step_{step:07d}.json",
      scores,
      dataset.classes,
      protocol=evaluate.protocol(config, split=split, weights=weights),
      step=step,
    )
    print(f"step {step}, {weights} network on split {split}, in %:")
    print(metrics.format_table(scores.points, dataset.classes), flush=True)
  named = {
    "miou": scores.points.miou,
    "macc": scores.points.macc,
    "allacc": scores.points.allacc,
  }
  if scores.pixels is not None:
    named["miou_2d"] = scores.pixels.miou
  named = {k: 0.0 if math.isnan(v) else float(v) for k, v in named.items()}
  return named, True


def _update_best(record: Record, scored: dict, patience: int) -> None:
  if scored["miou"] > record.best_miou:
    record.best_miou, record.without_gain = scored["miou"], 0
  else:
    record.without_gain += 1
    record.stopped = 0 < patience <= record.without_gain
    if record.stopped:
      logger.info(
        "stopped early: %d evaluations without gain over mIoU %.4f",
        record.without_gain,
        record.best_miou,
      )


class _Log:
  """Rows of metrics, the progress line, and the stop on a loss that is NaN."""

  def __init__(self, config, workdir, steps, first_step, *, active: bool):
    self._every = config.train.log_every
    self._total = steps.total_steps
    self._scenes = config.train.batch_size
    self._pending: list[tuple[int, dict]] = []
    self._schedule = experiment.learning_rate(config, steps)
    self._writer = self._progress = None
    if active:
      self._writer = writers.Writer(
        workdir, total_steps=steps.total_steps, resume_step=first_step
      )
      self._progress = writers.Progress(
        steps.total_steps,
        start=first_step,
        every_seconds=config.train.progress_seconds,
      )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self._writer is not None:
      self._progress.close()
      self._writer.close()

  def step(self, step: int, scalars: dict, waited: float) -> None:
    self._pending.append((step, scalars))
    if self._progress is not None:
      self._progress.update(
        step,
        scalars={
          "loss": scalars["loss"],
          **scalars,
          "lr": self._schedule(step - 1),
        },
        scenes=self._scenes,
        wait_seconds=waited,
      )
    if step % self._every == 0:
      self.flush()

  def flush(self) -> None:
    """Fetches the steps since the last time, checks them, writes the last."""
    if not self._pending:
      return
    fetched = jax.device_get([scalars for _, scalars in self._pending])
    for (step, _), scalars in zip(self._pending, fetched, strict=True):
      bad = [k for k, v in scalars.items() if not np.isfinite(v)]
      if bad:
        raise FloatingPointError(
          f"step {step}: {', '.join(bad)} is not finite; lower "
          "config.train.lr, or look at the scenes of this step"
        )
    step = self._pending[-1][0]
    if self._writer is not None:
      mean = {k: np.mean([s[k] for s in fetched]) for k in fetched[-1]}
      self._writer.write(step, {**mean, "lr": self._schedule(step - 1)})
    self._pending = []

  def scores(self, step: int, scored: dict) -> None:
    self.flush()
    if self._writer is not None:
      self._writer.write(step, {f"eval/{k}": v for k, v in scored.items()})
