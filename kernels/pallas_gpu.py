"""The Pallas (Triton) back end of all kernels, behind one function.

Everything that depends on the back end is here: whether kernels run or are
interpreted, the compiler's parameters, its deprecation warning, and the rules
of Triton that every kernel keeps (block sides are powers of two, at least 16
where they meet in a product; ragged edges are masked).
"""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

try:
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton as plgpu
except ImportError:  # the lowering is deprecated: some jax will not have it
  pl = plgpu = None


def interpreted(interpret: bool | None) -> bool:
  """Whether kernels are interpreted: None runs them on a GPU only.

  Raises:
    ValueError: on a TPU, or under a jax without the Triton lowering.
  """
  if pl is None:
    raise ValueError(
      "implementation='pallas' needs the Triton lowering of Pallas, which jax "
      f"{jax.__version__} does not have; use implementation='xla'"
    )
  if interpret is not None:
    return interpret
  if jax.default_backend() == "tpu":
    raise ValueError(
      "implementation='pallas' is a Triton kernel, which cannot run on a TPU; "
      "use implementation='xla'"
    )
  return jax.default_backend() != "gpu"


def call(
  kernel: Callable,
  *operands: Array,
  name: str,
  programs: int,
  out: jax.ShapeDtypeStruct,
  warps: int,
  stages: int,
  interpret: bool,
) -> Array:
  """Runs `programs` programs of a kernel; refs are whole arrays.

  The grid has one axis only, the one that may have more than 65,535 programs.
  """
  if not interpret:
    # jax 0.11 and later warn at every lowering. Lowering comes after tracing,
    # when the caller's jit has left this function, so no context manager here
    # would last long enough; the filter hides this one message.
    warnings.filterwarnings(
      "ignore", "The Pallas Triton backend is deprecated", DeprecationWarning
    )
  return pl.pallas_call(
    kernel,
    grid=(programs,),
    out_shape=out,
    interpret=interpret,
    name=name,
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
  )(*operands)


def accumulator(dtype) -> jnp.dtype:
  """The type in which products of `dtype` are summed: float32 or wider."""
  return jnp.promote_types(dtype, jnp.float32)


def block(size: int, largest: int, smallest: int = 16) -> int:
  """The block of an axis: a power of two that holds it, or the largest."""
  return max(smallest, min(largest, 1 << max(size - 1, 0).bit_length()))


@dataclasses.dataclass(frozen=True)
class Blocks:
  """An axis in `count` blocks, each of pieces whose widths are powers of two.

  Attributes:
    size: of the axis.
    widths: of the pieces of a block; one piece if there are several blocks.
    count: blocks.
  """

  size: int
  widths: tuple[int, ...]
  count: int

  def at(self, index) -> list[tuple[Array, Array | None]]:
    """(positions, which exist or None if all do) of each piece of a block."""
    pieces, start = [], 0
    whole = self.count * sum(self.widths) <= self.size
    for width in self.widths:
      place = start + jnp.arange(width, dtype=jnp.int32)
      if self.count > 1:
        place = index * width + place
      start += width
      exists = whole or (self.count == 1 and start <= self.size)
      pieces.append((place, None if exists else place < self.size))
    return pieces


def blocks(size: int, largest: int, *, unpadded: bool = False) -> Blocks:
  """Cuts an axis into blocks of at most `largest`, a power of two.

  Args:
    size: of the axis.
    largest: an axis that has no more is one block.
    unpadded: an axis of at most 128 that is no power of two is one block of
      several pieces, as 96 = 64 + 32, instead of a block that is too wide.
  """
  if unpadded and size <= 128:
    units = -(-size // 16)
    bits = range(units.bit_length() - 1, -1, -1)
    return Blocks(size, tuple(16 << b for b in bits if units >> b & 1), 1)
  width = block(size, largest)
  return Blocks(size, (width,), -(-size // width))


def block_range(index, size: int) -> Array:
  """The positions of block `index`, int32 [size]."""
  return index * size + jnp.arange(size, dtype=jnp.int32)


def inside(columns: Array, size: int) -> Array | None:
  """Which columns exist; None if all do, whatever the block."""
  return None if size % columns.shape[0] == 0 else columns < size


def mask_of(rows: Array | None, columns: Array | None) -> Array | None:
  """The [R, C] mask of rows and columns of which some do not exist."""
  if rows is None and columns is None:
    return None
  if columns is None:
    return rows[:, None]
  return columns[None] if rows is None else rows[:, None] & columns[None]


def load(ref, rows: Array, columns: Array, live=None, exists=None) -> Array:
  """ref[rows, columns] where the row is live and the column exists, else 0."""
  mask = mask_of(live, exists)
  if mask is None:
    return plgpu.load(ref.at[rows[:, None], columns[None]])
  shape = (rows.shape[0], columns.shape[0])
  return plgpu.load(
    ref.at[rows[:, None], columns[None]],
    mask=jnp.broadcast_to(mask, shape),
    other=0.0,
  )


def store(ref, rows, columns, value: Array, live=None, exists=None) -> None:
  """ref[rows, columns] = value where the row is live and the column exists."""
  mask = mask_of(live, exists)
  if mask is not None:
    mask = jnp.broadcast_to(mask, value.shape)
  plgpu.store(ref.at[rows[:, None], columns[None]], value, mask=mask)
