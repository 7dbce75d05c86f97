"""The sections of `benchmark_gpu.py` beside the convolution itself."""

import concurrent.futures
import functools
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_gpu_cases import (
  DTYPE,
  TOLERANCE,
  Case,
  Session,
  error_of,
  milliseconds,
  precision,
  surface_table,
)

from wsegpc_jax.kernels import segment_sum, strided_conv
from wsegpc_jax.kernels.gather_conv import bench
from wsegpc_jax.kernels.gather_conv.row_tiles import row_tiles
from wsegpc_jax.sparse import pool
from wsegpc_jax.sparse.plan import build_plan


def floors(session: Session, *, megabytes: int = 2048, side: int = 8192):
  """Measured rates: bytes a second, and operations by number format."""
  a = jax.random.normal(jax.random.key(0), (megabytes << 18,), jnp.float32)
  copy = jax.jit(lambda a: a * 1.0001)
  ms = milliseconds(lambda: copy(a), 100)
  session.rates["bytes"] = 2 * a.nbytes / ms * 1e3
  session.add("floors", what="copy", tbytes=session.rates["bytes"] / 1e12)
  for fmt, dtype in DTYPE.items():
    a = jax.random.normal(jax.random.key(1), (side, side), dtype)
    with precision(fmt):
      product = jax.jit(lambda a: a @ a).lower(a).compile()
    ms = milliseconds(lambda: product(a), 60)  # noqa: B023
    session.rates[fmt] = 2 * side**3 / ms * 1e3
    session.add("floors", what=fmt, tflops=session.rates[fmt] / 1e12)


def peer(session: Session, case: Case) -> None:
  """Times the Triton peer on the same numbers, compared with ours."""
  sys.path.insert(0, str(Path(__file__).parent / "peers"))
  import gather_conv_triton
  import torch

  def to_torch(a):
    if a.dtype == jnp.bfloat16:
      a = np.asarray(a).view(np.int16)
      return torch.from_numpy(a.copy()).cuda().view(torch.bfloat16)
    return torch.from_numpy(np.asarray(a).copy()).cuda()

  x, weight, g = case.operands
  found = gather_conv_triton.compare(
    *(to_torch(a) for a in (x, case.table, weight, g)),
    exact=case.fmt == "float32",
    more_time=session.has_time,
  )
  for operation, best in found.items():
    output = jnp.asarray(best["output"].float().cpu().numpy())
    error = error_of(output, case.expected[operation])
    session.add(
      "peer",
      op=operation,
      n=case.n,
      c=case.c,
      format=case.fmt,
      by="triton",
      tile=str(best["configuration"]),
      ms=round(best["ms"], 4),
      error=float(f"{error:.1e}"),
      ok=error <= TOLERANCE[case.fmt],
      **case.shares(operation, best["ms"], session.rates),
    )


def parts(session: Session, n: int) -> None:
  """Row tiles, the strided pair and segment reductions."""
  table_, _ = surface_table(n)
  for by_mask in (False, True):
    build = jax.jit(functools.partial(row_tiles, n=n, by_mask=by_mask))
    ms = milliseconds(lambda: build(table_))  # noqa: B023
    session.add("parts", what="row_tiles", n=n, by_mask=by_mask, ms=ms)
  voxels = bench.surface(n, np.random.default_rng(0))
  coords = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
  p = len(np.unique(voxels >> 1, axis=0))
  for tiles in (False, True):
    build = jax.jit(
      functools.partial(build_plan, capacities=(n, p), tiles=tiles)
    )
    plan = build(coords, jnp.int32(n))
    ms = milliseconds(lambda: build(coords, jnp.int32(n)))  # noqa: B023
    session.add("parts", what="plan", n=n, p=p, tiles=tiles, ms=ms)
  fine, keys = plan.levels[0], jax.random.split(jax.random.key(0), 3)
  children_tiles = fine.tiles.children
  for c, dtype in ((64, jnp.bfloat16), (64, jnp.float32)):
    x = jax.random.normal(keys[0], (n, c), dtype)
    y = jax.random.normal(keys[1], (p, c), dtype)
    weight = jax.random.normal(keys[2], (8, c, c), dtype)
    run = jax.jit(pool.mean_pool)
    ms = milliseconds(lambda: run(x, fine))  # noqa: B023
    session.add(
      "parts", what="mean of voxels", n=n, s=p, c=c, by="gathers of children",
      dtype=str(x.dtype), ms=round(ms, 4),
    )  # fmt: skip
    for implementation in ("xla", "pallas"):
      if not session.has_time():
        return
      how = {"implementation": implementation}
      down = functools.partial(
        strided_conv.strided_conv, tiles=children_tiles, **how
      )
      up = functools.partial(
        strided_conv.transposed_conv, tiles=fine.tiles.octants, **how
      )
      wide = functools.partial(
        strided_conv.transposed_backward, children_tiles=children_tiles, **how
      )
      for what, run, arguments in (
        ("strided", down, (x, fine.children, weight)),
        ("transposed", up, (y, fine.parent, fine.octant, weight)),
        ("transposed gradients", wide, (y, fine.children, weight, x)),
      ):
        run = jax.jit(run)
        ms = milliseconds(lambda: run(*arguments))  # noqa: B023
        session.add(
          "parts", what=what, n=n, p=p, c=c, by=implementation,
          dtype=str(x.dtype), ms=round(ms, 4),
        )  # fmt: skip
      segments = ("voxels", fine.parent, p, 8), (
        "superpoints", fine.parent * 50 // p, 50, None,
      )  # fmt: skip
      for what, segment, s, longest in segments:
        run = jax.jit(
          functools.partial(
            segment_sum.segment_reduce,
            num_segments=s, kind="mean", longest=longest, **how,
          )
        )  # fmt: skip
        ms = milliseconds(lambda: run(x, segment))  # noqa: B023
        session.add(
          "parts", what="mean of " + what, n=n, s=s, c=c, by=implementation,
          dtype=str(x.dtype), ms=round(ms, 4),
        )  # fmt: skip


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
  import optax

  from wsegpc_jax.models.minkunet import MinkUNet

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
    session.add(
      "train",
      what="compile",
      by=implementation,
      seconds=round(time.monotonic() - began, 1),
    )
    return run

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(compiled, implementations))
  for implementation, run in zip(implementations, found, strict=True):
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
