"""Gradients of a step: summed over parts of a batch, and their norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# (statistics, part) -> (gradients, statistics after it, what else is summed).
Share = Callable[[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]


def accumulate(
  share: Share, statistics: PyTree, batch: PyTree, *, parts: int = 1
) -> tuple[PyTree, PyTree, PyTree]:
  """Sums of a device's gradients over the parts of its batch, one at a time.

  Only one part's activations exist at a time. A share's gradient is that of a
  numerator over the counts of the whole batch, all parts and devices, as
  everywhere in these methods; so the sum is the gradient of the whole batch's
  loss: every voxel, pixel and scene weighs the same, whatever part it is in.
  Batch norm is the exception: it normalises each part by the part's own
  statistics (over all devices), and the running ones move once a part, in
  order.

  Args:
    share: of one part.
    statistics: that pass from part to part, such as batch statistics.
    batch: with a leading axis of `parts`; without it if that is 1.
    parts: of the batch.

  Returns:
    Gradients and what else a share gives, summed over the parts, and the
    statistics after the last.
  """
  if parts == 1:
    gradients, statistics, sums = share(statistics, batch)
    return gradients, statistics, sums

  def add(carry, part):
    statistics, total = carry
    gradients, statistics, sums = share(statistics, part)
    total = jax.tree.map(jnp.add, total, (gradients, sums))
    return (statistics, total), None

  first = jax.tree.map(lambda a: a[0], batch)
  shapes = jax.eval_shape(share, statistics, first)
  zeros = jax.tree.map(
    lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0], shapes[2])
  )
  (statistics, total), _ = jax.lax.scan(add, (statistics, zeros), batch)
  return total[0], statistics, total[1]


def count(
  counts: Callable[[PyTree], PyTree], batch: PyTree, *, parts: int = 1
) -> PyTree:
  """What `counts` gives of a batch, summed over its parts."""
  if parts == 1:
    return counts(batch)
  return jax.tree.map(lambda n: n.sum(0), jax.vmap(counts)(batch))


def norm(tree: PyTree) -> Float[Array, ""]:
  """The Euclidean norm of all leaves together.

  They are joined before they are squared: a reduction of its own for every
  shape of leaf would be a tenth of the code that a training step compiles to.
  """
  flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])
  return jnp.sqrt(jnp.square(flat).sum())
