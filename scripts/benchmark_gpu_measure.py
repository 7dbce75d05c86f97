"""How `benchmark_gpu.py` measures: number formats, results, clocks, checks."""

import concurrent.futures
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from wsegpc_jax.kernels.gather_conv.tile_table import Tile

DTYPE = {"bfloat16": jnp.bfloat16, "tf32": jnp.float32, "float32": jnp.float32}
# ||out - ref|| / ||ref||, the reference from float32 products.
TOLERANCE = {"bfloat16": 1e-2, "tf32": 2e-3, "float32": 1e-5}


@dataclasses.dataclass
class Session:
  """Results so far, the time left, and where both are written."""

  output: Path
  seconds: float
  workers: int
  began: float = dataclasses.field(default_factory=time.monotonic)
  results: list = dataclasses.field(default_factory=list)
  rates: dict = dataclasses.field(default_factory=dict)
  best: dict = dataclasses.field(default_factory=dict)

  def has_time(self) -> bool:
    return time.monotonic() - self.began < self.seconds

  def add(self, section: str, **row) -> None:
    row = {"section": section} | row
    self.results.append(row)
    shown = {k: v for k, v in row.items() if v is not None}
    print(*(f"{k}={v}" for k, v in shown.items()), flush=True)
    self.write()

  def add_failure(self, name: str, error: Exception) -> None:
    message = f"{type(error).__name__}: {error}"[:400]
    self.add("failed", name=name, error=message)

  def write(self) -> None:
    device = jax.devices()[0].device_kind
    report = {
      "device": device,
      "jax": jax.__version__,
      "seconds": round(time.monotonic() - self.began, 1),
      "rates": self.rates,
      "results": self.results,
    }
    tiles = [
      {"operation": key[0], "format": key[1], "c": key[2], "d": key[3]}
      | dataclasses.asdict(tile)
      for key, (_, tile) in sorted(self.best.items())
    ]
    for name, content in (
      ("benchmark_gpu.json", report),
      ("tiles.json", {"device": device, "tiles": tiles}),
    ):
      partial = self.output / (name + ".partial")
      partial.write_text(json.dumps(content, indent=1) + "\n")
      os.replace(partial, self.output / name)


def precision(fmt: str):
  return jax.default_matmul_precision(
    "highest" if fmt == "float32" else "default"
  )


def milliseconds(run, target: float = 30.0) -> float:
  """Median time of run(), a function that only starts work on the device."""
  jax.block_until_ready(run())
  times, repeats = [], 3
  for attempt in range(4):
    start = time.perf_counter()
    for _ in range(repeats):
      out = run()
    jax.block_until_ready(out)
    times.append(1e3 * (time.perf_counter() - start) / repeats)
    if attempt == 0:
      repeats = max(3, min(200, int(target / max(times[0], 1e-3))))
  return statistics.median(times[1:])


class Problem(Protocol):
  """Operations on the same operands, whose results are known.

  Attributes:
    fmt: a name of DTYPE.
    where: what names the problem in a row of the results.
    expected: the result of each operation, from float32 products.
  """

  fmt: str
  where: dict[str, int]
  expected: dict[str, Any]

  def sample(self, operation: str, out: Any) -> Any:
    """What a job of many calls returns of a result."""

  def shares(self, operation: str, ms: float, rates: dict) -> dict:
    """What `shares` returns for this operation."""


@dataclasses.dataclass(frozen=True)
class Job:
  """A function to time; more than one call a run returns a sample."""

  function: Callable
  arguments: tuple
  calls: int = 1


def shares(flop: float, moved: float, fmt: str, ms: float, rates: dict) -> dict:
  """The rate, and the shares of the floors of arithmetic and memory traffic.

  Args:
    flop: operations that cannot be left out.
    moved: bytes of all operands and results, each once.
    fmt: of the products.
    ms: time taken.
    rates: measured, operations and bytes a second.
  """
  found = {"tflops": round(flop / ms / 1e9, 1)}
  if fmt in rates:
    found["arithmetic"] = round(flop / rates[fmt] / ms * 1e3, 3)
  if "bytes" in rates:
    found["memory"] = round(moved / rates["bytes"] / ms * 1e3, 3)
  return found


def error_of(got: Any, expected: Any) -> float:
  """||got - expected|| / ||expected||, the largest of several arrays."""

  def one(a, b):
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

  return max(jax.tree.leaves(jax.tree.map(one, got, expected)))


def compile_all(
  session: Session, problem: Problem, jobs: dict[tuple, Job]
) -> dict:
  """Compiled functions by key, side by side; failures are recorded.

  What is expected of them is computed meanwhile.
  """

  def compile_one(job):
    if not session.has_time():
      return None
    with precision(problem.fmt):
      return jax.jit(job.function).lower(*job.arguments).compile()

  compiled = {}
  with concurrent.futures.ThreadPoolExecutor(session.workers) as pool:
    expected = pool.submit(lambda: problem.expected)
    futures = {key: pool.submit(compile_one, job) for key, job in jobs.items()}
    for key, future in futures.items():
      try:
        run = future.result()
      except Exception as error:  # the compiler's, of any type
        session.add_failure(f"compiling {' '.join(map(str, key))}", error)
        continue
      if run is not None:
        compiled[key] = run
    expected.result()
  return compiled


def measure(
  session: Session, section: str, problem: Problem, jobs: dict[tuple, Job]
) -> dict[tuple, float]:
  """Compiles, checks and times jobs by (operation, by, tile).

  Returns:
    Milliseconds of those that gave what is expected.
  """
  began = time.monotonic()
  compiled = compile_all(session, problem, jobs)
  print(f"compiled {len(compiled)} in {time.monotonic() - began:.1f} s")
  times = {}
  for key, run in compiled.items():
    if not session.has_time():
      break
    operation, by, tile = key
    tile = short(tile) if isinstance(tile, Tile) else tile
    where = {"op": operation, **problem.where, "format": problem.fmt}
    where |= {"by": by, "tile": tile}
    job = jobs[key]
    try:
      out, expected = run(*job.arguments), problem.expected[operation]
      if job.calls > 1:
        expected = problem.sample(operation, expected)
      error = error_of(out, expected)
      if not error <= TOLERANCE[problem.fmt]:
        session.add("wrong", **where, error=error)
        continue
      ms = milliseconds(lambda: run(*job.arguments)) / job.calls  # noqa: B023
    except Exception as error:
      session.add_failure(" ".join(map(str, where.values())), error)
      continue
    times[key] = ms
    session.add(
      section,
      **where,
      ms=round(ms, 4),
      error=float(f"{error:.1e}"),
      **problem.shares(operation, ms, session.rates),
    )
  return times


def short(tile: Tile) -> str:
  names = ("by_mask", "ahead", "transposed", "unpadded", "split")
  flags = [f for f in names if getattr(tile, f)]
  flags += [f"group{tile.group}"] if tile.group > 1 else []
  sizes = (tile.rows, tile.block_c, tile.block_d, tile.warps, tile.stages)
  return "x".join(map(str, sizes)) + "".join("+" + f for f in flags)
