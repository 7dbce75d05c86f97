"""Imported weights give what PyTorch gives.

The golden files were made by networks written in plain PyTorch from the
published facts, in float64: the images by `torch.nn` layers, the points by
dense `conv3d` and `conv_transpose3d` over a grid of 32^3 whose empty cells are
masked. They hold inputs, outputs and the names and shapes of the weights, which
`draw` gives by name. Names are the released WSegPC's in resnet18 and
minkunet14A, torchvision's in resnet50, MinkowskiEngine's in minkunet50.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from weight_cases import (
  FIXTURES,
  NARROW,
  drawn,
  flat,
  load_golden,
  narrow,
  variables_of,
)

from wsegpc_jax.interop import weights
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.sparse import conv
from wsegpc_jax.sparse import plan as plan_lib

# The programs of a module are shared, so its tests belong into one process.
pytestmark = pytest.mark.xdist_group("weights_against_torch")


@pytest.fixture(scope="module")
def variables():
  """At the published size, with the small 2D branch of the listing."""
  net = TwoBranchNet(MinkUNet("18A", 20), DilatedResNet(18, 20), 512, 96)
  return variables_of(net)


@pytest.fixture(scope="module")
def arrays():
  return drawn(json.loads((FIXTURES / "wsegpc_shapes.json").read_text()))


class TestOfficialStateDict:
  @pytest.mark.parametrize("prefix", ["", "module."])
  def test_every_key_and_every_variable(self, variables, arrays, prefix):
    given = {prefix + key: value for key, value in arrays.items()}
    got, report = weights.fill(given, variables, where="file")
    assert set(report.used) == set(given) and len(given) == 415
    assert report.left_out == report.kept == ()
    got, fresh = flat(got), flat(variables)
    assert {k: v.shape for k, v in got.items()} == {
      k: v.shape for k, v in fresh.items()
    }
    # Each variable has its own values: as many as keys without the counters.
    counters = sum("num_batches" in key for key in arrays)
    assert len(got) == 415 - counters
    first = {float(value.reshape(-1)[0]) for value in got.values()}
    assert len(first) == len(got)
    for name, key, change in (
      ("net_3d/conv0/kernel", "net_3d.layer0_3d.0.kernel", None),
      ("net_3d/bn4/scale", "net_3d.layer4_3d.1.bn.weight", None),
      ("net_3d/convtr6/kernel", "net_3d.layer7_3d.1.kernel", None),
      ("net_3d/bntr7/bias", "net_3d.layer8_3d.2.bn.bias", None),
      (
        "net_3d/block5_0/downsample_conv/kernel",
        "net_3d.layer6_3d.0.0.downsample.0.kernel",
        None,
      ),
      (
        "net_3d/block8_1/norm2/scale",
        "net_3d.layer9_3d.1.norm2.bn.weight",
        None,
      ),
      ("net_3d/final/bias", "net_3d.cls_3d.bias", np.ravel),
      ("net_2d/conv1/kernel", "net_2d.layer0_2d.0.weight", (2, 3, 1, 0)),
      ("net_2d/cls/kernel", "net_2d.cls_2d.weight", (2, 3, 1, 0)),
      ("proj_3d/kernel", "proj_3d.weight", (1, 0)),
      ("proj_2d/bias", "proj_2d.bias", None),
    ):
      want = arrays[key]
      if isinstance(change, tuple):
        want = want.transpose(change)
      elif change is not None:
        want = change(want)
      np.testing.assert_array_equal(got["params/" + name], want, err_msg=name)
    np.testing.assert_array_equal(
      got["batch_stats/net_2d/layer3_0/downsample_bn/var"],
      arrays["net_2d.layer3_2d.0.downsample.1.running_var"],
    )

  def test_back_to_torch(self, variables, arrays):
    got, _ = weights.fill(arrays, variables, where="file")
    back = weights.to_state_dict(got)
    assert set(back) == set(arrays)
    for key, value in arrays.items():
      assert back[key].dtype == value.dtype and back[key].shape == value.shape
      if "num_batches" not in key:
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def relative(got, want):
  return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


class TestAgainstTorch:
  """Largest difference over largest value; the bar is 1e-4."""

  @pytest.mark.parametrize(
    ("name", "net", "landmark"),
    [
      ("minkunet14A_w4", MinkUNet("14A", 3, width=4), "net_3d.layer0_3d.0"),
      ("minkunet50_w2", MinkUNet("50", 3, width=2), "conv0p1s1"),
    ],
  )
  def test_points(self, name, net, landmark):
    golden, arrays = load_golden(name)
    assert landmark + ".kernel" in arrays
    variables, report = weights.fill(arrays, variables_of(net), where="golden")
    assert not report.left_out and not report.kept
    rows = len(golden["coords"])

    @jax.jit
    def apply(variables, inputs, coords):
      plan = plan_lib.build_plan(coords, rows, (rows,) * 5, is_sorted=False)
      return net.apply(variables, inputs, plan, train=False)

    given = golden["inputs"], golden["coords"]
    logits, features = apply(variables, *given)
    assert relative(logits, golden["logits"]) < 1e-5
    assert relative(features, golden["features"]) < 1e-5
    if name == "minkunet50_w2":
      return
    # Mistakes of the importer that keep all shapes would be seen.
    flips = {
      "conv0/kernel": lambda k: k[::-1],
      "conv2/kernel": lambda k: (
        k.reshape(2, 2, 2, *k.shape[1:])
        .transpose(2, 1, 0, 3, 4)
        .reshape(k.shape)
      ),
      "convtr5/kernel": lambda k: k[::-1],
      "block8_0/conv1/kernel": lambda k: np.roll(k, 4, axis=1),
      "block8_0/conv2/kernel": lambda k: (
        k.reshape(3, 3, 3, *k.shape[1:])
        .transpose(2, 1, 0, 3, 4)
        .reshape(k.shape)
      ),
    }
    for path, flip in flips.items():
      changed = flat(variables)
      changed["params/" + path] = flip(changed["params/" + path])
      changed = traverse_util.unflatten_dict(changed, sep="/")
      assert relative(apply(changed, *given)[0], golden["logits"]) > 1e-3, path

  @pytest.mark.parametrize("depth", [18, 50])
  def test_images(self, depth):
    golden, arrays = load_golden(f"resnet{depth}_w4")
    net = DilatedResNet(depth, 3, width=4)
    variables, report = weights.fill(arrays, variables_of(net), where="golden")
    if depth == 50:  # torchvision has no such head
      assert report.left_out == ("cls.weight",)
      assert report.kept == ("params/cls/kernel",)
      kernel = arrays["cls.weight"][:, :, 0, 0].T[None, None]
      variables["params"]["cls"]["kernel"] = kernel
    else:
      assert not report.left_out and not report.kept
    class_map, features = jax.jit(
      lambda v, x: net.apply(v, x, jnp.ones(2, bool), train=False)
    )(variables, golden["images"])
    assert relative(class_map, golden["class_map"]) < 1e-5
    assert relative(features, golden["features"]) < 1e-5

  def test_projections(self):
    two_branches = narrow()
    arrays = weights.to_state_dict(two_branches)
    rng = np.random.default_rng(0)
    for part, method in (
      ("proj_3d", "project_3d"),
      ("proj_2d", "project_2d"),
    ):
      x = rng.normal(size=(4, arrays[f"{part}.weight"].shape[1]))
      got = NARROW.apply(
        two_branches, jnp.asarray(x, jnp.float32), method=method
      )
      want = np.einsum("oi,pi->po", arrays[f"{part}.weight"], x)
      want += arrays[f"{part}.bias"]
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def imported():
  """Every entry of a kernel's tap k is k + 1."""
  variables = variables_of(MinkUNet("14A", 2, width=1), channels=1)
  arrays = weights.to_state_dict(variables, names="minkowski")
  for key, value in arrays.items():
    if key.endswith("kernel") and value.ndim == 3:
      value[:] = np.arange(1, len(value) + 1)[:, None, None]
  filled, _ = weights.fill(arrays, variables, where="x")
  return filled["params"]


