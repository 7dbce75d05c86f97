"""Scene matrices survive the disk; damaged files are named."""

import numpy as np
import pytest

from wsegpc_jax.metrics import scene_matrices
from wsegpc_jax.metrics.scene_matrices import SceneMatrices
from wsegpc_jax.types import DataError

CLASSES = ("wall", "other furniture")


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_what_is_written_is_read(tmp_path, columns, number):
  rng = np.random.default_rng(0)
  names = tuple(f"scène {i}" for i in range(number))
  matrix = rng.integers(0, 2**50, (number, 2, columns))
  path = tmp_path / "new" / "a.scenes.npz"
  scene_matrices.write(path, SceneMatrices(names, matrix), CLASSES)
  found, classes = scene_matrices.read(path)
  assert found.names == names and classes == CLASSES
  assert found.confusion.dtype == np.int64
  np.testing.assert_array_equal(found.confusion, matrix)


def test_scores_are_of_the_sum():
  matrix = np.array([[[6, 0, 4], [0, 5, 0]], [[2, 1, 0], [0, 0, 0]]])
  scores = SceneMatrices(("a", "b"), matrix).scores()
  np.testing.assert_allclose(scores.iou, [8 / 13, 5 / 6])
  scores = SceneMatrices(("a", "b"), matrix[..., :2]).scores()
  np.testing.assert_allclose(scores.iou, [8 / 9, 5 / 6])


def test_beside():
  path = scene_matrices.beside("exp/eval/val_best.json")
  assert str(path) == "exp/eval/val_best.scenes.npz"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"confusion": np.ones((2, 3, 3), int)}, r"\[2, 3, 3\], expected \[2, 2"),
    ({"confusion": np.ones((1, 2, 2), int)}, "2 scenes"),
    ({"confusion": np.ones((2, 2, 2))}, "counts"),
    ({"confusion": -np.ones((2, 2, 2), int)}, "counts"),
    ({"scenes": np.array(["a", "a"])}, "differ"),
    ({"classes": np.array([{}, 1], object)}, "scene matrices"),
  ],
)
def test_damage_is_named(tmp_path, change, words):
  good = {
    "scenes": np.array(["a", "b"]),
    "classes": np.array(CLASSES),
    "confusion": np.ones((2, 2, 2), int),
  }
  path = tmp_path / "x.scenes.npz"
  np.savez(path, **good | change)
  with pytest.raises(DataError, match=f"x.scenes.npz.*{words}"):
    scene_matrices.read(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip"])
def test_no_such_file(tmp_path, content):
  path = tmp_path / "x.scenes.npz"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(DataError, match="x.scenes.npz"):
    scene_matrices.read(path)
