"""Colours against colorsys, geometry against fitted linear maps."""

import colorsys
import functools

import numpy as np
import pytest

from wsegpc_jax.data import augment

GREY = 128.0  # far enough from both ends that nothing is clipped


def _rng(seed=0):
  return np.random.default_rng(seed)


def _grey(num_points):
  return np.full((num_points, 3), GREY, np.float32)


def _colors(num_points, seed=0):
  return _rng(seed).uniform(0, 255, (num_points, 3)).astype(np.float32)


def _coords(num_points=500, seed=0):
  return _rng(seed).uniform(-4, 4, (num_points, 3)).astype(np.float32)


def _linear_map(before, after):
  """The matrix A with after = before @ A.T, by least squares."""
  solution = np.linalg.lstsq(before.astype(float), after.astype(float))[0]
  return solution.T


def _split(linear):
  """A = scale * turn_z(angle) @ diag(sign_x, sign_y, 1), |angle| < pi / 2."""
  scale = abs(np.linalg.det(linear)) ** (1 / 3)
  signs = np.sign([linear[0, 0], linear[1, 1]])
  angle = np.arctan2(linear[1, 0] * signs[0], linear[0, 0] * signs[0])
  return scale, signs, angle


# Colour.


@pytest.mark.parametrize("unit", [1.0, 255.0])
@pytest.mark.parametrize("turn", [-0.5, -0.21, 0.0, 0.07, 1 / 3, 0.5])
@pytest.mark.parametrize("saturation", [0.0, 0.8, 1.0, 1.2])
def test_shift_hue_matches_colorsys(unit, turn, saturation):
  corners = [(r, g, b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
  ties = [(0.7, 0.7, 0.2), (0.2, 0.7, 0.7), (0.7, 0.2, 0.7), (0.4, 0.4, 0.4)]
  colors = np.array(
    corners + ties + _rng(3).random((60, 3)).tolist(), np.float32
  )
  expected = []
  for red, green, blue in colors.astype(float):
    hue, sat, value = colorsys.rgb_to_hsv(red, green, blue)
    sat = min(max(sat * saturation, 0.0), 1.0)
    expected.append(colorsys.hsv_to_rgb((hue + turn) % 1.0, sat, value))

  planes = (colors * np.float32(unit)).T
  shifted = augment.shift_hue(planes, turn, saturation=saturation)

  np.testing.assert_allclose(shifted.T / unit, expected, atol=2e-6)


def test_auto_contrast_blends_with_the_full_stretch():
  color = np.array([[50, 10, 9], [100, 20, 9], [200, 15, 9]], np.float32)
  stretched = np.array([[0, 0, 9], [85, 255, 9], [255, 127.5, 9]])
  shares = []
  for seed in range(200):
    out = augment.color_auto_contrast(color, _rng(seed), probability=1.0)
    share = (50 - out[0, 0]) / 50
    expected = (1 - share) * color + share * stretched
    np.testing.assert_allclose(out, expected, atol=1e-3)
    shares.append(share)
  assert 0 <= min(shares) < 0.05
  assert 0.95 < max(shares) <= 1
  assert 0.4 < np.mean(shares) < 0.6


def test_auto_contrast_leaves_constant_colours_alone():
  color = np.full((4, 3), 77, np.float32)
  for seed in range(50):
    out = augment.color_auto_contrast(color, _rng(seed), probability=1.0)
    np.testing.assert_array_equal(out, color)


def test_translation_adds_one_bounded_offset_per_channel():
  offsets = []
  for seed in range(400):
    out = augment.color_translation(_grey(5), _rng(seed), probability=1.0)
    np.testing.assert_array_equal(out, np.tile(out[:1], (5, 1)))
    offsets.append(out[0] - GREY)
  offsets = np.array(offsets)
  assert np.abs(offsets).max() <= 25.5 + 1e-4
  assert np.abs(offsets).max() > 25
  # Uniform in +-25.5 and independent between channels.
  np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=3)
  np.testing.assert_allclose(offsets.std(axis=0), 25.5 / 3**0.5, rtol=0.1)
  assert np.abs(np.corrcoef(offsets.T) - np.eye(3)).max() < 0.2


def test_jitter_of_colours_is_gaussian_per_value():
  noise = (
    augment.color_jitter(_grey(20000), _rng(), probability=1.0) - GREY
  ).astype(float)
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.5)
  np.testing.assert_allclose(noise.std(axis=0), 0.05 * 255, rtol=0.03)
  assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05
  # Gaussian: 4.55 % lie beyond two standard deviations.
  assert 0.035 < (np.abs(noise) > 2 * 0.05 * 255).mean() < 0.055


