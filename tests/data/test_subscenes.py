"""Parts of a capture and what their tags rest on, on hand-made points."""

import numpy as np
import pytest

from wsegpc_jax.data import subscenes
from wsegpc_jax.data.subscenes import Box
from wsegpc_jax.types import IGNORE_LABEL


def _floor(width=6.0, depth=3.0, spacing=0.05):
  x, y = np.meshgrid(
    np.arange(0, width, spacing) + spacing / 2,
    np.arange(0, depth, spacing) + spacing / 2,
    indexing="ij",
  )
  return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], 1)


@pytest.mark.parametrize(
  "size, expected",
  [
    (3.0, {"00", "10"}),
    (1.9, {"00", "01", "10", "11", "20", "21"}),
    (100.0, {"00"}),
  ],
)
def test_parts_hold_every_point_once(size, expected):
  coord = _floor()
  parts = subscenes.grid_parts(coord, size)
  assert set(parts) == expected
  np.testing.assert_array_equal(sum(p.astype(int) for p in parts.values()), 1)
  for name, inside in parts.items():
    assert len(set(np.count_nonzero(p) for p in parts.values())) == 1
    low = coord[inside, :2].min(0)
    cell = (6.0, 3.0) / np.maximum(1, np.round(np.array([6.0, 3.0]) / size))
    np.testing.assert_allclose(
      low, cell * [int(name[0]), int(name[1])], atol=0.03
    )


def test_an_almost_empty_cell_is_no_part():
  coord = np.concatenate([_floor(3.0, 3.0), [[5.9, 1.0, 0.0]]])
  assert set(subscenes.grid_parts(coord, 3.0)) == {"00"}


def test_a_line_of_points_can_be_cut():
  coord = np.zeros((4000, 3))
  coord[:, 0] = np.linspace(0, 8, 4000)
  parts = subscenes.grid_parts(coord, 4.0)
  assert {k: int(v.sum()) for k, v in parts.items()} == {"00": 2000, "10": 2000}


def test_tags_from_labels_need_some_points():
  label = np.repeat([0, 1, 3, IGNORE_LABEL], [100, 29, 30, 500])
  assert subscenes.tags_from_labels(label, 4).tolist() == [
    True,
    False,
    False,
    True,
  ]


def test_a_box_tags_the_parts_that_hold_enough_of_it():
  # 0.5 m x 2 m at 0.05 m: 400 points; the border at x = 3 cuts off a tenth.
  coord = _floor()
  box = Box(2, np.array([2.8, 1.0, 0.0]), np.array([0.46, 1.96, 0.5]))
  left = coord[:, 0] < 3
  number = [np.count_nonzero(box.contains(coord) & p) for p in (left, ~left)]
  assert number == [360, 40]  # 40 are a tenth: less than a fifth
  wall = (0, coord[:, 1] > 2.9)  # 60 columns of 2 rows in each half
  floor = (1, np.ones(len(coord), bool))
  few = (3, np.arange(len(coord)) < 99)

  def tags(inside, *planes):
    return subscenes.tags_from_boxes(coord, inside, [box], planes, 4).tolist()

  assert tags(left, wall, floor, few) == [True, True, True, False]
  assert tags(~left, wall, floor) == [True, True, False, False]
  # A large object counts even where only a small share of it is.
  large = Box(2, np.array([1.6, 1.5, 0.0]), np.array([3.16, 2.96, 0.5]))
  inside = coord[:, 0] > 2.8
  share = np.count_nonzero(large.contains(coord) & inside)
  assert 200 <= share < 0.2 * np.count_nonzero(large.contains(coord))
  assert subscenes.tags_from_boxes(coord, inside, [large], [], 4)[2]


def test_frames_that_show_mostly_the_part():
  inside = np.arange(10) < 5
  seen = np.zeros((5, 10), bool)
  seen[0, :6] = True  # 5 of 6
  seen[1, 4:] = True  # 1 of 6
  seen[2, 3:7] = True  # 2 of 4: half
  seen[3, :2] = True  # all
  # Frame 4 sees nothing at all.
  frames = subscenes.frames_of_part(seen, inside)
  assert frames.tolist() == [0, 2, 3]
  # Never fewer than three, if there are as many: the largest shares.
  assert subscenes.frames_of_part(seen, ~inside).tolist() == [0, 1, 2]
  assert subscenes.frames_of_part(seen[:1], ~inside).tolist() == [0]
