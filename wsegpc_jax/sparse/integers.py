"""What custom gradients return for arguments that are integers."""

import jax
import numpy as np
from jaxtyping import PyTree


def no_gradient(tree: PyTree) -> PyTree:
  """The cotangent of a tree of integer arrays."""
  return jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), tree)
