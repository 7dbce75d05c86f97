"""The training input: resumable, the same on any number of devices."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.data import pipeline
from wsegpc_jax.types import DataError

SCENES = tuple(f"scene{i}" for i in range(7))
BATCH, STEPS = 3, 14  # 42 samples: six epochs, which steps do not divide


def make_sample(scene, rng):
  """Stands in for a sample: what it is made of."""
  return scene, int(rng.integers(2**60))


def make_steps(
  *, devices=1, own=None, first=0, total=STEPS, seed=5, sample=make_sample, **kw
):
  positions = pipeline.device_positions(
    BATCH,
    num_devices=devices,
    devices=range(devices) if own is None else own,
  )
  return list(
    pipeline.training_steps(
      sample,
      SCENES,
      batch_size=BATCH,
      positions=positions,
      first_step=first,
      total_steps=total,
      seed=seed,
      **kw,
    )
  )


@pytest.fixture(scope="module")
def whole():
  """Steps of one device, made one after the other."""
  return make_steps(threads=0)


def flat(steps):
  return [s for step in steps for share in step for s in share]


@pytest.mark.parametrize("first", [0, 1, 5, STEPS - 1, STEPS])
def test_a_resumed_run_goes_on(whole, first):
  assert make_steps(first=first, threads=0) == whole[first:]


def test_threads_do_not_matter(whole):
  assert make_steps(threads=3, prefetch=4) == whole
  assert make_steps(threads=2, prefetch=2, first=6) == whole[6:]


def test_a_longer_run_starts_alike(whole):
  assert make_steps(total=STEPS + 9, threads=0)[:STEPS] == whole


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_devices_share_the_global_batch(whole, devices):
  sharded = make_steps(devices=devices, threads=0)
  for step, shares in zip(whole, sharded, strict=True):
    assert len(shares) == devices
    assert [s for share in shares for s in share] == step[0]


def test_processes_share_the_global_batch(whole):
  """Each process makes the samples of its own devices only."""
  made = []

  def counting(scene, rng):
    made.append(scene)
    return make_sample(scene, rng)

  first = make_steps(devices=3, own=[0], threads=0)
  others = make_steps(devices=3, own=[1, 2], sample=counting, threads=0)
  assert len(made) == 2 * STEPS
  for step, a, b in zip(whole, first, others, strict=True):
    assert flat([a]) + flat([b]) == step[0]


def test_every_epoch_visits_every_scene_once(whole):
  names = [scene for scene, _ in flat(whole)]
  epochs = [names[i : i + 7] for i in range(0, len(names), 7)]
  assert len(epochs) == 6
  for epoch in epochs:
    assert sorted(epoch) == sorted(SCENES)
  # Shuffled anew.
  assert len({tuple(epoch) for epoch in epochs}) == 6


def test_every_visit_is_augmented_anew(whole):
  draws = Counter(draw for _, draw in flat(whole))
  assert len(draws) == BATCH * STEPS


def test_another_seed_is_another_run(whole):
  other = make_steps(seed=6, threads=0)
  assert [s for s, _ in flat(other)] != [s for s, _ in flat(whole)]
  assert not {d for _, d in flat(other)} & {d for _, d in flat(whole)}


@pytest.mark.parametrize("threads", [0, 2])
def test_a_fault_in_the_data_is_raised_as_such(threads):
  def faulty(scene, rng):
    raise DataError("scene3: label has shape (4,), expected (5,)")

  with pytest.raises(DataError, match="scene3: label"):
    make_steps(sample=faulty, threads=threads)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_device_positions(batch_size, num_devices):
  every = pipeline.device_positions(
    batch_size, num_devices=num_devices, devices=range(num_devices)
  )
  assert len(every) == num_devices
  assert [p for share in every for p in share] == list(range(batch_size))
  slots = -(-batch_size // num_devices)
  assert max(map(len, every)) == slots
  own = [d for d in range(num_devices) if d % 2]
  assert pipeline.device_positions(
    batch_size, num_devices=num_devices, devices=own
  ) == [every[d] for d in own]


@pytest.mark.parametrize(
  ("scenes", "loop", "batch_size", "expected"),
  [(1201, 4, 4, 1201), (204, 16, 4, 816), (10, 4, 3, 13), (1, 1, 8, 1)],
)
def test_steps_per_epoch(scenes, loop, batch_size, expected):
  assert expected == pipeline.steps_per_epoch(
    scenes, loop=loop, batch_size=batch_size
  )


def test_samples_get_a_generator_of_numpy():
  def sample(scene, rng):
    assert isinstance(rng, np.random.Generator)
    return scene, 0

  make_steps(sample=sample, total=1, threads=0)