@pytest.mark.parametrize(
  "transform", [augment.color_translation, augment.color_jitter]
)
def test_offsets_are_clipped(transform):
  ends = np.tile(np.array([[0.0], [255.0]], np.float32), (100, 3))
  for seed in range(10):
    out = transform(ends, _rng(seed), probability=1.0)
    assert out.min() >= 0
    assert out.max() <= 255
    assert (out != ends).any()


@pytest.mark.parametrize(
  ("transform", "expected"),
  [
    (augment.color_auto_contrast, 0.2),
    (augment.color_translation, 0.95),
    (augment.color_jitter, 0.95),
    (augment.hue_saturation, 1.0),
  ],
)
def test_colour_transforms_have_their_probability(transform, expected):
  color = _colors(4) * 0.5 + 60
  rng = _rng(1)
  changed = [(transform(color, rng) != color).any() for _ in range(1000)]
  assert abs(np.mean(changed) - expected) < 0.05


def test_hue_saturation_keeps_value_and_bounds_saturation():
  color = np.array([[200, 100, 120]], np.float32)
  ratios, hues = [], []
  for seed in range(400):
    out = augment.hue_saturation(color, _rng(seed)).astype(float)
    hue, sat, value = colorsys.rgb_to_hsv(*out[0])
    np.testing.assert_allclose(value, 200, rtol=1e-6)
    ratios.append(sat / 0.5)
    hues.append(hue)
  assert 0.8 - 1e-5 <= min(ratios) < 0.82
  assert 1.18 < max(ratios) <= 1.2 + 1e-5
  counts = np.histogram(hues, bins=8, range=(0, 1))[0]
  assert counts.min() > 25  # 50 expected: the turn covers the circle


def test_augment_color_is_the_four_in_order():
  color = _colors(50)
  rng = _rng(7)
  expected = augment.color_auto_contrast(color, rng)
  expected = augment.color_translation(expected, rng)
  expected = augment.color_jitter(expected, rng)
  expected = augment.hue_saturation(expected, rng)
  np.testing.assert_array_equal(augment.augment_color(color, _rng(7)), expected)


@pytest.mark.parametrize("level", [0, 255])
def test_augment_color_stays_in_range_from_constant_colours(level):
  color = np.full((30, 3), level, np.uint8)
  for seed in range(50):
    out = augment.augment_color(color, _rng(seed))
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 255


def test_the_range_of_all_points_is_stretched():
  color = _colors(60) * 0.5 + 60
  points = np.array([7, 3, 3, 59])
  whole = augment.color_auto_contrast(color, _rng(), probability=1.0)
  some = augment.color_auto_contrast(
    color, _rng(), probability=1.0, points=points
  )
  np.testing.assert_array_equal(some, whole[points])
  assert (some != color[points]).any()


