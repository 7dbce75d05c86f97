"""A whole run traces at most one program a bucket, in training and scoring."""

import collections
import subprocess
import sys

import program_runs
import pytest

from wsegpc_jax import defaults, train
from wsegpc_jax.data import batching
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.models import minkunet

# One block at each end: enough to count, little to compile.
_ARCH = ((1, 0, 0, 0, 0, 0, 0, 1), minkunet.ARCHITECTURES["14A"][1], 1)


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setitem(minkunet.ARCHITECTURES, "test", _ARCH)
  config = defaults.get_tiny()
  config.method = "segmentation"
  config.model.arch, config.model.width = "test", 4
  config.eval.weights = "student"
  config.data.root = str(tmp_path / "rooms")
  config.data.box_rooms.train, config.data.box_rooms.val = 6, 3
  config.data.voxel_size = 0.15
  config.data.smallest_bucket, config.data.largest_bucket = 1500, 6000
  config.train.batch_size = 2
  config.train.total_steps, config.train.eval_every = 10, 5
  return config.lock()


def test_programs_are_at_most_as_many_as_buckets(config, tmp_path, monkeypatch):
  traces, used = collections.Counter(), collections.defaultdict(set)
  for name, place in (("train_step", 2), ("predict", 2)):
    original = getattr(Segmentation, name)

    def counted(*args, name=name, place=place, original=original, **kwargs):
      traces[name, args[place].student.capacities] += 1
      return original(*args, **kwargs)

    monkeypatch.setattr(Segmentation, name, counted)
  choose = batching.choose_bucket

  def chosen(samples, layout):
    bucket = choose(samples, layout)
    kind = "train_step" if samples[0].inverse is None else "predict"
    used[kind].add(layout.capacities(bucket).levels)
    return bucket

  monkeypatch.setattr(batching, "choose_bucket", chosen)
  train.train(config, str(tmp_path / "run"))

  for kind, buckets in used.items():
    traced = {levels for name, levels in traces if name == kind}
    assert traced == buckets, kind
    assert len(buckets) > 1, f"{kind}: one bucket proves nothing"
  assert set(traces.values()) == {1}, traces


# Stands in for the training program, which would compile for a while.
_PROGRAM = """
import jax
from absl import app
from wsegpc_jax import main, train
train.train = lambda *args, **kwargs: print(jax.config.jax_compilation_cache_dir)
app.run(main.main, flags_parser=main._parse)
"""


def test_compiled_programs_are_kept_in_the_working_directory(tmp_path):
  env = program_runs.environment()
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  flags = program_runs.command(
    f"{program_runs.CONFIGS}/tiny_seg.py", tmp_path / "run"
  )[3:]
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, *flags],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(tmp_path / "run" / "compiled")
