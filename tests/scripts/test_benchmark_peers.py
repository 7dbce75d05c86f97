"""The comparison around what it times: a side that differs is not timed."""

import json
import sys

import numpy as np
import pytest
import script_modules

script = script_modules.load("benchmark_peers")

# A side without a network: its answers are off by what its name says.
PEER = """
import json, sys
import numpy as np
folder, off, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
print(json.dumps({"fake": "1.0"}), flush=True)
for line in sys.stdin:
  name, *rest = line.split()
  answer = {"seconds": seconds, "cpu_seconds": seconds}
  if name == "conv":
    a = np.linspace(-8, 4, 12).reshape(4, 3)
    np.savez(rest[1], out=a, dx=a + off)
    answer = {}
  if name == "logits":
    np.save(rest[0], np.linspace(-8, 4, 12))
    answer = {}
  if name in ("step", "batch"):
    answer |= {"loss": 2.0, "grad_norm": 0.5}
  print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the script; sides are fakes, (error, seconds) by their names."""
  (tmp_path / "peer.py").write_text(PEER)
  monkeypatch.setattr(script, "export", lambda folder, tasks: None)
  monkeypatch.setattr(script, "make_environment", lambda *args: "python")
  # As many as the test names, whatever this machine has.
  monkeypatch.setattr(script.os, "sched_getaffinity", lambda pid: {0, 1})

  def run_it(sides, behaviour):
    def start(python, folder, name, threads):
      found = behaviour[f"{name}@{threads}"]
      if isinstance(found, str):
        command = [sys.executable, "-c", f"raise ImportError({found!r})"]
      else:
        command = [sys.executable, tmp_path / "peer.py", folder, *found]
      return script.start_peer(command, name)

    monkeypatch.setattr(script, "start", start)
    out = tmp_path / "out.json"
    options = ["--sides", sides, "--rounds", "2", "--json", str(out)]
    script.main(options)
    return json.loads(out.read_text())

  return run_it


def test_ratios_and_a_side_that_is_wrong(run, capsys):
  result = run(
    "ours@2,torch@2,ocnn@2,ours@1,spconv@1",
    {
      "ours@2": (0, 0.1),
      "torch@2": (0, 0.25),
      "ocnn@2": (1.2e-3, 0.01),
      "ours@1": (0, 0.2),
      "spconv@1": (4e-4, 0.3),
    },
  )
  ratios = {k: v[0] for k, v in result["ratios"].items()}
  assert ratios["torch@2 over ours@2: forward 32"] == pytest.approx(2.5)
  # One thread beside one thread, and beside all of ours.
  assert ratios["spconv@1 over ours@1: step"] == pytest.approx(1.5)
  assert ratios["spconv@1 over ours@2: step"] == pytest.approx(3)
  assert ratios["spconv@1 over ours@1: batch"] == pytest.approx(1.5)
  assert not any("torch@2 over ours@1" in name for name in ratios)
  assert result["checks"]["ocnn@2"]["wrong"] == ["dx 32", "dx 64"]
  assert not any(name.startswith("ocnn") for name in result["times"])
  text = capsys.readouterr().out
  assert "ocnn@2 WRONG in dx 32, dx 64, not timed" in text
  assert "spconv@1 agrees; largest relative difference 5.0e-05" in text


def test_sides_that_cannot_start(run, capsys):
  found = {"ours@2": (0, 0.1), "minkowski@2": "no such library"}
  result = run("ours@2,minkowski@2", found)
  assert "no such library" in result["left_out"]["minkowski@2"]
  assert result["ratios"] == {}
  assert "minkowski@2 left out" in capsys.readouterr().out


def test_another_shape_and_nan_are_wrong():
  expected = {"logits": np.ones((3, 2)), "loss": 1.0}
  for logits in (np.ones((2, 2)), np.full((3, 2), np.nan)):
    found = script.compare({"logits": logits, "loss": 1.0}, expected)
    assert found["wrong"] == ["logits"]
  found = script.compare({"logits": np.ones((3, 2)), "loss": 1.002}, expected)
  assert found["wrong"] == ["loss"]


def test_ratios_pair_what_was_timed_in_one_round():
  seconds = {"ours@1: step": [1, 2, 4], "torch@1: step": [2, 2, 2]}
  times = {k: [{"seconds": s} for s in v] for k, v in seconds.items()}
  assert script.ratios(times) == {"torch@1 over ours@1: step": [1, 0.5, 2]}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--sides", "torch@1"], "expected ours first"),
    (["--sides", "ours@1,spconv@2"], "wrong output with more than one"),
    (["--sides", "ours"], "'ours'; expected NAME@THREADS"),
    (["--sides", "ours@1,ours@1"], "expected each once"),
    (["--sides", "ours@100000"], "threads, one a core"),
    (["--tasks", "pool"], "expected some of conv, network, batch"),
    (["--rounds", "0"], "more than 0"),
  ],
)
def test_options_that_cannot_be(options, message, capsys):
  with pytest.raises(SystemExit):
    script.parse_args(options)
  assert message in capsys.readouterr().err


def test_scenes_of_a_batch_do_not_meet(tmp_path, monkeypatch):
  """One array is a batch to a library without an index of scenes."""
  from peers import engine

  from wsegpc_jax.sparse import morton

  monkeypatch.setattr(script.benchmark, "NETWORK_ROOM", (300, 0.05))

  class Untrained:
    def __init__(self, arrays):
      self.variables = {"params": {"kernel": np.ones(2)}}

  monkeypatch.setattr(engine, "Network", Untrained)
  script.export(tmp_path, ["batch"])
  with np.load(tmp_path / "batch.npz") as file:
    arrays = dict(file)
  rows = np.pad(arrays["coords"], ((0, 0), (1, 0)))
  np.testing.assert_array_equal(morton.morton_order(rows), np.arange(len(rows)))
  first, second = engine.split(arrays)
  assert len(first["label"]) + len(second["features"]) == len(rows)
  # Not even as voxels of the coarsest level.
  gap = second["coords"].min(0)[2] // 16 - first["coords"].max(0)[2] // 16
  assert gap > 1


def test_the_second_of_two_runs_counts():
  class Warming:
    answers = iter([{"seconds": 9}, {"seconds": 1}])

    def ask(self, command):
      assert command == "step"
      return next(self.answers)

  assert script.second_run(Warming(), "step") == {"seconds": 1}


def test_requirements():
  assert script.requirements([("ours", 1)]) == []
  found = script.requirements([("ours", 2), ("ocnn", 2), ("spconv", 1)])
  assert found == ["torch", "numpy", "ocnn", "spconv"]
