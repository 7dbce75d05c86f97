"""The demo and the ladder's command, with programs that only pretend."""

import json
from pathlib import Path

import ladder_parts
import pytest
import script_modules

from wsegpc_jax import evaluate
from wsegpc_jax.ladder import page, results, rows, run
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.types import DataError

demo, ladder = map(script_modules.load, ("demo", "ladder"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("rooms") / "rooms"
  ladder_parts.write_rooms(root)
  return str(root)


class Pretend(ladder_parts.Pretend):
  """Also leaves scores, for the report."""

  def _score(self, config, workdir):
    found = super()._score(config, workdir)
    classes = run.inputs.open_data(config).classes
    k = len(classes)
    matrix = ladder_parts.np.arange(k * k).reshape(1, k, k)
    scenes = SceneMatrices(("room",), matrix)
    scores = evaluate.Scores(scenes.scores(), scenes=scenes)
    path = Path(workdir) / "eval" / "val.json"
    evaluate.write_scores(path, scores, classes, protocol="p", step=2)
    return found


@pytest.fixture
def pretend(monkeypatch):
  pretend = Pretend()
  programs = pretend.programs()
  monkeypatch.setattr(run, "Programs", lambda: programs)
  monkeypatch.setattr(run.jax, "clear_caches", lambda: None)
  # No network is there to be run.
  monkeypatch.setattr(page, "_rooms", lambda *_: ())
  return pretend


def test_demo(root, tmp_path, pretend, capsys):
  args = ["--workdir", str(tmp_path), "--data", root, "--variant", "smoke"]
  demo.main(args)
  found = json.loads((tmp_path / "summary.json").read_text())
  names = [stage["name"] for stage in found["stages"]]
  assert names == ["cam", "cmg", "rpc", "seg", "full"]
  keys = {"name", "pseudo_label_miou", "val_miou", "val_miou_tags", "seconds"}
  for stage in found["stages"]:
    assert set(stage) == keys
    weak = stage["name"] in ("cam", "cmg", "rpc")
    assert (stage["pseudo_label_miou"] is not None) == weak
    made = ladder_parts.made_up_summary(
      ladder_parts.box_rooms.CLASSES, 0, stage["name"], "val_miou"
    )
    assert stage["val_miou"] == made["miou"]
  assert set(found["baseline"]) == keys - {"name", "seconds"}
  assert all(0 < x < 1 for x in found["baseline"].values())
  assert found["seconds"] >= sum(s["seconds"] for s in found["stages"]) - 0.5
  html = Path(found["report"]).read_text(encoding="utf-8")
  assert found["report"] == str(tmp_path / "report.html")
  said = capsys.readouterr().out
  for row in rows.with_predecessors(rows.DEMO):
    assert row.title in said and row.title in html
  assert found["report"] in said
  first = found["stages"][0]
  assert f"{100 * first['val_miou']:.1f}" in said

  # Once more: nothing is trained, and the summary is the same but for time.
  calls = len(pretend.calls)
  demo.main(args)
  again = json.loads((tmp_path / "summary.json").read_text())
  assert len(pretend.calls) == calls
  assert again["stages"] == found["stages"]
  assert again["seconds"] >= found["seconds"]


def test_ladder_writes_results_when_all_is_there(
  root, tmp_path, pretend, capsys, monkeypatch
):
  load = rows.config_loader
  monkeypatch.setattr(
    rows, "config_loader", lambda folder, _: load(folder, "smoke")
  )
  out = tmp_path / "results" / "ladder.json"
  args = ["--data", root, "--workdir", str(tmp_path / "l"), "--out", str(out)]
  args += ["--seeds", "2,5", "--rows", "cam,rpc"]
  args += ["--set", "dtype=bfloat16", "data.threads=1", "--set", "train.lr=0.5"]
  pretend.stop_at = 9
  with pytest.raises(KeyboardInterrupt):
    ladder.main(args)
  assert not out.exists()
  pretend.stop_at = None
  ladder.main(args)
  found = results.read(out)
  assert set(found["rows"]) == {"cam", "cmg", "rpc"}
  assert found["seeds"] == [2, 5]
  config = json.loads((tmp_path / "l/seed_5/rpc/config.json").read_text())
  assert config["dtype"] == "bfloat16"
  assert (config["data"]["threads"], config["train"]["lr"]) == (1, 0.5)
  assert "cam < cmg" in capsys.readouterr().out
  ladder.main(["--table", str(out)])
  assert "| CAM only |" in capsys.readouterr().out


def test_mistakes(tmp_path, capsys):
  with pytest.raises(DataError, match="no row 'nope'"):
    ladder.main(["--rows", "nope"])
  for seeds in ("1,1", "a", "-1"):
    with pytest.raises(SystemExit):
      ladder.main([f"--seeds={seeds}"])
    assert "--seeds" in capsys.readouterr().err
  broken = tmp_path / "r.json"
  broken.write_text("{")
  with pytest.raises(DataError, match="r.json: expected the results"):
    ladder.main(["--table", str(broken)])
