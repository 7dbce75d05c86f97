"""The public operation, with `implementation=` to choose who computes it.

    gather_conv:                  out[i] = sum_k x[table[i, k]] @ weight[k]
    gather_conv_weight_gradient:  dW[k] = sum_i x[table[i, k]]^T cotangent[i]
    symmetric_backward:           both gradients when the table is symmetric

An index that is not a row of x reads a row of zeros. These are the forward
and backward pieces of `wsegpc_jax.sparse.conv`, which ties them together by
custom VJPs; they are not meant to be differentiated themselves. bfloat16 and
float16 inputs accumulate in float32.
"""

import jax
from jaxtyping import Array, Float, Int32, PyTree

from wsegpc_jax.kernels.gather_conv import reference, xla
from wsegpc_jax.kernels.gather_conv.row_tiles import RowTiles

# From the slow definition to the fastest. None picks the best of those that
# are proven on the present platform: "xla" (see `pallas_triton.PREFERRED`).
IMPLEMENTATIONS = ("reference", "xla", "pallas")


def _pallas():
  # Imported late: Pallas is slow to import and needed on GPUs only.
  from wsegpc_jax.kernels.gather_conv import pallas_triton

  return pallas_triton


def choose_implementation(
  implementation: str | None, *, lookup: xla.Lookup = xla.stored_table
) -> str:
  """A name of IMPLEMENTATIONS; None is the best that the platform has.

  "xla", that is, until `pallas_triton.PREFERRED` prefers the kernels on a GPU.

  Raises:
    ValueError: an unknown name.
  """
  if implementation is None:
    on_gpu = jax.default_backend() == "gpu"
    stored = lookup is xla.stored_table
    return "pallas" if on_gpu and stored and _pallas().PREFERRED else "xla"
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation={implementation!r} is unknown; expected None or one of "
      f"{', '.join(map(repr, IMPLEMENTATIONS))}"
    )
  return implementation


def _check_table(rows, lookup, taps, length=None):
  """A stored table must have the taps and the rows of the other operands."""
  if lookup is not xla.stored_table:
    return
  if rows.ndim != 2 or rows.shape[1] != taps:
    raise ValueError(
      f"table must be [M, {taps}], a column a tap, got {list(rows.shape)}"
    )
  if length is not None and rows.shape[0] != length:
    raise ValueError(f"table has {rows.shape[0]} rows, its cotangent {length}")


def check_operands(
  x: Array, weight: Array, cotangent: Array | None = None
) -> None:
  """x [N, C], weight [K, C, D], cotangent [M, D]: the channels must agree.

  Raises:
    ValueError: they do not; it gives the shapes.
  """
  if x.ndim != 2 or weight.ndim != 3:
    raise ValueError(
      f"x must be [N, C] and weight [K, C, D], got {list(x.shape)} and "
      f"{list(weight.shape)}"
    )
  if x.shape[1] != weight.shape[1]:
    raise ValueError(
      f"x has {x.shape[1]} channels, weight {list(weight.shape)} expects "
      f"{weight.shape[1]}"
    )
  if cotangent is None:
    return
  if cotangent.ndim != 2:
    raise ValueError(f"cotangent must be [M, D], got {list(cotangent.shape)}")
  if cotangent.shape[1] != weight.shape[2]:
    raise ValueError(
      f"cotangent has {cotangent.shape[1]} channels, weight "
      f"{list(weight.shape)} gives {weight.shape[2]}"
    )


def gather_conv(
  x: Float[Array, "n c"],
  rows: PyTree | Int32[Array, "m k"],
  weight: Float[Array, "k c d"],
  *,
  tables: PyTree = None,
  lookup: xla.Lookup = xla.stored_table,
  tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> Float[Array, "m d"]:
  """out[i] = sum over k of x[table[i, k]] @ weight[k].

  Args:
    x: input rows.
    rows: the table, int32 [M, K]; or, with a `lookup`, whatever it needs of
      each output row, arrays with leading axis M.
    weight: one matrix a tap.
    tables: what `lookup` needs as a whole.
    lookup: (rows of a tile, tables) -> int32 [T, K]; so a table that is too
      large to store is computed where it is used.
    tiles: `row_tiles` of a stored table, which "pallas" otherwise makes.
    implementation: "reference", "xla", "pallas", or None for the best.

  Raises:
    ValueError: channels do not agree, or an unknown implementation.
  """
  check_operands(x, weight)
  _check_table(rows, lookup, weight.shape[0])
  match choose_implementation(implementation, lookup=lookup):
    case "xla":
      return xla.forward(x, rows, tables, weight, lookup=lookup)
    case "reference":
      return reference.gather_conv(x, lookup(rows, tables), weight)
    case "pallas":
      return _pallas().gather_conv(x, lookup(rows, tables), weight, tiles=tiles)


def gather_conv_weight_gradient(
  x: Float[Array, "n c"],
  rows: PyTree | Int32[Array, "m k"],
  cotangent: Float[Array, "m d"],
  *,
  taps: int,
  tables: PyTree = None,
  lookup: xla.Lookup = xla.stored_table,
  tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> Float[Array, "k c d"]:
  """dW[k] = sum over i of x[table[i, k]]^T cotangent[i], in float32 or wider.

  Arguments and errors as for `gather_conv`.
  """
  if x.ndim != 2 or cotangent.ndim != 2:
    raise ValueError(
      f"x must be [N, C] and cotangent [M, D], got {list(x.shape)} and "
      f"{list(cotangent.shape)}"
    )
  _check_table(rows, lookup, taps, cotangent.shape[0])
  match choose_implementation(implementation, lookup=lookup):
    case "xla":
      return xla.weight_gradient(
        x, rows, tables, cotangent, taps=taps, lookup=lookup
      )
    case "reference":
      return reference.weight_gradient(x, lookup(rows, tables), cotangent)
    case "pallas":
      return _pallas().weight_gradient(
        x, lookup(rows, tables), cotangent, tiles=tiles
      )


def symmetric_backward(
  x: Float[Array, "n c"],
  rows: PyTree | Int32[Array, "n k"],
  weight: Float[Array, "k c d"],
  cotangent: Float[Array, "n d"],
  *,
  tables: PyTree = None,
  lookup: xla.Lookup = xla.stored_table,
  tiles: RowTiles | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "n c"], Float[Array, "k c d"]]:
  """(dx, dW) of `gather_conv` over a symmetric table.

  Symmetric: table[i, k] = j exactly if table[j, K - 1 - k] = i. Arguments and
  errors as for `gather_conv`.
  """
  check_operands(x, weight, cotangent)
  _check_table(rows, lookup, weight.shape[0], cotangent.shape[0])
  chosen = choose_implementation(implementation, lookup=lookup)
  if chosen == "xla":
    return xla.symmetric_backward(
      x, rows, tables, weight, cotangent, lookup=lookup
    )
  # dx is the same operation on the cotangent, taps mirrored; and by symmetry
  # dW[K-1-k] = sum_j cotangent[table[j, k]]^T x[j], transposed.
  table = lookup(rows, tables)
  mirrored = weight[::-1].transpose(0, 2, 1)
  if chosen == "reference":
    dx = reference.gather_conv(cotangent, table, mirrored)
    return dx, reference.weight_gradient(x, table, cotangent)
  dx = _pallas().gather_conv(cotangent, table, mirrored, tiles=tiles)
  return dx, _pallas().weight_gradient(x, table, cotangent, tiles=tiles)
