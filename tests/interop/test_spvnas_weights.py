"""Checkpoints of torchsparse networks: names, taps, slices and mistakes.

That a network filled from such a state dict computes what torchsparse defines
is shown by tests/models/test_spvcnn.py.
"""

import functools
import itertools
import logging
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import spvcnn_oracle as oracle
from flax import traverse_util

from wsegpc_jax.interop import spvnas_weights, torch_pickle
from wsegpc_jax.models.projection import ProjectionHead
from wsegpc_jax.models.spvcnn import SPVCNN, SPVNAS
from wsegpc_jax.sparse import conv
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.types import DataError

# SPVNAS of 10.8 million parameters, as its net.config decodes.
DOWN = (
  (16, ((44, 24), (36, 24))),
  (44, ((80, 52), (68, 52))),
  (84, ((64, 188), (68, 188))),
  (152, ((116, 232), (96, 232))),
)
UP = (
  (188, ((140, 140), (248, 140))),
  (104, ((64, 152),)),
  (48, ((104, 96), (56, 96))),
  (64, ((112, 76),)),
)
# A quarter of it, and a supernet (of widths all different) that contains it.
QUARTER_DOWN = (
  (4, ((11, 6), (9, 6))),
  (11, ((20, 13), (17, 13))),
  (21, ((16, 47), (17, 47))),
  (38, ((29, 58), (24, 58))),
)
QUARTER_UP = (
  (47, ((35, 35), (62, 35))),
  (26, ((16, 38),)),
  (12, ((26, 24), (14, 24))),
  (16, ((28, 19),)),
)
MOST = [8, 12, 24, 48, 61, 63, 40, 26, 30]
SUPER_DOWN = tuple(
  (i, ((o, o), (o, o))) for i, o in itertools.pairwise(MOST[:5])
)
SUPER_UP = tuple((o, ((o, o), (o, o))) for o in MOST[5:])


class SupernetNames(oracle.SpvnasNames):
  def _pair(self, root):
    return f"{root}.net.conv", f"{root}.net.bn.bn"

  def block(self, way, i, j):
    root = f"{way}sample.{i}.feature.layers.{j}"
    parts = "net.layers.0", "net.layers.1", "downsample"
    return [self._pair(f"{root}.{part}") for part in parts]

  def point(self, i):
    root = f"point_transforms.{i}.net"
    return f"{root}.conv.linear", f"{root}.bn.bn"


def blank(model, head=None):
  """Variables of zeros; of a projection head beside them, too."""
  capacities = (16, 8, 8, 8, 8)
  plan = jax.eval_shape(
    lambda c, n: plan_lib.build_plan(c, n, capacities),
    jax.ShapeDtypeStruct((16, 4), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
  )
  x = jax.ShapeDtypeStruct((16, 4), jnp.float32)
  (_, features), tree = jax.eval_shape(
    lambda key, x, plan: model.init_with_output(key, x, plan, train=False),
    jax.random.key(0),
    x,
    plan,
  )
  if head is not None:
    mask = jax.ShapeDtypeStruct((16,), jnp.bool_)
    more = jax.eval_shape(
      functools.partial(head.init, train=False),
      jax.random.key(0),
      features["bottleneck"],
      mask,
    )
    tree = {k: {**tree[k], "projection": more[k]} for k in tree}
  return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)


@functools.cache
def small(kind="spvcnn"):
  """(state dict, variables of zeros) of a narrow network."""
  if kind == "spvnas":
    names, widths = oracle.SpvnasNames(), (8, QUARTER_DOWN, QUARTER_UP, 5)
    model = SPVNAS(num_classes=5, width=0.25)
    arrays = oracle.draw(oracle.shapes(names, *widths, columns=32))
    return arrays, blank(model)
  stem, *rest = [4, 4, 8, 16, 32, 32, 16, 12, 12]
  inputs = [stem, *rest[:3]]
  down = [(i, ((o, o), (o, o))) for i, o in zip(inputs, rest, strict=False)]
  up = [(o, ((o, o), (o, o))) for o in rest[4:]]
  arrays = oracle.draw(oracle.shapes(oracle.SpvcnnNames(), stem, down, up, 5))
  model = SPVCNN(num_classes=5, width=0.125, point_branch=kind != "minkunet")
  return arrays, blank(model)


def fill(arrays, variables, **options):
  return spvnas_weights.fill(arrays, variables, where="file", **options)


def assert_same(a, b):
  a, b = (traverse_util.flatten_dict(t, sep="/") for t in (a, b))
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_all_set(variables):
  """No variable is as it was: all of zeros."""
  for path, value in traverse_util.flatten_dict(variables, sep="/").items():
    assert value.any(), path


