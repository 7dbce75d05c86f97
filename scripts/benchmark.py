"""Measures the sparse engine on a CPU: maps, convolutions, MinkUNet, memory.

  python scripts/benchmark.py --threads 2 --json engine.json
  python scripts/benchmark.py --parts maps,scaling --rounds 7

Voxels are those of a made-up room with noisy surfaces: 98,000 at 2 cm for maps
and single layers, 32,630 at 5 cm for MinkUNet18A, and rooms of 25,000 to
400,000 voxels for what a voxel costs. Parts:

  maps     the plan of five levels from unsorted voxels, sorting included; of a
           room and of its halves a million voxels apart; a box is not searched
  conv     one 3^3 layer, forward and with its gradients, and the dense product
           of 27 taps alone, which a convolution is to be compared with
  network  MinkUNet18A with a 3^3 stem, maps included: evaluation mode, and a
           training step (cross-entropy, SGD with momentum)
  scaling  evaluation mode for each size of --sizes, per voxel
  compile  seconds that the program of the training step takes to make
  memory   of the training step, beside what its backward pass has to keep

Everything takes its turn in every round; figures are medians over the rounds,
but for compiling, which is the fastest of up to three times.
Run it on a machine that does nothing else; JAX_COMPILATION_CACHE_DIR=FOLDER
saves compiling at later runs, and makes the part "compile" meaningless.
`benchmark_peers.py` sets the same layers and the same network beside other
libraries.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsegpc_jax.types import DataError

# Scripts are programs, not a package: what they share lies beside them.
sys.path.append(str(Path(__file__).parent))
from peers.turns import (  # noqa: E402
  Options,
  Times,
  measure,
  report,
  seconds_of,
  spread,
  timed,
  use_cores,
)

PARTS = ("maps", "conv", "network", "scaling", "compile", "memory")
WIDTHS = (32, 64)
CONV_ROOM = (98_000, 0.02)  # voxels, metres
NETWORK_ROOM = (32_630, 0.05)
FAR = 1_000_000  # voxels between two halves
CLASSES = 20
SETTINGS = {"lr": 0.01, "momentum": 0.9}


def main(argv: list[str] | None = None) -> dict:
  """Prints the table; returns what --json holds."""
  args = parse_args(argv)
  use_cores(args.threads)
  from peers import engine  # imports jax, which counts the cores

  load = os.getloadavg()[0]
  result = {
    "threads": args.threads,
    "rounds": args.rounds,
    **engine.machine(),
    "figures": {},
  }
  for part in args.parts:
    found = PARTS_RUN[part](engine, args)
    result["figures"] |= found
  result["load"] = [load, os.getloadavg()[0]]
  return report(result, table, args.json)


def parse_args(argv):
  parser = Options(__doc__, rounds=7)
  add = parser.option
  add("--threads", type=int, default=2)
  add("--parts", default=",".join(PARTS))
  add("--sizes", default="25000,100000,400000")
  args = parser.parse(argv, "threads")
  args.parts = args.parts.split(",")
  for part in args.parts:
    if part not in PARTS:
      parser.error(f"--parts: {part!r}; expected some of {', '.join(PARTS)}")
  try:
    args.sizes = [int(size) for size in args.sizes.split(",")]
  except ValueError:
    parser.error("--sizes: expected numbers of voxels, with commas between")
  if min(args.sizes) <= 0:
    parser.error("--sizes: expected more than 0")
  return args


def room(count: int, voxel_size: float, *, seed: int = 0) -> np.ndarray:
  """Voxels [M, 3] of a room with furniture, M about `count`, in order.

  Walls, floor, ceiling and six boxes, turned by 20 degrees against the grid,
  with 1 mm of noise; 13.4 of the 27 neighbours of a voxel exist at both sizes
  above.
  """
  from wsegpc_jax.sparse import voxelize

  edge, best = np.sqrt(count / 445_000) * voxel_size / 0.02, None
  for _ in range(8):
    points = _surfaces(edge * np.array([5.0, 4.0, 2.6]), voxel_size, seed)
    voxels = voxelize.voxelize(points, voxel_size).coords
    if best is None or abs(len(voxels) - count) < abs(len(best) - count):
      best = voxels
    if abs(len(best) - count) <= 0.01 * count:
      break
    edge *= np.sqrt(count / max(len(voxels), 1))
  return best


def _surfaces(size, voxel_size, seed):
  rng = np.random.default_rng(seed)
  boxes = [(np.zeros(3), size)]
  for _ in range(6):
    edges = rng.uniform(0.08, 0.24, 3) * size
    low = rng.uniform(0, 1, 3) * (size - edges) * [1, 1, 0]
    boxes.append((low, low + edges))
  points = []
  for low, high in boxes:
    for axis in range(3):
      other = [i for i in range(3) if i != axis]
      area = np.prod((high - low)[other])
      number = int(6 * area / voxel_size**2)
      for side in (low, high):
        face = rng.uniform(low, high, (number, 3))
        face[:, axis] = side[axis]
        points.append(face + rng.normal(0, 0.001, face.shape))
  turn = np.radians(20)
  c, s = np.cos(turn), np.sin(turn)
  return np.concatenate(points) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def conv_arrays(voxels: np.ndarray, widths=WIDTHS) -> dict[str, np.ndarray]:
  """Operands of the single layers, by name; see `peers/minkunet_torch.py`."""
  rng, m = np.random.default_rng(1), len(voxels)
  arrays = {"coords": voxels}
  for c in widths:
    arrays[f"x_{c}"] = rng.normal(size=(m, c)).astype(np.float32)
    arrays[f"cotangent_{c}"] = rng.normal(size=(m, c)).astype(np.float32)
    weight = rng.normal(size=(27, c, c)) / np.sqrt(27 * c)
    arrays[f"weight_{c}"] = weight.astype(np.float32)
  return arrays


def scene_arrays(voxels: np.ndarray) -> dict[str, np.ndarray]:
  """Features and labels of the network's scene."""
  rng, m = np.random.default_rng(2), len(voxels)
  return {
    "coords": voxels,
    "features": rng.normal(size=(m, 6)).astype(np.float32),
    "label": rng.integers(0, CLASSES, m).astype(np.int32),
  }


