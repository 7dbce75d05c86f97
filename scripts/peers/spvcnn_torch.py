"""SPVCNN in PyTorch on a CPU: what benchmark_spvcnn.py compares with.

Runs in an environment of its own and reads nothing of wsegpc_jax:

  python spvcnn_torch.py FOLDER --convolution torch --threads 2

FOLDER has scene.npz (coords int [M, 3], in Morton order; features float32
[M, 4]; label int [M], 255 = none), weights.npz (arrays by the names and in the
layout of models/spvcnn.py) and settings.json (lr, momentum, weight_decay).
One line on standard input is one command, answered by one line of JSON:

  logits FILE   writes the logits of the scene in evaluation mode, npy
  inference     evaluation mode, without gradients: "seconds", "cpu_seconds"
  step          one training step: these, and "loss", "grad_norm"

Every inference and every step builds its neighbour maps, as each new scan
would need them. --convolution torch: a list of (input row, output row) for each
tap; gather, matrix product, index_add, and a backward pass of the same kind.
--convolution spconv: the layers of spconv, whose CPU path is right with one
thread only.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from layers import EVEN, SpconvLayers, TorchLayers, key, step_of_key

_IGNORE = 255


def level_of(name):
  """Level of a kernel's maps: the finer one where it joins two."""
  part = name.split("/")[0]
  if part.startswith("stem"):
    return 0
  i, joins = int(part.lstrip("downup")[0]), part.endswith("_conv")
  return (i if joins else i + 1) if part.startswith("down") else 3 - i


class Network:
  """The network; what it consists of follows from the names."""

  def __init__(self, arrays, layers):
    arrays = {k: torch.from_numpy(v) for k, v in arrays.items()}
    self.stats = {
      k: v for k, v in arrays.items() if k.startswith("batch_stats")
    }
    params = {
      k.removeprefix("params/"): v
      for k, v in arrays.items()
      if k.startswith("params/")
    }
    kernels = {k: v for k, v in params.items() if v.ndim == 3}
    self.layers = layers(kernels, level_of)
    self.dense = {
      k: torch.nn.Parameter(v) for k, v in params.items() if v.ndim < 3
    }
    self.blocks = sorted({k.split("/")[0] for k in params if "_block" in k})

  def parameters(self):
    return self.layers.parameters() + list(self.dense.values())

  def __call__(self, coords, x, *, train):
    self.train = train
    layers = self.layers
    layers.start(coords)
    for i in range(2):
      x = layers.same(f"stem{i}_conv/kernel", x, 0)
      x = self.norm(f"stem{i}_norm", x).relu_()
    skips = [x]
    for i in range(4):
      x = layers.down(f"down{i}_conv/kernel", x, i)
      x = self.norm(f"down{i}_norm", x).relu_()
      x = self.residual(f"down{i}", x, i + 1)
      skips.append(x)
    at_4 = Exchange(coords, layers.lookup(4), 4)
    points = at_4.to_points(x) + self.linear_unit("point0", skips[0])
    x = self.up(0, at_4.to_voxels(points), skips)
    x = self.up(1, x, skips)
    at_2 = Exchange(coords, layers.lookup(2), 2)
    points = at_2.to_points(x) + self.linear_unit("point1", points)
    x = self.up(2, at_2.to_voxels(points), skips)
    x = self.up(3, x, skips)
    x = x + self.linear_unit("point2", points)
    return self.linear("classifier", x)

  def up(self, i, x, skips):
    x = self.layers.up(f"up{i}_conv/kernel", x, 3 - i)
    x = self.norm(f"up{i}_norm", x).relu_()
    x = torch.cat([x, skips[3 - i]], 1)
    return self.residual(f"up{i}", x, 3 - i)

  def residual(self, part, x, level):
    for block in (b for b in self.blocks if b.startswith(part + "_")):
      y = self.layers.same(f"{block}/conv1/kernel", x, level)
      y = self.norm(f"{block}/norm1", y).relu_()
      y = self.layers.same(f"{block}/conv2/kernel", y, level)
      y = self.norm(f"{block}/norm2", y)
      if f"{block}/downsample_conv/kernel" in self.dense:
        x = x @ self.dense[f"{block}/downsample_conv/kernel"]
        x = self.norm(f"{block}/downsample_norm", x)
      x = (y + x).relu_()
    return x

  def norm(self, name, x):
    return F.batch_norm(
      x,
      self.stats[f"batch_stats/{name}/mean"],
      self.stats[f"batch_stats/{name}/var"],
      self.dense[f"{name}/scale"],
      self.dense[f"{name}/bias"],
      training=self.train,
    )

  def linear(self, name, x):
    return torch.addmm(
      self.dense[f"{name}/bias"], x, self.dense[f"{name}/kernel"]
    )

  def linear_unit(self, name, x):
    return self.norm(f"{name}/norm", self.linear(f"{name}/linear", x)).relu_()


