"""One thread and several give the same results, but for rounding."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from wsegpc_jax.sparse import conv, morton, plan

CAPACITIES = (5000, 4500)  # large enough for pairs


def results() -> list[np.ndarray]:
  """Values and gradients of the convolutions between two levels."""
  rng = np.random.default_rng(0)
  cells = rng.choice(24**3, CAPACITIES[0] - 100, replace=False)
  voxels = np.stack([0 * cells, *np.unravel_index(cells, (24,) * 3)], 1)
  voxels = voxels[morton.morton_order(voxels)].astype(np.int32)
  padded = np.pad(voxels, ((0, 100), (0, 0)), constant_values=-1)
  shapes = (CAPACITIES[0], 32), (27, 32, 32), (8, 32, 32), (8, 32, 32)
  operands = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  cotangent = rng.normal(size=shapes[0]).astype(np.float32)

  @jax.jit
  def run(coords, count, operands, cotangent):
    levels = plan.build_plan(coords, count, CAPACITIES).levels

    def network(x, weight, down, up):
      y = conv.submanifold_conv(x, weight, levels[0])
      y = conv.strided_conv(y, down, levels[0])
      return x + conv.transposed_conv(y, up, levels[0])

    out, pull = jax.vjp(network, *operands)
    return out, *pull(cotangent)

  out = run(padded, len(voxels), operands, cotangent)
  return [np.asarray(a) for a in out]


def test_the_number_of_threads_changes_rounding_only(tmp_path):
  if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("the machine has one core")
  path = tmp_path / "one.npz"
  done = subprocess.run(
    [sys.executable, __file__, str(path)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  with np.load(path) as file:
    one = list(file.values())
  several = results()
  assert len(one) == len(several) == 5
  for a, b in zip(one, several, strict=True):
    assert np.abs(a).max() > 0
    assert np.abs(a - b).max() <= 2e-6 * np.abs(b).max()


if __name__ == "__main__":
  # Before the first use of the device, which counts the cores then.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  np.savez(sys.argv[1], *results())
