"""Training steps and kernels lower for platforms that this machine lacks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lowered, on_a_gpu
from parallel_equality_parts import make_batch, make_method

from wsegpc_jax import parallel
from wsegpc_jax.kernels import gather_conv, segment_sum, strided_conv


def test_training_step_lowers_for_gpus_and_tpus():
  batch = make_batch()
  method = make_method(np.float32)
  state = method.init(0, jax.tree.map(lambda a: a[0], batch))
  traced = parallel.data_parallel(method.train_step).trace(state, batch)
  for platform in ("cuda", "tpu"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Convolutions are matrix products, on these platforms, too.
    assert text.count("stablehlo.dot_general") > 50, platform


def test_training_step_lowers_with_the_kernels_of_a_gpu(monkeypatch):
  batch = make_batch()
  method = make_method(np.float32)
  net_3d = method.model.net_3d.clone(implementation="pallas")
  model = method.model.clone(net_3d=net_3d)
  method = dataclasses.replace(method, model=model)
  state = jax.eval_shape(
    functools.partial(method.init, 0), jax.tree.map(lambda a: a[0], batch)
  )
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with on_a_gpu():
    # Without a mesh, which would be one of this machine's devices.
    step = parallel.data_parallel(method.train_step, runner="vmap")
    traced = step.trace(state, batch)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count(TRITON_CALL) > 20
  # The means over the regions of either dimension, three passes each.
  assert text.count('name = "segment_reduce"') == 6
  # Rows of the finest level are sorted once for each of its two tables, in the
  # student's and in the teacher's plan, however many layers there are.
  assert text.count("tensor<1x2400xui32>, tensor<1x2400xi32>) ->") == 4


CONVOLUTIONS = {
  "forward": lambda a, how: gather_conv.gather_conv(
    a["fine"], a["table"], a["weight"], **how
  ),
  "weight gradient": lambda a, how: gather_conv.gather_conv_weight_gradient(
    a["fine"], a["table"], a["fine_g"], taps=27, **how
  ),
  "strided": lambda a, how: strided_conv.strided_conv(
    a["fine"], a["children"], a["wide"], **how
  ),
  "strided gradients": lambda a, how: strided_conv.strided_backward(
    *(a["fine"], a["children"], a["parent"], a["octant"]),
    *(a["wide"], a["coarse_g"]),
    **how,
  ),
  "transposed": lambda a, how: strided_conv.transposed_conv(
    a["coarse"], a["parent"], a["octant"], a["wide"], **how
  ),
  "transposed gradients": lambda a, how: strided_conv.transposed_backward(
    a["coarse"], a["children"], a["wide"], a["fine_g"], **how
  ),
}
# Channels of a block, no power of two, and fewer than a block's least side.
SIZES = ("bfloat16", 96, 64), ("float32", 6, 20)


@pytest.mark.parametrize(("dtype", "c", "d"), SIZES)
def test_convolutions_lower_for_a_gpu(monkeypatch, dtype, c, d):
  m, p = 150, 40
  shapes = {
    **{"fine": (m, c), "fine_g": (m, d), "coarse": (p, c), "coarse_g": (p, d)},
    **{"weight": (27, c, d), "wide": (8, c, d)},
  }
  tables = {"table": (m, 27), "children": (p, 8), "parent": (m,)}
  given = {k: jnp.ones(shape, dtype) for k, shape in shapes.items()}
  given |= {k: jnp.zeros(shape, jnp.int32) for k, shape in tables.items()}
  given["octant"] = given["parent"]
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for name, function in CONVOLUTIONS.items():
    run = functools.partial(function, how={"implementation": "pallas"})
    text = lowered(run, given)
    kernels = 2 if name.endswith("gradients") else 1
    assert text.count(TRITON_CALL) == kernels, name
    # Given, not left to a default.
    for parameter in ("num_warps = ", "num_stages = "):
      assert text.count(parameter) == kernels, name


@pytest.mark.parametrize("kind", segment_sum.KINDS)
def test_reductions_lower_for_a_gpu(monkeypatch, kind):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  run = functools.partial(
    segment_sum.segment_reduce,
    num_segments=200,
    kind=kind,
    implementation="pallas",
  )
  x, segment = jnp.ones((90, 48), jnp.bfloat16), jnp.zeros(90, jnp.int32)
  assert lowered(run, x, segment).count(TRITON_CALL) == 2  # two passes
