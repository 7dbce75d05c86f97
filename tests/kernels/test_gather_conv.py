import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lowered
from kernel_problems import (
  assert_close,
  compiled,
  oracle,
  random_problem,
  voxel_problem,
)

from wsegpc_jax.kernels.gather_conv import (
  IMPLEMENTATIONS,
  bench,
  gather_conv,
  gather_conv_weight_gradient,
  pallas_triton,
  specs,
  symmetric_backward,
  xla,
)

SMALL = specs.Spec(9, 5, 8, 4, 3)
SQUARE = specs.Spec(6, 6, 27, 4, 3)


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision("highest"):
    yield


def both(x, table, weight, cotangent, *, implementation):
  taps = weight.shape[0]
  return (
    gather_conv(x, table, weight, implementation=implementation),
    gather_conv_weight_gradient(
      x, table, cotangent, taps=taps, implementation=implementation
    ),
  )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestGatherConv:
  @pytest.mark.parametrize("spec", specs.TESTS, ids=str)
  def test_equals_the_loop_over_pairs(self, implementation, spec):
    problem = random_problem(spec)
    out, _, dw = oracle(*problem)
    got = compiled(both, implementation)(*problem)
    assert_close(got[0], out, spec.dtype)
    assert_close(got[1], dw)  # float32 at least, whatever x is

  def test_float64(self, implementation):
    with jax.enable_x64(True):
      problem = random_problem(specs.TEST_FLOAT64)
      out, _, dw = oracle(*problem)
      got = compiled(both, implementation)(*problem)
      assert_close(got[0], out, "float64")
      assert_close(got[1], dw, "float64")

  def test_symmetric_backward(self, implementation):
    problem = voxel_problem()
    _, dx, dw = oracle(*problem)
    got = compiled(symmetric_backward, implementation)(*problem)
    assert_close(got[0], dx)
    assert_close(got[1], dw)

  def test_an_index_that_is_no_row_reads_zeros(self, implementation):
    x, table, weight, cotangent = random_problem(SMALL)
    limits = np.iinfo(np.int32)
    outside = np.array([9, 10, 9999, limits.max, -1, -2, -9, limits.min])
    table = np.array(table)
    table[2], table[3, ::2] = outside, outside[::2]
    out, _, dw = oracle(x, table, weight, cotangent)
    got = compiled(both, implementation)(x, table, weight, cotangent)
    np.testing.assert_array_equal(got[0][2], 0)
    assert_close(got[0], out)
    assert_close(got[1], dw)

  def test_all_padding(self, implementation):
    x, table, weight, cotangent = random_problem(SMALL)
    table = jnp.full_like(table, SMALL.n)
    got = compiled(both, implementation)(x, table, weight, cotangent)
    for array, shape in zip(got, ((5, 3), (8, 4, 3)), strict=True):
      np.testing.assert_array_equal(array, np.zeros(shape))

  @pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
  def test_empty(self, implementation, n, m):
    x, cotangent = jnp.ones((n, 4)), jnp.ones((m, 2))
    table, weight = jnp.full((m, 27), n, jnp.int32), jnp.ones((27, 4, 2))
    problem = x, table, weight, cotangent
    got = compiled(both, implementation)(*problem)
    if n == m:
      got += compiled(symmetric_backward, implementation)(*problem)
    shapes = ((m, 2), (27, 4, 2), (n, 4), (27, 4, 2))[: len(got)]
    for array, shape in zip(got, shapes, strict=True):
      np.testing.assert_array_equal(array, np.zeros(shape))

  def test_mismatched_channels(self, implementation):
    x, table, weight, cotangent = random_problem(SQUARE)
    with pytest.raises(ValueError, match="5 channels.*27, 4, 3.*expects 4"):
      gather_conv(
        jnp.ones((6, 5)), table, weight, implementation=implementation
      )
    with pytest.raises(ValueError, match="4 channels.*27, 4, 3.*gives 3"):
      symmetric_backward(
        *(x, table, weight, jnp.ones((6, 4))), implementation=implementation
      )


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_vmap(implementation):
  problems = [random_problem(SMALL, seed) for seed in range(2)]
  x, table, _, cotangent = map(jnp.stack, zip(*problems, strict=True))
  weight = problems[0][2]  # shared
  function = functools.partial(both, implementation=implementation)
  function = jax.vmap(function, in_axes=(0, 0, None, 0))
  got = compiled(function)(x, table, weight, cotangent)
  for i in range(2):
    out, _, dw = oracle(x[i], table[i], weight, cotangent[i])
    assert_close(got[0][i], out)
    assert_close(got[1][i], dw)


def test_unknown_implementation():
  x, table, weight, cotangent = random_problem(SQUARE)
  with pytest.raises(ValueError, match="'cuda' is unknown.*'xla'"):
    gather_conv(x, table, weight, implementation="cuda")
  with pytest.raises(ValueError, match="'cuda' is unknown.*'xla'"):
    both(x, table, weight, cotangent, implementation="cuda")
  with pytest.raises(ValueError, match="'cuda' is unknown.*'xla'"):
    symmetric_backward(x, table, weight, cotangent, implementation="cuda")


