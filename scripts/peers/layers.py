"""Sparse convolutions of other libraries on a CPU, behind one interface.

Read by the programs beside it, in an environment of its own; nothing here
knows wsegpc_jax. A class of layers takes kernels by name, [taps, in, out] with
x innermost, and `level_of(name)`, the level of a kernel's maps: the finer one
where it joins two. `start` builds the maps of a scene, for voxels in Morton
order; `same`, `down` and `up` are its convolutions, rows in the library's own
order at the coarser levels. Its finest rows are those of the scene.
"""

import itertools
import sys
import types

import torch
import torch.nn.functional as F

LEVELS = 5
_SPAN = 1 << 20  # of a coordinate in a key
# Taps of 3^3 and 2^3 kernels: x innermost.
_ODD = [(x, y, z) for z, y, x in itertools.product((-1, 0, 1), repeat=3)]
EVEN = [(x, y, z) for z, y, x in itertools.product((0, 1), repeat=3)]


class Lookup:
  """Rows of voxels [M, 3] by their coordinates."""

  def __init__(self, coords):
    self.keys = key(coords)
    self.sorted, self.order = torch.sort(self.keys)

  def __call__(self, keys):
    """Row of each key, and whether it exists."""
    at = torch.searchsorted(self.sorted, keys).clamp_(max=len(self.sorted) - 1)
    return self.order[at], self.sorted[at] == keys


def key(coords):
  """One integer a voxel; that of a neighbour is a constant away."""
  x, y, z = (coords.long() + 1).unbind(1)
  return (x * _SPAN + y) * _SPAN + z


def step_of_key(offset):
  x, y, z = offset
  return (x * _SPAN + y) * _SPAN + z


def neighbor_pairs(lookup):
  """(input rows, output rows) of the 27 taps; None for the one in the middle.

  A tap and its mirror image have the same pairs the other way round, so half
  of them are searched.
  """
  first = []
  for offset in _ODD[:13]:
    rows, exists = lookup(lookup.keys + step_of_key(offset))
    out = exists.nonzero().squeeze(1)
    first.append((rows[out], out))
  return first + [None] + [(out, rows) for rows, out in reversed(first)]


def child_pairs(coords):
  """The next coarser level of voxels in Morton order, and the pairs of it.

  Returns:
    its coordinates, and (fine rows, coarse rows) of the 8 taps.
  """
  parents = coords >> 1
  _, parent, count = torch.unique_consecutive(
    key(parents), return_inverse=True, return_counts=True
  )
  coarse = parents[count.cumsum(0) - count]
  octant = (coords & 1) @ torch.tensor([1, 2, 4])
  fine = [(octant == tap).nonzero().squeeze(1) for tap in range(8)]
  return coarse, [(rows, parent[rows]) for rows in fine]


class PairConvolution(torch.autograd.Function):
  """Sum over taps of x[rows] @ weight[tap], added up at the output rows."""

  @staticmethod
  def forward(ctx, x, weight, pairs, size):
    ctx.save_for_backward(x, weight)
    ctx.pairs = pairs
    middle = None in pairs
    out = x @ weight[13] if middle else x.new_zeros(size, weight.shape[2])
    for tap, pair in enumerate(pairs):
      if pair is not None and len(pair[0]):
        out.index_add_(0, pair[1], x.index_select(0, pair[0]) @ weight[tap])
    return out

  @staticmethod
  def backward(ctx, gradient):
    x, weight = ctx.saved_tensors
    gradient = gradient.contiguous()
    d_weight = torch.zeros_like(weight)
    if None in ctx.pairs:
      d_x = gradient @ weight[13].T
      torch.mm(x.T, gradient, out=d_weight[13])
    else:
      d_x = torch.zeros_like(x)
    for tap, pair in enumerate(ctx.pairs):
      if pair is not None and len(pair[0]):
        g = gradient.index_select(0, pair[1])
        d_x.index_add_(0, pair[0], g @ weight[tap].T)
        torch.mm(x.index_select(0, pair[0]).T, g, out=d_weight[tap])
    return d_x, d_weight, None, None


def is_strided(name):
  """Whether a 2^3 kernel leads down; the names of both networks say so."""
  part = name.split("/")[0]
  return part.startswith("down") or (
    part.startswith("conv") and not part.startswith("convtr")
  )