class TestNames:
  def test_the_published_network(self):
    """Every key of the 10.8M checkpoint has its place, every weight its key."""
    shapes = oracle.shapes(oracle.SpvnasNames(), 32, DOWN, UP, 19, columns=128)
    kernels = sum(math.prod(s) for k, s in shapes.items() if "kernel" in k)
    assert kernels > 10_000_000
    ones = {
      k: np.broadcast_to(np.float32(1), s) if s else np.array(3)
      for k, s in shapes.items()
    }
    got, report = fill(ones, blank(SPVNAS()))
    assert set(report.used) == set(shapes)
    assert not report.left_out and not report.kept
    assert_all_set(got)

  @pytest.mark.parametrize("kind", ["spvcnn", "spvnas", "minkunet"])
  def test_every_key_is_used_or_told(self, kind):
    arrays, variables = small(kind)
    arrays = {**arrays, "queue.num_batches_tracked": np.zeros((), np.int64)}
    got, report = fill(arrays, variables)
    assert_all_set(got)
    assert {*report.used, *report.left_out} == set(arrays)
    assert not {*report.used} & {*report.left_out}
    unused = {"queue.num_batches_tracked"}
    if kind == "minkunet":
      unused |= {k for k in arrays if "point_transforms" in k}
      assert len(unused) > 20
    assert set(report.left_out) == unused
    # All numbers of all keys arrive, each once.
    numbers = [
      a.reshape(-1)
      for k, a in arrays.items()
      if k not in unused and "num_batches" not in k
    ]
    if kind == "spvnas":
      columns = arrays["classifier.linear.weight"]
      numbers = [a for a in numbers if a.base is not columns]
      numbers.append(columns[:, :19].reshape(-1))
    ours = [a.reshape(-1) for a in jax.tree.leaves(got)]
    np.testing.assert_array_equal(
      np.sort(np.concatenate(numbers)), np.sort(np.concatenate(ours))
    )

  def test_wrappers_and_versions(self):
    arrays, variables = small()
    want, _ = fill(arrays, variables)
    wrapped = {f"module.{k}": v for k, v in arrays.items()}
    got, report = fill(wrapped, variables)
    assert_same(got, want)
    assert report.namings[0].prefix == "module."
    # torchsparse before 1.4 wraps torch's norm; kernels of one tap differ.
    old = {}
    for key, value in arrays.items():
      name, _, leaf = key.rpartition(".")
      if f"{name}.running_var" in arrays and not name.startswith("point"):
        key = f"{name}.bn.{leaf}"
      one_tap = leaf == "kernel" and value.ndim == 2
      old[key] = value[None] if one_tap else value
    assert sum(old.get(k) is not v for k, v in arrays.items()) > 50
    assert_same(fill(old, variables)[0], want)

  @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, float])
  def test_other_floats(self, dtype):
    arrays, variables = small()
    cast = {k: v.astype(dtype) if v.ndim else v for k, v in arrays.items()}
    got, _ = fill(cast, variables)
    want = jax.tree.map(
      lambda a: a.astype(dtype).astype(np.float32), fill(arrays, variables)[0]
    )
    assert_same(got, want)
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(got))

  def test_projection(self):
    arrays, _ = small("spvnas")
    head = ProjectionHead((9, 7, 6))
    variables = blank(SPVNAS(num_classes=5, width=0.25), head)
    got, report = fill(arrays, variables)
    kept = traverse_util.flatten_dict(variables, sep="/")
    assert {*report.kept} == {k for k in kept if "projection" in k}
    proj = {}
    for i, (inputs, width) in enumerate(itertools.pairwise((58, 9, 7, 6))):
      proj[f"proj.{3 * i}.weight"] = (width, inputs)
      proj[f"proj.{3 * i}.bias"] = (width,)
      for leaf in ("weight", "bias", "running_mean", "running_var"):
        proj[f"proj.{3 * i + 1}.{leaf}"] = (width,)
    proj = oracle.draw(proj)
    got, report = fill({**arrays, **proj}, variables)
    assert_all_set(got)
    assert not report.kept and not report.left_out
    layer = got["params"]["projection"]["layer1"]
    np.testing.assert_array_equal(
      layer["linear"]["kernel"], proj["proj.3.weight"].T
    )
    np.testing.assert_array_equal(layer["norm"]["scale"], proj["proj.4.weight"])
    del proj["proj.6.bias"]
    with pytest.raises(DataError, match="proj.6.bias"):
      fill({**arrays, **proj}, variables)


