"""The method with the networks it is made for."""

import jax
import numpy as np
import optax
import pytest
from clustering_parts import SMALL, gradient_of, run_steps, weights

from wsegpc_jax import parallel, types
from wsegpc_jax.methods import common
from wsegpc_jax.methods.cluster_step import ClusterSettings
from wsegpc_jax.methods.clustering import Clustering
from wsegpc_jax.methods.segmentation import Segmentation
from wsegpc_jax.models import minkunet
from wsegpc_jax.models.projection import ProjectionHead
from wsegpc_jax.models.spvcnn import SPVCNN
from wsegpc_jax.sparse import voxelize
from wsegpc_jax.types import IGNORE_LABEL

# The programs of this module are shared, so its tests stay in one process.
pytestmark = pytest.mark.xdist_group("clustering_networks")

K = 4
CAPACITIES = (128, 120, 112, 64, 32)


@pytest.fixture(scope="module", autouse=True)
def small_network():
  """Blocks at both ends only: every kind of layer, little to compile."""
  entry = ((1, 0, 0, 0, 0, 0, 0, 1), *minkunet.ARCHITECTURES["14A"][1:])
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(minkunet.ARCHITECTURES, "ends", entry)
    yield


def make_batch():
  """One device's share of one scan; a quarter of the voxels unlabelled."""
  rng = np.random.default_rng(0)
  place = rng.uniform(0, 64, (100, 3)) * [1, 1, 0.1]
  coords = voxelize.voxelize(place, 1.0).coords
  n, rows = len(coords), CAPACITIES[0]
  coords = np.c_[np.zeros(n), coords].astype(np.int32)
  label = rng.integers(0, K, rows).astype(np.int32)
  label[:n:4] = IGNORE_LABEL
  padding = ((0, rows - n), (0, 0))
  view = types.View(
    np.pad(coords, padding, constant_values=-1),
    np.pad(rng.standard_normal((n, 4)).astype(np.float32), padding),
    np.int32(n),
    CAPACITIES,
  )
  batch = types.Batch(view, label, np.ones(1, bool), np.ones((1, K), bool))
  return jax.tree.map(lambda a: a[None], batch)


def make_clustering(model, optimizer, *terms, source):
  return Clustering(
    model,
    ProjectionHead((12, 8), axis_name=parallel.AXIS),
    optimizer,
    weights(*terms),
    ClusterSettings(**SMALL),
    feature_source=source,
  )


def test_cross_entropy_alone_is_plain_segmentation():
  """Bit for bit, over two steps of MinkUNet."""
  network = minkunet.MinkUNet("ends", K, width=4, axis_name=parallel.AXIS)
  optimizer = common.cosine_sgd(0.1, 10)
  plain = Segmentation(network, optimizer)
  ours = make_clustering(network, optimizer, "ce", source="decoder")
  # Merged operations round otherwise, and two programs are merged differently.
  one_by_one = {"xla_disable_hlo_passes": "fusion"}
  expected, actual = (
    run_steps(method, make_batch(), 2, compiler_options=one_by_one)
    for method in (plain, ours)
  )
  for (_, a, _), (_, b, metrics) in zip(expected, actual, strict=True):
    jax.tree.map(np.testing.assert_array_equal, b, a)
    assert b.memory is None
    assert set(metrics) == {"loss", "ce", "accuracy", "grad_norm"}


def test_a_network_without_bottleneck_features():
  network = minkunet.MinkUNet("ends", K, width=4, axis_name=parallel.AXIS)
  method = make_clustering(
    network, optax.sgd(1.0), "cluster", source="bottleneck"
  )
  with pytest.raises(ValueError, match="bottleneck.*decoder"):
    method.init(0, jax.tree.map(lambda a: a[0], make_batch()))


def test_clustering_the_bottleneck_leaves_the_decoder_alone():
  """SPVCNN: encoder and first point branch learn, all after them does not."""
  network = SPVCNN(num_classes=K, width=0.125, axis_name=parallel.AXIS)
  method = make_clustering(
    network, optax.sgd(1.0), "cluster", source="bottleneck"
  )
  entry = run_steps(method, make_batch(), 1)[0]
  assert entry[2]["batch_loss"] > 0 and entry[2]["center_loss"] > 0
  gradient = gradient_of(entry)
  for part, tree in gradient.items():
    size = max(np.abs(g).max() for g in jax.tree.leaves(tree))
    after = part.startswith(("up", "classifier", "point1", "point2"))
    assert size == 0 if after else size > 1e-6, part
  parts = {"stem0", "down3", "point0", "point1", "up0", "projection"}
  assert all(any(p.startswith(x) for p in gradient) for x in parts)
