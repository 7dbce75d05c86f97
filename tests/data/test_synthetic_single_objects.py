"""Images of single objects: repeatable, balanced, of seeds of their own."""

import itertools
import sys

import numpy as np
import pytest

from wsegpc_jax.data.synthetic import objects, render, rooms, single_objects
from wsegpc_jax.types import DataError

CLASSES = single_objects.CLASSES


def make(split="train", count=len(CLASSES) + 3, **changes):
  return single_objects.make_images(split, count, **{"size": 16} | changes)


@pytest.fixture(scope="module")
def images():
  return make()


def test_the_same_for_one_worker_and_two(images, monkeypatch):
  assert images.color.shape == (len(CLASSES) + 3, 16, 16, 3)
  monkeypatch.setattr(single_objects, "_CHUNK", 1)
  again = make(count=3, workers=2)
  np.testing.assert_array_equal(again.color, images.color[:3])
  np.testing.assert_array_equal(again.label, images.label[:3])


def test_classes_take_turns(images):
  assert set(CLASSES) == set(objects.CLASSES) - {"wall", "floor"}
  count = np.bincount(images.label, minlength=len(CLASSES))
  assert count.min() == 1 and count.max() == 2


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_an_image_shows_an_object_of_its_class(label, monkeypatch):
  """The label is the class that was built, and pixels are its own."""
  built, seen = [], []

  def build(name, rng):
    built.append(name)
    return objects.build(name, rng)

  def take(world, *args):
    color, depth, what = render.render(world, *args)
    seen.append((what == 1).mean())
    return color, depth, what

  monkeypatch.setattr(single_objects, "build", build)
  monkeypatch.setattr(
    single_objects, "render", _Replaced(single_objects.render, render=take)
  )
  for k in (label, label + len(CLASSES)):
    _, found = single_objects.make_image(0, "val", k, size=24)
    assert found == label
  assert built == [CLASSES[label]] * 2
  assert min(seen) >= 0.05


class _Replaced:
  """A module with some functions replaced."""

  def __init__(self, module, **replaced):
    self.__dict__.update({**vars(module), **replaced})


def test_images_and_splits_and_seeds_differ(images):
  variants = [make(count=1), make("val", 1), make(count=1, seed=1)]
  variants.append(make(count=1 + len(CLASSES)))
  shown = {v.color[-1].tobytes() for v in variants}
  assert len(shown) == 4


def key_of(monkeypatch, make_one, *args):
  """What a generator draws from."""

  class Stop(Exception):
    pass

  def stop(key):
    raise Stop(key)

  with monkeypatch.context() as patch:
    patch.setattr(np.random, "default_rng", stop)
    with pytest.raises(Stop) as caught:
      make_one(*args)
  return caught.value.args[0]


def test_no_room_draws_from_the_same(monkeypatch):
  """All generators of rooms and of images start in states of their own.

  Also for seeds and numbers that are words of the images' key.
  """
  word = key_of(monkeypatch, single_objects.make_image, 0, "train", 0)[0]
  seeds = (0, 1, word % 2**32, word % 2**64, 2**64 - 1)
  indices = (0, 1, 13, word % 2**32)
  states, count = set(), 0
  for seed, index, k in itertools.product(seeds, indices, range(2)):
    key = key_of(monkeypatch, rooms.make_room, seed, rooms.SPLITS[k], index)
    sequence = np.random.SeedSequence(key)
    split = single_objects.SPLITS[k]
    key = key_of(monkeypatch, single_objects.make_image, seed, split, index)
    for one in (sequence, *sequence.spawn(4), np.random.SeedSequence(key)):
      states.add(one.generate_state(4).tobytes())
      count += 1
  assert len(states) == count


def test_without_the_ray_caster(monkeypatch):
  monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
  with pytest.raises(DataError, match=r"embreex.*wsegpc-jax\[synthetic\]"):
    make()


@pytest.mark.parametrize(
  "field, value",
  [("images", 0), ("seed", -1), ("size", 4), ("workers", 0)],
)
def test_numbers_out_of_range(field, value):
  changes = {"count" if field == "images" else field: value}
  with pytest.raises(DataError, match=f"{field}: expected at least .*{value}"):
    make(**changes)
