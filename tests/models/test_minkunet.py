"""MinkUNet against published sizes and a dictionary-based re-implementation."""

import itertools
import math
from collections import Counter

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax.models import initialize, minkunet
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse import voxelize

# The programs of a module are shared, so its tests belong into one process.
pytestmark = pytest.mark.xdist_group("minkunet")

# Planes of the eight stages, as specified.
PLANES = {
  "14A": (32, 64, 128, 256, 128, 128, 96, 96),
  "14B": (32, 64, 128, 256, 128, 128, 128, 128),
  "14C": (32, 64, 128, 256, 192, 192, 128, 128),
  "14D": (32, 64, 128, 256, 384, 384, 384, 384),
  "34A": (32, 64, 128, 256, 256, 128, 64, 64),
  "34B": (32, 64, 128, 256, 256, 128, 64, 32),
  "34C": (32, 64, 128, 256, 256, 128, 96, 96),
}
PLANES |= {f"18{k}": PLANES[f"14{k}"] for k in "ABCD"}
PLANES |= {"50": PLANES["34C"], "101": PLANES["34C"]}
BLOCKS = {
  "14": (1,) * 8,
  "18": (2,) * 8,
  "34": (2, 3, 4, 6, 2, 2, 2, 2),
  "50": (2, 3, 4, 6, 2, 2, 2, 2),
  "10": (2, 3, 4, 23, 2, 2, 2, 2),  # of "101"
}
# Compiling is most of the time here, and these programs run once.
FAST_COMPILE = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
}


