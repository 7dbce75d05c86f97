"""MinkUNet, the sparse voxel U-Net (Choy et al., CVPR 2019), 14A to 101.

A 5^3 stem (or 3^3), four stages of a 2^3 strided convolution and residual
blocks, four of a 2^3 transposed convolution, the skip concatenated, and
residual blocks; batch norm and ReLU throughout; a 1x1 classifier with bias.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsegpc_jax.models import initialize
from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm
from wsegpc_jax.sparse import conv
from wsegpc_jax.sparse.plan import Plan

STEM_WIDTH = 32
_BASIC_PLANES = {
  "A": (32, 64, 128, 256, 128, 128, 96, 96),
  "B": (32, 64, 128, 256, 128, 128, 128, 128),
  "C": (32, 64, 128, 256, 192, 192, 128, 128),
  "D": (32, 64, 128, 256, 384, 384, 384, 384),
}
_PLANES_34 = {
  "A": (32, 64, 128, 256, 256, 128, 64, 64),
  "B": (32, 64, 128, 256, 256, 128, 64, 32),
  "C": (32, 64, 128, 256, 256, 128, 96, 96),
}
_LAYERS = {
  "14": (1,) * 8,
  "18": (2,) * 8,
  "34": (2, 3, 4, 6, 2, 2, 2, 2),
  "50": (2, 3, 4, 6, 2, 2, 2, 2),
  "101": (2, 3, 4, 23, 2, 2, 2, 2),
}
# name -> (blocks a stage, planes a stage, expansion: 4 for bottleneck blocks)
ARCHITECTURES = {
  **{
    f"{depth}{letter}": (_LAYERS[depth], planes, 1)
    for depth in ("14", "18")
    for letter, planes in _BASIC_PLANES.items()
  },
  **{f"34{k}": (_LAYERS["34"], v, 1) for k, v in _PLANES_34.items()},
  "50": (_LAYERS["50"], _PLANES_34["C"], 4),
  "101": (_LAYERS["101"], _PLANES_34["C"], 4),
}


class SparseConv(nn.Module):
  """A convolution without bias; `kind` says which (see `sparse.conv`)."""

  features: int
  taps: int
  dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  @nn.compact
  def __call__(self, x, apply, where):
    shape = (self.taps, x.shape[-1], self.features)
    weight = self.param("kernel", initialize.kernel_init, shape)
    return apply(
      x.astype(self.dtype),
      weight.astype(self.dtype),
      where,
      implementation=self.implementation,
    )


class Pointwise(nn.Module):
  """A 1^3 convolution: a matrix product."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    weight = self.param("kernel", initialize.kernel_init, shape)
    return x.astype(self.dtype) @ weight.astype(self.dtype)


class BasicBlock(nn.Module):
  """Two 3^3 convolutions and a skip; `middle` is the width between them."""

  planes: int
  conv3: type
  point: type
  norm: type
  middle: int | None = None

  @nn.compact
  def __call__(self, x, level, *, train: bool):
    apply = conv.submanifold_conv
    norm = functools.partial(_norm, self.norm, level.valid, train)
    middle = self.middle or self.planes
    y = self.conv3(middle, name="conv1")(x, apply, level)
    y = nn.relu(norm("norm1", y))
    y = norm("norm2", self.conv3(self.planes, name="conv2")(y, apply, level))
    if x.shape[-1] != self.planes:
      x = self.point(self.planes, name="downsample_conv")(x)
      x = norm("downsample_norm", x)
    return nn.relu(y + x)


class BottleneckBlock(nn.Module):
  """1^3, 3^3, 1^3 (four times as wide) and a skip."""

  planes: int
  conv3: type
  point: type
  norm: type

  @nn.compact
  def __call__(self, x, level, *, train: bool):
    norm = functools.partial(_norm, self.norm, level.valid, train)
    wide = 4 * self.planes
    y = nn.relu(norm("norm1", self.point(self.planes, name="conv1")(x)))
    y = self.conv3(self.planes, name="conv2")(y, conv.submanifold_conv, level)
    y = nn.relu(norm("norm2", y))
    y = norm("norm3", self.point(wide, name="conv3")(y))
    if x.shape[-1] != wide:
      x = norm("downsample_norm", self.point(wide, name="downsample_conv")(x))
    return nn.relu(y + x)


