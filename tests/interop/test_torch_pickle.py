"""Files of real torch (see fixtures/torch) and hand-made ones."""

import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from torch_files import (
  FIXTURES,
  FOUR,
  archive,
  call,
  known_dtypes,
  legacy,
  push,
  same,
  storage,
  tensor,
)

from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.types import DataError

VERSIONS = ["1.13.1", "2.1.2", "2.13.0"]
FORMS = ["zip", "legacy"]


def fixtures(group):
  paths = sorted(FIXTURES.glob(f"{group}_*.pt"))
  names = {path.stem for path in paths}
  assert names >= {f"{group}_{v}_{form}" for v in VERSIONS for form in FORMS}
  return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@fixtures("dtypes")
def test_every_dtype(path):
  found = torch_pickle.load(path)
  known = {array.dtype.name: array for array in known_dtypes()}
  counts = {"1.13.1": 12, "2.1.2": 12, "2.13.0": 20}
  assert len(found) == counts[path.stem.split("_")[1]]
  for name, array in found.items():
    same(array, known[name])
    assert array.flags.writeable


BASE = np.arange(24, dtype=np.float32)
VIEWS = {
  "whole": BASE,
  "transposed": BASE.reshape(4, 6).T,
  "offset": BASE[5:9],
  "strided": BASE[::3],
  "permuted": BASE.reshape(2, 3, 4).transpose(2, 0, 1),
  "diagonal": np.array([0, 5, 10, 15], np.float32),
  "expanded": np.repeat(BASE[2:6, None], 3, axis=1),
  "one expanded": np.full(5, 3, np.float32),
  "overlapping": np.stack([BASE[0:4], BASE[2:6], BASE[4:8]]),
  "axis of one": np.array([[2, 3, 4]], np.float32),
  "scalar": np.array(7, np.float32),
  "empty": np.zeros(0, np.float32),
  "no rows": np.zeros((0, 3), np.float32),
  "no columns": np.zeros((2, 0), np.int64),
  "conjugate": np.array([1 - 2j, 3 + 4j], np.complex64),
  "negative": np.array([-2, 4], np.float32),
}


@fixtures("views")
def test_views(path):
  found = torch_pickle.load(path)
  expected = dict(VIEWS)
  if "1.13.1" in path.stem:  # which forgets both, and reads them back so
    expected["conjugate"] = VIEWS["conjugate"].conj()
    expected["negative"] = -VIEWS["negative"]
  same(found, expected)
  shared = {"expanded", "one expanded", "overlapping"}
  assert {k for k, v in found.items() if not v.flags.writeable} == shared
  # One storage is one memory, as in torch.
  found["whole"][5] = -1
  assert found["offset"][0] == found["transposed"][5, 0] == -1


@fixtures("checkpoint")
def test_checkpoint(path):
  found = torch_pickle.load(path)
  weight = np.arange(6, dtype=np.float32).reshape(3, 2) - np.float32(0.25)
  one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
  state = {
    "linear.weight": weight,
    "linear.bias": np.array([0.5, 1.5, 2.5], np.float32),
    "norm.weight": one,
    "norm.bias": zero,
    "norm.running_mean": zero,
    "norm.running_var": one,
    "norm.num_batches_tracked": np.array(0),
    "tied.weight": weight,
  }
  same(found.pop("state_dict"), state)
  same(found.pop("random"), np.arange(4, dtype=np.uint8))
  optimizer, schedule = found.pop("optimizer"), found.pop("scheduler")
  same(optimizer["state"][0]["momentum_buffer"], np.ones((3, 2), np.float32))
  (group,) = optimizer["param_groups"]
  assert (group["lr"], group["momentum"]) == (0.25, 0.5)
  assert group["params"] == [0, 1, 2, 3]
  same(schedule["milestones"], {3: 2, 7: 1})
  assert schedule["last_epoch"] == 1
  same(
    found,
    {
      "epoch": 12,
      "arch": "tiny",
      "best": 0.75,
      "args": {"lr": 0.25, "steps": [3, 7], "out": "a/b"},
      "counts": {"a": 2, "b": 1},
      "groups": {"x": [1]},
      "size": (3, 4),
      "device": "cuda:1",
      "dtype": np.dtype(ml_dtypes.bfloat16),
    },
  )


@fixtures("objects")
def test_parameters_attributes_and_bare_storages(path):
  found = torch_pickle.load(path)
  parameter = np.arange(3, dtype=np.float32)
  same(found["parameter"], parameter)
  same(found["list"], [parameter, (parameter, None)])
  same(found["marked"], np.arange(4, dtype=np.float32))
  same(found["tensor"], np.arange(5, dtype=np.float32))
  same(found["storage"], np.arange(3, dtype=np.int16))
  assert ("buffer" in found) == ("2.13.0" in path.stem)
  same(found.get("buffer", BASE[:2]), BASE[:2])
  raw = np.array([1, 2, 255], np.uint8)
  same(found.get("untyped", raw), raw)


