"""MinkUNet and single convolutions in PyTorch: what benchmark_peers.py runs.

Runs in an environment of its own and reads nothing of wsegpc_jax:

  python minkunet_torch.py FOLDER --layers spconv --threads 1

FOLDER has conv.npz (coords int [M, 3], in Morton order; for every width C x_C,
cotangent_C [M, C] and weight_C [27, C, C]), scene.npz (coords; features
[M, 6]; label int [M]), batch.npz (the same of several scenes, far apart, and
where they start), weights.npz (arrays by the names and in the layout of
models/minkunet.py, with a stem of 27 taps) and settings.json (lr, momentum). A
line of standard input is a command, answered by a line of JSON:

  conv C FILE   writes a convolution's output and gradient of its input, npz
  forward C     times the convolution; the maps are built before
  both C        times it with its gradients
  logits FILE   writes the logits of the scene in evaluation mode, npy
  inference     times evaluation mode, maps included
  step          times a training step, maps included; also "loss", "grad_norm"
  batch         the same for a batch of scenes
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from layers import LAYERS

_LEVELS = 4  # of strided convolutions


def level_of(name):
  """Level of a kernel's maps: the finer one where it joins two."""
  part = name.split("/")[0]
  if part.startswith("convtr"):
    return 7 - int(part[6:])
  if part.startswith("conv"):
    return max(int(part[4:]) - 1, 0)
  stage = int(part.removeprefix("block").split("_")[0])
  return stage if stage <= _LEVELS else 8 - stage


class Network:
  """The network; what it consists of follows from the names."""

  def __init__(self, arrays, layers):
    arrays = {k: torch.from_numpy(v) for k, v in arrays.items()}
    prefix = "params/"
    params = {
      k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)
    }
    self.stats = {
      k.removeprefix("batch_stats/"): v
      for k, v in arrays.items()
      if k.startswith("batch_stats/")
    }
    kernels = {k: v for k, v in params.items() if v.ndim == 3}
    self.layers = layers(kernels, level_of)
    self.dense = {
      k: torch.nn.Parameter(v) for k, v in params.items() if v.ndim < 3
    }
    self.blocks = sorted({k.split("/")[0] for k in params if "block" in k})

  def parameters(self):
    return self.layers.parameters() + list(self.dense.values())

  def __call__(self, coords, x, *, train):
    self.train = train
    layers = self.layers
    layers.start(coords)
    x = layers.same("conv0/kernel", x, 0)
    x = self.norm("bn0", x).relu_()
    skips = []
    for i in range(_LEVELS):
      skips.append(x)
      x = layers.down(f"conv{i + 1}/kernel", x, i)
      x = self.norm(f"bn{i + 1}", x).relu_()
      x = self.stage(i + 1, x, i + 1)
    for i in range(_LEVELS):
      x = layers.up(f"convtr{i + 4}/kernel", x, 3 - i)
      x = self.norm(f"bntr{i + 4}", x).relu_()
      x = torch.cat([x, skips.pop()], 1)
      x = self.stage(i + 5, x, 3 - i)
    return torch.addmm(self.dense["final/bias"], x, self.dense["final/kernel"])

  def stage(self, index, x, level):
    for block in (b for b in self.blocks if b.startswith(f"block{index}_")):
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
      self.stats[f"{name}/mean"],
      self.stats[f"{name}/var"],
      self.dense[f"{name}/scale"],
      self.dense[f"{name}/bias"],
      training=self.train,
    )


class Convolution:
  """One layer of C to C channels, with its maps."""

  def __init__(self, arrays, width, layers):
    weight = torch.from_numpy(arrays[f"weight_{width}"])
    self.layers = layers({"conv0/kernel": weight}, level_of)
    self.x = torch.from_numpy(arrays[f"x_{width}"]).requires_grad_()
    self.cotangent = torch.from_numpy(arrays[f"cotangent_{width}"])
    self.layers.start(torch.from_numpy(arrays["coords"].astype(np.int64)))
    with torch.no_grad():
      self._run()

  def _run(self):
    return self.layers.same("conv0/kernel", self.x, 0)

  def forward(self):
    with torch.no_grad():
      return self._run()

  def both(self):
    (weight,) = self.layers.parameters()
    self.x.grad = weight.grad = None
    out = self._run()
    out.backward(self.cotangent)
    return out.detach(), self.x.grad


class Training:
  """The network on voxels that may be several scenes', far apart."""

  def __init__(self, folder, name, layers):
    with np.load(folder / "weights.npz") as weights:
      self.network = Network(dict(weights), layers)
    with np.load(folder / f"{name}.npz") as scene:
      self.coords = torch.from_numpy(scene["coords"].astype(np.int64))
      self.features = torch.from_numpy(scene["features"])
      self.label = torch.from_numpy(scene["label"].astype(np.int64))
    settings = json.loads((folder / "settings.json").read_text())
    self.optimizer = torch.optim.SGD(self.network.parameters(), **settings)

  def infer(self):
    with torch.inference_mode():
      return self.network(self.coords, self.features, train=False)

  def step(self):
    self.optimizer.zero_grad()
    logits = self.network(self.coords, self.features, train=True)
    loss = F.cross_entropy(logits, self.label)
    loss.backward()
    self.optimizer.step()
    return loss


class Program:
  """The commands."""

  def __init__(self, folder, layers, threads):
    torch.set_num_threads(threads)
    self.folder, self.kind = folder, LAYERS[layers]
    self.convolutions, self.trainings = {}, {}

  def conv(self, width, path):
    out, dx = self._convolution(width).both()
    np.savez(path, out=out.numpy(), dx=dx.numpy())
    return {}

  def forward(self, width):
    return timed(self._convolution(width).forward)[0]

  def both(self, width):
    return timed(self._convolution(width).both)[0]

  def logits(self, path):
    np.save(path, self._training("scene").infer().numpy())
    return {}

  def inference(self):
    return timed(self._training("scene").infer)[0]

  def step(self):
    return self._timed_step("scene")

  def batch(self):
    return self._timed_step("batch")

  def _timed_step(self, name):
    training = self._training(name)
    times, loss = timed(training.step)
    squares = (p.grad.square().sum() for p in training.network.parameters())
    norm = float(sum(squares)) ** 0.5
    return times | {"loss": float(loss.detach()), "grad_norm": norm}

  def _convolution(self, width):
    if width not in self.convolutions:
      with np.load(self.folder / "conv.npz") as arrays:
        self.convolutions[width] = Convolution(arrays, width, self.kind)
    return self.convolutions[width]

  def _training(self, name):
    if name not in self.trainings:
      self.trainings[name] = Training(self.folder, name, self.kind)
    return self.trainings[name]


COMMANDS = ("conv", "forward", "both", "logits", "inference", "step", "batch")


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
  parser.add_argument("--layers", choices=LAYERS, required=True)
  parser.add_argument("--threads", type=int, required=True)
  args = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, cores[: args.threads])
  # What libraries print must not get between the answers.
  answers, sys.stdout = sys.stdout, sys.stderr
  program = Program(args.folder, args.layers, args.threads)
  versions = {"torch": torch.__version__}
  print(json.dumps(versions), file=answers, flush=True)
  for line in sys.stdin:
    name, *values = line.split()
    if name not in COMMANDS:
      raise ValueError(f"unknown command {name!r}")
    answer = getattr(program, name)(*values)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
