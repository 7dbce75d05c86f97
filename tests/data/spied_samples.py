"""Rooms, and a spy on what samples of them are made of, for tests.

Points are followed by numbers in their colour.
"""

import dataclasses

import numpy as np

from wsegpc_jax.data import assets, box_rooms, samples
from wsegpc_jax.data.samples import SampleSettings
from wsegpc_jax.types import NO_REGION

CLASSES = box_rooms.CLASSES
SIZE = 0.15
VIEWS = 2
SETTINGS = SampleSettings(
  voxel_size=SIZE,
  num_views=VIEWS,
  image_size=(24, 32),
  link_tolerance=0.1,
  drop_probability=0.0,
  num_pairs=100,
)


def rng_of(seed):
  return np.random.default_rng(seed)


def write_rooms(root):
  """Two rooms with gaps in their regions, a bare one, one without frames."""
  rng = rng_of(0)
  for index, name in enumerate(("first", "second", "bare", "blind")):
    scene, frames = box_rooms.make_room(
      10, index, image_size=(24, 32), views=VIEWS, points_per_square_metre=120.0
    )
    superpoint = scene.superpoint.copy()
    superpoint[rng.random(len(superpoint)) < 0.05] = NO_REGION
    regions = [np.where(f.region % 7 == 6, NO_REGION, f.region) for f in frames]
    scene = dataclasses.replace(scene, name=name, superpoint=superpoint)
    if name == "bare":
      scene = dataclasses.replace(scene, label=None, superpoint=None)
      regions = [None] * VIEWS
    if name == "blind":
      scene, frames = dataclasses.replace(scene, frames=()), []
    frames = [
      dataclasses.replace(f, region=r)
      for f, r in zip(frames, regions, strict=False)
    ]
    assets.write_scene(root, scene, frames, classes=CLASSES)
  return assets.write_dataset(
    root,
    name="rooms",
    classes=CLASSES,
    splits={"train": ["first", "second", "bare", "blind"]},
  )


def code(ids):
  """Numbers as colours, exact in the features of a voxel."""
  return np.stack([ids % 200, ids // 200 % 200, ids // 40000], 1).astype("f4")


def decode(features):
  low, middle, high = np.rint((features[:, :3] + 1) * 127.5).T.astype(int)
  return low + 200 * middle + 40000 * high


class Spy:
  """What a sample is made of: views of the scans, and what is voxelised."""

  def __init__(self):
    self.teacher, self.student, self.voxelized, self.jitters = [], [], [], []
    self.colors, self.points = [], 0

  def original(self, dataset, *names):
    """(scene number, point) in the data set of every point, in order."""
    out = []
    for number, name in enumerate(names):
      scene = assets.load_scene(dataset, name)
      place = {c.tobytes(): i for i, c in enumerate(scene.coord)}
      assert len(place) == len(scene.coord)
      out += [
        (number, place[c.tobytes()]) for c in self.teacher[number]["coord"]
      ]
    return np.array(out)

  def cells(self, view):
    """Voxel of each point, [N, 3]: view 0 is the student's, 1 the teacher's."""
    coord, size, shift = self.voxelized[view - 2]
    return np.floor(coord.astype(np.float64) / size).astype(int) + shift


def install_spy(monkeypatch) -> Spy:
  """Puts a spy around what makes the samples."""
  seen = Spy()
  augment, voxel_lib = samples.augment, samples.voxel_lib
  real = augment.teacher_view, augment.student_view, voxel_lib.voxelize

  def teacher_view(coord, rng):
    moved, turn = real[0](coord, rng)
    seen.teacher.append(dict(coord=coord, turn=turn))
    return moved, turn

  def student_view(coord, rng, **kwargs):
    moved, turn = real[1](coord, rng, **kwargs)
    seen.student.append(dict(coord=coord, moved=moved, turn=turn, **kwargs))
    return moved, turn

  def view_colors(color, rng, *, student, teacher):
    seen.colors.append(color)
    start = seen.points
    seen.points += len(color)
    return code(start + student), code(start + teacher)

  def voxelize(coord, size, *, shift):
    seen.voxelized.append((coord, size, np.asarray(shift)))
    return real[2](coord, size, shift=shift)

  def color_jitter(image, rng, **strength):
    seen.jitters.append(tuple(strength.values()))
    return image

  monkeypatch.setattr(augment, "teacher_view", teacher_view)
  monkeypatch.setattr(augment, "student_view", student_view)
  monkeypatch.setattr(augment, "view_colors", view_colors)
  monkeypatch.setattr(voxel_lib, "voxelize", voxelize)
  monkeypatch.setattr(samples.image_augment, "color_jitter", color_jitter)
  return seen
