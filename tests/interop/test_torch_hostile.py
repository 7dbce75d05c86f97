"""Files that try to run something, to take the machine, or are just damaged."""

import io
import pickle
import resource
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import (
  FIXTURES,
  FOUR,
  archive,
  call,
  legacy,
  name,
  program,
  push,
  storage,
  tensor,
)

from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.types import DataError


@pytest.fixture
def load(tmp_path):
  def write_and_load(content, **options):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    return torch_pickle.load(path, **options)

  return write_and_load


CONTAINERS = pytest.mark.parametrize("pack", [archive, legacy])


HOSTILE = [
  ("os", "system", "touch {}"),
  ("posix", "system", "touch {}"),
  ("nt", "system", "touch {}"),
  ("subprocess", "check_output", ["touch", "{}"]),
  ("builtins", "eval", "open({!r}, 'w')"),
  ("__builtin__", "eval", "open({!r}, 'w')"),
  ("builtins", "exec", "open({!r}, 'w')"),
  ("builtins", "open", "{}", "w"),
  ("builtins", "getattr", "{}", "upper"),
  ("builtins", "__import__", "os"),
  ("importlib", "import_module", "os"),
  ("numpy.testing", "runstring", "open({!r}, 'w')", {}),
  ("numpy.testing._private.utils", "runstring", "open({!r}, 'w')", {}),
  ("numpy", "load", "{}"),
  ("shutil", "rmtree", "{}"),
  ("collections", "namedtuple", "{}", "a"),
  ("collections", "OrderedDict.__init__", "{}"),
  ("torch", "load", "{}"),
  ("torch.hub", "load", "{}"),
  ("torch.storage", "_load_from_bytes", b""),
  ("torch._utils", "_rebuild_qtensor", "{}"),
  ("torch._utils", "_rebuild_sparse_tensor", "{}"),
  ("torch", "QInt8Storage", "{}"),
  ("torch", "complex32", "{}"),
  ("torch.nn.modules.linear", "Linear", "{}"),
  ("wsegpc_jax.interop.torch_pickle", "load", "{}"),
]


@CONTAINERS
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: ".".join(h[:2]))
def test_calls_are_refused_by_name(load, tmp_path, pack, hostile):
  target = tmp_path / "target"
  module, item, *arguments = hostile
  arguments = [
    a.format(str(target)) if isinstance(a, str) else a for a in arguments
  ]
  plain = call(module, item, *arguments)
  bodies = [
    plain,
    plain[:-1] + b"\x81",  # as a new object
    b"(" + push(arguments[0]) + f"i{module}\n{item}\n".encode(),
    b"(" + name(module, item) + push(arguments[0]) + b"o",
    push(module) + push(item) + b"\x93" + push(tuple(arguments)) + b"R",
    # Inside of what is allowed.
    name("collections", "OrderedDict") + plain + b"\x85R",
    name("argparse", "Namespace") + b")\x81" + plain + b"b",
    name("torch._tensor", "_rebuild_from_type_v2")
    + b"(" + name(module, item) + name("torch", "Tensor") + b")}tR",
    tensor(plain, 0, (1,), (1,)),
    plain + b"Q",
  ]  # fmt: skip
  for body in bodies:
    with pytest.raises(DataError) as e:
      load(pack(body))
    refused = f"refused, the pickle names {module}.{item}, which is not data"
    assert str(e.value) == f"{tmp_path}/model.pt: {refused}"
  assert not target.exists()


