"""Labels, normals and cameras of ScanNet's release; the benchmark's files."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsegpc_jax.interop import scannet, scannet_raw
from wsegpc_jax.types import IGNORE_LABEL, DataError

sys.path.append(str(Path(__file__).parents[1] / "data"))
import miniature_scannet as miniature  # noqa: E402

NAME = "scene0000_00"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  folder = tmp_path_factory.mktemp("release")
  original = miniature.write_raw(folder, scenes=(NAME,))[NAME]
  label_map = scannet_raw.read_label_map(folder / "labels.tsv")
  scan = folder / "scans" / NAME
  mesh = scannet_raw.read_mesh(scan / f"{NAME}_vh_clean_2.ply")
  return scan, original, label_map, mesh


@pytest.fixture
def copy(tmp_path, release):
  """A scan with what the labels come from, to be damaged."""
  scan = release[0]
  for path in scan.iterdir():
    if path.suffix in (".json", ".ply", ".txt"):
      (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def test_both_sources_of_labels_agree(release, copy):
  scan, original, label_map, mesh = release
  ids = scannet_raw.read_vertex_ids(
    scan / f"{NAME}_vh_clean_2.labels.ply", mesh.coord
  )
  np.testing.assert_array_equal(ids, original.nyu40)
  aggregated = scannet_raw.read_aggregated_ids(
    scan / f"{NAME}_vh_clean_2.0.010000.segs.json",
    scan / f"{NAME}.aggregation.json",
    label_map,
    len(mesh.coord),
  )
  np.testing.assert_array_equal(aggregated, original.nyu40)
  assert (original.nyu40 == 0).any()
  from_ply = scannet_raw.read_labels(copy, NAME, mesh.coord, None)
  np.testing.assert_array_equal(from_ply, original.scene.label)
  (copy / f"{NAME}_vh_clean_2.labels.ply").unlink()
  other = scannet_raw.read_labels(copy, NAME, mesh.coord, label_map)
  np.testing.assert_array_equal(other, original.scene.label)
  with pytest.raises(DataError, match="label map is needed"):
    scannet_raw.read_labels(copy, NAME, mesh.coord, None)
  (copy / f"{NAME}.aggregation.json").unlink()
  assert scannet_raw.read_labels(copy, NAME, mesh.coord, label_map) is None


def test_aggregation_by_hand(tmp_path):
  """Segments 5 and 9 are a sofa, 7 is nothing, 2 is a book on it."""
  (tmp_path / "map.tsv").write_text(
    "id\traw_category\tnyu40id\n6\tcouch\t6\n22\tbook\t23\n6\tfuton\t6\n"
  )
  label_map = scannet_raw.read_label_map(tmp_path / "map.tsv")
  segments, aggregation = tmp_path / "segs.json", tmp_path / "agg.json"
  segments.write_text(json.dumps({"segIndices": [9, 5, 7, 2, 5]}))
  groups = [
    {"label": "couch", "segments": [5, 9, 2]},
    {"label": "book", "segments": [2, 1000]},
  ]
  aggregation.write_text(json.dumps({"segGroups": groups}))
  ids = scannet_raw.read_aggregated_ids(segments, aggregation, label_map, 5)
  assert ids.tolist() == [6, 6, 0, 23, 6]
  labels = scannet.classes_of_nyu40(ids, "x")
  assert labels.tolist() == [5, 5, 255, 255, 5]

  def fails(match, content=None, points=5):
    if content is not None:
      aggregation.write_text(content)
    with pytest.raises(DataError, match=match):
      scannet_raw.read_aggregated_ids(segments, aggregation, label_map, points)

  fails(r"segIndices has shape \(5,\), expected \(6,\)", points=6)
  fails("'lamp' is no raw_category of .*map.tsv",
        json.dumps({"segGroups": [{"label": "lamp", "segments": [5]}]}))  # fmt: skip
  fails("agg.json: segGroups: expected a list", "{}")
  fails("agg.json: segGroups: expected a list", "[]")
  fails("agg.json: expected a JSON object", '{"segGroups": [')
  fails("agg.json: expected a JSON object", "[" * 100_000)
  fails("a label and a list of segments", '{"segGroups": [{"label": "book"}]}')
  fails("a label and a list of segments", '{"segGroups": [3]}')
  fails(
    "is no raw_category",
    '{"segGroups": [{"label": ["book"], "segments": [1]}]}',
  )
  segments.write_text('{"segIndices": [1, "x"]}')
  fails("segs.json: segIndices: expected integers")


def test_normals_of_a_pyramid_by_hand():
  """Weighted by area: the apex of a square pyramid points up, and a corner of
  the ground between its two sides and the large ground below."""
  coord = np.array(
    [[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0], [0, 0, 1], [5, 5, 5]],
    np.float32,
  )
  faces = np.array(
    [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4], [0, 2, 1], [0, 3, 2]]
  )
  normal = scannet_raw.vertex_normals(coord, faces)
  np.testing.assert_allclose(normal[4], [0, 0, 1], atol=1e-6)
  # Sides have (0, 2, 2) and (2, 0, 2) twice their area, the ground -4 in two.
  expected = np.array([2, 2, 2 + 2 - 4 - 4]) / np.sqrt(4 + 4 + 16)
  np.testing.assert_allclose(normal[0], expected, atol=1e-6)
  np.testing.assert_array_equal(normal[5], 0)  # without a face


def test_normals_of_a_room(release):
  _, original, _, mesh = release
  align = miniature.alignment(NAME)
  cosine = np.sum(mesh.normal @ align[:3, :3].T * original.scene.normal, axis=1)
  length = np.linalg.norm(mesh.normal, axis=1)
  assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))
  assert np.mean(cosine > 0.95) > 0.95


def test_alignment(release, tmp_path):
  scan = release[0]
  np.testing.assert_array_equal(
    scannet_raw.read_alignment(scan / f"{NAME}.txt"), miniature.alignment(NAME)
  )
  path = tmp_path / "a.txt"
  path.write_text("sceneType = Lobby\n")
  np.testing.assert_array_equal(scannet_raw.read_alignment(path), np.eye(4))
  for numbers, match in (
    ("1 0 0 0 0 1", "expected 4x4 numbers, got 6"),
    ("2 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "expected a rotation"),
    ("nan 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", "expected finite"),
    ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 x", "expected numbers only"),
  ):
    path.write_text(f"axisAlignment = {numbers}\n")
    with pytest.raises(DataError, match=f"a.txt.*{match}"):
      scannet_raw.read_alignment(path)
  with pytest.raises(DataError, match="none.txt"):
    scannet_raw.read_alignment(tmp_path / "none.txt")


def test_color_camera(release, tmp_path):
  intrinsics, size = scannet_raw.read_color_camera(release[0] / f"{NAME}.txt")
  assert size == (96, 128)
  np.testing.assert_allclose(intrinsics, miniature.camera((96, 128)), atol=1e-5)
  path = tmp_path / "a.txt"
  path.write_text("fx_color = 3\n")
  with pytest.raises(DataError, match="a.txt: expected lines .*fy_color"):
    scannet_raw.read_color_camera(path)


@pytest.mark.parametrize("kind", ["zip", "label-filt", "label"])
def test_labels_of_images(release, tmp_path, kind):
  scan, original, label_map, _ = release
  archive = scan / f"{NAME}_2d-label-filt.zip"
  if kind == "zip":
    (tmp_path / archive.name).write_bytes(archive.read_bytes())
  elif kind == "label-filt":
    zipfile.ZipFile(archive).extractall(tmp_path)
  else:
    (tmp_path / "label").mkdir()
    ids = np.array([*scannet.NYU40_IDS, 40], np.uint8)
    for frame in original.frames:
      image = ids[np.where(frame.label == IGNORE_LABEL, 20, frame.label)]
      path = tmp_path / "label" / f"{frame.name}.png"
      path.write_bytes(miniature.encode(image))
  read = scannet_raw.label_image_reader(tmp_path, NAME, label_map)
  for frame in original.frames:
    np.testing.assert_array_equal(
      read(frame.name, frame.depth.shape), frame.label
    )
  assert (read("17", (2, 3)) == np.full((2, 3), IGNORE_LABEL)).all()
  if kind != "label":
    with pytest.raises(
      DataError, match="has raw ids, which need the label map"
    ):
      scannet_raw.label_image_reader(tmp_path, NAME, None)


def test_damaged_labels_of_images(release, tmp_path):
  scan, _, label_map, _ = release
  assert scannet_raw.label_image_reader(tmp_path, NAME, label_map) is None
  archive = tmp_path / f"{NAME}_2d-label-filt.zip"
  archive.write_bytes((scan / archive.name).read_bytes()[:-40])
  read = scannet_raw.label_image_reader(tmp_path, NAME, label_map)
  with pytest.raises(DataError, match="expected an intact zip file"):
    read("0", (48, 64))
  archive.unlink()
  (tmp_path / "label").mkdir()
  (tmp_path / "label" / "0.png").write_bytes(b"no image")
  read = scannet_raw.label_image_reader(tmp_path, NAME, label_map)
  with pytest.raises(DataError, match="0.png: expected an intact PNG"):
    read("0", (48, 64))


def test_points_of_another_mesh_are_refused(copy, release):
  mesh = release[3]
  path = copy / f"{NAME}_vh_clean_2.labels.ply"
  with pytest.raises(DataError, match="other points"):
    scannet_raw.read_vertex_ids(path, mesh.coord + np.float32(0.1))
  with pytest.raises(DataError, match="lack the property 'label'"):
    scannet_raw.read_vertex_ids(copy / f"{NAME}_vh_clean_2.ply", mesh.coord)


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("id\traw_category\n1\twall\n", "lacks the column 'nyu40id'"),
    ("id\traw_category\tnyu40id\n1\twall\tx\n", "line 2: .* are 1 and x"),
    ("id\traw_category\tnyu40id\n1\twall\t41\n", "line 2: .* are 1 and 41"),
    ("id\traw_category\tnyu40id\n1\twall\n", "line 2: .* are 1 and None"),
    ("", "lacks the column"),
  ],
)
def test_malformed_label_maps(tmp_path, text, match):
  path = tmp_path / "map.tsv"
  path.write_text(text)
  with pytest.raises(DataError, match=match):
    scannet_raw.read_label_map(path)


def test_the_official_label_map_and_lists():
  folder = os.environ.get("WSEGPC_SHARED_DATA")
  if not folder:
    pytest.skip("WSEGPC_SHARED_DATA is not set")
  folder = Path(folder) / "scannet"
  label_map = scannet_raw.read_label_map(
    folder / "scannetv2-labels.combined.tsv"
  )
  assert len(label_map.of_category) == 607
  # The names that the benchmark gives its classes are raw categories, too.
  for name, nyu40 in zip(scannet.CLASSES, scannet.NYU40_IDS, strict=True):
    plain = {"sofa": "couch", "other furniture": "furniture"}.get(name, name)
    assert label_map.of_category[plain] == nyu40, name
  assert label_map.of_id[[1, 3, 2, 26]].tolist() == [1, 2, 5, 29]
  counts = [
    len((folder / f"scannetv2_{split}.txt").read_text().split())
    for split in ("train", "val", "test")
  ]
  assert counts == [1201, 312, 100]


def test_classes_of_nyu40_ids():
  ids = np.arange(41, dtype=np.uint16)
  labels = scannet.classes_of_nyu40(ids, "x")
  kept = np.flatnonzero(labels != IGNORE_LABEL)
  assert kept.tolist() == list(scannet.NYU40_IDS)
  assert labels[kept].tolist() == list(range(20))
  # Some meshes of the release have such ids.
  assert scannet.classes_of_nyu40(np.array([149]), "x") == IGNORE_LABEL
  for bad in (np.array([-1]), np.array([1.0]), np.array([1 << 16])):
    with pytest.raises(DataError, match="a.ply: label"):
      scannet.classes_of_nyu40(bad, "a.ply: label")


def test_submissions_come_back(tmp_path):
  label = np.arange(20, dtype=np.int32).repeat(3)
  path = tmp_path / "scene.txt"
  scannet.write_submission(path, label)
  np.testing.assert_array_equal(scannet.read_submission(path, 60), label)
  with pytest.raises(DataError, match="has 60 lines, .* 61 points"):
    scannet.read_submission(path, 61)
  # No class of the benchmark: wrong wherever it stands.
  path.write_text("1\r\n0\r\n13\r\n40")
  assert scannet.read_submission(path, 4).tolist() == [0, 255, 255, 255]
  for text, match in (
    ("1\nx\n", "line 2 is 'x'"),
    ("1\n\n", "line 2 is ''"),
    ("-1\n2\n", "line 1 is '-1'"),
    ("1.0\n2\n", "line 1 is '1.0'"),
    ("99999999999999999999\n2\n", None),
  ):
    path.write_text(text)
    if match:
      with pytest.raises(DataError, match=match):
        scannet.read_submission(path, 2)
    else:
      assert scannet.read_submission(path, 2).tolist() == [255, 1]
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(DataError, match="scene.txt: expected a text file"):
    scannet.read_submission(path, 1)
