"""Times the implementations of `gather_conv` side by side.

    python -m wsegpc_jax.kernels.gather_conv.bench [--rows N ...]

Every layer is a 3^3 submanifold convolution on the voxels of a synthetic
room, in Morton order. The outputs of all implementations are compared with
those of "xla" first; then they take turns, so that a change in the load of
the machine meets them all. The rate counts only the multiply-adds of pairs
that exist. The last line of the output repeats the table as JSON. Pallas is
timed on a GPU only: interpreting a kernel says nothing about its speed.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from wsegpc_jax.kernels.gather_conv import api, specs
from wsegpc_jax.sparse.morton import morton_key
from wsegpc_jax.sparse.plan import neighbor_table

# Largest difference from "xla", over the largest value, under "highest"
# precision: the same products summed in another order.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
# The reference makes one [C, D] matrix a pair; beyond this it is left out.
REFERENCE_BYTES = 1 << 28


def surface(rows: int, rng: np.random.Generator) -> np.ndarray:
  """Voxels of a room with a wavy floor, int32 [rows, 3], in Morton order."""
  side = int(np.ceil(np.sqrt(rows))) + 2
  u, v = (a.ravel() / 2 for a in np.mgrid[: 2 * side, : 2 * side])
  wave = 6 + 4 * np.sin(u / 17) * np.cos(v / 23)
  planes = [
    np.stack([u, v, wave], 1),
    np.stack([u, 0 * u, 6 + v / 2], 1),
    np.stack([0 * u, u, 6 + v / 2], 1),
  ]
  points = np.concatenate(planes)
  # As much noise as gives 14 of the 27 neighbours, what scanned rooms have.
  points = points + rng.uniform(0, 1.15, points.shape)
  voxels = np.floor(points).astype(np.int32)
  _, first = np.unique(morton_key(voxels), return_index=True)
  return voxels[first][:rows]


def problem(spec: specs.Spec, rng: np.random.Generator) -> dict[str, jax.Array]:
  """Random features, weights and cotangent on the table of a surface."""
  voxels = surface(spec.n, rng)
  coords = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
  count = jnp.int32(len(voxels))

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), spec.dtype)

  return {
    "x": normal(spec.n, spec.c),
    "table": jax.jit(neighbor_table)(coords, count),
    "weight": normal(spec.taps, spec.c, spec.d),
    "cotangent": normal(spec.n, spec.d),
  }


def operations(implementation: str) -> dict[str, Callable]:
  """The timed functions of one `problem`."""

  @jax.jit
  def forward(x, table, weight, cotangent):
    del cotangent
    return api.gather_conv(x, table, weight, implementation=implementation)

  @jax.jit
  def backward(x, table, weight, cotangent):
    return api.symmetric_backward(
      x, table, weight, cotangent, implementation=implementation
    )

  return {"forward": forward, "backward": backward}


def difference(got, expected) -> float:
  """The largest difference over the largest value."""

  def one(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)

  return max(jax.tree.leaves(jax.tree.map(one, got, expected)))


def check(
  functions: dict[str, Callable], arguments: dict, dtype: str
) -> dict[str, float]:
  """Differences from "xla"; raises AssertionError where one is too large."""
  with jax.default_matmul_precision("highest"):
    outputs = {name: f(**arguments) for name, f in functions.items()}
  found = {
    name: difference(output, outputs["xla"]) for name, output in outputs.items()
  }
  for name, value in found.items():
    if not value <= TOLERANCE[dtype]:
      raise AssertionError(
        f"{name} differs from xla by {value:.1e} of the largest value, more "
        f"than {TOLERANCE[dtype]:.0e}"
      )
  return found


def measure(
  functions: dict[str, Callable], arguments: dict, rounds: int
) -> dict[str, list[float]]:
  """Seconds of every call, the functions taking turns."""
  for f in functions.values():
    jax.block_until_ready(f(**arguments))
  times = {name: [] for name in functions}
  for _ in range(rounds):
    for name, f in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(f(**arguments))
      times[name].append(time.perf_counter() - start)
  return times


def run(
  spec: specs.Spec, implementations: tuple[str, ...], rounds: int
) -> list[dict]:
  """The results of one layer, a dict for each operation and implementation."""
  arguments = problem(spec, np.random.default_rng(0))
  pairs = int((arguments["table"] < spec.n).sum())
  size = spec.n * spec.taps * spec.c * spec.d * 4
  if size > REFERENCE_BYTES:
    implementations = tuple(i for i in implementations if i != "reference")
  built = {name: operations(name) for name in implementations}
  results = []
  for operation, products in (("forward", 1), ("backward", 2)):
    functions = {name: built[name][operation] for name in implementations}
    differences = check(functions, arguments, spec.dtype)
    times = measure(functions, arguments, rounds)
    for name in implementations:
      median = statistics.median(times[name])
      flop = 2 * products * pairs * spec.c * spec.d
      results.append(
        dataclasses.asdict(spec)
        | {
          "pairs": pairs,
          "operation": operation,
          "implementation": name,
          "median_ms": round(1e3 * median, 4),
          "min_ms": round(1e3 * min(times[name]), 4),
          "gflops": round(flop / median / 1e9, 2),
          "difference": float(f"{differences[name]:.1e}"),
        }
      )
  return results


def as_text(results: list[dict]) -> str:
  """Results as text, a row each."""
  head = (
    f"{'rows':>8} {'pairs':>9} {'C':>4} {'D':>4} {'dtype':9} {'operation':9} "
    f"{'by':9} {'median ms':>10} {'min ms':>10} {'GFLOP/s':>9} {'differs':>8}"
  )
  rows = [
    f"{r['n']:8} {r['pairs']:9} {r['c']:4} {r['d']:4} {r['dtype']:9} "
    f"{r['operation']:9} {r['implementation']:9} {r['median_ms']:10.3f} "
    f"{r['min_ms']:10.3f} {r['gflops']:9.1f} {r['difference']:8.1e}"
    for r in results
  ]
  return "\n".join([head, *rows])


def main(argv: list[str] | None = None) -> None:
  on_gpu = jax.default_backend() == "gpu"
  available = [i for i in api.IMPLEMENTATIONS if on_gpu or i != "pallas"]
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, nargs="+", help="voxels of a layer")
  parser.add_argument(
    "--implementations", nargs="+", choices=available, default=available
  )
  parser.add_argument("--rounds", type=int, default=20 if on_gpu else 7)
  parser.add_argument(
    "--precision",
    default="default",
    help="jax_default_matmul_precision of the timed runs",
  )
  args = parser.parse_args(argv)

  layers = specs.GPU if on_gpu else specs.CPU
  if args.rows:
    layers = dict.fromkeys(  # each layer once, whatever rows it had
      dataclasses.replace(layer, n=rows, m=rows)
      for rows in args.rows
      for layer in layers
    )
  # "xla" is what the others are checked against.
  implementations = tuple(dict.fromkeys(("xla", *args.implementations)))
  results = []
  with jax.default_matmul_precision(args.precision):
    for layer in layers:
      results += run(layer, implementations, args.rounds)
  device = jax.devices()[0]
  print(f"{device.device_kind}, jax {jax.__version__}, {args.precision}")
  print(as_text(results))
  text = json.dumps(
    {
      "device": device.device_kind,
      "jax": jax.__version__,
      "precision": args.precision,
      "rounds": args.rounds,
      "results": results,
    }
  )
  print(text)


if __name__ == "__main__":
  main()
