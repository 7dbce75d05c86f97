"""Measures SPVCNN against the same network in PyTorch, and what clustering costs.

  python scripts/benchmark_spvcnn.py --threads 2 --json spvcnn.json
  python scripts/benchmark_spvcnn.py --threads 1 --peers torch,spconv \\
    --scan data/semantic_kitti/sequences/00/velodyne/000000.bin

Inference and a training step (cross-entropy, SGD; no dropout) of one laser scan
on a CPU, from voxels on, neighbour maps included. The peer,
scripts/peers/spvcnn_torch.py, runs in a virtual environment of its own, made at
the first run, on the same voxels in the same order, the same weights and as
many cores. Before anything is timed its logits must equal ours within 1e-4 of
the largest, its loss and the norm of its gradient within 1e-3; one whose do not
is reported as wrong and not timed. spconv's CPU path needs --threads 1.

Everything takes its turn in every round; figures are medians over the rounds,
ratios and shares medians of what each round gave. Our step is also timed with
Lovasz-softmax and with clustering, with the settings of
configs/semantickitti_spvcnn_cluster.py. Run it on a machine that does nothing
else; JAX_COMPILATION_CACHE_DIR=FOLDER saves compiling at later runs.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from wsegpc_jax import defaults, experiment, parallel
from wsegpc_jax.data import batching, lidar_samples
from wsegpc_jax.data.samples import Sample
from wsegpc_jax.interop import semantic_kitti as kitti
from wsegpc_jax.types import IGNORE_LABEL, DataError, Scene, TrainState

# Scripts are programs, not a package: what they share lies beside them.
sys.path.append(str(Path(__file__).parent))
from peers.turns import (  # noqa: E402
  Options,
  Peer,
  Times,
  difference,
  make_environment,
  measure,
  report,
  seconds_of,
  spread,
  start_peer,
  timed,
  use_cores,
)

PROGRAM = Path(__file__).parent / "peers" / "spvcnn_torch.py"
REQUIREMENTS = {"torch": ("torch", "numpy"), "spconv": ("spconv",)}
TOLERANCE = {"logits": 1e-4, "loss": 1e-3, "grad_norm": 1e-3}
# Weights of Lovasz-softmax and of clustering in our steps, each step one term
# more than the one before; the peer does the first.
STEPS = {
  "ce": (0.0, 0.0),
  "ce + lovasz": (1.0, 0.0),
  "ce + lovasz + cluster": (1.0, 1.0),
}


def main(argv: list[str] | None = None) -> dict:
  """Prints the table; returns what --json holds."""
  args = parse_args(argv)
  use_cores(args.threads)
  python = make_environment(args.environment, requirements(args.peers))
  scene = read_scan(args.scan) if args.scan else synthetic_scan()
  sample = crop(scene, args.voxels)
  load = os.getloadavg()[0]
  with contextlib.ExitStack() as stack:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ours = Ours(sample, scene.tags, width=args.width, steps=args.rounds + 2)
    ours.export(folder, sample)
    sides, checks = {"ours": ours}, {}
    for name in args.peers:
      command = [python, PROGRAM, folder, "--convolution", name]
      command += ["--threads", args.threads]
      peer = stack.enter_context(start_peer(command, name))
      checks[name] = check(peer, folder, ours.logits, ours.first)
      if not checks[name]["wrong"]:
        sides[name] = peer
    times = measure(tasks(sides), args.rounds)
  result = {
    "scan": str(args.scan or "synthetic"),
    **{k: getattr(args, k) for k in ("width", "threads", "rounds")},
    "load": [load, os.getloadavg()[0]],
    "jax": jax.__version__,
    **ours.facts,
    "peers": checks,
    **summary(times),
    "times": times,
  }
  return report(result, table, args.json)


def parse_args(argv):
  parser = Options(__doc__, rounds=7)
  add = parser.option
  add("--scan", type=Path, help="a .bin of SemanticKITTI (default: made up)")
  add("--voxels", type=int, default=30_000, help="most, in a sector")
  add("--width", type=float, default=0.5, help="of the published")
  add("--threads", type=int, default=2)
  add("--peers", default="torch", help="torch, spconv, torch,spconv or none")
  add("--environment", type=Path, default=Path("exp/spvcnn_peer"))
  args = parser.parse(argv, "voxels", "width", "threads")
  args.peers = [] if args.peers == "none" else args.peers.split(",")
  for name in args.peers:
    if name not in REQUIREMENTS or args.peers.count(name) > 1:
      parser.error(f"--peers: {name!r}; expected torch or spconv, each once")
  if "spconv" in args.peers and args.threads > 1:
    parser.error("--peers spconv gives wrong output with --threads above 1")
  return args


def requirements(peers: list[str]) -> list[str]:
  """What the environment of some peers needs; torch with each."""
  names = {"torch", *peers} if peers else ()
  return [r for n in REQUIREMENTS if n in names for r in REQUIREMENTS[n]]


def read_scan(path: Path) -> Scene:
  """A scan of SemanticKITTI, in its folders, with its labels."""
  coord, intensity = kitti.read_scan(path)
  labels = path.parent.parent / "labels" / f"{path.stem}.label"
  label_map = kitti.get_label_map("official")
  label = label_map.to_class(kitti.read_labels(labels, len(coord)))
  return _scene(path.stem, coord, intensity, label)


def synthetic_scan(seed: int = 0, *, columns: int = 2048) -> Scene:
  """What a laser with 64 beams and so many columns a turn sees on a plain with
  a wall of random distance, height and class in each of 90 sectors."""
  rng = np.random.default_rng(seed)
  beams = np.radians(np.linspace(2, -24.8, 64))
  up, column = np.meshgrid(np.tan(beams), np.arange(columns))
  sector = column * 90 // columns
  wall = rng.uniform(4, 40, 90)[sector]
  top = rng.uniform(-1, 8, 90)[sector]
  kind = rng.integers(19, size=90)[sector]
  away = -1.73 / np.minimum(up, -1e-9)  # the ground, below the laser
  hit = (wall < away) & (wall * up < top)
  away = np.where(hit, wall, away) + 0.02 * rng.normal(size=away.shape)
  label = np.where(hit, kind, 8)  # road
  turn = 2 * np.pi * column / columns
  coord = away[..., None] * np.stack([np.cos(turn), np.sin(turn), up], -1)
  seen = away < 80
  coord = coord[seen].astype(np.float32)
  intensity = rng.beta(2, 5, len(coord)).astype(np.float32)
  return _scene("synthetic", coord, intensity, label[seen].astype(np.int32))


def _scene(name, coord, intensity, label):
  tags = np.isin(np.arange(19), label)
  return Scene(name, coord, None, None, tags, label, intensity=intensity)


def crop(scene: Scene, most: int) -> Sample:
  """The sector ahead with so many voxels: near and far as in the whole scan."""
  settings = lidar_samples.LidarSettings()
  voxels = lidar_samples.voxelize_scan(scene.coord, settings.voxel_size)
  x, y = scene.coord[voxels.first, :2].T
  kept = np.zeros(len(voxels.first), bool)
  kept[np.argsort(np.abs(np.arctan2(y, x)), kind="stable")[:most]] = True
  kept = kept[voxels.inverse]  # points
  own = {k: getattr(scene, k)[kept] for k in ("coord", "label", "intensity")}
  scene = dataclasses.replace(scene, **own)
  sample = lidar_samples.evaluation_sample(scene, settings)
  if (sample.label == IGNORE_LABEL).all():
    raise DataError(f"scan {scene.name}: expected labelled points")
  return sample


class Ours:
  """Our programs, compiled, run once and checked.

  Attributes:
    logits: float32 [M, K] of the sample's voxels.
    first: "loss" and "grad_norm" of the first step with cross-entropy.
    facts: what was run, for the report.
  """

  def __init__(
    self, sample: Sample, tags: np.ndarray, *, width: float, steps: int
  ):
    # Just enough room, so that only the coarser levels are padded.
    self._config = defaults.get_semantic_kitti("spvcnn", cluster=True)
    ratios = self._config.data.level_ratios
    counts = sample.student.level_counts
    room = max(math.ceil(n / r) for n, r in zip(counts, ratios, strict=True))
    layout = batching.Layout((room,), 1, channels=4, level_ratios=ratios)
    batch = batching.collate(
      [sample], layout, 0, num_classes=len(tags), teacher=False
    )
    self._config.model.width = round(32 * width)
    self._config.model.dropout = 0.0
    schedule = experiment.Schedule(1, steps, 0)
    mesh = parallel.device_mesh()
    self._batch = jax.device_put(batch)
    self._batches = parallel.to_devices(
      batching.stack([batch]), mesh, runner="shard_map"
    )
    self._states, self._steps, predict, first = {}, {}, [], {}
    loss = self._config.loss
    for name, weights in tqdm(STEPS.items(), desc="compiling", disable=None):
      loss.lovasz, loss.cluster = weights
      method = experiment.build_method(self._config, len(tags), schedule)
      state = drawn(method.init(0, batch))
      if name != "ce + lovasz":
        variables = jax.device_put(
          {"params": state.params, "batch_stats": state.batch_stats}
        )
        lowered = jax.jit(method.predict).lower(variables, self._batch)
        predict.append((lowered.as_text(), lowered.compile(), variables))
      self._states[name] = parallel.replicate(state, mesh)
      self._steps[name] = parallel.data_parallel(method.train_step, mesh=mesh)
      first[name] = self._step(name)
    self.first = {k: float(first["ce"][k]) for k in ("loss", "grad_norm")}
    (plain, self._predict, self._variables), (clustered, *other) = predict
    rows = len(sample.student.coords)
    self.logits, again = (
      np.asarray(run(variables, self._batch)["logits_3d"])[:rows]
      for run, variables in ((self._predict, self._variables), other)
    )
    size = sum(a.size for a in jax.tree.leaves(self._variables["params"]))
    self.facts = {
      "voxels": list(sample.student.level_counts),
      "capacities": list(batch.student.capacities),
      "parameters": size,
      "inference_with_clustering": {
        "same_program": plain == clustered,
        "same_bits": self.logits.tobytes() == again.tobytes(),
      },
    }

  def export(self, folder: Path, sample: Sample) -> None:
    """Writes what the peer reads: scene, first weights, settings."""
    scene = {k: getattr(sample.student, k) for k in ("coords", "features")}
    np.savez(folder / "scene.npz", **scene, label=sample.label)
    flat = traverse_util.flatten_dict(self._variables, sep="/")
    np.savez(folder / "weights.npz", **flat)
    train = self._config.train
    settings = {k: train[k] for k in ("lr", "momentum", "weight_decay")}
    (folder / "settings.json").write_text(json.dumps(settings))

  def inference(self) -> Times:
    run, given = self._predict, (self._variables, self._batch)
    return timed(lambda: jax.block_until_ready(run(*given)))

  def step(self, name: str = "ce") -> Times:
    return timed(lambda: self._step(name))

  def _step(self, name):
    state, metrics = self._steps[name](self._states[name], self._batches)
    self._states[name] = jax.block_until_ready(state)
    return metrics


def drawn(state: TrainState) -> TrainState:
  """A state whose scales, biases and statistics are not those of a start.

  Those, ones and zeros, would hide a peer that leaves them out.
  """

  def draw(path, value):
    name = path[-1].key
    if name == "kernel":
      return value
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    noise = 0.1 * rng.normal(size=np.shape(value))
    return (np.exp(noise) * value + (name != "var") * noise).astype("f4")

  params, batch_stats = jax.tree_util.tree_map_with_path(
    draw, (state.params, state.batch_stats)
  )
  return state.replace(params=params, batch_stats=batch_stats)


def check(
  peer: Peer, folder: Path, logits: np.ndarray, first: dict[str, float]
) -> dict:
  """Compares a peer's logits and its first step with ours: relative
  "differences" of what TOLERANCE names, and the "wrong" ones."""
  found = {"logits": peer.logits(folder / "logits.npy")}
  found |= peer.step()
  expected = {"logits": logits, **first}
  differences = {k: difference(found[k], v) for k, v in expected.items()}
  # What is not a number is wrong, too.
  wrong = [k for k, v in differences.items() if not v <= TOLERANCE[k]]
  return dict(versions=peer.versions, differences=differences, wrong=wrong)


def tasks(sides: dict) -> dict[str, Callable[[], Times]]:
  """What to time, from "ours" and the peers by name: "side task"."""
  found = {f"{name} inference": side.inference for name, side in sides.items()}
  found |= {f"{name} ce": side.step for name, side in sides.items()}
  for step in list(STEPS)[1:]:
    found[f"ours {step}"] = functools.partial(sides["ours"].step, step)
  return found


def summary(times: dict[str, list[Times]]) -> dict:
  """Each [median, least, most] over the rounds: "ratios", the time of a peer's
  task over ours; "shares", what the last term of our longer steps takes."""
  seconds = seconds_of(times)
  ratios, shares = {}, {}
  for name, theirs in seconds.items():
    side, task = name.split(" ", 1)
    if side != "ours":
      ratios[name] = spread(theirs / seconds[f"ours {task}"])
  for without, step in itertools.pairwise(STEPS):
    ratio = seconds[f"ours {without}"] / seconds[f"ours {step}"]
    shares[step] = spread(1 - ratio)
  return {"ratios": ratios, "shares": shares}


def table(result: dict) -> str:
  """The report as text."""
  lines = [
    f"{result['scan']}: {result['voxels'][0]} voxels, width"
    f" {result['width']:g} ({result['parameters']:,} parameters),"
    f" {result['threads']} thread(s), load {result['load'][0]:.1f} before and"
    f" {result['load'][1]:.1f} after",
    f"\n{'':28}{'ms (least - most)':>22}{'CPU ms':>9}  time over ours",
  ]
  for name, times in result["times"].items():
    seconds = spread([1000 * t["seconds"] for t in times])
    cpu = 1000 * np.median([t["cpu_seconds"] for t in times])
    wall = "{:.0f} ({:.0f} - {:.0f})".format(*seconds)
    line = f"{name:28}{wall:>22}{cpu:9.0f}"
    if name in result["ratios"]:
      line += "  {:.2f} ({:.2f} - {:.2f})".format(*result["ratios"][name])
    lines.append(line)
  lines.append("")
  for step, share in result["shares"].items():
    figures = "{:.1%} ({:.1%} - {:.1%})".format(*share)
    lines.append(f"{step.split()[-1]}, share of the step {step}: {figures}")
  for name, found in result["peers"].items():
    verdict = "WRONG, not timed" if found["wrong"] else "agrees"
    figures = [f"{k} {v:.1e}" for k, v in found["differences"].items()]
    lines.append(
      f"{name} {verdict}; relative differences: {', '.join(figures)}"
    )
  same = result["inference_with_clustering"]
  lines.append(
    "inference with and without clustering:"
    f" {'the same' if same['same_program'] else 'ANOTHER'} program, logits"
    f" {'equal in every bit' if same['same_bits'] else 'DIFFER'}"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  try:
    main()
  except (DataError, OSError) as error:
    sys.exit(f"error: {error}")
