"""The GPU benchmark runs through, on a CPU at sizes that say nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import script_modules
from gpu_lowering import TRITON_CALL, lowered

from wsegpc_jax.kernels.gather_conv import pallas_triton, tile_table
from wsegpc_jax.kernels.gather_conv.row_tiles import row_tiles
from wsegpc_jax.models import minkunet

script = script_modules.load("benchmark_gpu")
# As the script imports them.
import benchmark_gpu_cases as cases  # noqa: E402
import benchmark_gpu_measure as measuring  # noqa: E402
import benchmark_gpu_parts as parts  # noqa: E402
import benchmark_gpu_train as training  # noqa: E402

SMALL = ["--rows", "300", "--table-rows", "300", "--channels", "16",
         "--formats", "tf32", "--first", "1", "--part-scale", "1e-4",
         "--train-voxels", "60"]  # fmt: skip


CALLS_FOR = measuring.calls_for


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(tile_table, "_measured", {})
  monkeypatch.setattr(parts.strided_specs, "GPU", parts.strided_specs.GPU[3:4])
  monkeypatch.setattr(parts.segment_specs, "GPU", parts.segment_specs.GPU[:1])
  # One run, not hundreds: nothing is told from the times.
  monkeypatch.setattr(measuring, "calls_for", lambda _: 2)
  for module in (measuring, parts, training):
    monkeypatch.setattr(
      module, "milliseconds", lambda run, *_: len(jax.tree.leaves(run()))
    )
  entry = ((1, 0, 0, 0, 0, 0, 0, 1), *minkunet.ARCHITECTURES["14A"][1:])
  monkeypatch.setitem(minkunet.ARCHITECTURES, "ends", entry)


def run(folder, *options) -> list[dict]:
  script.main(["--output", str(folder), *SMALL, *options])
  return json.loads((folder / "benchmark_gpu.json").read_text())["results"]


def by_section(results, section):
  return [row for row in results if row["section"] == section]


def test_every_kernel_is_right_and_named(tmp_path, capsys):
  results = run(tmp_path, "--sections", "floors", "tune", "parts", "table")
  assert not by_section(results, "failed") + by_section(results, "wrong")
  rates = {row["what"] for row in by_section(results, "floors")}
  assert rates == {"copy", "bfloat16", "tf32", "float32"}
  measured = {
    (row["op"], row["by"]) for row in results if "op" in row and "ms" in row
  }
  pair = ("strided", "transposed")
  assert measured >= {
    *((op, by) for op in cases.OPERATIONS
      for by in ("xla", "pallas", "pallas+tiles")),
    *((op + of, by) for op in pair for of in ("", " gradients")
      for by in ("xla", "pallas")),
    *(("segment " + kind, by) for kind in ("mean", "max")
      for by in ("xla", "pallas", "pallas, longest known")),
  }  # fmt: skip
  assert {"arithmetic", "memory"} <= set(by_section(results, "table")[0])
  assert ("mean of children", "xla") in measured
  tiles = tile_table.parse((tmp_path / "tiles.json").read_text(), "tiles.json")
  assert set(tiles) == {(op, "tf32", 16, 16) for op in cases.OPERATIONS}
  shown = capsys.readouterr().out.splitlines()
  line = next(l for l in shown if l.startswith("forward  "))  # of the summary
  assert "n=300 c=16" in line and "spconv: not measured" in shown[-1]


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
  network = training.MinkUNet

  def failing(arch, classes, *, implementation, **options):
    if implementation == "pallas":
      raise RuntimeError("out of resources")
    return network(arch, classes, implementation=implementation, **options)

  monkeypatch.setattr(training, "MinkUNet", failing)
  monkeypatch.setattr(script, "tune", lambda *_: 1 / 0)
  results = run(tmp_path, "--train-arch", "ends", "--sections", "tune", "train")
  messages = [row["error"] for row in by_section(results, "failed")]
  assert len(messages) == 2
  assert "ZeroDivisionError" in messages[0]
  assert "out of resources" in messages[1]
  step = by_section(results, "train")[-1]
  assert step["what"] == "step" and step["by"] == "xla"
  assert step["n"] == 240 and step["last_loss"] < step["first_loss"]


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch):
  right = pallas_triton.of_tiles
  monkeypatch.setattr(
    pallas_triton, "of_tiles", lambda *a, **k: 1.01 * right(*a, **k)
  )
  results = run(tmp_path, "--sections", "table")
  wrong = by_section(results, "wrong")
  assert {row["op"] for row in wrong} == {"forward"}
  assert all(row["error"] == pytest.approx(0.01, rel=0.1) for row in wrong)
  times = by_section(results, "table")
  assert ("forward", "pallas") not in {(r["op"], r["by"]) for r in times}


def test_many_calls_in_one_program():
  calls = []

  def function(x, weight):
    jax.debug.callback(lambda w: calls.append(float(w)), weight[0, 0])
    return x @ weight, weight.sum()

  x, weight = jnp.ones((4, 3)), jnp.arange(1.0, 7).reshape(3, 2)
  expected = function(x, weight)
  calls.clear()
  run = measuring.repeated(function, 5, measuring.adding(1))
  # Every call gets the same arguments, so the last result is that of one.
  jax.tree.map(np.testing.assert_array_equal, jax.jit(run)(x, weight), expected)
  jax.effects_barrier()
  assert calls == [1.0] * 5
  assert [CALLS_FOR(n) for n in (10, 10**7, 10**8)] == [100, 60, 1]


def test_jobs_without_time_are_named(tmp_path, monkeypatch, capsys):
  session = measuring.Session(tmp_path, 1e9, 1)
  case = cases.case_of(300, 16, "tf32")
  answers = iter([True] * 4)  # what is expected, two compiled, one timed
  monkeypatch.setattr(session, "has_time", lambda: next(answers, False))
  jobs = {("forward", "xla", size): case.whole("forward", size)
          for size in (128, 256)}  # fmt: skip
  assert len(measuring.measure(session, "table", case, jobs)) == 1
  assert "no time for forward 300 16 tf32 xla 256" in capsys.readouterr().out


def test_nothing_begins_without_time(tmp_path, capsys):
  assert run(tmp_path, "--seconds", "0") == []
  shown = capsys.readouterr().out
  for name in ("floors", "tune 300 16 tf32", "train", "links", "table 300"):
    assert f"no time for {name}" in shown


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_all_tiles_lower_for_a_gpu(operation):
  """The stored ones and those that the benchmark tries, by shape."""
  stored = tile_table.parse(tile_table.PATH.read_text(), "tiles.json")
  wanted = {
    (fmt, 96, tile)
    for fmt in cases.DTYPE
    for tile in cases.candidates(operation, 96, fmt)
  } | {(k[1], k[2], tile) for k, tile in stored.items() if k[0] == operation}
  assert len(wanted) > 15
  index = np.random.default_rng(0).integers(0, 301, (300, 27), np.int32)
  built = {}
  for fmt, c, tile in sorted(wanted, key=str):
    key = tile.rows, tile.by_mask
    if key not in built:
      built[key] = row_tiles(index, 300, rows=key[0], by_mask=key[1])
    x = jnp.ones((300, c), cases.DTYPE[fmt])
    weight = jnp.ones((27, c, c), x.dtype)

    def kernel(x, weight, tiles, tile=tile):
      how = {"tile": tile, "interpret": False}
      if operation == "forward":
        return pallas_triton.of_tiles(x, tiles, weight, m=300, **how)
      return pallas_triton.weight_gradient_of_tiles(x, tiles, x, **how)

    with measuring.precision(fmt):
      assert lowered(kernel, x, weight, built[key]).count(TRITON_CALL) == 1
