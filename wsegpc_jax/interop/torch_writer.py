"""Writes plain trees of numpy arrays in the format of torch.save."""

import os
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.types import DataError

_ALIGNMENT = 64  # bytes, as torch aligns storages
_MAX_DEPTH = 100
_BATCH = 1000  # items a mark

_STORAGES = {
  "float64": "DoubleStorage",
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
  "int32": "IntStorage",
  "int16": "ShortStorage",
  "int8": "CharStorage",
  "uint8": "ByteStorage",
  "bool": "BoolStorage",
  "complex128": "ComplexDoubleStorage",
  "complex64": "ComplexFloatStorage",
}
# Those that torch has no storage type for; it can read them since 2.3.
_UNTYPED = {
  np.dtype(getattr(ml_dtypes, name, None) or name): name
  for name in (
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    " uint16 uint32 uint64"
  ).split()
}
_TYPED = {
  np.dtype(getattr(ml_dtypes, name, None) or name): storage
  for name, storage in _STORAGES.items()
}


def save(path: str | os.PathLike, tree: Any) -> None:
  """Writes what torch.load(weights_only=True) of torch 2 reads.

  Older ones, since 1.6, read it without `weights_only`, which knows no floats
  in torch 1.13.

  Args:
    path: file, whole or not at all; replaced if it exists.
    tree: dicts (keys: str, int, float, bool, None), lists and tuples, in each
      other, of numpy arrays (tensors for torch), numpy scalars (numbers), None,
      bool, int, float and str. An array that is there several times is stored
      once, and torch's tensors share its memory. uint16 to uint64 and float8
      need a torch that has them (2.3 and later).

  Raises:
    DataError: if there is anything else in the tree, or a container that holds
      itself; the sentence says where.
    OSError: if the file cannot be written.
  """
  path = os.fspath(path)
  writer = _Writer(path)
  writer.value(tree, (), 0)
  content = b"".join([b"\x80\x02", *writer.code, b"."])
  with (
    atomic_write(path) as file,
    zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
  ):

    def add(name, data):
      # The same tree gives the same file, whatever the time.
      info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
      large = 20 if len(data) * 1.05 > zipfile.ZIP64_LIMIT else 0
      header = file.tell() + 30 + len(info.filename) + large
      padding = -(header + 4) % _ALIGNMENT
      info.extra = struct.pack(f"<2s H {padding}x", b"FB", padding)
      archive.writestr(info, data)

    add("data.pkl", content)
    add("byteorder", b"little")
    for i, array in enumerate(writer.arrays):
      add(f"data/{i}", _bytes(array))
    add("version", b"3\n")


def _bytes(array):
  """The content row by row, the first byte of each number the lowest."""
  flat = np.ascontiguousarray(array).reshape(-1)
  little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
  return little.view(np.uint8).data


class _Writer:
  """Collects the opcodes of a pickle and the arrays it refers to."""

  def __init__(self, path: str):
    self.code = []
    self.arrays = []
    self._path = path
    self._keys = {}

  def value(self, value: Any, where: tuple, depth: int) -> None:
    if depth > _MAX_DEPTH:
      self._refuse(
        where, f"containers over {_MAX_DEPTH} deep, or in themselves"
      )
    if isinstance(value, np.ndarray):
      self._array(value, where)
    elif isinstance(value, dict):
      self.code.append(b"}")
      self._batches(b"u", value.items(), where, depth)
    elif type(value) is list:
      self.code.append(b"]")
      self._batches(b"e", enumerate(value), where, depth)
    elif type(value) is tuple:
      self.code.append(b"(")
      for i, item in enumerate(value):
        self.value(item, (*where, i), depth + 1)
      self.code.append(b"t")
    else:
      self._scalar(value, where)

  def _batches(self, opcode, pairs, where, depth):
    pairs = list(pairs)
    for i in range(0, len(pairs), _BATCH):
      self.code.append(b"(")
      for key, value in pairs[i : i + _BATCH]:
        if opcode == b"u":
          if not isinstance(key, str | int | float | None):
            self._refuse(where, f"a key of type {type(key).__name__}")
          self._scalar(key, where)
        self.value(value, (*where, key), depth + 1)
      self.code.append(opcode)

  def _scalar(self, value, where):
    if isinstance(value, np.generic) and value.dtype.kind in "biufV":
      value = value.item()
    if value is None:
      self.code.append(b"N")
    elif type(value) is bool:
      self.code.append(b"\x88" if value else b"\x89")
    elif isinstance(value, int):
      self._int(int(value), where)
    elif isinstance(value, float):
      self.code.append(struct.pack("<c", b"G") + struct.pack(">d", value))
    elif isinstance(value, str):
      self._text(str(value))
    else:
      self._refuse(where, f"a {type(value).__name__}")

  def _int(self, value, where):
    if -1 << 31 <= value < 1 << 31:
      self.code.append(struct.pack("<ci", b"J", value))
      return
    raw = pickle.encode_long(value)
    if len(raw) > 255:
      self._refuse(where, "an int of over 255 bytes")
    self.code.append(struct.pack("<cB", b"\x8a", len(raw)) + raw)

  def _text(self, text):
    raw = text.encode("utf-8", "surrogatepass")
    self.code.append(struct.pack("<cI", b"X", len(raw)) + raw)

  def _name(self, module, name):
    self.code.append(f"c{module}\n{name}\n".encode())

  def _array(self, array, where):
    dtype = array.dtype.newbyteorder("=")
    if dtype not in _TYPED and dtype not in _UNTYPED:
      self._refuse(where, f"an array of {array.dtype}")
    typed = dtype in _TYPED
    if id(array) not in self._keys:
      self._keys[id(array)] = len(self.arrays)
      self.arrays.append(array)
    key = str(self._keys[id(array)])
    # The call rebuild(storage, 0, sizes, strides, False, OrderedDict(), ...).
    self._name("torch._utils", f"_rebuild_tensor_v{2 if typed else 3}")
    self.code.append(b"((")
    self._text("storage")
    if typed:
      self._name("torch", _TYPED[dtype])
    else:
      self._name("torch.storage", "UntypedStorage")
    self._text(key)
    self._text("cpu")
    self._int(array.size if typed else array.nbytes, where)
    self.code.append(b"tQK\0")
    steps = np.cumprod((1, *array.shape[:0:-1]), dtype=object)[::-1]
    for numbers in (array.shape, steps[: array.ndim]):
      self.code.append(b"(")
      for number in numbers:
        self._int(int(number), where)
      self.code.append(b"t")
    self.code.append(b"\x89")
    self._name("collections", "OrderedDict")
    self.code.append(b")R")
    if not typed:
      self._name("torch", _UNTYPED[dtype])
    self.code.append(b"tR")

  def _refuse(self, where, what):
    place = ".".join(map(str, where)) or "the tree"
    raise DataError(
      f"{self._path}: {place}: cannot hold {what}, expected dicts, lists and"
      " tuples of arrays, numbers and strings"
    )
