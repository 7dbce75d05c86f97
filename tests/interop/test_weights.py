"""Every key of a state dict is used or told, both ways and for all wrappers."""

import logging
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from weight_cases import (
  assert_same,
  heads,
  load_golden,
  narrow,
  prefixed,
  save,
  variables_of,
)

from wsegpc_jax.interop import weight_names, weights
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import ARCHITECTURES, MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.types import DataError


@pytest.fixture(scope="module")
def two_branches():
  return narrow()


@pytest.fixture(scope="module")
def resnet():
  """(fresh variables of a narrow ResNet-50, torchvision's state dict)."""
  _, arrays = load_golden("resnet50_w4")
  del arrays["cls.weight"]
  return variables_of(DilatedResNet(50, 3, width=4)), arrays


class TestNames:
  @pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
  def test_round_trip_of_every_minkunet(self, arch):
    variables = variables_of(MinkUNet(arch, 4, width=2))
    for names in ("minkowski", "wsegpc"):
      arrays = weights.to_state_dict(variables, names=names)
      blank = jax.tree.map(np.zeros_like, variables)
      got, report = weights.fill(arrays, blank, where="x")
      assert_same(got, variables)
      assert not report.left_out and not report.kept
    layers, _, expansion = ARCHITECTURES[arch]
    for stage, blocks in enumerate(layers, start=1):
      conv1 = f"block{stage}.%d.conv1.kernel"
      keys = weights.to_state_dict(variables, names="minkowski")
      assert conv1 % (blocks - 1) in keys and conv1 % blocks not in keys
    assert ("block1.0.conv3.kernel" in keys) == (expansion == 4)

  def test_names_of_minkowski_engine(self):
    keys = weights.to_state_dict(
      variables_of(MinkUNet("14A", 4, width=2)), names="minkowski"
    )
    assert {key.split(".")[0] for key in keys} == {
      *("conv0p1s1", "conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"),
      *("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"),
      *("bn0", "bn1", "bn2", "bn3", "bn4"),
      *("bntr4", "bntr5", "bntr6", "bntr7"),
      *(f"block{i}" for i in range(1, 9)),
      "final",
    }
    assert keys["final.bias"].shape == (1, 4)
    assert keys["block2.0.downsample.0.kernel"].shape == (2, 4)
    assert "block2.0.downsample.1.bn.running_var" in keys

  def test_torchvision_round_trip(self, resnet):
    fresh, arrays = resnet
    variables, _ = weights.fill(arrays, fresh, where="x")
    back = weights.to_state_dict(variables, names="torchvision")
    assert set(back) == set(arrays)
    for key in arrays:
      if "num_batches" not in key:
        np.testing.assert_array_equal(back[key], arrays[key])

  def test_one_branch_of_two(self, two_branches):
    points = weights.to_state_dict(two_branches, names="minkowski")
    images = weights.to_state_dict(two_branches, names="torchvision")
    assert "conv0p1s1.kernel" in points and "conv1.weight" in images
    assert not any("proj" in key or "cls" in key for key in {*points, *images})
    with pytest.raises(DataError, match="torchvision.*no part"):
      weights.to_state_dict(
        variables_of(MinkUNet("14A", 4, width=2)), names="torchvision"
      )


def obow(arrays):
  """The names that OBoW's sequence of feature blocks gives."""
  out = {}
  for key, value in arrays.items():
    head, _, rest = key.partition(".")
    place = {"conv1": "0.Conv", "bn1": "0.bn"}.get(head, head[-1])
    out[f"_feature_blocks.{place}.{rest}"] = value
  return out