def shape_of_plan(capacities):
  return jax.eval_shape(
    lambda c, n: plan_lib.build_plan(c, n, capacities),
    jax.ShapeDtypeStruct((capacities[0], 4), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
  )


def shapes_of(model, capacities=(16, 8, 8, 8, 8), channels=6):
  """Shapes of the variables by path, and of (logits, features)."""
  plan = shape_of_plan(capacities)
  out, variables = jax.eval_shape(
    lambda key, x, plan: model.init_with_output(key, x, plan, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((capacities[0], channels), jnp.float32),
    plan,
  )
  flat = {
    name: flax.traverse_util.flatten_dict(tree, sep="/")
    for name, tree in variables.items()
  }
  return flat, out


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile(FAST_COMPILE)


def number(params):
  return sum(math.prod(leaf.shape) for leaf in params.values())


class TestSizes:
  @pytest.mark.parametrize(
    ("arch", "expected"),
    [("18A", 15_505_172), ("14C", 11_931_924), ("34C", 37_868_052)],
  )
  def test_published_parameter_counts(self, arch, expected):
    shapes, _ = shapes_of(MinkUNet(arch, num_classes=20))
    assert number(shapes["params"]) == expected

  def test_all_architectures_are_named(self):
    assert set(minkunet.ARCHITECTURES) == set(PLANES)

  @pytest.mark.parametrize("arch", sorted(PLANES))
  def test_counts_add_up(self, arch):
    """The number of parameters, summed by hand over the layers."""
    planes, blocks = PLANES[arch], BLOCKS[arch[:2]]
    bottleneck = arch in ("50", "101")
    wide = 4 if bottleneck else 1

    def block(inputs, p):
      if bottleneck:
        convs = inputs * p + 27 * p * p + p * 4 * p
        norms = 2 * (p + p + 4 * p)
      else:
        convs = 27 * (inputs * p + p * p)
        norms = 2 * (p + p)
      skip = inputs * p * wide + 2 * p * wide if inputs != p * wide else 0
      return convs + norms + skip

    total, x, skips = 125 * 6 * 32 + 2 * 32, 32, []
    for stage in range(8):
      p = planes[stage]
      if stage < 4:
        skips.append(x)
        total += 8 * x * x + 2 * x
      else:
        total += 8 * x * p + 2 * p
        x = p + skips.pop()
      for _ in range(blocks[stage]):
        total += block(x, p)
        x = p * wide
    total += x * 20 + 20
    shapes, (logits, features) = shapes_of(MinkUNet(arch, num_classes=20))
    assert number(shapes["params"]) == total
    assert logits.shape == (16, 20)
    assert features.shape == (16, planes[-1] * wide)
    # A running mean and variance for every scale and bias.
    norms = [n for n in shapes["params"] if n.endswith("scale")]
    assert len(shapes["batch_stats"]) == 2 * len(norms)

  def test_shapes_of_an_official_state_dict(self):
    """Kernels of 18A, as [taps, in, out], and how often each occurs."""
    shapes, _ = shapes_of(MinkUNet("18A", num_classes=20))
    kernels = Counter(
      leaf.shape for n, leaf in shapes["params"].items() if "kernel" in n
    )
    assert kernels == {
      (125, 6, 32): 1,
      (8, 32, 32): 2,
      (8, 64, 64): 1,
      (8, 128, 128): 2,
      (8, 256, 128): 1,
      (8, 128, 96): 1,
      (8, 96, 96): 1,
      (27, 32, 32): 4,
      (27, 32, 64): 1,
      (27, 64, 64): 3,
      (27, 64, 128): 1,
      (27, 128, 128): 9,
      (27, 128, 256): 1,
      (27, 256, 256): 3,
      (27, 256, 128): 1,
      (27, 192, 128): 1,
      (27, 128, 96): 2,
      (27, 96, 96): 6,
      (32, 64): 1,
      (64, 128): 1,
      (128, 256): 1,
      (256, 128): 1,
      (192, 128): 1,
      (128, 96): 2,
      (96, 20): 1,
    }
    norms = Counter(
      leaf.shape[0] for n, leaf in shapes["params"].items() if "scale" in n
    )
    assert norms == {32: 7, 64: 6, 128: 18, 256: 5, 96: 12}

  def test_width_scales_every_plane(self):
    shapes, (_, features) = shapes_of(MinkUNet("14A", 5, width=8))
    assert features.shape == (16, 24)
    widths = {leaf.shape for n, leaf in shapes["params"].items() if "bn" in n}
    assert widths == {(8,), (16,), (32,), (24,)}

  def test_a_stem_of_27_taps(self):
    shapes, _ = shapes_of(MinkUNet("14A", 5, stem_size=3))
    assert shapes["params"]["conv0/kernel"].shape == (27, 6, 32)
    with pytest.raises(ValueError, match="stem_size must be 3 or 5, got 4"):
      shapes_of(MinkUNet("14A", 5, stem_size=4))

  def test_unknown_architecture(self):
    with pytest.raises(ValueError, match="'18E'.*14A.*101"):
      shapes_of(MinkUNet("18E"))

  def test_a_plan_of_too_few_levels(self):
    with pytest.raises(ValueError, match="5 levels, got 3"):
      shapes_of(MinkUNet("14A"), capacities=(16, 8, 8))


class TestInitialisation:
  def test_kaiming_fan_out(self):
    # [taps, in, out]: sqrt(2 / (taps * out)).
    assert initialize.kernel_std((27, 3, 8)) == math.sqrt(2 / (27 * 8))
    assert initialize.kernel_std((3, 3, 64, 128)) == math.sqrt(2 / (9 * 128))

  def test_values(self):
    model = MinkUNet("14A", num_classes=20)
    plan = shape_of_plan((16, 8, 8, 8, 8))

    def init(seed):
      x = jax.ShapeDtypeStruct((16, 6), jnp.float32)
      tree = initialize.init_variables(model, seed, x, plan, train=False)
      return flax.traverse_util.flatten_dict(tree, sep="/")

    variables, again, other = init(3), init(3), init(4)
    drawn = []
    for name, value in variables.items():
      np.testing.assert_array_equal(value, again[name])
      kind = name.split("/")[-1]
      if kind == "kernel":
        assert not np.array_equal(value, other[name])
        drawn.append(value / initialize.kernel_std(value.shape))
        # No two kernels share their numbers.
        size = value.size
        spread = drawn[-1].std()
        assert abs(spread - 1) < 6 / math.sqrt(2 * size), name
      else:
        assert (value == (kind in ("scale", "var"))).all(), name
    first = Counter(float(a.reshape(-1)[0]) for a in drawn)
    assert max(first.values()) == 1


def surface(rng, size, points, scene):
  """Voxels [m, 4] of a folded sheet, in the order of `voxelize`."""
  place = rng.uniform(0, size, (points, 2))
  height = 0.4 * np.abs(place[:, :1] - size / 2) + rng.uniform(0, 1.5)
  voxels = voxelize.voxelize(np.c_[place, height], 1.0)
  coords = np.c_[np.full(len(voxels.coords), scene), voxels.coords]
  return coords.astype(np.int32), voxels.level_counts


def two_scenes(rng, size, points, channels=6):
  parts = [surface(rng, size, points, scene) for scene in (0, 1)]
  coords = np.concatenate([p[0] for p in parts])
  counts = np.sum([p[1] for p in parts], axis=0)
  features = rng.normal(size=(len(coords), channels)).astype(np.float32)
  return coords, features, counts


def pad(coords, features, capacity, fill=0.0):
  rows = capacity - len(coords)
  return (
    np.pad(coords, ((0, rows), (0, 0)), constant_values=-1),
    np.pad(features, ((0, rows), (0, 0)), constant_values=fill),
    np.int32(len(coords)),
  )


def random_statistics(rng, tree):
  """Running means and variances that are not those of a fresh network."""

  def draw(path, leaf):
    if path[-1].key == "mean":
      return rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype)
    return rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, tree)


