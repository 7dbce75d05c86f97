"""Program of test_parallel: sharded steps against the concatenated batch.

    python parallel_equality.py {float32|float64}

Four emulated devices with uneven shares, one of them empty, run two steps of
stage 2 under every runner; one device runs them on all scenes at once. Prints
the largest difference of each runner as JSON.
"""

import json
import os
import sys
import time

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax
import numpy as np

jax.config.update("jax_enable_x64", sys.argv[1] == "float64")

from wsegpc_jax import parallel
from wsegpc_jax.data import batching, box_rooms, samples
from wsegpc_jax.methods import common
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models import minkunet
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.two_branch import TwoBranchNet

IMAGE = (24, 32)
SHARES = ((0, 1), (2,), (), (3, 4))
SETTINGS = samples.SampleSettings(
  voxel_size=0.2, num_views=2, image_size=IMAGE, num_pairs=64
)


class _Rooms:
  """Stands in for a data set on disk."""

  classes = box_rooms.CLASSES


def make_samples() -> list[samples.Sample]:
  out = []
  for index in range(5):
    scene, frames = box_rooms.make_room(0, index, image_size=IMAGE, views=2)
    if index == 1:  # uneven, beyond what the rooms are by themselves
      near = scene.coord[:, 0] < 0.5 * scene.coord[:, 0].max()
      scene = samples_take(scene, near)
    out.append(sample_of(scene, tuple(frames), index))
  return out


def samples_take(scene, keep):
  from wsegpc_jax.data import parts

  return parts.take(scene, np.flatnonzero(keep))


def sample_of(scene, frames, index):
  rng = np.random.default_rng(index)
  original = samples.assets.load_scene, samples.load_views
  samples.assets.load_scene = lambda *a: scene
  samples.load_views = lambda *a: frames
  try:
    return samples.training_sample(_Rooms, scene.name, rng, SETTINGS)
  finally:
    samples.assets.load_scene, samples.load_views = original


def make_method(dtype) -> WSegPC:
  # One block a stage at the ends only: every kind of layer, little to compile.
  minkunet.ARCHITECTURES["test"] = (
    (1, 0, 0, 0, 0, 0, 0, 1),
    minkunet.ARCHITECTURES["14A"][1],
    1,
  )
  k = len(box_rooms.CLASSES)
  shared = dict(num_classes=k, axis_name=parallel.AXIS, dtype=dtype)
  net_3d = minkunet.MinkUNet(arch="test", width=4, **shared)
  net_2d = DilatedResNet(depth=18, width=4, **shared)
  weights = LossWeights(cam_warmup=1, cmg_warmup=1, rpc_warmup=1)
  return WSegPC(
    TwoBranchNet(net_3d, net_2d, 32, 12),
    common.sgd(0.1, 10),
    weights,
    ema_keep=0.5,
  )


def make_batch(shares, every, slots):
  layout = batching.Layout(
    (6000,) if slots > 2 else (2400,), slots, 2, IMAGE, SETTINGS.num_pairs
  )
  batches = [
    batching.collate(
      [every[i] for i in share],
      layout,
      0,
      num_classes=len(box_rooms.CLASSES),
      teacher=True,
    )
    for share in shares
  ]
  return batching.stack(batches)


def main():
  dtype = np.dtype(sys.argv[1])
  every = make_samples()
  sharded = make_batch(SHARES, every, slots=2)
  whole = make_batch((sum(SHARES, ()),), every, slots=5)
  method = make_method(dtype)

  def first_state():
    state = method.init(0, jax.tree.map(lambda a: a[0], whole))
    return jax.tree.map(
      lambda a: a.astype(dtype) if a.dtype.kind == "f" else a,
      jax.device_get(state),
    )

  def two_steps(runner, batch, devices):
    mesh = jax.sharding.Mesh(devices, (parallel.AXIS,))
    step = parallel.data_parallel(method.train_step, runner=runner, mesh=mesh)
    state = first_state()
    if runner == "shard_map":
      state = parallel.replicate(state, mesh)
    batch = parallel.to_devices(batch, mesh, runner=runner)
    began = time.process_time()
    for _ in range(2):
      state, metrics = step(state, batch)
    jax.block_until_ready(state)
    took = time.process_time() - began
    print(f"{runner}: {took:.0f} s of processor time", file=sys.stderr)
    return jax.device_get((state, metrics))

  devices = np.asarray(jax.devices())
  expected = two_steps("shard_map", whole, devices[:1])
  started = first_state()
  moved = max(
    float(np.abs(a - b).max())
    for a, b in zip(
      jax.tree.leaves(expected[0].params),
      jax.tree.leaves(started.params),
      strict=True,
    )
  )
  result = {"moved": moved, "counted": int(expected[0].selected_3d.sum())}
  result["voxels"] = sharded.student.count.tolist()
  for runner in parallel.RUNNERS:
    actual = two_steps(runner, sharded, devices)
    worst = {}
    for name in ("params", "batch_stats", "ema_params", "ema_batch_stats"):
      worst[name] = _difference(
        getattr(actual[0], name), getattr(expected[0], name)
      )
    worst["metrics"] = _difference(actual[1], expected[1])
    for name in ("selected_3d", "selected_2d"):
      a, b = getattr(actual[0], name), getattr(expected[0], name)
      worst[name] = int(np.abs(a - b).max())
    result[runner] = worst
  print(json.dumps(result))


def _difference(a, b) -> float:
  """Largest difference relative to the largest entry of the array."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(
    float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in pairs
  )


if __name__ == "__main__":
  main()
