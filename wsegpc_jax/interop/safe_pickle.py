"""Reads pickles of plain data without running what they name.

A pickle is a program: it may name any function and call it. Here every name is
looked up in a short list, and the entries of the list are constructors of this
file that check their arguments, so neither an import nor a call of the file's
choice can happen. numpy's own constructors are replaced too, because they
trust the sizes and the dtype that the file states.
"""

import collections
import math
import os
import pickle

import numpy as np

from wsegpc_jax.types import DataError

_MAX_EMPTY = 1 << 24  # items of an array whose content takes no bytes


class _Refused(Exception):
  pass


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
  path = os.fspath(path)
  try:
    size = os.path.getsize(path)
    if size > max_bytes:
      raise DataError(
        f"{path}: expected a pickle of at most {max_bytes} bytes, got {size}"
      )
    with open(path, "rb") as f:
      return _resolve(_Unpickler(f, encoding="latin1").load())
  except DataError:
    raise
  except _Refused as e:
    raise DataError(f"{path}: refused, {e}") from None
  except OSError as e:
    raise DataError(f"{path}: cannot be read ({e.strerror})") from e
  # A damaged pickle can fail in any way that its opcodes can.
  except Exception as e:
    raise DataError(
      f"{path}: expected an intact pickle, got {type(e).__name__}: {e}"
    ) from e


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    function = _ALLOWED.get(_MODULES.get(module, module) + "." + name)
    if function is None:
      raise _Refused(f"the pickle names {module}.{name}, which is not data")
    return _Constructor(function)

  def persistent_load(self, pid):
    raise _Refused("the pickle refers to an object outside of the file")


class _Constructor:
  """What a name stands for while loading: callable, and nothing else.

  A new one is made for each mention and setting its state is refused, so a
  pickle cannot alter the functions behind it.
  """

  __slots__ = ("_function",)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def __setstate__(self, state):
    raise _Refused("the pickle sets the state of a function")


class _DType:
  """A dtype being read; `__setstate__` takes the byte order only."""

  __slots__ = ("value",)
  __hash__ = None

  def __init__(self, name, align=False, copy=False):
    if isinstance(name, bytes):
      name = name.decode("latin1")
    if not isinstance(name, str):
      raise _Refused("the pickle holds a dtype that is not a plain one")
    self.value = np.dtype(name)
    if self.value.kind not in "biufcSUO" or self.value.shape:
      raise _Refused(f"the pickle holds the dtype {name!r}, not a plain one")

  def __setstate__(self, state):
    _, order, base, names, fields = state[:5]
    if (base, names, fields) != (None, None, None):
      raise _Refused("the pickle holds a structured dtype")
    if isinstance(order, bytes):
      order = order.decode("latin1")
    if order in ("<", ">"):
      self.value = self.value.newbyteorder(order)


class _Array:
  """An array being read; `fill` or `__setstate__` brings the content.

  Object arrays stay one-dimensional until their items are resolved.
  """

  __slots__ = ("value", "shape")
  __hash__ = None

  def __init__(self):
    self.fill(b"", np.dtype(np.int8), (0,), "C")

  def __setstate__(self, state):
    shape, dtype, fortran, data = state[-4:]
    self.fill(data, dtype.value, shape, "F" if fortran else "C")

  def fill(self, data, dtype, shape, order):
    self.shape = tuple(int(n) for n in shape)
    # numpy lists objects row by row, whatever the order in memory.
    order = "C" if dtype.hasobject else order
    if isinstance(data, str):  # Python 2
      data = data.encode("latin1")
    count = math.prod(self.shape)
    size = dtype.itemsize
    have = len(data) if dtype.hasobject else len(data) // size if size else 0
    if min(self.shape, default=0) < 0 or (have != count and size):
      raise ValueError(f"array of shape {shape} with {have} items of content")
    if dtype.hasobject:
      if not isinstance(data, list):
        raise ValueError("object array without a list of objects")
      self.value = np.empty(count, object)
      for i, item in enumerate(data):
        self.value[i] = item
    elif size == 0 or count == 0:
      if max(self.shape, default=0) > _MAX_EMPTY or count > _MAX_EMPTY:
        raise ValueError(f"array of shape {shape} without content")
      self.value = np.zeros(self.shape, dtype)
    else:
      flat = np.frombuffer(data, dtype, count)
      self.value = flat.reshape(self.shape, order=order).copy(order="K")


