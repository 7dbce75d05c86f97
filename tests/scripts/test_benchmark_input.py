"""Measuring the input: the shares add up, and nothing is left patched."""

import pytest
import script_modules

from wsegpc_jax import defaults
from wsegpc_jax.data import samples

script = script_modules.load("benchmark_input")


@pytest.mark.parametrize("cache", [False, True])
def test_shares_of_a_sample(tmp_path, cache):
  config = defaults.get_tiny("smoke")
  config.data.root = str(tmp_path / "rooms")
  config.data.cache = str(tmp_path / "cache") if cache else ""
  before = samples.drop_structures
  result = script.measure(config.lock(), scenes=3, threads=[1, 2])
  assert samples.drop_structures is before
  assert set(result["scenes_per_second"]) == {1, 2}
  assert min(result["scenes_per_second"].values()) > 0
  expected = {"read points", "read images", "voxelise", "link", "pad", "other"}
  assert expected <= set(result["stages"])
  # Stages do not overlap: what no stage explains is not negative.
  assert all(seconds >= 0 for seconds in result["stages"].values())
  assert result["voxels"] > 500
