"""Layers, pictures and recordings of small scenes worked out by hand."""

import base64
import dataclasses
import importlib.util
import re
import socket

import numpy as np
import pytest

from wsegpc_jax.data import box_rooms
from wsegpc_jax.palette import GREY, RIGHT, WRONG, number_colors, palette
from wsegpc_jax.types import IGNORE_LABEL, DataError, Frame, Scene
from wsegpc_jax.viewer import browser, frames, layers, picture, render

CLASSES = ("wall", "floor", "chair")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE = (255, 255, 255)
# Of a picture of 5 x 5: one unit aside at depth 2 is one pixel.
PINHOLE = np.array([2.0, 2.0, 2.0, 2.0])


def flat_scene(**fields):
  """Four points in a plane 2 m before a camera at the origin."""
  given = {
    "name": "flat",
    "coord": np.float32([[-1, 0, 2], [0, 0, 2], [1, 0, 2], [0, 1, 2]]),
    "color": np.uint8([[10, 0, 0], [20, 0, 0], [30, 0, 0], [40, 0, 0]]),
    "normal": np.float32([[0, 0, -1]] * 3 + [[0, 0, 0]]),
    "tags": np.array([True, True, False]),
  }
  return Scene(**given | fields)


def flat_frame(name="0", **fields):
  """5 x 5 pixels; the depth of the middle row alone is measured."""
  depth = np.zeros((5, 5), np.float32)
  depth[2] = 2
  given = {
    "name": name,
    "color": np.arange(75, dtype=np.uint8).reshape(5, 5, 3),
    "depth": depth,
    "pose": np.eye(4),
    "intrinsics": PINHOLE,
  }
  return Frame(**given | fields)


def test_palette_is_all_different():
  colors = palette(20).astype(int)
  assert colors[0].tolist() == [230, 46, 46]  # hue 0, saturation .8, value .9
  apart = np.abs(colors[:, None] - colors).sum(axis=2)
  assert apart[~np.eye(20, dtype=bool)].min() > 70


def test_number_colors_tell_neighbours_apart():
  colors = number_colors(np.arange(360))
  assert len(np.unique(colors, axis=0)) == 360
  step = np.abs(np.diff(colors.astype(int), axis=0)).max(axis=1)
  assert step.min() > 150
  # 0 is pure red; none is grey; the table begins again after 360.
  some = number_colors(np.array([[0, -1], [360, 361]]))
  assert some[0].tolist() == [list(RED), list(GREY)]
  np.testing.assert_array_equal(some[1], colors[:2])


def test_class_layer():
  label = np.array([1, 1, 0, IGNORE_LABEL], np.int32)
  layer = layers.class_layer("truth", "Truth", label, CLASSES)
  wall, floor, _ = palette(3).tolist()
  assert layer.color.tolist() == [floor, floor, wall, list(GREY)]
  assert layer.legend == (
    ("wall, 25.0 %", tuple(wall)),
    ("floor, 50.0 %", tuple(floor)),
    ("not labelled, 25.0 %", GREY),
  )


def test_agreement_layer_counts_what_is_scored():
  truth = np.array([0, 1, 2, IGNORE_LABEL, 1])
  label = np.array([0, 1, 1, 0, IGNORE_LABEL])
  layer = layers.agreement_layer("right", "Right", label, truth)
  expected = [RIGHT, RIGHT, WRONG, GREY, WRONG]
  assert [tuple(c) for c in layer.color.tolist()] == expected
  assert layer.legend == (
    ("right, 50.0 %", RIGHT),
    ("wrong, 50.0 %", WRONG),
    ("not scored", GREY),
  )
  unknown = np.full(5, IGNORE_LABEL)
  layer = layers.agreement_layer("right", "Right", label, unknown)
  assert layer.legend == (("not scored", GREY),)


def test_confidence_grows_lighter():
  layer = layers.confidence_layer(np.array([0.0, 0.5, 1.0, 0.75], np.float32))
  assert layer.color[0].tolist() == [30, 15, 75]
  assert layer.color[2].tolist() == [252, 230, 130]
  # Half way from (190, 55, 85) to the last.
  np.testing.assert_allclose(layer.color[3], [221, 142.5, 107.5], atol=0.5)
  assert [text for text, _ in layer.legend] == "0% 25% 50% 75% 100%".split()
  assert layer.legend[3][1] == tuple(layer.color[3].tolist())