def test_view_colors_are_those_of_all_points_augmented(monkeypatch):
  """Without noise of single points, for which others do not matter."""
  monkeypatch.setattr(augment, "color_jitter", lambda color, rng: color)
  color = _rng(1).integers(40, 200, (300, 3)).astype(np.uint8)
  student, teacher = _rng(2).integers(0, 300, (2, 50))
  seen = set()
  for seed in range(60):
    found = augment.view_colors(
      color, _rng(seed), student=student, teacher=teacher
    )
    rng = _rng(seed)
    stretched = tuple(rng.random(2) < 0.2)
    first = augment.augment_color(color, rng, auto_contrast=stretched[0])
    second = augment.augment_color(first, rng, auto_contrast=stretched[1])
    np.testing.assert_array_equal(found[0], second[student])
    np.testing.assert_array_equal(found[1], first[teacher])
    assert found[0].dtype == found[1].dtype == np.float32
    seen.add(stretched)
  assert len(seen) == 4


def test_the_student_sees_the_teachers_noise_and_more(monkeypatch):
  for name in ("color_translation", "hue_saturation"):
    monkeypatch.setattr(augment, name, lambda color, rng: color)
  monkeypatch.setattr(augment, "AUTO_CONTRAST", 0.0)
  jitter = functools.partial(augment.color_jitter, probability=1.0)
  monkeypatch.setattr(augment, "color_jitter", jitter)
  points = np.arange(0, 20000, 2)
  student, teacher = augment.view_colors(
    _grey(20000), _rng(), student=points, teacher=points
  )
  first, second = teacher - GREY, student - teacher
  for noise in (first, second):
    np.testing.assert_allclose(noise.std(), 0.05 * 255, rtol=0.02)
  assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_no_points_is_no_error():
  empty = np.empty((0, 3), np.float32)
  none = np.zeros(0, np.int64)
  for seed in range(20):
    for view in (augment.student_view, augment.teacher_view):
      assert view(empty, _rng(seed))[0].shape == (0, 3)
    colors = augment.view_colors(empty, _rng(seed), student=none, teacher=none)
    assert [c.shape for c in colors] == [(0, 3), (0, 3)]


# Geometry.


def test_move_is_a_linear_map():
  coord, linear = _coords(50), _rng(3).standard_normal((3, 3))
  moved = augment.move(coord, linear)
  np.testing.assert_allclose(moved, coord @ linear.T, atol=1e-5)
  assert moved.dtype == np.float32 and moved.flags.c_contiguous


def test_flip_mirrors_x_and_y_independently():
  seen = []
  rng = _rng(2)
  for _ in range(400):
    linear = augment.flip(rng)
    signs = np.diag(linear)
    np.testing.assert_array_equal(linear, np.diag(signs))
    assert signs[2] == 1 and (np.abs(signs) == 1).all()
    seen.append(tuple(signs[:2]))
  for case in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
    assert 60 < seen.count(case) < 140  # 100 expected


def test_rotation_is_rigid_about_z_and_uniform_in_its_range():
  limit = np.pi / 3
  angles = []
  rng = _rng(4)
  for _ in range(600):
    linear = augment.rotation_z(rng, max_angle=limit)
    angle = np.arctan2(linear[1, 0], linear[0, 0])
    cosine, sine = np.cos(angle), np.sin(angle)
    expected = [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]
    np.testing.assert_allclose(linear, expected, atol=1e-12)
    angles.append(angle)
  angles = np.array(angles)
  still = np.abs(angles) < 1e-9
  assert 0.42 < still.mean() < 0.58
  assert np.abs(angles).max() <= limit + 1e-6
  moved = angles[~still]
  assert moved.min() < -0.95 * limit
  assert moved.max() > 0.95 * limit
  np.testing.assert_allclose(moved.std(), limit / 3**0.5, rtol=0.1)


def test_jitter_of_points_is_clipped_gaussian():
  coord = np.zeros((40000, 3), np.float32)
  noise = augment.jitter(coord, _rng()).astype(float)
  np.testing.assert_allclose(noise.mean(axis=0), 0, atol=2e-4)
  np.testing.assert_allclose(noise.std(axis=0), 0.005, rtol=0.03)
  assert np.abs(noise).max() <= 0.02 + 1e-8
  wide = augment.jitter(coord, _rng(), sigma=1.0, clip=0.25)
  assert np.abs(wide).max() == 0.25
  assert 0.75 < (np.abs(wide) == 0.25).mean() < 0.85  # 0.803 of a Gaussian


