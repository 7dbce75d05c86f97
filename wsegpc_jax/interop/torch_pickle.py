"""Reads and writes the files of torch.save without torch.

A file is a pickle in which tensors are calls over (storage, offset, sizes,
strides), beside the raw bytes of the storages: members of a zip archive since
torch 1.6, one after the other behind the pickle before (with
`_use_new_zipfile_serialization=False` still).
"""

import dataclasses
import io
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from wsegpc_jax.interop.pickle_machine import (
  Function,
  Refused,
  StandIn,
  Unpickler,
  brief,
  resolve,
)
from wsegpc_jax.interop.safe_pickle import (
  NAMES,
  check_bools,
  container,
  reading,
)
from wsegpc_jax.interop.torch_writer import save as save
from wsegpc_jax.interop.zip_members import read_bytes, read_directory

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_DIMENSIONS = 64  # of numpy 2 and of torch
_MAX_STEPS = 1 << 25  # opcodes; a state dict has some 30 a tensor
_AGAIN = "save it again with torch.save of torch 1.6 or later"

_LAZY = {"conj": np.conj, "neg": np.negative}
_DTYPES = {
  name: np.dtype(getattr(ml_dtypes, name, None) or name)
  for name in (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2"
    " float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu int64 int32 int16 int8"
    " uint64 uint32 uint16 uint8 bool complex128 complex64"
  ).split()
} | {
  "double": np.dtype(np.float64),
  "float": np.dtype(np.float32),
  "half": np.dtype(np.float16),
  "long": np.dtype(np.int64),
  "int": np.dtype(np.int32),
  "short": np.dtype(np.int16),
}
_STORAGES = {
  "Double": "float64",
  "Float": "float32",
  "Half": "float16",
  "BFloat16": "bfloat16",
  "Long": "int64",
  "Int": "int32",
  "Short": "int16",
  "Char": "int8",
  "Byte": "uint8",
  "Bool": "bool",
  "ComplexDouble": "complex128",
  "ComplexFloat": "complex64",
}


def load(path: str | os.PathLike, *, max_bytes: int = 8 << 30) -> Any:
  """Loads what torch.save wrote: .pt, .pth, .pth.tar.

  Tensors, parameters and bare storages become numpy arrays (bfloat16 and
  float8 with the dtypes of ml_dtypes), torch.Size a tuple, torch.device a
  string such as "cuda:0", torch.float32 and the like a dtype. dict,
  OrderedDict, defaultdict, Counter and argparse.Namespace become dicts in
  order, paths strings; the rest is what `load_pickle` accepts.

  As in torch, tensors of one storage share memory: write to a copy. Where the
  elements of a tensor share memory with each other (`expand`), the array is
  read-only.

  Args:
    path: file, zip archive or of the older form.
    max_bytes: larger files are refused, and so are those whose arrays would
      take more together if each was copied.

  Returns:
    The object; no container in it holds itself.

  Raises:
    DataError: if the file is missing, too large or damaged, is a TorchScript
      archive, or holds anything else, such as a whole model or a quantised
      tensor; the sentence gives its name, and nothing of it was imported or
      run.
  """
  with reading(path, "file of torch.save", max_bytes) as (file, size):
    start = file.read(512)
    file.seek(0)
    if start[:4] == b"PK\3\4":
      return _load_zip(file, size, max_bytes)
    if start[257:262] == b"ustar":
      raise Refused(f"it is a tar archive of torch before 0.2; {_AGAIN}")
    return _load_legacy(file, size, max_bytes)


