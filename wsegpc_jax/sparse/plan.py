"""The plan of a voxel pyramid: who neighbours whom, built once, then shared.

Conventions (MinkowskiEngine's, so that its weights import unchanged):

    odd kernel K, r = K // 2:   out[p] += in[p + d] W[k],
        k = (dx + r) + K (dy + r) + K^2 (dz + r), d in -r .. r
    kernel 2, stride 2:         fine = 2 coarse + t,
        k = tx + 2 ty + 4 tz, t in {0, 1}

Row indices equal to a level's capacity mean "none": layers read zero there.

A level's 27-neighbour table follows from that of the next coarser level: the
neighbour of a fine voxel is a child of its parent or of one of the parent's
26 neighbours. So only the coarsest level, a few hundred voxels, is searched
(by an exact hash table), and the 5^3 stem reads its 125 taps through the same
two tables, tile by tile, without storing them.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from wsegpc_jax.kernels import gather_conv
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles, row_tiles
from wsegpc_jax.kernels.strided_conv.tables import octant_table
from wsegpc_jax.sparse import checks, hashing, morton
from wsegpc_jax.sparse import pairs as pairs_lib

# Levels with fewer rows have no pairs: one dense tile is as fast there, and it
# compiles sooner.
MIN_ROWS_OF_PAIRS = 4096


@flax.struct.dataclass
class LevelTiles:
  """What the GPU kernels visit of a level's tables; built once for all layers.

  Attributes:
    neighbors, children: tiles of these tables of the level.
    octants: tiles of the rows by parent and octant, for the transposed
      convolution. This and `children` are None at the last level.
  """

  neighbors: RowTiles
  children: RowTiles | None = None
  octants: RowTiles | None = None


@flax.struct.dataclass
class Level:
  """One level of the pyramid; capacity M rows, M' rows at the next level.

  Attributes:
    coords: int32 [M, 4], (scene, x, y, z) in units of this level's stride;
      padding rows are -1.
    count: int32 [], valid rows; they come first.
    neighbors: int32 [M, 27], rows of the 3^3 neighbourhood.
    parent: int32 [M], row at the next coarser level; None at the last.
    octant: int32 [M], tap k of the 2^3 kernel this voxel has in its parent
      (0 for padding); None at the last level.
    children: int32 [M', 8], rows of this level, by parent and tap; None at
      the last level.
    pairs: the entries of `neighbors` that exist, tile by tile, for
      convolutions on a CPU; None where they are not wanted.
    tiles: of the tables, for the kernels of a GPU; None where not wanted.
  """

  coords: Int32[Array, "m 4"]
  count: Int32[Array, ""]
  neighbors: Int32[Array, "m 27"]
  parent: Int32[Array, " m"] | None = None
  octant: Int32[Array, " m"] | None = None
  children: Int32[Array, "p 8"] | None = None
  pairs: pairs_lib.Pairs | None = None
  tiles: LevelTiles | None = None

  @property
  def capacity(self) -> int:
    return self.coords.shape[0]

  @property
  def valid(self) -> Bool[Array, " m"]:
    return jnp.arange(self.capacity) < self.count


@flax.struct.dataclass
class Plan:
  """A voxel pyramid; levels[i] has stride 2^i."""

  levels: tuple[Level, ...]


def kernel_offsets(size: int) -> Int[np.ndarray, "k 3"]:
  """Offsets d of the taps of an odd (-r..r) or even (0..size-1) kernel."""
  low = -(size // 2) if size % 2 else 0
  r = np.arange(low, low + size)
  z, y, x = np.meshgrid(r, r, r, indexing="ij")
  return np.stack([x, y, z], -1).reshape(-1, 3)


@functools.cache
def child_taps(size: int) -> tuple[np.ndarray, np.ndarray]:
  """For an octant and a tap: the parent's neighbour and the child's octant.

  Returns:
    (parent_tap, octant): int32 [8, size^3] each; size is 3 or 5.
  """
  position = kernel_offsets(2)[:, None] + kernel_offsets(size)[None]
  parent = position >> 1  # in -1..1 for size <= 5
  child = position - 2 * parent
  parent_tap = (parent + 1) @ np.array([1, 3, 9])
  return parent_tap.astype(np.int32), (child @ np.array([1, 2, 4])).astype(
    np.int32
  )


def _pad_row(table: Int32[Array, "m k"], value: int) -> Int32[Array, "m1 k"]:
  return jnp.pad(table, ((0, 1), (0, 0)), constant_values=value)


def neighbors_from_parent(
  parent: Int32[Array, " t"],
  octant: Int32[Array, " t"],
  parent_neighbors: Int32[Array, "p 27"],
  children: Int32[Array, "p 8"],
  *,
  size: int,
  capacity: int,
) -> Int32[Array, "t k"]:
  """Rows of the size^3 neighbourhood (size 3 or 5) of some fine voxels.

  Args:
    parent, octant: of the fine voxels in question.
    parent_neighbors, children: tables of the coarse level.
    size: kernel size at the fine level.
    capacity: rows of the fine level, the value that means "none".
  """
  tap, child = child_taps(size)
  coarse = _pad_row(parent_neighbors, parent_neighbors.shape[0])
  fine = _pad_row(children, capacity)
  neighbor = coarse[parent[:, None], jnp.asarray(tap)[octant]]
  return fine[neighbor, jnp.asarray(child)[octant]]


def neighbor_table(
  coords: Int32[Array, "m 4"],
  count: Int32[Array, ""],
  *,
  size: int = 3,
  dilation: int = 1,
) -> Int32[Array, "m k"]:
  """Rows of the neighbourhood by hash search: any odd size, any dilation."""
  m = coords.shape[0]
  table = hashing.build_table(coords, count)
  offsets = np.pad(kernel_offsets(size) * dilation, ((0, 0), (1, 0)))
  queries = coords[:, None] + jnp.asarray(offsets, jnp.int32)
  rows = hashing.find_rows(table, queries.reshape(-1, 4))
  valid = jnp.arange(m)[:, None] < count
  return jnp.where(valid, rows.reshape(m, len(offsets)), m)


def _coarsen(level_coords, count, capacity, order):
  """Parents of voxels that are in Morton order under `order`."""
  m = level_coords.shape[0]
  valid = jnp.arange(m) < count
  coords = level_coords if order is None else level_coords[order]
  parent_coords = coords.at[:, 1:].set(coords[:, 1:] >> 1)
  new = (
    jnp.ones(m, bool)
    .at[1:]
    .set((parent_coords[1:] != parent_coords[:-1]).any(1))
  )
  new = new & valid
  # Voxels beyond the capacity lose their parent: the caller chose the bucket
  # so that there are none (`voxelize` counts every level).
  parent = jnp.minimum(jnp.cumsum(new, dtype=jnp.int32) - 1, capacity)
  parent = jnp.where(valid, parent, capacity)
  coarse = jnp.full((capacity, 4), -1, jnp.int32)
  coarse = coarse.at[jnp.where(new, parent, capacity)].set(
    parent_coords, mode="drop"
  )
  if order is not None:
    parent = jnp.zeros_like(parent).at[order].set(parent)
  octant = (level_coords[:, 1:] & 1) @ jnp.array([1, 2, 4], jnp.int32)
  octant = jnp.where(valid, octant, 0)
  children = jnp.full((capacity, 8), m, jnp.int32)
  children = children.at[parent, octant].set(
    jnp.arange(m, dtype=jnp.int32), mode="drop"
  )
  coarse_count = jnp.minimum(new.sum(dtype=jnp.int32), capacity)
  return coarse, coarse_count, parent, octant, children


def build_plan(
  coords: Int32[Array, "m 4"],
  count: Int32[Array, ""],
  capacities: tuple[int, ...],
  *,
  is_sorted: bool = True,
  pairs: bool | None = None,
  tiles: bool | None = None,
  implementation: str | None = None,
) -> Plan:
  """Builds the plan of a pyramid, under jit, with static shapes.

  Outside jit, where their values are known, voxels are checked first; under
  jit `checks.check_voxels` has to have been called before, or `voxelize`.

  Args:
    coords: (scene, x, y, z) of the finest voxels, unique, in [-2^29, 2^29).
    count: valid rows; they come first.
    capacities: rows of each level, finest first; capacities[0] = M.
    is_sorted: the valid rows are sorted by scene, then in Morton order (as
      `voxelize` returns them). Otherwise they are sorted here.
    pairs: whether levels of MIN_ROWS_OF_PAIRS rows and more get `Level.pairs`;
      None: on a CPU.
    tiles: whether levels get `Level.tiles`; None: on a GPU, if convolutions
      run its kernels.
    implementation: of the convolutions that the plan is for.

  Raises:
    ValueError: shapes and capacities do not agree, coordinates are no
      integers, an unknown implementation; outside jit also whatever
      `checks.check_voxels` refuses.
  """
  if coords.ndim != 2 or coords.shape[1] != 4:
    raise ValueError(f"coords must be [M, 4], got {list(coords.shape)}")
  if capacities[0] != coords.shape[0]:
    raise ValueError(
      f"capacities[0] = {capacities[0]} but coords has {coords.shape[0]} rows"
    )
  if not jnp.issubdtype(coords.dtype, jnp.integer):
    raise ValueError(f"coords must be integers, got {coords.dtype}")
  if not any(isinstance(a, jax.core.Tracer) for a in (coords, count)):
    number = int(count)
    if not 0 <= number <= len(coords):
      raise ValueError(
        f"count must be in 0..{len(coords)}, the rows of coords, got {number}"
      )
    checks.check_voxels(np.asarray(coords)[:number], is_sorted=is_sorted)
  if implementation == "pairs":  # of `submanifold_conv`, no kernel's name
    pairs, implementation = pairs is None or pairs, None
  chosen = gather_conv.choose_implementation(implementation)
  if pairs is None:
    pairs = jax.default_backend() == "cpu"
  if tiles is None:
    # Elsewhere the kernels are interpreted, and make the tiles they need.
    tiles = jax.default_backend() == "gpu" and chosen == "pallas"
  count = jnp.asarray(count, jnp.int32)
  valid = jnp.arange(coords.shape[0]) < count
  coords = jnp.where(valid[:, None], coords.astype(jnp.int32), -1)
  order = None
  if not is_sorted:
    scene = jnp.where(valid, coords[:, 0], jnp.iinfo(jnp.int32).max)
    rows = jnp.arange(coords.shape[0], dtype=jnp.int32)
    lanes = morton.morton_lanes(coords[:, 1:])
    order = jax.lax.sort((scene, *lanes, rows), num_keys=4)[-1]
  steps = []
  for capacity in capacities[1:]:
    coarse, coarse_count, *links = _coarsen(coords, count, capacity, order)
    steps.append((coords, count, *links))
    coords, count, order = coarse, coarse_count, None
  levels = [Level(coords, count, neighbor_table(coords, count))]
  for fine_coords, fine_count, parent, octant, children in reversed(steps):
    neighbors = neighbors_from_parent(
      parent,
      octant,
      levels[0].neighbors,
      children,
      size=3,
      capacity=fine_coords.shape[0],
    )
    levels.insert(
      0,
      Level(fine_coords, fine_count, neighbors, parent, octant, children),
    )
  if pairs:
    levels = [_with_pairs(level) for level in levels]
  if tiles:
    levels = [_with_tiles(level) for level in levels]
  return Plan(tuple(levels))


def _with_pairs(level: Level) -> Level:
  if level.capacity < MIN_ROWS_OF_PAIRS:
    return level
  return level.replace(pairs=pairs_lib.find_pairs(level.neighbors))


def _with_tiles(level: Level) -> Level:
  rows = level.capacity
  if not rows:
    return level
  found = LevelTiles(row_tiles(level.neighbors, rows))
  if level.children is not None and level.children.shape[0]:
    coarse = level.children.shape[0]
    octants = octant_table(level.parent, level.octant)
    found = found.replace(
      children=row_tiles(level.children, rows),
      octants=row_tiles(octants, coarse),
    )
  return level.replace(tiles=found)
