"""The plan of a voxel pyramid in numpy.

Equal to `plan.build_plan`, entry by entry, and independent of it but for the
tables of taps: for workers, for other libraries' tensors, and as a check.
"""

import numpy as np
from jaxtyping import Int32

from wsegpc_jax.sparse import checks, morton
from wsegpc_jax.sparse.plan import Level, Plan, child_taps, kernel_offsets

_OCTANT = np.array([1, 2, 4])


def _rows_of(queries: np.ndarray, coords: np.ndarray) -> np.ndarray:
  """Rows in `coords` [N, D] of some queries [Q, D]; N where there are none.

  Exact for any integers: columns are joined one by one to the numbers of what
  occurs, which are fewer than N.
  """
  n = len(coords)
  found, ids = np.ones(len(queries), bool), np.zeros(n, np.int64)
  wanted = np.zeros(len(queries), np.int64)
  for column, query in zip(coords.T, queries.T, strict=True):
    values, place = np.unique(column, return_inverse=True)
    at = np.searchsorted(values, query).clip(max=max(len(values) - 1, 0))
    found &= values[at] == query
    keys, ids = np.unique(ids * len(values) + place, return_inverse=True)
    wanted = wanted * len(values) + at
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    found &= keys[at] == wanted
    wanted = at
  row = np.empty(n, np.int64)
  row[ids] = np.arange(n)
  return np.where(found, row[wanted], n)


def _coarsen(coords, order):
  """(coarse coordinates, parent, octant, children but for their capacity)."""
  parents = coords.copy()
  parents[:, 1:] >>= 1
  parents = parents[order]
  new = np.ones(len(coords), bool)
  new[1:] = (parents[1:] != parents[:-1]).any(1)
  parent = np.empty(len(coords), np.int32)
  parent[order] = np.cumsum(new) - 1
  octant = ((coords[:, 1:] & 1) @ _OCTANT).astype(np.int32)
  return parents[new], parent, octant


def _pad(a, capacity, fill):
  widths = ((0, capacity - len(a)),) + ((0, 0),) * (a.ndim - 1)
  return np.pad(a.astype(np.int32), widths, constant_values=fill)


def _neighbors_from_parent(parent, octant, parent_neighbors, children):
  tap, child = child_taps(3)
  none = np.full((1, 8), -1, np.int64)
  children = np.concatenate([children, none])
  neighbor = parent_neighbors[parent[:, None], tap[octant]]
  return children[neighbor, child[octant]]


def build_plan(
  coords: Int32[np.ndarray, "n 4"],
  capacities: tuple[int, ...] | None = None,
  *,
  levels: int = 5,
  is_sorted: bool = True,
) -> Plan:
  """`plan.build_plan` on the host; its levels are numpy arrays.

  Args:
    coords: (scene, x, y, z) of the finest voxels, without padding.
    capacities: rows of each level; None: as many as there are voxels.
    levels: number of levels, without `capacities`.
    is_sorted: they are sorted by scene, then in Morton order. Otherwise the
      coarser levels are sorted, and the finest keeps its order.

  Raises:
    ValueError: as `checks.check_voxels`, or a level has more voxels than room.
  """
  checks.check_voxels(coords, is_sorted=is_sorted)
  coords = np.asarray(coords, np.int64)
  count = len(capacities) if capacities is not None else levels
  order = np.arange(len(coords)) if is_sorted else morton.morton_order(coords)
  steps = []
  for _ in range(count - 1):
    coarse, parent, octant = _coarsen(coords, order)
    children = np.full((len(coarse), 8), -1, np.int64)
    children[parent, octant] = np.arange(len(coords))
    steps.append((coords, parent, octant, children))
    coords, order = coarse, np.arange(len(coarse))
  offsets = np.pad(kernel_offsets(3), ((0, 0), (1, 0)))
  rows = _rows_of((coords[:, None] + offsets).reshape(-1, 4), coords)
  tables = [np.where(rows < len(coords), rows, -1).reshape(-1, 27)]
  for _, parent, octant, children in reversed(steps):
    tables.insert(
      0, _neighbors_from_parent(parent, octant, tables[0], children)
    )
  found = [step[0] for step in steps] + [coords]
  sizes = [len(c) for c in found]
  capacities = tuple(sizes) if capacities is None else capacities
  for level, (size, room) in enumerate(zip(sizes, capacities, strict=True)):
    if size > room:
      raise ValueError(
        f"level {level} has {size} voxels, more than its capacity {room}"
      )
  built = []
  for i, (coords, table) in enumerate(zip(found, tables, strict=True)):
    room = capacities[i]
    links = {}
    if i + 1 < count:
      _, parent, octant, children = steps[i]
      children = np.where(children < 0, room, children)
      links = {
        "parent": _pad(parent, room, capacities[i + 1]),
        "octant": _pad(octant, room, 0),
        "children": _pad(children, capacities[i + 1], room),
      }
    built.append(
      Level(
        coords=_pad(coords, room, -1),
        count=np.int32(len(coords)),
        neighbors=_pad(np.where(table < 0, room, table), room, room),
        **links,
      )
    )
  return Plan(tuple(built))
