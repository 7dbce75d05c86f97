"""The graph segmentation against its definition in sets and fractions."""

from fractions import Fraction

import numpy as np
import pytest

from wsegpc_jax.regions.graph import graph_segments, grid_cells, neighbor_graph
from wsegpc_jax.types import DataError


def by_definition(n, edges, weights, scale, min_size):
  """Segments as a set of frozensets; the definition, searched, in fractions.

  The internal difference of a segment is the heaviest edge of its minimum
  spanning tree, found anew for each question.
  """
  steps = sorted(range(len(edges)), key=lambda e: weights[e])
  segments = {i: frozenset([i]) for i in range(n)}

  def internal(nodes):
    tree, heaviest = {min(nodes)}, Fraction(0)
    while tree != nodes:
      w, new = min(
        (weights[e], j)
        for e in range(len(edges))
        for i, j in (edges[e], edges[e][::-1])
        if i in tree and j in nodes and j not in tree
      )
      tree.add(new)
      heaviest = max(heaviest, w)
    return heaviest

  def join(a, b):
    for i in a | b:
      segments[i] = a | b

  for e in steps:
    a, b = (segments[i] for i in edges[e])
    if a != b and all(
      weights[e] <= internal(s) + Fraction(scale, len(s)) for s in (a, b)
    ):
      join(a, b)
  for e in steps:
    a, b = (segments[i] for i in edges[e])
    if a != b and min(len(a), len(b)) < min_size:
      join(a, b)
  return set(segments.values())


def as_sets(segment):
  return {
    frozenset(np.flatnonzero(segment == k).tolist()) for k in np.unique(segment)
  }


def random_graph(rng, n, num_edges, distinct=True):
  edge = rng.integers(0, n, (2, num_edges))
  if distinct:
    return edge, rng.permutation(4 * num_edges)[:num_edges]
  return edge, rng.integers(0, 6, num_edges)


@pytest.mark.parametrize("seed", range(60))
def test_definition(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(1, 14))
  # Whole weights: either a limit is met exactly or rounding does not matter.
  edge, weight = random_graph(rng, n, int(rng.integers(0, 30)), seed % 2 == 0)
  scale, min_size = int(rng.integers(0, 60)), int(rng.integers(0, 5))
  dtype = (np.float64, np.float32, np.int64)[seed % 3]
  segment = graph_segments(
    n, edge, weight.astype(dtype), scale=scale, min_size=min_size
  )
  expected = by_definition(
    n, edge.T.tolist(), [Fraction(int(w)) for w in weight], scale, min_size
  )
  assert as_sets(segment) == expected


def in_one_loop(n, edge, weight, scale, min_size):
  """The same without any sorting out on the way."""
  members = [[i] for i in range(n)]
  own, limit = list(range(n)), [scale] * n

  def join(a, b, w):
    for i in members[b]:
      own[i] = a
    members[a] += members[b]
    limit[a] = w + scale / len(members[a])

  steps = sorted(range(len(weight)), key=lambda e: weight[e])
  for e in steps:
    a, b = own[edge[0, e]], own[edge[1, e]]
    if a != b and weight[e] <= min(limit[a], limit[b]):
      join(a, b, weight[e])
  for e in steps:
    a, b = own[edge[0, e]], own[edge[1, e]]
    if a != b and min(len(members[a]), len(members[b])) < min_size:
      join(a, b, weight[e])
  return np.array(own)


