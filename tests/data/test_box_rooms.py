"""Box rooms: the frames, the points and the boxes tell one story."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from scipy import ndimage, spatial

from wsegpc_jax.data import assets, box_rooms
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError

SEED = 5
ROOMS = range(4)
NOISE = 0.01  # metres; the points are off their faces by 9 mm at most


@functools.cache
def room(index):
  return box_rooms.make_room(SEED, index)


@functools.cache
def layout(index):
  return box_rooms.make_layout(np.random.default_rng([SEED, index]))


def inside(boxes, points, margin):
  """Whether each point is in each box grown by `margin`: bool [B, N]."""
  low, high = boxes[:, None, 0] - margin, boxes[:, None, 1] + margin
  return ((points > low) & (points < high)).all(-1)


def back_project(frame):
  """World position of each pixel: float64 [H, W, 3]."""
  fx, fy, cx, cy = frame.intrinsics
  v, u = np.indices(frame.depth.shape)
  ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(u.shape)], -1)
  in_camera = ray * frame.depth[..., None]
  return in_camera @ frame.pose[:3, :3].T + frame.pose[:3, 3]


def away_from_edges(frame):
  """Pixels whose eight neighbours show the same region: bool [H, W]."""
  same = np.zeros(frame.region.shape, bool)
  region = frame.region
  same[1:-1, 1:-1] = True
  for dy in (-1, 0, 1):
    for dx in (-1, 0, 1):
      same &= np.roll(region, (dy, dx), (0, 1)) == region
  return same & (region != NO_REGION)


def test_rays_against_marching():
  rng = np.random.default_rng(0)
  # Boxes behind each other, the nearest neither first nor last.
  low = rng.uniform(-1.2, 0.5, (9, 3))
  low[:, 0] = [0, -1, 1, 2, -2, -1.5, 1.5, 0.5, -0.5]
  boxes = np.stack([low, low + rng.uniform(0.3, 0.8, (9, 3))], 1)
  eye = np.array([-3.0, 0.2, 0.1])
  rays = np.array([1.0, 0, 0]) + rng.uniform(-0.6, 0.6, (150, 3))
  rays[0] = [1.0, 0.0, 0.0]  # parallel to four faces
  distance, box, face = box_rooms.cast_rays(boxes, eye, rays)
  step = 1e-3
  t = np.arange(step, 12.0, step)
  disagree = 0
  for k, ray in enumerate(rays):
    within = inside(boxes, eye + t[:, None] * ray, 0.0)
    steps = np.flatnonzero(within.any(0))
    if not len(steps):
      # A ray may cut an edge between two steps.
      disagree += box[k] >= 0
      continue
    if within[:, steps[0]].argmax() != box[k]:
      disagree += 1
      continue
    assert 0 <= t[steps[0]] - distance[k] <= step
    axis, side = divmod(face[k], 2)
    hit = eye + distance[k] * ray
    assert hit[axis] == pytest.approx(boxes[box[k], side, axis])
    assert (ray[axis] > 0) == (side == 0)  # faces are entered from outside
  assert disagree <= 2
  assert (box >= 0).mean() > 0.2 and (box < 0).mean() > 0.2
  assert np.isinf(distance[box < 0]).all()


@pytest.mark.parametrize("index", ROOMS)
def test_frames_lie_on_the_points(index):
  scene, frames = room(index)
  tree = spatial.cKDTree(scene.coord)
  for frame in frames:
    seen = frame.depth > 0
    np.testing.assert_array_equal(seen, frame.label != IGNORE_LABEL)
    np.testing.assert_array_equal(seen, frame.region != NO_REGION)
    assert seen.mean() > 0.9
    inner = away_from_edges(frame)
    points = back_project(frame)[inner]
    distance, nearest = tree.query(points)
    # 400 points a square metre: within 0.15 m there are 28 on average.
    assert np.quantile(distance, 0.99) < 0.15
    agree = scene.label[nearest] == frame.label[inner]
    assert agree.mean() > 0.95
    # Points of the same region and the pixel share a plane.
    same = scene.superpoint[nearest] == frame.region[inner]
    assert same.mean() > 0.9
    offset = points - scene.coord[nearest]
    normal = scene.normal[nearest]
    off_plane = np.abs((offset * normal).sum(1))
    assert off_plane[same].max() < NOISE
    # What a camera sees faces it.
    to_camera = frame.pose[:3, 3] - points
    assert ((to_camera * normal).sum(1)[same] > 0).all()


@pytest.mark.parametrize("index", ROOMS)
def test_no_point_floats_before_what_is_seen(index):
  scene, frames = room(index)
  for frame in frames:
    in_camera = (scene.coord - frame.pose[:3, 3]) @ frame.pose[:3, :3]
    in_camera = in_camera[in_camera[:, 2] > 0.05]
    fx, fy, cx, cy = frame.intrinsics
    col = np.rint(in_camera[:, 0] / in_camera[:, 2] * fx + cx).astype(int)
    row = np.rint(in_camera[:, 1] / in_camera[:, 2] * fy + cy).astype(int)
    h, w = frame.depth.shape
    seen = (row >= 0) & (row < h) & (col >= 0) & (col < w)
    row, col, z = row[seen], col[seen], in_camera[seen, 2]
    inner = away_from_edges(frame)[row, col]
    # Between pixel centres depth changes by half the range of a 3x3 block.
    slope = ndimage.maximum_filter(frame.depth, 3) - ndimage.minimum_filter(
      frame.depth, 3
    )
    nearest = frame.depth - slope - 2 * NOISE
    assert (z >= nearest[row, col])[inner].all()
    linked = np.abs(z - frame.depth[row, col]) < 0.05
    assert linked.sum() > 500


@pytest.mark.parametrize("index", ROOMS)
def test_cameras_stand_in_the_room_and_upright(index):
  scene, frames = room(index)
  low, high = scene.coord.min(0), scene.coord.max(0)
  eyes = np.array([frame.pose[:3, 3] for frame in frames])
  assert ((eyes > low) & (eyes < high)).all()
  assert not inside(layout(index).boxes, eyes, 0.05).any()
  assert spatial.distance.pdist(eyes).min() > 0.2
  for frame in frames:
    right, down, forward = frame.pose[:3, :3].T
    assert right[2] == pytest.approx(0, abs=1e-12) and down[2] < 0
    middle = frame.pose[:2, 3] - (low + high)[:2] / 2
    assert forward[:2] @ middle < 0  # towards the middle


@pytest.mark.parametrize("index", ROOMS)
def test_points_lie_on_visible_faces(index):
  scene, _ = room(index)
  made = layout(index)
  np.testing.assert_allclose(
    np.linalg.norm(scene.normal, axis=1), 1.0, atol=1e-6
  )
  # One step out of the surface is free, one step in is a box of that class.
  outside = inside(made.boxes, scene.coord + 0.012 * scene.normal, 0.0)
  assert not outside.any()
  within = inside(made.boxes, scene.coord - 0.012 * scene.normal, NOISE)
  classes = made.label[:, None] == scene.label
  assert (within & classes).any(0).all()
  floor = np.median(scene.coord[scene.label == 1, 2])
  assert scene.coord[:, 2].min() > floor - NOISE


def test_points_are_uniform():
  density = 2000.0
  scene, _ = box_rooms.make_room(
    SEED, 0, views=0, points_per_square_metre=density
  )
  # The walls are free of furniture at the top.
  low, high = scene.coord.min(0), scene.coord.max(0)
  for wall in range(1, 5):
    points = scene.coord[scene.superpoint == wall]
    top = points[points[:, 2] > high[2] - 0.25]
    along = np.ptp(points, axis=0)[:2].argmax()
    counts, _ = np.histogram(top[:, along], 4, (low[along], high[along]))
    expected = density * 0.25 * (high - low)[along] / 4
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_touching_faces_are_left_out_on_request():
  kept, _ = box_rooms.make_room(SEED, 1, views=0, occlude=False)
  left, _ = box_rooms.make_room(SEED, 1, views=0)
  assert len(left.coord) < len(kept.coord)
  boxes = layout(1).boxes
  # Either way nothing is sampled behind the walls.
  np.testing.assert_allclose(kept.coord.min(0), left.coord.min(0), atol=0.03)
  np.testing.assert_allclose(kept.coord.max(0), left.coord.max(0), atol=0.03)
  # Between things that touch, points are a few millimetres from two boxes on
  # opposite sides: both ends of a needle through the face are in a box.
  ends = [
    inside(boxes, s.coord + 0.012 * s.normal, 0.0).any(0) for s in (kept, left)
  ]
  assert ends[0].sum() > 20 and ends[1].sum() == 0


@pytest.mark.parametrize("index", ROOMS)
def test_superpoints_are_planes_of_one_class(index):
  scene, _ = room(index)
  structure = scene.label <= 1
  for region in np.unique(scene.superpoint):
    own = scene.superpoint == region
    assert len(np.unique(scene.label[own])) == 1
    assert len(np.unique(scene.normal[own], axis=0)) == 1
    normal = scene.normal[own][0]
    assert np.ptp(scene.coord[own] @ normal) < 2 * NOISE
  # The floor is one region and each wall one.
  assert set(scene.superpoint[scene.label == 1]) == {0}
  assert set(scene.superpoint[scene.label == 0]) == {1, 2, 3, 4}
  assert scene.superpoint[~structure].min() > 4


def test_beds_stand_with_their_head_at_a_wall():
  beds = 0
  for seed in range(40):
    made = box_rooms.make_layout(np.random.default_rng(seed))
    boxes = made.boxes[made.label == box_rooms.CLASSES.index("bed")]
    if len(boxes):
      beds += 1
      head = boxes[boxes[:, 1, 2].argmax()]
      gaps = np.abs(
        [
          head[0, 0] - made.boxes[1, 1, 0],
          head[1, 0] - made.boxes[2, 0, 0],
          head[0, 1] - made.boxes[3, 1, 1],
          head[1, 1] - made.boxes[4, 0, 1],
        ]
      )
      assert gaps.min() < 1e-9
  assert beds > 10


def test_tags_carry_information():
  tags = np.array(
    [
      box_rooms.make_room(1, k, views=0, points_per_square_metre=60.0)[0].tags
      for k in range(60)
    ]
  )
  assert tags[:, :2].all()
  assert tags[:, 2:].any(1).all()
  rate = tags[:, 2:].mean(0)
  assert (rate > 0.25).all() and (rate < 0.75).all()
  scene, _ = room(0)
  np.testing.assert_array_equal(
    np.flatnonzero(scene.tags), np.unique(scene.label)
  )


def test_colours_tell_classes_in_part():
  scenes = [room(index)[0] for index in ROOMS]
  color = np.concatenate([s.color for s in scenes]).astype(float)
  label = np.concatenate([s.label for s in scenes])
  middle = np.array([color[label == k].mean(0) for k in np.unique(label)])
  nearest = spatial.cKDTree(middle).query(color)[1]
  right = np.unique(label)[nearest] == label
  accuracy = np.mean([right[label == k].mean() for k in np.unique(label)])
  assert 0.25 < accuracy < 0.9  # chance is 1 in 7


def test_size_of_a_room():
  for index in ROOMS:
    coord = room(index)[0].coord
    extent = np.ptp(coord, axis=0)
    assert (extent[:2] > 2.4).all() and (extent[:2] < 4.1).all()
    voxels = len(np.unique(np.floor(coord / 0.1), axis=0))
    assert 1000 < voxels < 5000


def assert_same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), field.name
    else:
      assert x == y, field.name


def test_seed_and_index_decide():
  small = {"image_size": (12, 16), "views": 2}
  scene, frames = box_rooms.make_room(3, 1, **small)
  again, frames_again = box_rooms.make_room(3, 1, **small)
  assert_same(scene, again)
  for frame, frame_again in zip(frames, frames_again, strict=True):
    assert_same(frame, frame_again)
  assert scene.frames == tuple(frame.name for frame in frames) == ("0", "1")
  assert frames[0].color.shape == (12, 16, 3)
  for other in ((3, 2), (4, 1)):
    coord = box_rooms.make_room(*other, **small)[0].coord
    assert coord.shape != scene.coord.shape or (coord != scene.coord).any()


SMALL = {"image_size": (12, 16), "views": 2, "points_per_square_metre": 60.0}


def test_written_rooms_are_read_back(tmp_path):
  dataset = box_rooms.write_rooms(tmp_path, train=2, val=1, seed=7, **SMALL)
  assert dataset == assets.open_dataset(tmp_path)
  assert dataset.classes == box_rooms.CLASSES
  assert dataset.splits["val"] == ("room_00002",)
  for index, name in enumerate(sum(dataset.splits.values(), ())):
    scene, frames = box_rooms.make_room(7, index, **SMALL)
    assert_same(assets.load_scene(dataset, name), scene)
    for frame in frames:
      assert_same(assets.load_frame(dataset, name, frame.name), frame)


def test_interrupted_writing_is_continued(tmp_path, monkeypatch):
  arguments = {"train": 2, "val": 1, "seed": 7, **SMALL}
  box_rooms.write_rooms(tmp_path / "whole", **arguments)
  write_scene, calls = assets.write_scene, []

  def stop_at_second(root, scene, frames, **kwargs):
    calls.append(scene.name)
    if len(calls) == 2:
      raise KeyboardInterrupt
    write_scene(root, scene, frames, **kwargs)

  monkeypatch.setattr(assets, "write_scene", stop_at_second)
  root = tmp_path / "part"
  with pytest.raises(KeyboardInterrupt):
    box_rooms.write_rooms(root, **arguments)
  assert [path.name for path in root.iterdir()] == ["room_00000"]
  # Rooms made with other arguments are not mixed in.
  with pytest.raises(DataError, match="room_00000/scene.json: generator"):
    box_rooms.write_rooms(root, **{**arguments, "seed": 8})
  box_rooms.write_rooms(root, **arguments)
  assert calls == [f"room_{k:05d}" for k in (0, 1, 1, 2)]

  def files(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root): path.read_bytes() for path in files}

  assert files(root) == files(tmp_path / "whole")
  box_rooms.write_rooms(root, **arguments)
  assert len(calls) == 4


@pytest.mark.parametrize(
  "change",
  [{"seed": 8}, {"train": 1}, {"val": 0}, {"views": 1}, {"occlude": False}],
)
def test_other_arguments_are_refused(tmp_path, change):
  arguments = {"train": 0, "val": 1, "seed": 7, **SMALL}
  box_rooms.write_rooms(tmp_path, **arguments)
  before = (tmp_path / "dataset.json").read_bytes()
  with pytest.raises(DataError, match="dataset.json: generator is"):
    box_rooms.write_rooms(tmp_path, **{**arguments, **change})
  assert (tmp_path / "dataset.json").read_bytes() == before
  content = json.loads(before)
  assert content["generator"]["name"] == "box_rooms"
  assert content["generator"]["image_size"] == [12, 16]


def test_removed_rooms_are_made_again(tmp_path):
  arguments = {"train": 1, "val": 1, "seed": 7, **SMALL}
  dataset = box_rooms.write_rooms(tmp_path, **arguments)
  before = assets.load_scene(dataset, "room_00001")
  shutil.rmtree(tmp_path / "room_00001")
  dataset = box_rooms.write_rooms(tmp_path, **arguments)
  assert_same(assets.load_scene(dataset, "room_00001"), before)
