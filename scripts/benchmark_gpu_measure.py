"""How `benchmark_gpu.py` measures: number formats, results, clocks, checks."""

import concurrent.futures
import dataclasses
import json
import os
import statistics
import threading
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
  lock: Any = dataclasses.field(default_factory=threading.RLock)

  def has_time(self) -> bool:
    return time.monotonic() - self.began < self.seconds

  def add(self, section: str, **row) -> None:
    row = {"section": section} | row
    shown = {k: v for k, v in row.items() if v is not None}
    with self.lock:  # programs are compiled in several threads
      self.results.append(row)
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

  def shares(self, operation: str, ms: float, rates: dict) -> dict:
    """What `shares` returns for this operation."""


# (arguments, a zero) -> the arguments, depending on the zero; see `repeated`.
Dependence = Callable[[tuple, jax.Array], tuple]


@dataclasses.dataclass(frozen=True)
class Job:
  """A function to time.

  Attributes:
    function, arguments: what is called.
    dependence: if calls are to be repeated within a program.
    elements: of the largest operand: the fewer, the more calls.
  """

  function: Callable
  arguments: tuple
  dependence: Dependence | None = None
  elements: int = 0

  @property
  def calls(self) -> int:
    return 1 if self.dependence is None else calls_for(self.elements)


def calls_for(elements: int) -> int:
  """Calls of one program: many where starting a program would count."""
  return 1 if elements >= 3e7 else max(4, min(100, int(6e8 / elements)))


def adding(*places: int) -> Dependence:
  """Adds the zero to these arguments, small arrays."""

  def depend(arguments, zero):
    return tuple(
      a + zero.astype(a.dtype) if i in places else a
      for i, a in enumerate(arguments)
    )

  return depend


def repeated(function: Callable, calls: int, dependence: Dependence | None):
  """The result of the last of several calls, each waiting for the one before.

  The compiler cannot know that what comes from the result before is zero. All
  that the function computes must depend on it, or it computes that once only.
  """
  if calls == 1:
    return function

  def run(*arguments):
    def body(_, carry):
      out = function(*dependence(arguments, carry[0]))
      some = jax.tree.leaves(out)[0].reshape(-1)[0]
      return (some > 1e30).astype(jnp.int32), out

    out = jax.eval_shape(function, *arguments)
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), out)
    return jax.lax.fori_loop(0, calls, body, (jnp.int32(0), empty))[1]

  return run


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

  None where there was no time. What is expected of them is computed meanwhile.
  """

  def compile_one(job):
    if not session.has_time():
      return None
    run = repeated(job.function, job.calls, job.dependence)
    with precision(problem.fmt):
      return jax.jit(run).lower(*job.arguments).compile()

  compiled = {}
  with concurrent.futures.ThreadPoolExecutor(session.workers) as pool:
    expected = pool.submit(lambda: session.has_time() and problem.expected)
    futures = {key: pool.submit(compile_one, job) for key, job in jobs.items()}
    for key, future in futures.items():
      try:
        compiled[key] = future.result()
      except Exception as error:  # the compiler's, of any type
        session.add_failure(f"compiling {' '.join(map(str, key))}", error)
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
  number = sum(run is not None for run in compiled.values())
  print(f"compiled {number} in {time.monotonic() - began:.1f} s")
  times = {}
  for key, run in compiled.items():
    operation, by, tile = key
    tile = short(tile) if isinstance(tile, Tile) else tile
    where = {"op": operation, **problem.where, "format": problem.fmt}
    where |= {"by": by, "tile": tile}
    if run is None or not session.has_time():
      print("no time for", *where.values())
      continue
    job = jobs[key]
    try:
      out = run(*job.arguments)
      error = error_of(out, problem.expected[operation])
      if not error <= TOLERANCE[problem.fmt]:
        session.add("wrong", **where, error=error)
        continue
      ms = milliseconds(lambda: run(*job.arguments))  # noqa: B023
      ms /= job.calls
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