# Views.


def test_teacher_view_is_flips_and_a_small_turn():
  coord = _coords()
  angles, signs = [], []
  for seed in range(300):
    out, turn = augment.teacher_view(coord, _rng(seed))
    np.testing.assert_allclose(_linear_map(coord, out), turn, atol=1e-5)
    np.testing.assert_allclose(coord @ turn.T, out, atol=1e-5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    _, sign, angle = _split(turn)
    angles.append(angle)
    signs.append(tuple(sign))
  assert len(set(signs)) == 4
  assert 0.9 * np.pi / 36 < np.abs(angles).max() <= np.pi / 36 + 1e-6
  assert 0.4 < np.mean(np.abs(angles) < 1e-6) < 0.6


def test_student_view_is_flips_turn_scale_and_jitter():
  coord = _coords()
  angles, scales, signs = [], [], []
  for seed in range(300):
    out, turn = augment.student_view(coord, _rng(seed))
    linear = _linear_map(coord, out)
    residual = out - coord @ linear.T
    assert 0.004 < residual.std() < 0.006
    assert np.abs(residual).max() < 0.022
    scale, sign, angle = _split(linear)
    # The normals see the same turn and mirrors, and no scale.
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn, linear / scale, atol=2e-3)
    angles.append(angle)
    scales.append(scale)
    signs.append(tuple(sign))
  assert len(set(signs)) == 4
  assert 0.9 * np.pi / 6 < np.abs(angles).max() <= np.pi / 6 + 2e-3
  assert 0.799 < min(scales) < 0.82
  assert 1.18 < max(scales) < 1.201
  assert abs(np.mean(scales) - 1) < 0.03


def test_student_view_can_turn_all_the_way():
  angles = []
  for seed in range(400):
    _, turn = augment.student_view(
      np.zeros((1, 3), np.float32), _rng(seed), max_rotation=np.pi
    )
    angles.append(np.arctan2(turn[1, 0], turn[0, 0]))
  counts = np.histogram(angles, bins=8, range=(-np.pi, np.pi))[0]
  assert counts.min() > 10


@pytest.mark.parametrize("name", ["teacher_view", "student_view"])
def test_planes_keep_their_normals(name):
  rng = _rng(9)
  view = getattr(augment, name)
  for seed in range(30):
    frame = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    in_plane = rng.uniform(-3, 3, (200, 2))
    coord = (in_plane @ frame[:2] + rng.uniform(-2, 2, 3)).astype(np.float32)
    out, turn = view(coord, _rng(seed))
    normal = augment.move(frame[2:], turn)
    height = ((out - out.mean(axis=0)) * normal).sum(axis=1)
    # Jitter moves a point by 0.02 along each axis at most.
    limit = 1e-5 if name == "teacher_view" else 0.02 * 3**0.5 + 2e-3
    assert np.abs(height).max() < limit


@pytest.mark.parametrize("name", ["teacher_view", "student_view"])
def test_views_are_pure(name):
  view = getattr(augment, name)
  coord = _coords(30)
  before = coord.copy()
  for seed in range(20):
    (first, turn), (second, same) = (view(coord, _rng(seed)) for _ in range(2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(turn, same)
    assert not np.shares_memory(first, coord)
  np.testing.assert_array_equal(coord, before)
  assert (view(coord, _rng(100))[0] != first).any()


@pytest.mark.parametrize(
  "transform",
  [
    augment.color_auto_contrast,
    augment.color_translation,
    augment.color_jitter,
    augment.hue_saturation,
    augment.augment_color,
    augment.jitter,
  ],
)
def test_single_transforms_return_new_arrays(transform):
  given = _colors(10)
  before = given.copy()
  for seed in range(30):  # changed or not
    assert not np.shares_memory(transform(given, _rng(seed)), given)
  np.testing.assert_array_equal(given, before)
