"""Reductions over sorted segments, against a loop over segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_problems import assert_close, compiled

from wsegpc_jax.kernels.segment_sum import (
  IMPLEMENTATIONS,
  KINDS,
  pallas_triton,
  segment_reduce,
  specs,
)


def problem(spec, seed=0):
  """Rows and their segments; some belong to none, some segments are empty."""
  rng = np.random.default_rng(seed)
  segment = np.sort(rng.integers(-1, spec.s + 1, spec.m))
  if spec.m == 1:
    segment[:] = 0
  x = jnp.asarray(rng.standard_normal((spec.m, spec.c)), spec.dtype)
  return x, jnp.asarray(segment, jnp.int32)


def oracle(x, segment, num_segments, kind):
  x, segment = np.asarray(x, np.float64), np.asarray(segment)
  out = np.zeros((num_segments, x.shape[1]))
  for s in np.unique(segment[(segment >= 0) & (segment < num_segments)]):
    rows = x[segment == s]
    out[s] = {"sum": rows.sum, "mean": rows.mean, "max": rows.max}[kind](0)
  return out


@functools.cache
def reduction(kind, num_segments, implementation, longest=None):
  return compiled(
    functools.partial(
      segment_reduce,
      num_segments=num_segments,
      kind=kind,
      longest=longest,
      implementation=implementation,
    )
  )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
class TestSegmentReduce:
  @pytest.mark.parametrize("spec", specs.TESTS, ids=str)
  def test_equals_the_loop_over_segments(self, implementation, kind, spec):
    x, segment = problem(spec)
    got = reduction(kind, spec.s, implementation)(x, segment)
    assert_close(got, oracle(x, segment, spec.s, kind), spec.dtype)

  def test_gradient(self, implementation, kind):
    x, segment = problem(specs.Spec(40, 6, 3), seed=1)
    # Rows that share the maximum of their segment.
    x = x.at[10:20, 1].set(9.0)
    g = jnp.asarray(np.random.default_rng(2).standard_normal((6, 3)), x.dtype)

    @compiled
    def gradient(x, g):
      run = functools.partial(
        segment_reduce,
        num_segments=6,
        kind=kind,
        implementation=implementation,
      )
      return jax.vjp(lambda x: run(x, segment), x)[1](g)[0]

    got = np.asarray(gradient(x, g))
    expected = np.zeros_like(got)
    for s in range(6):
      rows = np.flatnonzero(np.asarray(segment) == s)
      if len(rows):
        part = np.ones((len(rows), 3))
        if kind == "mean":
          part /= len(rows)
        elif kind == "max":
          values = np.asarray(x)[rows]
          part = values == values.max(0)
          part = part / part.sum(0)
        expected[rows] = part * np.asarray(g)[s]
    np.testing.assert_allclose(got, expected, rtol=1e-6)

  @pytest.mark.parametrize(("m", "s"), [(0, 3), (4, 0), (0, 0)])
  def test_empty(self, implementation, kind, m, s):
    out = segment_reduce(
      jnp.ones((m, 2)),
      jnp.zeros(m, jnp.int32),
      num_segments=s,
      kind=kind,
      implementation=implementation,
    )
    np.testing.assert_array_equal(out, np.zeros((s, 2)))

  def test_no_row_belongs_to_a_segment(self, implementation, kind):
    run = reduction(kind, 2, implementation)
    out = run(jnp.full((5, 3), jnp.nan), jnp.array([-2, -1, 2, 2, 7]))
    np.testing.assert_array_equal(out, np.zeros((2, 3)))


def test_segments_of_any_length_around_a_piece():
  # Lengths 0, 1, PIECE - 1, ..., PIECE^2 + 1: one, two and three passes.
  piece = pallas_triton.PIECE
  lengths = [0, 1, piece - 1, piece, piece + 1, 0, 2 * piece, piece**2 + 1]
  segment = jnp.asarray(np.repeat(np.arange(8), lengths), jnp.int32)
  x = jnp.asarray(np.random.default_rng(0).standard_normal((len(segment), 2)))
  for kind in KINDS:
    got = reduction(kind, 8, "pallas")(x, segment)
    assert_close(got, oracle(x, segment, 8, kind))


def test_cut_pieces_tile_their_ranges():
  offsets = jnp.array([3, 3, 40, 41, 200, 200], jnp.int32)
  start, length, of_pieces = map(np.asarray, pallas_triton.cut(offsets, 12))
  for s in range(5):
    own = range(of_pieces[s], of_pieces[s + 1])
    rows = [r for p in own for r in range(start[p], start[p] + length[p])]
    assert rows == list(range(offsets[s], offsets[s + 1]))
  assert (length <= pallas_triton.PIECE).all()
  assert (length[of_pieces[-1] :] == 0).all()


def test_a_known_longest_segment_saves_passes():
  x, segment = problem(specs.Spec(400, 60, 4))
  longest = int(
    np.bincount(np.asarray(segment)[np.asarray(segment) >= 0]).max()
  )
  assert longest <= pallas_triton.PIECE

  def calls(longest):
    run = functools.partial(
      segment_reduce,
      num_segments=60,
      longest=longest,
      implementation="pallas",
    )
    return str(jax.make_jaxpr(run)(x, segment)).count("pallas_call[")

  assert (calls(None), calls(longest)) == (2, 1)
  np.testing.assert_array_equal(
    reduction("mean", 60, "pallas", longest)(x, segment),
    reduction("mean", 60, "pallas")(x, segment),
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "median"}, "kind='median' is unknown; expected one of 'sum'"),
    ({"implementation": "cuda"}, "'cuda' is unknown.*'xla'"),
    ({"segment": jnp.zeros(3, jnp.int32)}, r"got \[4, 2\] and \[3\]"),
  ],
)
def test_wrong_arguments(change, message):
  given = {"x": jnp.ones((4, 2)), "segment": jnp.zeros(4, jnp.int32)}
  with pytest.raises(ValueError, match=message):
    segment_reduce(**(given | {"num_segments": 2} | change))
