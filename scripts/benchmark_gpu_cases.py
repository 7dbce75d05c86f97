"""The convolution layers that `benchmark_gpu.py` measures, and their tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_gpu_measure import DTYPE, Job, shares

from wsegpc_jax.kernels.gather_conv import bench, pallas_triton, xla
from wsegpc_jax.kernels.gather_conv import row_tiles as row_tiles_lib
from wsegpc_jax.kernels.gather_conv.tile_table import OPERATIONS, Tile
from wsegpc_jax.sparse.plan import neighbor_table


@dataclasses.dataclass
class Case:
  """One convolution layer on the voxels of a synthetic surface."""

  n: int
  c: int
  fmt: str
  table: jax.Array
  pairs: int

  @functools.cached_property
  def operands(self):
    keys = jax.random.split(jax.random.key(self.c), 3)
    shapes = (self.n, self.c), (27, self.c, self.c), (self.n, self.c)
    return tuple(
      jax.random.normal(k, s, DTYPE[self.fmt])
      for k, s in zip(keys, shapes, strict=True)
    )

  @functools.cached_property
  def expected(self):
    """Both results from float32 products of the same operands."""

    @jax.jit
    def compute(x, weight, g, table):
      wide = [a.astype(jnp.float32) for a in (x, weight, g)]
      with jax.default_matmul_precision("highest"):
        return (
          xla.forward(wide[0], table, None, wide[1], tile=xla.GPU_TILE),
          xla.weight_gradient(
            wide[0], table, None, wide[2], taps=27, tile=xla.GPU_TILE
          ),
        )

    x, weight, g = self.operands
    out = compute(x, weight, g, self.table)
    return dict(zip(OPERATIONS, out, strict=True))

  @property
  def where(self) -> dict[str, int]:
    return {"n": self.n, "c": self.c}

  def shares(self, operation: str, ms: float, rates: dict) -> dict:
    flop = 2 * self.pairs * self.c * self.c
    size = jnp.dtype(DTYPE[self.fmt]).itemsize
    moved = 4 * 27 * self.n + 2 * size * self.n * self.c
    moved += 27 * self.c * self.c * (size if operation == "forward" else 4)
    return shares(flop, moved, self.fmt, ms, rates)

  def kernel(
    self, operation: str, tile: Tile, block: int = row_tiles_lib.SORT_BLOCK
  ) -> Job:
    """A kernel on row tiles that are already built, sorted by blocks."""
    built = row_tiles(self.n, tile.rows, tile.by_mask, block)
    how = {"tile": tile, "interpret": jax.default_backend() != "gpu"}

    def run(x, weight, g, row_tiles):
      if operation == "forward":
        return pallas_triton.of_tiles(x, row_tiles, weight, m=self.n, **how)
      return pallas_triton.weight_gradient_of_tiles(x, row_tiles, g, **how)

    # What the kernel goes through: taps of every tile, or rows of every tap.
    through = "number" if operation == "forward" else "rows"

    def depend(arguments, zero):
      *operands, tiles = arguments
      changed = {through: getattr(tiles, through) + zero}
      return *operands, dataclasses.replace(tiles, **changed)

    return Job(run, (*self.operands, built), depend, self.n * self.c)

  def whole(self, operation: str, how: Tile | int) -> Job:
    """All that an operation takes, by a kernel or by XLA with `how` rows."""

    def run(x, weight, g, table):
      if isinstance(how, int):
        if operation == "forward":
          return xla.forward(x, table, None, weight, tile=how)
        return xla.weight_gradient(x, table, None, g, taps=27, tile=how)
      if operation == "forward":
        return pallas_triton.gather_conv(x, table, weight, tile=how)
      return pallas_triton.weight_gradient(x, table, g, tile=how)

    return Job(run, (*self.operands, self.table))


@functools.cache
def surface_table(n: int):
  voxels = bench.surface(n, np.random.default_rng(0))
  coords = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
  table = jax.jit(neighbor_table)(coords, jnp.int32(n))
  return table, int((table < n).sum())


@functools.lru_cache(maxsize=8)
def row_tiles(n: int, rows: int, by_mask: bool, block: int):
  """The row tiles of `surface_table(n)`."""
  build = functools.partial(
    row_tiles_lib.row_tiles, n=n, rows=rows, by_mask=by_mask, block=block
  )
  return jax.jit(build)(surface_table(n)[0])


def case_of(n: int, c: int, fmt: str) -> Case:
  return Case(n, c, fmt, *surface_table(n))


def _shapes(operation: str, c: int, fmt: str) -> list[tuple]:
  """(rows, blocks, warps, stages, fields) worth trying, the likely first."""
  full = max(16, min(128, 1 << (c - 1).bit_length()))
  half = min(full, 64)
  cut = {"unpadded": True} if c < 128 and c != full else {}
  three, split = {"group": 3}, {"split": True}
  if fmt == "float32":
    return [
      *((32, 32, half, 4, 2, {}), (64, 32, half, 4, 2, {})),
      *((64, 32, half, 8, 2, {}), (128, 16, half, 8, 2, {})),
    ]
  if operation == "forward":
    if fmt == "tf32":
      return [
        (128, half, half, 4, 2, cut | split),
        (128, half, half, 4, 3, cut | split),
        (128, half, full, 8, 3, cut | split),
        (128, half, full, 8, 2, cut | split),
        (64, half, full, 4, 3, cut | split),
        (128, 32, full, 8, 3, cut | split),
        (64, half, half, 4, 4, {"transposed": True}),
      ]
    return [
      (128, half, full, 4, 3, cut),
      (128, half, full, 4, 2, cut),
      (128, half, full, 4, 3, cut | {"ahead": False}),
      (128, half, full, 8, 2, cut | {"ahead": False}),
      (128, half, full, 8, 3, cut | {"ahead": False}),
      (64, half, full, 4, 2, cut),
      (64, half, full, 4, 3, cut),
      (128, full, full, 4, 2, cut),
      (128, full, full, 8, 2, cut),
      (128, half, full, 8, 2, cut),
      *([(128, half, full, 4, 3, {})] if cut else []),
    ]
  if fmt == "tf32":
    return [
      (64, full, full, 4, 2, cut | split),
      (64, full, full, 4, 3, cut | split),
      (64, full, full, 8, 3, cut | split),
      (128, half, half, 4, 2, cut | split),
      (32, full, full, 4, 3, cut | split),
      (64, half, half, 4, 2, cut | split | three),
      (32, half, half, 4, 3, cut | split | three),
      (32, full, full, 4, 4, {}),
    ]
  return [
    (128, full, full, 4, 3, cut),
    (128, full, full, 4, 2, cut),
    (64, half, half, 4, 3, cut | three),
    (64, half, half, 4, 2, cut | three),
    (128, half, half, 4, 2, cut | three),
    (128, half, half, 8, 2, cut | three),
    (64, full, full, 4, 2, cut),
    (128, full, full, 8, 2, cut),
    (64, half, half, 8, 3, cut | three),
    *([(128, full, full, 4, 3, {})] if cut else []),
  ]


def candidates(operation: str, c: int, fmt: str) -> list[Tile]:
  """Tiles worth trying, the likely first."""
  return list(
    dict.fromkeys(
      Tile(rows, block_c, block_d, warps, stages, **fields)
      for rows, block_c, block_d, warps, stages, fields in _shapes(
        operation, c, fmt
      )
    )
  )
