"""Reads pickles of plain data without running what they name.

The constructors of containers and of numpy arrays are replaced by those of this
file, which check their arguments: numpy's own trust the sizes and the dtype
that the file states.
"""

import collections
import contextlib
import math
import operator
import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from wsegpc_jax.interop.pickle_machine import (
  Refused,
  StandIn,
  Unpickler,
  brief,
  resolve,
)
from wsegpc_jax.types import DataError

_MAX_EMPTY = 1 << 24  # length of an axis of an array without content


def load_pickle(path: str | os.PathLike, *, max_bytes: int = 1 << 30):
  """Loads a pickle of containers, scalars and numpy arrays.

  Accepted: None, bool, int, float, complex, str, bytes, bytearray, list, tuple,
  dict, set, frozenset, slice, collections.OrderedDict, and numpy arrays, dtypes
  and scalars as numpy 1 and 2 write them (plain and object dtypes, no
  structured ones). Strings of Python 2 are read as latin-1.

  Args:
    path: file.
    max_bytes: larger files are refused.

  Returns:
    The object.

  Raises:
    DataError: if the file is missing, too large or damaged, or names anything
      else; the sentence gives the name, and nothing of it was imported or run.
  """
  with reading(path, "pickle", max_bytes) as (file, size):
    return resolve(Unpickler(file, size, NAMES).load(), size)


