"""Our side of the benchmarks: layers, network and maps, compiled.

  python engine.py FOLDER --threads 2

answers the commands of `minkunet_torch.py` with this project's engine, from
the same files. Imported by `benchmark.py`, too.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # before jax counts the cores
  _THREADS = int(sys.argv[sys.argv.index("--threads") + 1])
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_THREADS])
  # The two scenes of a batch are shared out among the cores.
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(min(_THREADS, 2)))

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from wsegpc_jax import parallel
from wsegpc_jax.models import initialize, minkunet
from wsegpc_jax.sparse import conv, morton
from wsegpc_jax.sparse import plan as plan_lib

if __name__ == "__main__":
  from turns import timed
else:
  from peers.turns import timed

LR, MOMENTUM = 0.01, 0.9
_ROUND = 256  # capacities are multiples of


def machine() -> dict[str, str]:
  """What the figures were measured on."""
  name = platform.processor() or platform.machine()
  cpuinfo = Path("/proc/cpuinfo")
  if cpuinfo.is_file():
    lines = cpuinfo.read_text().splitlines()
    names = [x.split(":")[1] for x in lines if x.startswith("model name")]
    name = names[0].strip() if names else name
  return {
    "processor": f"{name}, {os.cpu_count()} cores",
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def capacities(coords: np.ndarray) -> tuple[int, ...]:
  """Just enough room for the five levels of voxels [M, 3] in Morton order."""
  found = []
  for level in range(5):
    coarse = coords >> level
    new = (coarse[1:] != coarse[:-1]).any(1)
    found.append(-(-(int(new.sum()) + 1) // _ROUND) * _ROUND)
  return tuple(found)


def _padded(coords, rows):
  padded = np.full((rows, 4), -1, np.int32)
  padded[: len(coords)] = np.pad(coords, ((0, 0), (1, 0)))
  return jnp.asarray(padded)


def _rows(array, rows):
  widths = ((0, rows - len(array)),) + ((0, 0),) * (array.ndim - 1)
  return jnp.asarray(np.pad(array, widths))


def _plan(coords, count, rooms):
  return plan_lib.build_plan(coords, count, rooms)


def map_builder(coords: np.ndarray):
  """A function that sorts voxels [M, 3] and builds their plan."""
  coords = np.pad(coords, ((0, 0), (1, 0))).astype(np.int32)
  ordered = coords[morton.morton_order(coords)]
  rooms = capacities(ordered[:, 1:])
  build = jax.jit(
    functools.partial(plan_lib.build_plan, capacities=rooms, pairs=False)
  )

  def run():
    ordered = coords[morton.morton_order(coords)]
    padded = np.full((rooms[0], 4), -1, np.int32)
    padded[: len(ordered)] = ordered
    return jax.block_until_ready(build(padded, np.int32(len(ordered))))

  return run


class Convolution:
  """One submanifold layer; the plan is built before."""

  def __init__(self, arrays, width: int):
    coords = arrays["coords"]
    self.size, rooms = len(coords), capacities(coords)
    build = jax.jit(_plan, static_argnums=2)
    plan = build(_padded(coords, rooms[0]), np.int32(self.size), rooms)
    self.level = plan.levels[0]
    self.x = _rows(arrays[f"x_{width}"], rooms[0])
    self.cotangent = _rows(arrays[f"cotangent_{width}"], rooms[0])
    self.weight = jnp.asarray(arrays[f"weight_{width}"])
    self._forward = jax.jit(conv.submanifold_conv)

    def both(x, weight, level, cotangent):
      def apply(x, weight):
        return conv.submanifold_conv(x, weight, level)

      out, pull = jax.vjp(apply, x, weight)
      return out, *pull(cotangent)

    self._both = jax.jit(both)

  def forward(self):
    out = self._forward(self.x, self.weight, self.level)
    return jax.block_until_ready(out)

  def both(self):
    args = self.x, self.weight, self.level, self.cotangent
    return jax.block_until_ready(self._both(*args))

  def outputs(self) -> dict[str, np.ndarray]:
    out, dx, _ = (np.asarray(a) for a in self.both())
    return {"out": out[: self.size], "dx": dx[: self.size]}


def dense_product(rows: int, width: int):
  """The product of 27 taps a row without their gather, tile by tile."""
  tile = 1024
  gathered = jnp.ones((tile, 27 * width))
  weight = jnp.ones((27 * width, width))

  @jax.jit
  def run(gathered, weight, starts):
    # Every tile its own factor, or one product would serve all.
    return jax.lax.map(lambda s: (gathered.at[0, 0].set(s)) @ weight, starts)

  starts = jnp.arange(-(-rows // tile), dtype=jnp.float32)
  return lambda: jax.block_until_ready(run(gathered, weight, starts))


class Network:
  """MinkUNet18A with a 3^3 stem on one scene; plans are part of every run."""

  def __init__(
    self, arrays, weights=None, *, arch="18A", rooms=None, axis_name=None
  ):
    coords = arrays["coords"]
    self.size, rooms = len(coords), rooms or capacities(coords)
    self.model = minkunet.MinkUNet(arch, 20, stem_size=3, axis_name=axis_name)
    self.args = (
      _padded(coords, rooms[0]),
      np.int32(self.size),
      _rows(arrays["features"], rooms[0]),
    )
    self.label = _rows(arrays["label"], rooms[0])
    self.rooms = rooms
    shapes = jax.eval_shape(lambda c, n: _plan(c, n, rooms), *self.args[:2])
    variables = weights or initialize.init_variables(
      self.model, 0, self.args[2], shapes, train=False
    )
    self.variables = jax.tree.map(jnp.asarray, variables)
    self.optimizer = optax.sgd(LR, MOMENTUM)
    self._infer = jax.jit(self._inference)
    self._train = jax.jit(self.step, donate_argnums=0)
    self.state = None

  def _inference(self, variables, coords, count, x):
    plan = _plan(coords, count, self.rooms)
    return self.model.apply(variables, x, plan, train=False)[0]

  def _loss(self, params, batch_stats, coords, count, x, label, axis_name=None):
    plan = _plan(coords, count, self.rooms)
    variables = {"params": params, "batch_stats": batch_stats}
    (logits, _), new = self.model.apply(
      variables, x, plan, train=True, mutable=["batch_stats"]
    )
    terms = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    total = jax.lax.psum(count, axis_name) if axis_name else count
    loss = jnp.where(jnp.arange(len(x)) < count, terms, 0).sum() / total
    return loss, new["batch_stats"]

  def step(self, state, args, axis_name=None):
    """(state, loss) after a step; with an axis, of all devices' scenes."""
    params, batch_stats, moments = state
    grad = jax.value_and_grad(self._loss, has_aux=True)
    (loss, batch_stats), gradient = grad(
      params, batch_stats, *args, axis_name=axis_name
    )
    if axis_name:
      loss, gradient = jax.lax.psum((loss, gradient), axis_name)
    updates, moments = self.optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), batch_stats, moments), loss

  def infer(self):
    return jax.block_until_ready(self._infer(self.variables, *self.args))

  def logits(self) -> np.ndarray:
    return np.asarray(self.infer())[: self.size]

  def first_state(self):
    """(parameters, statistics, momenta): copies, as the step gives them up."""
    params, batch_stats = (
      jax.tree.map(jnp.array, self.variables[k])
      for k in ("params", "batch_stats")
    )
    return params, batch_stats, self.optimizer.init(params)

  def train(self):
    if self.state is None:
      self.state = self.first_state()
    state, loss = self._train(self.state, (*self.args, self.label))
    self.state = jax.block_until_ready(state)
    return loss

  def first_step(self) -> dict[str, float]:
    """ "loss" and "grad_norm" of the step taken first."""
    loss = self.train()
    return _loss_and_norm(self.state, loss)

  def compile_seconds(self) -> dict[str, float]:
    """Seconds that each stage of making the step's program anew takes."""
    state = jax.eval_shape(self.first_state)
    jax.clear_caches()
    clock = [time.perf_counter()]
    made = self._train.trace(state, (*self.args, self.label))
    clock.append(time.perf_counter())
    for stage in ("lower", "compile"):
      made = getattr(made, stage)()
      clock.append(time.perf_counter())
    seconds = (b - a for a, b in itertools.pairwise(clock))
    return dict(zip(("trace", "lower", "compile"), seconds, strict=True))

  def memory(self) -> dict[str, int]:
    """Bytes of a step: planned, measured, and what its backward pass keeps.

    "temporary" is what the compiled program allocates; "resident" by how much
    the memory of this process rises in its first run (Linux); "kept" adds up
    the arrays that go from the forward to the backward pass before XLA merges
    operations and computes some of them twice.
    """
    state = jax.eval_shape(self.first_state)
    args = *self.args, self.label
    compiled = self._train.lower(state, args).compile()
    found = compiled.memory_analysis()
    first = jax.block_until_ready(self.first_state())
    resident = _peak_rise(lambda: jax.block_until_ready(compiled(first, args)))

    def kept(params, batch_stats, *args):
      run = functools.partial(self._loss, batch_stats=batch_stats)

      def loss(params):
        coords, count, x, label = args
        return run(params, coords=coords, count=count, x=x, label=label)

      return jax.vjp(loss, params, has_aux=True)[1]

    traced = jax.make_jaxpr(kept)(state[0], state[1], *args)
    inner = set(traced.jaxpr.invars)  # of the state and the batch
    saved = [v for v in dict.fromkeys(traced.jaxpr.outvars) if v not in inner]
    size = sum(v.aval.size * v.aval.dtype.itemsize for v in saved)
    return {
      "temporary": found.temp_size_in_bytes,
      "resident": resident,
      "state": sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state)),
      "kept": size,
    }


