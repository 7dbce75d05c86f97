"""Residual blocks that are computed again in the backward pass, not kept.

`jax.checkpoint` around the blocks of a network (Chen et al., arXiv
1604.06174). The modules, their names and variables stay as they are, and so do
values and gradients, up to rounding.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

# Residual blocks of the U-Net and of the ResNet, as weight files name them.
_BLOCK = re.compile(r"(block|layer)\d+_\d+")


@contextlib.contextmanager
def blocks_recomputed(enabled: bool) -> Iterator[None]:
  """Within it, if enabled, only the input of a residual block is kept."""
  inside = set()

  def intercept(call, args, kwargs, context):
    module = context.module
    if (
      context.method_name != "__call__"
      or module.path in inside
      or module.is_initializing()
      or not _BLOCK.fullmatch(module.name or "")
    ):
      return call(*args, **kwargs)
    # The module that is called under the checkpoint comes here once more.
    inside.add(module.path)
    try:
      again = nn.remat(lambda own, *a: own(*a, **kwargs), policy=_keep)
      return again(module, *args)
    finally:
      inside.remove(module.path)

  if not enabled:
    yield
    return
  with nn.intercept_methods(intercept):
    yield


def _keep(primitive: Any, *_: Any, **__: Any) -> bool:
  """Sums over devices are small, and dear to compute again."""
  return primitive.name == "psum"
