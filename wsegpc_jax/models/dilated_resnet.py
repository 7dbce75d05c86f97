"""The 2D branch: a dilated ResNet whose head gives class activation maps.

Dimension letters: B images, H and W pixels, h and w cells of the feature map
(about H / 8 and W / 8), C feature channels, K classes, P read positions.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm

_BLOCKS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
}
_STRIDES = (1, 2, 1, 1)
# Dilation of the first block of a layer and of its other blocks: a layer that
# gives up its stride starts with the dilation of the layer before.
_DILATIONS = ((1, 1), (1, 1), (1, 2), (2, 4))


class DilatedResNet(nn.Module):
  """ResNet (arXiv 1512.03385) of output stride 8 with a 1x1 class head.

  Layers 3 and 4 are dilated (arXiv 1606.00915) instead of strided. Unlike the
  classification network, the stem has no ReLU and neither has any part of the
  last block, so features are signed. Bottlenecks put the stride in the 3x3
  convolution. Submodules carry torchvision's names (`layer1_0/conv1` for
  `layer1.0.conv1`, `downsample_conv` and `downsample_bn` for `downsample.0`
  and `downsample.1`), the head is `cls`.

  Attributes:
    depth: 18, 34 (basic blocks), 50 or 101 (bottlenecks).
    num_classes: K.
    width: planes of the first layer; C = 8 * width, times 4 with bottlenecks.
    axis_name: device axis of the batch norm; None = this device alone.
    dtype: dtype of the arithmetic and of the features.
  """

  depth: int
  num_classes: int
  width: int = 64
  axis_name: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, mask: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Class maps and features of a batch of images.

    Args:
      images: float [B, H, W, 3], normalised.
      mask: bool [B]; False = padding, which may hold anything, also NaN.
      train: batch norm over the batch (True) or by running statistics.

    Returns:
      Class maps, `dtype` or float32 if that is wider, [B, H, W, K], and
      features, `dtype` [B, h, w, C]. Both are zero for padded images.

    Raises:
      ValueError: no such depth, or mask does not fit images.
    """
    if self.depth not in _BLOCKS:
      raise ValueError(
        f"depth must be one of {list(_BLOCKS)}, not {self.depth}"
      )
    if images.ndim != 4 or mask.shape != images.shape[:1]:
      raise ValueError(
        f"images must be [B, H, W, 3] and mask [B], not {images.shape} and "
        f"{mask.shape}"
      )
    x = jnp.where(mask[:, None, None, None], images, 0).astype(self.dtype)
    x = _conv(self.width, 7, "conv1", stride=2, dtype=self.dtype)(x)
    norm = MaskedBatchNorm(axis_name=self.axis_name, name="bn1")
    x = norm(x, mask, train=train)
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for layer, blocks in enumerate(_BLOCKS[self.depth]):
      for block in range(blocks):
        x = _Block(
          planes=self.width * 2**layer,
          bottleneck=self.depth >= 50,
          stride=_STRIDES[layer] if block == 0 else 1,
          dilation=_DILATIONS[layer][min(block, 1)],
          relu=(layer, block) != (3, blocks - 1),
          axis_name=self.axis_name,
          dtype=self.dtype,
          name=f"layer{layer + 1}_{block}",
        )(x, mask, train=train)
    class_map = _conv(self.num_classes, 1, "cls", dtype=self.dtype)(x)
    return resize_bilinear_aligned(class_map, images.shape[1:3]), x


