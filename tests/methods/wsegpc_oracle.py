"""Everything test_wsegpc compares with: a batch, a state, an oracle.

The batch is made by hand: two scenes and an empty slot, one scene with a
missing image, elements without superpoint, region or teacher voxel. The oracle
applies the networks and re-derives the losses, their gradient and the
pseudo-labels from the specification.
"""

import dataclasses
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np

from wsegpc_jax import parallel, types
from wsegpc_jax.methods import common
from wsegpc_jax.methods.wsegpc import LossWeights, WSegPC
from wsegpc_jax.models import minkunet
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.sparse import voxelize

K, SLOTS, VIEWS, PAIRS = 5, 3, 2, 16
HEIGHT, WIDTH = 24, 32
PIXELS = HEIGHT * WIDTH
CAPACITIES = (256, 160, 96, 48, 24)
SUPERPOINTS, REGIONS = 40, 48
PAIR_COUNT = (11, 16, 0)
IMAGES_OF = ([0, 1], [2], [])
FEATURES_3D, FEATURES_2D = 12, 32
LR, STEPS, DECAY, MOMENTUM, KEEP = 0.05, 7, 0.03, 0.9, 0.8
TERMS = ("cam_3d", "cam_2d", "cmg_3d", "cmg_2d", "rpc_3d", "rpc_2d")
# None like another, so that no two can be taken for each other.
WEIGHTS = LossWeights(
  *(0.7, 1.3, 0.4, 0.3, 0.8, 1.1), cam_warmup=2, cmg_warmup=3, rpc_warmup=4
)
# Compiling is most of the time here, and programs run a few times only.
FAST_COMPILE = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
}
# Blocks at both ends only: every kind of layer, little to compile.
ARCHITECTURE = ((1, 0, 0, 0, 0, 0, 0, 1), *minkunet.ARCHITECTURES["14A"][1:])


def network(axis_name):
  return TwoBranchNet(
    minkunet.MinkUNet("ends", K, width=4, axis_name=axis_name),
    DilatedResNet(18, K, width=4, axis_name=axis_name),
    proj_3d_features=FEATURES_2D,
    proj_2d_features=FEATURES_3D,
  )


def make_method(**settings):
  settings = {"weights": WEIGHTS, "ema_keep": KEEP, **settings}
  optimizer = common.sgd(LR, STEPS, momentum=MOMENTUM, weight_decay=DECAY)
  return WSegPC(network(parallel.AXIS), optimizer, **settings)


def make_view(rng):
  coords, features = [], []
  for scene in range(2):
    place = rng.uniform(0, 14, (90 + 30 * scene, 2))
    height = 0.3 * place[:, :1] + rng.uniform(0, 3)
    voxels = voxelize.voxelize(np.c_[place, height], 1.0).coords
    coords.append(np.c_[np.full(len(voxels), scene), voxels])
    features.append(rng.normal(scene, 1, (len(voxels), 6)))
  coords = np.concatenate(coords).astype(np.int32)
  features = np.concatenate(features).astype(np.float32)
  rows = ((0, CAPACITIES[0] - len(coords)), (0, 0))
  return types.View(
    coords=np.pad(coords, rows, constant_values=-1),
    features=np.pad(features, rows),
    count=np.int32(len(coords)),
    capacities=CAPACITIES,
  )