def _peak_rise(run: Callable[[], Any]) -> int:
  """By how many bytes the resident memory of this process rises in a run."""

  def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith(name + ":"):
        return 1024 * int(line.split()[1])

  Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
  before = status("VmRSS")
  run()
  return status("VmHWM") - before


def _loss_and_norm(state, loss):
  # The first momenta are the gradient.
  norm = optax.tree.norm(state[2][0].trace)
  return {"loss": float(loss), "grad_norm": float(norm)}


class Batch:
  """A training step of the network on several scenes, one a device.

  As the trainer runs it: statistics and gradients are those of all scenes.
  """

  def __init__(self, arrays, weights, **options):
    scenes = split(arrays)
    rooms = tuple(map(max, *(capacities(scene["coords"]) for scene in scenes)))
    networks = [
      Network(scene, weights, rooms=rooms, axis_name=parallel.AXIS, **options)
      for scene in scenes
    ]
    mesh = parallel.device_mesh()
    if mesh.size != len(scenes):
      raise ValueError(
        f"expected a device for each of {len(scenes)} scenes, not {mesh.size}"
      )
    self._train = parallel.data_parallel(networks[0].step, mesh=mesh)
    shares = [(*network.args, network.label) for network in networks]
    shares = jax.tree.map(lambda *parts: np.stack(parts), *shares)
    self._shares = parallel.to_devices(shares, mesh, runner="shard_map")
    self.state = parallel.replicate(networks[0].first_state(), mesh)

  def train(self):
    state, loss = self._train(self.state, self._shares)
    self.state = jax.block_until_ready(state)
    return loss

  def first_step(self) -> dict[str, float]:
    loss = self.train()
    return _loss_and_norm(self.state, loss)


