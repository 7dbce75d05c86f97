"""Runs the opcodes of a pickle without running what the pickle names.

A pickle is a program: it may name any function and call it. This machine looks
every name up in a list that its user gives, so neither an import nor a call of
the file's choice can happen. `safe_pickle` has the names of plain data,
`torch_pickle` adds those of tensors.

Time and memory stay in proportion to the file: what a file can repeat cheaply
(copies, keys that collide, items shared many times) is counted and limited.
Python's own unpickler does not do so: a single opcode makes it take gigabytes.
"""

import collections
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

_MAX_DEPTH = 100  # containers inside each other
_MAX_KEY = 1000  # items of one key
_MAX_COMPOUND = 10_000  # compound keys, whose hashes a file can make equal
_FREE = 1 << 20  # bytes to copy, or items to repeat, beside the file's size

_MODULES = {
  "__builtin__": "builtins",
  "numpy.core.multiarray": "numpy._core.multiarray",
  "numpy.core.numeric": "numpy._core.numeric",
}


class Refused(Exception):
  """The file holds what is not plain data; the text says what."""


def brief(text: Any) -> str:
  """The text, which a file may have chosen, at a length fit for a message."""
  text = str(text)
  return text if len(text) <= 300 else text[:300] + "..."


class StandIn:
  """What is being read, until `resolve` puts its result in its place.

  A pickle reaches the methods below and none of numpy's: setting the state of
  a real dtype, for instance, would change it for the whole process.
  """

  __slots__ = ()
  __hash__ = None

  def set_state(self, unpickler: "Unpickler", state: Any) -> None:
    raise Refused(f"the pickle sets the state of a {type(self).__name__}")

  def result(self) -> Any:
    raise NotImplementedError


class Function(StandIn):
  """What a name stands for: only the machine can call it."""

  __slots__ = ("call",)

  def __init__(self, call: Callable):
    self.call = call

  def result(self):
    raise Refused("the pickle holds a function or a type")


