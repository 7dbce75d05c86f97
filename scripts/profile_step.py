"""Measures where a training step of WSegPC spends its time and memory.

    python scripts/profile_step.py --config=configs/synthetic_rpc.py

On one device, with all scenes of a batch on it: milliseconds of the parts of a
step, the whole step with its loader against the same step on batches that lie
ready, the share of padding, how long the step compiles, and the memory of its
program, also with less precision, checkpoints and two parts a batch
(`--memory`). What a part takes is measured by a program of its own; losses and
pseudo-labels are the rest of the step. Prints a table, and JSON in one line;
with --workdir the same is in profile_step.json there.
"""

import collections
import functools
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from wsegpc_jax import (
  command_line,
  config_checks,
  experiment,
  inputs,
  parallel,
  train,
  writers,
)
from wsegpc_jax.data import pipeline
from wsegpc_jax.methods import common
from wsegpc_jax.models import remat
from wsegpc_jax.types import DataError

_CONFIG = config_flags.DEFINE_config_file("config", None, "As for training.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder for profile_step.json.")
_STEPS = flags.DEFINE_integer(
  "steps", 8, "Steps and calls measured for each figure.", lower_bound=2
)
_MEMORY = flags.DEFINE_bool(
  "memory", False, "Also compile the step in other precisions, and so on."
)
# What --memory compiles: the fields of a config that differ.
_VARIANTS = {
  "float32": {"dtype": "float32"},
  "bfloat16": {"dtype": "bfloat16"},
  "float32, remat": {"dtype": "float32", "model.remat": True},
  "bfloat16, remat": {"dtype": "bfloat16", "model.remat": True},
  "float32, 2 parts": {"dtype": "float32", "train.accumulate": 2},
}


class Setup:
  """A config's data set, method and training step, on one device."""

  def __init__(self, config):
    self.config = config
    self.dataset = inputs.open_data(config)
    self.classes = len(self.dataset.classes)
    self.scenes = inputs.split_scenes(self.dataset, config.data.train_split)
    self.schedule = experiment.schedule(config, len(self.scenes))
    self.mesh = Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
    slots = train.scenes_a_part(config, num_devices=1)
    self.layout = inputs.layout(config, slots=slots)
    self.sampler = inputs.sampler(config, slots=slots)
    self.method = experiment.build_method(config, self.classes, self.schedule)
    self.step = parallel.data_parallel(
      self.method.train_step, runner=config.parallel, mesh=self.mesh
    )

  def state(self):
    state = experiment.first_state(
      self.config, self.method, self.layout, self.classes
    )
    return parallel.replicate(state, self.mesh)

  def samples(self, steps: int, *, threads: int):
    """The samples of each of the first steps of a run."""
    config = self.config
    source = inputs.label_source(config, self.dataset)

    def make(name, rng):
      return self.sampler.training(
        self.dataset, name, rng, labels=source, others=self.scenes
      )

    return pipeline.training_steps(
      make,
      self.scenes,
      batch_size=config.train.batch_size,
      positions=[list(range(config.train.batch_size))],
      first_step=0,
      total_steps=steps,
      seed=config.seed,
      threads=threads,
      prefetch=config.data.prefetch,
    )

  def batch(self, shares):
    return train.make_batch(
      shares, self.layout, self.dataset, self.mesh, self.config
    )


def padding(setup: Setup, shares) -> np.ndarray:
  """Rows of a batch that hold a voxel, and all rows, of each pyramid level.

  Returns:
    int [2, levels], of the student's views of all shares.
  """
  view = setup.batch(shares).student
  counts = [s.student.level_counts for share in shares for s in share]
  parts = np.asarray(view.count).size
  return np.stack([np.sum(counts, 0), parts * np.asarray(view.capacities)])


def _median_ms(function, repeats: int) -> float:
  """Of a call, after one that is not counted (it may compile)."""
  jax.block_until_ready(function())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - began)
  return 1000 * statistics.median(times)


