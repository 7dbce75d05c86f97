"""Converts weights between PyTorch's files and our checkpoints.

  python scripts/convert_weights.py model_best.pth.tar exp/stage1 --to orbax
  python scripts/convert_weights.py exp/rpc rpc.pth --to pth
  python scripts/convert_weights.py exp/seg mink.pth --to pth --names minkowski
  python scripts/convert_weights.py moco.pth.tar resnet50.safetensors \\
    --to safetensors

IN is a .pth, .pt, .pth.tar or .safetensors file (WSegPC, MinkowskiEngine's
MinkUNet, torchvision's ResNet, MoCo, SwAV, DeepCluster v2, DINO, OBoW, PixPro)
or the working directory of a run. With --to orbax OUT becomes a folder that
--config.init_from takes as a working directory; with --data it can be scored
and can label and predict, too. What the network looks like is told by the
shapes of its weights.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wsegpc_jax import checkpoints, inputs, train
from wsegpc_jax.data.assets import open_dataset
from wsegpc_jax.interop import weight_names, weights
from wsegpc_jax.interop.weight_names import Naming
from wsegpc_jax.models import initialize
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import ARCHITECTURES, STEM_WIDTH, MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.types import DataError

_DEPTHS = {
  ((2, 2, 2, 2), False): 18,
  ((3, 4, 6, 3), False): 34,
  ((3, 4, 6, 3), True): 50,
  ((3, 4, 23, 3), True): 101,
}
_CAPACITIES = (16, 8, 8, 8, 8)  # of a plan that only gives shapes


def parse_args(argv=None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("source", metavar="IN")
  parser.add_argument("target", metavar="OUT")
  parser.add_argument(
    "--to", required=True, choices=("orbax", "pth", "safetensors")
  )
  parser.add_argument(
    "--names",
    choices=tuple(weights.EXPORTS),
    help="names in OUT; default: wsegpc for both branches, minkowski for a 3D "
    "network alone, torchvision for a 2D one",
  )
  parser.add_argument(
    "--network",
    default="both",
    choices=("both", "student", "teacher"),
    help="which of the networks goes to OUT; IN may have a student only",
  )
  parser.add_argument(
    "--which",
    default="best",
    choices=("best", "latest"),
    help="checkpoint of a working directory",
  )
  parser.add_argument(
    "--arch",
    choices=tuple(ARCHITECTURES),
    help="refuse a 3D network other than this one",
  )
  parser.add_argument(
    "--image_depth",
    type=int,
    choices=sorted(set(_DEPTHS.values())),
    help="refuse a ResNet other than this one",
  )
  parser.add_argument(
    "--classes", type=int, help="number of classes; default: as in IN"
  )
  parser.add_argument(
    "--random_head",
    action="store_true",
    help="draw new class heads where IN has another number of classes",
  )
  parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
  parser.add_argument(
    "--data",
    help="--to orbax: data set in the asset layout whose classes these are",
  )
  return parser.parse_args(argv)


def main(argv=None) -> None:
  args = parse_args(argv)
  if args.data and args.to != "orbax":
    raise DataError("--data goes with --to orbax")
  if args.classes is not None and args.classes < 1:
    raise DataError(f"--classes={args.classes}; expected a positive number")
  if Path(args.source).resolve() == Path(args.target).resolve():
    raise DataError(f"OUT would overwrite IN, {args.source}")
  if args.to != "orbax":
    expected = (".safetensors",)
    if args.to == "pth":
      expected = tuple(s for s in weights.SUFFIXES if s != expected[0])
    if Path(args.target).suffix not in expected:
      raise DataError(
        f"OUT {args.target!r} does not end in {' or '.join(expected)}"
      )
  file = _open(args)
  variables = _network(file, args)
  networks = [
    None if arrays is None else _fill(arrays, variables, name, file, args)
    for name, arrays in (("student", file.student), ("teacher", file.teacher))
  ]
  student, teacher = networks
  if args.network != "both":
    student = networks[args.network == "teacher"]
    teacher = None
    if student is None:
      raise DataError(f"{args.source} has no teacher")
  if args.to == "orbax":
    _write_workdir(student, teacher, file, args)
  else:
    names = args.names or _names(student)
    exported = [
      tree and weights.to_state_dict(tree, names=names)
      for tree in (student, teacher)
    ]
    content = weights.join(*exported, best_miou=file.best_miou)
    weights.save(args.target, content)
    print(f"wrote {args.target}: {len(exported[0])} arrays named as {names}")


def _open(args) -> weights.WeightsFile:
  """The file, or a working directory as if it were one."""
  if weights.is_weights_file(args.source):
    return weights.read(args.source)
  keys = ("params", "batch_stats")
  ema = tuple(f"ema_{key}" for key in keys)
  try:
    tree, host = checkpoints.restore_partial(
      args.source, keys=keys + ema, which=args.which
    )
  except DataError as error:
    if "nothing under" not in str(error):
      raise
    tree, host = checkpoints.restore_partial(
      args.source, keys=keys, which=args.which
    )
  networks = [
    weights.to_state_dict(dict(zip(keys, map(tree.get, names), strict=True)))
    for names in (keys, ema)
    if names[0] in tree
  ]
  return weights.WeightsFile(
    args.source, *networks, best_miou=host.get("best_miou", 0.0)
  )


def _network(file, args) -> weights.Variables:
  """Freshly drawn variables of a network as the student's shapes tell it."""
  found = weight_names.complete(
    weight_names.find(file.student, where=file.path)
  )
  net_3d = net_2d = None
  plan = jax.eval_shape(
    lambda c, n: plan_lib.build_plan(c, n, _CAPACITIES),
    jax.ShapeDtypeStruct((_CAPACITIES[0], 4), np.int32),
    jax.ShapeDtypeStruct((), np.int32),
  )
  shape = _Shapes(file)
  if "net_3d" in found:
    net_3d, channels = _minkunet(shape, found["net_3d"], args)
    points = jax.ShapeDtypeStruct((_CAPACITIES[0], channels), np.float32), plan
  if "net_2d" in found:
    net_2d = _resnet(shape, found["net_2d"], args)
    images = (
      jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32),
      jax.ShapeDtypeStruct((1,), bool),
    )
  if net_3d is None and net_2d is None:
    landmarks = [*weight_names.landmarks("net_3d")]
    landmarks += weight_names.landmarks("net_2d")
    raise DataError(
      f"{file.path}: expected a key that ends in one of "
      f"{', '.join(landmarks)}, got {len(file.student)} keys without "
      f"({', '.join(list(file.student)[:3])}, ...)"
    )
  if net_2d is None:
    return initialize.init_variables(net_3d, args.seed, *points, train=False)
  if net_3d is None:
    return initialize.init_variables(net_2d, args.seed, *images, train=False)
  widths = [
    shape(found.get(part, Naming(part)), "kernel")[0]
    for part in ("proj_3d", "proj_2d")
  ]
  net = TwoBranchNet(net_3d, net_2d, *widths)
  return initialize.init_variables(
    net, args.seed, *points, *images, train=False
  )


