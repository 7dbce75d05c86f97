import collections
import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from wsegpc_jax.interop.safe_pickle import load_pickle
from wsegpc_jax.types import DataError


@pytest.fixture
def load(tmp_path):
  def write_and_load(content, **options):
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    return load_pickle(path, **options)

  return write_and_load


def plain():
  return {
    "scalars": [
      None,
      True,
      False,
      -5,
      1 << 80,
      2.5,
      1 + 2j,
      "naïve",
      b"\0\xff",
    ],
    "empty": [[], (), {}, set(), frozenset(), "", b""],
    "nested": ({"a": [(1, {2, 3}), frozenset("xy")]}, slice(1, None, 2)),
    "ordered": collections.OrderedDict([("z", 1), ("a", 2)]),
    "bytearray": bytearray(b"abc"),
    4: "key",
  }


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data(load, protocol):
  loaded = load(pickle.dumps(plain(), protocol))
  assert loaded == plain()
  assert list(loaded["ordered"]) == ["z", "a"]
  assert type(loaded["ordered"]) is collections.OrderedDict


ARRAYS = [
  np.arange(12, dtype=np.float32).reshape(3, 4),
  np.asfortranarray(np.arange(6).reshape(2, 3)),
  np.arange(10)[::3],
  np.array(5.5),
  np.zeros((0, 3), np.int16),
  np.array([True, False]),
  np.arange(4, dtype=">i4"),
  np.array(["a", "bcd"]),
  np.array([b"a", b"bcd"]),
  np.array([1 + 2j], np.complex64),
  np.array([None, "x", (1, 2), [3, {"k": np.arange(2)}]], object),
  np.array([[1, "b"], [None, 2.0]], object, order="F"),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("i", range(len(ARRAYS)))
def test_arrays(load, protocol, i):
  array = ARRAYS[i]
  (loaded,) = load(pickle.dumps([array], protocol))
  assert type(loaded) is np.ndarray
  assert loaded.dtype == array.dtype and loaded.shape == array.shape
  assert repr(loaded) == repr(array)
  if not array.dtype.hasobject:
    assert loaded.flags.writeable
    loaded[...] = array


@pytest.mark.parametrize("protocol", range(6))
def test_scalars_and_dtypes(load, protocol):
  data = (
    np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ab"),
    np.dtype("<f4"), np.dtype(">i2"), np.dtype("U7"),
  )  # fmt: skip
  loaded = load(pickle.dumps(data, protocol))
  assert loaded == data
  assert list(map(type, loaded)) == list(map(type, data))
  keys = {np.int64(3): "x", (np.float32(0.5), 1): "y"}
  assert load(pickle.dumps(keys, protocol)) == keys


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_module_names_of_both_numpy_versions(load, module):
  array = np.arange(3.0)
  content = pickle.dumps([array, np.float64(2)], 2)
  own = b"numpy._core.multiarray"
  assert content.count(own) == 2
  content = content.replace(own, f"{module}.multiarray".encode())
  loaded = load(content)
  assert np.array_equal(loaded[0], array) and loaded[1] == 2


def test_python_2_strings(load):
  """Strings without an encoding, and an array whose content is one."""
  assert load(b"(dp0\nS'color'\np1\nI3\ns.") == {"color": 3}
  raw = struct.pack("<2f", 1.5, -2)
  content = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    b"K\0\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\0K\x01\x87R"
    b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x08"
    + raw
    + b"tb."
  )
  np.testing.assert_array_equal(load(content), np.array([1.5, -2], np.float32))


def test_shared_and_cyclic_objects(load):
  array = np.arange(3)
  shared, pair = [array], (array, array)
  cycle = [shared, shared, pair, pair]
  cycle.insert(3, cycle)
  loaded = load(pickle.dumps(cycle))
  assert loaded[3] is loaded and loaded[0] is loaded[1]
  assert loaded[0][0] is loaded[2][0] and loaded[2][0] is loaded[2][1]
  assert loaded[2] is loaded[4] and type(loaded[0][0]) is np.ndarray


def call(module, name, *arguments):
  """The pickle of the call module.name(*arguments)."""
  f = io.BytesIO()
  pickler = pickle.Pickler(f, 2)
  pickler.dump(arguments)
  body = f.getvalue()[2:-1]
  return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


HOSTILE = [
  ("os", "system", "touch {}"),
  ("posix", "system", "touch {}"),
  ("nt", "system", "touch {}"),
  ("subprocess", "getoutput", "touch {}"),
  ("builtins", "eval", "open({!r}, 'w')"),
  ("__builtin__", "eval", "open({!r}, 'w')"),
  ("builtins", "exec", "open({!r}, 'w')"),
  ("builtins", "open", "{}", "w"),
  ("builtins", "getattr", "{}", "upper"),
  ("builtins", "__import__", "os"),
  ("importlib", "import_module", "os"),
  ("numpy.testing", "runstring", "open({!r}, 'w')", {}),
  ("numpy", "fromfile", "{}"),
  ("numpy.core.multiarray", "fromfile", "{}"),
  ("numpy", "load", "{}"),
  ("collections", "namedtuple", "{}", "a"),
  ("functools", "partial", "{}"),
  ("torch._utils", "_rebuild_tensor_v2", "{}"),
  ("wsegpc_jax.interop.safe_pickle", "load_pickle", "{}"),
]