def compile_step(setup: Setup, state, batch) -> tuple[dict, dict]:
  """Seconds of making the step's program anew, and its memory in bytes."""
  clocks = [(time.perf_counter(), time.process_time())]

  def lap(value):
    clocks.append((time.perf_counter(), time.process_time()))
    return value

  traced = lap(setup.step.trace(state, batch))
  lowered = lap(traced.lower())
  memory = lap(lowered.compile()).memory_analysis()
  seconds = {}
  for name, (a, b) in zip(
    ("trace", "lower", "compile"), itertools.pairwise(clocks), strict=True
  ):
    seconds[name], seconds[f"{name}_cpu"] = b[0] - a[0], b[1] - a[1]
  sizes = ("temp", "argument", "output", "alias")
  return seconds, {
    name: getattr(memory, f"{name}_size_in_bytes") for name in sizes
  }


def _one_device(function):
  """A program of a function that sums over the device axis, of one device."""
  return jax.jit(
    jax.vmap(function, None, None, axis_name=parallel.AXIS, axis_size=1)
  )


def _plan(method, view):
  net = getattr(method.model, "net_3d", method.model)
  return common.build_plan(view, net)


def branches(method, batch) -> dict:
  """Networks of a method: {name: (method of its model, arguments)}.

  Args:
    method: WSegPC or Segmentation.
    batch: of one device, without the axis of devices.
  """
  view = batch.student
  plan = _plan(method, view)
  if batch.images is None:
    return {"3D": ("__call__", (view.features, plan))}
  return {
    "3D": ("points", (view.features, plan)),
    "2D": ("images", (batch.images.student, batch.images.mask)),
  }


def _forward(method, name, *, train):
  """Outputs of a branch as a function of its variables and arguments."""

  def run(variables, *args):
    return method.model.apply(
      variables,
      *args,
      train=train,
      method=name,
      mutable=["batch_stats"] if train else False,
    )

  return run


def _loss(method, name):
  """A loss that reaches all outputs of a branch, under its checkpoints."""
  forward = _forward(method, name, train=True)

  def loss(params, stats, *args):
    with remat.blocks_recomputed(method.remat):
      outputs, new = forward({"params": params, "batch_stats": stats}, *args)
    return sum(jnp.square(x).mean(dtype=jnp.float32) for x in outputs), new

  return loss


def kept_bytes(setup: Setup, state, batch) -> int:
  """What the student's networks keep of a part for their backward passes.

  By tracing alone: parameters and plans count as well, and a compiler keeps
  less where computing again is cheap.
  """
  method = setup.method
  axes = 1 + (setup.config.train.accumulate > 1)
  part = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape[axes:], a.dtype), batch
  )

  def backward(params, stats, part):
    return [
      jax.vjp(
        lambda params, name=name, args=args: _loss(method, name)(
          params, stats, *args
        ),
        params,
        has_aux=True,
      )[1]
      for name, args in branches(method, part).values()
    ]

  kept = jax.eval_shape(
    _one_device(backward), state.params, state.batch_stats, part
  )
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(kept))


def step_parts(setup: Setup, state, batch, *, repeats: int) -> dict[str, float]:
  """Milliseconds of the parts of a step on the device.

  Args:
    setup: with one part a batch.
    state: is not consumed.
    batch: of one device.
    repeats: calls of each program.
  """
  method, times = setup.method, {}
  batch = jax.tree.map(lambda a: jnp.asarray(a[0]), jax.device_get(batch))
  state = jax.tree.map(jnp.asarray, jax.device_get(state))

  def measure(name, function, *args):
    program = _one_device(function)
    times[name] = _median_ms(lambda: program(*args), repeats)

  def plan_of(view):
    return _plan(method, view)

  measure("plan, student", plan_of, batch.student)
  student = {"params": state.params, "batch_stats": state.batch_stats}
  for name, (called, args) in branches(method, batch).items():
    forward, backward = (f"student {name}, {x}ward" for x in ("for", "back"))
    measure(forward, _forward(method, called, train=True), student, *args)
    gradient = jax.grad(_loss(method, called), has_aux=True)
    measure(backward, gradient, *student.values(), *args)
    times[backward] -= times[forward]
  if batch.teacher is not None and method.weights.has_rpc:
    measure("plan, teacher", plan_of, batch.teacher)
    view = batch.replace(
      student=batch.teacher,
      images=batch.images.replace(student=batch.images.teacher),
    )
    teacher = {"params": state.ema_params, "batch_stats": state.ema_batch_stats}
    for name, (called, args) in branches(method, view).items():
      run = _forward(method, called, train=False)
      measure(f"teacher {name}, forward", run, teacher, *args)
  update = functools.partial(common.apply_gradients, method.optimizer)
  measure("optimiser", update, state, state.params, state.batch_stats)
  if state.ema_params is not None:
    keep = method.ema_keep
    measure("moving average", lambda s: common.update_teacher(s, keep), state)
  return times