class _Tensors:
  """Makes the arrays of one file.

  Args:
    fetch: gives the bytes of a storage, uint8 [n], by its key.
    big: whether numbers are stored with their first byte first.
    max_bytes: that all arrays may take together.
  """

  def __init__(
    self, fetch: Callable[[str], np.ndarray], big: bool, max_bytes: int
  ):
    self._fetch = fetch
    self._big = big
    self._max_bytes = max_bytes
    self._total = 0
    self._known = {}
    self._bools = set()

  def _raw(self, key, dtype):
    """The bytes of a storage in our order, the same memory each time."""
    # The parts of a complex number are swapped one by one.
    word = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    known = key, word if self._big else 1
    if known not in self._known:
      raw = self._fetch(key)
      if known[1] > 1:
        whole = raw[: len(raw) // word * word]
        raw = whole.view(f"u{word}").byteswap().view(np.uint8)
      self._known[known] = raw
    raw = self._known[known]
    if dtype == np.bool_ and key not in self._bools:
      check_bools(raw)
      self._bools.add(key)
    return raw

  def view(self, tensor: "_Tensor") -> np.ndarray:
    """The array of a tensor that has been checked against its storage."""
    storage, dtype = tensor.storage, tensor.dtype
    self._total += math.prod(tensor.shape) * dtype.itemsize
    if self._total > self._max_bytes:
      raise Refused(f"its arrays take more than {self._max_bytes} bytes")
    if 0 in tensor.shape:
      return np.zeros(tensor.shape, dtype)
    raw = self._raw(storage.key, dtype)
    # The stride of an axis of length 1 means nothing and can be absurd.
    axes = zip(tensor.shape, tensor.stride, strict=True)
    steps = tuple(s * dtype.itemsize if n > 1 else 0 for n, s in axes)
    start = (storage.start + tensor.offset) * dtype.itemsize
    # numpy compares with the size of the storage once more.
    array = np.ndarray(tensor.shape, dtype, raw, start, steps)
    if _overlaps(tensor.shape, tensor.stride):
      array.flags.writeable = False
    return array


def _overlaps(shape, stride):
  """Whether elements may share memory: sure for all that torch calls dense."""
  reach = 1
  for step, count in sorted(zip(stride, shape, strict=True)):
    if count > 1:
      if step < reach:
        return True
      reach += (count - 1) * step
  return False


@dataclasses.dataclass(eq=False)
class _StorageType(StandIn):
  """FloatStorage and the like; an untyped one counts in bytes."""

  dtype: np.dtype
  untyped: bool = False

  def result(self):
    raise Refused("the pickle holds a type")


@dataclasses.dataclass(eq=False)
class _Storage(StandIn):
  """`count` numbers from `start` on, of those stored under `key`."""

  tensors: _Tensors
  key: str
  dtype: np.dtype
  untyped: bool
  start: int
  count: int

  def result(self):
    return _Tensor(self, self.dtype, 0, (self.count,), (1,)).result()


class _Tensor(StandIn):
  """A tensor being read; what it says of itself is checked at once."""

  def __init__(self, storage, dtype, offset, shape, stride, metadata=None):
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) > _MAX_DIMENSIONS or len(shape) != len(stride):
      raise ValueError(
        f"a tensor with {len(shape)} sizes and {len(stride)} strides"
      )
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
      raise ValueError("a tensor with a size, stride or offset out of range")
    count = storage.count
    if storage.untyped:
      count //= dtype.itemsize
    # Elements from the first to the last.
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if 0 not in shape and offset + extent > count:
      raise ValueError(
        f"a tensor of shape {shape}, strides {stride} and offset {offset} in a"
        f" storage of {count} items"
      )
    self.storage, self.dtype = storage, dtype
    self.offset, self.shape, self.stride = offset, shape, stride
    self.metadata = metadata or {}
    if not self.metadata.keys() <= _LAZY.keys():
      raise Refused("it holds a tensor with unknown metadata")

  def result(self):
    array = self.storage.tensors.view(self)
    # What torch puts off until the numbers are read; these are copies.
    lazy = [f for k, f in _LAZY.items() if self.metadata.get(k)]
    if lazy and not array.flags.writeable:
      raise Refused("it holds an expanded tensor that is conjugate or negative")
    for function in lazy:
      array = function(array)
    return array


def _rebuild(unpickler, storage, offset, size, stride, *more):
  """_rebuild_tensor and _rebuild_tensor_v2 of torch."""
  # More: requires_grad, hooks of the backward pass, metadata.
  _expect(storage, _Storage)
  metadata = _metadata(more[2:])
  dtype = storage.dtype
  return _Tensor(storage, dtype, offset, size, stride, metadata)


def _rebuild_v3(unpickler, storage, offset, size, stride, *more):
  """Dtypes that have no storage type of their own."""
  _expect(storage, _Storage)
  dtype = _expect(more[2], np.dtype)
  metadata = _metadata(more[3:])
  return _Tensor(storage, dtype, offset, size, stride, metadata)


