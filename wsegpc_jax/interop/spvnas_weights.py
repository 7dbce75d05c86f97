"""Checkpoints of SPVCNN, SPVNAS and their MinkUNet, as torchsparse writes them.

The projects of Tang et al. (mit-han-lab/spvnas) and Cluster3DSeg (its `proj`)
name one network in three ways: SPVCNN and MinkUNet as sequences; SPVNAS after
its widths were fixed; and the supernet of SPVNAS, of which a network uses the
first channels of every layer.

Layouts. Sparse kernels are [taps, in, out] on both sides. Taps of an odd
kernel come in the order of `sparse.plan`, z outermost and x innermost.
torchsparse enumerates an even kernel the other way round, x outermost:

    theirs k' = 4 tx + 2 ty + tz,    ours k = tx + 2 ty + 4 tz

so taps of 2^3 kernels are permuted by the reversal of their three bits. A
linear layer is [out, in] there and [in, out] here. SPVNAS keeps the supernet's
classifier, [K, 128], and reads as many of its columns as it has features (76).
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from wsegpc_jax.interop import weights
from wsegpc_jax.types import DataError

logger = logging.getLogger(__name__)

DIALECTS = ("spvcnn", "spvnas", "supernet")
PROJECTION = "projection"  # our variables of it, beside the network's
_LANDMARKS = {
  "spvcnn": "stage1.0.net.0.kernel",
  "spvnas": "downsample.0.feature.0.net.0.net.conv.kernel",
  "supernet": "downsample.0.feature.layers.0.net.layers.0.net.conv.kernel",
}
_REVERSED_BITS = [0, 4, 2, 6, 1, 5, 3, 7]
_LEAVES = {
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
_COUNTER = "num_batches_tracked"

StateDict = Mapping[str, np.ndarray]
Path = tuple[str, ...]


class Naming(NamedTuple):
  """How a state dict names the network: see `weights.Report`."""

  dialect: str
  prefix: str
  part: str = "net_3d"


def load(
  path: str | os.PathLike, variables: dict, *, random_head: bool = False
) -> tuple[dict, weights.Report]:
  """Reads a checkpoint (`init`, `step-N.pt`, ...); logs what was used.

  Arguments, result and errors as of `fill`; errors as of `weights.read`, too.
  """
  file = weights.read(path)
  filled, report = fill(
    file.student, variables, where=file.path, random_head=random_head
  )
  for line in report.lines():
    logger.info("%s", line)
  if file.beside:
    logger.info("%s: left out %s", file.path, ", ".join(file.beside))
  return filled, report


def fill(
  arrays: StateDict,
  variables: dict[str, Any],
  *,
  where: str,
  random_head: bool = False,
) -> tuple[dict[str, Any], weights.Report]:
  """Variables with the values of a state dict.

  A network without point branch leaves the point transforms that the authors'
  MinkUNet declares and never uses. A state dict without `proj` leaves the
  projection as it is.

  Args:
    arrays: the state dict.
    variables: {"params", "batch_stats"} of an SPVCNN; those of a
      ProjectionHead may be among them as "projection".
    where: the file, for errors and the report.
    random_head: leaves the classifier as it is where its classes differ.

  Returns:
    New variables, numpy arrays of the dtypes of the old ones, and the report,
    in which every key is used or left out.

  Raises:
    DataError: it is no state dict of such a network, a key is missing, a shape
      differs (it names the key and both shapes), or a value is not a finite
      float.
    ValueError: the variables are not of an SPVCNN.
  """
  if "stem0_conv" not in variables["params"]:
    raise ValueError("expected the variables of an SPVCNN")
  naming = find(arrays, where=where)
  has_projection = f"{naming.prefix}proj.0.weight" in arrays
  ours = traverse_util.flatten_dict(variables)
  filled, used, kept = dict(ours), set(), []
  for full, like in ours.items():
    is_head = full[1] == "classifier"
    if full[1] == PROJECTION and not has_projection:
      kept.append("/".join(full))
      continue
    key = _choose(candidates(full, naming), arrays, like.shape, where)
    theirs = weights.checked_floats(
      arrays[key], f"{where}: {key}", var=full[-1] == "var"
    )
    other_classes = is_head and theirs.shape[:1] != like.shape[-1:]
    if other_classes and random_head:
      kept.append("/".join(full))
      continue
    value = _our_layout(full, theirs)
    if is_head and full[-1] == "kernel" and naming.dialect != "spvcnn":
      value = value[: like.shape[0]]
    elif naming.dialect == "supernet" and not is_head:
      value = _slice(full, value, like.shape, arrays, naming, variables)
    if value.shape != like.shape:
      hint = ": another number of classes" if other_classes else ""
      raise DataError(
        f"{where}: {key} has shape {list(theirs.shape)}, which does not fit "
        f"{'/'.join(full)} {list(like.shape)} of this network{hint}"
      )
    filled[full] = np.ascontiguousarray(value, dtype=like.dtype)
    used.add(key)
  norms = {k.removesuffix("running_var") for k in used if "running_var" in k}
  used |= {norm + _COUNTER for norm in norms if norm + _COUNTER in arrays}
  report = weights.Report(
    where=where,
    namings=(naming,),
    used=tuple(k for k in arrays if k in used),
    left_out=tuple(str(k) for k in arrays if k not in used),
    kept=tuple(kept),
  )
  return traverse_util.unflatten_dict(filled), report


def find(arrays: StateDict, *, where: str) -> Naming:
  """The dialect of a state dict and what stands before its names.

  Raises:
    DataError: it holds no such network, or several.
  """
  found = [
    Naming(dialect, key.removesuffix(landmark))
    for dialect, landmark in _LANDMARKS.items()
    for key in arrays
    if key == landmark or key.endswith("." + landmark)
  ]
  if len(found) == 1:
    return found[0]
  if found:
    prefixes = ", ".join(repr(n.prefix) for n in found)
    raise DataError(
      f"{where}: expected one network, got several, under {prefixes}"
    )
  raise DataError(
    f"{where}: expected a state dict of SPVCNN, SPVNAS or their MinkUNet with "
    f"a key that ends in {' or '.join(map(repr, _LANDMARKS.values()))}, got "
    f"{len(arrays)} keys without ({', '.join(map(repr, list(arrays)[:3]))}, "
    "...)"
  )


def candidates(full: Path, naming: Naming) -> tuple[str, ...]:
  """Keys that a variable (collection, *modules, leaf) may have.

  Versions of torchsparse and the supernet put torch's layer into one of their
  own, `bn` or `linear`.
  """
  *modules, leaf = full[1:]
  conv, norm = _names(naming.dialect, modules)
  is_norm = "norm" in modules[-1]
  name = naming.prefix + (norm if is_norm else conv)
  if is_norm:
    return f"{name}.{_LEAVES[leaf]}", f"{name}.bn.{_LEAVES[leaf]}"
  if leaf == "bias":
    return f"{name}.bias", f"{name}.linear.bias"
  if modules[0] == "classifier" or modules[-1] == "linear":
    return f"{name}.weight", f"{name}.linear.weight"
  return (f"{name}.kernel",)


_MODULE = re.compile(r"([a-z]+)(\d?)(?:_([a-z]+)(\d?))?")


def _names(dialect: str, modules: list[str]) -> tuple[str, str]:
  """Their names of a layer and of the norm after it; either means both."""
  if modules[0] == PROJECTION:
    i = int(modules[1].removeprefix("layer"))
    return f"proj.{3 * i}", f"proj.{3 * i + 1}"
  part, i, kind, j = _MODULE.fullmatch(modules[0]).groups()
  i = int(i or 0)
  if part == "stem":
    return f"stem.{3 * i}", f"stem.{3 * i + 1}"
  # Of a block's layer: its number there, none for the skip.
  k = modules[1][-1] if kind == "block" else ""
  k = int(k) - 1 if k.isdigit() else None
  if dialect == "spvcnn":
    return _spvcnn_names(part, i, kind, j, k)
  layers = "layers." if dialect == "supernet" else ""
  return _spvnas_names(part, i, kind, j, k, layers)


def _spvcnn_names(part, i, kind, j, k):
  if part == "classifier":
    return "classifier.0", ""
  if part == "point":
    return f"point_transforms.{i}.0", f"point_transforms.{i}.1"
  if kind != "block":
    root = (f"stage{i + 1}" if part == "down" else f"up{i + 1}") + ".0.net"
    return f"{root}.0", f"{root}.1"
  block = f"stage{i + 1}.{int(j) + 1}" if part == "down" else f"up{i + 1}.1.{j}"
  if k is None:
    return f"{block}.downsample.0", f"{block}.downsample.1"
  return f"{block}.net.{3 * k}", f"{block}.net.{3 * k + 1}"


def _spvnas_names(part, i, kind, j, k, layers):
  if part == "classifier":
    return "classifier", ""
  if part == "point":
    root = f"point_transforms.{i}"
  elif kind != "block":
    root = f"{part}sample.{i}.transition"
  else:
    block = f"{part}sample.{i}.feature.{layers}{j}"
    root = f"{block}.downsample" if k is None else f"{block}.net.{layers}{k}"
  return f"{root}.net.conv", f"{root}.net.bn"


def _choose(keys, arrays, shape, where):
  for key in keys:
    if key in arrays:
      return key
  raise DataError(
    f"{where}: has no {keys[0]!r}, which this network needs for a weight of "
    f"shape {list(shape)}"
  )


def _our_layout(full: Path, value: np.ndarray) -> np.ndarray:
  """A value with the axes and the taps of ours."""
  if full[-1] != "kernel":
    return value
  if full[-2] in ("linear", "classifier"):
    return value.T
  if full[-2] == "downsample_conv":
    # A 1^3 kernel; some versions keep its one tap.
    return value[0] if value.ndim == 3 and len(value) == 1 else value
  return value[_REVERSED_BITS] if len(value) == 8 else value


def _slice(full, value, shape, arrays, naming, variables):
  """The channels of a supernet's layer that a smaller network uses.

  The first ones; but where features are concatenated, the first of those that
  come from below, then the first of the skip, which begin after all that could
  come from below.
  """
  if value.ndim != len(shape):
    return value
  part = re.fullmatch(r"up(\d)_block0", full[1])
  if part and full[2] in ("conv1", "downsample_conv") and full[-1] == "kernel":
    up = f"up{part[1]}_conv"
    below = variables["params"][up]["kernel"].shape[-1]
    key = candidates(("params", up, "kernel"), naming)[0]
    most = arrays[key].shape[-1]
    index = [*range(below), *range(most, most + shape[-2] - below)]
    value = value[..., [i for i in index if i < value.shape[-2]], :]
  channels = tuple(slice(n) for n in shape[-2:])
  return value[(..., *channels)]
