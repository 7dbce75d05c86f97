"""What is written, against what torch has read, and read again."""

import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch_files import FIXTURES, known_dtypes, same

from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.types import DataError


def tree_to_save():
  weight = np.arange(6, dtype=np.float32).reshape(2, 3)
  return {
    "state_dict": {
      "w": weight,
      "tied": weight,
      "t": weight.T,
      "half": np.array([1.5, -2], ml_dtypes.bfloat16),
      "count": np.array(7),
      "none": np.zeros((0, 3), np.float32),
      "f8": np.array([1.5, -2], ml_dtypes.float8_e4m3fn),
      "u16": np.array([1, 65535], np.uint16),
      "mask": np.array([True, False]),
      "wave": np.array([1 + 2j], np.complex64),
      "be": np.arange(3, dtype=">i4"),
    },
    "epoch": 3,
    "best": 0.25,
    "big": -(1 << 70),
    "flags": [True, None, "naïve", (1, [2.5])],
    5: {"momentum": np.arange(2.0)},
  }


def test_written_file_is_the_one_that_torch_has_read(tmp_path):
  """written.pt was compared with this tree by torch 2.13.0, weights_only."""
  path = tmp_path / "folder" / "written.pt"
  torch_pickle.save(path, tree_to_save())
  assert path.read_bytes() == (FIXTURES / "written.pt").read_bytes()
  found = torch_pickle.load(path)
  state = found["state_dict"]
  assert np.shares_memory(state["w"], state["tied"])
  expected = tree_to_save()
  expected["state_dict"]["be"] = np.arange(3, dtype=np.int32)
  same(found, expected)
  with zipfile.ZipFile(path) as z:
    assert z.testzip() is None
    for info in z.infolist():
      name_and_extra = struct.unpack_from(
        "<2H", path.read_bytes(), info.header_offset + 26
      )
      assert (info.header_offset + 30 + sum(name_and_extra)) % 64 == 0


# A bool of other bytes than 0 and 1 is not one.
NUMBERS = [a.dtype for a in known_dtypes() if a.dtype.name != "bool"]
ARRAYS = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0).flatmap(
  lambda shape: st.builds(
    lambda raw, dtype: np.resize(
      np.frombuffer(raw, np.uint8).view(dtype), shape
    ),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(NUMBERS),
  )
)
TREES = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(1 << 100), 1 << 100)
  | st.floats(allow_nan=False)
  | st.text(max_size=5)
  | ARRAYS
  | ARRAYS.map(np.transpose),
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(
      st.text(max_size=3) | st.integers(0, 9), inner, max_size=4
    )
  ),
  max_leaves=10,
)


@given(TREES)
def test_what_is_saved_is_loaded(tmp_path_factory, tree):
  path = tmp_path_factory.getbasetemp() / "round.pt"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("os.fsync", lambda file: None)  # slow on a busy disk
    torch_pickle.save(path, tree)
  same(torch_pickle.load(path), tree)


def test_what_cannot_be_saved(tmp_path):
  path = tmp_path / "model.pt"
  torch_pickle.save(path, 1)
  before = path.read_bytes()
  cycle = []
  cycle.append(cycle)
  for tree, match in [
    ({"a": [0, {1}]}, "a.1: cannot hold a set"),
    ({"a": np.array(["x"])}, "a: cannot hold an array of <U1"),
    ({"a": np.array([None])}, "a: cannot hold an array of object"),
    ({"a": np.zeros(1, "f4,f4")}, "a: cannot hold an array of "),
    ({"a": np.zeros(1, np.longdouble)}, "a: cannot hold an array of "),
    ({"a": b"x"}, "a: cannot hold a bytes"),
    ({(1, 2): 0}, "the tree: cannot hold a key of type tuple"),
    (len, "the tree: cannot hold a builtin_function_or_method"),
    (1j, "the tree: cannot hold a complex"),
    (cycle, "0.0.*: cannot hold containers over 100 deep"),
    ([1 << 4000], "0: cannot hold an int of over 255 bytes"),
  ]:
    with pytest.raises(DataError, match=f"model.pt: {match}"):
      torch_pickle.save(path, tree)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_archives_with_64_bit_fields(tmp_path, monkeypatch):
  """As for members over 2 GiB, here with a smaller limit."""
  monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
  monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
  path = tmp_path / "model.pt"
  tree = {"a": np.arange(100.0), "b": np.arange(3)}
  torch_pickle.save(path, tree)
  content = path.read_bytes()
  # Sizes and place of the member are written as 2^32 - 1, and apart.
  entry = content.index(b"PK\1\2")
  assert content[entry + 20 : entry + 28] == b"\xff" * 8
  assert b"PK\6\6" in content and b"PK\6\7" in content
  same(torch_pickle.load(path), tree)
  assert content.index(np.arange(100.0).tobytes()) % 64 == 0