class TorchLayers:
  """Convolutions by lists of pairs."""

  def __init__(self, kernels, level_of):
    del level_of
    self.kernels = {k: torch.nn.Parameter(v) for k, v in kernels.items()}

  def parameters(self):
    return list(self.kernels.values())

  def start(self, coords):
    """Builds the maps of a scene."""
    self.coords, self.near, self.family = [coords], [], []
    for _ in range(LEVELS - 1):
      coarse, pairs = child_pairs(self.coords[-1])
      self.coords.append(coarse)
      self.family.append(pairs)
    self.lookups = [Lookup(c) for c in self.coords]
    self.near = [neighbor_pairs(lookup) for lookup in self.lookups]

  def lookup(self, level):
    return self.lookups[level]

  def same(self, name, x, level):
    pairs = self.near[level]
    return PairConvolution.apply(x, self.kernels[name], pairs, len(x))

  def down(self, name, x, level):
    size = len(self.coords[level + 1])
    pairs = self.family[level]
    return PairConvolution.apply(x, self.kernels[name], pairs, size)

  def up(self, name, x, level):
    size = len(self.coords[level])
    pairs = [(coarse, fine) for fine, coarse in self.family[level]]
    return PairConvolution.apply(x, self.kernels[name], pairs, size)


class SpconvLayers:
  """Convolutions by spconv; rows of the coarser levels are in its order."""

  def __init__(self, kernels, level_of):
    import spconv.pytorch as spconv
    from spconv.pytorch import ops

    if torch.get_num_threads() > 1:
      raise ValueError("spconv's CPU path is wrong with more than one thread")
    # It asks for a CUDA stream on the way back, also on a CPU.
    ops.get_current_stream = lambda: 0
    self.tensor = spconv.SparseConvTensor
    self.layers = {}
    for name, value in kernels.items():
      taps, wide, out = value.shape
      level = level_of(name)
      if taps == 27:
        layer = spconv.SubMConv3d(
          wide, out, 3, bias=False, indice_key=f"same{level}"
        )
      elif is_strided(name):
        layer = spconv.SparseConv3d(
          wide, out, 2, stride=2, bias=False, indice_key=f"down{level}"
        )
      else:
        layer = spconv.SparseInverseConv3d(
          wide, out, 2, bias=False, indice_key=f"down{level}"
        )
      # [out, z, y, x, in].
      side = 3 if taps == 27 else 2
      value = value.permute(2, 0, 1).reshape(out, side, side, side, wide)
      assert layer.weight.shape == value.shape, layer.weight.shape
      layer.weight.data = value.contiguous()
      self.layers[name] = layer

  def parameters(self):
    return [layer.weight for layer in self.layers.values()]

  def start(self, coords):
    indices = F.pad(coords.flip(1), (1, 0)).int()  # scene, z, y, x
    # Whole at every stride, or its last voxels would have no parent.
    shape = [(int(n) // 16 + 1) * 16 for n in indices[:, 1:].amax(0)]
    empty = torch.zeros(len(coords), 1)
    self.levels = [self.tensor(empty, indices, shape, 1)]

  def lookup(self, level):
    return Lookup(self.levels[level].indices[:, 1:].flip(1))

  def same(self, name, x, level):
    return self.layers[name](self.levels[level].replace_feature(x)).features

  def down(self, name, x, level):
    out = self.layers[name](self.levels[level].replace_feature(x))
    self.levels.append(out)
    return out.features

  def up(self, name, x, level):
    below = self.levels[level + 1].replace_feature(x)
    return self.layers[name](below).features


class OcnnLayers:
  """Convolutions by ocnn, over the non-empty nodes of an octree."""

  _DEPTH = 10  # voxels up to 1023 an axis

  def __init__(self, kernels, level_of):
    del level_of
    # Its model zoo asks for torchvision, which nothing here needs.
    stub = types.ModuleType("torchvision.models")
    stub.resnet18 = None
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))
    sys.modules.setdefault("torchvision.models", stub)
    import ocnn

    self.ocnn, self.layers = ocnn, {}
    for name, value in kernels.items():
      taps, wide, out = value.shape
      if taps == 27:
        layer = ocnn.nn.OctreeConv(wide, out, [3], 1, nempty=True)
      elif is_strided(name):
        layer = ocnn.nn.OctreeConv(wide, out, [2], 2, nempty=True)
      else:
        layer = ocnn.nn.OctreeDeconv(wide, out, [2], 2, nempty=True)
        value = value.transpose(1, 2)  # its weights are those of the way down
      # z is innermost.
      side = 3 if taps == 27 else 2
      value = value.reshape(side, side, side, *value.shape[1:])
      value = value.permute(2, 1, 0, 3, 4).flatten(0, 2)
      assert layer.weights.shape == value.shape, layer.weights.shape
      layer.weights.data = value.contiguous()
      self.layers[name] = layer

  def parameters(self):
    return [layer.weights for layer in self.layers.values()]

  def start(self, coords):
    size = 1 << self._DEPTH
    if int(coords.max()) >= size:
      raise ValueError(f"the octree has room for voxels below {size}")
    octree = self.ocnn.octree.Octree(self._DEPTH, full_depth=2)
    points = (coords.float() + 0.5) * (2 / size) - 1
    octree.build_octree(self.ocnn.octree.Points(points))
    octree.construct_all_neigh()
    own = torch.stack(octree.xyzb(self._DEPTH, nempty=True)[:3], 1)
    if not torch.equal(own.long(), coords.long()):
      raise ValueError("the octree has its voxels in another order")
    self.octree = octree

  def _apply(self, name, x, level):
    return self.layers[name](x, self.octree, self._DEPTH - level)

  def same(self, name, x, level):
    return self._apply(name, x, level)

  def down(self, name, x, level):
    return self._apply(name, x, level)

  def up(self, name, x, level):
    return self._apply(name, x, level + 1)


