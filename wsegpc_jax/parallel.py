"""One device's step on many devices: pmap, shard_map, or vmap as the oracle.

A step sees one device's share of the batch and sums over `AXIS`. State has no
device axis, so a checkpoint loads on any number of devices; batches have one
leading axis, one row a device.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from wsegpc_jax.types import DataError

AXIS = "devices"
RUNNERS = ("pmap", "shard_map", "vmap")


def device_mesh() -> Mesh:
  """All devices of all processes in one row."""
  return Mesh(np.asarray(jax.devices()), (AXIS,))


def data_parallel(
  step: Callable, *, runner: str = "shard_map", mesh: Mesh | None = None
) -> Callable:
  """`step(state, batch, axis_name=) -> (state, metrics)` for every device.

  Args:
    step: one device's program.
    runner: "pmap" and "shard_map" use the devices of the mesh; "vmap" runs any
      number of shares on one device, which is slow and serves as the oracle.
    mesh: defaults to `device_mesh()`.

  Returns:
    f(state, batches) -> (state, metrics); batches have a leading axis of
    devices (under several processes: a global array, see `to_devices`).
    Except under pmap, the given state's buffers are consumed.

  Raises:
    ValueError: an unknown runner.
    DataError: one that several processes cannot use.
  """
  if runner not in RUNNERS:
    raise ValueError(
      f"runner={runner!r} is unknown; expected one of {', '.join(RUNNERS)}"
    )

  if runner != "shard_map" and jax.process_count() > 1:
    raise DataError(
      f"config.parallel={runner!r} runs in one process; several processes "
      "need 'shard_map'"
    )

  def per_device(state, batch):
    return step(state, batch, axis_name=AXIS)

  if runner == "vmap":

    def run(state, batches):
      mapped = jax.vmap(per_device, in_axes=(None, 0), axis_name=AXIS)
      return jax.tree.map(lambda a: a[0], mapped(state, batches))

    return jax.jit(run, donate_argnums=0)
  mesh = mesh or device_mesh()
  if runner == "pmap":
    return jax.pmap(
      per_device,
      AXIS,
      in_axes=(None, 0),
      out_axes=(None, None),
      devices=list(mesh.devices.flat),
      donate_argnums=(),
    )

  def one_share(state, batch):
    return per_device(state, jax.tree.map(lambda a: a[0], batch))

  # check_vma=False: with the check on, a psum of the gradient would count it
  # once too often for every device.
  mapped = jax.shard_map(
    one_share,
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=0)


def to_devices(batches: PyTree, mesh: Mesh, *, runner: str) -> PyTree:
  """This process's shares [local devices, ...] to what the runner takes."""
  if runner != "shard_map":
    return batches
  sharding = NamedSharding(mesh, PartitionSpec(AXIS))
  return jax.tree.map(
    lambda a: jax.make_array_from_process_local_data(sharding, a), batches
  )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """A copy of host or single-device arrays on every device of the mesh."""
  sharding = NamedSharding(mesh, PartitionSpec())

  def put(a):
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, sharding, lambda i: a[i])

  return jax.tree.map(put, tree)


def agree_on_max(value: int) -> int:
  """The largest of a host integer over all processes."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return int(multihost_utils.process_allgather(np.int32(value)).max())