@pytest.fixture(scope="module")
def cube():
  """All voxels of a cube of 8^3, and the plan of them."""
  coords = np.argwhere(np.ones((1, 8, 8, 8))).astype(np.int32)
  plan = plan_lib.build_plan(coords, 512, (512, 64, 8), is_sorted=False)
  return coords, plan


class TestImpulses:
  """One input voxel and kernels that tell their taps, by the convention."""

  def impulse(self, coords, at):
    hit = (np.asarray(coords)[:, 1:] == at).all(1)
    assert hit.sum() == 1
    return jnp.asarray(hit[:, None], jnp.float32)

  def test_odd_kernels_count_x_first(self, imported, cube):
    coords, plan = cube
    center = np.array([3, 4, 2])
    x = self.impulse(coords, center)
    for size, out in (
      (5, conv.stem_conv(x, imported["conv0"]["kernel"], plan)),
      (
        3,
        conv.submanifold_conv(
          x,
          imported["block1_0"]["conv1"]["kernel"],
          plan.levels[0].neighbors,
        ),
      ),
    ):
      r = size // 2
      # out(p) += in(p + d) W[k]: the impulse is at d = center - p.
      d = center - coords[:, 1:]
      k = (d + r) @ [1, size, size**2]
      want = np.where((np.abs(d) <= r).all(1), k + 1, 0)
      np.testing.assert_array_equal(out[:, 0], want)

  def test_even_kernels_go_up_as_they_come_down(self, imported, cube):
    coords, plan = cube
    coarse = np.asarray(plan.levels[1].coords)
    for at in ((3, 4, 2), (0, 7, 5)):
      x = self.impulse(coords, at)
      out = conv.strided_conv(x, imported["conv1"]["kernel"], plan.levels[0])
      # fine = 2 coarse + t, k = tx + 2 ty + 4 tz.
      k = np.array(at) % 2 @ [1, 2, 4]
      parent = (coarse[:, 1:] == np.array(at) // 2).all(1)
      np.testing.assert_array_equal(out[:, 0], parent * (k + 1))
    kernel = imported["convtr7"]["kernel"]
    x = self.impulse(coarse, (1, 2, 3))
    x = jnp.pad(x, ((0, 0), (0, kernel.shape[1] - 1)))
    up = conv.transposed_conv(x, kernel, plan.levels[0])
    child = (coords[:, 1:] // 2 == (1, 2, 3)).all(1)
    want = child * (coords[:, 1:] % 2 @ [1, 2, 4] + 1)
    np.testing.assert_array_equal(up[:, 0], want)
