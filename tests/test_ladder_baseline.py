"""The naive baseline against draws and sums worked out here."""

import dataclasses

import ladder_parts
import numpy as np
import pytest

from wsegpc_jax.data import box_rooms
from wsegpc_jax.ladder import baseline, scoring

CLASSES = box_rooms.CLASSES


@pytest.fixture(scope="module")
def scene():
  return box_rooms.make_room(3, 1, views=1, image_size=(6, 8))[0]


@pytest.fixture(scope="module")
def structure(scene):
  return baseline.structure_labels(scene, CLASSES)


def test_geometry_finds_floor_and_walls(scene, structure):
  for name in ("floor", "wall"):
    k = CLASSES.index(name)
    right = ((structure == k) & (scene.label == k)).sum()
    either = ((structure == k) | (scene.label == k)).sum()
    assert right / either > 0.8, name
  assert set(np.unique(structure)) <= {-1, 0, 1}


def test_geometry_does_not_look_at_labels(scene, structure):
  blind = dataclasses.replace(scene, label=None)
  assert (baseline.structure_labels(blind, CLASSES) == structure).all()


@pytest.mark.parametrize("unit", baseline.UNITS)
def test_guess(scene, structure, unit):
  allowed = scene.tags
  rng = np.random.default_rng(0)
  label = baseline.guess(scene, structure, rng, allowed=allowed, unit=unit)
  known = structure >= 0
  assert (label[known] == structure[known]).all()
  drawn = np.unique(label[~known])
  assert allowed[drawn].all() and not np.isin(drawn, (0, 1)).any()
  varied = [
    len(np.unique(label[(scene.superpoint == s) & ~known]))
    for s in np.unique(scene.superpoint[~known])
  ]
  assert (max(varied) == 1) == (unit == "superpoint")
  if unit == "point":  # each class about equally often
    share = np.bincount(label[~known], minlength=len(CLASSES)) / (~known).sum()
    expected = 1 / len(drawn)
    assert np.abs(share[drawn] - expected).max() < 0.1 * expected + 0.02


def test_points_without_superpoint_draw_their_own(scene, structure):
  none = dataclasses.replace(scene, superpoint=np.full(len(structure), -1))
  label = baseline.guess(
    none,
    np.full(len(structure), -1, np.int32),
    np.random.default_rng(0),
    allowed=np.ones(len(CLASSES), bool),
    unit="superpoint",
  )
  assert len(np.unique(label)) == len(CLASSES)


def test_tags_overrule_geometry(scene, structure):
  allowed = np.zeros(len(CLASSES), bool)
  allowed[[1, 4]] = True  # no wall
  label = baseline.guess(
    scene, structure, np.random.default_rng(0), allowed=allowed, unit="point"
  )
  assert set(np.unique(label)) == {1, 4}
  only = np.zeros(len(CLASSES), bool)
  only[[0, 1]] = True  # nothing but what geometry finds
  label = baseline.guess(
    scene, structure, np.random.default_rng(0), allowed=only, unit="point"
  )
  assert set(np.unique(label)) == {0, 1}


def test_unknown_unit(scene, structure):
  with pytest.raises(ValueError, match="unit 'room'; expected one of"):
    baseline.guess(
      scene, structure, np.random.default_rng(0), allowed=scene.tags,
      unit="room",
    )  # fmt: skip


def test_scores_equal_a_count_by_hand(tmp_path):
  dataset = ladder_parts.write_rooms(tmp_path)
  found = baseline.score(dataset, (0, 7))
  again = baseline.score(dataset, (7,))
  for key, split in (("pseudo_label_miou", "train"), ("val_miou", "val")):
    assert len(found[key]) == 2 and found[key][0] != found[key][1]
    assert again["unit"][key] != found["unit"][key] or (
      again[key] == found[key][1:]
    )
    unit, ious = found["unit"][key], []
    pairs = []
    for number, name in enumerate(dataset.splits[split]):
      scene = dataset.load_scene(name)
      tags = scene.tags if split == "train" else np.ones(len(CLASSES), bool)
      label = baseline.guess(
        scene,
        baseline.structure_labels(scene, CLASSES),
        np.random.default_rng([0, number]),
        allowed=tags,
        unit=unit,
      )
      pairs += zip(label.tolist(), scene.label.tolist(), strict=True)
    for k in range(len(CLASSES)):
      both = sum(a == k and b == k for a, b in pairs)
      either = sum(a == k or b == k for a, b in pairs)
      ious.append(both / either if either else None)
    assert found[key][0]["iou"] == pytest.approx(
      dict(zip(CLASSES, ious, strict=True))
    )
    known = [x for x in ious if x is not None]
    assert found[key][0]["miou"] == pytest.approx(sum(known) / len(known))
  # Knowing what is there helps, and chance is far from the truth.
  tags, none = (found[k][0]["miou"] for k in ("val_miou_tags", "val_miou"))
  assert none < tags < 0.9
  assert baseline.first(found, 1)["val_miou"] == found["val_miou"][:1]


def test_objects_leave_structure_out():
  keep = scoring.object_classes(("wall", "chair", "door", "box"))
  assert keep.tolist() == [False, True, False, True]
