"""Balanced sampling of anchor voxels over classes, hard and easy ones.

A voxel is hard if the network labels it wrongly. Every class present in the
global batch gets the same number of views, half of them hard where there are
enough (the sampling of Cluster3DSeg; Feng et al., ICCV 2023).

The batch is one pool, however it is spread over devices. Each voxel's random
number is a function of the step's key and its place in the whole batch
(devices in order, padding left out), so the sample does not depend on how many
devices there are.

Dimension letters: M voxel rows, C classes, V views (anchors) a class, E
channels.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from wsegpc_jax.types import Batch


@flax.struct.dataclass
class Sample:
  """Which voxels are anchors; the same on every device.

  Attributes:
    device: int32 [C, V], index on the device axis.
    row: int32 [C, V], voxel row on that device.
    mask: bool [C, V], taken; of each class the first ones, hard before easy.
    hard: int32 [C], hard ones among them.
    present: bool [C], classes that have a labelled voxel.
  """

  device: Int32[Array, "c v"]
  row: Int32[Array, "c v"]
  mask: Bool[Array, "c v"]
  hard: Int32[Array, " c"]
  present: Bool[Array, " c"]


def quotas(
  hard: Int32[Array, "*n"], easy: Int32[Array, "*n"], views: Int32[Array, ""]
) -> tuple[Int32[Array, "*n"], Int32[Array, "*n"]]:
  """How many hard and easy voxels to take, of those there are.

  Half of the views each; what one kind lacks the other makes up for.
  """
  take_hard = jnp.minimum(jnp.maximum(views // 2, views - easy), hard)
  return take_hard, jnp.minimum(easy, views - take_hard)


def sample_anchors(
  key: jax.Array,
  batch: Batch,
  predicted: Int32[Array, " m"],
  *,
  num_classes: int,
  max_samples: int,
  max_views: int,
  axis_name: str,
) -> Sample:
  """Draws the anchors of all devices, uniformly and without replacement.

  Views a class: max_samples over the number of classes present, at most
  max_views.

  Args:
    key: of the step, the same on all devices.
    batch: this device's share; labels outside 0..C-1 take no part.
    predicted: class that the network gives each voxel.
    num_classes: C.
    max_samples: anchors of all classes together, at least C.
    max_views: anchors a class, V.
    axis_name: device axis.
  """
  count, label = batch.student.count, batch.label
  device = jax.lax.axis_index(axis_name)
  counts = jax.lax.all_gather(count, axis_name)
  first = jnp.where(jnp.arange(counts.shape[0]) < device, counts, 0).sum()
  rows = jnp.arange(label.shape[0], dtype=jnp.int32)
  taking_part = (rows < count) & (label >= 0) & (label < num_classes)
  # Groups 2 c (hard) and 2 c + 1 (easy); what takes no part comes last.
  groups = 2 * num_classes
  group = jnp.where(taking_part, 2 * label + (predicted == label), groups)
  draw = jax.vmap(
    lambda place: jax.random.bits(jax.random.fold_in(key, place))
  )(first + rows)

  # The first V of each group here hold all that the global sample may take
  # from this device.
  group, draw, order = jax.lax.sort((group, draw, rows), num_keys=2)
  edges = jnp.searchsorted(group, jnp.arange(groups + 1), side="left")
  number = jnp.diff(edges)
  views = jnp.arange(max_views)
  place = jnp.minimum(edges[:-1, None] + views, rows.shape[0] - 1)
  gathered = jax.lax.all_gather(
    (views >= number[:, None], draw[place], order[place]), axis_name
  )
  empty, draw, row = (_devices_in_a_row(a) for a in gathered)
  device = jnp.arange(row.shape[1], dtype=jnp.int32) // max_views
  device = jnp.broadcast_to(device, row.shape)
  _, _, device, row = jax.lax.sort((empty, draw, device, row), num_keys=2)

  number = jax.lax.psum(number, axis_name).reshape(num_classes, 2)
  present = number.any(1)
  limit = max_samples // jnp.maximum(present.sum(), 1)
  limit = jnp.minimum(limit, max_views)
  hard, easy = quotas(number[:, 0], number[:, 1], limit)
  hard, easy = hard[:, None], easy[:, None]
  is_hard = views < hard
  column = jnp.where(is_hard, views, jnp.maximum(views - hard, 0))
  kind = 2 * jnp.arange(num_classes)[:, None] + ~is_hard
  return Sample(
    device=device[kind, column],
    row=row[kind, column],
    mask=views < hard + easy,
    hard=hard[:, 0],
    present=present,
  )


def _devices_in_a_row(a):
  """[D, G, V] to [G, D V]."""
  return a.swapaxes(0, 1).reshape(a.shape[1], -1)


def gather_anchors(
  features: Float[Array, "m e"], sample: Sample, *, axis_name: str
) -> Float[Array, "c v e"]:
  """Rows of the anchors, wherever they are; zero in empty slots.

  The values are the same on all devices, but a gradient flows only into rows
  of this device: with a loss of all anchors on every device, the sum of the
  devices' gradients is the gradient of that loss, counted once.
  """
  own = sample.device == jax.lax.axis_index(axis_name)
  own = (own & sample.mask)[..., None]
  mine = jnp.where(own, features[sample.row], 0)
  pooled = jax.lax.psum(jax.lax.stop_gradient(mine), axis_name)
  return jnp.where(own, mine, pooled)
