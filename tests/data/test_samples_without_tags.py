"""Scenes that say nothing of what is in them."""

import dataclasses

import numpy as np
import pytest

from wsegpc_jax.data import assets, box_rooms, samples
from wsegpc_jax.data.box_rooms import CLASSES
from wsegpc_jax.types import DataError


def test_a_scene_of_which_nothing_is_known_is_not_trained_on(tmp_path):
  scene, frames = box_rooms.make_room(
    10, 0, image_size=(24, 32), views=2, points_per_square_metre=100.0
  )
  scene = dataclasses.replace(
    scene, label=None, tags=np.zeros(len(CLASSES), bool)
  )
  assets.write_scene(tmp_path, scene, frames, classes=CLASSES)
  unknown = assets.write_dataset(
    tmp_path, name="x", classes=CLASSES, splits={"train": [scene.name]}
  )
  settings = samples.SampleSettings(
    voxel_size=0.1, num_views=2, image_size=(24, 32)
  )
  with pytest.raises(DataError, match=f"scene {scene.name} has no tags"):
    samples.training_sample(
      unknown, scene.name, np.random.default_rng(0), settings
    )
  # Pseudo-labels may come from elsewhere: stage 3 asks for no tags.
  plain = dataclasses.replace(settings, teacher=False, num_views=0)
  samples.training_sample(unknown, scene.name, np.random.default_rng(0), plain)
