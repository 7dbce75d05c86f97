"""Problems, oracle and comparison shared by the tests of the kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def compiled(function, implementation=None):
  """`function` under jit; optimising an interpreted kernel takes seconds."""
  if implementation is not None:
    function = functools.partial(function, implementation=implementation)
  options = {"xla_backend_optimization_level": 0}
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(function, compiler_options=options if on_cpu else None)


def random_problem(spec, seed=0):
  """(x, table, weight, cotangent); about half of the table is missing."""
  rng = np.random.default_rng(seed)
  table = rng.integers(0, spec.n, (spec.m, spec.taps))
  table = np.where(rng.random(table.shape) < 0.5, spec.n, table)
  shapes = (spec.n, spec.c), (spec.taps, spec.c, spec.d), (spec.m, spec.d)
  x, weight, cotangent = (
    jnp.asarray(rng.standard_normal(shape), spec.dtype) for shape in shapes
  )
  return x, jnp.asarray(table, jnp.int32), weight, cotangent


def voxel_problem(n=60, padding=5, c=6, d=9, seed=0):
  """The same on the 3^3 neighbourhoods of random voxels: a symmetric table."""
  rng = np.random.default_rng(seed)
  cells = rng.choice(5**3, n, replace=False)
  voxels = np.stack(np.unravel_index(cells, (5, 5, 5)), 1)
  row = {tuple(v): i for i, v in enumerate(voxels)}
  m = n + padding
  table = np.full((m, 27), m)
  offsets = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), 1) - 1
  for i, v in enumerate(voxels):
    for k, offset in enumerate(offsets):
      table[i, k] = row.get(tuple(v + offset), m)
  shapes = (m, c), (27, c, d), (m, d)
  x, weight, cotangent = (
    jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes
  )
  return x, jnp.asarray(table, jnp.int32), weight, cotangent


def oracle(x, table, weight, cotangent):
  """(out, dx, dW) in float64, a pair at a time."""
  table = np.asarray(table)
  x, weight, cotangent = (
    np.asarray(a, np.float64) for a in (x, weight, cotangent)
  )
  out = np.zeros((len(table), weight.shape[2]))
  dx, dw = np.zeros_like(x), np.zeros_like(weight)
  for i, row in enumerate(table):
    for k, j in enumerate(row):
      if 0 <= j < len(x):
        out[i] += x[j] @ weight[k]
        dx[j] += weight[k] @ cotangent[i]
        dw[k] += np.outer(x[j], cotangent[i])
  return out, dx, dw


def assert_close(got, expected, dtype="float32"):
  """Equal up to rounding of the result, relative to the largest value."""
  assert got.dtype == dtype
  tolerance = {"float64": 1e-13, "float32": 2e-6, "bfloat16": 4e-3}[str(dtype)]
  scale = np.abs(expected).max() if expected.size else 0.0
  np.testing.assert_allclose(
    np.asarray(got, np.float64), expected, rtol=0, atol=tolerance * scale
  )