@fixtures("arrays")
def test_arrays_of_numpy_1_and_2(path):
  found = torch_pickle.load(path)
  expected = {
    "coord": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.arange(6).reshape(2, 3),
    "big": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "objects": np.array([None, "x", (1, 2)], dtype=object),
    "scalar": np.float64(0.25),
    "integer": np.int64(-3),
    "zero": np.array(5),
    "dtype": np.dtype("<f4"),
    "bytes": b"\0\xff",
  }
  same(found, expected)


@pytest.fixture
def load(tmp_path):
  def write_and_load(content, **options):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    return torch_pickle.load(path, **options)

  return write_and_load


CONTAINERS = pytest.mark.parametrize("pack", [archive, legacy])


@CONTAINERS
def test_hand_made_files(load, pack):
  found = load(pack(tensor(storage(), 1, (3,), (1,))))
  same(found, np.array([2, 3, 4], np.float32))
  body = call("argparse", "Namespace") + push({"a": 1}) + b"b"
  found = load(pack(body, {}))
  assert found == {"a": 1} and type(found) is dict


def test_parts_of_storages_of_old_torch(load):
  """The sixth item of a reference: (name of the part, offset, length)."""
  part = storage(more=push(("part", 2, 2)))
  body = b"(" + tensor(part, 1, (1,), (1,)) + tensor(storage(), 0, (4,), (1,))
  one, four = load(legacy(body + b"t"))
  assert one.tolist() == [4] and four.tolist() == [1, 2, 3, 4]
  for view in [(None, 2, 3), (None, -1, 2), (None, 0, -1), (None, 0, True), 5]:
    part = storage(more=push(view))
    with pytest.raises(DataError, match="model.pt"):
      load(legacy(tensor(part, 0, (1,), (1,))))


def test_byte_order(load):
  body = tensor(storage("ComplexFloat", count=2), 0, (2,), (1,))
  swapped = np.arange(1, 5, dtype=">f4").tobytes()
  expected = np.array([1 + 2j, 3 + 4j], np.complex64)
  for order, data in (("big", swapped), ("little", FOUR)):
    same(load(archive(body, {"0": data}, byteorder=order)), expected)
  with pytest.raises(DataError, match="byte order"):
    load(archive(body, byteorder="middle"))


@CONTAINERS
@pytest.mark.parametrize(
  "count, offset, size, stride",
  [
    (4, 0, (5,), (1,)),
    (4, 1, (4,), (1,)),
    (4, 5, (), ()),
    (4, -1, (2,), (1,)),
    (4, 3, (2,), (-1,)),
    (4, 0, (-1,), (1,)),
    (4, 0, (2, 2), (1,)),
    (4, 0, (2, 2), (3, 1)),
    (4, 0, (1 << 62, 1 << 62), (1 << 62, 1)),
    (4, 0, (2,), (1 << 63,)),
    (4, 0, (2.0,), (1,)),
    (4, 0, (True,), (1,)),
    (4, "0", (2,), (1,)),
    (4, 0, (1,) * 65, (1,) * 65),
    (4, 0, 4, 1),
    (5, 0, (4,), (1,)),
    (-4, 0, (0,), (1,)),
    (1 << 62, 0, (4,), (1,)),
    (True, 0, (1,), (1,)),
  ],
)
def test_views_beyond_their_storage(load, pack, count, offset, size, stride):
  with pytest.raises(DataError, match="model.pt: expected an intact"):
    load(pack(tensor(storage(count=count), offset, size, stride)))


@CONTAINERS
def test_expansion_takes_no_memory_and_is_limited(load, pack):
  body = tensor(storage(), 0, (1 << 28,), (0,))
  tracemalloc.start()
  found = load(pack(body))
  assert found.shape == (1 << 28,) and not found.flags.writeable
  assert tracemalloc.get_traced_memory()[1] < 1 << 22
  with pytest.raises(DataError, match="more than 1073741823 bytes"):
    load(pack(body), max_bytes=(1 << 30) - 1)
  many = b"(" + body * 9 + b"t"
  for hostile in (many, tensor(storage(), 0, (1 << 60,), (0,))):
    with pytest.raises(DataError, match="more than 8589934592 bytes"):
      load(pack(hostile))
  assert tracemalloc.get_traced_memory()[1] < 1 << 22
  tracemalloc.stop()
  with pytest.raises(DataError, match="at most 100 bytes"):
    load(pack(body), max_bytes=100)


@CONTAINERS
def test_bools_are_0_or_1(load, pack):
  """numpy would count 255 of them in a mask of one."""
  body = tensor(storage("Bool", count=16), 0, (16,), (1,))
  with pytest.raises(DataError, match="neither 0 nor 1"):
    load(pack(body) if pack is archive else pack(body, {"0": (16, FOUR)}))
  state = pickle.dumps(np.array([True, False]), 2)[2:-1]
  assert b"X\2\0\0\0\1\0" in state
  with pytest.raises(DataError, match="neither 0 nor 1"):
    load(pack(state.replace(b"X\2\0\0\0\1\0", b"X\2\0\0\0\2\0"), {}))
