"""Weights of PyTorch projects in our variables, and ours in their form.

Read are the checkpoints of WSegPC (student and teacher), MinkowskiEngine's
MinkUNet, torchvision's ResNet and what MoCo, SwAV, DeepCluster v2, DINO, OBoW
and PixPro put around it. Names and layouts are those of `weight_names`.
"""

import collections
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from wsegpc_jax.interop import safetensors_io, torch_pickle, weight_names
from wsegpc_jax.interop.weight_names import PARTS, Naming
from wsegpc_jax.types import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".tar", ".safetensors")
# name of an export -> dialect of each part that it has.
EXPORTS = {
  "wsegpc": ("wsegpc_3d", "wsegpc_2d", "proj_3d", "proj_2d"),
  "minkowski": ("minkowski",),
  "torchvision": ("torchvision",),
}
_TEACHER = "ema_state_dict"
# Entries that hold the network, the first that is there: WSegPC, MoCo and
# SwAV; DINO, whose teacher is the better; OBoW; PixPro.
_ENTRIES = ("state_dict", "teacher", "network", "model", "student")
_BEST = ("best_miou", "best_iou")
_COUNTER = ".num_batches_tracked"

StateDict = dict[str, np.ndarray]
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class WeightsFile:
  """What a file of weights holds.

  Attributes:
    path: of the file.
    student: its state dict; of a file with one network, that one.
    teacher: the state dict of the EMA of it; None without one.
    beside: names of what else is in the file, such as "optimizer".
    best_miou: of the run that wrote the file, 0..1; 0 = not said.
  """

  path: str
  student: StateDict
  teacher: StateDict | None = None
  beside: tuple[str, ...] = ()
  best_miou: float = 0.0


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of every key of a state dict and of every variable.

  Attributes:
    where: the file, and which state dict of it.
    namings: of the parts that were found and wanted.
    used: keys that were read, counters of batches among them.
    left_out: keys that have no counterpart here.
    kept: our variables that the state dict does not have, "/"-joined; they
      stay what they were.
  """

  where: str
  namings: tuple[Naming, ...]
  used: tuple[str, ...]
  left_out: tuple[str, ...]
  kept: tuple[str, ...]

  def lines(self) -> list[str]:
    """The report in words."""
    parts = ", ".join(
      f"{n.part} ({n.prefix}* as {n.dialect})" for n in self.namings
    )
    total = len(self.used) + len(self.left_out)
    lines = [f"{self.where}: used {len(self.used)} of {total} keys: {parts}"]
    if self.left_out:
      lines.append(f"{self.where}: left out {_grouped(self.left_out, '.')}")
    if self.kept:
      kept = _grouped(self.kept, "/")
      lines.append(f"{self.where}: what it does not set stays: {kept}")
    return lines


def is_weights_file(path: str | os.PathLike) -> bool:
  """Whether a path means a file of weights, not a working directory."""
  path = Path(path)
  return path.is_file() or (path.suffix in SUFFIXES and not path.is_dir())


def read(path: str | os.PathLike) -> WeightsFile:
  """Reads a file of weights, without knowing of which network.

  Args:
    path: .pth, .pt or .pth.tar as torch saves them, or .safetensors, where
      the teacher's keys begin with `ema_state_dict.`.

  Raises:
    DataError: the file is missing, damaged, or holds no state dict.
  """
  path = os.fspath(path)
  if path.endswith(".safetensors"):
    tree = _unflatten(safetensors_io.load(path))
  else:
    tree = torch_pickle.load(path)
  if not isinstance(tree, Mapping):
    raise DataError(
      f"{path}: expected a dict of weights, got {type(tree).__name__}"
    )
  entry = next((e for e in _ENTRIES if isinstance(tree.get(e), Mapping)), None)
  student = tree if entry is None else tree[entry]
  if not any(isinstance(v, np.ndarray) and v.ndim for v in student.values()):
    raise DataError(
      f"{path}: expected a state dict, at the top or under one of "
      f"{', '.join(_ENTRIES)}; got the entries "
      f"{', '.join(map(str, list(student)[:8])) or 'of none'}"
    )
  teacher = tree.get(_TEACHER)
  best = {key: _share(tree[key]) for key in _BEST if key in tree}
  known = {entry, _TEACHER, *(key for key, value in best.items() if value)}
  return WeightsFile(
    path=path,
    student=_named(student),
    teacher=_named(teacher) if isinstance(teacher, Mapping) else None,
    beside=_beside(tree, known) if entry else (),
    best_miou=max(best.values(), default=0.0),
  )


def load(
  path: str | os.PathLike,
  variables: Variables,
  *,
  parts: tuple[str, ...] = PARTS,
  random_head: bool = False,
) -> tuple[Variables, Variables | None, WeightsFile]:
  """Reads a file into the variables of a network; logs what was used.

  Args:
    path: see `read`.
    variables: see `fill`.
    parts, random_head: see `fill`.

  Returns:
    The student's variables, the teacher's (None if the file has none), and
    the file.

  Raises:
    DataError: as `read` and `fill`.
  """
  file = read(path)
  filled = []
  for name, arrays in (("state_dict", file.student), (_TEACHER, file.teacher)):
    if arrays is None:
      filled.append(None)
      continue
    where = file.path if file.teacher is None else f"{file.path}: {name}"
    new, report = fill(
      arrays, variables, where=where, parts=parts, random_head=random_head
    )
    for line in report.lines():
      logger.info("%s", line)
    filled.append(new)
  if file.beside:
    logger.info("%s: left out %s", file.path, ", ".join(file.beside))
  return *filled, file


def fill(
  arrays: Mapping[str, np.ndarray],
  variables: Variables,
  *,
  where: str,
  parts: tuple[str, ...] = PARTS,
  random_head: bool = False,
) -> tuple[Variables, Report]:
  """Variables with the values of a state dict.

  A part that the state dict has must be there whole. One that it does not have
  stays as it is, unless it is the first of `parts`, or the state dict is one
  of both branches.

  Args:
    arrays: the state dict.
    variables: {"params", "batch_stats"} of a TwoBranchNet, of a MinkUNet or of
      a DilatedResNet: shapes to expect, values of what is not read.
    where: the file, for errors and the report.
    parts: which parts to read.
    random_head: leaves a class head as it is where its classes differ.

  Returns:
    New variables, numpy arrays of the dtypes of the old ones; the report.

  Raises:
    DataError: a key is missing, a shape differs (it names the key and both
      shapes), or a value is not a finite float.
    ValueError: the network has none of `parts`.
  """
  found = weight_names.complete(weight_names.find(arrays, where=where))
  ours = traverse_util.flatten_dict(variables)
  split = {full: _locate(full, variables) for full in ours}
  there = {part for part, _ in split.values()}
  wanted = [part for part in parts if part in there]
  if not wanted:
    raise ValueError(f"this network has none of {', '.join(parts)}")
  if wanted[0] not in found:
    _complain_missing_part(wanted[0], arrays, found, where)
  used, kept, filled = set(), [], {}
  for full, like in ours.items():
    part, path = split[full]
    key = found[part].key(path) if part in wanted and part in found else None
    filled[full] = like
    if key is None:
      kept.append("/".join(full))
      continue
    shape = weight_names.torch_shape(part, path, like.shape)
    if key not in arrays:
      raise DataError(
        f"{where}: has no {key!r}, which this network needs with shape "
        f"{list(shape)}"
      )
    value = checked_floats(
      arrays[key], f"{where}: {key}", var=path[-1] == "var"
    )
    if value.shape not in weight_names.accepted_shapes(part, path, shape):
      other_classes = weight_names.differ_in_classes(
        part, path, value.shape, shape
      )
      if other_classes and random_head:
        kept.append("/".join(full))
        continue
      _complain_shape(where, key, value.shape, shape, other_classes)
    value = weight_names.from_torch(part, path, value.reshape(shape))
    filled[full] = np.ascontiguousarray(value, dtype=like.dtype)
    used.add(key)
  counters = {k.rpartition(".")[0] for k in used if k.endswith("running_var")}
  used |= {c + _COUNTER for c in counters if c + _COUNTER in arrays}
  report = Report(
    where=where,
    namings=tuple(found[p] for p in wanted if p in found),
    used=tuple(k for k in arrays if k in used),
    left_out=tuple(str(k) for k in arrays if k not in used),
    kept=tuple(kept),
  )
  return traverse_util.unflatten_dict(filled), report


def to_state_dict(variables: Variables, *, names: str = "wsegpc") -> StateDict:
  """Our variables under the names and in the layouts of a torch project.

  Args:
    variables: as in `fill`.
    names: a key of EXPORTS: "wsegpc" has all parts, "minkowski" the 3D network
      only, "torchvision" the 2D one only, without its class head.

  Raises:
    DataError: the network has no part of that name.
  """
  dialects = {weight_names.DIALECTS[d][0]: d for d in EXPORTS[names]}
  out: StateDict = {}
  for full, value in traverse_util.flatten_dict(variables).items():
    part, path = _locate(full, variables)
    if part not in dialects:
      continue
    inner = names == "wsegpc" and part in variables["params"]
    is_branch = part in ("net_3d", "net_2d")
    naming = Naming(dialects[part], f"{part}." if inner and is_branch else "")
    if (key := naming.key(path)) is None:
      continue
    out[key] = np.ascontiguousarray(
      weight_names.to_torch(part, path, np.asarray(value))
    )
    if path[-1] == "var":
      # torch counts batches and, with a momentum, makes no use of them.
      out[key.rpartition(".")[0] + _COUNTER] = np.zeros((), np.int64)
  if not out:
    raise DataError(f"names {names!r} have no part of this network")
  return out


def join(
  student: StateDict, teacher: StateDict | None, *, best_miou: float = 0.0
) -> dict[str, Any]:
  """The checkpoint that `read` splits again, as WSegPC's own are made."""
  checkpoint = {"state_dict": student}
  if teacher is not None:
    checkpoint[_TEACHER] = teacher
  return checkpoint | ({_BEST[0]: best_miou} if best_miou else {})


