"""From the files that people have to scores: all stages on miniature data.

The data sets are box rooms written in the layouts of ScanNet and S3DIS; the
networks have one block at each end.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import script_modules

from wsegpc_jax import defaults, evaluate, inputs, label, train
from wsegpc_jax.interop import scannet
from wsegpc_jax.models import minkunet

sys.path.append(str(Path(__file__).parent / "data"))
import miniature_s3dis  # noqa: E402
import miniature_scannet  # noqa: E402

_ROOT = Path(__file__).parents[1]
_ARCH = ((1, 0, 0, 0, 0, 0, 0, 1), minkunet.ARCHITECTURES["14A"][1], 1)


def _prepared_scannet(folder):
  """The raw release through the script, in the asset layout."""
  scenes = {"train": ["scene0000_00", "scene0001_00"], "val": ["scene0707_00"]}
  raw = folder / "raw"
  miniature_scannet.write_raw(raw, scenes=sum(scenes.values(), []))
  lists = []
  for split, names in scenes.items():
    (folder / f"{split}.txt").write_text("\n".join(names))
    lists.append(f"{split}={folder / split}.txt")
  height, width = miniature_scannet.SIZE
  script_modules.load("prepare_scannet").main(
    ["--raw", str(raw), "--root", str(folder / "set")]
    + ["--label_map", str(raw / "labels.tsv"), "--split", *lists]
    + ["--image_size", str(height), str(width)]
  )
  return folder / "set", "assets"


def _processed_scannet(folder):
  miniature_scannet.write_processed(
    folder / "set",
    scenes=["scene0000_00", "scene0001_00"],
    val=["scene0707_00"],
  )
  return folder / "set", "scannet"


def _processed_s3dis(folder):
  rooms = ((1, "office_1"), (2, "office_1"), (5, "office_1"))
  miniature_s3dis.write_processed(folder / "set", rooms=rooms, edge=48, views=3)
  return folder / "set", "s3dis"


def _config(root, layout):
  config = defaults.get_tiny()
  config.data.root, config.data.format = str(root), layout
  config.data.cache = f"{root}_cache"
  config.data.box_rooms.train = config.data.box_rooms.val = 0
  config.data.voxel_size = 0.15
  config.data.image_size, config.data.num_views = (24, 32), 2
  config.data.num_pairs = 32
  config.data.smallest_bucket = config.data.largest_bucket = 6000
  config.model.arch, config.model.width = "test", 4
  config.model.image_width = 4
  config.train.batch_size = 2
  config.train.total_steps, config.train.eval_every = 3, 3
  return config


@pytest.mark.parametrize(
  "write", [_prepared_scannet, _processed_scannet, _processed_s3dis]
)
def test_all_stages(write, tmp_path, monkeypatch):
  monkeypatch.setitem(minkunet.ARCHITECTURES, "test", _ARCH)
  root, layout = write(tmp_path)

  config = _config(root, layout)
  train.train(config.lock(), str(tmp_path / "cmg"))
  config = _config(root, layout)
  config.init_from = str(tmp_path / "cmg")
  config.loss.rpc_3d = config.loss.rpc_2d = 1.0
  train.train(config.lock(), str(tmp_path / "rpc"))
  label.label(config, str(tmp_path / "rpc"))

  config = _config(root, layout)
  config.method = "segmentation"
  config.data.labels_from = str(tmp_path / "rpc" / label.FOLDER)
  config.eval.weights, config.eval.use_tags = "student", False
  train.train(config.lock(), str(tmp_path / "seg"))
  export = "scannet" if layout != "s3dis" else ""
  with config.unlocked():
    config.eval.export = export
  scores = evaluate.evaluate(config, str(tmp_path / "seg"))

  # Every point counts once, and what was written says what was scored.
  dataset = inputs.open_data(config)
  val = [dataset.load_scene(name) for name in dataset.splits["val"]]
  known = sum(np.count_nonzero(s.label != 255) for s in val)
  assert scores.points.points == known
  written = json.loads(
    (tmp_path / "seg" / "eval" / "val_best.json").read_text()
  )
  assert written["points"] == known
  for name in dataset.splits["train"]:
    scene = dataset.load_scene(name)
    labels = inputs.read_labels(
      tmp_path / "rpc" / label.FOLDER, scene, len(dataset.classes)
    )
    assert scene.tags[labels].all()
  if export:
    correct = 0
    for scene in val:
      path = tmp_path / "seg" / "submission" / f"{scene.name}.txt"
      found = scannet.read_submission(path, len(scene.coord))
      correct += np.count_nonzero(found == scene.label)
    assert correct == pytest.approx(scores.points.allacc * known)


def test_alignment_is_the_configs_choice(tmp_path):
  root, layout = _processed_scannet(tmp_path)
  scenes = []
  for align in (True, False):
    config = _config(root, layout)
    config.data.axis_align, config.data.cache = align, ""
    dataset = inputs.open_data(config)
    scenes.append(dataset.load_scene("scene0000_00"))
  turned, lying = (s.coord - s.coord.mean(0) for s in scenes)
  assert np.abs(turned - lying).max() > 0.1
  # A turn about z: distances and heights stay.
  np.testing.assert_allclose(turned[:, 2], lying[:, 2], atol=1e-4)
  np.testing.assert_allclose(
    np.hypot(*turned[:, :2].T), np.hypot(*lying[:, :2].T), atol=1e-4
  )
