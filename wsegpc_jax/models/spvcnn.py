"""SPVCNN and SPVNAS (Tang et al., ECCV 2020, arXiv 2007.16100).

A sparse voxel U-Net of 3^3 and 2^3 convolutions beside a branch that keeps one
feature a point, without neighbours, and so the detail that the pyramid loses;
the two meet at strides 16, 4 and 1. The points are the finest voxels here:
what enters and leaves at stride 1 is the identity, and so only strides 16 and
4 need `sparse.point_voxel`. Without the branch it is the MinkUNet of the same
authors, which differs from `models.minkunet` in its stem of two 3^3
convolutions and in its widths.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsegpc_jax.models import initialize
from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm
from wsegpc_jax.models.minkunet import (
  BasicBlock,
  Classifier,
  Pointwise,
  SparseConv,
)
from wsegpc_jax.models.projection import LinearUnit
from wsegpc_jax.sparse import conv, point_voxel
from wsegpc_jax.sparse.plan import Plan


@dataclasses.dataclass(frozen=True)
class Stage:
  """A 2^3 convolution to the next level and the residual blocks there.

  Attributes:
    transition: width of the convolution.
    blocks: (width between its two convolutions, width) of each block.
  """

  transition: int
  blocks: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Widths of a network: stem, four stages down, four stages up."""

  stem: int
  down: tuple[Stage, ...]
  up: tuple[Stage, ...]

  def scaled(self, width: float) -> "Architecture":
    """All widths times `width`, rounded down, at least one."""

    def scale(value):
      if isinstance(value, tuple):
        return tuple(map(scale, value))
      if isinstance(value, Stage):
        return Stage(scale(value.transition), scale(value.blocks))
      return max(1, int(width * value))

    return Architecture(scale(self.stem), scale(self.down), scale(self.up))


def _uniform(stem: int, down: tuple, up: tuple) -> Architecture:
  """Two blocks a stage, each of one width; only going up changes the width in
  the transition."""

  def stage(transition, c):
    return Stage(transition, ((c, c), (c, c)))

  return Architecture(
    stem,
    down=tuple(map(stage, (stem, *down[:-1]), down)),
    up=tuple(map(stage, up, up)),
  )


ARCHITECTURES = {
  "spvcnn": _uniform(32, (32, 64, 128, 256), (256, 128, 96, 96)),
  # SemanticKITTI_val_SPVNAS@65GMACs: what the search found for 10.8 million.
  "spvnas_10.8m": Architecture(
    32,
    down=(
      Stage(16, ((44, 24), (36, 24))),
      Stage(44, ((80, 52), (68, 52))),
      Stage(84, ((64, 188), (68, 188))),
      Stage(152, ((116, 232), (96, 232))),
    ),
    up=(
      Stage(188, ((140, 140), (248, 140))),
      Stage(104, ((64, 152),)),
      Stage(48, ((104, 96), (56, 96))),
      Stage(64, ((112, 76),)),
    ),
  ),
}


class SPVCNN(nn.Module):
  """SPVCNN over the plan of a five-level pyramid.

  Attributes:
    arch: a key of ARCHITECTURES.
    num_classes: width K of the classifier.
    width: share of the published widths, `cr` of the authors.
    point_branch: without it, a plain MinkUNet.
    dropout: share of the features dropped where they go from points to voxels,
      in training only; 0 takes no random numbers. Needs the rng "dropout".
    axis_name: device axis over which batch statistics are shared.
    dtype: of activations and products; parameters stay float32.
    implementation: of the convolutions (see `wsegpc_jax.kernels`).
  """

  arch: str = "spvcnn"
  num_classes: int = 19
  width: float = 1.0
  point_branch: bool = True
  dropout: float = 0.3
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  # As its authors' networks start; learning rates are meant for these.
  kernel_std = staticmethod(initialize.torch_default_std)

  @nn.compact
  def __call__(
    self, x: Float[Array, "m c"], plan: Plan, *, train: bool
  ) -> tuple[Float[Array, "m k"], dict[str, Float[Array, "m _"]]]:
    """Features of the finest voxels to (class logits, features).

    Returns:
      The logits, and by name the features of every finest voxel: "bottleneck",
      of stride 16 with those of the point branch, and "decoder", which the
      classifier reads. Both are zero in padding.

    Raises:
      ValueError: an unknown architecture, or a plan without five levels.
    """
    if self.arch not in ARCHITECTURES:
      raise ValueError(
        f"arch {self.arch!r} is unknown; expected one of "
        f"{', '.join(ARCHITECTURES)}"
      )
    if len(plan.levels) != 5:
      raise ValueError(f"expected a plan of 5 levels, got {len(plan.levels)}")
    arch, levels = ARCHITECTURES[self.arch].scaled(self.width), plan.levels

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

    def unit(x, level, name, layer, width, apply, where):
      x = layer(width, name=f"{name}_conv")(x, apply, where)
      return nn.relu(norm(name=f"{name}_norm")(x, level.valid, train=train))

    def blocks(x, level, name, stage):
      for j, (middle, planes) in enumerate(stage.blocks):
        block = BasicBlock(
          planes, conv3, point, norm, middle, name=f"{name}_block{j}"
        )
        x = block(x, level, train=train)
      return x

    def up(x, i):
      level, stage = levels[3 - i], arch.up[i]
      how = conv2, stage.transition, conv.transposed_conv, level
      x = unit(x, level, f"up{i}", *how)
      x = jnp.concatenate([x, skips[3 - i]], -1)
      return blocks(x, level, f"up{i}", stage)

    def exchange(points, voxels, level, index):
      """The point branch and the voxels of a level, added up at the points."""
      read = point_voxel.trilinear_to_points(voxels, plan, level)
      if not self.point_branch:
        return read
      transform = LinearUnit(
        voxels.shape[-1], self.axis_name, self.dtype, name=f"point{index}"
      )
      return read + transform(points, levels[0].valid, train=train)

    def back(points, voxels, level):
      """What the voxels of a level go on with after an exchange."""
      if not self.point_branch:
        return voxels
      pooled = point_voxel.mean_to_voxels(points, plan, level)
      return nn.Dropout(self.dropout, deterministic=not train)(pooled)

    for i in range(2):
      how = conv3, arch.stem, conv.submanifold_conv, levels[0]
      x = unit(x, levels[0], f"stem{i}", *how)
    skips = [x]
    for i, stage in enumerate(arch.down):
      how = conv2, stage.transition, conv.strided_conv, levels[i]
      x = unit(x, levels[i + 1], f"down{i}", *how)
      x = blocks(x, levels[i + 1], f"down{i}", stage)
      skips.append(x)
    bottleneck = exchange(skips[0], x, 4, 0)
    x = up(up(back(bottleneck, x, 4), 0), 1)
    middle = exchange(bottleneck, x, 2, 1)
    x = up(up(back(middle, x, 2), 2), 3)
    decoder = exchange(middle, x, 0, 2)
    logits = Classifier(self.num_classes, name="classifier")(decoder)
    return logits, {"bottleneck": bottleneck, "decoder": decoder}


class SPVNAS(SPVCNN):
  """The searched network of 10.8 million parameters; see SPVCNN."""

  arch: str = "spvnas_10.8m"
