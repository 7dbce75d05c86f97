"""Checkpoints: bit-exact, the right ones kept, safe against kills and damage."""

import errno
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from wsegpc_jax import checkpoints
from wsegpc_jax.types import DataError


@flax.struct.dataclass
class _State:
  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  ema_params: Any = None


_OPTIMISER = optax.chain(
  optax.add_decayed_weights(1e-4),
  optax.sgd(optax.linear_schedule(0.1, 0.0, 9), momentum=0.9),
)


def _random(rng, tree):
  """Arrays of these shapes, put on a device without compiling anything."""

  def leaf(like):
    values = rng.integers(1, 1000, like.shape) / 7
    return jnp.asarray(values.astype(like.dtype))

  return jax.tree.map(leaf, tree)


def _state(seed=0, width=4, **changes):
  rng = np.random.default_rng(seed)
  shape = jax.ShapeDtypeStruct
  stem = {"kernel": shape((27, 6, width), jnp.float32)}
  head = {"kernel": shape((width, 3), jnp.bfloat16)}
  params = _random(rng, {"stem": stem, "head": head})
  odd = np.array([np.nan, -0.0, np.inf, 1e-40], np.float32)
  state = _State(
    step=jnp.asarray(np.int32(seed + 7)),
    params=params,
    batch_stats={
      "mean": _random(rng, shape((width,), jnp.float32)),
      "odd": jnp.asarray(odd),
      "flags": jnp.asarray(np.array([True, False])),
      "none_yet": jnp.asarray(np.zeros((0, 3), np.float32)),
      "nothing": {},
    },
    opt_state=_random(rng, jax.eval_shape(_OPTIMISER.init, params)),
  )
  return state.replace(**changes)


def _abstract(state):
  return jax.eval_shape(lambda: state)