def _rebuild_parameter(unpickler, data, *unused):
  return _expect(data, _Tensor)


def _rebuild_from_type(unpickler, function, kind, arguments, state):
  """A tensor with attributes, which are left out."""
  _expect(kind, Function)
  if kind.call is not _tensor_type or function.call not in _REBUILD.values():
    raise Refused("it holds a tensor of another class")
  return _expect(function.call(unpickler, *arguments), _Tensor)


def _tensor_type(unpickler, *arguments):
  raise Refused("the pickle calls a tensor class")


def _metadata(more):
  return _expect(more[0], dict) if more and more[0] is not None else None


def _expect(value, kind):
  if not isinstance(value, kind):
    raise ValueError(
      f"expected {kind.__name__.strip('_').lower()} for a tensor, got"
      f" {type(value).__name__}"
    )
  return value


class _Dict(StandIn, dict):
  """A kind of dict; torch sets attributes on some, which are left out."""

  def set_state(self, unpickler, state):
    pass

  def result(self):
    return dict(self)


class _Namespace(_Dict):
  """An object whose attributes are plain data."""

  def set_state(self, unpickler, state):
    if not all(type(name) is str for name in _expect(state, dict)):
      raise Refused("the pickle holds attributes without a name")
    self.update(state)


def _namespace(unpickler):
  return _Namespace()


def _defaultdict(unpickler, factory=None, items=()):
  return container(_Dict)(unpickler, items)


def _path(kind):
  def build(unpickler, *parts):
    if not all(type(part) is str for part in parts):
      raise Refused("the pickle holds a path that is not text")
    return str(kind(*parts))

  return build


def _device(unpickler, kind, index=None):
  if type(kind) is not str or type(index) not in (int, type(None)):
    raise Refused("the pickle holds a device that is not one")
  return kind if index is None else f"{kind}:{index}"


