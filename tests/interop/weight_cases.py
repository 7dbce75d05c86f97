"""Networks and state dicts for the tests of weights."""

import json
import math
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from wsegpc_jax.interop import torch_pickle
from wsegpc_jax.models import initialize
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.models.minkunet import MinkUNet
from wsegpc_jax.models.two_branch import TwoBranchNet
from wsegpc_jax.sparse import plan as plan_lib

FIXTURES = Path(__file__).parent / "fixtures" / "weights"
# A narrow network of both branches, of 5 classes.
NARROW = TwoBranchNet(
  MinkUNet("14A", 5, width=4), DilatedResNet(18, 5, width=2), 16, 12
)


def draw(name, shape):
  """A weight as the makers of the golden files drew it.

  Variances are small, so that a wrong epsilon shows.
  """
  if name.endswith("num_batches_tracked"):
    return np.array(7, np.int64)
  u = 2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 1
  if name.endswith("running_var"):
    u = 0.12 + 0.1 * u
  elif name.endswith(("running_mean", "bias")):
    u = 0.1 * u
  elif name.endswith("kernel"):
    u = u / math.sqrt(math.prod(shape[:-1]))
  elif len(shape) == 1:
    u = 1 + 0.3 * u
  else:
    u = 0.5 * u / math.sqrt(math.prod(shape[1:]))
  return u.astype(np.float32)


def drawn(shapes):
  return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def shape_of_plan(capacities=(16, 8, 8, 8, 8)):
  return jax.eval_shape(
    lambda c, n: plan_lib.build_plan(c, n, capacities),
    jax.ShapeDtypeStruct((capacities[0], 4), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
  )


def variables_of(net, channels=6):
  points = jax.ShapeDtypeStruct((16, channels), jnp.float32), shape_of_plan()
  images = (
    jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
    jax.ShapeDtypeStruct((1,), bool),
  )
  inputs = {MinkUNet: points, DilatedResNet: images}.get(
    type(net), (*points, *images)
  )
  return initialize.init_variables(net, 0, *inputs, train=False)


def flat(variables):
  return traverse_util.flatten_dict(variables, sep="/")


def assert_same(a, b):
  a, b = flat(a), flat(b)
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert a[name].dtype == b[name].dtype


def narrow():
  """Variables of it, other values than a fresh network's."""
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda a: rng.uniform(0.1, 1, a.shape).astype(a.dtype),
    variables_of(NARROW),
  )


def load_golden(name):
  """(arrays of a golden file, weights it was made with by torch's names)."""
  with np.load(FIXTURES / f"{name}.npz") as file:
    golden = dict(file)
  return golden, drawn(json.loads(str(golden.pop("shapes"))))


def prefixed(prefix, arrays):
  return {prefix + key: value for key, value in arrays.items()}


def heads(*names):
  return {name: np.ones((2, 3), np.float32) for name in names}


def save(path, tree):
  torch_pickle.save(path, tree)