class Reading(torch.autograd.Function):
  """Weighted sums of eight rows.

  The backward pass of embedding_bag takes many times as long as this one.
  """

  @staticmethod
  def forward(ctx, x, rows, weights):
    ctx.save_for_backward(rows, weights)
    ctx.size = x.shape
    return F.embedding_bag(rows, x, mode="sum", per_sample_weights=weights)

  @staticmethod
  def backward(ctx, gradient):
    rows, weights = ctx.saved_tensors
    d_x = gradient.new_zeros(ctx.size)
    for corner in range(8):
      share = gradient * weights[:, corner, None]
      d_x.index_add_(0, rows[:, corner], share)
    return d_x, None, None


class Exchange:
  """Between the finest voxels, taken as points, and a coarser level."""

  def __init__(self, coords, lookup, level):
    stride = 1 << level
    base, inside = coords >> level, coords & (stride - 1)
    keys = key(base)
    rows, weights = [], []
    for corner in EVEN:
      found, exists = lookup(keys + step_of_key(corner))
      near = torch.where(torch.tensor(corner) > 0, inside, stride - inside)
      rows.append(found)
      weights.append(near.prod(1) * exists)
    self.parent = rows[0]
    self.rows = torch.stack(rows, 1)
    weights = torch.stack(weights, 1).float()
    self.weights = weights / weights.sum(1, keepdim=True)
    self.size = len(lookup.keys)
    count = torch.bincount(self.parent, minlength=self.size)
    self.share = count.float().reciprocal_()[:, None]

  def to_points(self, x):
    return Reading.apply(x, self.rows, self.weights)

  def to_voxels(self, x):
    total = x.new_zeros(self.size, x.shape[1])
    return total.index_add(0, self.parent, x) * self.share


class Program:
  """The commands."""

  def __init__(self, folder, convolution, threads):
    torch.set_num_threads(threads)
    layers = {"torch": TorchLayers, "spconv": SpconvLayers}[convolution]
    with np.load(folder / "weights.npz") as weights:
      self.network = Network(dict(weights), layers)
    with np.load(folder / "scene.npz") as scene:
      self.coords = torch.from_numpy(scene["coords"].astype(np.int64))
      self.features = torch.from_numpy(scene["features"])
      self.label = torch.from_numpy(scene["label"].astype(np.int64))
    settings = json.loads((folder / "settings.json").read_text())
    self.optimizer = torch.optim.SGD(
      self.network.parameters(), nesterov=True, **settings
    )

  def logits(self, path):
    np.save(path, self._infer().numpy())
    return {}

  def inference(self):
    return timed(self._infer)[0]

  def step(self):
    times, loss = timed(self._step)
    squares = (p.grad.square().sum() for p in self.network.parameters())
    norm = float(sum(squares)) ** 0.5
    return times | {"loss": float(loss.detach()), "grad_norm": norm}

  def _infer(self):
    with torch.inference_mode():
      return self.network(self.coords, self.features, train=False)

  def _step(self):
    self.optimizer.zero_grad()
    logits = self.network(self.coords, self.features, train=True)
    loss = F.cross_entropy(logits, self.label, ignore_index=_IGNORE)
    loss.backward()
    self.optimizer.step()
    return loss


def timed(function):
  began, used = time.perf_counter(), time.process_time()
  result = function()
  seconds, cpu = time.perf_counter() - began, time.process_time() - used
  return {"seconds": seconds, "cpu_seconds": cpu}, result


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--convolution", choices=("torch", "spconv"))
  parser.add_argument("--threads", type=int, required=True)
  args = parser.parse_args()
  program = Program(args.folder, args.convolution, args.threads)
  # What libraries print must not get between the answers.
  answers, sys.stdout = sys.stdout, sys.stderr
  print(json.dumps({"torch": torch.__version__}), file=answers, flush=True)
  for line in sys.stdin:
    name, *values = line.split(maxsplit=1)
    if name not in ("logits", "inference", "step"):
      raise ValueError(f"unknown command {name!r}")
    answer = getattr(program, name)(*(v.rstrip("\n") for v in values))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
