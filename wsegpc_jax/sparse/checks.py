"""Refuses what no plan or operation of the engine can be right for.

Shapes are checked everywhere. The values of voxels and features are not known
under jit, where they cannot be refused: `check_voxels` does it before.
"""

import numpy as np
from jaxtyping import Array, Float, Int

from wsegpc_jax.sparse import morton


def check_voxels(
  coords: Int[np.ndarray, "n 4"],
  features: Float[np.ndarray, "n c"] | None = None,
  *,
  is_sorted: bool = False,
) -> None:
  """Refuses what no plan or network can be right for.

  Args:
    coords: (scene, x, y, z) of the voxels, without padding.
    features: their features.
    is_sorted: they must be sorted by scene, then in Morton order.

  Raises:
    ValueError: coordinates that are no integers, lie outside [-2^29, 2^29) or
      occur twice, a negative scene, another order; features of another number
      of rows or with NaN or infinity. It names the first such row.
  """
  coords = np.asarray(coords)
  if coords.ndim != 2 or coords.shape[1] != 4:
    raise ValueError(f"coords must be [N, 4], got {list(coords.shape)}")
  if coords.dtype.kind not in "iu":
    raise ValueError(f"coords must be integers, got {coords.dtype}")
  low, high = -morton.LIMIT, morton.LIMIT
  xyz = coords[:, 1:]
  _refuse(
    coords,
    ((xyz < low) | (xyz >= high)).any(1),
    f"lies outside the range [{low}, {high}) of voxel coordinates",
  )
  _refuse(coords, coords[:, 0] < 0, "has a negative scene")
  order = morton.morton_order(coords)
  equal = (coords[order[1:]] == coords[order[:-1]]).all(1)
  twice = np.zeros(len(coords), bool)
  twice[order[1:][equal]] = True
  _refuse(coords, twice, "occurs twice; expected unique voxels")
  if is_sorted:
    _refuse(
      coords,
      order != np.arange(len(coords)),
      "is out of order; expected voxels sorted by scene, then in Morton order",
    )
  if features is None:
    return
  if len(features) != len(coords):
    raise ValueError(
      f"features have {len(features)} rows, coords {len(coords)}"
    )
  _refuse(
    coords,
    ~np.isfinite(features).all(1),
    "has features that are NaN or infinite; expected finite ones",
  )


def check_rows(x: Array, rows: int, what: str) -> None:
  """Features must be [rows, C], the rows of one level of a plan."""
  if x.ndim != 2:
    raise ValueError(f"features must be [M, C], got {list(x.shape)}")
  if x.shape[0] != rows:
    raise ValueError(
      f"features have {x.shape[0]} rows, the plan's {what} level {rows}"
    )


def check_has_coarser(fine) -> None:
  """Levels are linked to the next coarser one, all but the last."""
  if fine.children is None:
    raise ValueError(
      "the level is the last of its plan, there is no coarser one; build the "
      "plan with one level more"
    )


def _refuse(coords, bad, why):
  if bad.any():
    row = int(np.flatnonzero(bad)[0])
    scene, *xyz = coords[row].tolist()
    raise ValueError(f"voxel {xyz} of scene {scene} (row {row}) {why}")