def test_normal_layer():
  normal = np.float32([[1, 0, 0], [0, 0, -1], [0, 0, 0]])
  layer = layers.normal_layer(normal)
  assert layer.color.tolist() == [[255, 128, 128], [128, 128, 0], list(GREY)]
  assert layer.legend[0] == ("+x", (255, 128, 128))
  assert layer.legend[5] == ("-z (down)", (128, 128, 0))
  assert layer.legend[6] == ("unknown", GREY)
  assert len(layers.normal_layer(normal[:2]).legend) == 6


def test_superpoint_layer():
  layer = layers.superpoint_layer(np.array([7, 7, 2, -1]))
  assert layer.title == "Superpoints: 2"
  assert (layer.color[0] == layer.color[1]).all()
  assert (layer.color[0] != layer.color[2]).any()
  assert layer.color[3].tolist() == list(GREY)
  assert layer.legend == (("no superpoint", GREY),)


def test_links_by_frame_pixel_and_region():
  scene = flat_scene()
  region = np.full((5, 5), 4, np.int32)
  region[2, 3] = -1
  # The second camera stands 1 m to the right: it sees what the first sees.
  moved = np.eye(4)
  moved[0, 3] = 1
  hidden = flat_frame(depth=np.zeros((5, 5), np.float32))
  shown = [
    dataclasses.replace(hidden, region=region),
    flat_frame("1", region=region, pose=moved),
    flat_frame("2", region=region),
  ]
  linked = frames.link_frames(scene.coord, shown, tolerance=0.1)
  assert linked[2].link.tolist() == [[2, 1], [2, 2], [2, 3], [-1, -1]]
  assert linked[1].link.tolist() == [[2, 0], [2, 1], [2, 2], [-1, -1]]
  assert frames.first_link(linked).tolist() == [1, 1, 1, -1]
  by_frame, pixel, by_region = layers.link_layers(linked)
  color = number_colors(np.arange(3)).tolist()
  assert by_frame.color.tolist() == [color[1]] * 3 + [list(GREY)]
  assert by_frame.legend == (
    ("frame 1, 75.0 %", tuple(color[1])),
    ("in no frame, 25.0 %", GREY),
  )
  assert pixel.color[:3].tolist() == shown[1].color[2, :3].tolist()
  assert pixel.color[3].tolist() == list(GREY)
  assert pixel.legend == (("in no frame, 25.0 %", GREY),)
  # Five regions of the first frame come before those of the second.
  assert by_region.color.tolist() == [
    *number_colors(np.array([9, 9, 9])).tolist(),
    list(GREY),
  ]
  # With the third frame alone, the point at the hole has no region.
  *_, alone = layers.link_layers(linked[2:])
  assert alone.color[2].tolist() == list(GREY)
  assert alone.legend == (("no region, 50.0 %", GREY),)


