"""The two networks of WSegPC and the projections between their features."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.sparse.plan import Plan

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in 0..1
IMAGE_STD = (0.229, 0.224, 0.225)


def normalize_images(
  images: UInt8[Array, "i h w 3"],
) -> Float[Array, "i h w 3"]:
  """uint8 RGB to the range that ImageNet weights expect."""
  mean = jnp.asarray(IMAGE_MEAN, jnp.float32)
  std = jnp.asarray(IMAGE_STD, jnp.float32)
  return (images.astype(jnp.float32) / 255 - mean) / std


class TwoBranchNet(nn.Module):
  """3D MinkUNet and 2D dilated ResNet (WSegPC, section "Networks").

  Attributes:
    net_3d, net_2d: the branches.
    proj_3d_features: width of the linear layer on 3D features; equals the
      width of the 2D features (2048).
    proj_2d_features: width of the linear layer on 2D features; equals the
      width of the 3D features (96).
  """

  net_3d: MinkUNet
  net_2d: DilatedResNet
  proj_3d_features: int = 2048
  proj_2d_features: int = 96

  def setup(self):
    self.proj_3d = nn.Dense(self.proj_3d_features)
    self.proj_2d = nn.Dense(self.proj_2d_features)

  def points(self, features: Float[Array, "m c"], plan: Plan, *, train: bool):
    """(logits [M, K], features [M, C3]) of voxels."""
    return self.net_3d(features, plan, train=train)

  def images(
    self, images: UInt8[Array, "i h w 3"], mask: Bool[Array, " i"], *, train
  ):
    """(class maps [I, H, W, K], features [I, h, w, C2]) of images."""
    return self.net_2d(normalize_images(images), mask, train=train)

  def project_3d(self, x: Float[Array, "*p c"]) -> Float[Array, "*p d"]:
    """3D features into the space of the 2D ones."""
    return self.proj_3d(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

  def project_2d(self, x: Float[Array, "*p d"]) -> Float[Array, "*p c"]:
    """2D features into the space of the 3D ones."""
    return self.proj_2d(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

  def __call__(self, features, plan, images, mask, *, train: bool):
    """Both branches and projections, to initialise all of them."""
    logits_3d, features_3d = self.points(features, plan, train=train)
    logits_2d, features_2d = self.images(images, mask, train=train)
    self.project_3d(features_3d[:1])
    self.project_2d(features_2d[:1, 0, 0])
    return logits_3d, logits_2d
