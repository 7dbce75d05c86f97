"""Files of numpy are read by one thread at a time (see `files.NUMPY_READING`)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wsegpc_jax.data import assets, box_rooms


def test_scenes_are_not_parsed_by_two_threads_at_once(tmp_path, monkeypatch):
  dataset = box_rooms.write_rooms(
    tmp_path, train=2, val=1, seed=0, image_size=(6, 8), views=1,
    points_per_square_metre=20.0,
  )  # fmt: skip
  names = [name for split in dataset.splits.values() for name in split]
  read = np.lib.format.read_array
  inside, together = [], []
  barrier = threading.Barrier(3)

  def watched(*args, **kwargs):
    inside.append(1)
    together.append(len(inside))
    array = read(*args, **kwargs)
    inside.pop()
    return array

  def load(name):
    barrier.wait()
    for _ in range(30):
      assets.load_scene(dataset, name)

  monkeypatch.setattr(np.lib.format, "read_array", watched)
  with ThreadPoolExecutor(3) as pool:
    list(pool.map(load, names))
  assert len(together) >= 3 * 30
  assert max(together) == 1