def _reconstruct(kind, shape, code):
  del kind, shape, code  # always ndarray, (0,), b'b': the state says the rest
  return _Array()


def _frombuffer(data, dtype, shape, order):
  array = _Array()
  array.fill(data, dtype.value, shape, order)
  return array


def _scalar(dtype, data):
  if dtype.value.hasobject:
    raise _Refused("the pickle holds a numpy scalar of an object dtype")
  array = _Array()
  array.fill(data, dtype.value, (), "C")
  return array.value[()]


def _encode(text, encoding):
  if encoding not in ("latin1", "latin-1"):
    raise _Refused(f"the pickle encodes with {encoding!r}")
  return text.encode("latin1")


def _bytes(*args):
  if args:
    raise _Refused("the pickle calls bytes with arguments")
  return b""


def _bytearray(data=b"", encoding="latin1"):
  if isinstance(data, str):
    return bytearray(_encode(data, encoding))
  if not isinstance(data, bytes):
    raise _Refused("the pickle calls bytearray with something else than bytes")
  return bytearray(data)


def _container(kind):
  def build(items=()):
    if not isinstance(items, list | tuple | dict | set | frozenset):
      raise _Refused(f"the pickle calls {kind.__name__} without a container")
    return kind(items)

  return build


_MODULES = {
  "__builtin__": "builtins",
  "numpy.core.multiarray": "numpy._core.multiarray",
  "numpy.core.numeric": "numpy._core.numeric",
}

_ALLOWED = {
  "builtins.bool": bool,
  "builtins.bytearray": _bytearray,
  "builtins.bytes": _bytes,
  "builtins.complex": complex,
  "builtins.float": float,
  "builtins.int": int,
  "builtins.slice": slice,
  "collections.OrderedDict": _container(collections.OrderedDict),
  "_codecs.encode": _encode,
  "numpy.dtype": _DType,
  "numpy.ndarray": _reconstruct,
  "numpy._core.multiarray._reconstruct": _reconstruct,
  "numpy._core.multiarray.scalar": _scalar,
  "numpy._core.numeric._frombuffer": _frombuffer,
} | {
  "builtins." + kind.__name__: _container(kind)
  for kind in (dict, frozenset, list, set, tuple)
}


def _resolve(root):
  """Puts the arrays and dtypes read in place of their stand-ins.

  Containers are visited once each, whatever refers to them. Lists, dicts and
  object arrays change in place; tuples with a stand-in inside are made anew.
  """
  done = {}  # id -> (the item, kept so that its id is not given again, result)

  def visit(item):
    if isinstance(item, _Constructor):
      raise _Refused("the pickle holds a function or a type")
    if isinstance(item, _DType):
      return item.value
    if not isinstance(item, _Array | list | tuple | dict):
      return item
    if id(item) in done:
      return done[id(item)][1]
    result = item.value if isinstance(item, _Array) else item
    done[id(item)] = item, result
    if isinstance(item, _Array):
      if result.dtype.hasobject:
        for i in range(result.size):
          result[i] = visit(result[i])
        result = result.reshape(item.shape)
    elif isinstance(item, list):
      item[:] = map(visit, item)
    elif isinstance(item, dict):
      for key, value in item.items():
        item[key] = visit(value)
    else:
      new = tuple(map(visit, item))
      if any(a is not b for a, b in zip(new, item, strict=True)):
        result = new
    done[id(item)] = item, result
    return result

  return visit(root)
