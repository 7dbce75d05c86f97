"""The benchmark of SPVCNN around what it times: a peer that differs is not."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import script_modules

from wsegpc_jax.data import lidar_samples
from wsegpc_jax.types import DataError, TrainState

script = script_modules.load("benchmark_spvcnn")

LOGITS = np.linspace(-8, 4, 12, dtype=np.float32).reshape(4, 3)
FIRST = {"loss": 2.0, "grad_norm": 0.5}
# A peer that answers without a network: its logits lie in the given folder.
PEER = """
import json, shutil, sys
print(json.dumps({"fake": "1.0"}), flush=True)
times = {"seconds": 0.3, "cpu_seconds": 0.2}
for line in sys.stdin:
  name, *rest = line.split()
  if name == "logits":
    shutil.copy(sys.argv[1] + "/answer.npy", rest[0])
  answer = {"logits": {}, "inference": times}.get(
    name, {**times, "loss": 2.0, "grad_norm": 0.5})
  print(json.dumps(answer), flush=True)
"""


class FakeOurs:
  logits, first = LOGITS, FIRST
  facts = {
    "voxels": [4],
    "parameters": 1234567,
    "inference_with_clustering": {"same_program": True, "same_bits": True},
  }

  def __init__(self, sample, tags, *, width, steps):
    assert len(sample.student.coords) == 500 and len(tags) == 19

  def export(self, folder, sample):
    # What the peer will answer; the first row is off by what the test says.
    answer = LOGITS.copy()
    answer[0] += self.error
    np.save(folder / "answer.npy", answer)

  def inference(self):
    return {"seconds": 0.1, "cpu_seconds": 0.1}

  def step(self, name="ce"):
    seconds = {"ce": 0.6, "ce + lovasz": 0.75, "ce + lovasz + cluster": 1.0}
    return {"seconds": seconds[name], "cpu_seconds": 1.5}


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the script with a fake network and a fake peer, which errs by so
  much."""
  program = tmp_path / "peer.py"
  program.write_text(PEER)
  monkeypatch.setattr(script, "PROGRAM", program)
  monkeypatch.setattr(script, "Ours", FakeOurs)
  monkeypatch.setattr(script, "use_cores", lambda number: None)
  monkeypatch.setattr(
    script, "make_environment", lambda folder, peers: sys.executable
  )
  small = script.synthetic_scan(columns=128)
  monkeypatch.setattr(script, "synthetic_scan", lambda: small)

  def run_it(error):
    FakeOurs.error = error
    out = tmp_path / "out.json"
    options = ["--voxels", "500", "--rounds", "3", "--json", str(out)]
    script.main(options)
    return json.loads(out.read_text())

  return run_it


def test_table_and_json_of_a_peer_that_agrees(run, capsys):
  result = run(4e-4)  # 0.5e-4 of the largest
  assert result["peers"]["torch"]["wrong"] == []
  assert result["peers"]["torch"]["versions"] == {"fake": "1.0"}
  assert result["ratios"]["torch inference"] == pytest.approx([3.0] * 3)
  assert result["ratios"]["torch ce"] == pytest.approx([0.5] * 3)
  assert [len(times) for times in result["times"].values()] == [3] * 6
  shares = result["shares"]
  assert shares["ce + lovasz"] == pytest.approx([0.2] * 3)
  assert shares["ce + lovasz + cluster"] == pytest.approx([0.25] * 3)
  text = capsys.readouterr().out
  for line in (
    "synthetic: 4 voxels, width 0.5 (1,234,567 parameters), 2 thread(s)",
    "torch agrees; relative differences: logits 5.0e-05",
    "cluster, share of the step ce + lovasz + cluster: 25.0% (25.0% - 25.0%)",
    "clustering: the same program, logits equal in every bit",
  ):
    assert line in text
  row = next(x for x in text.splitlines() if x.startswith("torch inference"))
  assert row.split() == "torch inference 300 (300 - 300) 200 3.00".split() + [
    "(3.00",
    "-",
    "3.00)",
  ]


@pytest.mark.parametrize("error", [1.2e-3, math.nan])
def test_a_peer_whose_output_differs_is_not_timed(run, capsys, error):
  result = run(error)
  assert result["peers"]["torch"]["wrong"] == ["logits"]
  assert not any(name.startswith("torch") for name in result["times"])
  assert result["ratios"] == {}
  text = capsys.readouterr().out
  assert "torch WRONG, not timed" in text
  assert "ours inference" in text


@pytest.mark.parametrize("wrong", ["loss", "grad_norm"])
def test_the_first_step_is_compared_too(tmp_path, wrong):
  np.save(tmp_path / "answer.npy", LOGITS)
  (tmp_path / "peer.py").write_text(PEER)
  command = [sys.executable, tmp_path / "peer.py", tmp_path]
  with script.start_peer(command, "fake") as peer:
    off = {**FIRST, wrong: 1.002 * FIRST[wrong]}
    assert script.check(peer, tmp_path, LOGITS, off)["wrong"] == [wrong]
    found = script.check(peer, tmp_path, LOGITS[:3], FIRST)
    assert found["wrong"] == ["logits"]


def test_a_peer_that_fails_says_why(tmp_path):
  program = "raise ImportError('no module named this')"
  with (
    pytest.raises(DataError, match="the peer x ended: ImportError: no module"),
    script.start_peer([sys.executable, "-c", program], "x"),
  ):
    pass


@pytest.mark.parametrize(
  "options, message",
  [
    (["--peers", "torch,spconv", "--threads", "2"], "--threads above 1"),
    (["--peers", "tensorflow"], "expected torch or spconv"),
    (["--peers", "torch,torch"], "each once"),
    (["--rounds", "0"], "--rounds: expected more than 0"),
    (["--width", "nan"], "--width: expected more than 0"),
  ],
)
def test_options_that_cannot_be(options, message, capsys):
  with pytest.raises(SystemExit):
    script.parse_args(options)
  assert message in capsys.readouterr().err


