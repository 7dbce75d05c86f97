"""The convolutions between levels, against a loop over fine rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_problems import assert_close, compiled

from wsegpc_jax.kernels import strided_conv as ops
from wsegpc_jax.kernels.strided_conv import IMPLEMENTATIONS, specs


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision("highest"):
    yield


def links(m, p, seed=0, padding=3):
  """parent, octant [M + padding] and children [P + padding, 8] of M voxels."""
  rng = np.random.default_rng(seed)
  place = np.sort(rng.choice(8 * p, m, replace=False))
  parent = np.pad(place // 8, (0, padding), constant_values=p + padding)
  octant = np.pad(place % 8, (0, padding))
  children = np.full((p + padding, 8), m + padding)
  children[place // 8, place % 8] = np.arange(m)
  return tuple(jnp.asarray(a, jnp.int32) for a in (parent, octant, children))


def problem(spec, seed=0):
  parent, octant, children = links(spec.m, spec.p, seed)
  rng = np.random.default_rng(seed + 1)
  shapes = {
    "fine": (len(parent), spec.c),
    "coarse": (len(children), spec.c),
    "weight": (8, spec.c, spec.d),
    "fine_cotangent": (len(parent), spec.d),
    "coarse_cotangent": (len(children), spec.d),
  }
  arrays = {
    name: jnp.asarray(rng.standard_normal(shape), spec.dtype)
    for name, shape in shapes.items()
  }
  return arrays | {"parent": parent, "octant": octant, "children": children}


def oracle(p):
  """The results of `everything` in float64, a fine row at a time."""
  p = {
    k: np.asarray(v, None if v.dtype == jnp.int32 else np.float64)
    for k, v in p.items()
  }
  down, up = (
    np.zeros_like(p["coarse_cotangent"]),
    np.zeros_like(p["fine_cotangent"]),
  )
  down_dx, up_dx = np.zeros_like(p["fine"]), np.zeros_like(p["coarse"])
  down_dw, up_dw = np.zeros_like(p["weight"]), np.zeros_like(p["weight"])
  for i, (q, k) in enumerate(zip(p["parent"], p["octant"], strict=True)):
    if q < len(p["coarse"]):
      w = p["weight"][k]
      down[q] += p["fine"][i] @ w
      up[i] = p["coarse"][q] @ w
      down_dx[i] = w @ p["coarse_cotangent"][q]
      up_dx[q] += w @ p["fine_cotangent"][i]
      down_dw[k] += np.outer(p["fine"][i], p["coarse_cotangent"][q])
      up_dw[k] += np.outer(p["coarse"][q], p["fine_cotangent"][i])
  return down, up, down_dx, down_dw, up_dx, up_dw


def everything(p, *, implementation):
  run = {"implementation": implementation}
  children, parent, octant = p["children"], p["parent"], p["octant"]
  weight = p["weight"]
  return (
    ops.strided_conv(p["fine"], children, weight, **run),
    ops.transposed_conv(p["coarse"], parent, octant, weight, **run),
    *ops.strided_backward(
      *(p["fine"], children, parent, octant, weight, p["coarse_cotangent"]),
      **run,
    ),
    *ops.transposed_backward(
      *(p["coarse"], children, weight, p["fine_cotangent"]), **run
    ),
  )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestStridedConv:
  @pytest.mark.parametrize("spec", specs.TESTS, ids=str)
  def test_equals_the_loop_over_rows(self, implementation, spec):
    arrays = problem(spec)
    got = compiled(everything, implementation)(arrays)
    for i, (a, b) in enumerate(zip(got, oracle(arrays), strict=True)):
      assert_close(a, b, "float32" if i in (3, 5) else spec.dtype)

  def test_padding_of_the_coarse_level_is_not_read(self, implementation):
    p = problem(specs.Spec(20, 9, 3, 3))
    coarse = p["coarse"].at[-3:].set(jnp.nan)
    run = compiled(ops.transposed_conv, implementation)
    out = run(coarse, p["parent"], p["octant"], p["weight"])
    np.testing.assert_array_equal(out[-3:], 0)
    assert np.isfinite(out).all()

  def test_a_parent_that_is_no_row_gives_zero(self, implementation):
    p = problem(specs.Spec(20, 9, 3, 3))
    rows = len(p["coarse"])
    parent = jnp.asarray([-1, 0, rows, 1 << 28, -(1 << 28)], jnp.int32)
    octant = jnp.arange(5, dtype=jnp.int32)
    run = compiled(ops.transposed_conv, implementation)
    out = run(p["coarse"], parent, octant, p["weight"])
    np.testing.assert_array_equal(np.asarray(out).any(1), [0, 1, 0, 0, 0])

  @pytest.mark.parametrize("m", [0, 2])
  def test_without_voxels(self, implementation, m):
    parent = octant = jnp.zeros(m, jnp.int32)
    out = ops.transposed_conv(
      jnp.ones((0, 3)),
      parent,
      octant,
      jnp.ones((8, 3, 5)),
      implementation=implementation,
    )
    np.testing.assert_array_equal(out, np.zeros((m, 5)))

  def test_mismatched_arguments(self, implementation):
    parent = octant = jnp.zeros(2, jnp.int32)
    run = functools.partial(ops.transposed_conv, implementation=implementation)
    with pytest.raises(ValueError, match=r"3 channels, weight \[8, 2, 5\]"):
      run(jnp.ones((4, 3)), parent, octant, jnp.ones((8, 2, 5)))
    with pytest.raises(ValueError, match=r"\[M\] both, got \[2\] and \[1\]"):
      run(jnp.ones((4, 3)), parent, octant[:1], jnp.ones((8, 3, 5)))

  @pytest.mark.parametrize("operation", ["strided", "transposed"])
  def test_gradients_of_mismatched_arguments(self, implementation, operation):
    p = problem(specs.Spec(20, 9, 3, 4))
    fine, coarse = p["fine"], p["coarse"]
    if operation == "strided":
      x, g, links = (
        fine,
        p["coarse_cotangent"],
        ("children", "parent", "octant"),
      )
      run = ops.strided_backward
    else:
      x, g, links = coarse, p["fine_cotangent"], ("children",)
      run = ops.transposed_backward
    run = functools.partial(run, implementation=implementation)
    links = [p[name] for name in links]
    with pytest.raises(ValueError, match=r"x has 2 channels, weight \[8, 3, 4"):
      run(x[:, :2], *links, p["weight"], g)
    with pytest.raises(ValueError, match="cotangent has 3 channels.* gives 4"):
      run(x, *links, p["weight"], g[:, :3])
    with pytest.raises(ValueError, match=r"cotangent must be \[M, D\]"):
      run(x, *links, p["weight"], g[:, 0])


def test_unknown_implementation():
  parent = jnp.zeros(2, jnp.int32)
  with pytest.raises(ValueError, match="'cuda' is unknown.*'xla'"):
    ops.transposed_conv(
      jnp.ones((4, 3)),
      parent,
      parent,
      jnp.ones((8, 3, 5)),
      implementation="cuda",
    )