def everything(x, rows, weight, cotangent, tables=None, **options):
  options["tables"] = tables
  taps = weight.shape[0]
  return (
    gather_conv(x, rows, weight, **options),
    gather_conv_weight_gradient(x, rows, cotangent, taps=taps, **options),
    *symmetric_backward(x, rows, weight, cotangent, **options),
  )


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_lookup_equals_the_stored_table(implementation):
  x, table, weight, cotangent = voxel_problem()
  m = len(table)
  # The table of row 5 a + b is stored at [a, b].
  tables = {"blocks": table.reshape(-1, 5, 27)}
  rows = {"a": jnp.arange(m) // 5, "b": jnp.arange(m) % 5}

  def lookup(rows, tables):
    return tables["blocks"][rows["a"], rows["b"]]

  function = functools.partial(everything, lookup=lookup)
  computed = compiled(function, implementation)(
    x, rows, weight, cotangent, tables
  )
  stored = compiled(everything, implementation)(x, table, weight, cotangent)
  for a, b in zip(computed, stored, strict=True):
    assert_close(a, b)


@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_tile_boundaries(rows):
  # Voxels on a line see row i + k - 1: a symmetric table of three taps.
  table = jnp.arange(rows)[:, None] + jnp.arange(3) - 1
  table = jnp.where(table < 0, rows, table).astype(jnp.int32)
  x, _, weight, cotangent = random_problem(specs.Spec(rows, rows, 3, 4, 5))
  out, dx, dw = oracle(x, table, weight, cotangent)

  @compiled
  def tiled(x, table, weight, cotangent):
    return (
      xla.forward(x, table, None, weight, tile=8),
      xla.weight_gradient(x, table, None, cotangent, taps=3, tile=8),
      *xla.symmetric_backward(x, table, None, weight, cotangent, tile=8),
    )

  got = tiled(x, table, weight, cotangent)
  for a, b in zip(got, (out, dw, dx, dw), strict=True):
    assert_close(a, b)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_xla_lowers_everywhere_and_scatters_nothing(platform):
  def text(implementation):
    traced = compiled(everything, implementation).trace(*voxel_problem())
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert "stablehlo.gather" in text("xla")
  assert "scatter" not in text("xla")
  assert "stablehlo.scatter" in text("reference")  # it would be seen


@pytest.mark.parametrize(
  ("spec", "batched"),
  [
    (specs.TESTS[2], False),
    (specs.Spec(500, 500, 27, 96, 96), True),
    (specs.Spec(500, 500, 27, 64, 256, "float16"), False),
  ],
  ids=str,
)
def test_pallas_lowers_for_a_gpu(spec, batched):
  def kernels(x, table, weight, cotangent):
    return (
      pallas_triton.gather_conv(x, table, weight, interpret=False),
      pallas_triton.weight_gradient(x, table, cotangent, interpret=False),
    )

  problem = random_problem(spec)
  if batched:
    kernels, problem = jax.vmap(kernels), [a[None] for a in problem]
  assert lowered(kernels, *problem).count(TRITON_CALL) == 2


def test_pallas_does_not_run_on_a_tpu(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  x, table, weight, cotangent = random_problem(SQUARE)
  with pytest.raises(ValueError, match="cannot run on a TPU"):
    gather_conv(x, table, weight, implementation="pallas")
  with pytest.raises(ValueError, match="cannot run on a TPU"):
    gather_conv_weight_gradient(
      x, table, cotangent, taps=27, implementation="pallas"
    )


@pytest.mark.parametrize("measured", [False, True])
def test_the_best_on_a_gpu_is_what_was_measured(monkeypatch, measured):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(pallas_triton, "PREFERRED", measured)
  problem = random_problem(SQUARE)

  def jaxpr(**options):
    f = lambda x, t, w, g: gather_conv(x, t, w, **options)  # noqa: E731
    return str(jax.make_jaxpr(f)(*problem))

  assert ("pallas_call" in jaxpr()) == measured
  assert "pallas_call" in jaxpr(implementation="pallas")
  # A table that is computed tile by tile is not stored for a kernel's sake.
  assert "pallas_call" not in jaxpr(lookup=lambda rows, tables: rows)


def test_bench_reports_each_operation(monkeypatch, capsys):
  for platform in ("CPU", "GPU"):
    monkeypatch.setattr(specs, platform, (specs.Spec(1, 1, 27, 4, 3),))
  bench.main(["--rows", "40", "--rounds", "2", "--precision", "highest"])
  *_, last = capsys.readouterr().out.splitlines()
  results = json.loads(last)["results"]
  if jax.default_backend() == "cpu":
    assert [(r["operation"], r["implementation"]) for r in results] == [
      ("forward", "xla"),
      ("forward", "reference"),
      ("backward", "xla"),
      ("backward", "reference"),
    ]
  for r in results:
    assert r["n"] == 40 and 40 < r["pairs"] <= 40 * 27
    assert 0 < r["min_ms"] <= r["median_ms"]


def test_bench_refuses_a_wrong_output():
  right = {"xla": lambda a: a, "other": lambda a: a * (1 + 1e-7)}
  wrong = {"xla": lambda a: a, "other": lambda a: a.at[3].add(0.01)}
  lost = {"xla": lambda a: a, "other": lambda a: a.at[3].set(jnp.nan)}
  arguments = {"a": jnp.arange(9.0)}
  assert bench.check(right, arguments, "float32")["xla"] == 0
  for functions in (wrong, lost):
    with pytest.raises(AssertionError, match="other differs from xla"):
      bench.check(functions, arguments, "float32")


@pytest.mark.parametrize("rows", [1, 50, 3000])
def test_bench_surface(rows):
  voxels = bench.surface(rows, np.random.default_rng(0))
  assert voxels.shape == (rows, 3)
  assert len(np.unique(voxels, axis=0)) == rows
