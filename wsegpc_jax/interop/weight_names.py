"""Names and layouts of a weight here and in PyTorch projects' state dicts.

A network has up to four parts: `net_3d` (MinkUNet), `net_2d` (dilated ResNet)
and the linear layers `proj_3d` and `proj_2d`. A part is found in a state dict
by one key that all its sizes have, whatever stands before it: `module.` of
DataParallel, `module.encoder_q.` of MoCo, `backbone.` of DINO and so on.

An image kernel is [out, in, h, w] there and [h, w, in, out] here, a linear one
[out, in] and [in, out]; sparse kernels are [taps, in, out] on both sides, in
the same order of taps (`sparse.plan`), and the bias of the 3D class head is
[1, K] there.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from wsegpc_jax.types import DataError

PARTS = ("net_3d", "net_2d", "proj_3d", "proj_2d")

_BLOCKS_3D = {f"block{i}": f"block{i}" for i in range(1, 9)}
_LAYERS_2D = {f"layer{i}": f"layer{i}" for i in range(1, 5)}
# dialect -> (part, {our outermost module, without its block: theirs}).
DIALECTS = {
  # MinkowskiEngine's MinkUNet: p = stride of the input, s = of the layer.
  "minkowski": (
    "net_3d",
    {
      "conv0": "conv0p1s1",
      **{f"conv{i}": f"conv{i}p{2 ** (i - 1)}s2" for i in range(1, 5)},
      **{f"bn{i}": f"bn{i}" for i in range(5)},
      **{f"convtr{i}": f"convtr{i}p{2 ** (8 - i)}s2" for i in range(4, 8)},
      **{f"bntr{i}": f"bntr{i}" for i in range(4, 8)},
      **_BLOCKS_3D,
      "final": "final",
    },
  ),
  # The released WSegPC puts the same layers into sequences: down, norm, ReLU,
  # blocks on the way down; blocks, up, norm on the way up.
  "wsegpc_3d": (
    "net_3d",
    {
      **{f"conv{i}": f"layer{i}_3d.0" for i in range(5)},
      **{f"bn{i}": f"layer{i}_3d.1" for i in range(5)},
      **{f"block{i}": f"layer{i}_3d.3" for i in range(1, 5)},
      "convtr4": "layer5_3d.0",
      "bntr4": "layer5_3d.1",
      **{f"block{i}": f"layer{i + 1}_3d.0" for i in range(5, 8)},
      **{f"convtr{i}": f"layer{i + 1}_3d.1" for i in range(5, 8)},
      **{f"bntr{i}": f"layer{i + 1}_3d.2" for i in range(5, 8)},
      "block8": "layer9_3d",
      "final": "cls_3d",
    },
  ),
  # torchvision, and all that is built on its ResNet; its classifier `fc` has
  # no counterpart here.
  "torchvision": (
    "net_2d",
    {"conv1": "conv1", "bn1": "bn1", **_LAYERS_2D},
  ),
  "wsegpc_2d": (
    "net_2d",
    {
      "conv1": "layer0_2d.0",
      "bn1": "layer0_2d.1",
      **{k: f"{v}_2d" for k, v in _LAYERS_2D.items()},
      "cls": "cls_2d",
    },
  ),
  # OBoW's own feature extractor (its released files are torchvision's).
  "obow": (
    "net_2d",
    {
      "conv1": "_feature_blocks.0.Conv",
      "bn1": "_feature_blocks.0.bn",
      **{k: f"_feature_blocks.{k[-1]}" for k in _LAYERS_2D},
    },
  ),
  "proj_3d": ("proj_3d", {"": "proj_3d"}),
  "proj_2d": ("proj_2d", {"": "proj_2d"}),
}
_DOWNSAMPLE = {
  "downsample_conv": "downsample.0",
  "downsample_norm": "downsample.1",
  "downsample_bn": "downsample.1",
}
_NORM_LEAVES = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Weights by which a part is found; every size of it has them.
_LANDMARKS = {
  "net_3d": ("params", "conv0", "kernel"),
  "net_2d": ("params", "layer1_0", "conv1", "kernel"),
  "proj_3d": ("params", "kernel"),
  "proj_2d": ("params", "kernel"),
}
# Where a file holds several networks, the one that its authors evaluate: not
# the key encoder of MoCo and PixPro, not the teacher of OBoW.
_PREFERRED = (
  "",
  "module.",
  "encoder_q.",
  "encoder.",
  "backbone.",
  "feature_extractor.",
)
_HEADS = ("final", "cls")

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Naming:
  """How a state dict names the weights of one part.

  Attributes:
    dialect: a key of DIALECTS.
    prefix: what stands before every name, "" or ending in a dot.
  """

  dialect: str
  prefix: str = ""

  @property
  def part(self) -> str:
    return DIALECTS[self.dialect][0]

  def key(self, path: Path) -> str | None:
    """The key of a variable (collection, *modules, leaf) of the part.

    None if this dialect has no such weight: a class head it does not share.
    """
    _, *modules, leaf = path
    head, _, block = (modules[0] if modules else "").partition("_")
    name = DIALECTS[self.dialect][1].get(head)
    if name is None:
      return None
    names = [name, *filter(None, [block])]
    names += [_DOWNSAMPLE.get(m, m) for m in modules[1:]]
    if is_norm(path):
      # MinkowskiEngine wraps torch's norm.
      names += ["bn"] if self.part == "net_3d" else []
      names.append(_NORM_LEAVES[leaf])
    elif leaf == "kernel" and self.part != "net_3d":
      names.append("weight")
    else:
      names.append(leaf)
    return self.prefix + ".".join(names)


def is_norm(path: Path) -> bool:
  """Whether a variable belongs to a batch norm."""
  module = path[-2]
  return "bn" in module or "norm" in module


def landmarks(part: str) -> dict[str, str]:
  """Keys by which a part is found: {key without its prefix: dialect}."""
  return {
    Naming(dialect).key(_LANDMARKS[part]): dialect
    for dialect, (of_part, _) in DIALECTS.items()
    if of_part == part
  }


def find(keys: Iterable[str], *, where: str) -> dict[str, Naming]:
  """The parts that a state dict has, each with its naming.

  Args:
    keys: of the state dict.
    where: the file, for the error.

  Raises:
    DataError: several networks of one kind, and no telling which is meant.
  """
  keys = list(keys)
  found = {}
  for part in PARTS:
    for landmark, dialect in landmarks(part).items():
      prefixes = [
        key.removesuffix(landmark)
        for key in keys
        if key == landmark or key.endswith("." + landmark)
      ]
      if prefixes and part not in found:
        found[part] = Naming(dialect, _choose(prefixes, landmark, where))
  return found


def complete(found: dict[str, Naming]) -> dict[str, Naming]:
  """All parts, if what `find` found is of a checkpoint of both branches.

  The parts that it lacks are then named as they should be there.
  """
  roots = [
    naming.prefix.removesuffix(f"{part}.")
    for part, naming in found.items()
    if naming.prefix.endswith(f"{part}.")
  ]
  if not roots:
    return found
  due = {
    "net_3d": Naming("wsegpc_3d", f"{roots[0]}net_3d."),
    "net_2d": Naming("wsegpc_2d", f"{roots[0]}net_2d."),
    "proj_3d": Naming("proj_3d", roots[0]),
    "proj_2d": Naming("proj_2d", roots[0]),
  }
  return due | found


def _choose(prefixes: list[str], landmark: str, where: str) -> str:
  if len(prefixes) == 1:
    return prefixes[0]
  for ending in _PREFERRED:
    # Of `module.` alone, then of what `module.` may stand before.
    exact = {ending, "module." + ending}
    if matching := [p for p in prefixes if p in exact]:
      return matching[0]
  raise DataError(
    f"{where}: holds several networks ({', '.join(prefixes)}, each with "
    f"{landmark!r}); expected one"
  )


def to_torch(part: str, path: Path, value: np.ndarray) -> np.ndarray:
  """A variable in the layout of a state dict."""
  if path[-1] == "kernel" and part != "net_3d":
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
  return value[None] if _is_3d_bias(part, path) else value


def from_torch(part: str, path: Path, value: np.ndarray) -> np.ndarray:
  """The inverse of `to_torch`."""
  if path[-1] == "kernel" and part != "net_3d":
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  return value[0] if _is_3d_bias(part, path) else value


def torch_shape(part: str, path: Path, shape: Shape) -> Shape:
  """Shape that a variable of this shape has in a state dict."""
  return to_torch(part, path, np.broadcast_to(np.float32(0), shape)).shape


def accepted_shapes(part: str, path: Path, shape: Shape) -> tuple[Shape, ...]:
  """That shape, and what versions of MinkowskiEngine have for the same."""
  if part == "net_3d" and path[-1] == "kernel" and len(shape) == 2:
    return shape, (1, *shape)  # a kernel of one tap
  if _is_3d_bias(part, path):
    return shape, shape[1:]
  return (shape,)


def differ_in_classes(
  part: str, path: Path, theirs: Shape, ours: Shape
) -> bool:
  """Whether two shapes in a state dict differ in the number of classes only."""
  if path[1] not in _HEADS:
    return False
  if _is_3d_bias(part, path):
    return theirs[:-1] in ((), (1,))
  features = slice(1, None) if part == "net_2d" else slice(None, -1)
  return theirs[features] == ours[features] and len(theirs) == len(ours)


def _is_3d_bias(part, path):
  return part == "net_3d" and path[1:] == ("final", "bias")