class _Shapes:
  """Shapes of a state dict's kernels, by our names."""

  def __init__(self, file):
    self._file = file

  def has(self, naming, *path) -> bool:
    return naming.key(("params", *path)) in self._file.student

  def __call__(self, naming, *path, axes=None) -> tuple[int, ...]:
    key = naming.key(("params", *path))
    if key not in self._file.student:
      raise DataError(f"{self._file.path}: has no {key!r}")
    shape = np.shape(self._file.student[key])
    if not all(shape) or len(shape) not in (axes or (2, 3, 4)):
      raise DataError(
        f"{self._file.path}: {key} has shape {list(shape)}; expected a kernel"
      )
    return shape

  def blocks(self, naming, stage: str) -> int:
    """Number of blocks that a stage has."""
    number = 0
    while self.has(naming, f"{stage}_{number}", "conv1", "kernel"):
      number += 1
    return number


def _minkunet(shape, naming, args) -> tuple[MinkUNet, int]:
  """The 3D network, and how many channels its input has."""
  _, channels, width = shape(naming, "conv0", "kernel", axes=(3,))
  stages = [f"block{i}" for i in range(1, 9)]
  layers = tuple(shape.blocks(naming, stage) for stage in stages)
  planes = tuple(
    shape(naming, f"{stage}_0", "conv2", "kernel")[-1] for stage in stages
  )
  wide = 4 if shape.has(naming, "block1_0", "conv3", "kernel") else 1
  fitting = [
    arch
    for arch, (their_layers, their_planes, expansion) in ARCHITECTURES.items()
    if (their_layers, expansion) == (layers, wide)
    and planes == tuple(max(1, p * width // STEM_WIDTH) for p in their_planes)
  ]
  described = (
    f"a 3D network with a stem of width {width}, blocks {list(layers)} and "
    f"planes {list(planes)}"
  )
  if args.arch and args.arch not in fitting:
    raise DataError(
      f"{args.source}: expected MinkUNet{args.arch}, got {described}"
    )
  if not fitting:
    raise DataError(
      f"{args.source}: {described} is none of {', '.join(ARCHITECTURES)}"
    )
  classes = shape(naming, "final", "kernel")[-1]
  net = MinkUNet(fitting[0], args.classes or classes, width=width)
  print(f"3D network: MinkUNet{net.arch}, width {width}, {classes} classes")
  return net, channels


def _resnet(shape, naming, args) -> DilatedResNet:
  layers = tuple(shape.blocks(naming, f"layer{i}") for i in range(1, 5))
  bottleneck = shape.has(naming, "layer1_0", "conv3", "kernel")
  depth = _DEPTHS.get((layers, bottleneck))
  width = shape(naming, "conv1", "kernel")[0]
  if depth is None or args.image_depth not in (None, depth):
    raise DataError(
      f"{args.source}: expected a ResNet of depth "
      f"{args.image_depth or '18, 34, 50 or 101'}, got one with blocks "
      f"{list(layers)}{' of three convolutions' if bottleneck else ''}"
    )
  classes = None
  if naming.key(("params", "cls", "kernel")):
    classes = shape(naming, "cls", "kernel")[0]
  print(
    f"2D network: ResNet-{depth}, width {width}, "
    + (f"{classes} classes" if classes else "no class head of ours")
  )
  return DilatedResNet(depth, args.classes or classes or 1, width=width)


def _fill(arrays, variables, name, file, args) -> weights.Variables:
  where = f"{file.path}: {name}" if file.teacher is not None else file.path
  filled, report = weights.fill(
    arrays, variables, where=where, random_head=args.random_head
  )
  print(*report.lines(), sep="\n")
  if file.beside and name == "student":
    print(f"{file.path}: left out {', '.join(file.beside)}")
  return filled


def _names(variables: weights.Variables) -> str:
  params = variables["params"]
  if "net_3d" in params:
    return "wsegpc"
  return "minkowski" if "conv0" in params else "torchvision"


def _write_workdir(student, teacher, file, args) -> None:
  """A checkpoint at step 0, with what the next stage asks of one."""
  if _names(student) == "torchvision":
    raise DataError(
      f"{args.source} has no 3D network; give the file itself as "
      "--config.model.image_weights"
    )
  target = Path(args.target)
  if (target / "checkpoints").exists():
    raise DataError(f"{target} holds checkpoints already; expected a new name")
  # A score of other classes says nothing of these.
  best_miou = 0.0 if args.random_head else file.best_miou
  state: dict[str, Any] = dict(student)
  if _names(student) == "wsegpc":
    # In stages 1 and 2 a run has a teacher, at first the student's copy.
    state |= {f"ema_{k}": v for k, v in (teacher or student).items()}
  if args.data:
    dataset = open_dataset(args.data)
    classes = len(
      student["params"].get("net_3d", student["params"])["final"]["bias"]
    )
    if classes != len(dataset.classes):
      raise DataError(
        f"--data={args.data}: has {len(dataset.classes)} classes, the network "
        f"{classes}"
      )
    scenes = inputs.split_scenes(dataset, "train")
    inputs.write_data_record(str(target), dataset, scenes)
  with checkpoints.Checkpoints(target) as saved:
    target.mkdir(parents=True, exist_ok=True)
    saved.save(
      0,
      state,
      host=dataclasses.asdict(train.Record(best_miou=best_miou)),
      metrics={"miou": best_miou},
    )
  print(
    f"wrote {target}: for --config.init_from={target}, best mIoU "
    f"{best_miou:.4f}"
  )


if __name__ == "__main__":
  try:
    main()
  except (DataError, ImportError, OSError) as error:
    sys.exit(f"error: {error}")