class DictNet:
  """MinkUNet of basic blocks, evaluation mode, as dicts of voxels."""

  def __init__(self, params, batch_stats, blocks):
    self.params, self.stats, self.blocks = params, batch_stats, blocks

  def __call__(self, voxels):
    x = self.conv(voxels, self.params["conv0"]["kernel"], 5)
    x = self.relu(self.norm(x, "bn0"))
    skips, coordinates = [], []
    for i in range(1, 5):
      skips.append(x)
      coordinates.append(list(x))
      x = self.down(x, self.params[f"conv{i}"]["kernel"])
      x = self.relu(self.norm(x, f"bn{i}"))
      x = self.stage(x, i)
    for i in range(4, 8):
      x = self.up(x, self.params[f"convtr{i}"]["kernel"], coordinates.pop())
      x = self.relu(self.norm(x, f"bntr{i}"))
      skip = skips.pop()
      x = {p: np.concatenate([v, skip[p]]) for p, v in x.items()}
      x = self.stage(x, i + 1)
    final = self.params["final"]
    logits = {p: v @ final["kernel"] + final["bias"] for p, v in x.items()}
    return logits, x

  def conv(self, x, weight, size):
    """out(p) += in(p + d) W[k], k = (dx+r) + K (dy+r) + K^2 (dz+r)."""
    r = size // 2
    out = {}
    for p in x:
      out[p] = np.zeros(weight.shape[-1])
      for dx, dy, dz in itertools.product(range(-r, r + 1), repeat=3):
        q = (p[0], p[1] + dx, p[2] + dy, p[3] + dz)
        if q in x:
          k = (dx + r) + size * (dy + r) + size**2 * (dz + r)
          out[p] = out[p] + x[q] @ weight[k]
    return out

  @staticmethod
  def parent_and_tap(p):
    """fine = 2 coarse + t, k = tx + 2 ty + 4 tz."""
    coarse = (p[0], *(c // 2 for c in p[1:]))
    tx, ty, tz = (c - 2 * (c // 2) for c in p[1:])
    return coarse, tx + 2 * ty + 4 * tz

  def down(self, x, weight):
    out = {}
    for p, value in x.items():
      coarse, k = self.parent_and_tap(p)
      out[coarse] = out.get(coarse, 0) + value @ weight[k]
    return out

  def up(self, x, weight, fine):
    out = {}
    for p in fine:
      coarse, k = self.parent_and_tap(p)
      out[p] = x[coarse] @ weight[k]
    return out

  def norm(self, x, *path):
    params, stats = self.params, self.stats
    for name in path:
      params, stats = params[name], stats[name]
    scale = params["scale"] / np.sqrt(stats["var"] + 1e-5)
    return {
      p: (v - stats["mean"]) * scale + params["bias"] for p, v in x.items()
    }

  @staticmethod
  def relu(x):
    return {p: np.maximum(v, 0) for p, v in x.items()}

  def stage(self, x, index):
    for i in range(self.blocks):
      name = f"block{index}_{i}"
      block = self.params[name]
      y = self.conv(x, block["conv1"]["kernel"], 3)
      y = self.relu(self.norm(y, name, "norm1"))
      y = self.conv(y, block["conv2"]["kernel"], 3)
      y = self.norm(y, name, "norm2")
      if "downsample_conv" in block:
        x = {p: v @ block["downsample_conv"]["kernel"] for p, v in x.items()}
        x = self.norm(x, name, "downsample_norm")
      x = self.relu({p: y[p] + v for p, v in x.items()})
    return x


def test_equals_a_network_of_dictionaries():
  rng = np.random.default_rng(5)
  coords, features, counts = two_scenes(rng, 24.0, 110)
  capacities = (256, 160, 80, 32, 16)
  assert all(counts <= capacities) and counts[-1] > 4
  # The order of rows is of no importance to a plan that sorts them.
  order = rng.permutation(len(coords))
  coords, features = coords[order], features[order]
  padded, x, count = pad(coords, features, capacities[0])
  model = MinkUNet("14A", num_classes=3, width=4)
  variables = initialize.init_variables(
    model, 0, x, shape_of_plan(capacities), train=False
  )
  variables["batch_stats"] = random_statistics(rng, variables["batch_stats"])
  # Scales and biases of a fresh network would hide where they are applied.
  variables["params"] = jax.tree.map(
    lambda a: a + (a.ndim == 1) * rng.normal(0, 0.2, a.shape).astype("f4"),
    variables["params"],
  )

  def run(variables, x, coords, count):
    plan = plan_lib.build_plan(coords, count, capacities, is_sorted=False)
    return model.apply(variables, x, plan, train=False)

  found = compiled(run, variables, x, padded, count)(
    variables, x, padded, count
  )
  net = DictNet(
    jax.tree.map(lambda a: a.astype(np.float64), variables["params"]),
    variables["batch_stats"],
    blocks=1,
  )
  places = [tuple(p.tolist()) for p in coords]
  expected = net(dict(zip(places, features.astype(np.float64), strict=True)))
  for mine, its in zip(expected, found, strict=True):
    mine = np.stack([mine[p] for p in places])
    its = np.asarray(its)[: len(coords)]
    np.testing.assert_allclose(its, mine, rtol=1e-3, atol=1e-4)
    assert mine.std() > 0.1


CAPACITIES = (512, 256, 128, 64, 32)
LARGER = (640, 328, 160, 72, 40)


@pytest.fixture(scope="module")
def scenes():
  rng = np.random.default_rng(6)
  coords, features, counts = two_scenes(rng, 20.0, 300)
  assert all(counts <= CAPACITIES) and counts[0] > 300
  return coords, features


@pytest.fixture(scope="module")
def variables():
  x = jax.ShapeDtypeStruct((CAPACITIES[0], 6), jnp.float32)
  plan = shape_of_plan(CAPACITIES)
  return initialize.init_variables(MinkUNet(), 0, x, plan, train=False)


def train_mode(variables, x, coords, count, capacities, **settings):
  plan = plan_lib.build_plan(coords, count, capacities)
  return MinkUNet(**settings).apply(
    variables, x, plan, train=True, mutable=["batch_stats"]
  )


@pytest.fixture(scope="module")
def run(variables, scenes):
  """(logits, batch statistics, gradients) for a fill of the padding."""

  def step(variables, x, coords, count):
    def loss(params):
      (logits, features), new = train_mode(
        {**variables, "params": params}, x, coords, count, CAPACITIES
      )
      valid = (jnp.arange(len(x)) < count)[:, None]
      value = jnp.where(valid, jnp.sin(logits), 0).mean()
      value += jnp.where(valid, jnp.cos(features), 0).mean()
      return value, (logits, new)

    return jax.grad(loss, has_aux=True)(variables["params"])

  def arguments(fill):
    coords, x, count = pad(*scenes, CAPACITIES[0], fill)
    return variables, x, coords, count

  program = compiled(step, *arguments(0))

  def run(fill):
    gradients, (logits, new) = program(*arguments(fill))
    logits = np.asarray(logits)[: len(scenes[0])]
    return logits, new["batch_stats"], gradients

  return run


@pytest.fixture(scope="module")
def plain(run):
  return run(0)


class TestWholeNetwork:
  """One 18A of full width, in as few programs as can be."""

  def test_forward_and_backward(self, plain):
    logits, stats, gradients = plain
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    for leaf in jax.tree.leaves((stats, gradients)):
      assert np.isfinite(leaf).all()
    # Every parameter is reached.
    flat = flax.traverse_util.flatten_dict(gradients, sep="/")
    for name, gradient in flat.items():
      assert np.asarray(gradient).any(), name

  def test_padding_may_hold_any_number(self, plain, run):
    for a, b in zip(
      jax.tree.leaves(plain), jax.tree.leaves(run(1e4)), strict=True
    ):
      np.testing.assert_array_equal(a, b)

  def test_a_larger_bucket_changes_nothing(self, plain, variables, scenes):
    coords, x, count = pad(*scenes, LARGER[0])

    def run(*args):
      return train_mode(*args, LARGER)

    program = compiled(run, variables, x, coords, count)
    (logits, _), new = program(variables, x, coords, count)
    scale = np.abs(plain[0]).max()
    np.testing.assert_allclose(
      np.asarray(logits)[: len(scenes[0])], plain[0], atol=1e-4 * scale
    )
    for a, b in zip(
      jax.tree.leaves(new["batch_stats"]),
      jax.tree.leaves(plain[1]),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

  def test_bfloat16_is_close(self, plain, variables, scenes):
    coords, x, count = pad(*scenes, CAPACITIES[0])

    def run(*args):
      return train_mode(*args, CAPACITIES, dtype=jnp.bfloat16)

    program = compiled(run, variables, x, coords, count)
    (logits, features), new = program(variables, x, coords, count)
    assert logits.dtype == jnp.float32
    assert features.dtype == jnp.bfloat16
    dtypes = {a.dtype for a in jax.tree.leaves(new["batch_stats"])}
    assert dtypes == {jnp.dtype(jnp.float32)}
    error = np.asarray(logits)[: len(scenes[0])] - plain[0]
    relative = np.linalg.norm(error) / np.linalg.norm(plain[0])
    assert 0 < relative < 0.1
