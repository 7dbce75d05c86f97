"""Profiling a step: padding by brute force, and every figure is there."""

import numpy as np
import pytest
import script_modules

from wsegpc_jax import defaults
from wsegpc_jax.models import minkunet

script = script_modules.load("profile_step")
# No blocks between the levels: enough to run, little to compile.
_ARCH = ((0,) * 8, minkunet.ARCHITECTURES["14A"][1], 1)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setitem(minkunet.ARCHITECTURES, "test", _ARCH)
  config = defaults.get_tiny("smoke")
  config.method = "segmentation"
  config.model.arch, config.model.width = "test", 4
  config.data.root = str(tmp_path / "rooms")
  config.data.voxel_size = 0.2
  config.data.smallest_bucket, config.data.largest_bucket = 800, 4000
  config.data.bucket_ratio = 1.2
  config.train.batch_size, config.train.loop = 3, 6
  return config


@pytest.mark.parametrize("parts", [1, 2])
def test_padding_is_what_the_batches_hold(config, parts):
  config.train.accumulate = parts
  setup = script.Setup(config)
  voxels, rows = np.zeros(5, int), 0
  for shares in setup.samples(setup.schedule.steps_per_epoch, threads=0):
    coords = np.asarray(setup.batch(shares).student.coords)
    rows += coords[..., 0].size
    for part in coords.reshape(-1, *coords.shape[-2:]):
      part = part[part[:, 0] >= 0]
      for level in range(5):
        voxels[level] += len(np.unique(part >> [0, *[level] * 3], axis=0))
  result = script.padding_of_an_epoch(setup)
  assert result["share"] == pytest.approx(1 - voxels[0] / rows)
  assert 0 < result["share"] < 0.5
  # The coarser levels of a bucket are the finest one's by ratios, rounded up.
  room = rows * np.array(setup.layout.level_ratios)
  np.testing.assert_allclose(result["levels"], 1 - voxels / room, atol=0.02)
  batches = result["batches_by_rows"]
  assert sum(batches.values()) == result["steps"] == 8
  assert sum(n * k for n, k in batches.items()) == rows
  assert len(batches) > 1


def test_all_figures_are_there(config, capsys):
  config.data.bucket_ratio = 5.0  # one program
  config.data.smallest_bucket = 4000
  result = script.measure(config.lock(), steps=2, memory=False)
  assert set(result["steps"]) == {"cached_ms", "loaded_ms", "ratio"}
  assert min(result["steps"].values()) > 0
  assert min(result["compile_seconds"].values()) >= 0
  # The state is updated in place: it is not needed twice.
  memory = result["memory"]
  assert 0 < memory["alias"] <= memory["output"] <= memory["argument"]
  script.print_table(result)
  assert "batches that lie ready" in capsys.readouterr().out
