"""Samples against brute force."""

import dataclasses

import numpy as np
import pytest
from spied_samples import (
  CLASSES,
  SETTINGS,
  SIZE,
  VIEWS,
  code,
  decode,
  install_spy,
  rng_of,
  write_rooms,
)

from wsegpc_jax.data import assets, samples
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError

WALL, FLOOR = CLASSES.index("wall"), CLASSES.index("floor")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return write_rooms(tmp_path_factory.mktemp("rooms"))


@pytest.fixture
def spy(monkeypatch):
  return install_spy(monkeypatch)


def leaves(value):
  if dataclasses.is_dataclass(value):
    value = [getattr(value, f.name) for f in dataclasses.fields(value)]
  if isinstance(value, (list, tuple)):
    return [leaf for v in value for leaf in leaves(v)]
  return [value]


def same(a, b):
  pairs = zip(leaves(a), leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def make(dataset, name="first", seed=0, labels=None, others=(), **changes):
  settings = dataclasses.replace(SETTINGS, **changes)
  return samples.training_sample(
    dataset, name, rng_of(seed), settings, labels=labels, others=others
  )


def check_bijection(before, after, number):
  """`after` renumbers the regions of `before` to 0 .. number - 1."""
  np.testing.assert_array_equal(after == NO_REGION, before < 0)
  pairs = set(zip(before[before >= 0], after[before >= 0], strict=True))
  assert len(pairs) == number
  assert {a for _, a in pairs} == set(range(number))


class TestVoxels:
  @pytest.mark.parametrize("view", [0, 1])
  def test_the_first_point_represents_a_voxel(self, dataset, spy, view):
    sample = make(dataset)
    voxels = (sample.student, sample.teacher)[view]
    cells = spy.cells(view)
    first = {}
    for point, cell in enumerate(map(tuple, cells)):
      first.setdefault(cell, point)
    ids = decode(voxels.features)
    assert sorted(ids) == sorted(first.values())
    scene = assets.load_scene(dataset, "first")
    turn = (spy.student, spy.teacher)[view][0]["turn"]
    np.testing.assert_allclose(
      voxels.features[:, 3:], scene.normal[ids] @ turn.T, atol=1e-6
    )
    np.testing.assert_array_equal(spy.colors[0], scene.color)
    # Coordinates are those of the cells, from a multiple of 16 on.
    offset = cells[ids] - voxels.coords
    assert (offset == offset[0]).all() and not (offset % 16).any()
    for level, count in enumerate(voxels.level_counts):
      assert count == len({tuple(c) for c in voxels.coords >> level})

  def test_teacher_row_holds_the_point_of_the_student_voxel(self, dataset, spy):
    sample = make(dataset)
    cells = spy.cells(1)
    represented = decode(sample.teacher.features)[sample.teacher_row]
    points = decode(sample.student.features)
    np.testing.assert_array_equal(cells[represented], cells[points])

  def test_both_views_start_from_the_scan(self, dataset, spy):
    make(dataset, max_rotation=0.25)
    teacher, student = spy.teacher[0], spy.student[0]
    np.testing.assert_array_equal(student["coord"], teacher["coord"])
    assert student["max_rotation"] == 0.25

  def test_colours_are_those_of_the_views(self, dataset, monkeypatch):
    """Auto-contrast, noise and shifts off: V of HSV is that of the point."""
    augment, points = samples.augment, {}
    for name in ("color_translation", "color_jitter"):
      monkeypatch.setattr(augment, name, lambda color, rng: color)
    monkeypatch.setattr(augment, "AUTO_CONTRAST", 0.0)
    view_colors = augment.view_colors

    def noted(color, rng, **shown):
      points.update(shown)
      return view_colors(color, rng, **shown)

    monkeypatch.setattr(augment, "view_colors", noted)
    sample = make(dataset)
    scene = assets.load_scene(dataset, "first")
    for name in ("student", "teacher"):
      value = (getattr(sample, name).features[:, :3].max(1) + 1) * 127.5
      expected = scene.color[points[name]].max(1)
      np.testing.assert_allclose(value, expected, atol=0.01)

  def test_grids_are_shifted_by_0_to_99_along_every_axis(self, dataset, spy):
    for seed in range(12):
      make(dataset, seed=seed, num_views=0)
    shifts = np.array([shift for *_, shift in spy.voxelized])
    assert shifts.shape == (24, 3)
    assert shifts.min() >= 0 and shifts.max() <= 99
    assert shifts.max() > 80 and shifts.min() < 20
    # No two alike: neither views, nor axes, nor samples.
    assert len({tuple(s) for s in shifts}) == 24
    assert all(len(set(axis)) > 12 for axis in shifts.T)

  def test_labels_and_superpoints(self, dataset, spy):
    sample = make(dataset)
    scene = assets.load_scene(dataset, "first")
    point = spy.original(dataset, "first")[decode(sample.student.features), 1]
    np.testing.assert_array_equal(sample.label, scene.label[point])
    check_bijection(
      scene.superpoint[point], sample.superpoint, sample.num_superpoints
    )
    assert (sample.superpoint == NO_REGION).any()

  def test_given_labels_are_used(self, dataset, spy):
    def labels(scene):
      assert scene.name == "first"
      return np.arange(len(scene.coord), dtype=np.uint8) % 3

    sample = make(dataset, labels=labels, drop_probability=1.0)
    point = spy.original(dataset, "first")[decode(sample.student.features), 1]
    np.testing.assert_array_equal(sample.label, point % 256 % 3)
    assert sample.label.dtype == np.int32

  def test_a_scene_without_labels_and_regions(self, dataset):
    sample = make(dataset, "bare", drop_probability=1.0)
    assert (sample.label == IGNORE_LABEL).all()
    assert (sample.superpoint == NO_REGION).all()
    assert (sample.images.region == NO_REGION).all()
    assert sample.num_superpoints == sample.images.num_regions == 0

  def test_without_teacher_and_images(self, dataset):
    sample = make(dataset, "blind", teacher=False, num_views=0)
    assert sample.teacher is sample.teacher_row is None
    assert sample.images is sample.pairs is None

  def test_images_are_needed(self, dataset):
    with pytest.raises(DataError, match="blind.*no frames"):
      make(dataset, "blind")


class TestRemovals:
  def test_dropped_structures(self, dataset, spy):
    """Floor and walls go from the voxels and their tags, not from images."""
    sample = make(dataset, drop_probability=1.0)
    scene = assets.load_scene(dataset, "first")
    left = spy.original(dataset, "first")[:, 1]
    # In these rooms the floor is superpoint 0, the walls are 1 to 4.
    gone = np.setdiff1d(np.arange(len(scene.coord)), left)
    assert set(scene.superpoint[gone]) == {0, 1, 2, 3, 4}
    assert not np.isin(scene.superpoint[left], [0, 1, 2, 3, 4]).any()
    expected = scene.tags.copy()
    expected[[WALL, FLOOR]] = False
    np.testing.assert_array_equal(sample.tags, expected)
    np.testing.assert_array_equal(sample.images.tags, scene.tags)
    assert scene.tags[[WALL, FLOOR]].all() and expected.any()

  @pytest.mark.parametrize("compat", [False, True])
  def test_crop(self, dataset, spy, compat):
    """A neighbourhood stays; only the reference's fault looks at its tags."""
    sample = make(dataset, max_voxels=60, compat=compat)
    scene = assets.load_scene(dataset, "first")
    for view in (sample.student, sample.teacher):
      assert 1 < len(view.coords) <= 60
    place = {c.tobytes(): i for i, c in enumerate(spy.student[0]["moved"])}
    assert len(spy.voxelized) == 4  # the whole scene, and what is left
    rows = np.array([place[c.tobytes()] for c in spy.voxelized[2][0]])
    assert 60 < len(rows) < len(scene.coord) / 4
    assert (np.diff(rows) > 0).all()
    # The first point still represents its voxel, in both views.
    for view, voxels in enumerate((sample.student, sample.teacher)):
      first = {}
      for point, cell in enumerate(map(tuple, spy.cells(view))):
        first.setdefault(cell, point)
      assert sorted(decode(voxels.features)) == sorted(first.values())
      ids = rows[decode(voxels.features)]
      turn = (spy.student, spy.teacher)[view][0]["turn"]
      np.testing.assert_allclose(
        voxels.features[:, 3:], scene.normal[ids] @ turn.T, atol=1e-6
      )
    np.testing.assert_array_equal(spy.colors[0], scene.color[rows])
    ids = rows[decode(sample.student.features)]
    check_bijection(
      scene.superpoint[ids], sample.superpoint, sample.num_superpoints
    )
    left = scene.coord[spy.original(dataset, "first")[rows, 1]]
    assert np.ptp(left, axis=0).max() < 0.7 * np.ptp(scene.coord, axis=0).max()
    label = scene.label[spy.original(dataset, "first")[rows, 1]]
    present = np.isin(np.arange(len(CLASSES)), label)
    assert present.sum() < scene.tags.sum()
    expected = present if compat else scene.tags
    np.testing.assert_array_equal(sample.tags, expected)
    np.testing.assert_array_equal(sample.images.tags, scene.tags)

  def test_no_crop_by_default(self, dataset, spy):
    make(dataset)
    scene = assets.load_scene(dataset, "first")
    assert len(spy.voxelized[0][0]) == len(scene.coord)

  @pytest.mark.parametrize("teacher", [False, True])
  def test_compat_leaves_z_unshifted_in_stage_3(self, dataset, spy, teacher):
    for seed in range(3):
      make(dataset, seed=seed, teacher=teacher, num_views=0, compat=True)
    shifts = np.array([shift for *_, shift in spy.voxelized])
    assert shifts[:, :2].any()
    assert shifts[:, 2].any() == teacher


class TestImages:
  def test_regions_are_unique_over_views(self, dataset, spy):
    sample = make(dataset, num_views=3)
    frames = [assets.load_frame(dataset, "first", n) for n in ("0", "1", "0")]
    # Two frames are cycled through for three views.
    for view, frame in enumerate(frames):
      np.testing.assert_array_equal(sample.images.student[view], frame.color)
    before = np.stack([f.region for f in frames])
    own = np.where(before < 0, -1, before + 1000 * np.arange(3)[:, None, None])
    check_bijection(own, sample.images.region, sample.images.num_regions)
    assert (before < 0).any()

  def test_colours_are_jittered_half_as_much_for_the_teacher(
    self, dataset, spy
  ):
    make(dataset)
    strong, weak = (0.3, 0.3, 0.3, 0.1), (0.15, 0.15, 0.15, 0.05)
    assert sorted(spy.jitters) == sorted([strong, weak] * VIEWS)

  def test_student_and_teacher_see_other_colours(self, dataset):
    images = make(dataset).images
    frame = assets.load_frame(dataset, "first", "0")
    assert images.student.dtype == images.teacher.dtype == np.uint8
    seen = [frame.color, images.student[0], images.teacher[0]]
    for i in range(3):
      difference = seen[i].astype(int) - seen[i - 1]
      assert 0 < np.abs(difference).mean() < 100


def links_by_loop(scene, frames, points, tolerance):
  """{(view, index): (row, col)} of the points that a frame shows."""
  out = {}
  for view, frame in enumerate(frames):
    fx, fy, cx, cy = frame.intrinsics
    camera = np.linalg.inv(frame.pose)
    height, width = frame.depth.shape
    for index, point in enumerate(points):
      x, y, z = camera[:3, :3] @ scene.coord[point] + camera[:3, 3]
      if z <= 0:
        continue
      row, col = y * fy / z + cy, x * fx / z + cx
      pixel = round(row), round(col)
      if 0 <= pixel[0] < height and 0 <= pixel[1] < width:
        depth = frame.depth[pixel]
        if depth > 0 and abs(depth - z) <= tolerance:
          out[view, index] = (row, col)
  return out


class TestPairs:
  @pytest.mark.parametrize(("tolerance", "number"), [(0.1, 100), (None, 4000)])
  def test_pairs_are_links(self, dataset, spy, tolerance, number):
    sample = make(dataset, link_tolerance=tolerance, num_pairs=number)
    voxel, view, position = sample.pairs
    scene = assets.load_scene(dataset, "first")
    frames = [assets.load_frame(dataset, "first", n) for n in ("0", "1")]
    points = spy.original(dataset, "first")[decode(sample.student.features), 1]
    # Without a tolerance of its own it is the voxel size.
    links = links_by_loop(scene, frames, points, tolerance or SIZE)
    linked = np.bincount([v for v, _ in links], minlength=VIEWS)
    assert linked.min() > 64
    assert len(voxel) == min(number, np.minimum(linked, 512).sum())
    drawn = list(zip(view.tolist(), voxel.tolist(), strict=True))
    assert len(set(drawn)) == len(drawn)
    for pair, (row, col) in zip(drawn, position, strict=True):
      expected = links[pair]
      assert abs(row - expected[0]) <= 0.5 and abs(col - expected[1]) <= 0.5


class TestMix:
  @pytest.mark.parametrize("drop", [0.0, 1.0])
  def test_two_scenes_in_one_sample(self, dataset, spy, drop):
    names = "first", "second"
    sample = make(
      dataset,
      mix3d=1.0,
      others=("second",),
      num_views=4,
      num_pairs=4000,
      drop_probability=drop,
    )
    scenes = [assets.load_scene(dataset, name) for name in names]
    original = spy.original(dataset, *names)
    number, point = original[decode(sample.student.features)].T
    assert set(number) == {0, 1}
    # Colours and normals are those of a voxel's own scene.
    assert (len(original) < sum(len(s.coord) for s in scenes)) == bool(drop)
    for s, (found, scene) in enumerate(zip(spy.colors, scenes, strict=True)):
      left = original[original[:, 0] == s, 1]
      np.testing.assert_array_equal(found, scene.color[left])
    for view, voxels in enumerate((sample.student, sample.teacher)):
      turns = [v["turn"] for v in (spy.student, spy.teacher)[view]]
      expected = [
        turns[s] @ scenes[s].normal[p]
        for s, p in original[decode(voxels.features)]
      ]
      np.testing.assert_allclose(voxels.features[:, 3:], expected, atol=1e-6)
    # Each has a class that the other one lacks.
    assert (scenes[0].tags > scenes[1].tags).any()
    assert (scenes[1].tags > scenes[0].tags).any()
    tags = scenes[0].tags | scenes[1].tags
    np.testing.assert_array_equal(sample.images.tags, tags)
    if drop:
      tags[[WALL, FLOOR]] = False
    np.testing.assert_array_equal(sample.tags, tags)
    for view, (name, frame) in enumerate(
      [("first", "0"), ("first", "1"), ("second", "0"), ("second", "1")]
    ):
      expected = assets.load_frame(dataset, name, frame)
      np.testing.assert_array_equal(sample.images.student[view], expected.color)
    label = [scenes[s].label[p] for s, p in zip(number, point, strict=True)]
    np.testing.assert_array_equal(sample.label, label)
    before = np.array(
      [scenes[s].superpoint[p] for s, p in zip(number, point, strict=True)]
    )
    before = np.where(before < 0, -1, before + 1000 * number)
    check_bijection(before, sample.superpoint, sample.num_superpoints)
    # Links join a voxel to images of its own scene, and really show it.
    voxel, view, position = sample.pairs
    np.testing.assert_array_equal(number[voxel], view // 2)
    for s in (0, 1):
      frames = [assets.load_frame(dataset, names[s], n) for n in ("0", "1")]
      own = np.flatnonzero(number == s)
      links = links_by_loop(scenes[s], frames, point[own], 0.1)
      place = {int(v): i for i, v in enumerate(own)}
      chosen = view // 2 == s
      assert (
        chosen.sum()
        == np.minimum(
          np.bincount([v for v, _ in links], minlength=2), 512
        ).sum()
      )
      for v, w, p in zip(
        voxel[chosen], view[chosen] - 2 * s, position[chosen], strict=True
      ):
        assert np.abs(p - links[int(w), place[int(v)]]).max() <= 0.5

  def test_the_teacher_sees_the_scenes_apart(self, dataset, spy):
    sample = make(dataset, mix3d=1.0, others=("second",))
    ids = decode(sample.teacher.features)
    first = ids < len(spy.teacher[0]["coord"])
    coords = sample.teacher.coords
    assert first.any() and not first.all()
    assert (coords[first].max(0) <= coords[~first].min(0) + 1).any()
    # The student's overlap.
    ids = decode(sample.student.features)
    first = ids < len(spy.student[0]["coord"])
    coords = sample.student.coords
    assert (coords[first].max(0) > coords[~first].min(0)).all()
    assert (coords[~first].max(0) > coords[first].min(0)).all()

  def test_off_by_default(self, dataset, spy):
    make(dataset, others=("second",))
    assert len(spy.teacher) == 1


def test_high_numbers_of_regions_change_nothing(dataset, monkeypatch):
  expected = make(dataset)
  monkeypatch.setattr(samples, "LARGEST_TABLE", 3)
  assert same(make(dataset), expected)
  assert expected.num_superpoints > 3 and expected.images.num_regions > 3


def test_randomness_comes_from_the_generator(dataset):
  first, again, other = (make(dataset, seed=s) for s in (3, 3, 4))
  assert same(first, again)
  assert not same(first, other)
  assert not np.array_equal(first.student.features, other.student.features)
  assert not np.array_equal(first.images.student, other.images.student)
  assert not same(first.pairs, other.pairs)


class TestEvaluation:
  def test_inverse_map(self, dataset):
    scene = assets.load_scene(dataset, "first")
    scene = dataclasses.replace(
      scene, color=code(np.arange(len(scene.coord))).astype(np.uint8)
    )
    sample = samples.evaluation_sample(scene, (), SETTINGS)
    cells = np.floor(scene.coord.astype(np.float64) / SIZE).astype(int)
    first = {}
    for point, cell in enumerate(map(tuple, cells)):
      first.setdefault(cell, point)
    ids = decode(sample.student.features)
    expected = [first[tuple(cell)] for cell in cells]
    np.testing.assert_array_equal(ids[sample.inverse], expected)
    np.testing.assert_array_equal(sample.label, scene.label[ids])
    np.testing.assert_array_equal(
      sample.student.features[:, 3:], scene.normal[ids]
    )
    assert len(ids) == len(first) < len(cells)
    np.testing.assert_array_equal(sample.tags, scene.tags)
    assert sample.teacher is sample.images is sample.pairs is None

  def test_views(self, dataset):
    scene = assets.load_scene(dataset, "first")
    frames = samples.load_views(dataset, scene, 3, (24, 32), None)
    assert [f.name for f in frames] == ["0", "1", "0"]
    unknown = dataclasses.replace(frames[1], label=None)
    sample = samples.evaluation_sample(scene, (frames[0], unknown), SETTINGS)
    for view, frame in enumerate(frames[:2]):
      np.testing.assert_array_equal(sample.images.student[view], frame.color)
    np.testing.assert_array_equal(sample.images.label[0], frames[0].label)
    assert (sample.images.label[1] == IGNORE_LABEL).all()
    np.testing.assert_array_equal(sample.images.tags, scene.tags)

  def test_no_views(self, dataset):
    scene = assets.load_scene(dataset, "blind")
    assert samples.load_views(dataset, scene, 0, (24, 32), None) == ()
    with pytest.raises(DataError, match="blind.*no frames"):
      samples.load_views(dataset, scene, 1, (24, 32), None)

  def test_unlabelled(self, dataset):
    scene = assets.load_scene(dataset, "bare")
    sample = samples.evaluation_sample(scene, (), SETTINGS)
    assert (sample.label == IGNORE_LABEL).all()