# What each project saves around a torchvision ResNet, made of (the ResNet,
# another one of the same names) -> (file, keys to leave out, prefix read).
WRAPPERS = {
  "torchvision": lambda a, b: (
    {**a, **heads("fc.weight", "fc.bias")},
    {"fc.weight", "fc.bias"},
    "",
  ),
  "moco_v1": lambda a, b: (
    {
      "epoch": 200,
      "arch": "resnet50",
      "state_dict": {
        **prefixed("module.encoder_k.", b),
        **prefixed("module.encoder_q.", a),
        **heads("module.encoder_q.fc.weight", "module.queue"),
        "module.queue_ptr": np.zeros(1, np.int64),
      },
      "optimizer": {"state": {}, "param_groups": []},
    },
    {
      *prefixed("module.encoder_k.", b),
      *("module.encoder_q.fc.weight", "module.queue", "module.queue_ptr"),
    },
    "module.encoder_q.",
  ),
  "moco_v2": lambda a, b: (
    {
      "state_dict": {
        **prefixed("module.encoder_q.", a),
        **heads("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias"),
      }
    },
    {"module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias"},
    "module.encoder_q.",
  ),
  "swav": lambda a, b: (
    {
      **prefixed("module.", a),
      **heads("module.projection_head.0.weight", "module.prototypes.weight"),
    },
    {"module.projection_head.0.weight", "module.prototypes.weight"},
    "module.",
  ),
  "deepcluster_v2": lambda a, b: (
    {
      **prefixed("module.", a),
      **heads("module.prototypes.prototypes0.weight"),
    },
    {"module.prototypes.prototypes0.weight"},
    "module.",
  ),
  "dino": lambda a, b: (a, set(), ""),
  "dino_full": lambda a, b: (
    {
      "student": prefixed("module.backbone.", b),
      "teacher": {
        **prefixed("backbone.", a),
        **heads("head.mlp.0.weight", "head.last_layer.weight_g"),
      },
      "epoch": 799,
    },
    {"head.mlp.0.weight", "head.last_layer.weight_g"},
    "backbone.",
  ),
  "obow": lambda a, b: (
    {"network": {**a, **heads("fc.weight")}, "epoch": 200, "meters": None},
    {"fc.weight"},
    "",
  ),
  "obow_training": lambda a, b: (
    {
      "network": {
        **prefixed("feature_extractor.", obow(a)),
        **prefixed("feature_extractor_teacher.", obow(b)),
        **heads("bow_predictor.layers.0.weight"),
      }
    },
    {
      *prefixed("feature_extractor_teacher.", obow(b)),
      "bow_predictor.layers.0.weight",
    },
    "feature_extractor.",
  ),
  "pixpro": lambda a, b: (
    {
      "model": {
        **prefixed("module.encoder.", a),
        **prefixed("module.encoder_k.", b),
        **heads("module.projector.linear1.weight"),
      },
      "opt": None,
    },
    {
      *prefixed("module.encoder_k.", b),
      "module.projector.linear1.weight",
    },
    "module.encoder.",
  ),
}


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_self_supervised_wrappers(wrapper, resnet, tmp_path, caplog):
  fresh, arrays = resnet
  other = {k: v + 1 for k, v in arrays.items()}
  content, left_out, prefix = WRAPPERS[wrapper](arrays, other)
  save(tmp_path / "weights.pth.tar", content)
  file = weights.read(tmp_path / "weights.pth.tar")
  got, report = weights.fill(file.student, fresh, where="x")
  want, _ = weights.fill(arrays, fresh, where="x")
  assert_same(got, want)
  assert report.namings[0].prefix == prefix
  assert set(report.left_out) == left_out
  assert {*report.used, *report.left_out} == set(file.student)
  assert not {*report.used} & {*report.left_out}
  assert report.kept == ("params/cls/kernel",)
  # Whatever lies beside the state dict is told, too.
  with caplog.at_level(logging.INFO, "wsegpc_jax"):
    weights.load(tmp_path / "weights.pth.tar", fresh, parts=("net_2d",))
  if file.student.keys() != content.keys():
    beside = {name.split(" (")[0] for name in file.beside}
    assert len(beside) == len(content) - 1 and beside < set(content)
    for name in beside:
      assert name in caplog.text