def split(arrays) -> list[dict[str, np.ndarray]]:
  """The scenes of a batch, where "starts" [B] says that they begin."""
  ends = [*arrays["starts"][1:], len(arrays["coords"])]
  return [
    {k: v[start:end] for k, v in arrays.items() if k != "starts"}
    for start, end in zip(arrays["starts"], ends, strict=True)
  ]


def drawn(variables):
  """Scales, biases and statistics that are not those of a start.

  Those, ones and zeros, would hide a peer that leaves them out.
  """
  rng = np.random.default_rng(4)

  def draw(path, value):
    name, value = path[-1].key, np.asarray(value)
    if name == "kernel":
      return value
    noise = 0.1 * rng.normal(size=value.shape)
    return (np.exp(noise) * value + (name != "var") * noise).astype("f4")

  return jax.tree_util.tree_map_with_path(draw, variables)


class Program:
  """The commands, as in `minkunet_torch.py`."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.convolutions, self.networks, self.begun = {}, {}, set()

  def conv(self, width, path):
    np.savez(path, **self._convolution(width).outputs())
    return {}

  def forward(self, width):
    return timed(self._convolution(width).forward)

  def both(self, width):
    return timed(self._convolution(width).both)

  def logits(self, path):
    np.save(path, self._network("scene").logits())
    return {}

  def inference(self):
    return timed(self._network("scene").infer)

  def step(self):
    return self._training("scene")

  def batch(self):
    return self._training("batch")

  def _training(self, name):
    if name not in self.begun:
      self.begun.add(name)
      return self._network(name).first_step()
    return timed(self._network(name).train)

  def _convolution(self, width):
    if width not in self.convolutions:
      with np.load(self.folder / "conv.npz") as arrays:
        self.convolutions[width] = Convolution(arrays, int(width))
    return self.convolutions[width]

  def _network(self, name):
    if name not in self.networks:
      with np.load(self.folder / f"{name}.npz") as arrays:
        arrays = dict(arrays)
      with np.load(self.folder / "weights.npz") as flat:
        weights = traverse_util.unflatten_dict(dict(flat), sep="/")
      shared = "starts" in arrays and jax.device_count() > 1
      network = Batch if shared else Network
      self.networks[name] = network(arrays, weights)
    return self.networks[name]


COMMANDS = ("conv", "forward", "both", "logits", "inference", "step", "batch")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=Path)
  parser.add_argument("--threads", type=int, required=True)
  args = parser.parse_args()
  program, answers = Program(args.folder), sys.stdout
  sys.stdout = sys.stderr
  print(json.dumps({"jax": jax.__version__}), file=answers, flush=True)
  for line in sys.stdin:
    name, *values = line.split()
    if name not in COMMANDS:
      raise ValueError(f"unknown command {name!r}")
    answer = getattr(program, name)(*values)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