@pytest.mark.parametrize(
  "body, match",
  [
    (b"\x82\x01", "extension 1"),
    (b"\x83\x01\x02", "extension 513"),
    (b"\x84\x01\0\0\0", "extension 1"),
    (b"Pabc\n", "no storage"),
    (push("abc") + b"Q", "no storage"),
    (push(("module", "a.B", "b.py", "import os")) + b"Q", "whole model"),
    (push(("storage",)) + b"Q", "1 items"),
    (push(("storage", "torch.FloatStorage", "0", "cpu", 4)) + b"Q", "str"),
    (storage(key="../data.pkl"), r"lacks archive/data/\.\./data.pkl"),
    (storage(key="/etc/passwd"), "lacks archive/data//etc/passwd"),
    (storage(key="9"), "lacks archive/data/9"),
    (storage(key=0), "without a name"),
    (storage(more=push(None)), "part of a storage"),
    (storage(more=push((None, 0, 1))), "part of a storage"),
    # State of functions, dtypes, scalars; calls of what is no function.
    (name("_codecs", "encode") + push({"__doc__": "x"}) + b"b", "Function"),
    (name("torch", "float32") + push((3, "<")) + b"b", "state of a .*DType"),
    (name("torch", "FloatStorage") + push({"dtype": 1}) + b"b", "StorageType"),
    (storage() + push({"count": 1 << 40}) + b"b", "state of a _Storage"),
    (push([]) + push({"a": 1}) + b"b", "state of a list"),
    (name("torch", "FloatStorage") + b")R", "calls a _StorageType"),
    (push("abc") + b")R", "calls a str"),
    (name("torch", "Tensor") + b")R", "calls a tensor class"),
    (name("torch", "Tensor"), "a function or a type"),
    (name("torch", "FloatStorage"), "holds a type"),
    (call("torch", "device", ["cuda"]), "device"),
    (call("pathlib", "PosixPath", 1), "path"),
    (call("builtins", "int", b"1" * 10), "int without a number"),
    (name("torch._utils", "_rebuild_parameter") + push((1, 2, 3)) + b"R", "int"),
    (b"]2h\x7f", "intact"),
    (b"]" + push("a") + b"s", "intact"),
    (b"]q\0h\0a", "holds itself"),
    (b"}q\0Nh\0s", "holds itself"),
    (b"}" + call("builtins", "slice", 1) + b"Ns", "key of type slice"),
    (b"\x97", "intact"),
  ],
)  # fmt: skip
def test_misuse(load, body, match):
  with pytest.raises(DataError, match=f"model.pt: .*{match}"):
    load(archive(body))


def get(index):
  return b"h" + bytes([index])


def put(index):
  return b"q" + bytes([index])


def bombs():
  """(pattern of the message, few bytes that ask for much)."""
  yield "nests containers", b"]" * 100_000 + b"a" * 99_999
  # Each list holds the one before ten times.
  lists = [b"](" + get(i) * 10 + b"e" + put(i + 1) for i in range(40)]
  yield "far more items", b"]" + put(0) + b"".join(lists)
  # The hash of a tuple visits each mention.
  pairs = [2 * get(i) + b"\x86" + put(i + 1) + b"0" for i in range(60)]
  key = b"N" + put(0) + b"0" + b"".join(pairs) + get(60)
  yield "key of over", b"}" + key + b"Ns"
  yield "key of over", b"\x8f(" + key + b"\x90"
  yield "key of over", b"(" + key + b"\x91"
  yield "key of over", name("builtins", "set") + b"]" + key + b"a\x85R"
  yield "key of over", name("builtins", "dict") + b"}" + key + b"Ns\x85R"
  yield "more than 64 bits", b"}" + push(1 << 70) + b"Ns"
  # The same copy many times.
  text = push("a" * 10_000) + put(1)
  copy = name("_codecs", "encode") + get(1) + push("latin1") + b"\x86R"
  yield "far more than its own size", text + b"(" + copy * 5000 + b"t"
  items = push([0] * 10_000) + put(1)
  copy = name("builtins", "list") + get(1) + b"\x85R"
  yield "far more than its own size", items + b"(" + copy * 5000 + b"t"
  # Lengths without content.
  for opcode in (b"\x8e", b"\x96", b"\x8d"):
    yield "ends too early", opcode + b"\xff" * 7 + b"\x7f"
  for opcode in (b"B", b"T", b"X", b"\x8b"):
    yield "ends too early", opcode + b"\xff\xff\xff\x7f"


@CONTAINERS
def test_bombs_are_refused_in_little_memory(load, pack):
  tracemalloc.start()
  for match, body in bombs():
    with pytest.raises(DataError, match=f"model.pt: .*{match}"):
      load(pack(body, {}))
  # A memo of four billion places, of which one is taken.
  assert load(pack(b"K\7r" + b"\xff" * 4 + b"0j" + b"\xff" * 4, {})) == 7
  assert tracemalloc.get_traced_memory()[1] < 1 << 26
  tracemalloc.stop()


