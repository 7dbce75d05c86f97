"""The engine's benchmark around what it times."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import script_modules

script = script_modules.load("benchmark")


def test_a_room_is_a_surface_in_morton_order():
  from wsegpc_jax.sparse import checks, host_plan

  voxels = script.room(3000, 0.02)
  assert abs(len(voxels) - 3000) < 150
  rows = np.pad(voxels, ((0, 0), (1, 0)))
  checks.check_voxels(rows, is_sorted=True)
  table = host_plan.build_plan(rows, levels=1).levels[0].neighbors
  assert 9 < (table < len(rows)).sum() / len(rows) < 18
  np.testing.assert_array_equal(script.room(3000, 0.02), voxels)


class FakeEngine:
  """Layers that take as long as the test says."""

  @staticmethod
  def machine():
    return {"processor": "a processor", "jax": "1", "python": "3"}


def test_json_and_table(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(script, "use_cores", lambda number: None)
  monkeypatch.setitem(
    script.PARTS_RUN,
    "memory",
    lambda engine, args: {"18A step, memory": {"ratio": 1.25, "MB": 1234.5}},
  )
  monkeypatch.setitem(
    script.PARTS_RUN,
    "conv",
    lambda engine, args: {"conv": {"ms": [2.0, 1.5, 3.0], "of it": 1.5}},
  )
  out = tmp_path / "out.json"
  script.main(["--parts", "conv,memory", "--json", str(out)])
  figures = json.loads(out.read_text())["figures"]
  assert figures["conv"] == {"ms": [2.0, 1.5, 3.0], "of it": 1.5}
  text = capsys.readouterr().out
  assert "2.0 ms (1.5 - 3.0); of it: 1.5" in text
  assert "ratio: 1.25; MB: 1,234" in text


def test_scaling_is_per_voxel(monkeypatch):
  seconds = {1000: 0.002, 2000: 0.005}
  monkeypatch.setattr(
    script, "room", lambda count, size: np.zeros((count, 3), int)
  )
  monkeypatch.setattr(
    script,
    "run_tasks",
    lambda tasks, rounds: {
      name: {"ms": [1000 * seconds[size]] * 3}
      for name, size in zip(tasks, seconds, strict=True)
    },
  )

  class Engine(FakeEngine):
    class Network:
      def __init__(self, arrays):
        self.infer = None

  args = script.parse_args(["--sizes", "1000,2000"])
  found = script.scaling_part(Engine, args)
  first, second = found.values()
  assert first["us per voxel"] == pytest.approx(2)
  assert second["us per voxel"] == pytest.approx(2.5)
  assert second["of the first"] == pytest.approx(1.25)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--parts", "maps,speed"], "'speed'; expected some of maps, conv"),
    (["--rounds", "0"], "--rounds: expected more than 0"),
    (["--sizes", "10,x"], "--sizes: expected numbers"),
    (["--sizes", "0"], "--sizes: expected more than 0"),
  ],
)
def test_options_that_cannot_be(options, message, capsys):
  with pytest.raises(SystemExit):
    script.parse_args(options)
  assert message in capsys.readouterr().err


def test_our_layers_answer_as_defined(tmp_path):
  """The server's layer against the sum over pairs, voxel by voxel."""
  from peers import engine

  voxels = script.room(300, 0.05)
  arrays = script.conv_arrays(voxels, widths=(4,))
  found = engine.Convolution(arrays, 4).outputs()
  rows = {tuple(v): i for i, v in enumerate(voxels.tolist())}
  out = np.zeros((len(voxels), 4))
  dx = np.zeros((len(voxels), 4))
  for (x, y, z), i in rows.items():
    for k in range(27):
      d = k % 3 - 1, k // 3 % 3 - 1, k // 9 - 1
      j = rows.get((x + d[0], y + d[1], z + d[2]))
      if j is not None:
        weight = arrays["weight_4"][k]
        out[i] += arrays["x_4"][j] @ weight
        dx[j] += weight @ arrays["cotangent_4"][i]
  np.testing.assert_allclose(found["out"], out, atol=1e-5)
  np.testing.assert_allclose(found["dx"], dx, atol=1e-5)


# Needs two devices, which a process has from its start or not at all.
TWO_DEVICES = """
import sys
import jax, numpy as np
sys.path.append(sys.argv[1])
import benchmark
from peers import engine
from wsegpc_jax.models import minkunet

# Few blocks: little to compile.
planes = minkunet.ARCHITECTURES["14A"][1]
minkunet.ARCHITECTURES["test"] = ((1, 0, 0, 0, 0, 0, 0, 1), planes, 1)
rooms = [benchmark.room(n, 0.05, seed=n) for n in (250, 400)]
arrays = benchmark.scene_arrays(np.concatenate(rooms))
arrays["coords"][len(rooms[0]):] += [0, 0, 512]
whole = engine.Network(arrays, arch="test")
weights = engine.drawn(whole.variables)
whole = engine.Network(arrays, weights, arch="test")
starts = np.array([0, len(rooms[0])])
batch = engine.Batch(arrays | {"starts": starts}, weights, arch="test")
found, expected = (side.first_step()["loss"] for side in (batch, whole))
np.testing.assert_allclose(found, expected, rtol=1e-5)
for part, name in enumerate(("params", "batch_stats")):
  for found, expected, before in zip(
    *map(jax.tree.leaves, (batch.state[part], whole.state[part], weights[name])),
    strict=True,
  ):
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (np.asarray(expected) != before).any()
"""


def test_a_batch_on_two_devices_is_one_of_both_scenes():
  done = subprocess.run(
    [sys.executable, "-c", TWO_DEVICES, str(script_modules.SCRIPTS)],
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
