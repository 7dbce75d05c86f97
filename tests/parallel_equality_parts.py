"""Small samples, batches and a method that cover every kind of layer."""

import numpy as np

from wsegpc_jax import parallel
from wsegpc_jax.data import batching, box_rooms, parts, samples
from wsegpc_jax.methods import common
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models import minkunet
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.two_branch import TwoBranchNet

IMAGE = (24, 32)
SHARES = ((0, 1), (2,), (), (3, 4))
SETTINGS = samples.SampleSettings(
  voxel_size=0.2, num_views=2, image_size=IMAGE, num_pairs=64
)


class _Room:
  """Stands in for a data set on disk, of one scene in memory."""

  classes = box_rooms.CLASSES

  def __init__(self, scene, frames):
    self._scene, self._frames = scene, {f.name: f for f in frames}

  def load_scene(self, scene_name):
    return self._scene

  def load_frame(self, scene_name, frame_name, *, image_size):
    return self._frames[frame_name]


def make_samples() -> list[samples.Sample]:
  out = []
  for index in range(5):
    scene, frames = box_rooms.make_room(0, index, image_size=IMAGE, views=2)
    if index == 1:  # uneven, beyond what the rooms are by themselves
      near = scene.coord[:, 0] < 0.5 * scene.coord[:, 0].max()
      scene = parts.take(scene, np.flatnonzero(near))
    out.append(sample_of(scene, tuple(frames), index))
  return out


def sample_of(scene, frames, index) -> samples.Sample:
  """A training sample of a scene in memory."""
  rng = np.random.default_rng(index)
  room = _Room(scene, frames)
  return samples.training_sample(room, scene.name, rng, SETTINGS)


def make_method(dtype) -> WSegPC:
  # One block a stage at the ends only: every kind of layer, little to compile.
  minkunet.ARCHITECTURES["test"] = (
    (1, 0, 0, 0, 0, 0, 0, 1),
    minkunet.ARCHITECTURES["14A"][1],
    1,
  )
  k = len(box_rooms.CLASSES)
  shared = dict(num_classes=k, axis_name=parallel.AXIS, dtype=dtype)
  net_3d = minkunet.MinkUNet(arch="test", width=4, **shared)
  net_2d = DilatedResNet(depth=18, width=4, **shared)
  weights = LossWeights(cam_warmup=1, cmg_warmup=1, rpc_warmup=1)
  return WSegPC(
    TwoBranchNet(net_3d, net_2d, 32, 12),
    common.sgd(0.1, 10),
    weights,
    ema_keep=0.5,
  )


def make_batch(shares=((0, 1),), every=None, slots=2):
  every = every or make_samples()
  layout = batching.Layout(
    (6000,) if slots > 2 else (2400,), slots, 2, IMAGE, SETTINGS.num_pairs
  )
  batches = [
    batching.collate(
      [every[i] for i in share],
      layout,
      0,
      num_classes=len(box_rooms.CLASSES),
      teacher=True,
    )
    for share in shares
  ]
  return batching.stack(batches)
