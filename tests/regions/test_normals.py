import numpy as np
import pytest

from wsegpc_jax.regions import normals
from wsegpc_jax.regions.normals import estimate_normals
from wsegpc_jax.types import DataError


def sphere(rng, n=3000, radius=2.0, centre=(5.0, -3.0, 1.0)):
  direction = rng.normal(size=(n, 3))
  direction /= np.linalg.norm(direction, axis=1, keepdims=True)
  return direction * radius + centre, direction


def test_sphere_normals_face_the_viewpoint_inside():
  coord, direction = sphere(np.random.default_rng(0))
  normal = estimate_normals(coord, viewpoints=[[5.0, -3.0, 1.5]])
  assert normal.dtype == np.float32
  assert (np.sum(normal * -direction, axis=1) > 0.97).all()


def test_nearest_viewpoint_decides():
  """Two cameras on the two sides of a plane, each over its own half."""
  rng = np.random.default_rng(1)
  coord = np.column_stack([rng.uniform(-2, 2, (4000, 2)), np.zeros(4000)])
  normal = estimate_normals(coord, viewpoints=[[-2, 0, 1], [2, 0, -1.0]])
  expected = np.where(coord[:, 0] < 0, 1.0, -1.0)
  np.testing.assert_allclose(normal[:, 2], expected, atol=1e-6)


def test_room_without_viewpoints():
  """Walls face inside, floor and table up, ceiling down."""
  rng = np.random.default_rng(2)
  u, v = rng.uniform(0, 4, (2, 3000)), rng.uniform(0, 2.5, 3000)
  zero, one = np.zeros(3000), np.ones(3000)
  parts = {
    (0, 0, 1): np.column_stack([*u, zero]),
    (0, 0, 1.0001): np.column_stack(
      [0.2 * u[0] + 1, 0.2 * u[1] + 1, 0.7 * one]
    ),
    (0, 0, -1): np.column_stack([*u, 2.5 * one]),
    (1, 0, 0): np.column_stack([zero, u[0], v]),
    (-1, 0, 0): np.column_stack([4 * one, u[0], v]),
    (0, 1, 0): np.column_stack([u[0], zero, v]),
    (0, -1, 0): np.column_stack([u[0], 4 * one, v]),
  }
  coord = np.concatenate(list(parts.values()))
  expected = np.repeat(np.array(list(parts)), 3000, axis=0)
  agreement = np.sum(estimate_normals(coord) * expected, axis=1)
  # Not near the edges, where the neighbours lie on two surfaces.
  edge = np.sum(
    np.minimum(np.abs(coord), np.abs(coord - (4, 4, 2.5))) < 0.25, axis=1
  )
  assert (agreement[edge == 1] > 0.95).all()
  assert (agreement[edge == 0] > 0.95).all()


def test_is_the_plane_of_the_neighbours():
  """Against a brute-force search and a singular value decomposition."""
  rng = np.random.default_rng(3)
  coord = rng.normal(size=(200, 3)) * (1, 1, 0.2)
  normal = estimate_normals(coord, neighbors=10)
  for i in range(0, 200, 13):
    distance = np.linalg.norm(coord - coord[i], axis=1)
    near = coord[np.argsort(distance)[:10]]
    _, _, v = np.linalg.svd(near - near.mean(axis=0))
    assert abs(v[2] @ normal[i]) > 1 - 1e-5


def test_chunks_do_not_show(monkeypatch):
  coord, _ = sphere(np.random.default_rng(4), n=500)
  whole = estimate_normals(coord)
  monkeypatch.setattr(normals, "_CHUNK", 7)
  assert np.array_equal(estimate_normals(coord), whole)


def test_far_from_the_origin():
  coord, direction = sphere(np.random.default_rng(5), centre=(4e5, 5e6, 100))
  normal = estimate_normals(coord)
  assert (np.abs(np.sum(normal * direction, axis=1)) > 0.97).all()


@pytest.mark.parametrize(
  "coord",
  [
    np.zeros((0, 3)),
    np.ones((1, 3)),
    np.eye(3)[:2],
    np.ones((50, 3)),
    np.linspace(0, 1, 40)[:, None] * (1, 2, 3),
  ],
  ids=["none", "one", "two", "one place", "line"],
)
@pytest.mark.parametrize("viewpoints", [None, np.ones((1, 3)), np.ones((0, 3))])
def test_degenerate_clouds_get_unit_normals(coord, viewpoints):
  normal = estimate_normals(coord, viewpoints=viewpoints)
  assert normal.shape == coord.shape
  np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-6)


def test_faults_are_named():
  with pytest.raises(DataError, match=r"coord.*\(4, 2\)"):
    estimate_normals(np.zeros((4, 2)))
  with pytest.raises(DataError, match="viewpoints.*finite"):
    estimate_normals(np.zeros((4, 3)), viewpoints=np.full((1, 3), -np.inf))
  with pytest.raises(DataError, match="neighbors.*2"):
    estimate_normals(np.zeros((4, 3)), neighbors=2)