class TestTaps:
  """An impulse at the place of each of torchsparse's taps."""

  def plan(self, voxels):
    coords = np.pad(sorted(voxels), ((0, 0), (1, 0))).astype(np.int32)
    plan = plan_lib.build_plan(
      coords, len(coords), (len(coords), 8, 8), is_sorted=False
    )
    rows = {tuple(v): i for i, v in enumerate(coords[:, 1:].tolist())}
    return plan, rows

  def test_odd(self):
    arrays, variables = small()
    kernel = fill(arrays, variables)[0]["params"]["stem0_conv"]["kernel"]
    theirs = arrays["stem.0.kernel"]
    plan, rows = self.plan([(5 + x, 5 + y, 5 + z) for x, y, z in oracle.ODD])
    impulses = np.zeros((27, 27, 4), np.float32)
    for tap, (x, y, z) in enumerate(oracle.ODD):
      impulses[tap, rows[5 + x, 5 + y, 5 + z], 2] = 1
    apply = jax.jit(jax.vmap(conv.submanifold_conv, (0, None, None)))
    out = apply(impulses, kernel, plan.levels[0].neighbors)
    np.testing.assert_array_equal(out[:, rows[5, 5, 5]], theirs[:, 2])

  def test_even(self):
    arrays, variables = small()
    params = fill(arrays, variables)[0]["params"]
    plan, rows = self.plan([(4 + x, 6 + y, 2 + z) for x, y, z in oracle.EVEN])
    fine = plan.levels[0]
    down, up = params["down0_conv"]["kernel"], params["up3_conv"]["kernel"]
    theirs = arrays["stage1.0.net.0.kernel"], arrays["up4.0.net.0.kernel"]
    coarse = np.zeros((8, 12), np.float32)
    coarse[0, 3] = 1
    spread = conv.transposed_conv(jnp.asarray(coarse), up, fine)
    impulses = np.zeros((8, 8, 4), np.float32)
    taps = [rows[4 + x, 6 + y, 2 + z] for x, y, z in oracle.EVEN]
    impulses[np.arange(8), taps, 1] = 1
    out = jax.jit(jax.vmap(conv.strided_conv, (0, None, None)))(
      impulses, down, fine
    )
    np.testing.assert_array_equal(out[:, 0], theirs[0][:, 1])
    np.testing.assert_array_equal(spread[np.array(taps)], theirs[1][:, 3])


class TestSupernet:
  @pytest.fixture
  def arrays(self):
    return oracle.draw(
      oracle.shapes(SupernetNames(), 8, SUPER_DOWN, SUPER_UP, 5)
    )

  @pytest.fixture
  def sliced(self, arrays):
    """The state dict of the network after its widths were fixed."""
    names = oracle.SpvnasNames()
    shapes = oracle.shapes(names, 8, QUARTER_DOWN, QUARTER_UP, 5, columns=30)
    out = {}
    for key, shape in shapes.items():
      wide = key.replace(".net.bn.", ".net.bn.bn.")
      wide = wide.replace(".feature.", ".feature.layers.")
      if ".feature." in wide:
        wide = wide.replace(".net.0.net", ".net.layers.0.net")
        wide = wide.replace(".net.1.net", ".net.layers.1.net")
      if "point_transforms" in wide:
        wide = wide.replace("conv.", "conv.linear.")
      value = arrays[wide]
      i = int(key.split(".")[1]) if key.startswith("upsample") else None
      first = ".feature.0.net.0.net.conv", ".feature.0.downsample.net.conv"
      if i is not None and any(f in key for f in first):
        # Of what comes from below, then of the skip behind all of that.
        below, skip = QUARTER_UP[i][0], [47, 13, 6, 8][i]
        most = MOST[5 + i]
        columns = [*range(below), *range(most, most + skip)]
        value = value[..., columns, :]
      out[key] = value[tuple(map(slice, shape))]
    return out

  def test_a_network_takes_the_first_channels(self, arrays, sliced):
    _, variables = small("spvnas")
    want, _ = fill(sliced, variables)
    got, report = fill(arrays, variables)
    assert_same(got, want)
    assert report.namings[0].dialect == "supernet"
    # What is left are the second blocks of the stages that have one only.
    roots = [f"upsample.{i}.feature.layers.1." for i in (1, 3)]
    assert all(key.startswith(tuple(roots)) for key in report.left_out)
    assert len(report.left_out) == 2 * 12

  def test_one_that_is_too_narrow(self, arrays):
    _, variables = small("spvnas")
    for key in (
      "downsample.2.feature.layers.0.net.layers.1.net.conv.kernel",
      "upsample.0.feature.layers.0.downsample.net.conv.kernel",
    ):
      narrow = {**arrays, key: arrays[key][..., :10, :]}
      with pytest.raises(DataError, match="does not fit") as error:
        fill(narrow, variables)
      assert key in str(error.value)


