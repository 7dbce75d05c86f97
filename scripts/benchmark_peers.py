"""Measures the engine beside other libraries, side by side on a CPU.

  python scripts/benchmark_peers.py --rounds 5 --json peers.json
  python scripts/benchmark_peers.py --sides ours@1,spconv@1 --tasks network

A side is a library and its number of threads: ours, torch (plain gather, mm,
index_add), spconv (right with one thread only), ocnn, open3d (single layers
only) and minkowski, which joins when the environment can import it. Each runs
in a process of its own, peers in a virtual environment that is made at the
first run, with the versions of scripts/peers/constraints.txt; to bring
MinkowskiEngine, install it into that environment.

Tasks: "conv", one 3^3 layer of 32 and of 64 channels on about 98,000 voxels,
forward and with its gradients, the maps built before; "network", MinkUNet18A
with a 3^3 stem on about 32,630 voxels, evaluation mode and a training step, the
maps included; "batch", its training step on two such scenes. Voxels, their
order and the weights are the same for all sides. Ours with two threads lets
each train on one of the two scenes, as a device does (JAX_NUM_CPU_DEVICES=1
keeps it from that), with statistics and gradients of both. Before anything is
timed, outputs, input gradients and logits must equal ours within 1e-4 of the
largest, loss and norm of the gradient within 1e-3; a side whose do not is
reported as wrong and not timed.

Sides take turns in every round, and in its turn a side runs a task twice: the
second run is timed. Ratios are medians of what each round gave, the peer's time
over ours. Memory is the system's to manage, as users run it: MALLOC_ variables
of the environment act on all sides. Run it on a machine that does nothing else.
"""

import contextlib
import functools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from wsegpc_jax.types import DataError

# Scripts are programs, not a package: what they share lies beside them.
sys.path.append(str(Path(__file__).parent))
import benchmark  # noqa: E402
from peers.turns import (  # noqa: E402
  Options,
  Peer,
  difference,
  make_environment,
  measure,
  report,
  seconds_of,
  spread,
  start_peer,
)

OURS = Path(__file__).parent / "peers" / "engine.py"
THEIRS = Path(__file__).parent / "peers" / "minkunet_torch.py"
REQUIREMENTS = {
  "ours": (),
  "torch": (),
  "spconv": ("spconv",),
  "ocnn": ("ocnn",),
  "open3d": ("open3d-cpu",),
  "minkowski": (),
}
SIDES = "ours@2,minkowski@2,torch@2,ocnn@2,open3d@2,ours@1,spconv@1"
APART = 512  # voxels between two scenes of a batch
TOLERANCE = {"out": 1e-4, "dx": 1e-4, "logits": 1e-4, "loss": 1e-3}
TOLERANCE |= {"grad_norm": 1e-3}
CONV = [f"{task} {c}" for c in benchmark.WIDTHS for task in ("forward", "both")]
TASKS = {"conv": CONV, "network": ["inference", "step"], "batch": ["batch"]}


def main(argv: list[str] | None = None) -> dict:
  """Prints the table; returns what --json holds."""
  args = parse_args(argv)
  python = make_environment(args.environment, requirements(args.sides))
  load = os.getloadavg()[0]
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    export(folder, args.tasks)
    started, left_out, checks = {}, {}, {}
    for side in args.sides:
      try:
        context = start(python, folder, *side)
        started[side] = stack.enter_context(context)
      except DataError as error:
        if side[0] != "minkowski":
          raise
        left_out[label(side)] = str(error)
    expected = None
    for side, peer in list(started.items()):
      try:
        found = answers(peer, side[0], args.tasks, folder)
      except DataError as error:
        left_out[label(side)] = str(error)
        del started[side]
        continue
      expected = found if expected is None else expected
      checks[label(side)] = compare(found, expected)
      if checks[label(side)]["wrong"]:
        del started[side]
    times = measure(tasks_of(started, args.tasks), args.rounds)
  result = {
    "rounds": args.rounds,
    "load": [load, os.getloadavg()[0]],
    "checks": checks,
    "left_out": left_out,
    "ratios": ratios(times),
    "times": times,
  }
  return report(result, table, args.json)


def parse_args(argv):
  parser = Options(__doc__, rounds=5)
  add = parser.option
  add("--sides", default=SIDES, help="default: %(default)s; ours comes first")
  add("--tasks", default=",".join(TASKS))
  add("--environment", type=Path, default=Path("exp/peers"))
  args = parser.parse(argv)
  args.tasks = args.tasks.split(",")
  if not set(args.tasks) <= set(TASKS):
    parser.error(f"--tasks: expected some of {', '.join(TASKS)}")
  sides = []
  for text in args.sides.split(","):
    name, _, threads = text.partition("@")
    if name not in REQUIREMENTS or not threads.isdigit() or threads == "0":
      parser.error(
        f"--sides: {text!r}; expected NAME@THREADS with a name of"
        f" {', '.join(REQUIREMENTS)}"
      )
    sides.append((name, int(threads)))
  if len(set(sides)) < len(sides):
    parser.error("--sides: expected each once")
  if sides[0][0] != "ours":
    parser.error("--sides: expected ours first: it is what others must equal")
  if any(name == "spconv" and threads > 1 for name, threads in sides):
    parser.error("--sides: spconv gives wrong output with more than one thread")
  cores = len(os.sched_getaffinity(0))
  if any(threads > cores for _, threads in sides):
    parser.error(f"--sides: expected at most {cores} threads, one a core")
  args.sides = sides
  return args


def requirements(sides: list[tuple[str, int]]) -> list[str]:
  """What the environment of the peers needs; torch with each."""
  names = [name for name, _ in sides if name != "ours"]
  if not names:
    return []
  own = [package for name in names for package in REQUIREMENTS[name]]
  return list(dict.fromkeys(["torch", "numpy", *own]))