class MinkowskiLayers:
  """Convolutions by MinkowskiEngine, whose taps and weights are ours."""

  def __init__(self, kernels, level_of):
    del level_of
    import MinkowskiEngine as engine

    self.engine, self.layers = engine, {}
    for name, value in kernels.items():
      taps, wide, out = value.shape
      kind = engine.MinkowskiConvolution
      if taps == 8 and not is_strided(name):
        kind = engine.MinkowskiConvolutionTranspose
      size, stride = (3, 1) if taps == 27 else (2, 2)
      layer = kind(
        wide, out, kernel_size=size, stride=stride, dimension=3, bias=False
      )
      assert layer.kernel.shape == value.shape, layer.kernel.shape
      layer.kernel.data = value.contiguous()
      self.layers[name] = layer

  def parameters(self):
    return [layer.kernel for layer in self.layers.values()]

  def start(self, coords):
    tensor = self.engine.SparseTensor(
      torch.zeros(len(coords), 1), F.pad(coords, (1, 0)).int()
    )
    if not torch.equal(tensor.C[:, 1:].long(), coords.long()):
      raise ValueError("MinkowskiEngine has its voxels in another order")
    self.maps = tensor.coordinate_manager
    self.keys = [tensor.coordinate_map_key]

  def _apply(self, name, x, level):
    tensor = self.engine.SparseTensor(
      x, coordinate_map_key=self.keys[level], coordinate_manager=self.maps
    )
    return self.layers[name](tensor)

  def same(self, name, x, level):
    return self._apply(name, x, level).F

  def down(self, name, x, level):
    out = self._apply(name, x, level)
    self.keys.append(out.coordinate_map_key)
    return out.F

  def up(self, name, x, level):
    # To the voxels that there are, not to all eight children.
    tensor = self.engine.SparseTensor(
      x, coordinate_map_key=self.keys[level + 1], coordinate_manager=self.maps
    )
    return self.layers[name](tensor, self.keys[level]).F


class Open3dLayers:
  """Submanifold convolutions by open3d, which searches at every call."""

  def __init__(self, kernels, level_of):
    del level_of
    import open3d.ml.torch as open3d

    self.layers = {}
    for name, value in kernels.items():
      taps, wide, out = value.shape
      if taps != 27:
        raise ValueError("open3d is compared in 3^3 convolutions only")
      layer = open3d.layers.SparseConv(wide, out, [3, 3, 3], use_bias=False)
      value = value.reshape(3, 3, 3, wide, out)  # z, y, x
      assert layer.kernel.shape == value.shape, layer.kernel.shape
      layer.kernel.data = value.contiguous()
      self.layers[name] = layer

  def parameters(self):
    return [layer.kernel for layer in self.layers.values()]

  def start(self, coords):
    self.positions = coords.float() + 0.5

  def same(self, name, x, level):
    return self.layers[name](x, self.positions, self.positions, voxel_size=1.0)


LAYERS = {
  "torch": TorchLayers,
  "spconv": SpconvLayers,
  "ocnn": OcnnLayers,
  "minkowski": MinkowskiLayers,
  "open3d": Open3dLayers,
}
