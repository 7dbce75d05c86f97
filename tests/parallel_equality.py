# ruff: noqa: E402 - devices and precision are set before jax is used
"""Program of test_parallel: sharded steps against the concatenated batch.

    python parallel_equality.py {float32|float64} RUNNER...

Four emulated devices with uneven shares, one of them empty, run two steps of
stage 2 under each runner; one device runs them on all scenes at once. Prints
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

from parallel_equality_parts import (
  SHARES,
  make_batch,
  make_method,
  make_samples,
)

from wsegpc_jax import parallel


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
  for runner in sys.argv[2:]:
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