def _norm(norm, valid, train, name, x):
  return norm(name=name)(x, valid, train=train)


class MinkUNet(nn.Module):
  """MinkUNet over the plan of a five-level pyramid.

  Attributes:
    arch: a key of ARCHITECTURES.
    num_classes: width K of the classifier.
    width: planes of the stem; 32 in the papers. Others scale along.
    stem_size: edge of the stem's kernel, 5 or 3.
    axis_name: device axis over which batch statistics are shared.
    dtype: of activations and products; parameters stay float32.
    implementation: of the convolutions (see `wsegpc_jax.kernels`).
  """

  arch: str = "18A"
  num_classes: int = 20
  width: int = STEM_WIDTH
  stem_size: int = 5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "m c"], plan: Plan, *, train: bool
  ) -> tuple[Float[Array, "m k"], Float[Array, "m f"]]:
    """Features of the finest voxels to (class logits, decoder features).

    Raises:
      ValueError: an unknown architecture, another size of the stem, or a plan
        without five levels.
    """
    if self.stem_size not in (3, 5):
      raise ValueError(f"stem_size must be 3 or 5, got {self.stem_size}")
    if self.arch not in ARCHITECTURES:
      raise ValueError(
        f"arch {self.arch!r} is unknown; expected one of "
        f"{', '.join(ARCHITECTURES)}"
      )
    if len(plan.levels) != 5:
      raise ValueError(f"expected a plan of 5 levels, got {len(plan.levels)}")
    layers, planes, expansion = ARCHITECTURES[self.arch]
    planes = [max(1, p * self.width // STEM_WIDTH) for p in planes]
    levels = plan.levels

    conv3 = functools.partial(
      SparseConv,
      taps=27,
      dtype=self.dtype,
      implementation=self.implementation,
    )
    conv2 = functools.partial(conv3, taps=8)
    point = functools.partial(Pointwise, dtype=self.dtype)
    norm = functools.partial(
      MaskedBatchNorm, axis_name=self.axis_name, dtype=self.dtype
    )
    block = BasicBlock if expansion == 1 else BottleneckBlock

    def stage(x, level, index):
      for i in range(layers[index]):
        x = block(
          planes[index], conv3, point, norm, name=f"block{index + 1}_{i}"
        )(x, level, train=train)
      return x

    stem = functools.partial(conv3, taps=self.stem_size**3)
    stem = stem(self.width, name="conv0")
    if self.stem_size == 5:
      x = stem(x, conv.stem_conv, plan)
    else:
      x = stem(x, conv.submanifold_conv, levels[0])
    x = nn.relu(norm(name="bn0")(x, levels[0].valid, train=train))
    skips = []
    for i in range(4):
      skips.append(x)
      down = conv2(x.shape[-1], name=f"conv{i + 1}")
      x = down(x, conv.strided_conv, levels[i])
      x = norm(name=f"bn{i + 1}")(x, levels[i + 1].valid, train=train)
      x = stage(nn.relu(x), levels[i + 1], i)
    for i in range(4):
      level = levels[3 - i]
      up = conv2(planes[4 + i], name=f"convtr{i + 4}")
      x = up(x, conv.transposed_conv, level)
      x = nn.relu(norm(name=f"bntr{i + 4}")(x, level.valid, train=train))
      x = stage(jnp.concatenate([x, skips.pop()], -1), level, 4 + i)
    return Classifier(self.num_classes, name="final")(x), x


class Classifier(nn.Module):
  """Linear layer with bias; its output is float32 or wider."""

  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "m c"]) -> Float[Array, "m k"]:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shape = (x.shape[-1], self.features)
    weight = self.param("kernel", initialize.kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return x @ weight + bias