def label(side: tuple[str, int]) -> str:
  return f"{side[0]}@{side[1]}"


def export(folder: Path, tasks: list[str]) -> None:
  """Writes what every side reads."""
  if "conv" in tasks:
    arrays = benchmark.conv_arrays(benchmark.room(*benchmark.CONV_ROOM))
    np.savez(folder / "conv.npz", **arrays)
  if {"network", "batch"} & set(tasks):
    from flax import traverse_util
    from peers import engine

    rooms = [benchmark.room(*benchmark.NETWORK_ROOM, seed=s) for s in range(2)]
    if max(voxels.max() for voxels in rooms) >= APART:
      raise ValueError(f"the scenes of a batch must be within {APART} voxels")
    batch = benchmark.scene_arrays(np.concatenate(rooms))
    starts = np.array([0, len(rooms[0])])
    # Far apart, they are a batch to every side, and still in Morton order.
    batch["coords"][starts[1] :] += [0, 0, APART]
    np.savez(folder / "batch.npz", **batch, starts=starts)
    arrays = benchmark.scene_arrays(rooms[0])
    np.savez(folder / "scene.npz", **arrays)
    variables = engine.drawn(engine.Network(arrays).variables)
    flat = traverse_util.flatten_dict(variables, sep="/")
    np.savez(folder / "weights.npz", **flat)
    (folder / "settings.json").write_text(json.dumps(benchmark.SETTINGS))


def start(python: str, folder: Path, name: str, threads: int):
  """The program of a side, on as many cores as it has threads."""
  command = [sys.executable, OURS] if name == "ours" else [python, THEIRS]
  command += [folder, "--threads", threads]
  if name != "ours":
    command += ["--layers", name]
  environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
  # The program itself takes its cores: a hook before exec would need a fork,
  # which jax's threads do not survive.
  return start_peer(command, f"{name}@{threads}", env=environment)


def answers(peer: Peer, name: str, tasks: list[str], folder: Path) -> dict:
  """All that a side gives: arrays and numbers by name."""
  found = {}
  if "conv" in tasks:
    for c in benchmark.WIDTHS:
      peer.ask(f"conv {c} {folder / 'answer.npz'}")
      with np.load(folder / "answer.npz") as arrays:
        found |= {f"{k} {c}": arrays[k] for k in arrays}
  if name == "open3d":  # has no network
    return found
  if "network" in tasks:
    found["logits"] = peer.logits(folder / "logits.npy")
  for task, command in (("network", "step"), ("batch", "batch")):
    if task in tasks:
      step = peer.ask(command)
      found |= {f"{k} {command}": step[k] for k in ("loss", "grad_norm")}
  return found


def compare(found: dict, expected: dict) -> dict:
  """Relative "differences" by name, and the "wrong" ones."""
  differences = {k: difference(v, expected[k]) for k, v in found.items()}
  # What is not a number is wrong, too.
  wrong = [
    k for k, v in differences.items() if not v <= TOLERANCE[k.split()[0]]
  ]
  return {"differences": differences, "wrong": wrong}


def tasks_of(sides: dict, tasks: list[str]) -> dict:
  """What to time, by "side: task"."""
  found = {}
  for group in tasks:
    for command in TASKS[group]:
      for side, peer in sides.items():
        if group == "conv" or side[0] != "open3d":
          name = f"{label(side)}: {command}"
          found[name] = functools.partial(second_run, peer, command)
  return found


def second_run(peer: Peer, command: str) -> dict:
  """Times of a task that follows itself, as a training step does.

  After another side's turn, caches hold what was the other's.
  """
  peer.ask(command)
  return peer.ask(command)


def ratios(times: dict) -> dict[str, list[float]]:
  """[median, least, most] of each peer's time over each of ours, a task.

  A peer is set beside ours with as many threads, and spconv, which is right
  with one thread only, beside all of ours.
  """
  seconds = seconds_of(times)
  found = {}
  for name, theirs in seconds.items():
    side, task = name.split(": ")
    if side.startswith("ours"):
      continue
    for other, ours in seconds.items():
      own, own_task = other.split(": ")
      alike = own.split("@")[1] == side.split("@")[1]
      if own.startswith("ours") and own_task == task:
        if alike or side.startswith("spconv"):
          found[f"{side} over {own}: {task}"] = spread(theirs / ours)
  return found


def table(result: dict) -> str:
  """The report as text."""
  lines = [
    "load {:.1f} before and {:.1f} after\n".format(*result["load"]),
    f"{'':34}{'ms (least - most)':>26}{'CPU ms':>9}",
  ]
  for name, times in result["times"].items():
    seconds = spread([1000 * t["seconds"] for t in times])
    cpu = 1000 * np.median([t["cpu_seconds"] for t in times])
    wall = "{:.0f} ({:.0f} - {:.0f})".format(*seconds)
    lines.append(f"{name:34}{wall:>26}{cpu:9.0f}")
  lines.append("\ntime of the peer over ours, median (least - most)")
  for name, ratio in result["ratios"].items():
    lines.append("{:44}{:.2f} ({:.2f} - {:.2f})".format(name, *ratio))
  lines.append("")
  for side, found in result["checks"].items():
    wrong = ", ".join(found["wrong"])
    verdict = f"WRONG in {wrong}, not timed" if wrong else "agrees"
    worst = max(found["differences"].values(), default=0.0)
    lines.append(f"{side} {verdict}; largest relative difference {worst:.1e}")
  for side, why in result["left_out"].items():
    lines.append(f"{side} left out: {why}")
  return "\n".join(lines)


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
