"""Files of torch.save made by hand, opcode by opcode, and trees compared."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "torch"


def same(found, expected):
  """Whether two trees are equal: kinds, dtypes, shapes, numbers and order."""
  if isinstance(expected, np.ndarray):
    assert type(found) is np.ndarray and found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype.hasobject:
      assert found.tolist() == expected.tolist()
    else:
      assert found.tobytes() == expected.tobytes()
    return
  assert type(found) is type(expected)
  if isinstance(expected, dict):
    assert list(found) == list(expected)
    for key, value in expected.items():
      same(found[key], value)
  elif isinstance(expected, list | tuple):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
      same(a, b)
  else:
    assert found == expected


def known_dtypes():
  floats = [1, 2, 4, 64, 0.5, -1.5]
  for name in ("float64", "float32", "float16", ml_dtypes.bfloat16):
    yield np.array([*floats, np.inf]).astype(name)
  for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu"):
    kind = getattr(ml_dtypes, f"float8_{name}")
    yield np.array(floats[: 5 if name == "e8m0fnu" else 6]).astype(kind)
  for bits in (8, 16, 32, 64):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    yield np.array([1, 2, low, high], f"i{bits // 8}")
    yield np.array([1, 2, 2**bits - 1], f"u{bits // 8}")
  yield np.array([True, False, True])
  for name in ("complex64", "complex128"):
    yield np.array([1 + 2j, -3.5 - 0.25j], name)


def push(value):
  return pickle.dumps(value, 2)[2:-1]


def name(module, item):
  return f"c{module}\n{item}\n".encode()


def call(module, item, *arguments):
  return name(module, item) + push(arguments) + b"R"


def storage(kind="Float", key="0", count=4, *, more=b""):
  return (
    b"(" + push("storage") + name("torch", f"{kind}Storage") + push(key)
    + push("cpu") + push(count) + more + b"tQ"
  )  # fmt: skip


def tensor(of, offset, size, stride):
  return (
    name("torch._utils", "_rebuild_tensor_v2")
    + b"(" + of + push(offset) + push(size) + push(stride) + b"\x89"
    + name("collections", "OrderedDict") + b")RtR"
  )  # fmt: skip


def program(body):
  return b"\x80\x02" + body + b"."


FOUR = np.arange(1, 5, dtype="<f4").tobytes()


def archive(body, storages=None, *, prefix="archive", **others):
  content = {"data.pkl": program(body), **others}
  for key, data in ({"0": FOUR} if storages is None else storages).items():
    content[f"data/{key}"] = data
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as z:
    for member, data in content.items():
      z.writestr(f"{prefix}/{member}", data)
  return file.getvalue()


def legacy(body, storages=None, *, keys=None, magic=0x1950A86A20F9469CFC6C):
  storages = {"0": (4, FOUR)} if storages is None else storages
  parts = [pickle.dumps(x, 2) for x in (magic, 1001, {"little_endian": True})]
  parts += [program(body), pickle.dumps(list(keys or storages), 2)]
  parts += [struct.pack("<q", n) + data for n, data in storages.values()]
  return b"".join(parts)