def whole_step(setup: Setup, state, batch, *, repeats: int):
  """The state after, and the milliseconds of, a step on one batch."""

  def step():
    nonlocal state
    state, metrics = setup.step(state, batch)
    return metrics

  ms = _median_ms(step, repeats)
  return state, ms


def host_parts(setup: Setup, repeats: int) -> dict[str, float]:
  """Milliseconds of making one batch in one thread."""
  made = setup.samples(repeats + 1, threads=0)
  shares = next(made)
  times = {"samples": [], "voxelise (of samples)": [], "pad and send": []}
  voxelise = setup.sampler.voxelize

  def clock(name, function):
    began = time.perf_counter()
    value = jax.block_until_ready(function())
    times[name].append(1000 * (time.perf_counter() - began))
    return value

  for shares in made:
    clock("pad and send", lambda shares=shares: setup.batch(shares))
  times["samples"] = []
  made = setup.samples(repeats + 1, threads=0)
  for _ in range(repeats + 1):
    clock("samples", lambda: next(made))
  scenes = [setup.dataset.load_scene(s.name) for share in shares for s in share]
  views = 1 + (setup.config.method == "wsegpc")
  for _ in range(repeats):
    clock(
      "voxelise (of samples)",
      lambda: [voxelise(s.coord) for s in scenes for _ in range(views)] and 0,
    )
  return {name: statistics.median(values) for name, values in times.items()}


def overlap(setup: Setup, state, steps: int) -> dict[str, float]:
  """A step with its loader, and the same steps on batches that lie ready.

  Returns:
    "cached_ms" and "loaded_ms", medians of interleaved rounds, and "ratio".
  """
  ahead = max(setup.config.data.prefetch, 1)
  number, threads = steps + ahead, max(setup.config.data.threads, 1)
  cached = [setup.batch(s) for s in setup.samples(number, threads=threads)]
  for batch in cached:  # compiles what there is to compile
    state, metrics = setup.step(state, batch)
  jax.block_until_ready(metrics)
  times = {"cached_ms": [], "loaded_ms": []}
  for _ in range(3):
    loader = setup.samples(number, threads=threads)
    # What was made ahead of the first step is no part of the steady state.
    for _ in range(ahead):
      state, metrics = setup.step(state, setup.batch(next(loader)))
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for shares in loader:
      state, metrics = setup.step(state, setup.batch(shares))
    jax.block_until_ready(metrics)
    middle = time.perf_counter()
    for batch in cached[ahead:]:
      state, metrics = setup.step(state, batch)
    jax.block_until_ready(metrics)
    times["cached_ms"].append(1000 * (time.perf_counter() - middle) / steps)
    times["loaded_ms"].append(1000 * (middle - began) / steps)
  ratios = [
    b / a for a, b in zip(times["cached_ms"], times["loaded_ms"], strict=True)
  ]
  return {
    **{name: statistics.median(values) for name, values in times.items()},
    "ratio": statistics.median(ratios),
  }


def padding_of_an_epoch(setup: Setup) -> dict[str, float]:
  """Shares of rows without a voxel, and how many batches have how many rows.

  Returns:
    "share" of the finest level, "levels": of every one, "steps",
    "batches_by_rows" of the finest level.
  """
  rows, buckets = 0, collections.Counter()
  steps = setup.schedule.steps_per_epoch
  threads = max(setup.config.data.threads, 1)
  for shares in setup.samples(steps, threads=threads):
    batch_rows = padding(setup, shares)
    rows = rows + batch_rows
    buckets[int(batch_rows[1, 0])] += 1
  levels = [float(1 - held / room) for held, room in rows.T]
  return {
    "share": levels[0],
    "levels": levels,
    "steps": steps,
    "batches_by_rows": dict(sorted(buckets.items())),
  }


