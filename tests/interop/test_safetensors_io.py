import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_files import FIXTURES, known_dtypes, same

from wsegpc_jax.interop import safetensors_io
from wsegpc_jax.types import DataError

OFFICIAL = FIXTURES / "dtypes.safetensors"


def expected():
  known = {a.dtype.name: a for a in known_dtypes() if a.dtype != np.complex128}
  return known | {
    "grid": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 3), np.float32),
  }


def test_file_of_the_package_safetensors():
  found = safetensors_io.load(OFFICIAL)
  same(dict(sorted(found.items())), dict(sorted(expected().items())))
  assert all(array.flags.writeable for array in found.values())
  metadata = safetensors_io.load_metadata(OFFICIAL)
  assert metadata == {"format": "pt", "naïve": "ü"}


def test_written_file_is_that_of_the_package(tmp_path):
  """Byte by byte, from arrays in another order and of other layouts."""
  arrays = dict(sorted(expected().items(), reverse=True))
  arrays["grid"] = np.asfortranarray(arrays["grid"])
  arrays["int32"] = arrays["int32"].astype(">i4")
  metadata = safetensors_io.load_metadata(OFFICIAL)  # in its order
  path = tmp_path / "folder" / "model.safetensors"
  safetensors_io.save(path, arrays, metadata=metadata)
  assert path.read_bytes() == OFFICIAL.read_bytes()


@given(
  st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.tuples(
      st.sampled_from(list(expected().values())),
      st.integers(0, 3),
      st.booleans(),
    ),
    max_size=5,
  ),
  st.dictionaries(st.text('aé"\\\n', max_size=3), st.text("ü\0", max_size=3)),
)
def test_what_is_saved_is_loaded(tmp_path_factory, chosen, metadata):
  arrays = {}
  for key, (array, repeat, transposed) in chosen.items():
    array = np.stack([array] * repeat) if repeat else array
    arrays[key] = array.T if transposed else array
  path = tmp_path_factory.getbasetemp() / "round.safetensors"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("os.fsync", lambda file: None)  # slow on a busy disk
    safetensors_io.save(path, arrays, metadata=metadata)
  found = safetensors_io.load(path)
  same({key: found[key] for key in arrays}, arrays)
  assert len(found) == len(arrays)
  assert safetensors_io.load_metadata(path) == metadata


@pytest.fixture
def load(tmp_path):
  def write_and_load(content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return safetensors_io.load(path)

  return write_and_load


def packed(header, body=b""):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  return struct.pack("<Q", len(header)) + header + body


def entry(dtype="F32", shape=(1,), place=(0, 4)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def test_files_that_lie_are_refused_in_little_memory(load, tmp_path):
  one = json.dumps(entry()).encode()
  tracemalloc.start()
  assert load(packed({"a": entry()}, b"\0\0\x80?"))["a"].tolist() == [1]
  for content in [
    b"",
    b"\1",
    struct.pack("<Q", 1 << 60),
    struct.pack("<Q", 99_999_999) + b"{}",
    packed(b"{"),
    packed(b"[]"),
    packed(b"\xff\xff"),
    packed(b"[" * 100_000),
    packed(b'{"a":' * 100_000),
    packed(b'{"a":%s,"a":%s}' % (one, one), bytes(4)),
    packed({"a": entry(), "b": entry()}, bytes(4)),
    packed({"a": entry(), "b": entry(place=(2, 6))}, bytes(6)),
    packed({"a": entry(place=(4, 8))}, bytes(8)),
    packed({"a": entry()}, bytes(5)),
    packed({"a": entry()}, bytes(3)),
    packed({"a": entry(shape=(2,))}, bytes(4)),
    packed({"a": entry("BOOL", (4,))}, b"\0\1\2\1"),
    packed({"a": entry(shape=(1 << 62, 8))}, bytes(4)),
    packed({"a": entry(shape=(0, 1 << 63), place=(0, 0))}),
    packed({"a": entry(shape=(-1,))}, bytes(4)),
    packed({"a": entry(shape=(-1, -1))}, bytes(4)),
    packed({"a": entry(shape=(True,))}, bytes(4)),
    packed({"a": entry(shape=(1.0,))}, bytes(4)),
    packed({"a": entry(shape=(1,) * 65)}, bytes(4)),
    packed({"a": entry(place=(0, 4, 4))}, bytes(4)),
    packed({"a": entry(place=("0", "4"))}, bytes(4)),
    packed({"a": entry() | {"more": 1}}, bytes(4)),
    packed({"a": [1, 2, 3]}),
    packed({"a": {"dtype": "F32"}}),
    packed({"__metadata__": {"a": 1}}),
    packed({"__metadata__": ["a"]}),
  ]:
    with pytest.raises(DataError, match="model.safetensors: expected an intac"):
      load(content)
  assert tracemalloc.get_traced_memory()[1] < 1 << 28
  tracemalloc.stop()
  with pytest.raises(DataError, match="array 'a' of dtype F4"):
    load(packed({"a": entry("F4", (8,))}, bytes(4)))
  with pytest.raises(DataError, match="absent.safetensors: cannot be read"):
    safetensors_io.load(tmp_path / "absent.safetensors")


def test_damaged_files(tmp_path):
  rng = np.random.default_rng(0)
  content = OFFICIAL.read_bytes()
  header = 8 + int.from_bytes(content[:8], "little")
  path = tmp_path / "model.safetensors"
  valid = 0
  with open(path, "wb") as file:  # once: opening is slow
    for i in range(3000):
      damaged = bytearray(content)
      at = rng.integers(header if i % 3 else len(content))
      match rng.integers(4):
        case 0:
          del damaged[at:]
        case 1:
          damaged[at:at] = rng.bytes(rng.integers(1, 9))
        case 2:
          damaged[at] = rng.choice(list(b'0123456789{}[]",: '))
        case 3:
          damaged[at] ^= 1 << rng.integers(8)
      file.seek(0)
      file.write(damaged)
      file.truncate()
      file.flush()
      try:
        arrays = safetensors_io.load(path)
        assert sum(a.nbytes for a in arrays.values()) < len(content)
        valid += 1
      except DataError:
        pass
  assert 100 < valid < 1500


def test_what_cannot_be_saved(tmp_path):
  path = tmp_path / "model.safetensors"
  safetensors_io.save(path, {})
  assert safetensors_io.load(path) == safetensors_io.load_metadata(path) == {}
  before = path.read_bytes()
  array = np.zeros(1)
  for arrays, metadata, match in [
    ({1: array}, None, "name for an array, got 1"),
    ({"__metadata__": array}, None, "name for an array, got '__metadata__'"),
    ({"a": [1.0]}, None, "a: expected an array of numbers, got list"),
    ({"a": np.array(["x"])}, None, "a: expected an array of .*, got <U1"),
    ({"a": np.zeros(1, complex)}, None, "a: expected an array .*, got complex"),
    ({"a": np.zeros(1, ml_dtypes.int4)}, None, "a: expected an array .*, got"),
    ({"\ud800": array}, None, "names that UTF-8 can write"),
    ({"a": array}, {"a": 1}, "metadata: expected strings by name"),
  ]:
    with pytest.raises(DataError, match=f"model.safetensors: .*{match}"):
      safetensors_io.save(path, arrays, metadata=metadata)
  assert path.read_bytes() == before
