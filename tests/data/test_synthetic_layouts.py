"""Objects of synthetic rooms are solid, and stand where they may."""

import functools

import numpy as np
import pytest
from scipy import spatial
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wsegpc_jax.data.synthetic import materials, render
from wsegpc_jax.data.synthetic.layout import make_layout
from wsegpc_jax.data.synthetic.objects import CLASSES, SHAPES, build
from wsegpc_jax.data.synthetic.openings import DEPTH

NAMES = tuple(SHAPES)


@functools.cache
def layouts():
  return [make_layout(np.random.default_rng([9, i])) for i in range(50)]


def check_solid(mesh):
  """Every part is closed and its triangles look outward."""
  edges = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
  ways = set(map(tuple, edges.tolist()))
  assert len(ways) == len(edges)
  assert all((b, a) in ways for a, b in ways)
  shape = 2 * (len(mesh.vertices),)
  graph = coo_array((np.ones(len(edges)), tuple(edges.T)), shape=shape)
  n, part = connected_components(graph)
  a, b, c = np.moveaxis(mesh.vertices[mesh.triangles], 1, 0)
  # Six times the volume, as seen from the origin (divergence theorem).
  volume = np.einsum("td,td->t", a, np.cross(b, c))
  volume = np.bincount(part[mesh.triangles[:, 0]], volume, n)
  assert (volume[np.unique(part[mesh.triangles])] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_solid_and_of_many_sizes(name):
  assert len(SHAPES[name]) >= 3
  kinds = set()
  for shape in SHAPES[name]:
    sizes = []
    for seed in range(4):
      mesh = shape(np.random.default_rng(seed))
      check_solid(mesh)
      assert np.isfinite(mesh.vertices).all()
      assert mesh.material.max() < len(mesh.materials)
      sizes.append(np.ptp(mesh.vertices, axis=0))
      low = mesh.vertices.min(0)
      if name not in ("door", "window", "picture"):
        assert low[2] == pytest.approx(0, abs=0.012)
      # Small things stand on tops, chairs at the sides.
      for x0, y0, x1, y1, z, room in mesh.tops:
        inside = mesh.vertices.max(0) + 1e-9
        assert low[0] <= x0 < x1 <= inside[0]
        assert low[1] <= y0 < y1 <= inside[1] and 0 < z <= inside[2]
        assert room > 0
    kinds.add(mesh.shape)
    assert np.ptp(sizes, axis=0).max() > 0.02
    assert max(s.max() for s in sizes) < 3.2
  assert len(kinds) == len(SHAPES[name])


def test_build_draws_all_shapes_and_repeats_itself():
  for name in NAMES:
    drawn = [build(name, np.random.default_rng(seed)) for seed in range(24)]
    assert len({mesh.shape for mesh in drawn}) == len(SHAPES[name])
    again = build(name, np.random.default_rng(3))
    np.testing.assert_array_equal(again.vertices, drawn[3].vertices)
    assert again.materials == drawn[3].materials
  with pytest.raises(ValueError, match="'wall'.*expected one of door, window"):
    build("wall", np.random.default_rng(0))


def test_classes_occur_in_some_of_the_rooms():
  there = np.array([np.isin(np.arange(15), r.label) for r in layouts()])
  share = dict(zip(CLASSES, there.mean(0), strict=True))
  assert share.pop("wall") == share.pop("floor") == 1.0
  for name, value in share.items():
    most = 0.75 if name in ("door", "window") else 0.65
    assert 0.2 <= value <= most, (name, value)
  # Tags say something of each class: no two go together.
  related = np.corrcoef(there[:, 2:].T) - np.eye(13)
  assert np.abs(related).max() < 0.6


def points_inside(rng, corners, count):
  """Random places in a convex quadrilateral, as mixtures of its corners."""
  return rng.dirichlet(np.ones(4), count) @ corners


def contains(corners, points):
  """Whether places are strictly within a counterclockwise quadrilateral."""
  inside = np.ones(len(points), bool)
  for p, q in zip(corners, np.roll(corners, -1, 0), strict=True):
    way, to = q - p, points - p
    inside &= way[0] * to[:, 1] - way[1] * to[:, 0] > 1e-9
  return inside


def test_things_stand_in_the_room_and_not_in_each_other():
  rng = np.random.default_rng(0)
  shared = looked = 0
  for room in layouts():
    things = [t for t in room.things if t.name not in ("door", "window")]
    low, high = room.plan.corners.min(0), room.plan.corners.max(0)
    base = room.meshes[0].vertices[:, 2].min()
    for k, thing in enumerate(things):
      points = points_inside(rng, thing.corners, 40)
      if thing.name != "picture":
        assert (points > low).all() and (points < high).all()
        if room.plan.cut is not None:
          cut = (points > room.plan.cut[0]) & (points < room.plan.cut[1])
          assert not cut.all(1).any()
      assert thing.low > base - 0.01 and thing.high < base + 2.6
      for other in things[:k]:
        over = min(thing.high, other.high) - max(thing.low, other.low)
        # A chair is drawn up to its table, a lamp stands in a shelf.
        pair = {thing.name, other.name}
        small = pair & {"lamp", "plant", "pillow", "box"}
        if over > 1e-6 and pair != {"table", "chair"} and not small:
          looked += 1
          shared += contains(other.corners, points).any()
  assert looked > 300 and shared == 0


def area(corners):
  """Area of each triangle [T, 3, 3]."""
  sides = corners[:, 1:] - corners[:, :1]
  return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2


def test_walls_have_the_holes_of_their_doors_and_windows():
  for room in layouts():
    walls = [m for m, k in zip(room.meshes, room.label, strict=True) if k == 0]
    found = sum(area(m.vertices[m.triangles]).sum() for m in walls)
    way = np.roll(room.plan.corners, -1, 0) - room.plan.corners
    expected = np.linalg.norm(way, axis=1).sum() * room.plan.height
    for thing in room.things:
      if thing.mesh.hole:
        width, low, high = thing.mesh.hole
        expected -= width * (high - low)
        # Its sides; the floor goes on through a door.
        expected += DEPTH * (2 * (high - low) + width * (1 + (low > 0)))
    assert found == pytest.approx(expected)


def test_closed_doors_and_windows_fill_their_holes():
  rng = np.random.default_rng(0)
  seen = 0
  for room in layouts()[:12]:
    lights = render.Lights(np.zeros((0, 3)), np.zeros(0), 1.0)
    world = render.World(room.meshes, room.label, lights)
    for thing in room.things:
      if not thing.mesh.hole or thing.mesh.shape == "open":
        continue
      # The places of the texture are those from before it was hung.
      x0, y0, z0 = thing.mesh.texture.min(0)
      origin, along, inward = (thing.corners[k] for k in (0, 1, 3))
      along, inward = (
        (w - origin) / np.linalg.norm(w - origin) for w in (along, inward)
      )
      width, low, high = thing.mesh.hole
      x = rng.uniform(-width / 2, width / 2, 50)
      ground = origin + (x - x0)[:, None] * along - (y0 - 0.2) * inward
      z = thing.low - z0 + rng.uniform(low + 0.03, high, 50)
      ray = np.tile([*-inward, 0.0], (50, 1))
      hits = world.cast(np.column_stack([ground, z]), ray)
      assert (hits.distance < 0.2 + DEPTH + 0.01).mean() > 0.97
      seen += 1
  assert seen > 5


def test_colour_does_not_give_the_class_away():
  """The nearest colours of other rooms get most points wrong."""
  rng = np.random.default_rng(0)

  def sample(rooms):
    color, label = [], []
    for room in rooms:
      for mesh, k in zip(room.meshes, room.label, strict=True):
        corners = mesh.vertices[mesh.triangles]
        size = area(corners)
        rows = rng.choice(len(size), 12, p=size / size.sum())
        weight = rng.dirichlet(np.ones(3), 12)[..., None]
        place = (weight * mesh.texture[mesh.triangles[rows]]).sum(1)
        color.append(
          materials.colors_at(mesh.materials, mesh.material[rows], place)
        )
        label += 12 * [k]
    return np.concatenate(color), np.array(label)

  color, label = sample(layouts()[:30])
  new_color, new_label = sample(layouts()[30:45])
  _, nearest = spatial.cKDTree(color).query(new_color, k=15)
  votes = label[nearest]
  found = np.array([np.bincount(v, minlength=15).argmax() for v in votes])
  iou = [
    ((found == k) & (new_label == k)).sum()
    / ((found == k) | (new_label == k)).sum()
    for k in range(15)
  ]
  assert np.mean(iou) < 0.3
  # A class has many colours, and shares them.
  for k in range(15):
    own = color[label == k]
    assert own.std(0).min() > 15, CLASSES[k]


def test_textures_are_repeatable_patterns_between_their_colours():
  rng = np.random.default_rng(0)
  place = rng.uniform(-1, 1, (400, 3))
  index = np.zeros(400, int)
  for kind in materials.KINDS:
    material = materials.Material(
      kind, (200.0, 100.0, 50.0), (100.0, 50.0, 25.0), 0.1, seed=5
    )
    color = materials.colors_at((material,), index, place)
    again = materials.colors_at((material,), index, place)
    np.testing.assert_array_equal(color, again)
    # Mixtures of the two colours, up to an eighth beyond them.
    assert (color[:, 0] <= 213).all() and (color[:, 0] >= 87).all()
    ratio = color / color[:, :1]
    np.testing.assert_allclose(ratio, [[1, 0.5, 0.25]] * 400, atol=1e-9)
    if kind in ("stripes", "checks"):
      assert ((color[:, 0] > 170) | (color[:, 0] < 130)).all()
      assert 0.2 < (color[:, 0] > 150).mean() < 0.8