def memory_of_variants(config, shares) -> dict[str, dict[str, int]]:
  """Bytes of the step's program for each of `_VARIANTS`; nothing is run."""
  out = {}
  for name, changes in _VARIANTS.items():
    variant = config.copy_and_resolve_references()
    variant.update_from_flattened_dict(changes)
    if variant.train.accumulate > variant.train.batch_size:
      continue
    setup = Setup(variant)
    state, batch = setup.state(), setup.batch(shares)
    _, out[name] = compile_step(setup, state, batch)
    out[name]["kept"] = kept_bytes(setup, state, batch)
  return out


def measure(config, *, steps: int, memory: bool) -> dict:
  """All figures of a config; see the module.

  Args:
    config: of method "wsegpc" or "segmentation".
    steps: calls and steps of each figure.
    memory: also compile `_VARIANTS`.
  """
  setup = Setup(config)
  state = setup.state()
  shares = next(setup.samples(1, threads=0))
  batch = setup.batch(shares)
  held, room = padding(setup, shares)
  result = {
    "device": jax.devices()[0].device_kind,
    "voxels": int(held[0]),
    "rows": int(room[0]),
  }
  result["compile_seconds"], result["memory"] = compile_step(
    setup, state, batch
  )
  result["host_ms"] = host_parts(setup, steps)
  result["memory"]["kept"] = kept_bytes(setup, state, batch)
  if config.train.accumulate == 1:
    result["parts_ms"] = step_parts(setup, state, batch, repeats=steps)
  state, result["step_ms"] = whole_step(setup, state, batch, repeats=steps)
  result["steps"] = overlap(setup, state, steps)
  result["padding"] = padding_of_an_epoch(setup)
  if memory:
    result["memory_of"] = memory_of_variants(config, shares)
  return result


def print_table(result: dict) -> None:
  """The figures for people."""
  whole = result["step_ms"]
  print(
    f"{result['voxels']} voxels in {result['rows']} rows, {result['device']}"
  )
  rows = [(name, ms) for name, ms in result.get("parts_ms", {}).items()]
  if rows:
    rows.append(("losses and the rest", whole - sum(ms for _, ms in rows)))
  rows.append(("whole step", whole))
  for name, ms in rows:
    print(f"  {name:<28}{ms:10.1f} ms{100 * ms / whole:7.1f} %")
  print(
    "steps of several batches: {cached_ms:.1f} ms with batches that lie ready,"
    " {loaded_ms:.1f} ms with their loader, {ratio:.3f} times as"
    " long".format(**result["steps"])
  )
  print("a batch in one thread:")
  for name, ms in result["host_ms"].items():
    print(f"  {name:<28}{ms:10.1f} ms{100 * ms / whole:7.1f} %")
  shares = ", ".join(f"{100 * x:.1f}" for x in result["padding"]["levels"])
  print(f"padding of an epoch, % of the rows of each level: {shares}")
  seconds = result["compile_seconds"]
  for name in ("trace", "lower", "compile"):
    print(
      f"{name}: {seconds[name]:.1f} s ({seconds[f'{name}_cpu']:.1f} s of CPU)"
    )
  for name, sizes in {
    "this config": result["memory"],
    **result.get("memory_of", {}),
  }.items():
    text = ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in sizes.items())
    print(f"memory of the step, {name}: {text}")


def _parse(argv):
  return command_line.parse(argv, _CONFIG, required=["config"])


def main(argv):
  del argv
  config = _CONFIG.value
  config_checks.check_config(config)
  if config.method == "clustering":
    raise DataError(
      "config.method='clustering'; expected 'wsegpc' or 'segmentation'"
    )
  # Each program is compiled here and now, or its time would say nothing.
  jax.config.update("jax_enable_compilation_cache", False)
  result = measure(config, steps=_STEPS.value, memory=_MEMORY.value)
  print_table(result)
  print(json.dumps(result))
  if _WORKDIR.value:
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    writers.write_json(folder / "profile_step.json", result)


if __name__ == "__main__":
  try:
    app.run(main, flags_parser=_parse)
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
