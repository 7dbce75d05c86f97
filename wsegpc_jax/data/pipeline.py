"""The training input: an endless, exactly resumable sequence of samples.

The sample at position i is a pure function of (seed, i): an epoch is a
shuffled pass, and each position has a random generator of its own. So the
state of the iterator is the number of steps done.
"""

from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from wsegpc_jax.data.samples import Sample


def steps_per_epoch(num_scenes: int, *, loop: int, batch_size: int) -> int:
  """Steps in which an epoch passes `loop` times over the scenes."""
  return max(1, num_scenes * loop // batch_size)


def device_positions(
  batch_size: int, *, num_devices: int, devices: Sequence[int]
) -> list[list[int]]:
  """Positions within a global batch of some devices (scenes in a row)."""
  slots = -(-batch_size // num_devices)
  return [
    list(range(min(d * slots, batch_size), min((d + 1) * slots, batch_size)))
    for d in devices
  ]


def training_steps(
  make_sample: Callable[[str, np.random.Generator], Sample],
  scenes: Sequence[str],
  *,
  batch_size: int,
  positions: Sequence[Sequence[int]],
  first_step: int,
  total_steps: int,
  seed: int,
  threads: int = 2,
  prefetch: int = 2,
) -> Iterator[list[list[Sample]]]:
  """Yields, for each step, the samples of each device of this process.

  Args:
    make_sample: (scene, rng) -> Sample.
    scenes: of the training split.
    batch_size: scenes of a global batch.
    positions: of each device of this process, see `device_positions`.
    first_step: steps done already.
    total_steps: steps of the whole run.
    seed: of order and augmentation.
    threads: that make samples; 0 = in the caller's thread.
    prefetch: steps made ahead.
  """
  samples = (
    grain.MapDataset.source(list(scenes))
    .seed(seed)
    .shuffle()
    .repeat()
    .random_map(make_sample)
  )

  def one_step(step):
    return [[samples[step * batch_size + p] for p in own] for own in positions]

  steps = grain.MapDataset.range(first_step, total_steps).map(one_step)
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=prefetch if threads else 0
  )
  return iter(steps.to_iter_dataset(options))
