"""Voxel scenes, and what is true of them by brute force.

The oracles are loops over dictionaries of coordinates and share no code with
the engine. Rows that do not exist are -1 here; `none_is` makes them a capacity.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from wsegpc_jax.sparse import hashing
from wsegpc_jax.sparse import plan as plan_lib

# One capacity a level, all different, so that no two can be mixed up.
CAPACITIES = (80, 76, 72, 68, 64)


def compiled(function, **options):
  """`function` under jit; optimising takes longer than these programs run."""
  flags = {"xla_backend_optimization_level": 0}
  return jax.jit(function, compiler_options=flags, **options)


build_plan = compiled(
  plan_lib.build_plan, static_argnums=2, static_argnames="is_sorted"
)
neighbor_table = compiled(
  plan_lib.neighbor_table, static_argnames=("size", "dilation")
)


@compiled
def _find_rows(coords, count, queries):
  return hashing.find_rows(hashing.build_table(coords, count), queries)


def find_rows(coords, count, queries) -> np.ndarray:
  """`hashing.find_rows` in a new table; queries padded to fewer shapes."""
  padded = pad(queries, -(-len(queries) // 256) * 256)
  rows = _find_rows(np.asarray(coords, np.int32), count, padded)
  return np.asarray(rows)[: len(queries)]


def voxels_of(rows) -> np.ndarray:
  return np.array(list(rows), np.int32).reshape(-1, 4)


def random_voxels(seed, number, low=-4, high=4, scenes=(0, 1, 3)):
  """Unique voxels in random order."""
  cells = list(itertools.product(scenes, *[range(low, high)] * 3))
  return voxels_of(np.random.default_rng(seed).permutation(cells)[:number])


def morton(voxel) -> tuple[int, int]:
  """(scene, key): the order of voxels, a bit at a time in exact integers."""
  scene, *xyz = (int(v) for v in voxel)
  key = 0
  for bit in reversed(range(30)):
    for v in xyz:
      key = 2 * key + ((v + 2**29 >> bit) & 1)
  return scene, key


def in_order(voxels) -> np.ndarray:
  return voxels_of(sorted(np.asarray(voxels).tolist(), key=morton))


def _gallery() -> dict[str, np.ndarray]:
  block = list(itertools.product((0,), *[range(-2, 2)] * 3))
  cube = voxels_of(itertools.product((1,), *[(-1, 0)] * 3))
  corners = (0, 0, 0), (7, -6, 3), (-7, -7, -7), (3, 3, 2)
  some = random_voxels(3, 18, scenes=(0,))
  return {
    "empty": voxels_of([]),
    "one voxel": voxels_of([(0, 5, 2, 7)]),
    "one voxel below zero, in scene 2": voxels_of([(2, -1, -3, -8)]),
    "one place in four scenes": voxels_of((s, 3, -2, 1) for s in range(4)),
    "random, scene 2 empty": random_voxels(1, 60),
    "full to capacity": random_voxels(2, 80, -3, 3, scenes=(1, 2)),
    "a block without gaps": voxels_of(block),
    "four equal scenes": np.concatenate(
      [some + (s, 0, 0, 0) for s in range(4)]
    ),
    "clusters": np.concatenate([cube + (0, *corner) for corner in corners]),
  }


# Coordinates -8 .. 7, scenes 0 .. 3: within reach of the dense oracles.
GALLERY = {k: in_order(v).astype(np.int32) for k, v in _gallery().items()}


def _far() -> dict[str, np.ndarray]:
  near = random_voxels(4, 25, scenes=(0, 1))
  shifts = (0, 0, 0), (10**6, -(10**6), 999_999), (-(10**6), 17, 10**6)
  end = 2**29
  edges = itertools.product((0, 7), *[(-end, 1 - end, -1, 0, end - 1)] * 3)
  scales = [
    (0, *(sign * 2**bit * np.eye(3, dtype=int)[axis] + add))
    for bit in range(0, 20, 3)
    for sign in (-1, 1)
    for axis in range(3)
    for add in (0, 1)
  ]
  line = [(scene, x, -x, 0) for scene in (0, 4) for x in range(-18, 18)]
  return {
    "far apart": np.concatenate([near + (0, *shift) for shift in shifts]),
    "at the ends of the range": voxels_of(edges)[::4],
    "at all scales": voxels_of({tuple(map(int, v)) for v in scales})[:64],
    "a diagonal": voxels_of(line),
  }


EVERYWHERE = GALLERY | {k: in_order(v) for k, v in _far().items()}


def pad(voxels, capacity, *, fill=-1) -> np.ndarray:
  """[capacity, 4]: the voxels, then rows of padding."""
  padding = ((0, capacity - len(voxels)), (0, 0))
  voxels = np.asarray(voxels, np.int32)
  return np.pad(voxels, padding, constant_values=fill)


def plan_of(voxels, capacities=CAPACITIES, *, is_sorted=True):
  """The plan of some voxels, whose levels must not be too small."""
  coords = pad(voxels, capacities[0])
  plan = build_plan(coords, len(voxels), capacities, is_sorted=is_sorted)
  for i, capacity in enumerate(capacities):
    assert len({(s, *(v >> i for v in p)) for s, *p in voxels}) <= capacity
  return plan


@functools.cache
def gallery_plan(name: str):
  return plan_of(GALLERY[name])


def neighbors(voxels, size: int, dilation: int = 1) -> np.ndarray:
  """[n, size^3]: row of the voxel at each tap's offset; -1 for none."""
  voxels = np.asarray(voxels).tolist()
  row = {tuple(voxel): i for i, voxel in enumerate(voxels)}
  table = np.full((len(voxels), size**3), -1)
  r = size // 2
  for i, (scene, x, y, z) in enumerate(voxels):
    for dx, dy, dz in itertools.product(range(-r, r + 1), repeat=3):
      k = (dx + r) + size * (dy + r) + size**2 * (dz + r)
      dx, dy, dz = dilation * dx, dilation * dy, dilation * dz
      table[i, k] = row.get((scene, x + dx, y + dy, z + dz), -1)
  return table


def children(fine, coarse) -> np.ndarray:
  """[p, 8]: row of fine voxel 2 * coarse + t at tap tx + 2 ty + 4 tz."""
  row = {tuple(voxel): i for i, voxel in enumerate(np.asarray(fine).tolist())}
  table = np.full((len(coarse), 8), -1)
  for i, (scene, x, y, z) in enumerate(np.asarray(coarse).tolist()):
    for tx, ty, tz in itertools.product((0, 1), repeat=3):
      fine_voxel = (scene, 2 * x + tx, 2 * y + ty, 2 * z + tz)
      table[i, tx + 2 * ty + 4 * tz] = row.get(fine_voxel, -1)
  return table


def none_is(table, capacity: int, rows: int) -> np.ndarray:
  """The table as a plan has it: -1 becomes `capacity`, in `rows` rows."""
  table = np.where(table < 0, capacity, table)
  widths = ((0, rows - len(table)),) + ((0, 0),) * (table.ndim - 1)
  return np.pad(table, widths, constant_values=capacity)


def level_voxels(level) -> np.ndarray:
  """Coordinates of the valid rows of a level."""
  return np.asarray(level.coords)[: int(level.count)]


def features(seed, *shape, dtype=np.float64):
  """Normally distributed numbers."""
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)
