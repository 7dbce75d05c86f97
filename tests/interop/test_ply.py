import numpy as np
import plyfile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.interop.ply import read_point_cloud, write_point_cloud
from wsegpc_jax.types import DataError

ASCII = """ply
format ascii 1.0
comment made by hand
element vertex 4
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property uchar alpha
element face 2
property list uchar int vertex_indices
end_header
0 0 0 255 0 0 255
1 0 0.5 0 255 0 255
1 2 0 0 0 255 255
0 2 0 9 8 7 255
3 0 1 2
4 0 1 2 3
"""


def cloud(n=50, seed=0):
  rng = np.random.default_rng(seed)
  normal = rng.normal(size=(n, 3))
  return dict(
    coord=rng.normal(size=(n, 3)).astype(np.float32),
    color=rng.integers(0, 256, (n, 3)).astype(np.uint8),
    normal=normal / np.linalg.norm(normal, axis=1, keepdims=True),
    label=rng.integers(0, 20, n).astype(np.int32),
  )


def ply_of(path, columns, *, text=False, byte_order="<", name="vertex"):
  length = len(next(iter(columns.values())))
  data = np.empty(length, [(k, v.dtype) for k, v in columns.items()])
  for key, value in columns.items():
    data[key] = value
  element = plyfile.PlyElement.describe(data, name)
  plyfile.PlyData([element], text=text, byte_order=byte_order).write(path)
  return path


def columns_of(coord, color):
  return dict(zip("xyz", coord.T, strict=True)) | dict(
    zip(("red", "green", "blue"), color.T, strict=True)
  )


def test_ascii_by_hand(tmp_path):
  path = tmp_path / "a.ply"
  path.write_text(ASCII)
  read = read_point_cloud(path)
  assert read["coord"].dtype == np.float32 and read["color"].dtype == np.uint8
  np.testing.assert_array_equal(read["coord"][1], [1, 0, 0.5])
  np.testing.assert_array_equal(
    read["color"], [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]
  )
  assert read["normal"] is None and read["label"] is None
  np.testing.assert_array_equal(
    read["faces"], [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
  )
  assert read["faces"].dtype == np.int32


@pytest.mark.parametrize("text, order", [(0, "<"), (0, ">"), (1, "=")])
def test_formats(tmp_path, text, order):
  made = cloud()
  path = ply_of(
    tmp_path / "a.ply", columns_of(made["coord"], made["color"]),
    text=bool(text), byte_order=order,
  )  # fmt: skip
  read = read_point_cloud(path)
  np.testing.assert_allclose(read["coord"], made["coord"], rtol=1e-6)
  np.testing.assert_array_equal(read["color"], made["color"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 9), st.booleans(), st.booleans())
def test_written_is_read_back(tmp_path_factory, n, seed, normal, label):
  made = cloud(n, seed)
  made["normal"] = made["normal"] if normal else None
  made["label"] = made["label"] if label else None
  path = tmp_path_factory.mktemp("ply") / "a.ply"
  write_point_cloud(path, **made)
  read = read_point_cloud(path)
  for field in ("coord", "color", "label"):
    np.testing.assert_array_equal(read[field], made[field])
  if normal:
    np.testing.assert_allclose(read["normal"], made["normal"], atol=1e-6)
    assert read["normal"].dtype == np.float32
  else:
    assert read["normal"] is None
  assert path.read_bytes().startswith(b"ply\nformat binary_little_endian 1.0")


def test_npz(tmp_path):
  made = cloud()
  path = tmp_path / "a.npz"
  np.savez_compressed(path, **made, other=np.array([None, "ignored"]))
  read = read_point_cloud(path)
  for field in ("coord", "color", "label"):
    np.testing.assert_array_equal(read[field], made[field])
  np.testing.assert_allclose(read["normal"], made["normal"], atol=1e-6)
  assert read["faces"] is None


def test_float_colours(tmp_path):
  path = tmp_path / "a.npz"
  coord = np.zeros((2, 3))
  for given_, expected in [
    ([[0, 0.5, 1], [0.2, 0.1, 0]], [[0, 128, 255], [51, 26, 0]]),
    ([[0, 127.6, 255], [2, 0, 0]], [[0, 128, 255], [2, 0, 0]]),
  ]:
    np.savez(path, coord=coord, color=np.array(given_, np.float32))
    np.testing.assert_array_equal(read_point_cloud(path)["color"], expected)
  # Integers are never scaled.
  np.savez(path, coord=coord, color=np.ones((2, 3), int))
  assert (read_point_cloud(path)["color"] == 1).all()


def test_normals_become_unit_or_stay_zero(tmp_path):
  path = tmp_path / "a.npz"
  normal = np.array([[0, 3.0, 4.0], [0, 0, 0]])
  np.savez(path, coord=normal, color=np.zeros((2, 3), int), normal=normal)
  read = read_point_cloud(path)["normal"]
  np.testing.assert_allclose(read, [[0, 0.6, 0.8], [0, 0, 0]], atol=1e-7)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coord=np.zeros((0, 3)), color=np.zeros((0, 3), int)), "at least one"),
    (dict(coord=np.full((4, 3), np.nan)), "coord.*12 NaN"),
    (dict(coord=np.full((4, 3), 1e300)), "coord.*infinite"),
    (dict(coord=np.zeros((4, 2))), r"coord.*\(4, 2\)"),
    (dict(coord=np.array([["a"] * 3] * 4)), "coord.*numbers"),
    (dict(color=np.full((4, 3), 256)), r"color.*256"),
    (dict(color=np.full((4, 3), -1)), "color.*-1"),
    (dict(color=np.full((4, 3), -0.1)), "color.*-0.1"),
    (dict(color=np.full((4, 3), np.nan)), "color.*NaN"),
    (dict(color=np.zeros((3, 3), int)), r"color.*\(3, 3\).*\(4, 3\)"),
    (dict(normal=np.zeros((3, 3))), r"normal.*\(3, 3\).*\(4, 3\)"),
    (dict(normal=np.full((4, 3), np.inf)), "normal.*infinite"),
    (dict(label=np.zeros(3, int)), r"label.*\(3,\).*\(4, 3\)"),
    (dict(label=np.full(4, 0.5)), "label.*integers"),
    (dict(label=np.full(4, 1 << 40)), "label.*32 bits"),
    (dict(faces=np.full((1, 3), 4)), r"faces.*0\.\.3"),
    (dict(faces=np.zeros((1, 4), int)), r"faces.*\(1, 4\)"),
    (dict(color=None), "lacks the array 'color'.*coord"),
    (dict(coord=None), "lacks the array 'coord'"),
    (dict(color=np.array([[None] * 3] * 4)), "intact .npz"),
  ],
)
def test_faults_of_npz(tmp_path, change, message):
  arrays = dict(coord=np.ones((4, 3)), color=np.ones((4, 3), int)) | change
  path = tmp_path / "scan.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  with pytest.raises(DataError, match=f"scan.npz: .*{message}"):
    read_point_cloud(path)