class TestMistakes:
  @pytest.mark.parametrize("kind", ["spvcnn", "spvnas"])
  def test_a_missing_key_is_named(self, kind):
    arrays, variables = small(kind)
    needed = [k for k in arrays if "num_batches" not in k]
    for key in needed[:: len(needed) // 12]:
      rest = {k: v for k, v in arrays.items() if k != key}
      with pytest.raises(DataError) as error:
        fill(rest, variables)
      words = str(error.value)
      # Without the landmark there is no telling what it is.
      landmark = "has no" not in words
      assert key in words and words.startswith("file: ")
      assert landmark == (key in spvnas_weights._LANDMARKS.values())

  @pytest.mark.parametrize("kind", ["spvcnn", "spvnas"])
  def test_a_shape_is_compared(self, kind):
    arrays, variables = small(kind)
    needed = [k for k in arrays if "num_batches" not in k]
    for key in needed[:: len(needed) // 12]:
      value = arrays[key]
      for wrong in (np.concatenate([value, value[:1]]), value[None, None]):
        with pytest.raises(DataError) as error:
          fill({**arrays, key: wrong}, variables)
        for words in ("file", key, str(list(wrong.shape))):
          assert words in str(error.value)

  @pytest.mark.parametrize(
    ("change", "words"),
    [
      (lambda a: np.full_like(a, np.nan), "finite"),
      (lambda a: a.astype(np.int32), "floats, got int32"),
      (lambda a: a.tolist(), "array, got list"),
      (lambda a: -a, "variance is negative"),
    ],
  )
  def test_values(self, change, words):
    arrays, variables = small()
    key = "stage2.1.net.4.running_var"
    with pytest.raises(DataError, match=f"{key}.*{words}"):
      fill({**arrays, key: change(arrays[key])}, variables)

  @pytest.mark.parametrize("kind", ["spvcnn", "spvnas"])
  def test_another_number_of_classes(self, kind):
    arrays, variables = small(kind)
    flat = traverse_util.flatten_dict(variables)
    for path in flat:
      if path[1] == "classifier":
        shape = (*flat[path].shape[:-1], 7)
        flat[path] = np.full(shape, 3, np.float32)
    variables = traverse_util.unflatten_dict(flat)
    with pytest.raises(DataError, match="classifier.*another number of cl"):
      fill(arrays, variables)
    got, report = fill(arrays, variables, random_head=True)
    assert set(report.kept) == {
      "params/classifier/kernel",
      "params/classifier/bias",
    }
    assert (got["params"]["classifier"]["kernel"] == 3).all()
    assert_all_set(got)

  def test_files_of_other_things(self):
    arrays, variables = small()
    with pytest.raises(DataError, match="conv0p1s1.kernel"):
      fill({"conv0p1s1.kernel": np.ones(3)}, variables)
    both = {f"{p}.{k}": v for p in ("a", "b") for k, v in arrays.items()}
    with pytest.raises(DataError, match="several, under 'a.', 'b.'"):
      fill(both, variables)
    with pytest.raises(DataError, match="stage1.*does not fit|has no"):
      fill(arrays, small("spvnas")[1])
    with pytest.raises(ValueError, match="SPVCNN"):
      fill(arrays, {"params": {"conv0": {}}})


class TestFiles:
  def test_a_checkpoint_of_a_run(self, tmp_path, caplog):
    arrays, variables = small("spvnas")
    path = tmp_path / "step-9.pt"
    torch_pickle.save(path, {"model": arrays, "optimizer": {"lr": 0.1}})
    with caplog.at_level(logging.INFO, "wsegpc_jax"):
      got, report = spvnas_weights.load(path, variables)
    assert_same(got, fill(arrays, variables)[0])
    assert report.where == str(path)
    assert f"used {len(arrays)} of {len(arrays)} keys" in caplog.text
    assert "optimizer" in caplog.text

  def test_mistakes_name_the_file(self, tmp_path):
    with pytest.raises(DataError, match="none.pt"):
      spvnas_weights.load(tmp_path / "none.pt", small()[1])
    path = tmp_path / "other.pt"
    torch_pickle.save(path, {"fc.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(DataError, match="other.pt.*fc.weight"):
      spvnas_weights.load(path, small()[1])