@contextlib.contextmanager
def reading(
  path: str | os.PathLike, what: str, max_bytes: int
) -> Iterator[tuple[BinaryIO, int]]:
  """Opens a file of at most `max_bytes`: gives it and its size.

  Raises:
    DataError: in place of whatever a missing or damaged file leads to.
  """
  path = os.fspath(path)
  try:
    with open(path, "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(0)
      if size > max_bytes:
        raise DataError(
          f"{path}: expected a {what} of at most {max_bytes} bytes, got {size}"
        )
      yield file, size
  except DataError:
    raise
  except Refused as e:
    raise DataError(f"{path}: refused, {brief(e)}") from None
  except OSError as e:
    raise DataError(f"{path}: cannot be read ({e.strerror})") from e
  # A damaged file can fail in any way that its opcodes can.
  except Exception as e:
    raise DataError(
      f"{path}: expected an intact {what}, got {type(e).__name__}: {brief(e)}"
    ) from e


def check_bools(content: np.ndarray) -> None:
  """Refuses bytes, uint8 [n], that are no bools.

  numpy counts on 0 and 1, for instance when a mask tells it how much to take.
  """
  if content.size and content.max() > 1:
    raise ValueError("bools that are neither 0 nor 1")


class _DType(StandIn):
  """A dtype being read; `set_state` takes the byte order only."""

  __slots__ = ("value",)

  def __init__(self, unpickler, name, align=False, copy=False):
    if isinstance(name, bytes):
      name = name.decode("latin1")
    if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
      name = brief(name) if isinstance(name, str) else type(name).__name__
      raise Refused(f"the pickle holds the dtype {name!r}, not a plain one")
    self.value = np.dtype(name)

  def set_state(self, unpickler, state):
    _, order, base, names, fields = state[:5]
    if not (base is names is fields is None):
      raise Refused("the pickle holds a structured dtype")
    if order in (">", b">"):
      self.value = self.value.newbyteorder(">")
    elif order in ("<", b"<"):
      self.value = self.value.newbyteorder("<")

  def result(self):
    return self.value


_PLAIN_DTYPE = re.compile(r"[<>=|]?(\?|[biufcSUO]\d{0,9})")


class _Array(StandIn):
  """An array being read; `fill` or `set_state` brings the content."""

  __slots__ = ("value",)

  def __init__(self):
    self.value = np.zeros(0, np.int8)

  def set_state(self, unpickler, state):
    shape, dtype, fortran, data = state[-4:]
    self.fill(unpickler, data, dtype, shape, "F" if fortran else "C")

  def fill(self, unpickler, data, dtype, shape, order):
    if not isinstance(dtype, _DType):
      raise ValueError("array without a dtype")
    dtype = dtype.value
    shape = tuple(map(operator.index, shape))
    # numpy lists objects row by row, whatever the order in memory.
    order = "C" if dtype.hasobject or order != "F" else "F"
    if isinstance(data, str):  # Python 2
      data = data.encode("latin1")
    if not isinstance(data, list if dtype.hasobject else bytes | bytearray):
      raise ValueError(f"array whose content is a {type(data).__name__}")
    count = math.prod(shape)
    size = dtype.itemsize
    have = len(data) if dtype.hasobject else len(data) // size if size else 0
    if min(shape, default=0) < 0 or (have != count and size):
      raise ValueError(f"array of shape {shape} with {have} items")
    unpickler.charge(max(count * size, count))
    if dtype.hasobject:
      flat = np.empty(count, object)
      for i, item in enumerate(data):
        flat[i] = item
      self.value = flat.reshape(shape)
    elif size == 0 or count == 0:
      if max(shape, default=0) > _MAX_EMPTY:
        raise ValueError(f"array of shape {shape} without content")
      self.value = np.zeros(shape, dtype)
    else:
      if dtype == np.bool_:
        check_bools(np.frombuffer(data, np.uint8))
      flat = np.frombuffer(data, dtype, count)
      self.value = flat.reshape(shape, order=order).copy(order="K")

  def result(self):
    return self.value


def _reconstruct(unpickler, *unused):
  del unused  # always ndarray, (0,), b'b': the state says the rest
  return _Array()


def _frombuffer(unpickler, data, dtype, shape, order):
  array = _Array()
  array.fill(unpickler, data, dtype, shape, order)
  return array


def _scalar(unpickler, dtype, data):
  if isinstance(dtype, _DType) and dtype.value.hasobject:
    raise Refused("the pickle holds a numpy scalar of an object dtype")
  array = _Array()
  array.fill(unpickler, data, dtype, (), "C")
  return array.value[()]


def _encode(unpickler, text, encoding):
  if encoding not in ("latin1", "latin-1"):
    raise Refused("the pickle encodes with something else than latin1")
  unpickler.charge(len(text))
  return text.encode("latin1")


def _bytes(unpickler, *arguments):
  if arguments:
    raise Refused("the pickle calls bytes with arguments")
  return b""


def _bytearray(unpickler, data=b"", encoding="latin1"):
  if isinstance(data, str):
    data = _encode(unpickler, data, encoding)
  if not isinstance(data, bytes):
    raise Refused("the pickle calls bytearray with something else than bytes")
  unpickler.charge(len(data))
  return bytearray(data)


def _number_of(kind):
  def build(unpickler, *arguments):
    if not all(isinstance(a, int | float | complex | str) for a in arguments):
      raise Refused(f"the pickle calls {kind.__name__} without a number")
    return kind(*arguments)

  return build


def container(kind: type) -> Callable:
  """The constructor of a kind of list, tuple, dict, set or frozenset."""

  def build(unpickler, items=()):
    if not isinstance(items, list | tuple | dict | set | frozenset):
      raise Refused(f"the pickle calls {kind.__name__} without a container")
    unpickler.charge(8 * len(items))
    if issubclass(kind, dict):
      pairs = items.items() if isinstance(items, dict) else items
      items = [(key, value) for key, value in pairs]
    if issubclass(kind, dict | set | frozenset):
      for item in items:
        unpickler.check_key(item[0] if issubclass(kind, dict) else item)
    return kind(items)

  return build


# What names stand for: functions of the unpickler and their arguments.
NAMES = (
  {
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytes,
    "builtins.slice": lambda unpickler, *arguments: slice(*arguments),
    "collections.OrderedDict": container(collections.OrderedDict),
    "_codecs.encode": _encode,
    "numpy.dtype": _DType,
    "numpy.ndarray": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _frombuffer,
  }
  | {
    "builtins." + kind.__name__: container(kind)
    for kind in (dict, frozenset, list, set, tuple)
  }
  | {
    "builtins." + kind.__name__: _number_of(kind)
    for kind in (bool, complex, float, int)
  }
)
