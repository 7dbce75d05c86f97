"""The benchmark's ids and its submission format."""

import numpy as np
import pytest

from wsegpc_jax.interop import scannet
from wsegpc_jax.types import DataError


def test_ids_of_the_benchmark():
  ids = dict(zip(scannet.CLASSES, scannet.NYU40_IDS, strict=True))
  assert ids["wall"] == 1 and ids["counter"] == 12 and ids["desk"] == 14
  assert ids["curtain"] == 16 and ids["refrigerator"] == 24
  assert ids["shower curtain"] == 28 and ids["other furniture"] == 39
  assert sorted(set(ids.values())) == list(ids.values())


def test_a_submission_has_one_id_a_line(tmp_path):
  path = tmp_path / "scene.txt"
  scannet.write_submission(path, np.array([0, 12, 19, 1]))
  assert path.read_text().split() == ["1", "14", "39", "2"]
  assert [p.name for p in tmp_path.iterdir()] == ["scene.txt"]


def test_other_classes_are_refused():
  with pytest.raises(DataError, match="20 classes"):
    scannet.check_classes(("wall", "floor"))
  scannet.check_classes([c.replace(" ", "") for c in scannet.CLASSES])