class Unpickler:
  """The machine for one pickle: a stack, and the memo of what to share.

  Args:
    file: positioned at the pickle; left right behind it.
    size: bytes that are there at most.
    names: functions of (unpickler, *arguments), or constants, by full name.
    persistent_load: function of a persistent id.
    max_steps: opcodes at most.
  """

  def __init__(
    self,
    file: BinaryIO,
    size: int,
    names: Mapping[str, Any],
    *,
    persistent_load: Callable[[Any], Any] | None = None,
    max_steps: int = 1 << 28,
  ):
    self._file = file
    self._size = self._left = size
    self._copied = 0
    self._compound = _MAX_COMPOUND
    self._names = names
    self._persistent_load = persistent_load
    self._max_steps = max_steps
    self._stack = []
    self._marked = []  # the stacks below the marks
    self._memo = {}

  def load(self) -> Any:
    """Runs the pickle; the result still holds stand-ins, for `resolve`."""
    values, actions, read = _VALUES, _ACTIONS, self.read
    for _ in range(self._max_steps):
      code = read(1)
      if code in values:
        value = values[code](self)  # which may replace the stack
        self._stack.append(value)
      elif code in actions:
        actions[code](self)
      elif code == b".":
        return self._stack.pop()
      else:
        raise ValueError(f"opcode {code!r}")
    raise Refused(f"the pickle has more than {self._max_steps} opcodes")

  @property
  def used(self) -> int:
    """Bytes of the file read so far."""
    return self._size - self._left

  def charge(self, count: int) -> None:
    """Counts bytes copied: a pickle can ask for the same copy many times."""
    self._copied += count
    if self._copied > 8 * self.used + _FREE:
      raise Refused("the pickle expands to far more than its own size")

  def check_key(self, key: Any) -> None:
    """Refuses keys that could take unbounded time to hash or to compare."""
    if isinstance(key, str | bytes | float | None):
      return
    if isinstance(key, int):
      if key.bit_length() > 64:
        raise Refused("the pickle holds a key of more than 64 bits")
      return
    if not isinstance(key, tuple | frozenset | complex | np.generic | np.dtype):
      raise TypeError(f"a key of type {type(key).__name__}")
    if isinstance(key, np.integer | np.floating):
      return
    self._compound -= 1
    if self._compound < 0:
      raise Refused(f"the pickle holds over {_MAX_COMPOUND} compound keys")
    items = [key]
    for item in items:  # grows meanwhile
      if isinstance(item, slice):  # which can be hashed since Python 3.12
        raise TypeError("a slice in a key")
      if isinstance(item, tuple | frozenset):
        if len(items) + len(item) > _MAX_KEY:
          raise Refused(f"the pickle holds a key of over {_MAX_KEY} items")
        items.extend(item)

  def read(self, count: int) -> bytes:
    self._left -= count
    if self._left < 0:
      raise EOFError("the file ends too early")
    content = self._file.read(count)
    if len(content) != count:
      raise EOFError("the file ends too early")
    return content

  def line(self) -> bytes:
    content = self._file.readline(self._left)
    self._left -= len(content)
    if content[-1:] != b"\n":
      raise EOFError("the file ends too early")
    return content[:-1]

  def number(self, layout: str) -> int | float:
    return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

  def pop(self) -> Any:
    return self._stack.pop()

  def top(self, kind: type) -> Any:
    if not isinstance(self._stack[-1], kind):
      raise ValueError(f"expected a {kind.__name__}")
    return self._stack[-1]

  def push_mark(self) -> None:
    self._marked.append(self._stack)
    self._stack = []

  def pop_mark(self) -> list:
    items, self._stack = self._stack, self._marked.pop()
    return items

  def discard(self) -> None:
    if self._stack:
      self._stack.pop()
    else:
      self.pop_mark()

  def remember(self, index: int) -> None:
    self._memo[index] = self._stack[-1]

  def recall(self, index: int) -> Any:
    return self._memo[index]

  def memoize(self) -> None:
    self.remember(len(self._memo))

  def append(self, items: list) -> None:
    self.top(list).extend(items)

  def set_items(self, items: list) -> None:
    target = self.top(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
      self.check_key(key)
      target[key] = value

  def add_items(self, items: list) -> None:
    for item in items:
      self.check_key(item)
    self.top(set).update(items)

  def frozen(self, items: list) -> frozenset:
    for item in items:
      self.check_key(item)
    return frozenset(items)

  def find(self, module: Any, name: Any) -> Any:
    """The stand-in of a name, a new one for each mention."""
    if isinstance(module, bytes):
      module, name = module.decode(), name.decode()
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a name that is not a string")
    entry = self._names.get(_MODULES.get(module, module) + "." + name)
    if entry is None:
      name = brief(f"{module}.{name}")
      raise Refused(f"the pickle names {name}, which is not data")
    return Function(entry) if callable(entry) else entry

  def find_on_stack(self) -> Any:
    name, module = self.pop(), self.pop()
    return self.find(module, name)

  def call(self, function: Any, arguments: Any) -> Any:
    if type(function) is not Function:
      raise Refused(f"the pickle calls a {type(function).__name__}")
    return function.call(self, *arguments)

  def reduce(self) -> Any:
    arguments, function = self.pop(), self.pop()
    if not isinstance(arguments, tuple):
      raise ValueError("a call whose arguments are not a tuple")
    return self.call(function, arguments)

  def call_with_keywords(self) -> Any:
    if self.pop() != {}:
      raise Refused("the pickle calls a type with keywords")
    return self.reduce()

  def call_marked(self) -> Any:
    function, *arguments = self.pop_mark()
    return self.call(function, arguments)

  def build(self) -> None:
    state, target = self.pop(), self._stack[-1]
    if isinstance(target, StandIn):
      target.set_state(self, state)
    # Attributes set on an OrderedDict, as torch does, are no part of the data.
    elif type(target) is not collections.OrderedDict:
      raise Refused(f"the pickle sets the state of a {type(target).__name__}")

  def persistent(self, pid: Any) -> Any:
    if self._persistent_load is None:
      raise Refused("the pickle refers to an object outside of the file")
    return self._persistent_load(pid)

  def extension(self, code: int) -> None:
    raise Refused(f"the pickle names the extension {code}, which is not data")


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def _text_int(line):
  if line in (b"00", b"01"):
    return line == b"01"
  return int(line.decode("ascii"))


def _text_string(line):
  """A string as Python 2 prints it."""
  if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
    raise ValueError("a string without quotes")

  def unescape(match):
    escape = match[1]
    return _ESCAPES[escape] if len(escape) == 1 else chr(int(escape[1:], 16))

  return re.sub(r"\\(x..|.)", unescape, line[1:-1].decode("latin1"))


def _number(layout):
  return lambda u: u.number(layout)


def _bytes_of(layout, convert=lambda content: content):
  return lambda u: convert(u.read(u.number(layout)))


def _line_of(convert):
  return lambda u: convert(u.line())


def _marked(convert):
  return lambda u: convert(u.pop_mark())


def _tuple_of(count):
  return lambda u: tuple([u.pop() for _ in range(count)][::-1])


def _latin1(content):
  return content.decode("latin1")


def _utf8(content):
  return content.decode("utf-8", "surrogatepass")


def _signed(content):
  return int.from_bytes(content, "little", signed=True)


def _pairs(u):
  items = u.pop_mark()
  u._stack.append({})
  u.set_items(items)
  return u.pop()


# Opcodes that push a value.
_VALUES = {
  b"N": lambda u: None,
  b"\x88": lambda u: True,
  b"\x89": lambda u: False,
  b"I": _line_of(_text_int),
  b"L": _line_of(lambda line: int(line.rstrip(b"L").decode("ascii"))),
  b"F": _line_of(float),
  b"K": _number("<B"),
  b"M": _number("<H"),
  b"J": _number("<i"),
  b"G": _number(">d"),
  b"\x8a": _bytes_of("<B", _signed),
  b"\x8b": _bytes_of("<I", _signed),
  b"S": _line_of(_text_string),
  b"U": _bytes_of("<B", _latin1),
  b"T": _bytes_of("<I", _latin1),
  b"C": _bytes_of("<B"),
  b"B": _bytes_of("<I"),
  b"\x8e": _bytes_of("<Q"),
  b"\x96": _bytes_of("<Q", bytearray),
  b"V": _line_of(lambda line: line.decode("raw-unicode-escape")),
  b"\x8c": _bytes_of("<B", _utf8),
  b"X": _bytes_of("<I", _utf8),
  b"\x8d": _bytes_of("<Q", _utf8),
  b"]": lambda u: [],
  b"}": lambda u: {},
  b"\x8f": lambda u: set(),
  b")": lambda u: (),
  b"\x85": _tuple_of(1),
  b"\x86": _tuple_of(2),
  b"\x87": _tuple_of(3),
  b"t": _marked(tuple),
  b"l": _marked(list),
  b"d": _pairs,
  b"\x91": lambda u: u.frozen(u.pop_mark()),
  b"2": lambda u: u._stack[-1],
  b"h": lambda u: u.recall(u.number("<B")),
  b"j": lambda u: u.recall(u.number("<I")),
  b"g": lambda u: u.recall(int(u.line())),
  b"c": lambda u: u.find(u.line(), u.line()),
  b"\x93": Unpickler.find_on_stack,
  b"R": Unpickler.reduce,
  b"\x81": Unpickler.reduce,
  b"\x92": Unpickler.call_with_keywords,
  b"o": Unpickler.call_marked,
  b"i": lambda u: u.call(u.find(u.line(), u.line()), u.pop_mark()),
  b"P": lambda u: u.persistent(u.line().decode("ascii")),
  b"Q": lambda u: u.persistent(u.pop()),
  b"\x82": lambda u: u.extension(u.number("<B")),
  b"\x83": lambda u: u.extension(u.number("<H")),
  b"\x84": lambda u: u.extension(u.number("<i")),
}

# Opcodes that change the stack, the memo or what is on the stack.
_ACTIONS = {
  b"\x80": lambda u: u.read(1),
  b"\x95": lambda u: u.read(8),  # a frame only says what to read ahead
  b"(": Unpickler.push_mark,
  b"1": Unpickler.pop_mark,
  b"0": Unpickler.discard,
  b"p": lambda u: u.remember(int(u.line())),
  b"q": lambda u: u.remember(u.number("<B")),
  b"r": lambda u: u.remember(u.number("<I")),
  b"\x94": Unpickler.memoize,
  b"a": lambda u: u.append([u.pop()]),
  b"e": lambda u: u.append(u.pop_mark()),
  b"s": lambda u: u.set_items([u.pop(), u.pop()][::-1]),
  b"u": lambda u: u.set_items(u.pop_mark()),
  b"\x90": lambda u: u.add_items(u.pop_mark()),
  b"b": Unpickler.build,
}


def resolve(root: Any, size: int, *, cycles: bool = True) -> Any:
  """Puts what was read in place of its stand-ins.

  Containers are visited once each, whatever refers to them. Lists, dicts and
  object arrays change in place; tuples with a stand-in inside are made anew.

  Args:
    root: what an unpickler loaded.
    size: bytes of the pickle: a tree of many more items, by sharing containers,
      is refused, because whoever walks through it would not come to an end.
    cycles: whether containers may hold themselves.
  """
  done = {}  # id -> (the item, kept so that its id stays its own, result, count)

  def visit(item, depth):
    """The result and the number of items in it."""
    if not isinstance(item, StandIn | list | tuple | dict):
      return item, 1
    if id(item) in done:
      _, result, count = done[id(item)]
      if count is None and not cycles:
        raise Refused("the pickle holds a container that holds itself")
      return result, count or 1
    if depth > _MAX_DEPTH:
      raise Refused(f"the pickle nests containers over {_MAX_DEPTH} deep")
    result = item.result() if isinstance(item, StandIn) else item
    done[id(item)] = item, result, None
    total = 1

    def inner(value):
      nonlocal total
      value, count = visit(value, depth + 1)
      total += count
      return value

    if isinstance(result, np.ndarray) and result.dtype.hasobject:
      flat = result.reshape(-1)
      for i in range(flat.size):
        flat[i] = inner(flat[i])
    elif isinstance(result, list):
      result[:] = [inner(value) for value in result]
    elif isinstance(result, dict):
      for key, value in result.items():
        result[key] = inner(value)
    elif isinstance(result, tuple):
      new = tuple([inner(value) for value in result])
      if any(a is not b for a, b in zip(new, result, strict=True)):
        result = new
    if total > size + _FREE:
      raise Refused("the pickle expands to far more items than its own size")
    done[id(item)] = item, result, total
    return result, total

  return visit(root, 0)[0]