def _assert_same_bits(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def _steps(workdir):
  """The steps on the disk; fails where anything else is there."""
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def _save_all(workdir, scores, **options):
  """Saves steps 1, 2, ... with these scores; None = no metrics."""
  with checkpoints.Checkpoints(workdir, **options) as run:
    for step, score in enumerate(scores, 1):
      metrics = None if score is None else {"miou": score}
      run.save(step, {"a": jnp.full(3, step)}, host={}, metrics=metrics)


def test_round_trip_is_exact_to_the_bit(tmp_path):
  state = _state()
  host = {"data": {"index": 5}, "best": -math.inf, "without_gain": 2}
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(20, state, host=host, metrics={"miou": 0.5})
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.latest_step() == 20
    for template in (_abstract(state), state, jax.device_get(state)):
      restored, seen = run.restore(template)
      assert seen == host
      _assert_same_bits(restored, state)
    _assert_same_bits(run.restore(_abstract(state), run.best_step())[0], state)


def test_arrays_come_back_where_the_template_has_them(tmp_path):
  device = jax.devices()[0]
  like = {
    "put": jax.device_put(np.ones(2, np.float32), device),
    "free": jnp.asarray(np.ones(2, np.float32)),
    "host": np.ones(2, np.float32),
    "number": 3,
  }
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(1, like, host={})
    restored, _ = run.restore(like)
  assert restored["put"].committed and not restored["free"].committed
  assert type(restored["host"]) is np.ndarray
  assert type(restored["number"]) is int and restored["number"] == 3


def test_buffers_may_be_reused_while_it_is_written(tmp_path):
  big = np.arange(1 << 20, dtype=np.float32)
  state = {"numpy": big.copy(), "jax": jnp.asarray(big)}
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  host = {"seen": [1]}
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(1, state, host=host)
    state["numpy"][:] = -1
    state["jax"] = advance(advance(state["jax"]))
    host["seen"].append(2)
    restored, seen = run.restore({"numpy": big, "jax": big})
  np.testing.assert_array_equal(restored["numpy"], big)
  np.testing.assert_array_equal(restored["jax"], big)
  assert seen == {"seen": [1]}


@pytest.mark.parametrize(
  ("scores", "options", "kept", "best"),
  [
    ([0.1, 0.5, 0.3, 0.2], {}, [2, 4], 2),
    ([0.1, 0.2, 0.3], {}, [3], 3),
    ([0.3, 0.3, 0.1], {}, [2, 3], 2),
    ([0.5, 0.1, 0.2, 0.4], {"keep_latest": 2}, [1, 3, 4], 1),
    ([0.5, 0.1, 0.4, 0.2], {"keep_best": 2}, [1, 3, 4], 1),
    ([0.5, 0.1, 0.2], {"keep_best": 0}, [3], 3),
    ([None, None, None], {}, [3], None),
    ([None, 0.0, None, None], {}, [2, 4], 2),
    ([-0.5, None, math.nan, None], {}, [1, 4], 1),
    ([0.5, math.nan, 0.1], {}, [1, 3], 1),
    ([math.nan, None], {}, [2], None),
  ],
)
def test_the_latest_and_best_are_kept(tmp_path, scores, options, kept, best):
  _save_all(tmp_path, scores, **options)
  assert _steps(tmp_path) == kept
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.latest_step() == len(scores)
    assert run.best_step() == best
    like = {"a": jnp.zeros(3, int)}
    if best is not None:
      assert run.restore(like, run.best_step())[0]["a"].tolist() == [best] * 3
      return
    with pytest.raises(DataError, match="'miou'"):
      checkpoints.restore_partial(tmp_path, keys=("a",))


def test_what_is_kept_does_not_depend_on_resuming(tmp_path):
  scores = [0.3, 0.1, 0.6, None, 0.2, 0.4]
  _save_all(tmp_path / "unbroken", scores)
  for step, score in enumerate(scores, 1):
    with checkpoints.Checkpoints(tmp_path / "resumed") as run:
      metrics = {} if score is None else {"miou": score, "other": -score}
      run.save(step, {"a": jnp.ones(3)}, host={}, metrics=metrics)
  assert _steps(tmp_path / "unbroken") == [3, 6]
  assert _steps(tmp_path / "resumed") == [3, 6]
  reader = checkpoints.Checkpoints(tmp_path / "resumed", best_metric="other")
  with reader as run:
    assert run.best_step() == 6


def test_a_step_is_saved_once_and_never_an_earlier_one(tmp_path):
  like = {"a": jnp.zeros(3)}
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.latest_step() is None and run.best_step() is None
    assert run.save(5, {"a": jnp.ones(3)}, host={"n": 1}) is True
    assert run.save(5, {"a": jnp.zeros(3)}, host={"n": 2}) is False
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.save(5, {"a": jnp.zeros(3)}, host={"n": 3}) is False
    restored, host = run.restore(like)
    assert (restored["a"].tolist(), host) == ([1, 1, 1], {"n": 1})
    with pytest.raises(ValueError, match="cannot save step 4.*of step 5"):
      run.save(4, like, host={})


def test_reading_leaves_no_trace(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.latest_step() is None
  assert list(tmp_path.iterdir()) == []
  _save_all(tmp_path, [0.1])
  # What another process is just writing must not be cleared by a reader.
  unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
  unfinished.mkdir()
  with checkpoints.Checkpoints(tmp_path) as run:
    run.restore({"a": jnp.zeros(3, int)})
    checkpoints.restore_partial(tmp_path, keys=("a",))
  assert unfinished.is_dir()
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(2, {"a": jnp.zeros(3)}, host={})
  assert _steps(tmp_path) == [1, 2]


def test_another_model_is_named_by_its_first_difference(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(1, _state(), host={})
    run.wait()
    folder = str(tmp_path / "checkpoints" / "1")
    wide = _abstract(_state(width=5))
    message = r"mean is float32 \[4\] in the checkpoint and float32 \[5\] here "
    with pytest.raises(DataError, match=message + ".and 4 more") as caught:
      run.restore(wide)
    assert folder in str(caught.value)
    extra = _state(ema_params={"new": jnp.ones(2)})
    message = r"ema_params/new is missing in the checkpoint and float32 \[2\]"
    with pytest.raises(DataError, match=message):
      run.restore(_abstract(extra))
    fewer = _state(opt_state=optax.EmptyState())
    message = r"opt_state/1/0/trace/head/kernel is bfloat16 \[4, 3\] in the .*"
    with pytest.raises(DataError, match=message + "unknown here"):
      run.restore(_abstract(fewer))
    typed = _state(step=jnp.asarray(7.0))
    message = r"step is int32 \[\] in the checkpoint and float32 \[\] here"
    with pytest.raises(DataError, match=message):
      run.restore(_abstract(typed))


def test_what_is_not_there_is_said(tmp_path):
  like = {"a": jnp.zeros(3, int)}
  with checkpoints.Checkpoints(tmp_path) as run:
    with pytest.raises(DataError, match="has no checkpoint$"):
      run.restore(like)
  with pytest.raises(DataError, match="does not exist"):
    checkpoints.restore_partial(tmp_path / "typo", keys=("a",))
  _save_all(tmp_path, [0.1, 0.05])
  with checkpoints.Checkpoints(tmp_path) as run:
    with pytest.raises(DataError, match=r"of step 9, only of steps \[1, 2\]"):
      run.restore(like, 9)
    assert run.restore(like, 1)[0]["a"].tolist() == [1, 1, 1]
  with pytest.raises(DataError, match="nothing under 'params', only under a"):
    checkpoints.restore_partial(tmp_path, keys=("a", "params"))
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "checkpoints").write_text("")
  with pytest.raises(DataError, match="must be a folder"):
    checkpoints.Checkpoints(tmp_path / "other")
  (tmp_path / "foreign" / "checkpoints" / "3").mkdir(parents=True)
  with checkpoints.Checkpoints(tmp_path / "foreign") as run:
    with pytest.raises(DataError, match="checkpoints/3 cannot be read"):
      run.restore(like)


def test_what_cannot_be_saved_is_named(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as run:
    with pytest.raises(TypeError, match="params/name is not a plain array"):
      run.save(1, {"params": {"name": object()}}, host={})
    with pytest.raises(TypeError, match="rng is not a plain array"):
      run.save(1, {"rng": jax.random.key(0)}, host={})
    with pytest.raises(TypeError, match="must be a flax struct or a dict"):
      run.save(1, jnp.ones(3), host={})
    with pytest.raises(TypeError, match="host must be JSON-able"):
      run.save(1, {"a": jnp.ones(3)}, host={"iterator": b"123"})
    assert run.latest_step() is None
  with pytest.raises(ValueError, match="keep_latest"):
    checkpoints.Checkpoints(tmp_path, keep_latest=0)


def test_part_of_a_checkpoint_of_an_unknown_optimiser(tmp_path):
  first, second = _state(1), _state(2)
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(1, first, host={"best": 0.5}, metrics={"miou": 0.5})
    run.save(2, second, host={"best": 0.5}, metrics={"miou": 0.4})
  keys = ("params", "batch_stats")
  part, host = checkpoints.restore_partial(tmp_path, keys=keys)
  assert host == {"best": 0.5}
  assert part.keys() == {"params", "batch_stats"}
  _assert_same_bits(part["params"], first.params)
  assert {type(leaf) for leaf in jax.tree.leaves(part)} == {np.ndarray}
  assert part["params"]["head"]["kernel"].dtype == ml_dtypes.bfloat16
  part, _ = checkpoints.restore_partial(
    tmp_path, keys=("step", "opt_state"), which="latest"
  )
  assert part["step"] == 9
  trace = part["opt_state"]["1"]["0"]["trace"]["stem"]["kernel"]
  _assert_same_bits(trace, second.opt_state[1][0].trace["stem"]["kernel"])
  with pytest.raises(DataError, match="'other'; ask for the latest"):
    checkpoints.restore_partial(tmp_path, keys=(), best_metric="other")
  with pytest.raises(ValueError, match="which"):
    checkpoints.restore_partial(tmp_path, keys=(), which="first")


def _spoil(path, how):
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  spoilt = {"cut": data[:middle], "lie": data.replace(b"0.25", b"0.75")}
  data[middle] ^= 0x11
  spoilt["flip"] = data
  path.write_bytes(spoilt.get(how, b""))
  if how == "delete":
    path.unlink()


@pytest.mark.parametrize("how", ["delete", "empty", "cut", "flip", "lie"])
def test_damage_is_found_out_whatever_file_it_hits(tmp_path, how):
  state = {
    "a": jax.random.normal(jax.random.key(0), (40, 40)),
    "b": jnp.ones(3),
  }
  host = {"best": 0.25}
  good = tmp_path / "good"
  with checkpoints.Checkpoints(good) as run:
    run.save(1, state, host=host, metrics={"miou": 0.5})
    run.save(2, state, host=host, metrics={"miou": 0.4})
  paths = sorted((good / "checkpoints" / "2").rglob("*"))
  files = [path.relative_to(good) for path in paths if path.is_file()]
  found = set()
  for number, file in enumerate(files):
    workdir = tmp_path / str(number)
    shutil.copytree(good, workdir)
    _spoil(workdir / file, how)
    try:
      with checkpoints.Checkpoints(workdir) as run:
        restored, seen = run.restore(state, 2)
    except DataError as error:
      folder = workdir / "checkpoints" / "2"
      assert str(folder) in str(error)
      assert "move this folder away to go on from step 1" in str(error)
      shutil.move(folder, tmp_path / f"away{number}")
      with checkpoints.Checkpoints(workdir) as run:
        _assert_same_bits(run.restore(state)[0], state)
      found.add("/".join(file.parts[2:4]))
    else:  # a file that is not needed
      _assert_same_bits(restored, state)
      assert seen == host
  needed = {"host/metadata", "state/manifest.ocdbt", "state/ocdbt.process_0"}
  assert found == {"host/metadata"} if how == "lie" else found >= needed


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
  with checkpoints.Checkpoints(tmp_path) as run:
    run.save(1, {"a": jnp.ones(3)}, host={})
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="the disk is full.*0 MiB") as caught:
      run.save(2, {"a": jnp.ones(1000)}, host={})
    assert caught.value.errno == errno.ENOSPC
    assert run.latest_step() == 1
    assert run.save(2, {"a": jnp.full(3, 2)}, host={})
  assert _steps(tmp_path) == [2]


def test_a_write_that_fails_is_told_and_loses_nothing(tmp_path):
  like = {"a": np.zeros(3)}
  # 1 MiB that cannot be compressed.
  big = {"a": np.random.default_rng(0).random(1 << 17)}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  run = checkpoints.Checkpoints(tmp_path)
  run.save(1, {"a": np.ones(3)}, host={}, metrics={"miou": 0.1})
  run.save(2, {"a": np.full(3, 2.0)}, host={}, metrics={"miou": 0.05})
  run.wait()
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
  try:
    run.save(3, big, host={}, metrics={"miou": 0.9})
    with pytest.raises(OSError, match="could not be written") as caught:
      run.wait()
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert (run.latest_step(), run.best_step()) == (2, 1)
    run.save(3, big, host={}, metrics={"miou": 0.9})
    with pytest.raises(OSError, match="could not be written"):
      run.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  with checkpoints.Checkpoints(tmp_path) as run:
    assert run.restore(like)[0]["a"].tolist() == [2, 2, 2]
    assert run.restore(like, run.best_step())[0]["a"].tolist() == [1, 1, 1]
    run.save(3, big, host={})
  assert _steps(tmp_path) == [1, 3]


def _python(script, *arguments, **environment):
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


_SAVE_FOR_EVER = """
  import itertools, os, sys
  import numpy as np
  from wsegpc_jax import checkpoints

  def save_for_ever(workdir):
    run = checkpoints.Checkpoints(workdir)
    for step in itertools.count(1):
      state = {f"a{i}": np.full(1 << 16, step) for i in range(8)}
      run.save(step, state, host={"step": step}, metrics={"miou": -step})
      if step == 2:
        os.write(1, f"{workdir} {os.getpid()}\\n".encode())

  # Forked before the backend has any thread, to import but once.
  for workdir in sys.argv[1:]:
    if os.fork() == 0:
      save_for_ever(workdir)
  for _ in sys.argv[1:]:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -9
"""


def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path):
  rng = np.random.default_rng(1463)
  like = {f"a{i}": np.zeros(1 << 16, int) for i in range(8)}
  workdirs = [tmp_path / str(k) for k in range(8)]
  parent = _python(_SAVE_FOR_EVER, *workdirs)
  ready = dict(parent.stdout.readline().split() for _ in workdirs)
  for pid in ready.values():
    with pytest.raises(subprocess.TimeoutExpired):
      parent.wait(timeout=float(rng.uniform(0, 0.1)))
    os.kill(int(pid), signal.SIGKILL)
  _, errors = parent.communicate()
  assert parent.returncode == 0, errors
  # The kills did hit saves, or this test would show nothing.
  assert list(tmp_path.glob("*/checkpoints/*tmp*"))
  for workdir in workdirs:
    with checkpoints.Checkpoints(workdir) as run:
      latest = run.latest_step()
      # The second save begins after the first is there.
      assert latest >= 1 and run.best_step() == 1
      for step in (1, latest):
        restored, host = run.restore(like, step)
        assert {host["step"], *np.unique([*restored.values()])} == {step}
      run.save(latest + 1, like, host={}, metrics={"miou": -latest - 1})
    assert _steps(workdir) == [1, latest + 1]


_FOUR_DEVICES = """
  import sys
  import jax, jax.numpy as jnp, numpy as np
  from jax.sharding import NamedSharding, PartitionSpec as P
  from wsegpc_jax import checkpoints

  assert jax.device_count() == 4
  mesh = jax.make_mesh((4,), ("data",))
  split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
  like = {
    "split": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=split),
    "whole": jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=whole),
  }
  with checkpoints.Checkpoints(sys.argv[1]) as run:
    state, host = run.restore(like)
  assert host == {"from": 1}, host
  assert (state["split"].sharding, state["whole"].sharding) == (split, whole)
  assert [s.data.shape for s in state["split"].addressable_shards] == [(2, 3)] * 4
  np.testing.assert_array_equal(state["split"], np.arange(24).reshape(8, 3))
  state = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s))(state)
  assert state["split"].sharding.is_equivalent_to(split, 2)
  with checkpoints.Checkpoints(sys.argv[2]) as run:
    run.save(2, state, host={"from": 4})
"""


def test_from_one_device_to_four_and_back(tmp_path):
  state = {
    "split": jnp.arange(24, dtype=jnp.float32).reshape(8, 3),
    "whole": jnp.arange(5, dtype=jnp.bfloat16),
  }
  with checkpoints.Checkpoints(tmp_path / "one") as run:
    run.save(1, state, host={"from": 1})
  process = _python(
    _FOUR_DEVICES,
    *(tmp_path / "one", tmp_path / "four"),
    XLA_FLAGS="--xla_force_host_platform_device_count=4",
  )
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
  )
  with checkpoints.Checkpoints(tmp_path / "four") as run:
    restored, host = run.restore(like)
  assert host == {"from": 4}
  assert restored["split"].sharding == device
  _assert_same_bits(restored, jax.tree.map(lambda x: x + 1, state))