def test_overlays():
  linked = frames.link_frames(
    flat_scene().coord, [flat_frame()], tolerance=0.1
  )[0]
  before = linked.frame.color.copy()
  overlay = frames.link_overlay(linked, np.uint8([RED, GREEN, BLUE, WHITE]))
  assert overlay[2, 1:4].tolist() == [list(RED), list(GREEN), list(BLUE)]
  untouched = np.ones((5, 5), bool)
  untouched[2, 1:4] = False
  np.testing.assert_array_equal(overlay[untouched], before[untouched] // 2)
  np.testing.assert_array_equal(linked.frame.color, before)

  region = np.full((5, 5), -1, np.int32)
  region[0, 0] = 0  # red
  tinted = frames.region_overlay(flat_frame(region=region))
  assert tinted[0, 0].tolist() == [0 + 127, 0, 1]
  assert tinted[0, 1].tolist() == [1 + 64, 2 + 64, 2 + 64]


def test_frustum_by_hand():
  # 4 x 2 pixels whose middle is on the axis: edges at 2 and 1 pixels from it.
  intrinsics = np.array([2.0, 1.0, 1.5, 0.5])
  corners = frames.frustum(np.eye(4), intrinsics, (2, 4), 3.0)
  expected = [[0, 0, 0], [-3, -3, 3], [3, -3, 3], [3, 3, 3], [-3, 3, 3]]
  np.testing.assert_allclose(corners, expected)
  # Turned by 90 degrees about z and moved: (x, y, z) goes to (1 - y, x, z).
  pose = np.array([[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
  turned = [[1 - y, x, z] for x, y, z in expected]
  np.testing.assert_allclose(
    frames.frustum(pose, intrinsics, (2, 4), 3.0), turned
  )
  angle, aspect = frames.field_of_view(intrinsics, (2, 4))
  assert angle == pytest.approx(np.pi / 2)
  assert aspect == pytest.approx(1.0)  # 6 m wide and 6 m high at 3 m


def test_all_layers_of_a_scene():
  label = np.array([0, 1, 1, IGNORE_LABEL], np.int32)
  scene = flat_scene(label=label, superpoint=np.arange(4, dtype=np.int32))
  region = np.zeros((5, 5), np.int32)
  linked = frames.link_frames(
    scene.coord, [flat_frame(region=region)], tolerance=0.1
  )
  prediction = layers.Prediction(label, np.ones(4, np.float32))
  found = layers.scene_layers(
    scene, CLASSES, pseudo=label, prediction=prediction, frames=linked
  )
  assert [layer.name for layer in found] == (
    "color truth pseudo pseudo_right prediction prediction_right confidence"
    " superpoint normal frame pixel region"
  ).split()
  for layer in found:
    assert layer.color.shape == (4, 3) and layer.color.dtype == np.uint8
  # Nothing is made up for what a scene lacks.
  bare = layers.scene_layers(flat_scene(), CLASSES, pseudo=label)
  assert [layer.name for layer in bare] == ["color", "pseudo", "normal"]


def test_render_one_pixel_for_each_point():
  coord = np.float32([[-1, 0, 2], [0, 0, 2], [0, 0, 1], [1, 1, -2], [9, 0, 2]])
  color = np.uint8([RED, BLUE, GREEN, RED, RED])
  image = render.render_points(coord, color, np.eye(4), PINHOLE, (5, 5))
  expected = np.full((5, 5, 3), 255)
  # The third point hides the second; the fourth is behind, the last outside.
  expected[2, 1], expected[2, 2] = RED, GREEN
  np.testing.assert_array_equal(image, expected)


def test_render_keeps_the_first_of_points_at_the_same_depth():
  coord = np.float32([[0, 0, 2], [0, 0, 2], [1, 0, 2]])
  for size in (0.0, 2.0):  # 2 m at 2 m: discs of 3 x 3 pixels that overlap
    seen = render.visible_points(
      coord, np.eye(4), PINHOLE, (5, 5), point_size=size
    )
    assert seen[2, 2] == 0 and 1 not in seen
  assert seen[2].tolist() == [-1, 0, 0, 0, 2]


def test_render_discs_grow_with_nearness():
  color = np.uint8([RED])
  for depth, covered in ((4.0, 1), (2.0, 9), (1.0, 21)):
    image = render.render_points(
      np.float32([[0, 0, depth]]), color, np.eye(4), PINHOLE, (5, 5),
      point_size=2 if depth < 4 else 1,
    )  # fmt: skip
    assert (image == RED).all(axis=2).sum() == covered
  # The corners of 5 x 5 do not belong to a disc of radius 2.
  assert image[0, 0].tolist() == list(WHITE)
  # Sizes of single points; a near small one is in front of a far large one.
  image = render.render_points(
    np.float32([[0, 0, 2], [0, 0, 1]]), np.uint8([RED, BLUE]), np.eye(4),
    PINHOLE, (5, 5), point_size=np.array([2.0, 0.0]), background=(0, 0, 0),
  )  # fmt: skip
  assert image[2, 2].tolist() == list(BLUE)
  assert (image == RED).all(axis=2).sum() == 8


def test_render_equals_the_nearest_point_of_each_pixel():
  rng = np.random.default_rng(0)
  coord = rng.uniform([-2, -2, 0.5], [2, 2, 4], (300, 3))
  seen = render.visible_points(coord, np.eye(4), PINHOLE, (5, 5))
  expected = np.full((5, 5), -1)
  for k in np.argsort(-coord[:, 2]):
    x, y, z = coord[k]
    r, c = round(2 * y / z + 2), round(2 * x / z + 2)
    if 0 <= r < 5 and 0 <= c < 5:
      expected[r, c] = k
  np.testing.assert_array_equal(seen, expected)


def test_nothing_in_view_leaves_the_background():
  behind = np.float32([[0, 0, -1]])
  image = render.render_points(
    behind, np.uint8([RED]), np.eye(4), PINHOLE, (2, 3), background=BLUE
  )
  assert (image == BLUE).all() and image.shape == (2, 3, 3)


def test_look_at():
  pose = render.look_at(np.array([0, 0, 1.0]), np.array([2, 0, 1.0]))
  # Along +x: right is -y, down is -z.
  np.testing.assert_allclose(
    pose[:3], [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1]], atol=1e-12
  )
  down = render.look_at(np.array([0, 0, 5.0]), np.array([0, 0, 0.0]))
  np.testing.assert_allclose(down[:3, 1], [0, -1, 0], atol=1e-12)
  assert np.linalg.det(down[:3, :3]) == pytest.approx(1)


def test_point_spacing_of_a_grid_is_its_step():
  x, y = np.mgrid[:20, :20] * 0.25
  coord = np.stack([x, y, 0 * x], -1).reshape(-1, 3)
  assert render.point_spacing(coord) == pytest.approx(0.25)
  assert render.point_spacing(coord[:4]) == 0


def room_with(ceiling):
  rng = np.random.default_rng(0)
  parts = []
  for axis, side in ((0, 0), (0, 4), (1, 0), (1, 3), (2, 0), (2, 2.5)):
    if (axis, side) == (2, 2.5) and not ceiling:
      continue
    part = rng.uniform(0, [4, 3, 2.5], (4000, 3))
    part[:, axis] = side
    parts.append(part)
  return np.concatenate(parts)


@pytest.mark.parametrize("ceiling", [True, False])
def test_the_first_view_looks_into_the_room(ceiling):
  coord = room_with(ceiling)
  assert render.has_ceiling(coord) == ceiling
  eye, target, degrees = render.room_view(coord)
  assert (eye[2] < 2.5) == ceiling
  size = (120, 160)
  pose = render.look_at(eye, target)
  intrinsics = render.fitted(coord, pose, size, degrees)
  seen = render.visible_points(coord, pose, intrinsics, size, point_size=0.1)
  # Most of the empty floor is in the picture, and only the discs of the near
  # walls reach over a little of it.
  floor = coord[coord[:, 2] == 0]
  row, col, depth = render.project_points(floor, pose, intrinsics)
  row, col = np.rint(row), np.rint(col)
  inside = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
  assert inside.mean() > 0.5
  hit = coord[seen[row[inside].astype(int), col[inside].astype(int)]]
  behind = depth[inside] - (hit - eye) @ pose[:3, 2]
  assert (behind < 0.3).mean() > 0.9


def test_the_first_view_avoids_what_stands_in_a_corner():
  coord = room_with(ceiling=True)
  free, *_ = render.room_view(coord)
  rng = np.random.default_rng(1)
  shelf = free * (1, 1, 0) + rng.normal(0, 0.3, (3000, 3)) * (1, 1, 0)
  middle = coord.mean(axis=0)
  shelf += 0.2 * (middle - free) * (1, 1, 0)
  shelf[:, 2] = rng.uniform(0, 2.4, 3000)
  shelf = shelf[((shelf >= 0) & (shelf <= (4, 3, 2.5))).all(axis=1)]
  other, *_ = render.room_view(np.concatenate([coord, shelf]))
  assert np.linalg.norm(other - free) > 1


def test_top_view_sees_every_point_in_its_place():
  coord = room_with(ceiling=False)
  size = (80, 100)
  eye, target, degrees = render.top_view(coord)
  pose = render.look_at(eye, target)
  camera = render.fitted(coord, pose, size, degrees)
  row, col, _ = render.project_points(coord, pose, camera)
  assert ((row > -0.5) & (row < 79.5) & (col > -0.5) & (col < 99.5)).all()
  # East is right and north is up.
  corner = np.array([[4.0, 3, 0], [0, 0, 0]])
  row, col, _ = render.project_points(corner, pose, camera)
  assert col[0] > col[1] and row[0] < row[1]


def test_fitted_fills_the_picture_or_keeps_the_angle():
  # At depth 2: 3 wide and 1 high, the middle at (0.5, 0).
  coord = np.array([[-1, -0.5, 2], [2, 0.5, 2]])
  fx, fy, cx, cy = render.fitted(coord, np.eye(4), (100, 200), 60.0)
  assert fx == fy == pytest.approx(0.94 * 200 / 1.5)
  assert cx + fx * 0.25 == pytest.approx(99.5)
  assert cy == pytest.approx(49.5)
  # One point behind the camera: 90 degrees across the 100 rows.
  coord[0, 2] = -2
  inside = render.fitted(coord, np.eye(4), (100, 200), 90.0)
  np.testing.assert_allclose(inside, [50, 50, 99.5, 49.5])


def test_sheet_has_every_layer_with_title_and_legend():
  scene, _ = box_rooms.make_room(0, 0, points_per_square_metre=50.0)
  found = layers.scene_layers(scene, box_rooms.CLASSES)
  names = [layer.name for layer in found]
  assert names == ["color", "truth", "superpoint", "normal"]
  pictures = picture.layer_pictures(scene.coord, found, (60, 80), view="top")
  # Only colours of the layer, or mixtures with white at edges.
  truth = pictures[1].reshape(-1, 3)
  plain = {tuple(c) for c in found[1].color.tolist()} | {WHITE}
  share = np.mean([tuple(c) in plain for c in truth.tolist()])
  assert share > 0.5
  assert {tuple(c) for c in truth.tolist()} >= {
    color for text, color in found[1].legend if text.startswith("floor")
  }
  image = picture.sheet(scene.coord, found, (60, 320), view="top")
  assert image.width == 3 * 320
  colors = {color for _, color in image.getcolors(1 << 20)}
  assert colors >= {color for _, color in found[1].legend}


def test_legend_is_safe_html():
  layer = layers.Layer(
    "truth", "Truth", np.zeros((1, 3), np.uint8), (("<b>&x", (1, 2, 3)),)
  )
  text = browser.legend_html(layer)
  assert "&lt;b&gt;&amp;x" in text and "rgb(1, 2, 3)" in text
  assert "<b>" not in text


needs_viser = pytest.mark.skipif(
  importlib.util.find_spec("viser") is None, reason="viser is not installed"
)


def exhibit():
  scene = flat_scene(label=np.array([0, 1, 1, 2], np.int32))
  region = np.zeros((5, 5), np.int32)
  linked = frames.link_frames(
    scene.coord, [flat_frame("a/b", region=region)], tolerance=0.1
  )
  found = layers.scene_layers(scene, CLASSES, frames=linked)
  return browser.Exhibit("<flat>", scene.coord, found, linked)


@needs_viser
def test_recording_holds_all_points_and_layers():
  import zstandard

  shown = exhibit()
  page = browser.record(shown)
  assert page.rstrip().endswith("</html>") and "&lt;flat&gt;" in page
  for text in ("wall, 25.0 %", "in no frame, 25.0 %"):
    assert text in page
  # Nothing is fetched from elsewhere.
  assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", page)
  data = re.search(r'__VISER_EMBED_DATA__="([^"]+)"', page).group(1)
  raw = zstandard.ZstdDecompressor().decompressobj().decompress(
    base64.b64decode(data)[8:]
  )  # fmt: skip
  assert shown.coord.tobytes() in raw
  for layer in shown.layers:
    assert layer.title.encode() in raw
    assert layer.color.tobytes() in raw


@needs_viser
def test_controls_switch_layers():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  shown = exhibit()
  server = browser._start("127.0.0.1", port)
  try:
    nodes, images = browser._add_scene(server, shown)
    controls = browser._add_controls(server, shown, nodes, images)
    assert [n.visible for n in nodes.values()] == [True] + 5 * [False]
    controls.layer.value = "Truth"
    visible = [title for title, node in nodes.items() if node.visible]
    assert visible == ["Truth"]
    assert "wall, 25.0 %" in controls.legend.content
    controls.cut.value = 1.0
    assert len(nodes["Truth"].points) == 0
    controls.cut.value = 3.0
    np.testing.assert_array_equal(nodes["Truth"].points, shown.coord)
    # The port is taken; the address, of documentation, is no one's.
    for host in ("127.0.0.1", "203.0.113.7"):
      with pytest.raises(DataError, match=f"--port={port}: cannot be served"):
        browser.open_server(shown, host=host, port=port)
  finally:
    browser._stop(server)