def test_keys_that_collide_are_refused(load):
  body = b"}(" + b"".join(push((i,)) + b"N" for i in range(10_001)) + b"u"
  with pytest.raises(DataError, match="over 10000 compound keys"):
    load(archive(body))


def test_what_is_no_file_of_torch_save(load, tmp_path):
  tar = b"sys_info".ljust(257, b"\0") + b"ustar".ljust(300, b"\0")
  compressed, doubled = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("archive/data.pkl", b"\0" * 1_000_000)
  with zipfile.ZipFile(doubled, "w") as z:
    z.writestr("archive/data.pkl", program(b"N"))
    with pytest.warns(UserWarning, match="Duplicate"):
      z.writestr("archive/data.pkl", program(b"N"))
  good = archive(tensor(storage(), 0, (4,), (1,)))
  script = {"constants.pkl": program(b")"), "code/__torch__.py": b""}
  for content, match in [
    (b"", "expected an intact file of torch.save"),
    (b"hello", "expected an intact file of torch.save"),
    (pickle.dumps({"a": 1}), "it is not a file of torch.save"),
    (tar, "refused, it is a tar archive .* save it again with torch.save"),
    (archive(b"N", **script), "refused, it is a TorchScript archive"),
    (compressed.getvalue(), "member archive/data.pkl is compressed"),
    (doubled.getvalue(), "archive/data.pkl twice"),
    (archive(b"N", prefix="a").replace(b"data.pkl", b"data.abc"), "lacks a/"),
    (archive(b"N.K"), "bytes behind the pickle"),
    (good.replace(FOUR, FOUR[::-1]), "archive/data/0 with a wrong checksum"),
    (good[:-1], "expected an intact"),
    (good + b"x", "expected an intact"),
    (legacy(b"N", {}) + b"x", "1 bytes follow"),
    (legacy(b"N", {}, magic=5), "it is not a file of torch.save"),
    (legacy(b"N"), "storages that are not those of the tensors"),
    (legacy(storage(), keys=["0", "0"]), "a list of storages"),
    (legacy(storage(), {"0": (3, FOUR)}), "3 items, not 4"),
    (legacy(storage(), {"0": (4, FOUR[:-1])}), "ends too early"),
    (legacy(storage() + storage("Int") + b"\x86"), "storage of two kinds"),
  ]:
    with pytest.raises(DataError, match=f"model.pt: .*{match}"):
      load(content)
  with pytest.raises(DataError, match="absent.pt: cannot be read"):
    torch_pickle.load(tmp_path / "absent.pt")


def edit(content, marker, offset, layout, *values):
  """The content with numbers replaced, at an offset from the last marker."""
  content = bytearray(content)
  place = content.rindex(marker) + offset
  struct.pack_into(layout, content, place, *values)
  return bytes(content)


def test_tables_of_contents_that_lie(load):
  good = archive(tensor(storage(), 0, (4,), (1,)))
  entry, end = b"PK\1\2", b"PK\5\6"
  first = good.index(entry)
  for content in [
    edit(good, entry, 42, "<L", 0),  # the last member where the first is
    edit(good, entry, 20, "<LL", 99, 99),  # larger, so into the table
    edit(good, entry, 20, "<LL", 16, 15),
    edit(good, entry, 42, "<L", len(good)),
    edit(good, entry, 42, "<L", 0xFFFFFFFF),  # without the large number
    edit(good, entry, 8, "<H", 1),  # encrypted
    edit(good, entry, 10, "<H", 8),  # compressed
    edit(good, entry, 28, "<H", 9999),
    edit(good, end, 10, "<H", 9999),
    edit(good, end, 10, "<H", 0),
    edit(good, end, 10, "<H", 1),
    edit(good, end, 12, "<L", 1 << 31),
    edit(good, end, 16, "<L", 0),
    edit(good, end, 16, "<L", 1 << 31),
    edit(good, end, 20, "<H", 1),
    good[:first] + good[first:].replace(b"data/0", b"data/1"),
    good[:-22] + b"PK\6\7" + bytes(16) + good[-22:],
    good[:-22] + b"PK\6\7" + b"\xff" * 16 + good[-22:],
  ]:
    with pytest.raises(DataError, match="model.pt"):
      load(content)
  assert load(good).tolist() == [1, 2, 3, 4]