def test_peers_may_be_left_out():
  assert script.parse_args(["--peers", "none"]).peers == []
  assert script.requirements([]) == []
  assert script.make_environment(Path("unused"), []) == ""
  both = script.parse_args(["--peers", "torch,spconv", "--threads", "1"])
  assert both.peers == ["torch", "spconv"]
  with pytest.raises(DataError, match="--threads 100000: expected at most"):
    script.use_cores(100_000)


def test_the_environment_is_made_once(tmp_path, monkeypatch):
  commands, codes = [], [0, 1]

  def fake_run(command, **kwargs):
    commands.append([str(word) for word in command])
    return subprocess.CompletedProcess(
      command, codes.pop(0), "", "a\nno room\n"
    )

  monkeypatch.setattr(subprocess, "run", fake_run)
  with pytest.raises(DataError, match=r"no room; expected to install torch=="):
    script.make_environment(tmp_path, script.requirements(["torch"]))
  codes[:] = [0] * 4
  for peers in (["torch"], ["torch"], ["spconv"], ["torch"]):
    names = script.requirements(peers)
    python = script.make_environment(tmp_path, names)
  assert python == str(tmp_path / "bin" / "python")
  # What failed is done again, what is there not; spconv comes with torch.
  installs = [c[5:] for c in commands if "pip" in c]
  torch = ["torch==2.13.0", "numpy==2.4.6"]
  assert installs == [torch, torch, [*torch, "spconv==2.3.8"]]


def test_tasks_take_turns():
  order = []

  def task(name):
    def timed():
      order.append(name)
      return {"seconds": len(order), "cpu_seconds": 0}

    return timed

  times = script.measure({name: task(name) for name in "abc"}, 3)
  assert "".join(order) == "abcbcacababc"
  # The first round does not count.
  assert [t["seconds"] for t in times["a"]] == [6, 8, 10]


def test_figures_pair_what_was_timed_in_one_round():
  seconds = {
    "ours inference": [1, 2, 4],
    "fast inference": [2, 2, 2],
    "ours ce": [1, 1, 1],
    "ours ce + lovasz": [2, 2, 2],
    "ours ce + lovasz + cluster": [4, 8, 2],
  }
  times = {k: [{"seconds": s} for s in v] for k, v in seconds.items()}
  figures = script.summary(times)
  assert figures["ratios"] == {"fast inference": [1, 0.5, 2]}
  assert figures["shares"]["ce + lovasz"] == [0.5, 0.5, 0.5]
  assert figures["shares"]["ce + lovasz + cluster"] == [0.5, 0, 0.75]


def test_a_sector_keeps_its_voxels():
  scene = script.synthetic_scan(columns=256)
  assert len(scene.coord) > 5000 and len(np.unique(scene.label)) > 5
  whole = script.crop(scene, 10**6).student
  assert whole.level_counts == (
    lidar_samples.evaluation_sample(
      scene, lidar_samples.LidarSettings()
    ).student.level_counts
  )
  part = script.crop(scene, 1000)
  assert len(part.student.coords) == 1000
  rows = {tuple(row) for row in whole.features.tolist()}
  own = {tuple(row) for row in part.student.features.tolist()}
  assert own < rows

  def angles(rows):
    x, y = np.array(sorted(rows))[:, :2].T
    return np.abs(np.arctan2(y, x))

  assert angles(own).max() <= angles(rows - own).min() + 1e-6


def test_reading_a_scan(tmp_path):
  folder = tmp_path / "sequences" / "00"
  for name in ("velodyne", "labels"):
    (folder / name).mkdir(parents=True)
  points = np.arange(12, dtype="<f4").reshape(3, 4)
  (folder / "velodyne" / "000007.bin").write_bytes(points.tobytes())
  path = folder / "velodyne" / "000007.bin"
  with pytest.raises(DataError, match=r"labels/000007.label: not found"):
    script.read_scan(path)
  raw = np.array([10, 0, 40 + (3 << 16)], "<u4")  # car, unlabelled, road
  (folder / "labels" / "000007.label").write_bytes(raw.tobytes())
  scene = script.read_scan(path)
  np.testing.assert_array_equal(scene.label, [0, 255, 8])
  np.testing.assert_array_equal(np.flatnonzero(scene.tags), [0, 8])
  np.testing.assert_array_equal(scene.intensity, [3, 7, 11])
  (folder / "labels" / "000007.label").write_bytes(bytes(12))
  with pytest.raises(DataError, match="000007: expected labelled points"):
    script.crop(script.read_scan(path), 3)


def test_drawn_numbers_do_not_depend_on_the_clustering():
  def state(**head):
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    layer = {"norm": {"scale": ones, "bias": zeros}, "conv": {"kernel": ones}}
    stats = {"norm": {"mean": zeros, "var": ones}}
    return TrainState(
      step=0,
      params={**head, "a": layer},
      batch_stats={**head, "a": stats},
      opt_state=None,
    )

  plain = script.drawn(state())
  with_head = script.drawn(state(projection={"bias": np.zeros(3)}))
  for tree, other in (
    (plain.params, with_head.params),
    (plain.batch_stats, with_head.batch_stats),
  ):
    for module, leaf in (("norm", n) for n in tree["a"]["norm"]):
      value = tree["a"][module][leaf]
      np.testing.assert_array_equal(value, other["a"][module][leaf])
      assert len(np.unique(value)) == 5 and value.dtype == np.float32
  assert (plain.batch_stats["a"]["norm"]["var"] > 0).all()
  assert (plain.params["a"]["conv"]["kernel"] == 1).all()
