"""The kernels under `wsegpc_jax.sparse.conv`: gradients, and what they share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lowered
from kernel_problems import assert_close, compiled

from wsegpc_jax.kernels.gather_conv import pallas_triton
from wsegpc_jax.sparse import conv
from wsegpc_jax.sparse.plan import build_plan


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision("highest"):
    yield


def plan_of(tiles):
  rng = np.random.default_rng(0)
  cells = rng.choice(6**3, 70, replace=False)
  voxels = np.stack(np.unravel_index(cells, (6, 6, 6)), 1)
  coords = np.full((75, 4), -1)
  coords[:70] = np.pad(voxels, ((0, 0), (1, 0)))
  build = jax.jit(
    functools.partial(
      build_plan,
      capacities=(75, 30),
      is_sorted=False,
      pairs=False,
      tiles=tiles,
    )
  )
  return build(jnp.asarray(coords, jnp.int32), jnp.int32(70))


def arguments():
  rng = np.random.default_rng(1)
  shapes = (75, 3), (27, 3, 5), (8, 5, 6), (27, 6, 4), (8, 4, 3)
  return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def loss(x, same, down, below, up, plan, implementation):
  how = {"implementation": implementation}
  fine, coarse = plan.levels
  x = conv.submanifold_conv(x, same, fine, **how)
  x = conv.strided_conv(x, down, fine, **how)
  x = conv.submanifold_conv(x, below, coarse, **how)
  x = conv.transposed_conv(x, up, fine, **how)
  return (x * jnp.cos(x / 99)).sum()


gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))


def test_gradients_are_those_of_the_reference():
  without, plan = plan_of(False), plan_of(True)
  assert without.levels[0].tiles is None
  assert plan.levels[0].tiles is not None
  _, expected = compiled(gradients, "reference")(*arguments(), without)
  _, got = compiled(gradients, "pallas")(*arguments(), plan)
  for a, b in zip(got, expected, strict=True):
    assert np.abs(b).max() > 1
    assert_close(a / 8, np.asarray(b) / 8)  # of several convolutions


def for_a_gpu(monkeypatch, plan, implementation):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  run = functools.partial(gradients, implementation=implementation)
  return lowered(run, *arguments(), plan)


def test_on_a_gpu_layers_share_the_tiles_of_their_plan(monkeypatch):
  with_tiles, without = plan_of(True), plan_of(False)
  text = for_a_gpu(monkeypatch, with_tiles, "pallas")
  # Four layers, three kernels each: the value and two gradients.
  assert text.count(TRITON_CALL) == 12
  # Tiles may be cut into smaller ones; the rows are not sorted again.
  rows_sorted = "(tensor<75xui32>, tensor<75xi32>) ->"
  assert rows_sorted not in text
  assert "stablehlo.scatter" not in text
  assert rows_sorted in for_a_gpu(monkeypatch, without, "pallas")
  assert TRITON_CALL not in for_a_gpu(monkeypatch, without, None)


@pytest.mark.parametrize("preferred", [False, True])
def test_a_plan_has_tiles_where_a_gpu_runs_the_kernels(monkeypatch, preferred):
  monkeypatch.setattr(pallas_triton, "PREFERRED", preferred)

  def has_tiles(implementation):
    coords = jax.ShapeDtypeStruct((75, 4), jnp.int32)
    build = functools.partial(
      build_plan, capacities=(75, 30), implementation=implementation
    )
    plan = jax.eval_shape(build, coords, jax.ShapeDtypeStruct((), jnp.int32))
    first, second = [level.tiles is not None for level in plan.levels]
    assert first == second
    return first

  for implementation in (None, "xla", "pallas"):
    assert not has_tiles(implementation)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert has_tiles("pallas")
  assert not has_tiles("xla")
  assert has_tiles(None) == preferred


def test_the_stem_is_no_work_for_the_kernels():
  # Its 125-tap table is not stored, so it must not be for their sake.
  run = functools.partial(conv.stem_conv, implementation="pallas")
  weight = jnp.ones((125, 3, 2))
  program = jax.make_jaxpr(run)(arguments()[0], weight, plan_of(False))
  assert "pallas_call" not in str(program)
