"""Activations that are computed again in the backward pass, not kept.

`jax.checkpoint` around some modules of a network (Chen et al., arXiv
1604.06174). The modules, their names and variables stay as they are, and so do
values and gradients, up to rounding.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn

from wsegpc_jax.models.masked_batch_norm import MaskedBatchNorm

KINDS = ("blocks", "norms")
# Residual blocks of the U-Net and of the ResNet, as weight files name them.
_BLOCK = re.compile(r"(block|layer)\d+_\d+")


@contextlib.contextmanager
def recomputed(*kinds: str) -> Iterator[None]:
  """Within it, networks are traced with checkpoints around some modules.

  Args:
    *kinds: "blocks": of a residual block only the input is kept. "norms": of a
      batch norm only the input, in its own dtype; batch norm computes in
      float32, and what autodiff keeps of that is most of what a network in
      bfloat16 keeps.

  Raises:
    ValueError: an unknown kind.
  """
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(
        f"kind={kind!r} is unknown; expected one of {', '.join(KINDS)}"
      )
  inside = set()

  def intercept(call, args, kwargs, context):
    module = context.module
    if (
      context.method_name != "__call__"
      or module.path in inside
      or module.is_initializing()
      or not _is_of(module, kinds)
    ):
      return call(*args, **kwargs)
    # The module that is called under the checkpoint comes here once more.
    inside.add(module.path)
    try:
      again = nn.remat(lambda own, *a: own(*a, **kwargs), policy=_keep)
      return again(module, *args)
    finally:
      inside.remove(module.path)

  if not kinds:
    yield
    return
  with nn.intercept_methods(intercept):
    yield


def _is_of(module: nn.Module, kinds: tuple[str, ...]) -> bool:
  if "norms" in kinds and isinstance(module, MaskedBatchNorm):
    return True
  return "blocks" in kinds and bool(_BLOCK.fullmatch(module.name or ""))


def _keep(primitive: Any, *_: Any, **__: Any) -> bool:
  """Sums over devices are small, and dear to compute again."""
  return primitive.name == "psum"