def make_batch():
  rng = np.random.default_rng(11)
  student, teacher = make_view(rng), make_view(rng)
  m, count = CAPACITIES[0], int(student.count)
  scene, other = student.coords[:, 0], teacher.coords[:, 0]
  teacher_row = np.full(m, m, np.int32)
  superpoint = np.full(m, SUPERPOINTS, np.int32)
  for row in range(count):
    teacher_row[row] = rng.choice(np.flatnonzero(other == scene[row]))
    superpoint[row] = rng.integers(0, 12) + 14 * scene[row]
  teacher_row[rng.choice(count, 6, replace=False)] = m
  superpoint[rng.choice(count, 30, replace=False)] = SUPERPOINTS
  tags = np.zeros((SLOTS, K), bool)
  tags[0, [0, 1, 3]] = tags[1, [1, 2]] = True
  image_tags = tags.copy()
  image_tags[0, 4] = True  # a structure that the 3D view has lost

  images = SLOTS * VIEWS
  mask = np.isin(np.arange(images), sum(IMAGES_OF, []))
  region = rng.integers(0, 9, (images, HEIGHT // 4, WIDTH // 4))
  none = region == 8
  region = np.where(none, REGIONS, region + 8 * np.arange(6)[:, None, None])
  coarse = rng.integers(0, 256, (2, images, HEIGHT // 8, WIDTH // 8, 3))
  pictures = coarse.repeat(8, 2).repeat(8, 3)
  pictures = (pictures + rng.integers(0, 60, pictures.shape)).clip(0, 255)

  voxel = np.zeros((SLOTS, PAIRS), np.int32)
  image = np.zeros((SLOTS, PAIRS), np.int32)
  position = np.zeros((SLOTS, PAIRS, 2), np.float32)
  for slot, n in enumerate(PAIR_COUNT):
    if n:
      voxel[slot, :n] = rng.choice(np.flatnonzero(scene == slot), n)
      image[slot, :n] = rng.choice(IMAGES_OF[slot], n)
      position[slot, :n] = rng.integers(0, (HEIGHT, WIDTH), (n, 2))
  return types.Batch(
    student=student,
    label=np.full(m, 255, np.int32),
    scene_mask=np.array([True, True, False]),
    tags=tags,
    teacher=teacher,
    teacher_row=teacher_row,
    superpoint=superpoint,
    images=types.Images(
      student=pictures[0].astype(np.uint8),
      mask=mask,
      tags=image_tags,
      teacher=pictures[1].astype(np.uint8),
      region=region.repeat(4, 1).repeat(4, 2).astype(np.int32),
      num_regions=REGIONS,
    ),
    pairs=types.Pairs(voxel, image, position, np.array(PAIR_COUNT, np.int32)),
    num_superpoints=SUPERPOINTS,
  )


BATCH = make_batch()
VOXELS = int(BATCH.student.count)


def make_state(method):
  """A state in mid-training: the teacher differs, counters are not zero."""
  rng = np.random.default_rng(12)

  def near(a):
    return (a + rng.normal(0, 0.05, a.shape)).astype(a.dtype)

  def statistics(path, a):
    if path[-1].key == "mean":
      return rng.normal(0, 0.2, a.shape).astype(a.dtype)
    return rng.uniform(0.5, 1.5, a.shape).astype(a.dtype)

  state = jax.device_get(method.init(0, BATCH))
  # Logits of a fresh classifier are too alike to tell confidences apart.
  state.params["net_2d"]["cls"]["kernel"] *= 20
  state = state.replace(params=jax.tree.map(near, state.params))
  draw = jax.tree_util.tree_map_with_path
  return state.replace(
    batch_stats=draw(statistics, state.batch_stats),
    ema_params=jax.tree.map(near, state.params),
    ema_batch_stats=draw(statistics, state.batch_stats),
    selected_3d=np.array([[0, 3, 2, 0, 0], [900, 7, 11, 2, 500]], np.int32),
    selected_2d=np.array([[0, 0, 0, 0, 0], [60, 100, 80, 20, 90]], np.int32),
  )


def data_parallel(method):
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (parallel.AXIS,))
  return parallel.data_parallel(
    method.train_step, runner="shard_map", mesh=mesh
  )


def stacked(batch):
  return jax.tree.map(lambda a: a[None], batch)


def compiled(function, *args):
  return function.lower(*args).compile(FAST_COMPILE)


def compile_step(method, state):
  program = compiled(data_parallel(method), state, stacked(BATCH))

  def run(state, batch=BATCH):
    copies = jax.tree.map(np.copy, state)
    return jax.device_get(program(copies, stacked(batch)))

  return run


# --- the losses once more, in numpy for values and in jax for gradients -----

NUMPY = python_types.SimpleNamespace(xp=np, stop_gradient=lambda x: x)
JAX = python_types.SimpleNamespace(xp=jnp, stop_gradient=jax.lax.stop_gradient)


def reading_weights(compat):
  """Of each slot's pairs: dense weights [n, I, h, w] of the 2D features."""

  def hat(position, cells, divisor):
    place = np.clip(position * (cells - 1) / divisor, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))

  out = []
  for slot, n in enumerate(PAIR_COUNT):
    row, col = BATCH.pairs.position[slot, :n].T
    rows = hat(row, HEIGHT // 8, HEIGHT if compat else HEIGHT - 1)
    cols = hat(col, WIDTH // 8, WIDTH if compat else WIDTH - 1)
    image = np.eye(SLOTS * VIEWS)[BATCH.pairs.image[slot, :n]]
    out.append(np.einsum("pi,ph,pw->pihw", image, rows, cols).astype("f4"))
  return out


def loss_terms(lib, params, points, pixels, targets, reading):
  """Every term by its definition, without weight and warm-up."""
  xp = lib.xp
  (logits_3d, features_3d), (logits_2d, features_2d) = points, pixels
  scene = BATCH.student.coords[:, 0]

  def soft_margin(x, y):
    return xp.log1p(xp.exp(np.where(y, -1.0, 1.0) * x)).mean()

  def log_softmax(x):
    return x - xp.log(xp.exp(x - x.max()).sum(1, keepdims=True)) - x.max()

  def unit(x):
    return x / xp.sqrt((x**2).sum(1, keepdims=True))

  def info_nce(query, key):
    cosines = unit(query) @ unit(lib.stop_gradient(key)).T
    return -xp.diagonal(log_softmax(cosines / 0.07)).mean()

  def linear(name, x):
    return x @ params[name]["kernel"] + params[name]["bias"]

  terms = dict.fromkeys(TERMS, 0.0)
  for slot in range(2):
    mean = logits_3d[np.flatnonzero(scene == slot)].mean(0)
    terms["cam_3d"] += soft_margin(mean, BATCH.tags[slot]) / 2
    mean = logits_2d[np.array(IMAGES_OF[slot])].mean((0, 1, 2))
    terms["cam_2d"] += soft_margin(mean, BATCH.images.tags[slot]) / 2
    voxels = features_3d[BATCH.pairs.voxel[slot, : PAIR_COUNT[slot]]]
    read = xp.einsum("pihw,ihwc->pc", reading[slot], features_2d)
    terms["cmg_3d"] += info_nce(linear("proj_3d", voxels), read)
    terms["cmg_2d"] += info_nce(linear("proj_2d", read), voxels)
  for name, logits, (label, mask), number in (
    ("rpc_3d", logits_3d, targets[0], VOXELS),
    ("rpc_2d", logits_2d.reshape(-1, K), targets[1], 3 * PIXELS),
  ):
    entropy = -(log_softmax(logits) * xp.eye(K)[label]).sum(1)
    terms[name] = (mask * entropy).sum() / number
  return terms


def as_integers(counters):
  return counters[0].astype(np.int64) * 2**30 + counters[1]


def pseudo_labels(logits, tags, region, counters, none):
  """(label, selected) of elements, by loops over regions.

  Args:
    logits: {element: [K]} of the teacher, where there are any.
    tags: {element: bool [K]}.
    region, none: of each element, and the number that means none.
    counters: from before the step.
  """
  label, selected = np.zeros(len(region), np.int32), np.zeros(len(region), bool)
  groups = {}
  for element, x in logits.items():
    weights = np.exp(x.astype(np.float64)) * tags[element]
    alone = region[element] == none
    key = ("alone", element) if alone else int(region[element])
    groups.setdefault(key, {})[element] = weights / weights.sum()
  before = as_integers(counters)
  for members in groups.values():
    mean = np.mean(list(members.values()), axis=0)
    best = int(mean.argmax())
    if mean[best] >= 0.8 * before[best] / max(before.max(), 1):
      label[list(members)], selected[list(members)] = best, True
  return label, selected


def make_targets(state, logits_3d, logits_2d):
  """The teacher's pseudo-labels of voxels and of flat pixels."""
  scene, rows = BATCH.student.coords[:, 0], BATCH.teacher_row
  known = [r for r in range(VOXELS) if rows[r] < CAPACITIES[0]]
  flat = logits_2d.reshape(-1, K)
  pixels = [p for p in range(len(flat)) if BATCH.images.mask[p // PIXELS]]
  return (
    pseudo_labels(
      {r: logits_3d[rows[r]] for r in known},
      {r: BATCH.tags[scene[r]] for r in known},
      BATCH.superpoint,
      state.selected_3d,
      SUPERPOINTS,
    ),
    pseudo_labels(
      {p: flat[p] for p in pixels},
      {p: BATCH.images.tags[p // (VIEWS * PIXELS)] for p in pixels},
      BATCH.images.region.reshape(-1),
      state.selected_2d,
      REGIONS,
    ),
  )


def warmup(step):
  """Weight times min(t / warm, 1); t = 0, 1, ... for CAM, else 1, 2, ..."""
  cam = min(step / 2, 1)
  cmg = min((step + 1) / 3, 1)
  rpc = min((step + 1) / 4, 1)
  weights = (0.7, 1.3, 0.4, 0.3, 0.8, 1.1)
  both = zip(TERMS, weights, (cam, cam, cmg, cmg, rpc, rpc), strict=True)
  return {name: np.float32(a * b) for name, a, b in both}


# --- the networks' outputs, and what a step has to give ----------------------


def apply_network(variables, view, pictures, train):
  """(logits, features) of voxels and of pixels, and the new statistics."""
  apply = network(axis_name=None).apply
  plan = plan_lib.build_plan(view.coords, view.count, CAPACITIES)
  mode = dict(train=train, mutable=["batch_stats"])
  points, new_3d = apply(
    variables, view.features, plan, method="points", **mode
  )
  pixels, new_2d = apply(
    variables, pictures, BATCH.images.mask, method="images", **mode
  )
  stats = {
    "net_3d": new_3d["batch_stats"]["net_3d"],
    "net_2d": new_2d["batch_stats"]["net_2d"],
  }
  return points, pixels, stats


@dataclasses.dataclass
class Expected:
  metrics: dict
  gradient: dict
  batch_stats: dict
  teacher_stats: dict
  targets: tuple


class Oracle:
  """Two programs: the networks in training and in evaluation mode."""

  def __init__(self, state):
    def loss(params, stats, view, pictures, factors, targets, reading):
      variables = {"params": params, "batch_stats": stats}
      outputs = apply_network(variables, view, pictures, train=True)
      terms = loss_terms(JAX, params, *outputs[:2], targets, reading)
      return sum(factors[name] * terms[name] for name in TERMS), outputs

    def evaluate(params, stats, batch):
      variables = {"params": params, "batch_stats": stats}
      outputs = apply_network(
        variables, batch.student, batch.images.student, train=False
      )
      return outputs, make_method().predict(variables, batch)

    both = state.params, state.batch_stats
    self.nothing = tuple(
      (np.zeros(n, np.int32), np.zeros(n, bool))
      for n in (CAPACITIES[0], SLOTS * VIEWS * PIXELS)
    )
    self._train = compiled(
      jax.jit(jax.grad(loss, has_aux=True)),
      *both,
      *self.student_view,
      warmup(0),
      self.nothing,
      reading_weights(False),
    )
    self._evaluate = compiled(jax.jit(evaluate), *both, BATCH)

  student_view = BATCH.student, BATCH.images.student
  teacher_view = BATCH.teacher, BATCH.images.teacher

  def train(self, params, stats, views, factors, targets, compat):
    """Gradients and outputs in training mode."""
    out = self._train(
      params, stats, *views, factors, targets, reading_weights(compat)
    )
    return jax.device_get(out)

  def evaluate(self, params, stats, batch):
    """Outputs in evaluation mode, and those of `predict`."""
    return jax.device_get(self._evaluate(params, stats, batch))

  def expect(self, state, *, compat=False, teacher_trains=False):
    """What a step from this state has to give."""
    ema = state.ema_params, state.ema_batch_stats
    factors = warmup(int(state.step))
    if teacher_trains:
      _, outputs = self.train(
        *ema, self.teacher_view, factors, self.nothing, compat
      )
    else:
      outputs, _ = self.evaluate(*ema, teacher_batch())
    (logits_3d, _), (logits_2d, _), teacher_stats = outputs
    targets = make_targets(state, logits_3d, logits_2d)
    gradient, (points, pixels, stats) = self.train(
      state.params,
      state.batch_stats,
      self.student_view,
      factors,
      targets,
      compat,
    )
    params, points, pixels = jax.tree.map(
      np.float64, (state.params, points, pixels)
    )
    terms = loss_terms(
      NUMPY, params, points, pixels, targets, reading_weights(compat)
    )
    metrics = {name: factors[name] * terms[name] for name in TERMS}
    metrics["loss"] = sum(metrics.values())
    square = sum(np.square(g).sum() for g in jax.tree.leaves(gradient))
    metrics["grad_norm"] = np.sqrt(square)
    metrics["selected_3d"] = targets[0][1].sum() / VOXELS
    metrics["selected_2d"] = targets[1][1].sum() / (3 * PIXELS)
    return Expected(metrics, gradient, stats, teacher_stats, targets)


def teacher_batch():
  """The batch with the teacher's view in the student's place."""
  images = BATCH.images.replace(student=BATCH.images.teacher)
  return BATCH.replace(student=BATCH.teacher, images=images)


def assert_close(actual, expected, tolerance, what=""):
  """Leaf by leaf, relative to the largest entry of the leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for (path, a), b in zip(leaves, jax.tree.leaves(actual), strict=True):
    error = np.abs(np.asarray(b, np.float64) - a).max()
    error /= max(np.abs(a).max(), 1e-6)
    assert error < tolerance, f"{what}{jax.tree_util.keystr(path)}: {error}"


def average(old, new):
  return jax.tree.map(lambda a, b: KEEP * a + (1 - KEEP) * b, old, new)
