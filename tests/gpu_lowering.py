"""Lowering for a GPU that is not there."""

import contextlib

import jax

TRITON_CALL = "__gpu$xla.gpu.triton"


def on_a_gpu():
  """A context in which kernels lower for a GPU that is not there."""
  if jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H200", None, "cuda")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *arguments, **options) -> str:
  """The program of `function` for a GPU."""
  with on_a_gpu():
    traced = jax.jit(function).trace(*arguments, **options)
    return traced.lower(lowering_platforms=("cuda",)).as_text()