def save(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> None:
  """Writes what `join` made, as .safetensors or in torch's format.

  A .safetensors file holds arrays only, so not the best mIoU.

  Raises:
    OSError: it cannot be written; what was there before still is.
  """
  if not os.fspath(path).endswith(".safetensors"):
    torch_pickle.save(path, dict(checkpoint))
    return
  flat = dict(checkpoint["state_dict"])
  if teacher := checkpoint.get(_TEACHER):
    flat = {f"state_dict.{k}": v for k, v in flat.items()}
    flat |= {f"{_TEACHER}.{k}": v for k, v in teacher.items()}
  safetensors_io.save(path, flat)


def _unflatten(arrays: StateDict) -> dict[str, Any]:
  """A safetensors file, which has no nesting, as `read` expects it."""
  tree: dict[str, Any] = {}
  for key, value in arrays.items():
    head, dot, rest = key.partition(".")
    if dot and head in ("state_dict", _TEACHER):
      tree.setdefault(head, {})[rest] = value
    else:
      tree[key] = value
  return tree


def _named(tree: Mapping[Any, Any]) -> StateDict:
  return {str(key): value for key, value in tree.items()}


def _beside(tree: Mapping[Any, Any], known: set[str | None]) -> tuple[str, ...]:
  sizes = {
    key: f" ({len(value)} entries)" if isinstance(value, Mapping) else ""
    for key, value in tree.items()
  }
  return tuple(f"{k}{size}" for k, size in sizes.items() if k not in known)


def _share(value: Any) -> float:
  """A mIoU, which some write in percent."""
  try:
    value = float(value)
  except (TypeError, ValueError):
    return 0.0
  value = value / 100 if 1 < value <= 100 else value
  return value if 0 <= value <= 1 else 0.0


def _locate(full: tuple[str, ...], variables: Variables):
  """(part, path in the part) of a variable."""
  params = variables["params"]
  if "net_3d" in params:
    return full[1], (full[0], *full[2:])
  return "net_3d" if "conv0" in params else "net_2d", full


def checked_floats(value: Any, where: str, *, var: bool) -> np.ndarray:
  """A finite float array, float32 or wider; `var`: of a variance.

  Raises:
    DataError: it is none; names `where`.
  """
  if not isinstance(value, np.ndarray):
    raise DataError(f"{where}: expected an array, got {type(value).__name__}")
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise DataError(f"{where}: expected floats, got {value.dtype}")
  value = value.astype(np.promote_types(np.float32, value.dtype))
  if not np.isfinite(value).all():
    raise DataError(f"{where}: expected finite values, got NaN or infinity")
  if var and (value < 0).any():
    raise DataError(f"{where}: a variance is negative, {value.min()}")
  return value


def _complain_missing_part(part, arrays, found, where):
  what = {"net_3d": "a 3D network (MinkUNet)", "net_2d": "a ResNet"}.get(
    part, "a linear layer"
  )
  landmarks = " or ".join(map(repr, weight_names.landmarks(part)))
  keys = ", ".join(map(repr, list(arrays)[:3]))
  hint = ""
  if part == "net_3d" and "net_2d" in found:
    hint = "; a 2D network alone goes to config.model.image_weights"
  raise DataError(
    f"{where}: expected {what} with a key that ends in {landmarks}, got "
    f"{len(arrays)} keys without ({keys}, ...){hint}"
  )


def _complain_shape(where, key, theirs, ours, other_classes):
  hint = ""
  if other_classes:
    hint = (
      ": another number of classes; scripts/convert_weights.py --random_head "
      "makes a checkpoint with a new class head"
    )
  raise DataError(
    f"{where}: {key} has shape {list(theirs)}, this network needs "
    f"{list(ours)}{hint}"
  )


def _grouped(names: tuple[str, ...], separator: str) -> str:
  """Names by what they begin with, with their number."""
  groups = collections.defaultdict(list)
  for name in names:
    parts = name.split(separator)
    level = 2 if separator == "/" or parts[0] == "module" else 1
    groups[separator.join(parts[:level])].append(name)
  return ", ".join(
    members[0] if len(members) == 1 else f"{group}{separator}* ({len(members)})"
    for group, members in groups.items()
  )
