"""The convolutions on dense grids: by loops, and by `jax.lax`.

Both follow the convention in the docstring of `wsegpc_jax.sparse.plan`; the
loops are read off it a tap at a time, the other can be differentiated.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

SCENES, GRID = 4, 16  # coordinates -8 .. 7

# kind -> (kernel size, dilation). Stride 2 for "strided" and "transposed".
KINDS = {
  "submanifold": (3, 1),
  "dilated": (3, 2),
  "stem": (5, 1),
  "strided": (2, 1),
  "transposed": (2, 1),
}


def taps(kind: str) -> int:
  return KINDS[kind][0] ** 3


def loops(kind, grid, weight) -> np.ndarray:
  """[S, X, Y, Z, C] and [K, C, D] to the output grid, a tap at a time."""
  size, dilation = KINDS[kind]
  s, *shape, _ = grid.shape
  if kind == "transposed":
    out = np.zeros((s, *(2 * n for n in shape), weight.shape[2]))
  elif kind == "strided":
    out = np.zeros((s, *(n // 2 for n in shape), weight.shape[2]))
  else:
    out = np.zeros((s, *shape, weight.shape[2]))
  if size == 2:
    for tx, ty, tz in itertools.product((0, 1), repeat=3):
      tap = weight[tx + 2 * ty + 4 * tz]
      at = np.s_[:, tx::2, ty::2, tz::2]
      if kind == "strided":  # out[c] += in[2 c + t] W[k]
        out += grid[at] @ tap
      else:  # out[2 c + t] = in[c] W[k]
        out[at] = grid @ tap
    return out
  r = size // 2
  margin = r * dilation
  padded = np.pad(grid, ((0, 0), *[(margin, margin)] * 3, (0, 0)))
  for d in itertools.product(range(-r, r + 1), repeat=3):
    k = (d[0] + r) + size * (d[1] + r) + size**2 * (d[2] + r)
    x, y, z = (margin + dilation * v for v in d)
    near = padded[:, x:, y:, z:][:, : shape[0], : shape[1], : shape[2]]
    out += near @ weight[k]  # out[p] += in[p + d] W[k]
  return out


def lax_conv(kind, grid, weight) -> jax.Array:
  """The same by `jax.lax.conv_general_dilated`."""
  size, dilation = KINDS[kind]
  # The first axis is the fastest in a tap, so it comes last here.
  kernel = weight.reshape(size, size, size, *weight.shape[1:])
  options = {"dimension_numbers": ("NXYZC", "ZYXIO", "NXYZC")}
  if kind == "strided":
    return jax.lax.conv_general_dilated(
      grid, kernel, (2, 2, 2), "VALID", **options
    )
  if kind == "transposed":
    return jax.lax.conv_general_dilated(
      grid,
      kernel[::-1, ::-1, ::-1],
      (1, 1, 1),
      [(1, 1)] * 3,
      lhs_dilation=(2, 2, 2),
      **options,
    )
  return jax.lax.conv_general_dilated(
    grid, kernel, (1, 1, 1), "SAME", rhs_dilation=(dilation,) * 3, **options
  )


def cells(level, stride: int) -> tuple[np.ndarray, ...]:
  """Grid index of every row of a level; padding lies outside."""
  coords = np.asarray(level.coords) + (0, *[GRID // 2 // stride] * 3)
  return tuple(np.where(level.valid[:, None], coords, 10**6).T)


def dense(kind, x, weight, inputs, outputs) -> jax.Array:
  """Rows at `inputs` to rows at `outputs`, over a dense grid; 0 outside."""
  n = GRID // 2 if kind == "transposed" else GRID
  grid = jnp.zeros((SCENES, n, n, n, x.shape[1]), x.dtype)
  grid = lax_conv(kind, grid.at[inputs].set(x, mode="drop"), weight)
  return grid.at[outputs].get(mode="fill", fill_value=0)
