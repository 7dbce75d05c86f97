"""From a scene on disk to one training or evaluation sample (numpy, ragged).

A sample holds what `batching` pads into a `Batch`: voxels of the student's and
the teacher's view, links, images and regions. See the specification's sections
"Data" and "Augmentation (train)".
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from wsegpc_jax.data import augment, image_augment, links
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.data.structure_drop import crop_nearest_half, drop_structures
from wsegpc_jax.sparse import voxelize as voxel_lib
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError, Frame, Scene

_STUDENT_JITTER = dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
_TEACHER_JITTER = dict(
  brightness=0.15, contrast=0.15, saturation=0.15, hue=0.05
)
CHANNELS = 6  # colour and normal
LARGEST_TABLE = 1 << 22  # regions with higher ids are sorted, not counted
MAX_SHIFT = 100  # both voxel grids start at a random offset in 0..99


@dataclasses.dataclass(frozen=True)
class SampleSettings:
  """How a sample is made.

  Attributes:
    voxel_size: edge of a voxel, metres.
    num_views: posed images a scene, S; 0 leaves the images out.
    image_size: (H, W) of the images.
    link_tolerance: largest difference in depth of a link, metres; None = the
      voxel size (ScanNet).
    teacher: whether a teacher's view is made.
    drop_probability: of floor and of walls (and ceiling, if it is a class).
    max_rotation: of the student's view, radians.
    max_voxels: a scene with more voxels in a view is cropped in training
      (nearest half around a random point, repeatedly); None = never.
    mix3d: probability that two scenes are joined in one sample.
    num_pairs: links drawn for contrastive distillation, most a scene.
    compat: the reference's faults that change a training sample: in stage 3
      the grid is not shifted along z, and after a crop the tags are taken
      from the points left where labels are known (S3DIS).
  """

  voxel_size: float = 0.04
  num_views: int = 6
  image_size: tuple[int, int] = (240, 320)
  link_tolerance: float | None = None
  teacher: bool = True
  drop_probability: float = 0.5
  max_rotation: float = np.pi / 6
  max_voxels: int | None = None
  mix3d: float = 0.0
  num_pairs: int = 512
  compat: bool = False


@dataclasses.dataclass(frozen=True)
class VoxelSample:
  """Voxels of one view of a scene: coords int32 [m, 3], features [m, 6]."""

  coords: np.ndarray
  features: np.ndarray
  level_counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ImageSample:
  """Views of a scene; region ids run through all views, NO_REGION = none."""

  student: np.ndarray  # uint8 [S, H, W, 3]
  tags: np.ndarray  # bool [K]
  teacher: np.ndarray | None = None
  region: np.ndarray | None = None  # int32 [S, H, W]
  num_regions: int = 0
  label: np.ndarray | None = None  # int32 [S, H, W], evaluation only


@dataclasses.dataclass(frozen=True)
class Sample:
  """One scene, ready to be padded; fields as in `types.Batch`."""

  name: str
  student: VoxelSample
  label: np.ndarray
  tags: np.ndarray
  teacher: VoxelSample | None = None
  teacher_row: np.ndarray | None = None
  superpoint: np.ndarray | None = None
  num_superpoints: int = 0
  images: ImageSample | None = None
  pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
  inverse: np.ndarray | None = None  # voxel of each point, evaluation only


@dataclasses.dataclass(frozen=True)
class _Cloud:
  """Points of a scene, or of joined ones, before voxelisation."""

  student: np.ndarray  # coord, in the student's view
  teacher: np.ndarray
  color: np.ndarray  # as scanned, and so the normals
  normal: np.ndarray
  turns: tuple[tuple[np.ndarray, np.ndarray], ...]  # student's, teacher's
  label: np.ndarray
  superpoint: np.ndarray
  tags: np.ndarray
  tags_2d: np.ndarray
  coord: np.ndarray  # as scanned, for the links
  frames: tuple[Frame, ...]
  of_frame: np.ndarray  # which of the joined scenes a frame belongs to
  of_point: np.ndarray  # ascending


def training_sample(
  dataset: Dataset,
  name: str,
  rng: np.random.Generator,
  settings: SampleSettings,
  *,
  labels: Callable[[Scene], np.ndarray] | None = None,
  others: tuple[str, ...] = (),
) -> Sample:
  """An augmented sample of one scene (or of two, with mix3d).

  Args:
    dataset: where the scene is.
    name: the scene.
    rng: source of all randomness.
    settings: see there.
    labels: gives the labels to train on; None = the scene's own.
    others: scenes that mix3d draws the second one from.

  Raises:
    DataError: a file of the scene is at fault, or images are needed and the
      scene has none.
  """
  views = settings.num_views
  if settings.mix3d and others and rng.random() < settings.mix3d:
    other = others[rng.integers(len(others))]
    first = _augmented_cloud(dataset, name, rng, settings, labels, views // 2)
    second = _augmented_cloud(
      dataset, other, rng, settings, labels, views - views // 2
    )
    cloud = _join(first, second, rng)
  else:
    cloud = _augmented_cloud(dataset, name, rng, settings, labels, views)
  return _voxelize_cloud(name, cloud, rng, settings)


def evaluation_sample(
  scene: Scene, frames: tuple[Frame, ...], settings: SampleSettings
) -> Sample:
  """A sample of a whole scene as it is, with the inverse map of its points."""
  voxels = voxel_lib.voxelize(scene.coord, settings.voxel_size)
  first = voxels.first
  label = scene.label
  if label is None:
    label = np.full(len(scene.coord), IGNORE_LABEL, np.int32)
  images = None
  if frames:
    truth = [
      np.full(f.depth.shape, IGNORE_LABEL, np.int32)
      if f.label is None
      else f.label
      for f in frames
    ]
    images = ImageSample(
      np.stack([f.color for f in frames]), scene.tags, label=np.stack(truth)
    )
  return Sample(
    name=scene.name,
    student=VoxelSample(
      voxels.coords,
      _features(scene.color[first], scene.normal[first]),
      voxels.level_counts,
    ),
    label=label[first],
    tags=scene.tags,
    images=images,
    inverse=voxels.inverse,
  )


def load_views(
  dataset: Dataset,
  scene: Scene,
  num_views: int,
  image_size: tuple[int, int],
  rng: np.random.Generator | None,
) -> tuple[Frame, ...]:
  """The frames of `choose_views`, read once each; none if S = 0."""
  if not num_views:
    return ()
  if not scene.frames:
    raise DataError(
      f"{dataset.root}: scene {scene.name} has no frames, expected at least "
      "one posed RGB-D image"
    )
  chosen = links.choose_views(len(scene.frames), num_views, rng)
  frames = {
    i: dataset.load_frame(scene.name, scene.frames[i], image_size=image_size)
    for i in sorted(set(chosen.tolist()))
  }
  return tuple(frames[i] for i in chosen.tolist())


def _class_index(dataset, name):
  return dataset.classes.index(name) if name in dataset.classes else None


def _augmented_cloud(dataset, name, rng, settings, labels, views) -> _Cloud:
  scene = dataset.load_scene(name)
  label = scene.label if labels is None else labels(scene)
  if label is None:
    label = np.full(len(scene.coord), IGNORE_LABEL, np.int32)
  if settings.teacher and not scene.tags.any():
    raise DataError(
      f"{dataset.root}: scene {name} has no tags, expected the classes that "
      "occur in it: nothing can be learnt from a scene of which nothing is known"
    )
  superpoint = scene.superpoint
  if superpoint is None:
    superpoint = np.full(len(scene.coord), NO_REGION, np.int32)
  kept, tags = np.arange(len(scene.coord)), scene.tags
  floor, wall = (_class_index(dataset, c) for c in ("floor", "wall"))
  if settings.drop_probability and floor is not None and wall is not None:
    keep, tags = drop_structures(
      scene.coord,
      superpoint,
      scene.tags,
      rng,
      floor_class=floor,
      wall_class=wall,
      ceiling_class=_class_index(dataset, "ceiling"),
      probability=settings.drop_probability,
    )
    kept = np.flatnonzero(keep)
  coord = scene.coord[kept]
  teacher, teacher_turn = augment.teacher_view(coord, rng)
  student, student_turn = augment.student_view(
    coord, rng, max_rotation=settings.max_rotation
  )
  if settings.max_voxels is not None:
    left = _crop((student, teacher), rng, settings)
    if settings.compat and len(left) < len(kept) and scene.label is not None:
      number = np.bincount(scene.label[kept[left]], minlength=len(tags))
      tags = tags & (number[: len(tags)] > 0)
    if len(left) < len(kept):
      kept, coord = kept[left], coord[left]
      student, teacher = student[left], teacher[left]
  frames = load_views(dataset, scene, views, settings.image_size, rng)
  return _Cloud(
    student=student,
    teacher=teacher,
    color=scene.color[kept],
    normal=scene.normal[kept],
    turns=((student_turn, teacher_turn),),
    label=label[kept],
    superpoint=superpoint[kept],
    tags=tags,
    tags_2d=scene.tags,
    coord=coord,
    frames=frames,
    of_frame=np.zeros(len(frames), np.int32),
    of_point=np.zeros(len(kept), np.int32),
  )


def _crop(views, rng, settings) -> np.ndarray:
  """Rows that stay, so that every view has at most max_voxels voxels."""
  left = np.arange(len(views[0]))
  for coord in views:
    left = left[
      crop_nearest_half(
        coord[left],
        rng,
        max_voxels=settings.max_voxels,
        voxel_size=settings.voxel_size,
      )
    ]
  return left


def _join(first: _Cloud, second: _Cloud, rng) -> _Cloud:
  """Two scenes in one sample: overlaid for the student, apart for the teacher."""

  def centred(coord):
    return coord - coord.mean(0)

  a, b = centred(first.student), centred(second.student)
  a = (a + rng.uniform(a.min(0), a.max(0)) / 2).astype(np.float32)
  student = np.concatenate([a, b])
  a, b = centred(first.teacher), centred(second.teacher)
  teacher = np.concatenate([a, b + (a.max(0) - b.min(0))])
  offset = first.superpoint.max(initial=NO_REGION) + 1
  other = np.where(
    second.superpoint >= 0, second.superpoint + offset, NO_REGION
  )
  return _Cloud(
    student=student,
    teacher=teacher,
    color=np.concatenate([first.color, second.color]),
    normal=np.concatenate([first.normal, second.normal]),
    turns=first.turns + second.turns,
    label=np.concatenate([first.label, second.label]),
    superpoint=np.concatenate([first.superpoint, other]),
    tags=first.tags | second.tags,
    tags_2d=first.tags_2d | second.tags_2d,
    coord=np.concatenate([first.coord, second.coord]),
    frames=first.frames + second.frames,
    of_frame=np.repeat([0, 1], [len(first.frames), len(second.frames)]),
    of_point=np.repeat([0, 1], [len(first.coord), len(second.coord)]),
  )


def _voxelize_cloud(name, cloud, rng, settings) -> Sample:
  def shift():
    s = rng.integers(0, MAX_SHIFT, 3)
    return s * [1, 1, 0] if settings.compat and not settings.teacher else s

  def voxelized(coord):
    return voxel_lib.voxelize(coord, settings.voxel_size, shift=shift())

  views = [voxelized(cloud.student)]
  if settings.teacher:
    views.append(voxelized(cloud.teacher))
  first = views[0].first
  student, *teacher = _view_samples(cloud, views, rng)
  superpoint, num_superpoints = _compact(cloud.superpoint[first])
  sample = Sample(
    name=name,
    student=student,
    label=cloud.label[first].astype(np.int32),
    tags=cloud.tags,
    teacher=teacher[0] if teacher else None,
    teacher_row=views[1].inverse[first] if teacher else None,
    superpoint=superpoint,
    num_superpoints=num_superpoints,
  )
  if cloud.frames:
    sample = dataclasses.replace(
      sample,
      images=_augmented_images(cloud, rng),
      pairs=_draw_pairs(cloud, first, rng, settings),
    )
  return sample


def _view_samples(cloud, views, rng) -> list[VoxelSample]:
  """Voxels with features, of the student's and, if it is there, the teacher's.

  Only points that represent a voxel get their colours and normals.
  """
  features = [np.empty((len(v.first), CHANNELS), np.float32) for v in views]
  for scene, turns in enumerate(cloud.turns):
    start, stop = np.searchsorted(cloud.of_point, [scene, scene + 1])
    rows = [(start <= v.first) & (v.first < stop) for v in views]
    points = [v.first[r] for v, r in zip(views, rows, strict=True)]
    colors = augment.view_colors(
      cloud.color[start:stop],
      rng,
      student=points[0] - start,
      teacher=points[-1] - start,
    )
    for view in range(len(views)):
      normal = augment.move(cloud.normal[points[view]], turns[view])
      features[view][rows[view]] = _features(colors[view], normal)
  return [
    VoxelSample(v.coords, f, v.level_counts)
    for v, f in zip(views, features, strict=True)
  ]


def _features(color: np.ndarray, normal: np.ndarray) -> np.ndarray:
  """Colour / 127.5 - 1 and normal, float32 [m, 6]."""
  features = np.concatenate([color / np.float32(127.5) - 1, normal], 1)
  return features.astype(np.float32)


def _compact(region: np.ndarray) -> tuple[np.ndarray, int]:
  """Regions renumbered 0, 1, ... in the same order; NO_REGION stays."""
  shape = region.shape
  if region.max(initial=0) >= LARGEST_TABLE:
    ids, region = np.unique(region, return_inverse=True)
    region = region.reshape(shape) - np.count_nonzero(ids < 0)
  rank = np.zeros(region.max(initial=0) + 1, np.int32)
  rank[region[region >= 0]] = 1
  number = int(rank.sum())
  rank = np.cumsum(rank, dtype=np.int32) - 1
  return np.where(region < 0, NO_REGION, rank[region]), number


def _augmented_images(cloud, rng) -> ImageSample:
  teacher = [
    image_augment.color_jitter(f.color, rng, **_TEACHER_JITTER)
    for f in cloud.frames
  ]
  student = [
    image_augment.color_jitter(f.color, rng, **_STUDENT_JITTER)
    for f in cloud.frames
  ]
  regions, total = [], 0
  for frame in cloud.frames:
    region = frame.region
    if region is None:
      region = np.full(frame.depth.shape, NO_REGION, np.int32)
    region, number = _compact(region)
    regions.append(np.where(region < 0, NO_REGION, region + total))
    total += number
  return ImageSample(
    student=np.stack(student),
    tags=cloud.tags_2d,
    teacher=np.stack(teacher),
    region=np.stack(regions).astype(np.int32),
    num_regions=total,
  )


def _draw_pairs(cloud, first, rng, settings):
  """Links of the student's voxels, by the point that represents each."""
  tolerance = settings.link_tolerance or settings.voxel_size
  coord, of_point = cloud.coord[first], cloud.of_point[first]
  link = np.full((len(cloud.frames), len(first), 2), -1, np.int32)
  for i, frame in enumerate(cloud.frames):
    own = of_point == cloud.of_frame[i]
    link[i, own] = links.link_points(
      coord[own],
      frame.depth,
      frame.pose,
      frame.intrinsics,
      tolerance=tolerance,
    )
  return links.draw_pairs(link, rng, per_scene=settings.num_pairs)
