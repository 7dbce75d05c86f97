import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from wsegpc_jax.models.dilated_resnet import (
  DilatedResNet,
  resize_bilinear_aligned,
  sample_bilinear,
)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def shapes_of(model, size=(64, 48)):
  variables = jax.eval_shape(
    lambda key: model.init(
      key, jnp.zeros((1, *size, 3)), jnp.ones(1, bool), train=True
    ),
    jax.random.key(0),
  )
  return {
    collection: flax.traverse_util.flatten_dict(tree, sep="/")
    for collection, tree in variables.items()
  }


# The published sizes of the classification networks, less their heads.
@pytest.mark.parametrize(
  ("depth", "expected"),
  [
    (18, 11_186_752),
    (34, 21_797_672 - 1000 * 513 + 20 * 512),
    (50, 25_557_032 - 1000 * 2049 + 20 * 2048),
    (101, 44_549_160 - 1000 * 2049 + 20 * 2048),
  ],
)
def test_parameter_count(depth, expected):
  params = shapes_of(DilatedResNet(depth, 20))["params"]
  assert sum(np.prod(leaf.shape) for leaf in params.values()) == expected


def test_names_and_shapes_of_depth_18():
  shapes = shapes_of(DilatedResNet(18, 20))
  params = {name: leaf.shape for name, leaf in shapes["params"].items()}
  stats = {name: leaf.shape for name, leaf in shapes["batch_stats"].items()}
  for name, shape in {
    "conv1/kernel": (7, 7, 3, 64),
    "bn1/scale": (64,),
    "layer1_0/conv1/kernel": (3, 3, 64, 64),
    "layer1_1/bn2/bias": (64,),
    "layer2_0/conv1/kernel": (3, 3, 64, 128),
    "layer2_0/downsample_conv/kernel": (1, 1, 64, 128),
    "layer2_0/downsample_bn/scale": (128,),
    "layer3_0/downsample_conv/kernel": (1, 1, 128, 256),
    "layer4_0/conv1/kernel": (3, 3, 256, 512),
    "layer4_1/conv2/kernel": (3, 3, 512, 512),
    "cls/kernel": (1, 1, 512, 20),
  }.items():
    assert params[name] == shape
  # 20 convolutions and as many norms, and a head without bias.
  assert len(params) == 20 + 2 * 20 + 1
  assert len(stats) == 2 * 20
  assert stats["layer4_0/downsample_bn/var"] == (512,)
  assert [n for n in params if "layer1" in n and "downsample" in n] == []


def test_names_and_shapes_of_depth_50():
  params = shapes_of(DilatedResNet(50, 13))["params"]
  for name, shape in {
    "layer1_0/conv1/kernel": (1, 1, 64, 64),
    "layer1_0/conv3/kernel": (1, 1, 64, 256),
    "layer1_0/downsample_conv/kernel": (1, 1, 64, 256),
    "layer2_3/conv2/kernel": (3, 3, 128, 128),
    "layer3_5/bn3/scale": (1024,),
    "layer4_0/downsample_conv/kernel": (1, 1, 1024, 2048),
    "cls/kernel": (1, 1, 2048, 13),
  }.items():
    assert params[name].shape == shape


def test_output_stride_is_eight():
  model = DilatedResNet(50, 5, width=4)
  images, mask = jnp.zeros((2, 61, 80, 3)), jnp.ones(2, bool)
  (class_map, features), _ = jax.eval_shape(
    lambda key: model.init_with_output(key, images, mask, train=True),
    jax.random.key(0),
  )
  assert class_map.shape == (2, 61, 80, 5)
  assert features.shape == (2, 8, 10, 128)


def test_kernels_are_drawn_with_the_fan_out():
  initializers = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, flax.linen.Conv):
      initializers["/".join(context.module.path)] = context.module.kernel_init
    return call(*args, **kwargs)

  # Drawing the whole network takes long to compile.
  with flax.linen.intercept_methods(record):
    shapes_of(DilatedResNet(18, 20))
  assert len(initializers) == 21
  for name, shape in {
    "conv1": (7, 7, 3, 64),
    "layer2_0/conv1": (3, 3, 64, 128),
    "layer4_0/downsample_conv": (1, 1, 256, 512),
  }.items():
    kernel = initializers[name](jax.random.key(0), shape)
    wanted = np.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    np.testing.assert_allclose(np.std(kernel), wanted, rtol=0.05)