def test_members_that_overlap(load):
  """A member whose header and content lie in the content of another."""
  inner = zipfile.ZipInfo("archive/data/1")
  inner.CRC = 0
  inner.file_size = inner.compress_size = len(FOUR)
  hidden = inner.FileHeader() + FOUR
  body = tensor(storage(key="1"), 0, (4,), (1,))
  good = archive(body, {"0": hidden, "1": FOUR})
  assert load(good).tolist() == [1, 2, 3, 4]
  with pytest.raises(DataError, match="members that overlap"):
    load(edit(good, b"PK\1\2", 42, "<L", good.index(hidden)))


def unchecked(content):
  """The archive with its checksums off, so that damage goes further."""
  content = bytearray(content)
  place = content.find(b"PK\1\2")
  while place >= 0:
    struct.pack_into("<L", content, place + 16, 0)
    place = content.find(b"PK\1\2", place + 1)
  return bytes(content)


OPCODES = b"().012FGIJKLMNPQRSTUVX]}abcdeghijlopqrstu" + bytes(
  range(0x80, 0x99)
)


def damaged(content, rng):
  """One to three random faults."""
  content = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    at, length = rng.integers(len(content) or 1), rng.integers(1, 12)
    match rng.integers(8):
      case 0:
        content = content[:at]
      case 1:
        content[at:at] = rng.bytes(length)
      case 2:
        del content[at : at + length]
      case 3:
        source = rng.integers(len(content) or 1)
        content[at:at] = content[source : source + length]
      case 4 | 5 if content:
        content[at] = OPCODES[rng.integers(len(OPCODES))]
      case 6 if content:
        content[at] = rng.integers(256)
      case _ if content:
        content[at] ^= 1 << rng.integers(8)
  return bytes(content)


def is_plain(tree):
  if isinstance(tree, dict):
    return all(map(is_plain, tree.values())) and all(map(is_plain, tree))
  if isinstance(tree, list | tuple | set | frozenset):
    return all(map(is_plain, tree))
  if isinstance(tree, np.ndarray) and tree.dtype.hasobject:
    return is_plain(tree.tolist())
  scalars = int | float | complex | str | bytes | bytearray | slice | None
  return isinstance(tree, scalars | np.ndarray | np.generic | np.dtype)


def test_damaged_files(tmp_path):
  """20,000 of them: each is refused, or holds plain data."""
  rng = np.random.default_rng(0)
  zipped = (FIXTURES / "tiny_2.13.0_unchecked.pt").read_bytes()
  older = (FIXTURES / "tiny_2.13.0_legacy.pt").read_bytes()
  small = tensor(storage(), 0, (2, 2), (2, 1))
  # What is left alone, what is damaged, what is left alone.
  first, last = older.index(b"}q\0(X\6"), older.index(b"u.\x80\2]")
  table = zipped.index(b"PK\1\2")
  bases = [
    (b"", zipped, b""),
    (b"", older, b""),
    (b"", unchecked(archive(small)), b""),
    (b"", legacy(small), b""),
    (b"", (FIXTURES / "arrays_2.1.2_legacy.pt").read_bytes(), b""),
    (zipped[:table], zipped[table:], b""),
    (older[:first], older[first:last], older[last:]),
    (older[:first], older[first:last], older[last:]),
  ]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  valid = 0
  path = tmp_path / "model.pt"
  with open(path, "wb") as file:  # once: opening is slow
    for i in range(20_000):
      head, middle, tail = bases[i % len(bases)]
      file.seek(0)
      file.write(head + damaged(middle, rng) + tail)
      file.truncate()
      file.flush()
      try:
        assert is_plain(torch_pickle.load(path, max_bytes=1 << 24))
        valid += 1
      except DataError:
        pass
  # The damage is neither fatal always nor never noticed.
  assert 1000 < valid < 10_000
  # In KiB.
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18
