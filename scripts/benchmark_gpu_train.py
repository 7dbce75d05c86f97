"""The training step that `benchmark_gpu.py` measures."""

import concurrent.futures
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_gpu_measure import Session, milliseconds

from wsegpc_jax.kernels.gather_conv import bench
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.sparse.plan import build_plan


def train(
  session: Session,
  voxels: int,
  implementations: list[str],
  *,
  dtype=jnp.bfloat16,
  arch: str = "18A",
) -> None:
  """A step on four scenes: plan, forward, backward, SGD.

  All are compiled before any is timed, at once, which takes minutes; each
  writes a row when it is.
  """
  scenes = [bench.surface(voxels, np.random.default_rng(s)) for s in range(4)]
  coords = np.concatenate(
    [np.pad(v, ((0, 0), (1, 0)), constant_values=s)
     for s, v in enumerate(scenes)]
  )  # fmt: skip
  level, capacities = coords.copy(), []
  for _ in range(5):
    level = np.unique(level, axis=0)
    capacities.append(len(level))
    level[:, 1:] >>= 1
  n, capacities = len(coords), tuple(capacities)
  keys = jax.random.split(jax.random.key(0), 2)
  features = jax.random.normal(keys[0], (n, 3))
  labels = jax.random.randint(keys[1], (n,), 0, 20)
  optimizer = optax.sgd(0.1, momentum=0.9)
  count = jnp.int32(n)
  coords = jnp.asarray(coords)
  levels = str(capacities)
  for tiles in (False, True):
    make_plan = jax.jit(
      functools.partial(build_plan, capacities=capacities, tiles=tiles)
    )
    ms = milliseconds(lambda: make_plan(coords, count))  # noqa: B023
    session.add(
      "train", what="plan", n=n, levels=levels, tiles=tiles, ms=round(ms, 2)
    )

  @jax.jit
  def init(key, features, coords):
    plan = build_plan(coords, jnp.int32(64), (64,) * 5)
    first = MinkUNet(arch, 20, dtype=dtype, implementation="xla")
    return first.init(key, features, plan, train=True)

  variables = init(jax.random.key(0), features[:64], coords[:64])

  def step_by(implementation):
    net = MinkUNet(arch, 20, dtype=dtype, implementation=implementation)

    def step(state, coords, features, labels):
      variables, momenta = state
      plan = build_plan(
        coords, count, capacities, implementation=implementation
      )

      def loss(params):
        given = {**variables, "params": params}
        (logits, _), new = net.apply(
          given, features, plan, train=True, mutable=["batch_stats"]
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean(), new

      (value, new), grads = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
      )
      updates, momenta = optimizer.update(grads, momenta)
      params = optax.apply_updates(variables["params"], updates)
      return ({**new, "params": params}, momenta), value

    return jax.jit(step, donate_argnums=0)

  def new_state():
    own = jax.tree.map(jnp.copy, variables)
    return own, optimizer.init(own["params"])

  def compiled(implementation):
    began = time.monotonic()
    arguments = new_state(), coords, features, labels
    run = step_by(implementation).lower(*arguments).compile()
    seconds = round(time.monotonic() - began, 1)
    session.add("train", what="compile", by=implementation, seconds=seconds)
    return run

  def measure_step(implementation, run):
    memory, state = run.memory_analysis(), new_state()
    losses, times = [], []
    for _ in range(12):
      start = time.perf_counter()
      state, value = run(state, coords, features, labels)
      losses.append(float(value))
      times.append(1e3 * (time.perf_counter() - start))
    ms = statistics.median(times[2:])
    session.add(
      "train",
      what="step",
      by=implementation,
      arch=arch,
      n=n,
      dtype=str(jnp.dtype(dtype)),
      ms=round(ms, 2),
      voxels_per_second=round(n / ms * 1e3),
      temporary_gib=round(memory.temp_size_in_bytes / 2**30, 2)
      if memory
      else None,
      first_loss=losses[0],
      last_loss=losses[-1],
    )

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    futures = {name: pool.submit(compiled, name) for name in implementations}
    concurrent.futures.wait(futures.values())
  for implementation, future in futures.items():
    try:
      measure_step(implementation, future.result())
    except Exception as error:  # the other one is measured all the same
      session.add_failure(f"training step, {implementation}", error)