class _Block(nn.Module):
  """A residual block; `relu` False drops every ReLU, the inner ones too."""

  planes: int
  bottleneck: bool
  stride: int
  dilation: int
  relu: bool
  axis_name: str | None
  dtype: Any

  @nn.compact
  def __call__(self, x, mask, *, train):
    activate = nn.relu if self.relu else lambda y: y
    norm = functools.partial(MaskedBatchNorm, axis_name=self.axis_name)
    # Features, kernel size, stride and dilation of each convolution.
    if self.bottleneck:
      convs = (
        (self.planes, 1, 1, 1),
        (self.planes, 3, self.stride, self.dilation),
        (self.planes * 4, 1, 1, 1),
      )
    else:
      convs = (
        (self.planes, 3, self.stride, self.dilation),
        (self.planes, 3, 1, 1),
      )
    y = x
    for i, (features, size, stride, dilation) in enumerate(convs, start=1):
      y = _conv(
        features,
        size,
        f"conv{i}",
        stride=stride,
        dilation=dilation,
        dtype=self.dtype,
      )(y)
      y = norm(name=f"bn{i}")(y, mask, train=train)
      if i < len(convs):
        y = activate(y)
    if self.stride != 1 or x.shape[-1] != y.shape[-1]:
      x = _conv(
        y.shape[-1], 1, "downsample_conv", stride=self.stride, dtype=self.dtype
      )(x)
      x = norm(name="downsample_bn")(x, mask, train=train)
    return activate(x + y)


def _conv(features, size, name, *, stride=1, dilation=1, dtype):
  """A convolution without bias, padded as torch does on both sides alike."""
  padding = dilation * (size // 2)
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    # "SAME" would pad a strided convolution less at the front.
    padding=((padding, padding), (padding, padding)),
    kernel_dilation=dilation,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    name=name,
  )


def resize_bilinear_aligned(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear resize [B, h, w, C] -> [B, *size, C], corners on corners.

  Two products with interpolation matrices, which need no gather. The result
  is float32, or x's dtype if that is wider.
  """
  dtype = jnp.promote_types(jnp.float32, x.dtype)
  rows = jnp.asarray(_interpolation_matrix(x.shape[1], size[0]), dtype)
  cols = jnp.asarray(_interpolation_matrix(x.shape[2], size[1]), dtype)
  # The products are small; rounded weights would show in every logit.
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  x = product("yh,bhwc->bywc", rows, x.astype(dtype))
  return product("xw,bywc->byxc", cols, x)


def _interpolation_matrix(source, target):
  """Weights [target, source] of linear interpolation, corners aligned."""
  position = np.arange(target) * (source - 1) / max(target - 1, 1)
  return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source)))


def sample_bilinear(
  features: jax.Array,
  image: jax.Array,
  row: jax.Array,
  col: jax.Array,
  *,
  size: tuple[int, int],
  compat: bool = False,
) -> jax.Array:
  """Reads a feature map at pixel positions of the images it came from.

  Equals reading `resize_bilinear_aligned(features, size)` at these pixels.
  Differentiable in features, row and col. Positions outside the image read
  its border.

  Args:
    features: float [B, h, w, C].
    image: int32 [P] in 0..B-1, the image to read.
    row: float [P], pixels, 0..H-1.
    col: float [P], pixels, 0..W-1.
    size: (H, W) of the images.
    compat: divides by H and W instead of H - 1 and W - 1, the released code's
      reading, which is off by up to one cell towards the bottom right.

  Returns:
    [P, C], float32 or the dtype of features if that is wider.
  """
  dtype = jnp.promote_types(jnp.float32, features.dtype)
  batch, h, w, channels = features.shape
  low_y, high_y, part_y = _neighbours(row.astype(dtype), size[0], h, compat)
  low_x, high_x, part_x = _neighbours(col.astype(dtype), size[1], w, compat)
  ys = jnp.stack([low_y, low_y, high_y, high_y], -1)
  xs = jnp.stack([low_x, high_x, low_x, high_x], -1)
  weight_y = jnp.stack([1 - part_y, 1 - part_y, part_y, part_y], -1)
  weight_x = jnp.stack([1 - part_x, part_x, 1 - part_x, part_x], -1)
  # One gather of all four, so that its gradient is one scatter.
  index = (image[:, None] * h + ys) * w + xs
  cells = features.reshape(batch * h * w, channels)[index].astype(dtype)
  return jnp.sum(cells * (weight_y * weight_x)[..., None], axis=1)


def _neighbours(position, pixels, cells, compat):
  """Cells before and after a pixel position, and the share of the latter."""
  divisor = pixels if compat else max(pixels - 1, 1)
  position = jnp.clip(position * (cells - 1) / divisor, 0, cells - 1)
  low = jnp.floor(position).astype(jnp.int32)
  return low, jnp.minimum(low + 1, cells - 1), position - low