@pytest.mark.parametrize("lost", ["x", "z", "green"])
def test_ply_without_a_property(tmp_path, lost):
  columns = columns_of(*list(cloud().values())[:2])
  del columns[lost]
  path = ply_of(tmp_path / "a.ply", columns)
  with pytest.raises(DataError, match=f"a.ply: .*lack the property '{lost}'"):
    read_point_cloud(path)


def test_ply_without_vertices(tmp_path):
  columns = columns_of(*list(cloud().values())[:2])
  path = ply_of(tmp_path / "a.ply", columns, name="point")
  with pytest.raises(DataError, match="element 'vertex'"):
    read_point_cloud(path)
  path = ply_of(path, {k: v[:0] for k, v in columns.items()})
  with pytest.raises(DataError, match="at least one point"):
    read_point_cloud(path)


def test_truncated_and_damaged(tmp_path):
  path = tmp_path / "a.ply"
  write_point_cloud(path, **cloud())
  whole = path.read_bytes()
  header = whole.index(b"end_header")
  for length in (0, 3, 40, header, header + 12, header + 100, len(whole) - 1):
    path.write_bytes(whole[:length])
    with pytest.raises(DataError, match="a.ply: expected an intact PLY"):
      read_point_cloud(path)
  path.write_bytes(whole.replace(b"vertex 50", b"vertex 5000000000000000"))
  with pytest.raises(DataError, match="a.ply: expected an intact PLY"):
    read_point_cloud(path)
  (tmp_path / "short.ply").write_text(ASCII[: ASCII.rindex("9 8 7")])
  with pytest.raises(DataError, match="short.ply: expected an intact PLY"):
    read_point_cloud(tmp_path / "short.ply")

  path = tmp_path / "a.npz"
  np.savez(path, **cloud())
  whole = path.read_bytes()
  for length in (0, 10, 100, len(whole) // 2, len(whole) - 10):
    path.write_bytes(whole[:length])
    with pytest.raises(DataError, match="a.npz: expected an intact .npz"):
      read_point_cloud(path)
  path.write_bytes(whole[:300] + bytes(50) + whole[350:])
  with pytest.raises(DataError, match="a.npz: expected an intact .npz"):
    read_point_cloud(path)


def test_missing_and_alien_files(tmp_path):
  with pytest.raises(DataError, match="absent.ply: no such file"):
    read_point_cloud(tmp_path / "absent.ply")
  with pytest.raises(DataError, match=r"a.obj: expected a .ply or .npz"):
    read_point_cloud(tmp_path / "a.obj")
  with pytest.raises(DataError, match=r"a.npz: expected .* ends in .ply"):
    write_point_cloud(tmp_path / "a.npz", **cloud())


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.ply"
  write_point_cloud(path, **cloud())
  before = path.read_bytes()
  with pytest.raises(DataError, match="a.ply: color"):
    write_point_cloud(path, **cloud() | dict(color=np.full((50, 3), 300)))

  def fail(self, stream):
    stream.write(b"half of it")
    raise OSError("disk full")

  monkeypatch.setattr(plyfile.PlyData, "write", fail)
  with pytest.raises(OSError, match="disk full"):
    write_point_cloud(path, **cloud(seed=1))
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