@pytest.mark.parametrize("seed", range(6))
def test_edges_sorted_out_on_the_way_are_not_missed(seed):
  """With 20,000 edges the loop is left and entered several times."""
  rng = np.random.default_rng(seed)
  n = 3000
  near = np.arange(n)[:, None] + rng.integers(1, 40, (n, 7))
  edge = np.stack([np.repeat(np.arange(n), 7), near.ravel() % n])
  step = np.repeat(rng.integers(0, 2, n // 50), 50)
  weight = rng.random(7 * n) + np.abs(step[edge[0]] - step[edge[1]])
  if seed % 2:
    weight = np.round(weight, 1)
  scale, min_size = 10.0 ** rng.uniform(-1, 1.5), int(rng.integers(1, 60))
  found = graph_segments(n, edge, weight, scale=scale, min_size=min_size)
  expected = in_one_loop(n, edge, weight.tolist(), scale, min_size)
  pairs = np.unique(np.stack([found, expected]), axis=1)
  assert pairs.shape[1] == found.max() + 1 == len(np.unique(expected))


def test_by_hand():
  """A chain 0 - 1 - 2 - 3 - 4 - 5 with weights 1, 2, 9, 1, 4; scale 4.

  0 and 1 join over 1: limit 1 + 4/2 = 3. So do 3 and 4. 2 joins {0, 1} over 2:
  limit 2 + 4/3. 5 does not join {3, 4} over 4 > 3, nor {0, 1, 2} {3, 4} over 9.
  """
  edge = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
  weight = np.array([1, 2, 9, 1, 4])

  def segments(**options):
    return graph_segments(6, edge, weight, **options).tolist()

  assert segments(scale=4, min_size=1) == [0, 0, 0, 1, 1, 2]
  # 5 joins {3, 4} over the lightest edge that leads away from it.
  assert segments(scale=4, min_size=2) == [0, 0, 0, 1, 1, 1]
  assert segments(scale=4, min_size=4) == [0, 0, 0, 0, 0, 0]
  # A limit that is just met is enough: 4 <= 1 + 6/2.
  assert segments(scale=6, min_size=1) == [0, 0, 0, 1, 1, 1]


def test_numbers_follow_the_first_nodes():
  edge = np.array([[4, 1], [0, 3]])
  segment = graph_segments(5, edge, np.zeros(2), scale=1, min_size=1)
  assert segment.tolist() == [0, 1, 2, 1, 0] and segment.dtype == np.int32


def test_names_of_nodes_do_not_matter():
  rng = np.random.default_rng(1)
  edge, weight = random_graph(rng, 200, 900)
  name = rng.permutation(200)
  segment = graph_segments(200, edge, weight, scale=300, min_size=3)
  renamed = graph_segments(200, name[edge], weight, scale=300, min_size=3)
  assert 1 < segment.max() < 199
  pairs = np.unique(np.stack([segment, renamed[name]]), axis=1)
  assert pairs.shape[1] == segment.max() + 1 == renamed.max() + 1


def test_doubled_and_turned_edges_and_loops_change_nothing():
  rng = np.random.default_rng(2)
  edge, weight = random_graph(rng, 200, 900)
  loops = np.tile(np.arange(200), (2, 1))
  more = np.concatenate([edge, edge[::-1], loops], axis=1)
  weights = np.concatenate([weight, weight, np.zeros(200)])
  options = {"scale": 300, "min_size": 3}
  assert np.array_equal(
    graph_segments(200, edge, weight, **options),
    graph_segments(200, more, weights, **options),
  )


@pytest.mark.parametrize("loops", [998, 999, 1000, 1001, 5000])
def test_limit_just_met_after_many_edges(loops):
  edge = np.append(np.zeros((2, loops), int), [[0, 1], [1, 2]], axis=1)
  weight = np.append(np.zeros(loops), [1.0, 1.5])
  segment = graph_segments(3, edge, weight, scale=1, min_size=1)
  assert segment.tolist() == [0, 0, 1]
  segment = graph_segments(3, edge, weight - 0.5, scale=1, min_size=1)
  assert segment.tolist() == [0, 0, 0]


def test_limits_are_kept_in_the_precision_of_the_weights():
  """0 and 1 join over w; then 2 over the limit itself, rounded as it is."""
  edge = np.array([[0, 1], [1, 2]])
  rng = np.random.default_rng(3)
  in_double = []
  for w, scale in rng.random((100, 2)).astype(np.float32):
    limit = w + scale / np.float32(2)
    if not w <= limit <= scale:
      continue
    weight = np.array([w, limit])
    assert weight.dtype == np.float32
    options = {"scale": scale, "min_size": 1}
    assert graph_segments(3, edge, weight, **options).max() == 0
    in_double.append(
      graph_segments(3, edge, weight.astype(np.float64), **options).max() == 0
    )
  assert 0 < sum(in_double) < len(in_double)


def test_graph_without_nodes_or_edges():
  none = np.zeros((2, 0), int)
  options = {"scale": 1.0, "min_size": 5}
  assert graph_segments(0, none, np.zeros(0), **options).shape == (0,)
  assert graph_segments(3, none, np.zeros(0), **options).tolist() == [0, 1, 2]


def test_faults_are_named():
  edge = np.array([[0, 1], [1, 2]])
  weight = np.ones(2)

  def run(edge=edge, weight=weight):
    graph_segments(3, edge, weight, scale=1, min_size=1)

  with pytest.raises(DataError, match=r"edge.*\[2, E\].*\(1, 2\)"):
    run(edge[:1])
  with pytest.raises(DataError, match="edge.*float64"):
    run(edge * 1.0)
  with pytest.raises(DataError, match="edge.*0..2.*0 to 3"):
    run(np.array([[0, 1], [3, 2]]))
  with pytest.raises(DataError, match="edge.*-1 to 1"):
    run(np.array([[0, -1], [1, 1]]))
  with pytest.raises(DataError, match=r"weight.*\(2,\).*\(3,\)"):
    run(weight=np.ones(3))
  with pytest.raises(DataError, match="weight.*NaN"):
    run(weight=weight * np.nan)


def test_neighbours():
  rng = np.random.default_rng(4)
  coord = rng.random((50, 3))
  edge, length, far = neighbor_graph(coord, 4)
  distance = np.linalg.norm(coord[:, None] - coord, axis=2)
  nearest = distance.argsort(axis=1)[:, 1:5]
  expected = {
    (min(i, j), max(i, j)) for i in range(50) for j in nearest[i].tolist()
  }
  assert edge.T.tolist() == sorted(map(list, expected))
  np.testing.assert_allclose(length, distance[edge[0], edge[1]])
  np.testing.assert_allclose(far, np.sort(distance, axis=1)[:, 4])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_neighbours(n):
  edge, length, far = neighbor_graph(np.arange(3.0 * n).reshape(n, 3), 4)
  assert edge.T.tolist() == [[0, 1]][: max(n - 1, 0)]
  assert len(length) == edge.shape[1] and len(far) == n


def test_points_in_one_place_are_neighbours_once():
  edge, length, _ = neighbor_graph(np.zeros((6, 3)), 3)
  assert (edge[0] < edge[1]).all() and (length == 0).all()
  assert np.unique(edge, axis=1).shape == edge.shape


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_cells(scale):
  """Also where numbering all cubes of the bounding box would overflow."""
  rng = np.random.default_rng(5)
  coord = rng.integers(0, 6, (300, 3)) * 0.5 + 0.1
  coord[7] *= scale
  group = rng.integers(-1, 2, 300)
  first, cell = grid_cells(coord, 1.0, group=group)
  places = np.floor(coord - coord.min(axis=0))
  keys = [(*p, g) for p, g in zip(places.tolist(), group.tolist(), strict=True)]
  assert len(set(keys)) == len(first)
  for i, key in enumerate(keys):
    assert first[cell[i]] == keys.index(key)
  whole, _ = grid_cells(coord, 1.0)
  assert len(whole) == len({k[:3] for k in keys})