_REBUILD = {
  "torch._utils._rebuild_tensor": _rebuild,
  "torch._utils._rebuild_tensor_v2": _rebuild,
  "torch._utils._rebuild_tensor_v3": _rebuild_v3,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

_UNTYPED = _StorageType(np.dtype(np.uint8), untyped=True)

_TORCH_NAMES = {
  **NAMES,
  **_REBUILD,
  "collections.OrderedDict": container(_Dict),
  "collections.Counter": container(_Dict),
  "collections.defaultdict": _defaultdict,
  "argparse.Namespace": _namespace,
  "torch.Size": container(tuple),
  "torch.device": _device,
  "torch.Tensor": _tensor_type,
  "torch.nn.parameter.Parameter": _tensor_type,
  "torch._tensor._rebuild_from_type": _rebuild_from_type,
  "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
  "torch.storage.UntypedStorage": _UNTYPED,
  "torch.storage._UntypedStorage": _UNTYPED,
  "torch.UntypedStorage": _UNTYPED,
  "torch._UntypedStorage": _UNTYPED,
}
_TORCH_NAMES |= {f"torch.{k}": dtype for k, dtype in _DTYPES.items()}
for _module in ("torch", "torch.cuda"):
  for _name, _dtype in _STORAGES.items():
    _type = _StorageType(_DTYPES[_dtype])
    _TORCH_NAMES[f"{_module}.{_name}Storage"] = _type
for _module in ("pathlib", "pathlib._local"):
  for _name in ("PurePath", "PurePosixPath", "Path", "PosixPath"):
    _TORCH_NAMES[f"{_module}.{_name}"] = _path(pathlib.PurePosixPath)
  for _name in ("PureWindowsPath", "WindowsPath"):
    _TORCH_NAMES[f"{_module}.{_name}"] = _path(pathlib.PureWindowsPath)


def _storage_reference(pid, tensors):
  """The parts of a persistent id: a storage, and maybe a part of it."""
  if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
    if isinstance(pid, tuple) and pid and pid[0] == "module":
      raise Refused("it holds a whole model, save its state_dict() instead")
    raise Refused("the pickle refers to an object that is no storage")
  if len(pid) not in (5, 6):
    raise ValueError(f"a storage that is named by {len(pid)} items")
  kind, key, count = pid[1], pid[2], pid[4]
  _expect(kind, _StorageType)
  if type(key) is not str or type(count) is not int or count < 0:
    raise ValueError("a storage without a name or a size")
  return _Storage(tensors, key, kind.dtype, kind.untyped, 0, count)


def _load_legacy(file: BinaryIO, size: int, max_bytes: int) -> Any:
  def run(names, reference=None):
    unpickler = Unpickler(
      file,
      size - file.tell(),
      names,
      persistent_load=reference,
      max_steps=_MAX_STEPS,
    )
    return unpickler.load(), unpickler.used

  if run({})[0] != _MAGIC:
    raise Refused("it is not a file of torch.save")
  protocol, _ = run({})
  if protocol != _PROTOCOL:
    raise Refused(f"it is not of protocol {_PROTOCOL}; {_AGAIN}")
  run({})  # about the machine; storages are little-endian whatever it says

  whole, content = {}, {}
  tensors = _Tensors(content.__getitem__, False, max_bytes)

  def reference(pid):
    storage = _storage_reference(pid, tensors)
    known = whole.setdefault(storage.key, dataclasses.replace(storage))
    if (known.dtype, known.count) != (storage.dtype, storage.count):
      raise ValueError("a storage of two kinds")
    if len(pid) == 6 and pid[5] is not None:
      _, start, count = pid[5]
      if type(start) is not int or type(count) is not int:
        raise ValueError("a part of a storage without a place")
      if not 0 <= start <= start + count <= storage.count:
        raise ValueError("a part of a storage beyond its end")
      storage.start, storage.count = start, count
    return storage

  root, used = run(_TORCH_NAMES, reference)
  keys, _ = run({})
  if not isinstance(keys, list) or any(type(key) is not str for key in keys):
    raise ValueError("no list of storages")
  if len(set(keys)) != len(keys) or set(keys) != whole.keys():
    raise ValueError("a list of storages that are not those of the tensors")
  for key in keys:
    (count,) = struct.unpack("<q", file.read(8))
    if count != whole[key].count:
      raise ValueError(f"a storage of {count} items, not {whole[key].count}")
    content[key] = read_bytes(file, size, count * whole[key].dtype.itemsize)
  if file.tell() != size:
    raise Refused(f"{size - file.tell()} bytes follow its end")
  return resolve(root, used, cycles=False)


def _load_zip(file: BinaryIO, size: int, max_bytes: int) -> Any:
  members = read_directory(file, size)
  prefix = next(iter(members)).partition("/")[0]
  for name in members:
    if name.startswith((f"{prefix}/constants.pkl", f"{prefix}/code/")):
      raise Refused(
        "it is a TorchScript archive, save the state_dict() of the model"
      )

  def read(name):
    if name not in members:
      raise Refused(f"the archive lacks {brief(name)}")
    start, length, crc = members[name]
    file.seek(start)
    content = read_bytes(file, size, length)
    # Zero: written without, see torch.serialization.set_crc32_options.
    if crc and zlib.crc32(content) != crc:
      raise ValueError(f"{brief(name)} with a wrong checksum")
    return content

  order = "little"
  if f"{prefix}/byteorder" in members:
    order = read(f"{prefix}/byteorder").tobytes()[:10].decode("ascii")
  if order not in ("little", "big"):
    raise ValueError("an unknown byte order")
  tensors = _Tensors(
    lambda key: read(f"{prefix}/data/{key}"), order == "big", max_bytes
  )

  def reference(pid):
    storage = _storage_reference(pid, tensors)
    if len(pid) != 5:
      raise ValueError("a part of a storage in an archive")
    name = f"{prefix}/data/{storage.key}"
    if name not in members:
      raise Refused(f"the archive lacks {brief(name)}")
    length = members[name][1]
    if storage.count * storage.dtype.itemsize > length:
      raise ValueError(f"a storage of {storage.count} items in {length} bytes")
    return storage

  content = read(f"{prefix}/data.pkl")
  unpickler = Unpickler(
    io.BytesIO(content),
    len(content),
    _TORCH_NAMES,
    persistent_load=reference,
    max_steps=_MAX_STEPS,
  )
  root = unpickler.load()
  if unpickler.used != len(content):
    raise ValueError("bytes behind the pickle")
  return resolve(root, unpickler.used, cycles=False)
