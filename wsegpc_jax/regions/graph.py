"""Graph-based segmentation, and the neighbour graph of a cloud.

Dimension letters: N nodes of a graph or points of a cloud, E edges.
"""

import array

import numpy as np
from scipy.spatial import cKDTree

from wsegpc_jax.types import DataError

_TYPES = {"f": np.float32, "d": np.float64}


def graph_segments(
  num_nodes: int,
  edge: np.ndarray,
  weight: np.ndarray,
  *,
  scale: float,
  min_size: int,
) -> np.ndarray:
  """Segments a weighted graph (Felzenszwalb and Huttenlocher, IJCV 2004).

  Edges are taken from the lightest to the heaviest. Two segments join over an
  edge that is not heavier than the limit of either: `scale` for a single node,
  w + scale / size for a segment that was last joined over an edge of weight w.
  Afterwards, in the same order, an edge joins what it connects if one of the
  two has less than `min_size` nodes.

  Args:
    num_nodes: N.
    edge: int [2, E], nodes 0..N-1. Doubled edges and loops change nothing.
    weight: float [E], not NaN. Limits are kept in the same precision if it is
      float32, else in double. Of equal weights the earlier edge comes first.
    scale: larger gives larger segments.
    min_size: nodes; smaller segments are left only where no edge leads away.

  Returns:
    int32 [N], segments 0.. without gaps, in the order of their first nodes.

  Raises:
    DataError: on wrong shapes, nodes out of range or weights that are NaN.
  """
  edge, weight = _checked(num_nodes, edge, weight)
  order = np.argsort(weight, kind="stable")
  a, b = edge[:, order]
  forest = _Forest(num_nodes, scale, weight.dtype.char)
  forest.join_alike(a, b, weight[order])
  forest.join_small(a, b, min_size)
  _, first, segment = np.unique(
    forest.roots(), return_index=True, return_inverse=True
  )
  rank = np.empty(len(first), np.int32)
  rank[np.argsort(first)] = np.arange(len(first))
  return rank[segment]


def _checked(num_nodes, edge, weight):
  edge, weight = np.asarray(edge), np.asarray(weight)
  if edge.ndim != 2 or len(edge) != 2 or edge.dtype.kind not in "iu":
    raise DataError(
      f"edge: expected integers [2, E], got {edge.dtype} {edge.shape}"
    )
  if weight.shape != edge.shape[1:]:
    raise DataError(
      f"weight: expected shape {edge.shape[1:]} as edges, got {weight.shape}"
    )
  if edge.size and not 0 <= edge.min() <= edge.max() < num_nodes:
    raise DataError(
      f"edge: expected nodes 0..{num_nodes - 1}, got {edge.min()} to"
      f" {edge.max()}"
    )
  if weight.dtype != np.float32:
    weight = weight.astype(np.float64)
  if np.isnan(weight).any():
    raise DataError("weight: expected numbers, got NaN")
  return edge, weight


class _Forest:
  """Disjoint sets of nodes, each with its size and its limit."""

  def __init__(self, num_nodes: int, scale: float, typecode: str):
    self.parent = list(range(num_nodes))
    self.size = [1] * num_nodes
    # Rounds what is stored to the precision of the weights.
    self.limit = array.array(typecode, [scale]) * num_nodes
    sizes = np.arange(1, num_nodes + 1, dtype=_TYPES[typecode])
    self.share = [np.inf, *(_TYPES[typecode](scale) / sizes).tolist()]
    # So many edges at a time; then those that can join nothing any more are
    # sorted out, which numpy does faster than the loop passes over them.
    self.chunk = num_nodes // 4 + 1000

  def roots(self) -> np.ndarray:
    """int64 [N], a node that stands for the set of each node."""
    root = np.array(self.parent, np.int64)
    while True:
      up = root[root]
      if np.array_equal(up, root):
        return root
      root = up

  def join_alike(self, a, b, weight) -> None:
    """Joins sets over edges [E], the lightest first, within their limits."""
    parent, size, limit = self.parent, self.size, self.limit
    share = self.share
    while len(weight):
      some = slice(self.chunk)
      edges = a[some].tolist(), b[some].tolist(), weight[some].tolist()
      for i, j, w in zip(*edges, strict=True):
        while i != parent[i]:
          parent[i] = i = parent[parent[i]]
        while j != parent[j]:
          parent[j] = j = parent[parent[j]]
        if i != j and w <= limit[i] and w <= limit[j]:
          if size[i] < size[j]:
            i, j = j, i
          parent[j] = i
          size[i] += size[j]
          limit[i] = w + share[size[i]]
      a, b, weight = a[self.chunk :], b[self.chunk :], weight[self.chunk :]
      if not len(weight):
        return
      # A set whose limit is below the next weight stays as it is.
      root, open_ = self.roots(), np.array(limit) >= weight[0]
      a, b = root[a], root[b]
      useful = (a != b) & open_[a] & open_[b]
      a, b, weight = a[useful], b[useful], weight[useful]

  def join_small(self, a, b, min_size: int) -> None:
    """Joins sets of less than `min_size` nodes over edges [E], in order."""
    parent, size = self.parent, self.size
    root = self.roots()
    small = np.array(size) < min_size
    a, b = root[a], root[b]
    useful = (a != b) & (small[a] | small[b])
    for i, j in zip(a[useful].tolist(), b[useful].tolist(), strict=True):
      while i != parent[i]:
        parent[i] = i = parent[parent[i]]
      while j != parent[j]:
        parent[j] = j = parent[parent[j]]
      if i != j and (size[i] < min_size or size[j] < min_size):
        if size[i] < size[j]:
          i, j = j, i
        parent[j] = i
        size[i] += size[j]


def neighbor_graph(
  coord: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Connects each point to its nearest ones.

  Args:
    coord: float [N, 3], finite.
    neighbors: nearest points of each, itself not counted.

  Returns:
    int64 [2, E], each pair once, the smaller number first and in ascending
    order; float64 [E], the distances; and float64 [N], the distance of the
    last neighbour of each point.
  """
  n = len(coord)
  if n < 2:
    return np.zeros((2, 0), np.int64), np.zeros(0), np.zeros(n)
  k = min(neighbors + 1, n)
  distance, index = cKDTree(coord).query(coord, k=k, workers=-1)
  near = index.reshape(n, k)
  own = np.arange(n)[:, None]
  key = np.sort((np.minimum(own, near) * n + np.maximum(own, near)).ravel())
  key = key[np.diff(key, prepend=-1) > 0]  # np.unique takes far longer
  edge = np.stack(np.divmod(key, n))
  edge = edge[:, edge[0] != edge[1]]
  length = np.linalg.norm(coord[edge[0]] - coord[edge[1]], axis=1)
  return edge, length, distance.reshape(n, k)[:, -1]


def grid_cells(
  coord: np.ndarray, size: float, *, group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Gathers points that lie in one cube of a grid.

  Args:
    coord: float [N, 3], finite.
    size: edge of the cubes.
    group: int [N]; points of different groups do not share a cell.

  Returns:
    int64 [M], the first point of each cell, and int64 [N], the cell of each
    point.
  """
  x, y, z = np.floor((coord - coord.min(axis=0)) / size).T
  keys = [x, y, z] if group is None else [group, x, y, z]
  order = np.lexsort(keys)
  new = np.zeros(len(coord), bool)
  new[:1] = True
  for key in keys:
    key = key[order]
    new[1:] |= key[1:] != key[:-1]
  cell = np.empty(len(coord), np.int64)
  cell[order] = np.cumsum(new) - 1
  return order[new], cell
