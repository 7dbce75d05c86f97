"""Centres and queues against loops over lists; the released code's faults."""

import functools

import jax
import numpy as np
import pytest

from wsegpc_jax.losses.within_class import Anchors
from wsegpc_jax.methods import cluster_memory

C, K, Q, E, A = 7, 40, 5, 3, 60
LIMIT = 3


def make_anchors(seed, *, crowd=0, limit=A):
  """Anchors in no order; `crowd` more of them in sub-class (6, 15) = 255."""
  rng = np.random.default_rng(seed)
  label, cluster = rng.integers(0, C, A), rng.integers(0, 3, A)
  label[:crowd], cluster[:crowd] = 6, 15
  x = rng.standard_normal((A, E)).astype(np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return Anchors(
    x, label.astype(np.int32), cluster.astype(np.int32), np.arange(A) < limit
  )


def fresh():
  return cluster_memory.init_memory(
    0, num_classes=C, clusters=K, slots=Q, channels=E
  )


@functools.lru_cache
def program(compat):
  return jax.jit(
    lambda seed, memory, anchors: cluster_memory.enqueue(
      jax.random.key(seed), memory, anchors, max_enqueue=LIMIT, compat=compat
    )
  )


def enqueue(seed, memory, anchors, compat=False):
  return jax.device_get(program(compat)(seed, memory, anchors))


def members(anchors, c, k):
  own = (anchors.label == c) & (anchors.cluster == k) & anchors.mask
  return np.flatnonzero(own)


def test_fresh_memory():
  memory = fresh()
  for x in (memory.centers, memory.queue):
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
  assert memory.queue.shape == (C, K, Q, E)
  assert not memory.filled.any() and not memory.pointer.any()
  assert not np.asarray(cluster_memory.filled_slots(memory)).any()
  assert len(np.unique(memory.centers[..., 0])) > 0.99 * C * K
  other = cluster_memory.init_memory(
    1, num_classes=C, clusters=K, slots=Q, channels=E
  )
  assert np.abs(other.centers - memory.centers).max() > 1


def test_centers_move_towards_the_mean():
  anchors, centers = make_anchors(0, limit=50), fresh().centers
  after = jax.jit(functools.partial(cluster_memory.update_centers, keep=0.9))(
    centers, anchors
  )
  for c in range(C):
    for k in range(K):
      own = members(anchors, c, k)
      if not len(own):
        # Not even rounded.
        np.testing.assert_array_equal(after[c, k], centers[c, k])
        continue
      mean = anchors.feature[own].astype(np.float64).mean(0)
      moved = 0.9 * centers[c, k].astype(np.float64) + 0.1 * mean
      expected = moved / np.linalg.norm(moved)
      np.testing.assert_allclose(after[c, k], expected, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1, rtol=1e-6)


def test_small_steps_of_centers_are_not_lost():
  """At keep = 0.9999 in float32: 7000 updates turn a centre half-way."""
  label = np.zeros(A, np.int32)
  x = np.tile(np.float32([0, 1, 0]), (A, 1))
  anchors = Anchors(x, label, label, np.arange(A) < 9)
  centers = np.tile(np.float32([1, 0, 0]), (1, 1, 1))
  step = lambda _, p: cluster_memory.update_centers(p, anchors, keep=0.9999)  # noqa: E731
  after = np.asarray(jax.lax.fori_loop(0, 7000, step, centers))[0, 0]
  exact = np.float64([1, 0, 0])
  for _ in range(7000):
    exact = 0.9999 * exact + 0.0001 * np.float64([0, 1, 0])
    exact /= np.linalg.norm(exact)
  np.testing.assert_allclose(after, exact, atol=2e-3)


def test_members_are_counted():
  anchors = make_anchors(0, crowd=5, limit=50)
  number = cluster_memory.count_members(anchors, num_classes=C, clusters=K)
  for c in range(C):
    for k in range(K):
      assert number[c, k] == len(members(anchors, c, k))


def test_queue_is_first_in_first_out():
  """Each slot holds an anchor of its own sub-class, the oldest are replaced."""
  memory, history = fresh(), {}
  start = memory.queue.copy()
  for step in range(8):
    # The last step has no anchors at all.
    anchors = make_anchors(step, crowd=9, limit=0 if step == 7 else 50)
    before, memory = memory, enqueue(step, memory, anchors)
    for c in range(C):
      for k in range(K):
        own = members(anchors, c, k)
        number = min(len(own), LIMIT)
        at = before.pointer[c, k]
        slots = [(at + i) % Q for i in range(number)]
        new = memory.queue[c, k, slots]
        found = [
          [j for j in own if (anchors.feature[j] == x).all()] for x in new
        ]
        assert all(len(f) == 1 for f in found)
        assert len({f[0] for f in found}) == number
        rest = [i for i in range(Q) if i not in slots]
        np.testing.assert_array_equal(
          memory.queue[c, k, rest], before.queue[c, k, rest]
        )
        history.setdefault((c, k), []).extend(new)
        assert memory.pointer[c, k] == len(history[c, k]) % Q
        assert memory.filled[c, k] == min(len(history[c, k]), Q)
  live = np.asarray(cluster_memory.filled_slots(memory))
  for (c, k), stored in history.items():
    kept = sorted(map(tuple, stored[-Q:]))
    assert sorted(map(tuple, memory.queue[c, k][live[c, k]])) == kept
  np.testing.assert_array_equal(memory.queue[~live], start[~live])
  # Sub-classes 0 and 255 among them, and a crowd that wrapped around.
  assert memory.filled[0, 0] and memory.filled[6, 15] == Q
  assert len(history[6, 15]) == 7 * LIMIT


def test_who_enters_is_random():
  anchors, seen = make_anchors(0, crowd=9), np.zeros(A)
  for seed in range(60):
    memory = enqueue(seed, fresh(), anchors)
    for x in memory.queue[6, 15, :LIMIT]:
      seen[(anchors.feature == x).all(1)] += 1
  own = members(anchors, 6, 15)
  assert seen.sum() == 60 * LIMIT == seen[own].sum()
  # 20 each on average, standard deviation 3.7.
  assert seen[own].min() > 5 and seen[own].max() < 36


def released(memory, anchors, written):
  """What the released code would have written, given which columns it drew.

  Args:
    memory: before the step.
    anchors: of the step, the existing ones first.
    written: (c, k) to the columns that were drawn for it, in order.
  """
  queue, pointer = memory.queue.copy(), memory.pointer.copy()
  m = int(anchors.mask.sum())
  mixed = anchors.feature[:m].reshape(-1).reshape(E, m)
  for (c, k), columns in written.items():
    n, at = len(columns), pointer[c, k]
    if at + n > Q:
      queue[c, k, Q - n :] = mixed[:, columns].T
      pointer[c, k] = 0
    else:
      queue[c, k, at : at + n] = mixed[:, columns].T
      pointer[c, k] = (at + n) % Q
  return queue, pointer


def test_compat_stores_what_the_released_code_does():
  memory, m = fresh(), 50
  wrapped = 0
  for step in range(5):
    anchors = make_anchors(step, crowd=9, limit=m)
    after = enqueue(step, memory, anchors, compat=True)
    mixed = anchors.feature[:m].reshape(E, m).T
    written = {}
    for c in range(C):
      for k in range(K):
        n = len(members(anchors, c, k))
        if c * K + k in (0, 255) or n == 0:
          continue
        number, at = min(n, LIMIT), memory.pointer[c, k]
        over = at + number > Q
        wrapped += over
        first = Q - number if over else at
        columns = []
        for x in after.queue[c, k, first : first + number]:
          (column,) = np.flatnonzero((mixed == x).all(1))
          columns.append(int(column))
        # Any of the first n columns, each once.
        assert max(columns) < n and len(set(columns)) == number
        written[c, k] = columns
    queue, pointer = released(memory, anchors, written)
    np.testing.assert_array_equal(after.queue, queue)
    np.testing.assert_array_equal(after.pointer, pointer)
    memory = after
  assert wrapped > 3
  start = fresh().queue
  np.testing.assert_array_equal(memory.queue[0, 0], start[0, 0])
  np.testing.assert_array_equal(memory.queue[6, 15], start[6, 15])


@pytest.mark.parametrize("compat", [False, True])
def test_without_anchors_nothing_changes(compat):
  memory = fresh()
  after = enqueue(0, memory, make_anchors(0, limit=0), compat)
  jax.tree.map(np.testing.assert_array_equal, after, memory)
