"""SPVCNN and SPVNAS by loops over dictionaries, as torchsparse defines them.

Numpy in float64, from a torch state dict: coordinates stay in units of the
finest voxels and are multiples of the stride, taps come in torchsparse's
order, points are the finest voxels with their coordinates as floats. It shares
no code with the engine, the network or the reader of weights.
"""

import itertools
import math
import zlib

import numpy as np

EPSILON = 1e-5
# z outermost and x innermost; x outermost and z innermost.
ODD = [(x, y, z) for z, y, x in itertools.product((-1, 0, 1), repeat=3)]
EVEN = list(itertools.product((0, 1), repeat=3))


def moved(voxel, offset, stride):
  scene, *xyz = voxel
  return scene, *(c + stride * d for c, d in zip(xyz, offset, strict=True))


def floored(voxel, stride):
  scene, *xyz = voxel
  return scene, *(c // stride * stride for c in xyz)


class Pyramid:
  """Rows and matrices of the voxels [(scene, x, y, z)] at strides 1 to 16."""

  def __init__(self, voxels):
    points = [tuple(map(int, v)) for v in voxels]
    self.levels = [
      sorted({floored(p, 2**i) for p in points}) if i else points
      for i in range(5)
    ]
    rows = [{v: row for row, v in enumerate(level)} for level in self.levels]
    # Row of the neighbour at each tap; -1 for none.
    self.neighbors = [
      np.array(
        [[rows[i].get(moved(v, d, 2**i), -1) for d in ODD] for v in level]
      ).reshape(-1, 27)
      for i, level in enumerate(self.levels)
    ]
    self.children = [
      np.array(
        [
          [rows[i].get(moved(v, d, 2**i), -1) for d in EVEN]
          for v in self.levels[i + 1]
        ]
      ).reshape(-1, 8)
      for i in range(4)
    ]
    self.pool, self.read = {}, {}
    for i in (0, 2, 4):
      self.pool[i], self.read[i] = self._exchange(points, rows[i], 2**i)

  @staticmethod
  def _exchange(points, row, stride):
    """Means over points [P, M], and trilinear readings at points [M, P]."""
    pool, read = np.zeros((2, len(row), len(points)))
    for p, point in enumerate(points):
      base = floored(point, stride)
      pool[row[base], p] = 1
      for corner in EVEN:
        voxel = moved(base, corner, stride)
        distance = np.abs(np.subtract(point, voxel)[1:]) / stride
        if voxel in row:
          read[row[voxel], p] = np.prod(1 - distance)
    pool /= np.maximum(pool.sum(1, keepdims=True), 1)
    return pool, read.T / read.sum(0)[:, None]


def sum_of_taps(x, table, kernel):
  padded = np.concatenate([x, np.zeros((1, x.shape[1]))])
  return padded[table].reshape(len(table), -1) @ kernel.reshape(
    -1, kernel.shape[-1]
  )


def transposed(x, children, kernel):
  out = np.zeros((children.max(initial=-1) + 1, kernel.shape[-1]))
  for tap in range(8):
    coarse = np.flatnonzero(children[:, tap] >= 0)
    out[children[coarse, tap]] = x[coarse] @ kernel[tap]
  return out


class SpvcnnNames:
  """Keys of SPVCNN and MinkUNet: (of the weights, of the norm)."""

  classifier = "classifier.0"

  def unit(self, way, i):
    root = f"stage{i + 1}" if way == "down" else f"up{i + 1}"
    return f"{root}.0.net.0", f"{root}.0.net.1"

  def block(self, way, i, j):
    root = f"stage{i + 1}.{j + 1}" if way == "down" else f"up{i + 1}.1.{j}"
    return [
      (f"{root}.net.0", f"{root}.net.1"),
      (f"{root}.net.3", f"{root}.net.4"),
      (f"{root}.downsample.0", f"{root}.downsample.1"),
    ]

  def point(self, i):
    return f"point_transforms.{i}.0", f"point_transforms.{i}.1"


class SpvnasNames:
  """Keys of SPVNAS with fixed widths."""

  classifier = "classifier.linear"

  def _pair(self, root):
    return f"{root}.net.conv", f"{root}.net.bn"

  def unit(self, way, i):
    return self._pair(f"{way}sample.{i}.transition")

  def block(self, way, i, j):
    root = f"{way}sample.{i}.feature.{j}"
    parts = "net.0", "net.1", "downsample"
    return [self._pair(f"{root}.{part}") for part in parts]

  def point(self, i):
    return self._pair(f"point_transforms.{i}")


class Network:
  """The forward pass; `statistics` then holds mean and variance of the rows
  that each norm saw in training mode."""

  def __init__(self, arrays, names, *, train):
    self.arrays = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
    self.names, self.train, self.statistics = names, train, {}

  def __call__(self, x, pyramid, *, point_branch=True):
    self.pyramid = pyramid
    tables = pyramid.neighbors
    for i in range(2):
      pair = f"stem.{3 * i}", f"stem.{3 * i + 1}"
      x = self.unit(pair, lambda k, x=x: sum_of_taps(x, tables[0], k))
    skips = [x]
    for i in range(4):
      down = self.pyramid.children[i]
      pair = self.names.unit("down", i)
      x = self.unit(pair, lambda k, x=x, t=down: sum_of_taps(x, t, k))
      x = self.blocks("down", i, x, i + 1)
      skips.append(x)
    points = pyramid.read[4] @ x
    if point_branch:
      points = points + self.point(0, pyramid.pool[0].T @ skips[0])
      x = pyramid.pool[4] @ points
    bottleneck = points
    x = self.up(1, self.up(0, x, skips), skips)
    points = pyramid.read[2] @ x
    if point_branch:
      points = points + self.point(1, bottleneck)
      x = pyramid.pool[2] @ points
    x = self.up(3, self.up(2, x, skips), skips)
    if point_branch:
      x = pyramid.read[0] @ x + self.point(2, points)
    weight = self.arrays[self.names.classifier + ".weight"][:, : x.shape[1]]
    logits = x @ weight.T + self.arrays[self.names.classifier + ".bias"]
    return logits, {"bottleneck": bottleneck, "decoder": x}

  def unit(self, pair, apply):
    return np.maximum(self.layer(pair, apply), 0)

  def layer(self, pair, apply):
    return self.norm(apply(self.arrays[pair[0] + ".kernel"]), pair[1])

  def norm(self, x, name):
    mean, var = (self.arrays[f"{name}.running_{s}"] for s in ("mean", "var"))
    if self.train:
      mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
      self.statistics[name] = mean, x.var(0, ddof=1) if len(x) > 1 else var
    x = (x - mean) / np.sqrt(var + EPSILON)
    return x * self.arrays[name + ".weight"] + self.arrays[name + ".bias"]

  def blocks(self, way, i, x, level):
    table = self.pyramid.neighbors[level]
    for j in itertools.count():
      first, second, skip = self.names.block(way, i, j)
      if first[0] + ".kernel" not in self.arrays:
        return x
      y = self.unit(first, lambda k, x=x: sum_of_taps(x, table, k))
      y = self.layer(second, lambda k, y=y: sum_of_taps(y, table, k))
      if skip[0] + ".kernel" in self.arrays:
        x = self.layer(skip, lambda k, x=x: x @ k)
      x = np.maximum(y + x, 0)

  def up(self, i, x, skips):
    children = self.pyramid.children[3 - i]
    pair = self.names.unit("up", i)
    x = self.unit(pair, lambda k: transposed(x, children, k))
    return self.blocks("up", i, np.concatenate([x, skips[3 - i]], 1), 3 - i)

  def point(self, i, x):
    linear, norm = self.names.point(i)
    x = x @ self.arrays[linear + ".weight"].T + self.arrays[linear + ".bias"]
    return np.maximum(self.norm(x, norm), 0)


def shapes(names, stem, down, up, num_classes, *, channels=4, columns=None):
  """Shapes of a state dict: widths as (transition, ((middle, out), ...))."""
  out = {}

  def norm(name, width):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      out[f"{name}.{leaf}"] = (width,)
    out[f"{name}.num_batches_tracked"] = ()

  def conv(pair, shape):
    out[pair[0] + ".kernel"] = shape
    norm(pair[1], shape[-1])

  def linear(name, inputs, outputs):
    out[name + ".weight"] = (outputs, inputs)
    out[name + ".bias"] = (outputs,)

  def blocks(way, i, x, widths):
    for j, (middle, wide) in enumerate(widths):
      first, second, skip = names.block(way, i, j)
      conv(first, (27, x, middle))
      conv(second, (27, middle, wide))
      if x != wide:
        conv(skip, (x, wide))
      x = wide
    return x

  conv(("stem.0", "stem.1"), (27, channels, stem))
  conv(("stem.3", "stem.4"), (27, stem, stem))
  x, skips = stem, [stem]
  for i, (transition, widths) in enumerate(down):
    conv(names.unit("down", i), (8, x, transition))
    x = blocks("down", i, transition, widths)
    skips.append(x)
  points = [stem, x]
  for i, (transition, widths) in enumerate(up):
    conv(names.unit("up", i), (8, x, transition))
    x = blocks("up", i, transition + skips[3 - i], widths)
    points += [x] if i % 2 else []
  for i in range(3):
    linear_name, norm_name = names.point(i)
    linear(linear_name, points[i], points[i + 1])
    norm(norm_name, points[i + 1])
  linear(names.classifier, columns or x, num_classes)
  return out


def draw(shapes, dtype=np.float32):
  """Values of a state dict, of the size that keeps features near one."""
  out = {}
  for name, shape in shapes.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.normal(size=shape)
    if name.endswith("num_batches_tracked"):
      out[name] = np.array(7, np.int64)
      continue
    if name.endswith("running_var"):
      value = rng.uniform(0.5, 2, shape)
    elif name.endswith(("running_mean", "bias")):
      value *= 0.2
    elif len(shape) == 1:
      value = 1 + 0.2 * value
    elif name.endswith(".kernel"):
      value /= math.sqrt(math.prod(shape[:-1]) / (3 if len(shape) > 2 else 1))
    else:
      value /= math.sqrt(shape[1])
    out[name] = value.astype(dtype)
  return out