class TestParts:
  def test_a_minkunet_leaves_the_other_parts(self, two_branches):
    arrays = weights.to_state_dict(two_branches, names="minkowski")
    blank = jax.tree.map(np.zeros_like, two_branches)
    got, report = weights.fill(arrays, blank, where="x")
    for collection in ("params", "batch_stats"):
      assert_same(got[collection]["net_3d"], two_branches[collection]["net_3d"])
      assert_same(got[collection]["net_2d"], blank[collection]["net_2d"])
    assert {name.split("/")[1] for name in report.kept} == {
      "net_2d",
      "proj_2d",
      "proj_3d",
    }
    assert "net_2d" in report.lines()[-1]

  def test_a_3d_network_takes_its_part_of_both(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    fresh = variables_of(MinkUNet("14A", 5, width=4))
    got, report = weights.fill(arrays, fresh, where="x")
    assert_same(got["params"], two_branches["params"]["net_3d"])
    assert {key.split(".")[0] for key in report.left_out} == {
      "net_2d",
      "proj_2d",
      "proj_3d",
    }

  def test_images_only(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    blank = jax.tree.map(np.zeros_like, two_branches)
    got, _ = weights.fill(arrays, blank, where="x", parts=("net_2d",))
    assert_same(got["params"]["net_2d"], two_branches["params"]["net_2d"])
    assert_same(got["params"]["net_3d"], blank["params"]["net_3d"])

  @pytest.mark.parametrize("part", ["net_3d", "net_2d", "proj_3d", "proj_2d"])
  def test_a_checkpoint_of_both_branches_must_be_whole(
    self, two_branches, part
  ):
    arrays = {
      key: value
      for key, value in weights.to_state_dict(two_branches).items()
      if not key.startswith(part + ".")
    }
    with pytest.raises(DataError, match=f"file: has no '{part}[.]"):
      weights.fill(arrays, two_branches, where="file")

  def test_a_resnet_is_no_3d_network(self, two_branches):
    arrays = weights.to_state_dict(two_branches, names="torchvision")
    with pytest.raises(DataError, match="image_weights"):
      weights.fill(arrays, two_branches, where="file")


class TestMistakes:
  def test_any_missing_key_is_named(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    needed = [key for key in arrays if "num_batches" not in key]
    for key in needed[::7]:
      rest = {k: v for k, v in arrays.items() if k != key}
      with pytest.raises(DataError) as error:
        weights.fill(rest, two_branches, where="file")
      assert key in str(error.value) and "file" in str(error.value)

  def test_any_shape_is_compared(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    needed = [key for key in arrays if "num_batches" not in key]
    for key in needed[::7]:
      value = arrays[key]
      wrong = np.concatenate([value, value[:1]])
      with pytest.raises(DataError) as error:
        weights.fill({**arrays, key: wrong}, two_branches, where="file")
      for words in (key, str(list(value.shape)), str(list(wrong.shape))):
        assert words in str(error.value)

  def test_counters_may_be_missing(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    old = {k: v for k, v in arrays.items() if "num_batches" not in k}
    got, report = weights.fill(old, two_branches, where="x")
    assert_same(got, two_branches)
    assert set(report.used) == set(old)

  def test_a_strange_key_is_left_out_and_told(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    arrays["net_3d.linker.weight"] = np.ones(3)
    arrays["queue.num_batches_tracked"] = np.zeros(())
    _, report = weights.fill(arrays, two_branches, where="x")
    assert set(report.left_out) == {
      "net_3d.linker.weight",
      "queue.num_batches_tracked",
    }
    assert "net_3d.linker.weight" in report.lines()[1]

  @pytest.mark.parametrize(
    ("change", "words"),
    [
      (lambda a: np.full_like(a, np.nan), "finite"),
      (lambda a: a.astype(np.int32), "floats, got int32"),
      (lambda a: a.tolist(), "array, got list"),
      (lambda a: -a, "negative"),
    ],
  )
  def test_values(self, two_branches, change, words):
    arrays = weights.to_state_dict(two_branches)
    key = "net_2d.layer2_2d.0.bn1.running_var"
    arrays[key] = change(arrays[key])
    with pytest.raises(DataError, match=words) as error:
      weights.fill(arrays, two_branches, where="file")
    assert key in str(error.value)

  def test_another_number_of_classes(self, two_branches):
    arrays = weights.to_state_dict(two_branches)
    net = TwoBranchNet(
      MinkUNet("14A", 7, width=4), DilatedResNet(18, 7, width=2), 16, 12
    )
    fresh = variables_of(net)
    with pytest.raises(DataError, match=r"\[5, 16.*\[7, 16.*number of classes"):
      weights.fill(arrays, fresh, where="file")
    got, report = weights.fill(arrays, fresh, where="file", random_head=True)
    assert set(report.kept) == {
      "params/net_2d/cls/kernel",
      "params/net_3d/final/bias",
      "params/net_3d/final/kernel",
    }
    assert_same(
      got["params"]["net_3d"]["final"], fresh["params"]["net_3d"]["final"]
    )
    # It excuses nothing else.
    arrays["net_3d.cls_3d.kernel"] = np.ones((11, 5), np.float32)
    with pytest.raises(DataError, match=r"cls_3d.kernel has shape \[11, 5\]"):
      weights.fill(arrays, fresh, where="file", random_head=True)

  def test_two_networks_of_a_kind(self, resnet):
    fresh, arrays = resnet
    both = {**prefixed("left.", arrays), **prefixed("right.", arrays)}
    with pytest.raises(DataError, match=r"several networks \(left., right."):
      weights.fill(both, fresh, where="file")

  def test_a_file_without_weights(self, tmp_path):
    for content, words in (
      ([1, 2], "expected a dict"),
      ({"epoch": 3, "note": "x"}, "expected a state dict.*epoch, note"),
      ({"state_dict": {}}, "expected a state dict"),
    ):
      save(tmp_path / "x.pth", content)
      with pytest.raises(DataError, match=words) as error:
        weights.read(tmp_path / "x.pth")
      assert "x.pth" in str(error.value)
    for name in ("none.pth", "none.safetensors"):
      with pytest.raises(DataError, match=name):
        weights.read(tmp_path / name)

  def test_a_file_of_another_thing(self, tmp_path, two_branches):
    save(tmp_path / "x.pth", {"encoder.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(DataError, match="encoder.weight"):
      weights.load(tmp_path / "x.pth", two_branches)


class TestVersions:
  def test_kernels_of_one_tap_and_flat_biases(self, two_branches):
    arrays = weights.to_state_dict(two_branches, names="minkowski")
    changed = dict(arrays)
    for key, value in arrays.items():
      if key.endswith("kernel") and value.ndim == 2:
        changed[key] = value[None]
      if key == "final.bias":
        changed[key] = value[0]
    assert sum(changed[k].shape != arrays[k].shape for k in arrays) > 5
    blank = jax.tree.map(np.zeros_like, two_branches)
    got, _ = weights.fill(changed, blank, where="x")
    assert_same(got["params"]["net_3d"], two_branches["params"]["net_3d"])

  @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, float])
  def test_other_floats(self, two_branches, dtype):
    arrays = {
      k: v.astype(dtype) if v.ndim else v
      for k, v in weights.to_state_dict(two_branches).items()
    }
    got, _ = weights.fill(arrays, two_branches, where="x")
    want = jax.tree.map(
      lambda a: a.astype(dtype).astype(np.float32), two_branches
    )
    assert_same(got, want)


class TestFiles:
  @pytest.mark.parametrize("suffix", ["pth", "pth.tar", "safetensors"])
  @pytest.mark.parametrize("with_teacher", [False, True])
  def test_round_trip(self, tmp_path, two_branches, suffix, with_teacher):
    teacher = jax.tree.map(lambda a: a / 2, two_branches)
    path = tmp_path / f"weights.{suffix}"
    exported = [weights.to_state_dict(tree) for tree in (two_branches, teacher)]
    weights.save(
      path, weights.join(exported[0], exported[1] if with_teacher else None)
    )
    blank = jax.tree.map(np.zeros_like, two_branches)
    student, ema, file = weights.load(path, blank)
    assert_same(student, two_branches)
    assert file.beside == () and file.best_miou == 0
    if with_teacher:
      assert_same(ema, teacher)
    else:
      assert ema is None

  @pytest.mark.parametrize(
    ("entry", "expected"),
    [
      ({"best_iou": 0.625}, 0.625),
      ({"best_iou": np.array(62.5)}, 0.625),
      ({"best_miou": 0.5}, 0.5),
      ({"best_iou": -1.0}, 0),
      ({"best_iou": math.nan}, 0),
      ({"best_iou": "high"}, 0),
      ({}, 0),
    ],
  )
  def test_best_miou_of_the_run(self, tmp_path, resnet, entry, expected):
    save(tmp_path / "x.pth", {"state_dict": resnet[1], "epoch": 3, **entry})
    file = weights.read(tmp_path / "x.pth")
    assert file.best_miou == expected
    # What is not understood is told.
    assert set(file.beside) == {"epoch"} | (set() if expected else set(entry))

  def test_what_is_a_file(self, tmp_path):
    (tmp_path / "run.pth").mkdir()
    (tmp_path / "weights").write_bytes(b"")
    assert not weights.is_weights_file(tmp_path / "run.pth")
    assert not weights.is_weights_file(tmp_path / "run")
    assert weights.is_weights_file(tmp_path / "weights")
    assert weights.is_weights_file(tmp_path / "missing.pth.tar")


def test_landmarks_are_told_apart():
  """No dialect's landmark ends in another one's."""
  keys = [k for p in weight_names.PARTS for k in weight_names.landmarks(p)]
  assert len(set(keys)) == len(keys) == 7
  for a in keys:
    assert [b for b in keys if b == a or b.endswith("." + a)] == [a]
