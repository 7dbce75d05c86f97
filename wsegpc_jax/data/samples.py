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
  """What is left of one scene, in both views or the student's alone.

  Attributes:
    scene: all of it.
    label: int [N'], of all its points.
    point: int [N], those that are left, ascending.
    views: their places, float32 [N, 3], as moved.
    turns: [3, 3] of each view, how its normals turn.
    voxels: of each view.
    tags: bool [K], of what is left.
    frames: the posed images.
  """

  scene: Scene
  label: np.ndarray
  point: np.ndarray
  views: list[np.ndarray]
  turns: list[np.ndarray]
  voxels: list[voxel_lib.Voxels]
  tags: np.ndarray
  frames: tuple[Frame, ...]


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
    clouds = [
      _augmented_cloud(dataset, *scene, rng, settings, labels)
      for scene in ((name, views // 2), (other, views - views // 2))
    ]
    voxels = _voxelize(_join(clouds, rng), rng, settings)
  else:
    clouds = [_augmented_cloud(dataset, name, views, rng, settings, labels)]
    voxels = clouds[0].voxels
  return _sample(name, clouds, voxels, rng, settings)


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


def _augmented_cloud(dataset, name, num_views, rng, settings, labels):
  scene = dataset.load_scene(name)
  label = scene.label if labels is None else labels(scene)
  if label is None:
    label = np.full(len(scene.coord), IGNORE_LABEL, np.int32)
  if settings.teacher and not scene.tags.any():
    raise DataError(
      f"{dataset.root}: scene {name} has no tags, expected the classes that "
      "occur in it: nothing can be learnt from a scene of which nothing is known"
    )
  point, tags = np.arange(len(scene.coord)), scene.tags
  floor, wall = (_class_index(dataset, c) for c in ("floor", "wall"))
  if settings.drop_probability and floor is not None and wall is not None:
    keep, tags = drop_structures(
      scene.coord,
      _superpoint(scene),
      scene.tags,
      rng,
      floor_class=floor,
      wall_class=wall,
      ceiling_class=_class_index(dataset, "ceiling"),
      probability=settings.drop_probability,
    )
    point = np.flatnonzero(keep)
  coord = scene.coord[point]
  moved = [augment.student_view(coord, rng, max_rotation=settings.max_rotation)]
  if settings.teacher:
    moved.append(augment.teacher_view(coord, rng))
  views, turns = map(list, zip(*moved, strict=True))
  voxels = _voxelize(views, rng, settings)
  most = settings.max_voxels
  if most is not None and max(len(v.coords) for v in voxels) > most:
    left = _crop(views, rng, settings)
    point, views = point[left], [view[left] for view in views]
    voxels = _voxelize(views, rng, settings)
    if settings.compat and scene.label is not None:
      number = np.bincount(scene.label[point], minlength=len(tags))
      tags = tags & (number[: len(tags)] > 0)
  return _Cloud(
    scene=scene,
    label=label,
    point=point,
    views=views,
    turns=turns,
    voxels=voxels,
    tags=tags,
    frames=load_views(dataset, scene, num_views, settings.image_size, rng),
  )


def _superpoint(scene) -> np.ndarray:
  if scene.superpoint is None:
    return np.full(len(scene.coord), NO_REGION, np.int32)
  return scene.superpoint


def _voxelize(views, rng, settings) -> list[voxel_lib.Voxels]:
  """The voxels of each view, on grids of their own."""
  voxels = []
  for coord in views:
    shift = rng.integers(0, MAX_SHIFT, 3)
    if settings.compat and not settings.teacher:
      shift *= [1, 1, 0]
    voxels.append(voxel_lib.voxelize(coord, settings.voxel_size, shift=shift))
  return voxels


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


def _join(clouds, rng) -> list[np.ndarray]:
  """Two scenes in one: overlaid for the student, apart for the teacher."""
  views = []
  for a, b in zip(*(cloud.views for cloud in clouds), strict=True):
    a, b = a - a.mean(0), b - b.mean(0)
    if not views:
      a = (a + rng.uniform(a.min(0), a.max(0)) / 2).astype(np.float32)
    else:
      b += a.max(0) - b.min(0)
    views.append(np.concatenate([a, b]))
  return views


def _sample(name, clouds, voxels, rng, settings) -> Sample:
  """Of one or two scenes, whose points the voxels' come from in a row."""
  label, region = (np.empty(len(voxels[0].first), np.int32) for _ in range(2))
  features = [np.empty((len(v.first), CHANNELS), np.float32) for v in voxels]
  link, start, regions = [], 0, 0
  for cloud in clouds:
    stop = start + len(cloud.point)
    rows = [(start <= v.first) & (v.first < stop) for v in voxels]
    own = [v.first[r] - start for v, r in zip(voxels, rows, strict=True)]
    start = stop
    points = cloud.point[own[0]]
    label[rows[0]] = cloud.label[points]
    superpoint = _superpoint(cloud.scene)[points]
    region[rows[0]] = np.where(superpoint < 0, NO_REGION, superpoint + regions)
    regions += superpoint.max(initial=NO_REGION) + 1
    for view, values in enumerate(_features_of(cloud, own, rng)):
      features[view][rows[view]] = values
    link += _links(cloud, points, rows[0], settings)
  superpoint, num_superpoints = _compact(region)
  views = [
    VoxelSample(v.coords, f, v.level_counts)
    for v, f in zip(voxels, features, strict=True)
  ]
  sample = Sample(
    name=name,
    student=views[0],
    label=label,
    tags=np.any([cloud.tags for cloud in clouds], 0),
    superpoint=superpoint,
    num_superpoints=num_superpoints,
  )
  if settings.teacher:
    sample = dataclasses.replace(
      sample,
      teacher=views[1],
      teacher_row=voxels[1].inverse[voxels[0].first],
    )
  if link:
    frames = [frame for cloud in clouds for frame in cloud.frames]
    tags = np.any([cloud.scene.tags for cloud in clouds], 0)
    sample = dataclasses.replace(
      sample,
      images=_augmented_images(frames, tags, rng),
      pairs=links.draw_pairs(np.stack(link), rng, per_scene=settings.num_pairs),
    )
  return sample


def _features_of(cloud, own, rng) -> list[np.ndarray]:
  """Features of points of a cloud, those that represent voxels of each view.

  Args:
    cloud: the scene.
    own: of each view, int [m], which of the points that are left.
    rng: source of the colours' randomness.
  """
  colors = augment.view_colors(
    cloud.scene.color[cloud.point], rng, student=own[0], teacher=own[-1]
  )
  return [
    _features(color, augment.move(cloud.scene.normal[cloud.point[o]], turn))
    for o, turn, color in zip(own, cloud.turns, colors, strict=False)
  ]


def _features(color: np.ndarray, normal: np.ndarray) -> np.ndarray:
  """Colour / 127.5 - 1 and normal, float32 [m, 6]."""
  features = np.concatenate([color / np.float32(127.5) - 1, normal], 1)
  return features.astype(np.float32)


def _compact(region: np.ndarray) -> tuple[np.ndarray, int]:
  """Regions renumbered 0, 1, ... in the same order; NO_REGION stays."""
  region = np.maximum(region.astype(np.int64), NO_REGION)
  if region.max(initial=0) >= LARGEST_TABLE:
    ids, ranks = np.unique(region, return_inverse=True)
    region = ranks.reshape(region.shape) - np.count_nonzero(ids < 0)
  rank = np.zeros(region.max(initial=0) + 1, np.int32)
  rank[region[region >= 0]] = 1
  number = int(rank.sum())
  rank = np.cumsum(rank, dtype=np.int32) - 1
  return np.where(region < 0, NO_REGION, rank[region]), number


def _augmented_images(frames, tags, rng) -> ImageSample:
  teacher, student = (
    np.stack([image_augment.color_jitter(f.color, rng, **s) for f in frames])
    for s in (_TEACHER_JITTER, _STUDENT_JITTER)
  )
  regions, total = [], 0
  for frame in frames:
    region = frame.region
    if region is None:
      region = np.full(frame.depth.shape, NO_REGION, np.int32)
    region, number = _compact(region)
    regions.append(np.where(region < 0, NO_REGION, region + total))
    total += number
  return ImageSample(
    student=student,
    tags=tags,
    teacher=teacher,
    region=np.stack(regions).astype(np.int32),
    num_regions=total,
  )


def _links(cloud, points, rows, settings) -> list[np.ndarray]:
  """Pixels of the student's voxels, int32 [M, 2], in each frame of a scene.

  Args:
    cloud: the scene.
    points: the points of the scene that represent voxels.
    rows: bool [M], the voxels that they represent.
    settings: see there.
  """
  coord, found = cloud.scene.coord[points], []
  for frame in cloud.frames:
    link = np.full((len(rows), 2), -1, np.int32)
    link[rows] = links.link_points(
      coord,
      frame.depth,
      frame.pose,
      frame.intrinsics,
      tolerance=settings.link_tolerance or settings.voxel_size,
    )
    found.append(link)
  return found
