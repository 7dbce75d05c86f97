"""Reads and writes .safetensors files.

The format: the length of a header (8 bytes), the header (JSON: dtype, shape and
place of each array, and maybe metadata), the arrays one behind the other. It is
read here because the numpy side of the package safetensors (0.8) knows neither
bfloat16 nor float8, and writes arrays that are not contiguous wrongly.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from wsegpc_jax.files import atomic_write
from wsegpc_jax.interop.safe_pickle import check_bools, reading
from wsegpc_jax.interop.zip_members import read_bytes
from wsegpc_jax.types import DataError

_MAX_HEADER = 100_000_000  # bytes, the limit of the format
_MAX_DIMENSIONS = 64
_METADATA = "__metadata__"
_ALIGNMENT = 8  # bytes, of the first array

# In the order in which arrays are laid out, so that each is aligned.
_DTYPES = {
  name: np.dtype(getattr(ml_dtypes, kind, None) or kind)
  for name, kind in (
    ("U64", "uint64"),
    ("I64", "int64"),
    ("F64", "float64"),
    ("C64", "complex64"),
    ("F32", "float32"),
    ("U32", "uint32"),
    ("I32", "int32"),
    ("BF16", "bfloat16"),
    ("F16", "float16"),
    ("U16", "uint16"),
    ("I16", "int16"),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
    ("F8_E8M0", "float8_e8m0fnu"),
    ("F8_E4M3", "float8_e4m3fn"),
    ("F8_E5M2", "float8_e5m2"),
    ("I8", "int8"),
    ("U8", "uint8"),
    ("BOOL", "bool"),
  )
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads all arrays, in the order of their places in the file.

  bfloat16 and float8 have the dtypes of ml_dtypes.

  Raises:
    DataError: if the file is missing or damaged, or holds a dtype that numpy
      lacks (of 4 or 6 bits).
  """
  with reading(path, "safetensors file", 1 << 62) as (file, size):
    entries, _ = _read_header(file, size)
    arrays = {}
    for name, dtype, shape in entries:
      raw = read_bytes(file, size, math.prod(shape) * dtype.itemsize)
      if dtype == np.bool_:
        check_bools(raw)
      array = raw.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
      arrays[name] = array.reshape(shape)
    return arrays


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
  """Reads the metadata alone; empty if there is none.

  Raises:
    DataError: as `load`.
  """
  with reading(path, "safetensors file", 1 << 62) as (file, size):
    return _read_header(file, size)[1]


def save(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  *,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes arrays by name, the file whole or not at all.

  Args:
    path: file; replaced if it exists.
    arrays: of numbers; the name "__metadata__" is not free.
    metadata: free text by name.

  Raises:
    DataError: if a name or an array is something else.
    OSError: if the file cannot be written.
  """
  path = os.fspath(path)
  header = {}
  if metadata is not None:
    if not _is_text(metadata):
      raise DataError(f"{path}: metadata: expected strings by name")
    header[_METADATA] = dict(metadata)
  for name, array in arrays.items():
    if not isinstance(name, str) or name == _METADATA:
      raise DataError(f"{path}: expected a name for an array, got {name!r}")
    if not isinstance(array, np.ndarray) or _kind(array) not in _NAMES:
      found = getattr(array, "dtype", type(array).__name__)
      raise DataError(
        f"{path}: {name}: expected an array of numbers, got {found}"
      )
  ranks = {name: rank for rank, name in enumerate(_DTYPES)}
  order = sorted(
    arrays, key=lambda name: (ranks[_NAMES[_kind(arrays[name])]], name)
  )
  place = 0
  for name in order:
    array = arrays[name]
    header[name] = {
      "dtype": _NAMES[_kind(array)],
      "shape": list(array.shape),
      "data_offsets": [place, place + array.nbytes],
    }
    place += array.nbytes
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
  try:
    content = text.encode()
  except UnicodeEncodeError as e:
    raise DataError(f"{path}: expected names that UTF-8 can write ({e})") from e
  content += b" " * (-len(content) % _ALIGNMENT)
  if len(content) > _MAX_HEADER:
    raise DataError(f"{path}: expected names of under {_MAX_HEADER} bytes")
  with atomic_write(path) as file:
    file.write(struct.pack("<Q", len(content)) + content)
    for name in order:
      flat = np.ascontiguousarray(arrays[name]).reshape(-1)
      little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
      file.write(little.view(np.uint8))


def _kind(array):
  return array.dtype.newbyteorder("=")


def _is_text(metadata):
  return isinstance(metadata, Mapping) and all(
    isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()
  )


def _read_header(file: BinaryIO, size: int):
  """(name, dtype, shape) by place, and the metadata; leaves the file there."""
  (length,) = struct.unpack("<Q", read_bytes(file, size, 8))
  if length > _MAX_HEADER:
    raise ValueError(f"a header of {length} bytes")
  text = read_bytes(file, size, length).tobytes().decode("utf-8")
  header = json.loads(text, object_pairs_hook=_unique)
  if not isinstance(header, dict):
    raise ValueError("a header that is not an object")
  metadata = header.pop(_METADATA, {})
  if not _is_text(metadata):
    raise ValueError("metadata that is not text")
  entries = []
  for name, entry in header.items():
    if not isinstance(entry, dict) or len(entry) != 3:
      raise ValueError(f"array {name[:100]!r} without dtype, shape or place")
    dtype, shape, (start, end) = map(
      entry.__getitem__, ("dtype", "shape", "data_offsets")
    )
    if not isinstance(dtype, str) or dtype not in _DTYPES:
      raise ValueError(f"array {name[:100]!r} of dtype {str(dtype)[:20]}")
    dtype = _DTYPES[dtype]
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
      raise ValueError(f"array {name[:100]!r} without a shape")
    if any(type(n) is not int or n < 0 for n in (*shape, start, end)):
      raise ValueError(f"array {name[:100]!r} with a size that is not one")
    if end - start != math.prod(shape) * dtype.itemsize:
      raise ValueError(f"array {name[:100]!r} with a size that does not fit")
    entries.append((start, end, name, dtype, shape))
  entries.sort(key=lambda entry: entry[:2])
  place = 0
  for start, end, name, _, _ in entries:
    if start != place:
      raise ValueError(f"array {name[:100]!r} not behind the one before")
    place = end
  if place != size - file.tell():
    raise ValueError(f"arrays of {place} bytes in {size - file.tell()}")
  return [entry[2:] for entry in entries], metadata


def _unique(pairs):
  if len(dict(pairs)) != len(pairs):
    raise ValueError("a name twice in the header")
  return dict(pairs)