def random_images(batch, height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


def random_variables(model, seed=1):
  """Weights and running statistics that leave no layer near its defaults."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.normal(0, np.sqrt(1.5 / fan_in), leaf.shape)
    elif name in ("scale", "var"):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      value = rng.normal(0, 0.5, leaf.shape)
    return jnp.asarray(value, leaf.dtype)

  shapes = shapes_of(model)
  return {
    collection: flax.traverse_util.unflatten_dict(tree, sep="/")
    for collection, tree in jax.tree.map_with_path(
      draw,
      {
        c: flax.traverse_util.unflatten_dict(t, sep="/")
        for c, t in shapes.items()
      },
    ).items()
  }


def conv_by_taps(x, kernel, stride, dilation, padding):
  size = kernel.shape[0]
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  reach = dilation * (size - 1)
  out = 0
  for i in range(size):
    for j in range(size):
      top, left = i * dilation, j * dilation
      window = x[
        :,
        top : x.shape[1] - reach + top : stride,
        left : x.shape[2] - reach + left : stride,
      ]
      out = out + window @ kernel[i, j]
  return out


def pool_by_taps(x):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  rows, cols = x.shape[1] - 2, x.shape[2] - 2
  taps = [
    x[:, i : i + rows : 2, j : j + cols : 2] for i in range(3) for j in range(3)
  ]
  return np.max(taps, axis=0)


def reference(
  variables,
  images,
  depth,
  *,
  stem_relu=False,
  last_inner_relu=False,
  last_outer_relu=False,
  second_conv_dilated=False,
  dilations=((1, 1), (1, 1), (1, 2), (2, 4)),
):
  """The network in numpy; the switches make the mistakes to be excluded."""
  params, stats = jax.tree.map(
    lambda a: np.asarray(a, np.float64),
    (variables["params"], variables["batch_stats"]),
  )

  def norm(x, *path):
    p, s = params, stats
    for key in path:
      p, s = p[key], s[key]
    x = (x - s["mean"]) / np.sqrt(s["var"] + 1e-5)
    return x * p["scale"] + p["bias"]

  def relu(x, on=True):
    return np.maximum(x, 0) if on else x

  x = conv_by_taps(images, params["conv1"]["kernel"], 2, 1, 3)
  x = pool_by_taps(relu(norm(x, "bn1"), stem_relu))
  for layer in range(4):
    for block in range(BLOCKS[depth][layer]):
      name = f"layer{layer + 1}_{block}"
      kernels = params[name]
      last = layer == 3 and block == BLOCKS[depth][layer] - 1
      inner = last_inner_relu or not last
      stride = 2 if layer == 1 and block == 0 else 1
      dilation = dilations[layer][block > 0]
      if depth == 50:
        y = conv_by_taps(x, kernels["conv1"]["kernel"], 1, 1, 0)
        y = relu(norm(y, name, "bn1"), inner)
        y = conv_by_taps(
          y, kernels["conv2"]["kernel"], stride, dilation, dilation
        )
        y = relu(norm(y, name, "bn2"), inner)
        y = conv_by_taps(y, kernels["conv3"]["kernel"], 1, 1, 0)
        y = norm(y, name, "bn3")
      else:
        y = conv_by_taps(
          x, kernels["conv1"]["kernel"], stride, dilation, dilation
        )
        y = relu(norm(y, name, "bn1"), inner)
        second = dilation if second_conv_dilated else 1
        y = conv_by_taps(y, kernels["conv2"]["kernel"], 1, second, second)
        y = norm(y, name, "bn2")
      if "downsample_conv" in kernels:
        x = conv_by_taps(x, kernels["downsample_conv"]["kernel"], stride, 1, 0)
        x = norm(x, name, "downsample_bn")
      x = relu(x + y, last_outer_relu or not last)
  small = x @ params["cls"]["kernel"][0, 0]
  return interpolate(small, images.shape[1:3]), x


def interpolate(x, size):
  """Corner-aligned linear interpolation of [B, h, w, C], by np.interp."""
  for axis, target in zip((1, 2), size, strict=True):
    source = x.shape[axis]
    at = np.linspace(0, source - 1, target)
    x = np.apply_along_axis(
      lambda line: np.interp(at, np.arange(source), line),  # noqa: B023
      axis,
      x,
    )
  return x


@pytest.fixture(scope="module", params=[18, 50])
def evaluated(request):
  """A narrow network in evaluation mode on images of odd sizes."""
  depth = request.param
  model = DilatedResNet(depth, 3, width=3)

  @jax.jit
  def apply(variables, images):
    return model.apply(variables, images, jnp.ones(2, bool), train=False)

  return depth, apply, random_variables(model), random_images(2, 53, 74)


def test_network_equals_loops_over_taps(evaluated):
  depth, apply, variables, images = evaluated
  class_map, features = apply(variables, images)
  want_map, want_features = reference(variables, images, depth)
  np.testing.assert_allclose(features, want_features, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(class_map, want_map, rtol=1e-4, atol=1e-4)
  assert (features < 0).mean() > 0.1


def test_likely_mistakes_would_be_seen(evaluated):
  depth, apply, variables, images = evaluated
  _, features = apply(variables, images)
  mistakes = [
    {"stem_relu": True},
    {"last_inner_relu": True},
    {"last_outer_relu": True},
    {"dilations": ((1, 1), (1, 1), (2, 2), (4, 4))},
    {"dilations": ((1, 1), (1, 1), (1, 2), (1, 4))},
    {"dilations": ((1, 1), (1, 1), (1, 1), (1, 1))},
  ]
  if depth == 18:
    mistakes.append({"second_conv_dilated": True})
  for mistake in mistakes:
    _, other = reference(variables, images, depth, **mistake)
    assert np.abs(features - other).max() > 1e-2, mistake


def test_negative_stem_values_survive(evaluated):
  _, apply, variables, images = evaluated
  # A ReLU after such a norm would make all images alike.
  bias = jnp.full_like(variables["params"]["bn1"]["bias"], -20)
  params = variables["params"] | {
    "bn1": variables["params"]["bn1"] | {"bias": bias}
  }
  _, features = apply(variables | {"params": params}, images)
  assert np.abs(features[0] - features[1]).max() > 1e-2


def test_padded_images_and_their_device_do_not_matter():
  with jax.enable_x64(True):
    images = random_images(3, 16, 16)
    weights = np.random.default_rng(2).normal(size=images.shape)
    model = DilatedResNet(
      18, 3, width=2, axis_name="devices", dtype=jnp.float64
    )
    variables = random_variables(model)

    def step(variables, images, mask, weights):
      def loss(params):
        outputs, updated = model.apply(
          variables | {"params": params},
          images,
          mask,
          train=True,
          mutable=["batch_stats"],
        )
        return jnp.sum(jnp.sin(outputs[0]) * weights), (outputs, updated)

      gradient, aux = jax.grad(loss, has_aux=True)(variables["params"])
      return aux[0], (jax.lax.psum(gradient, "devices"), aux[1])

    step = jax.jit(
      jax.vmap(step, (None, 0, 0, 0), axis_name="devices"),
      compiler_options={"xla_backend_optimization_level": 0},  # faster to build
    )

    def run(mask, garbage):
      mask = np.array(mask, bool)
      padded = np.full((*mask.shape, *images.shape[1:]), garbage)
      padded[mask] = images
      padded_weights = np.full_like(padded, 3.0)
      padded_weights[mask] = weights
      outputs, state = step(variables, padded, mask, padded_weights)
      for output in outputs:
        assert not np.asarray(output)[~mask].any()
      return [np.asarray(output)[mask] for output in outputs], state

    want_outputs, want = run([[1, 1, 1], [0, 0, 0]], 0.0)
    outputs, got = run([[0, 1, 0], [1, 0, 1]], np.nan)
    for a, b in zip(outputs, want_outputs, strict=True):
      assert np.abs(b).max() > 0.1
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_features_and_float32_class_maps():
  model = DilatedResNet(18, 3, width=3, dtype=jnp.bfloat16)
  class_map, features = jax.eval_shape(
    lambda v: model.apply(
      v, jnp.zeros((1, 24, 24, 3)), jnp.ones(1, bool), train=False
    ),
    random_variables(model),
  )
  assert class_map.dtype == jnp.float32
  assert features.dtype == jnp.bfloat16


def test_wrong_depth_and_mask_are_refused():
  images = jnp.zeros((2, 24, 24, 3))
  with pytest.raises(ValueError, match="depth must be one of"):
    DilatedResNet(19, 3).init(
      jax.random.key(0), images, jnp.ones(2, bool), train=True
    )
  with pytest.raises(ValueError, match=r"\(2, 24, 24, 3\) and \(3,\)"):
    DilatedResNet(18, 3).init(
      jax.random.key(0), images, jnp.ones(3, bool), train=True
    )


@pytest.mark.parametrize(
  ("source", "target"),
  [
    ((4, 5), (13, 17)),
    ((4, 5), (4, 5)),
    ((9, 8), (4, 3)),
    ((1, 5), (6, 1)),
    ((30, 40), (240, 320)),
  ],
)
def test_resize_equals_linear_interpolation(source, target):
  x = np.random.default_rng(3).normal(size=(2, *source, 2)).astype(np.float32)
  got = resize_bilinear_aligned(x, target)
  np.testing.assert_allclose(got, interpolate(x, target), atol=1e-5)


def random_reads(count, size, batch, seed=4):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, batch, count).astype(np.int32)
  row = rng.uniform(0, size[0] - 1, count)
  col = rng.uniform(0, size[1] - 1, count)
  return image, row, col


def test_sampling_equals_reading_the_upsampled_map():
  size = (23, 31)
  rng = np.random.default_rng(5)
  features = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  image, row, col = (
    a.ravel() for a in np.meshgrid(*map(np.arange, (2, *size)), indexing="ij")
  )
  got = sample_bilinear(features, image, row, col, size=size)
  want = resize_bilinear_aligned(features, size)
  np.testing.assert_allclose(got, want.reshape(-1, 3), atol=1e-5)


@pytest.mark.parametrize("compat", [False, True])
def test_sampling_equals_scipy_between_pixels(compat):
  size = (24, 32)
  rng = np.random.default_rng(6)
  features = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
  image, row, col = random_reads(200, size, 3)
  got = sample_bilinear(
    features,
    image,
    row.astype(np.float32),
    col.astype(np.float32),
    size=size,
    compat=compat,
  )
  divisor = np.array(size) - (0 if compat else 1)
  at = row * 3 / divisor[0], col * 4 / divisor[1]
  for channel in range(2):
    want = ndimage.map_coordinates(
      features[..., channel], [image, *at], order=1
    )
    np.testing.assert_allclose(got[:, channel], want, atol=1e-5)


def test_the_last_pixel_reads_the_last_cell_unless_compat():
  features = jnp.arange(4.0).reshape(1, 2, 2, 1)
  last = jnp.array([0]), jnp.array([3.0]), jnp.array([3.0])
  got = sample_bilinear(features, *last, size=(4, 4))
  np.testing.assert_allclose(got, [[3.0]])
  # Row and column at 3/4 of a cell.
  got = sample_bilinear(features, *last, size=(4, 4), compat=True)
  np.testing.assert_allclose(got, [[2.25]])


def test_gradient_of_sampling_equals_finite_differences():
  with jax.enable_x64(True):
    size = (24, 32)
    rng = np.random.default_rng(7)
    features = rng.normal(size=(2, 4, 5, 3))
    image, row, col = random_reads(50, size, 2)
    weight = rng.normal(size=(50, 3))

    @jax.jit
    def loss(features, row, col):
      read = sample_bilinear(features, image, row, col, size=size)
      return jnp.sum(jnp.sin(read) * weight)

    point = features, row, col
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))(*point)
    for which in range(3):
      # Small enough for no position to step over a cell's edge.
      step = rng.normal(size=point[which].shape) * 1e-6
      ahead, behind = list(point), list(point)
      ahead[which] = point[which] + step
      behind[which] = point[which] - step
      np.testing.assert_allclose(
        (loss(*ahead) - loss(*behind)) / 2,
        np.vdot(gradient[which], step),
        rtol=1e-6,
      )
