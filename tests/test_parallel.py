"""Sharded training equals training on the concatenated batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wsegpc_jax import parallel

_PROGRAM = Path(__file__).parent / "parallel_equality.py"


# vmap is the oracle, not for use: compared in double precision only.
@pytest.mark.parametrize(
  "dtype, tolerance, runners",
  [
    ("float32", 1e-4, ("pmap", "shard_map")),
    ("float64", 1e-9, parallel.RUNNERS),
  ],
)
def test_uneven_shares_equal_the_concatenated_batch(dtype, tolerance, runners):
  done = subprocess.run(
    [sys.executable, str(_PROGRAM), dtype, *runners],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  result = json.loads(done.stdout)

  # The comparison means something: shares differ, one is empty, training
  # moved the parameters and pseudo-labels were counted.
  assert len(set(result["voxels"])) == 4 and 0 in result["voxels"]
  assert result["moved"] > 1e-3
  assert result["counted"] > 0
  for runner in runners:
    assert result[runner].pop("selected_3d") == 0, runner
    assert result[runner].pop("selected_2d") == 0, runner
    worst = max(result[runner].values())
    assert worst < tolerance, f"{runner}: {result[runner]}"


def test_an_unknown_runner_is_refused():
  with pytest.raises(ValueError, match="runner='pjit'.*pmap, shard_map, vmap"):
    parallel.data_parallel(lambda *a: a, runner="pjit")
