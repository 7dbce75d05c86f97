"""Predictions of whole scenes: in parts, in several views, of several processes."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from wsegpc_jax import defaults, evaluate, experiment, inputs
from wsegpc_jax.data import batching, box_rooms, parts, test_time
from wsegpc_jax.methods import common
from wsegpc_jax.metrics import scene_matrices, segmentation
from wsegpc_jax.predictor import Predictor, ScenePrediction, receptive_field
from wsegpc_jax.sparse.voxelize import voxelize
from wsegpc_jax.types import Scene

VOXEL = 0.25
CLASSES = box_rooms.CLASSES
K = len(CLASSES)


def make_config(bucket):
  config = defaults.get_tiny()
  config.method = "segmentation"
  config.model.width = 4
  config.data.voxel_size = VOXEL
  config.data.smallest_bucket = config.data.largest_bucket = bucket
  return config


def row_of_rooms(number):
  """Rooms side by side along x, their points in the middle of voxels."""
  rooms = [
    box_rooms.make_room(
      3, i, image_size=(8, 8), views=1, points_per_square_metre=40.0
    )[0]
    for i in range(number)
  ]
  offset = [np.float32([4 * i, 0, 0]) for i in range(number)]
  coord = [r.coord + o for r, o in zip(rooms, offset, strict=True)]
  coord = (np.floor(np.concatenate(coord) / VOXEL) + 0.5) * VOXEL

  def all_of(field):
    return np.concatenate([getattr(r, field) for r in rooms])

  scene = Scene(
    name="row",
    coord=coord.astype(np.float32),
    color=all_of("color"),
    normal=all_of("normal"),
    tags=np.ones(K, bool),
    label=all_of("label"),
  )
  return parts.take(scene, np.random.default_rng(0).permutation(len(coord)))


class Network:
  """A random network whose batch statistics are those of a scene."""

  def __init__(self, scene):
    self.scene = scene
    count = len(voxelize(scene.coord, VOXEL).coords)
    self.bucket = -(-count * 5 // 4 // 8) * 8
    config = make_config(self.bucket)
    steps = experiment.schedule(config, 1)
    self.method = experiment.build_method(config, K, steps)
    self.whole = Predictor(config, self.method, K)
    self.sample = inputs.sampler(config).evaluation(scene)
    layout = inputs.layout(config, slots=1)
    self.batch = batching.collate(
      [self.sample], layout, 0, num_classes=K, teacher=False
    )
    state = jax.device_get(self.method.init(0, self.batch))
    model = self.method.model.clone(axis_name=None)

    @jax.jit
    def measure(stats):
      variables = {"params": state.params, "batch_stats": stats}
      _, new = model.apply(
        variables,
        self.batch.student.features,
        common.build_plan(self.batch.student),
        train=True,
        mutable=["batch_stats"],
      )
      return new["batch_stats"]

    stats = state.batch_stats
    for _ in range(25):
      stats = measure(stats)
    self.variables = {
      "params": state.params,
      "batch_stats": jax.device_get(stats),
    }
    self.probabilities = jax.jit(
      lambda v, batch: jax.nn.softmax(
        self.method.predict(v, batch)["logits_3d"]
      )
    )
    self.small = self.in_parts(0.35)

  def in_parts(self, share):
    """A predictor whose largest bucket holds a share of the scene."""
    bucket = int(self.bucket * share) // 8 * 8
    return Predictor(make_config(bucket), self.method, K)


@pytest.fixture(scope="module")
def network():
  return Network(row_of_rooms(28))


@pytest.fixture(scope="module")
def whole(network):
  return network.whole(network.variables, network.scene).probabilities


def test_is_the_network_through_the_inverse_map(network, whole):
  """Bit for bit; the default views are the scene as it is."""
  rows = np.asarray(network.probabilities(network.variables, network.batch))
  np.testing.assert_array_equal(whole, rows[network.sample.inverse])
  once = network.whole(
    network.variables, network.scene, views=(test_time.View(),)
  )
  np.testing.assert_array_equal(whole, once.probabilities)
  # Not a network without opinions.
  assert len(np.unique(whole.argmax(1))) > 2 and whole.max() > 0.4


def test_parts_with_the_whole_receptive_field_equal_the_whole(network, whole):
  found = network.in_parts(0.75)(network.variables, network.scene)
  np.testing.assert_allclose(found.probabilities, whole, atol=2e-5)


def test_seams_of_narrow_margins_do_not_show(network, whole, caplog):
  with caplog.at_level("INFO", logger="wsegpc_jax"):
    found = network.small(network.variables, network.scene)
  (line,) = [
    r.getMessage() for r in caplog.records if "margins" in r.getMessage()
  ]
  margin = int(line.split("margins of ")[1].split()[0])
  assert 48 <= margin < receptive_field("14A")
  difference = np.abs(found.probabilities - whole).max(1)
  assert difference.max() < 0.1
  agreement = found.probabilities.argmax(1) == whole.argmax(1)
  assert agreement.mean() > 0.99


def test_receptive_field_against_impulses(network):
  """A changed feature reaches as far as is said, and no further."""
  reach = receptive_field("14A")
  batch = network.batch
  before = np.asarray(network.probabilities(network.variables, batch))
  x = np.asarray(batch.student.coords)[:, 1]
  farthest = 0
  for row in np.searchsorted(np.sort(x[: batch.student.count]), [0, 300]):
    start = np.argsort(x[: batch.student.count], kind="stable")[row]
    features = batch.student.features.copy()
    features[start] += 100
    changed = batch.replace(student=batch.student.replace(features=features))
    after = np.asarray(network.probabilities(network.variables, changed))
    touched = (after != before).any(1)[: batch.student.count]
    distance = np.abs(x[: batch.student.count][touched] - x[start])
    farthest = max(farthest, distance.max())
  assert 0.8 * reach < farthest <= reach


@pytest.fixture(scope="module")
def room(network):
  """Few rooms, which are not symmetric."""
  scene = network.scene
  return parts.take(scene, np.flatnonzero(scene.coord[:, 0] < 8))


def turned(scene):
  def turn(vectors):
    x, y, z = vectors.T
    return np.stack([-y, x, z], 1)

  return dataclasses.replace(
    scene, coord=turn(scene.coord), normal=turn(scene.normal)
  )


@pytest.mark.parametrize("name", ["rotate", "rotate_flip"])
def test_average_over_quarter_turns_does_not_see_a_turn(network, room, name):
  def predict(scene, views):
    return network.small(network.variables, scene, views=views).probabilities

  views = test_time.SETS[name]
  one, other = (predict(s, views) for s in (room, turned(room)))
  np.testing.assert_allclose(one, other, atol=1e-5)
  np.testing.assert_allclose(one.sum(1), 1, atol=1e-5)
  # The network itself does see it.
  plain = [predict(s, views[:1]) for s in (room, turned(room))]
  assert np.abs(plain[0] - plain[1]).max() > 0.01


def test_is_the_mean_over_views(network, room):
  views = test_time.SETS["rotate_scale"]
  each = [
    network.whole(network.variables, v.apply(room)).probabilities for v in views
  ]
  found = network.small(network.variables, room, views=views)
  np.testing.assert_allclose(found.probabilities, np.mean(each, 0), atol=1e-6)


class FakePredictor:
  """Notes what it is asked for; with frames it has labels of pixels."""

  def __init__(self):
    self.views = []

  def __call__(self, variables, scene, frames, *, tags, views):
    self.views.append(views)
    return ScenePrediction(np.ones((len(scene.coord), K), np.float32))


def test_augmentation_has_to_be_asked_for(room):
  """What training calls scores the scene as it is, whatever the config says."""

  class Data:
    def load_scene(self, name):
      return room

  config = make_config(8)
  config.eval.tta = "rotate"
  predictor = FakePredictor()
  for extra in ({}, {"tta": "rotate"}):
    list(
      evaluate.predict_scenes(
        predictor,
        {},
        Data(),
        ["row"],
        config,
        use_tags=False,
        superpoints="none",
        **extra,
      )
    )
  assert [len(v) for v in predictor.views] == [1, 4]
  words = [
    evaluate.protocol(config, split="val", weights="student", **extra)
    for extra in ({}, {"tta": "rotate"})
  ]
  assert "augmentation" not in words[0] and "4 views" in words[1]


def test_frames_go_with_the_scene_as_it_is():
  """The 2D branch runs once, whatever the views."""
  seen = []

  class Fake(Predictor):
    def __init__(self):
      pass

    def _predict(self, variables, scene, frames, tags):
      seen.append((scene.coord[0, 0], frames))
      pixels = np.full((1, 2, 2), len(seen))
      rows = np.full((1, K), len(seen), np.float32)
      return ScenePrediction(rows, pixels if frames else None)

  point = np.float32([[1, 2, 3]])
  scene = Scene("s", point, point, point, np.ones(K, bool))
  found = Fake()(
    {}, scene, ("frame",), tags=scene.tags,
    views=test_time.SETS["rotate"],
  )  # fmt: skip
  assert [frames for _, frames in seen] == [("frame",), (), (), ()]
  assert [x for x, _ in seen] == [1, -2, -1, 2]
  assert (found.label_2d == 1).all()
  assert (found.probabilities == 2.5).all()


def labelled(names, seed=0):
  """Scenes with random labels and predictions."""
  for i, name in enumerate(names):
    rng = np.random.default_rng([seed, int(name)])
    n = int(rng.integers(1, 50))
    label = rng.choice([0, 1, 2, 255], n).astype(np.int32)
    if i % 3 == 2:
      label = None
    empty = np.zeros((n, 3), np.float32)
    scene = Scene(name, empty, empty, empty, np.ones(3, bool), label)
    pixels = rng.integers(0, 3, (1, 2, 2))
    rows = rng.random((n, 3)).astype(np.float32)
    yield scene, ScenePrediction(rows, pixels, pixels)


def test_scores_are_sums_over_scenes(tmp_path):
  names = [str(i) for i in range(8)]
  scores = evaluate.score_split(labelled(names), 3)
  together = sum(
    segmentation.confusion_matrix(p.probabilities.argmax(1), s.label, 3)
    for s, p in labelled(names)
    if s.label is not None
  )
  np.testing.assert_array_equal(
    scores.points.iou, segmentation.scores(together).iou
  )
  assert scores.scenes.names == ("0", "1", "3", "4", "6", "7")
  path = tmp_path / "eval" / "val.json"
  evaluate.write_scores(path, scores, ("a", "b", "c"), protocol="p", step=3)
  entry = json.loads(path.read_text())
  assert (entry["protocol"], entry["step"], entry["scenes"]) == ("p", 3, 6)
  assert "2d" in entry
  found, classes = scene_matrices.read(scene_matrices.beside(path))
  assert classes == ("a", "b", "c") and found.names == scores.scenes.names
  np.testing.assert_array_equal(found.confusion.sum(0), together)


@pytest.mark.parametrize("number", [1, 2, 5, 7])
def test_processes_together_have_all_scenes(monkeypatch, number):
  """Three processes, here threads; with few scenes one of them has none."""
  names = [str(i * 11) for i in range(number)]
  barrier, slots = threading.Barrier(3), [None] * 3
  local = threading.local()

  def allgather(a):
    slots[local.index] = np.array(a)
    barrier.wait(60)
    out = np.stack(slots)
    barrier.wait(60)
    return out

  from jax.experimental import multihost_utils

  monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
  monkeypatch.setattr(evaluate.jax, "process_count", lambda: 3)
  found = [None] * 3

  def process(index):
    local.index = index
    own = [i for i in range(number) if i % 3 == index]
    every = list(labelled(names))
    found[index] = evaluate.score_split((every[i] for i in own), 3)

  threads = [threading.Thread(target=process, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  monkeypatch.undo()
  one = evaluate.score_split(labelled(names), 3)
  for scores in found:
    assert sorted(scores.scenes.names) == sorted(one.scenes.names)
    order = [scores.scenes.names.index(n) for n in one.scenes.names]
    np.testing.assert_array_equal(
      scores.scenes.confusion[order], one.scenes.confusion
    )
    np.testing.assert_array_equal(scores.points.iou, one.points.iou)
    assert scores.pixels.points == one.pixels.points