def run_tasks(tasks: dict[str, Callable[[], Times]], rounds: int) -> dict:
  times = measure(tasks, rounds)
  return {
    name: {"ms": [1000 * s for s in spread(seconds)]}
    for name, seconds in seconds_of(times).items()
  }


def maps_part(engine, args) -> dict:
  voxels = room(*CONV_ROOM)
  far = voxels.copy()
  far[len(far) // 2 :] += FAR
  rng, tasks = np.random.default_rng(3), {}
  for name, found in {"map": voxels, "map, far apart": far}.items():
    run = engine.map_builder(rng.permutation(found))
    tasks[name] = functools.partial(timed, run)
  found = run_tasks(tasks, args.rounds)
  for figure in found.values():
    scale = 100_000 / len(voxels)
    figure["ms per 100,000 voxels"] = scale * figure["ms"][0]
  return found


def conv_part(engine, args) -> dict:
  arrays = conv_arrays(room(*CONV_ROOM))
  tasks = {}
  for c in WIDTHS:
    layer = engine.Convolution(arrays, c)
    tasks[f"conv {c} forward"] = functools.partial(timed, layer.forward)
    tasks[f"conv {c} both"] = functools.partial(timed, layer.both)
    product = engine.dense_product(len(arrays["coords"]), c)
    tasks[f"dense product {c}"] = functools.partial(timed, product)
  found = run_tasks(tasks, args.rounds)
  for c in WIDTHS:
    figure = found[f"conv {c} forward"]
    dense = found[f"dense product {c}"]["ms"][0]
    figure["of the dense product"] = figure["ms"][0] / dense
  return found


def network_part(engine, args) -> dict:
  network = engine.Network(scene_arrays(room(*NETWORK_ROOM)))
  return run_tasks(
    {
      "18A inference": functools.partial(timed, network.infer),
      "18A step": functools.partial(timed, network.train),
    },
    args.rounds,
  )


def scaling_part(engine, args) -> dict:
  tasks, counts = {}, {}
  for size in args.sizes:
    voxels = room(size, CONV_ROOM[1])
    network = engine.Network(scene_arrays(voxels))
    name = f"18A inference, {size} voxels"
    tasks[name] = functools.partial(timed, network.infer)
    counts[name] = len(voxels)
  found = run_tasks(tasks, args.rounds)
  for name, figure in found.items():
    figure["us per voxel"] = 1000 * figure["ms"][0] / counts[name]
  first = next(iter(found.values()))["us per voxel"]
  for figure in found.values():
    figure["of the first"] = figure["us per voxel"] / first
  return found


def compile_part(engine, args) -> dict:
  network = engine.Network(scene_arrays(room(*NETWORK_ROOM)))
  runs = [network.compile_seconds() for _ in range(min(args.rounds, 3))]
  seconds = min(runs, key=lambda run: sum(run.values()))
  return {"18A step, compiling": {"s": sum(seconds.values()), **seconds}}


def memory_part(engine, args) -> dict:
  del args
  voxels = room(*NETWORK_ROOM)
  sizes = engine.Network(scene_arrays(voxels)).memory()
  scale = 100_000 / len(voxels) / 1e6
  return {
    "18A step, memory": {
      "MB per 100,000 voxels": scale * sizes["temporary"],
      "rise of resident memory": scale * sizes["resident"],
      "kept for the backward pass": scale * sizes["kept"],
      "ratio": sizes["temporary"] / sizes["kept"],
      "parameters and momenta, MB": sizes["state"] / 1e6,
    }
  }


PARTS_RUN = {
  "maps": maps_part,
  "conv": conv_part,
  "network": network_part,
  "scaling": scaling_part,
  "compile": compile_part,
  "memory": memory_part,
}


def table(result: dict) -> str:
  """The report as text."""
  lines = [
    f"{result['processor']}, {result['threads']} thread(s), jax"
    f" {result['jax']}, load {result['load'][0]:.1f} before and"
    f" {result['load'][1]:.1f} after\n"
  ]
  for name, figure in result["figures"].items():
    parts = []
    for what, value in figure.items():
      if what == "ms":
        parts.append("{:.1f} ms ({:.1f} - {:.1f})".format(*value))
      else:
        parts.append(
          f"{what}: {value:.3g}" if value < 100 else f"{what}: {value:,.0f}"
        )
    lines.append(f"{name:32}{'; '.join(parts)}")
  return "\n".join(lines)


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
