"""Measures how fast training samples are made, and what takes the time.

    python scripts/benchmark_input.py --config=configs/tiny_rpc.py

For the data set and settings of a config: scenes a second with 1, 2, ...
threads, and the share of each stage of a sample in one thread. With
`--config.data.cache=FOLDER` the second pass shows what a cache brings.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from wsegpc_jax import command_line, config_checks, inputs
from wsegpc_jax.data import (
  augment,
  batching,
  image_augment,
  links,
  pipeline,
  samples,
)
from wsegpc_jax.sparse import voxelize
from wsegpc_jax.types import DataError

_CONFIG = config_flags.DEFINE_config_file("config", None, "As for training.")
_SCENES = flags.DEFINE_integer(
  "scenes", 24, "Samples made for each figure.", lower_bound=1
)
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")

# Stage: the functions of a sample that belong to it.
_STAGES = {
  "crop, drop": (
    (samples, "crop_nearest_half"),
    (samples, "drop_structures"),
  ),
  "augment points": (
    (augment, "teacher_view"),
    (augment, "student_view"),
    (augment, "view_colors"),
  ),
  "augment images": ((image_augment, "color_jitter"),),
  "voxelise": ((voxelize, "voxelize"),),
  "link": ((links, "link_points"), (links, "draw_pairs")),
}


class _Clock:
  """Seconds spent in each stage; stages do not nest."""

  def __init__(self):
    self.seconds = {}

  def wrap(self, stage, function):
    def timed(*args, **kwargs):
      began = time.perf_counter()
      try:
        return function(*args, **kwargs)
      finally:
        spent = time.perf_counter() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    return timed


@contextlib.contextmanager
def _timed_stages(clock, dataset):
  """The functions of a sample, each with a clock around it."""
  places = [
    (module, name, stage)
    for stage, functions in _STAGES.items()
    for module, name in functions
  ]
  kind = type(dataset)
  places += [(kind, "load_scene", "read points")]
  places += [(kind, "load_frame", "read images")]
  originals = [getattr(where, name) for where, name, _ in places]
  for (where, name, stage), original in zip(places, originals, strict=True):
    setattr(where, name, clock.wrap(stage, original))
  try:
    yield
  finally:
    for (where, name, _), original in zip(places, originals, strict=True):
      setattr(where, name, original)


def measure(config, *, scenes: int, threads: list[int]) -> dict:
  """Scenes a second by number of threads, and shares of the stages.

  Args:
    config: as for training.
    scenes: samples made for each figure.
    threads: numbers of threads to try.

  Returns:
    "scenes_per_second": {threads: float}, "stages": {stage: seconds a scene}
    in one thread, "voxels" and "points": means of a scene.
  """
  dataset = inputs.open_data(config)
  names = inputs.split_scenes(dataset, config.data.train_split)
  sampler = inputs.sampler(config)
  layout = inputs.layout(config, slots=1)
  source = inputs.label_source(config, dataset)

  def make(name, rng):
    return sampler.training(dataset, name, rng, labels=source, others=names)

  def passes(number):
    steps = pipeline.training_steps(
      make,
      names,
      batch_size=1,
      positions=[[0]],
      first_step=0,
      total_steps=scenes,
      seed=config.seed,
      threads=number,
      prefetch=2 * number,
    )
    began = time.perf_counter()
    number_made = sum(1 for _ in steps)
    return number_made / (time.perf_counter() - began)

  # A first pass fills the page cache, and the cache of decoded scenes.
  for name in names[:scenes]:
    make(name, np.random.default_rng(0))
  clock, collating, voxels = _Clock(), 0.0, []
  began = time.perf_counter()
  with _timed_stages(clock, dataset):
    for i in range(scenes):
      sample = make(names[i % len(names)], np.random.default_rng(i))
      voxels.append(len(sample.student.coords))
      start = time.perf_counter()
      batching.collate(
        [sample],
        layout,
        batching.choose_bucket([sample], layout),
        num_classes=len(dataset.classes),
        teacher=config.method == "wsegpc",
      )
      collating += time.perf_counter() - start
  total = time.perf_counter() - began
  stages = {**clock.seconds, "pad": collating}
  stages["other"] = total - sum(stages.values())
  return {
    "scenes_per_second": {n: passes(n) for n in threads},
    "stages": {k: v / scenes for k, v in stages.items()},
    "voxels": float(np.mean(voxels)),
    "cores": os.cpu_count(),
  }


def _parse(argv):
  return command_line.parse(argv, _CONFIG, required=["config"])


def main(argv):
  del argv
  config = _CONFIG.value
  config_checks.check_config(config)
  threads = [int(n) for n in _THREADS.value if n.isdecimal()]
  if len(threads) < len(_THREADS.value) or not threads or min(threads) < 1:
    raise DataError(
      f"--threads={','.join(_THREADS.value)}: expected numbers from 1"
    )
  result = measure(config, scenes=_SCENES.value, threads=threads)
  total = sum(result["stages"].values())
  print(f"{result['voxels']:.0f} voxels a scene, {1000 * total:.0f} ms:")
  ordered = sorted(result["stages"].items(), key=lambda item: -item[1])
  for stage, seconds in ordered:
    print(
      f"  {stage:<16}{1000 * seconds:8.1f} ms {100 * seconds / total:5.1f} %"
    )
  print(f"the bottleneck is: {ordered[0][0]}")
  for number, rate in result["scenes_per_second"].items():
    print(f"{number} thread(s): {rate:.2f} scenes/s")
  if _OUTPUT.value:
    with open(_OUTPUT.value, "w", encoding="utf-8") as file:
      json.dump(result, file, indent=1)


if __name__ == "__main__":
  try:
    app.run(main, flags_parser=_parse)
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
