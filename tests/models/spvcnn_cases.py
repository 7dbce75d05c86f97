"""A small network of each kind, two scenes, and what the oracle makes of them.

Two modules test the networks: their programs are shared by the caches here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import spvcnn_oracle as oracle

from wsegpc_jax.interop import spvnas_weights
from wsegpc_jax.models.spvcnn import SPVCNN, SPVNAS
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse import voxelize

CAPACITIES = (360, 250, 120, 60, 28)
LARGER = (400, 260, 150, 64, 40)
CLASSES = 3
NETS = {
  "spvcnn": (SPVCNN(num_classes=CLASSES, width=0.125), oracle.SpvcnnNames()),
  "spvnas": (SPVNAS(num_classes=CLASSES, width=0.125), oracle.SpvnasNames()),
  "plain": (
    SPVCNN(num_classes=CLASSES, width=0.125, point_branch=False),
    oracle.SpvcnnNames(),
  ),
}
# An eighth of the published widths, (transition, ((middle, out), ...)).
EIGHTHS = {
  "spvcnn": (
    ((4, ((4, 4),) * 2), (4, ((8, 8),) * 2))
    + ((8, ((16, 16),) * 2), (16, ((32, 32),) * 2)),
    ((32, ((32, 32),) * 2), (16, ((16, 16),) * 2))
    + ((12, ((12, 12),) * 2), (12, ((12, 12),) * 2)),
  ),
  "spvnas": (
    ((2, ((5, 3), (4, 3))), (5, ((10, 6), (8, 6))))
    + ((10, ((8, 23), (8, 23))), (19, ((14, 29), (12, 29)))),
    ((23, ((17, 17), (31, 17))), (13, ((8, 19),)))
    + ((6, ((13, 12), (7, 12))), (8, ((14, 9),))),
  ),
}
EIGHTHS["plain"] = EIGHTHS["spvcnn"]


def shape_of_plan(capacities=(16, 8, 8, 8, 8)):
  return jax.eval_shape(
    lambda c, n: plan_lib.build_plan(c, n, capacities),
    jax.ShapeDtypeStruct((capacities[0], 4), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
  )


@functools.cache
def shapes_of(model, channels=4):
  """Shapes of (logits, features) and of the variables."""
  return jax.eval_shape(
    lambda key, x, plan: model.init_with_output(key, x, plan, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((16, channels), jnp.float32),
    shape_of_plan(),
  )


def cloud(rng, walks=4, steps=40, size=40):
  """Voxels along random walks, and how many there are at each level."""
  start = rng.integers(0, size, (walks, 1, 3))
  walk = rng.integers(-1, 2, (walks, steps, 3)).cumsum(1)
  points = np.clip(start + walk, 0, size - 1).reshape(-1, 3) + 0.5
  voxels = voxelize.voxelize(points, 1.0)
  return voxels.coords, voxels.level_counts


@functools.cache
def two_scenes():
  """(coords [n, 4], features [n, 4], rows of scene 0)."""
  rng = np.random.default_rng(0)
  parts = [cloud(rng) for _ in range(2)]
  coords = np.concatenate(
    [np.pad(c, ((0, 0), (1, 0)), constant_values=s) for s, (c, _) in
     enumerate(parts)]
  )  # fmt: skip
  counts = np.sum([n for _, n in parts], axis=0)
  assert (counts <= CAPACITIES).all() and counts[4] > 8
  features = rng.normal(size=(len(coords), 4))
  return coords.astype(np.int32), features, len(parts[0][0])


def pad(coords, features, capacity=CAPACITIES[0], fill=0.0):
  rows = ((0, capacity - len(coords)), (0, 0))
  return (
    np.pad(coords, rows, constant_values=-1),
    np.pad(features, rows, constant_values=fill),
    np.int32(len(coords)),
  )


@functools.cache
def weights(kind):
  """(state dict, our variables), float64."""
  model, names = NETS[kind]
  shapes = oracle.shapes(names, 4, *EIGHTHS[kind], CLASSES)
  arrays = oracle.draw(shapes, np.float64)
  return arrays, ours(kind, arrays)


def ours(kind, arrays):
  blank = jax.tree.map(lambda a: np.zeros(a.shape), shapes_of(NETS[kind][0])[1])
  return spvnas_weights.fill(arrays, blank, where="arrays")[0]


@functools.cache
def pyramid():
  return oracle.Pyramid(two_scenes()[0])


def expected(kind, arrays, *, train):
  """((logits, features), the oracle)."""
  net = oracle.Network(arrays, NETS[kind][1], train=train)
  out = net(two_scenes()[1], pyramid(), point_branch=kind != "plain")
  return out, net


def close(got, wanted, tolerance=1e-9):
  n = len(wanted[0])
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
  for a, b in pairs:
    a = np.asarray(a)[:n]
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert b.std() > 0.1
