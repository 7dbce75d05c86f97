"""The sections of `benchmark_gpu.py` beside the convolution of one level."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_gpu_cases import Case, surface_table
from benchmark_gpu_measure import (
  DTYPE,
  TOLERANCE,
  Job,
  Session,
  adding,
  error_of,
  measure,
  milliseconds,
  precision,
  shares,
)

from wsegpc_jax.kernels import segment_sum, strided_conv
from wsegpc_jax.kernels.gather_conv import bench
from wsegpc_jax.kernels.gather_conv.row_tiles import row_tiles
from wsegpc_jax.kernels.segment_sum import specs as segment_specs
from wsegpc_jax.kernels.strided_conv import specs as strided_specs
from wsegpc_jax.sparse import pool
from wsegpc_jax.sparse.plan import Level, build_plan

# Of products: a GPU's default for float32.
FORMAT = {"bfloat16": "bfloat16", "float32": "tf32"}


def floors(session: Session, *, megabytes: int = 2048, side: int = 8192):
  """Measured rates: bytes a second, and operations by number format."""
  a = jax.random.normal(jax.random.key(0), (megabytes << 18,), jnp.float32)
  copy = jax.jit(lambda a: a * 1.0001)
  ms = milliseconds(lambda: copy(a), 100)
  session.rates["bytes"] = 2 * a.nbytes / ms * 1e3
  session.add("floors", what="copy", tbytes=session.rates["bytes"] / 1e12)
  for fmt, dtype in DTYPE.items():
    a = jax.random.normal(jax.random.key(1), (side, side), dtype)
    with precision(fmt):
      product = jax.jit(lambda a: a @ a).lower(a).compile()
    ms = milliseconds(lambda: product(a), 60)  # noqa: B023
    session.rates[fmt] = 2 * side**3 / ms * 1e3
    session.add("floors", what=fmt, tflops=session.rates[fmt] / 1e12)


def peer(session: Session, case: Case) -> None:
  """Times the Triton peer on the same numbers, compared with ours."""
  sys.path.insert(0, str(Path(__file__).parent / "peers"))
  import gather_conv_triton
  import torch

  def to_torch(a):
    if a.dtype == jnp.bfloat16:
      a = np.asarray(a).view(np.int16)
      return torch.from_numpy(a.copy()).cuda().view(torch.bfloat16)
    return torch.from_numpy(np.asarray(a).copy()).cuda()

  x, weight, g = case.operands
  found = gather_conv_triton.compare(
    *(to_torch(a) for a in (x, case.table, weight, g)),
    exact=case.fmt == "float32",
    more_time=session.has_time,
  )
  for operation, best in found.items():
    output = jnp.asarray(best["output"].float().cpu().numpy())
    error = error_of(output, case.expected[operation])
    session.add(
      "peer",
      op=operation,
      n=case.n,
      c=case.c,
      format=case.fmt,
      by="triton",
      tile=str(best["configuration"]),
      ms=round(best["ms"], 4),
      error=float(f"{error:.1e}"),
      ok=error <= TOLERANCE[case.fmt],
      **case.shares(operation, best["ms"], session.rates),
    )


# Of level, fine, coarse, weight and the cotangents of fine and coarse: small ones
# of which one is in all that an operation computes.
_SMALL = {
  "strided": (3,),
  "transposed": (3,),
  "strided gradients": (5,),
  "transposed gradients": (2, 3),
}


def scaled(spec, scale: float):
  """A spec with another number of rows, and of segments or parents."""
  rows = {
    k: max(1, round(getattr(spec, k) * scale))
    for k in ("m", "p", "s")
    if hasattr(spec, k)
  }
  return dataclasses.replace(spec, **rows)


@dataclasses.dataclass
class LinkedLevels:
  """The convolutions between a level of a surface and the next coarser one."""

  level: Level
  c: int
  d: int
  fmt: str

  @property
  def where(self) -> dict[str, int]:
    m, p = self.level.capacity, self.level.children.shape[0]
    return {"n": m, "p": p, "c": self.c, "d": self.d}

  @functools.cached_property
  def operands(self):
    """fine, coarse, weight, and cotangents of the fine and the coarse level."""
    n, p = self.where["n"], self.where["p"]
    shapes = (n, self.c), (p, self.c), (8, self.c, self.d)
    shapes += ((n, self.d), (p, self.d))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(
      jax.random.normal(k, s, DTYPE[self.fmt])
      for k, s in zip(keys, shapes, strict=True)
    )

  def functions(self, implementation: str) -> dict:
    """(level, *operands) -> result of each operation."""
    how = {"implementation": implementation}

    def strided(level, fine, coarse, weight, fine_g, coarse_g):
      return strided_conv.strided_conv(
        fine, level.children, weight, tiles=level.tiles.children, **how
      )

    def transposed(level, fine, coarse, weight, fine_g, coarse_g):
      return strided_conv.transposed_conv(
        coarse,
        level.parent,
        level.octant,
        weight,
        tiles=level.tiles.octants,
        **how,
      )

    def strided_gradients(level, fine, coarse, weight, fine_g, coarse_g):
      return strided_conv.strided_backward(
        *(fine, level.children, level.parent, level.octant),
        *(weight, coarse_g),
        children_tiles=level.tiles.children,
        octant_tiles=level.tiles.octants,
        **how,
      )

    def transposed_gradients(level, fine, coarse, weight, fine_g, coarse_g):
      return strided_conv.transposed_backward(
        *(coarse, level.children, weight, fine_g),
        children_tiles=level.tiles.children,
        **how,
      )

    def mean_of_children(level, fine, coarse, weight, fine_g, coarse_g):
      return pool.mean_pool(fine, level)

    found = {
      "strided": strided,
      "transposed": transposed,
      "strided gradients": strided_gradients,
      "transposed gradients": transposed_gradients,
    }
    if implementation == "xla":  # the only one that it has
      found["mean of children"] = mean_of_children
    return found

  @functools.cached_property
  def expected(self):
    """All results from float32 products of the same operands, by XLA."""
    wide = [a.astype(jnp.float32) for a in self.operands]
    with precision("float32"):
      return {
        operation: jax.jit(function)(self.level, *wide)
        for operation, function in self.functions("xla").items()
      }

  def shares(self, operation: str, ms: float, rates: dict) -> dict:
    n, p, c, d = (self.where[k] for k in ("n", "p", "c", "d"))
    size = jnp.dtype(DTYPE[self.fmt]).itemsize
    children, parents, weight = 4 * 8 * p, 4 * 2 * n, 8 * c * d * size
    flop = 2 * n * c * d
    match operation:
      case "strided":
        moved = size * (n * c + p * d) + children + weight
      case "transposed":
        moved = size * (p * c + n * d) + parents + weight
      case "strided gradients":
        flop *= 2
        moved = size * (2 * n * c + p * d) + children + parents + 3 * weight
      case "transposed gradients":
        flop *= 2
        moved = size * (2 * p * c + n * d) + children + 3 * weight
      case "mean of children":
        flop, moved = n * c, size * (n + p) * c + children
    return shares(flop, moved, self.fmt, ms, rates)

  def jobs(self) -> dict[tuple, Job]:
    return {
      (operation, implementation, ""): Job(
        function,
        (self.level, *self.operands),
        adding(*_SMALL[operation]) if operation in _SMALL else None,
        self.where["n"] * max(self.c, self.d),
      )
      for implementation in ("xla", "pallas")
      for operation, function in self.functions(implementation).items()
    }


@dataclasses.dataclass
class Segments:
  """Reductions of m rows of c channels in s segments, sorted."""

  m: int
  s: int
  c: int
  fmt: str

  @property
  def where(self) -> dict[str, int]:
    return {"n": self.m, "s": self.s, "c": self.c}

  @functools.cached_property
  def operands(self):
    segment = np.sort(np.random.default_rng(0).integers(0, self.s, self.m))
    x = jax.random.normal(jax.random.key(0), (self.m, self.c), DTYPE[self.fmt])
    return x, jnp.asarray(segment, jnp.int32)

  def function(self, kind: str, implementation: str, **options):
    return functools.partial(
      segment_sum.segment_reduce,
      num_segments=self.s,
      kind=kind,
      implementation=implementation,
      **options,
    )

  @functools.cached_property
  def expected(self):
    x, segment = self.operands
    return {
      "segment " + kind: jax.jit(self.function(kind, "xla"))(
        x.astype(jnp.float32), segment
      )
      for kind in ("mean", "max")
    }

  def shares(self, operation: str, ms: float, rates: dict) -> dict:
    del operation
    size = jnp.dtype(DTYPE[self.fmt]).itemsize
    moved = size * self.c * (self.m + self.s) + 4 * self.m
    return shares(self.m * self.c, moved, "none", ms, rates)

  def jobs(self) -> dict[tuple, Job]:
    longest = int(jnp.bincount(self.operands[1], length=self.s).max())
    ways = {
      "xla": ("xla", {}),
      "pallas": ("pallas", {}),
      "pallas, longest known": ("pallas", {"longest": longest}),
    }
    return {
      ("segment " + kind, by, ""): Job(
        self.function(kind, implementation, **options),
        self.operands,
        adding(1),
        self.m * self.c,
      )
      for kind in ("mean", "max")
      for by, (implementation, options) in ways.items()
    }


def plans(session: Session, n: int) -> None:
  """What is built once a batch: row tiles, and plans of two levels."""
  table, _ = surface_table(n)
  for by_mask in (False, True):
    build = jax.jit(functools.partial(row_tiles, n=n, by_mask=by_mask))
    ms = milliseconds(lambda: build(table))  # noqa: B023
    session.add("parts", what="row_tiles", n=n, by_mask=by_mask, ms=ms)
  for tiles in (False, True):
    build, arguments, p = _plan_builder(n, tiles)
    ms = milliseconds(lambda: build(*arguments))  # noqa: B023
    session.add("parts", what="plan", n=n, p=p, tiles=tiles, ms=ms)


def _plan_builder(n: int, tiles: bool):
  voxels = bench.surface(n, np.random.default_rng(0))
  coords = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
  p = len(np.unique(voxels >> 1, axis=0))
  build = functools.partial(build_plan, capacities=(n, p), tiles=tiles)
  return jax.jit(build), (coords, jnp.int32(n)), p


@functools.lru_cache(maxsize=1)
def linked_level(n: int) -> Level:
  """The finest level of a surface of n voxels, with its tiles."""
  build, arguments, _ = _plan_builder(n, True)
  return build(*arguments).levels[0]


def links(session: Session, spec: strided_specs.Spec) -> None:
  """The strided pair, its gradients, and the mean over children."""
  case = LinkedLevels(linked_level(spec.m), spec.c, spec.d, FORMAT[spec.dtype])
  measure(session, "parts", case, case.jobs())


def segments(session: Session, spec: segment_specs.Spec) -> None:
  """Means and maxima of sorted segments."""
  case = Segments(spec.m, spec.s, spec.c, spec.dtype)
  measure(session, "parts", case, case.jobs())