@pytest.mark.parametrize("module, name", [h[:2] for h in HOSTILE])
def test_hostile_calls_are_refused_by_name(load, tmp_path, module, name):
  target = tmp_path / "target"
  arguments = next(h[2:] for h in HOSTILE if h[:2] == (module, name))
  arguments = [
    a.format(str(target)) if isinstance(a, str) else a for a in arguments
  ]
  with pytest.raises(DataError, match=f"data.pkl: refused.* {module}.{name},"):
    load(call(module, name, *arguments))
  assert not target.exists()


def test_hostile_call_of_the_stack_kind_and_by_reduce(load, tmp_path):
  target = tmp_path / "target"

  class Hostile:
    def __reduce__(self):
      return os.system, (f"touch {target}",)

  for protocol in range(6):
    with pytest.raises(DataError, match="system"):
      load(pickle.dumps({"a": [Hostile()]}, protocol))
  # Dotted names reach into what is allowed.
  content = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93."
  with pytest.raises(DataError, match=r"collections\.OrderedDict\.__init__"):
    load(content)
  assert not target.exists()


@pytest.mark.parametrize(
  "content",
  [
    call("_codecs", "encode", "aa", "hex"),
    call("builtins", "bytes", 1 << 40),
    call("builtins", "bytearray", 1 << 40),
    call("builtins", "list", "text"),
    # State set on a function, and a function or a type as the result.
    b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__(tsb\x86b.",
    b"\x80\x02c_codecs\nencode\n}bX\x01\0\0\0aX\x06\0\0\0latin1\x86R.",
    b"\x80\x02c_codecs\nencode\n.",
    b"\x80\x02cbuiltins\nint\n.",
    b"\x80\x02U\x01xQ.",
  ],
)
def test_misuse_of_allowed_names_is_refused(load, content):
  with pytest.raises(DataError, match="refused|intact"):
    load(content)


def array_pickle(shape, name, raw, fields=None):
  """An array with a state of the test's choice."""
  dtype = call("numpy", "dtype", name, 0, 1)[2:-1]
  if fields is not None:
    state = (3, "|", None, tuple(fields), fields, 8, 1, 0)
    dtype += pickle.dumps(state, 2)[2:-1] + b"b"
  return (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
    b"U\x01b\x87R(K\x01" + pickle.dumps(shape, 2)[2:-1] + dtype + b"\x89"
    + pickle.dumps(raw, 2)[2:-1] + b"tb."
  )  # fmt: skip


def test_arrays_that_lie_are_refused(load):
  good = load(array_pickle((2, 4), "u1", "01234567"))
  assert good.tobytes() == b"01234567" and good.shape == (2, 4)
  for shape, name, raw in [
    ((1 << 40,), "u1", "01234567"),
    ((-8,), "u1", "01234567"),
    ((2, -1), "u1", "01"),
    ((8,), "O", "01234567"),
    ((3,), "f8", "01234567"),
    ((1 << 40,), "U0", ""),
    ((0, 1 << 62), "u1", ""),
    ((1,), "V8", "01234567"),
    ((1,), "f4,f4", "01234567"),
    ((1,), "M8[s]", "01234567"),
  ]:
    with pytest.raises(DataError, match="data.pkl"):
      load(array_pickle(shape, name, raw))
  fields = {"a": ("not a dtype", 1 << 40)}
  with pytest.raises(DataError, match="structured"):
    load(array_pickle((1,), "f8", "01234567", fields))


def test_damage_is_a_data_error(load, tmp_path):
  content = pickle.dumps([plain(), *ARRAYS])
  for length in [*range(0, 60, 7), *range(60, len(content) - 1, 101)]:
    with pytest.raises(DataError, match="data.pkl"):
      load(content[:length])
  rng = np.random.default_rng(0)
  for _ in range(300):
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] = rng.integers(256)
    try:
      load(bytes(damaged))
    except DataError:
      pass
  with pytest.raises(DataError, match="absent.pkl"):
    load_pickle(tmp_path / "absent.pkl")
  with pytest.raises(DataError, match="cannot be read"):
    load_pickle(tmp_path)


def test_deep_nesting_is_a_data_error(load):
  content = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
  assert pickletools.optimize(content)
  with pytest.raises(DataError, match="data.pkl"):
    load(content)


def test_size_cap(load):
  content = pickle.dumps(b"x" * 100)
  assert load(content, max_bytes=len(content)) == b"x" * 100
  with pytest.raises(DataError, match=f"at most 50 bytes, got {len(content)}"):
    load(content, max_bytes=50)
