"""Measuring the input: the shares add up, and nothing is left patched."""

import importlib.util
from pathlib import Path

import pytest

from wsegpc_jax import defaults
from wsegpc_jax.data import samples

_SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_input.py"


@pytest.fixture(scope="module")
def script():
  spec = importlib.util.spec_from_file_location("benchmark_input", _SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("cache", [False, True])
def test_shares_of_a_sample(script, tmp_path, cache):
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
