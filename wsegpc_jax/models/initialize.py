"""Variables of a network from a seed, made on the host.

The same numbers on every platform and version of jax, and nothing to compile:
a jitted `Module.init` compiles the network and a generator for every kernel,
which takes longer than the training step itself.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

_HEADS = ("cls",)  # as torch initialises a new convolution


def kernel_std(shape: tuple[int, ...]) -> float:
  """Standard deviation of a kernel: Kaiming, gain sqrt(2), fan-out.

  [taps, in, out] and [height, width, in, out] count the taps in. For a matrix
  [in, out] the fan is `in`, as in MinkowskiEngine, which takes it for a
  torch Linear's transposed weight.
  """
  fan = shape[0] if len(shape) == 2 else math.prod(shape[:-2]) * shape[-1]
  return math.sqrt(2 / fan)


def torch_default_std(shape: tuple[int, ...]) -> float:
  """Standard deviation of torch's default, uniform in +-1 / sqrt(fan-in).

  What torchsparse takes for its convolutions, and torch for linear layers.
  """
  return 1 / math.sqrt(3 * math.prod(shape[:-1]))


def kernel_init(key, shape, dtype=np.float32) -> jax.Array:
  """A flax initializer of that scale."""
  return kernel_std(shape) * nn.initializers.normal(1.0)(key, shape, dtype)


def init_variables(
  module: nn.Module, seed: int, *args: Any, **kwargs: Any
) -> dict[str, Any]:
  """{"params", "batch_stats"} of a module, numpy arrays, deterministic.

  Scales and variances start at one, biases and means at zero, kernels are
  normal with `kernel_std`, or with what a function of that name of the module
  gives; of the image branch's class head with `torch_default_std`.

  Args:
    module: the network.
    seed: of all kernels.
    *args, **kwargs: of its call; shapes are all that matters.
  """
  shapes = jax.eval_shape(
    lambda key, a: module.init(key, *a, **kwargs), jax.random.key(0), args
  )
  flat = traverse_util.flatten_dict(shapes, sep="/")
  std_of = getattr(module, "kernel_std", kernel_std)
  return traverse_util.unflatten_dict(
    {path: _value(path, leaf, seed, std_of) for path, leaf in flat.items()},
    sep="/",
  )


def _value(
  path: str,
  leaf: jax.ShapeDtypeStruct,
  seed: int,
  std_of: Callable[[tuple[int, ...]], float],
) -> np.ndarray:
  *_, module, name = path.split("/")
  if name in ("scale", "var"):
    return np.ones(leaf.shape, leaf.dtype)
  if name in ("bias", "mean"):
    return np.zeros(leaf.shape, leaf.dtype)
  if name != "kernel":
    raise ValueError(f"no rule to initialise {path}")
  std = (torch_default_std if module in _HEADS else std_of)(leaf.shape)
  rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
  return (std * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
