"""Everything ragged ends here: samples to batches of static shape.

One bucket index fixes every capacity of a batch, so a run compiles at most as
many programs as there are buckets. Under several devices all shares have the
bucket of the largest one.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from wsegpc_jax.data.samples import Sample
from wsegpc_jax.types import IGNORE_LABEL, Batch, DataError, Images, Pairs, View

SUPERPOINT_RATIO = 0.125
REGION_PIXELS = 16  # an image of H x W pixels has room for H W / 16 regions


@dataclasses.dataclass(frozen=True)
class Capacities:
  """Rows of one device's share: pyramid levels, superpoints, 2D regions."""

  levels: tuple[int, ...]
  superpoints: int
  regions: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """What every device's share has room for.

  Attributes:
    buckets: capacities of the finest level, ascending.
    slots: scenes a device, B.
    num_views: images a scene, S.
    image_size: (H, W).
    num_pairs: pairs a scene, P.
    channels: features of a voxel.
    level_ratios: room of each pyramid level per voxel of the finest.
  """

  buckets: tuple[int, ...]
  slots: int
  num_views: int = 0
  image_size: tuple[int, int] = (0, 0)
  num_pairs: int = 0
  channels: int = 6
  level_ratios: tuple[float, ...] = (1.0, 0.5, 0.2, 0.08, 0.03)

  def capacities(self, bucket: int) -> Capacities:
    """All capacities that a bucket index stands for."""
    finest = self.buckets[bucket]
    levels = tuple(max(8, math.ceil(r * finest)) for r in self.level_ratios)
    pixels = self.image_size[0] * self.image_size[1]
    images = self.slots * self.num_views
    room = images * math.ceil(pixels / REGION_PIXELS)
    regions = math.ceil(room * finest / self.buckets[0])
    return Capacities(
      levels=levels,
      superpoints=max(8, math.ceil(SUPERPOINT_RATIO * finest)),
      regions=max(8, min(images * pixels, regions)),
    )


def geometric_buckets(
  smallest: int, largest: int, ratio: float = 1.25
) -> tuple[int, ...]:
  """A ladder of capacities, each at most `ratio` times the one before.

  Raises:
    ValueError: not 0 < smallest <= largest, or ratio not above 1.
  """
  if not 0 < smallest <= largest or ratio <= 1:
    raise ValueError(
      f"expected 0 < smallest <= largest and ratio > 1, got {smallest}, "
      f"{largest}, {ratio}"
    )
  steps = math.ceil(math.log(largest / smallest) / math.log(ratio) - 1e-9)
  sizes = [
    8 * max(1, round(smallest * (largest / smallest) ** (i / steps) / 8))
    for i in range(steps)
  ]
  return tuple(sorted({min(size, largest) for size in [*sizes, largest]}))


def choose_bucket(samples: Sequence[Sample], layout: Layout) -> int:
  """The smallest bucket that one device's samples fit into.

  Raises:
    DataError: they do not fit into the largest.
  """
  need = _needs(samples)
  for bucket in range(len(layout.buckets)):
    have = _rooms(layout.capacities(bucket))
    if all(need[what] <= have[what] for what in need):
      return bucket
  what = next(what for what in need if need[what] > have[what])
  raise DataError(
    f"scene(s) {', '.join(s.name for s in samples)}: {need[what]} {what}, "
    f"the largest bucket has room for {have[what]}; raise "
    "config.data.largest_bucket or, if it is of voxels at a stride above 1, "
    "config.data.level_ratios"
  )


def _rooms(room: Capacities) -> dict[str, int]:
  return {
    **{f"voxels at stride {2**i}": n for i, n in enumerate(room.levels)},
    "superpoints": room.superpoints,
    "image regions": room.regions,
  }


def _needs(samples) -> dict[str, int]:
  needs = {}
  for view in ("student", "teacher"):
    counts = [
      getattr(s, view).level_counts
      for s in samples
      if getattr(s, view) is not None
    ]
    for i, total in enumerate(np.sum(counts, 0, dtype=int) if counts else ()):
      key = f"voxels at stride {2**i}"
      needs[key] = max(needs.get(key, 0), int(total))
  needs["superpoints"] = sum(s.num_superpoints for s in samples)
  needs["image regions"] = sum(
    s.images.num_regions for s in samples if s.images is not None
  )
  return needs


def collate(
  samples: Sequence[Sample],
  layout: Layout,
  bucket: int,
  *,
  num_classes: int,
  teacher: bool,
) -> Batch:
  """Pads one device's samples (at most B, possibly none) into a Batch.

  Raises:
    ValueError: they do not fit (`choose_bucket` says which bucket does).
  """
  room = layout.capacities(bucket)
  have = _rooms(room) | {"scenes": layout.slots}
  for what, number in (_needs(samples) | {"scenes": len(samples)}).items():
    if number > have[what]:
      raise ValueError(
        f"{number} {what} do not fit into bucket {bucket}, which has room for "
        f"{have[what]}"
      )
  rows = room.levels[0]
  batch = Batch(
    student=_collate_view(
      [s.student for s in samples], room.levels, layout.channels
    ),
    label=_rows([s.label for s in samples], rows, IGNORE_LABEL),
    scene_mask=np.arange(layout.slots) < len(samples),
    tags=_tags([s.tags for s in samples], layout.slots, num_classes),
  )
  if teacher:
    offsets = np.cumsum([0] + [len(s.teacher.coords) for s in samples])
    links = [s.teacher_row + o for s, o in zip(samples, offsets, strict=False)]
    superpoints = _offset_regions(
      [s.superpoint for s in samples],
      [s.num_superpoints for s in samples],
      room.superpoints,
    )
    batch = batch.replace(
      teacher=_collate_view(
        [s.teacher for s in samples], room.levels, layout.channels
      ),
      teacher_row=_rows(links, rows, rows),
      superpoint=_rows(superpoints, rows, room.superpoints),
      num_superpoints=room.superpoints,
    )
  if layout.num_views:
    batch = batch.replace(
      images=_collate_images(samples, layout, room, num_classes, teacher)
    )
    if layout.num_pairs:
      batch = batch.replace(pairs=_collate_pairs(samples, layout))
  return batch


def stack(batches: Sequence[Batch]) -> Batch:
  """Shares of one bucket, one leading row a device."""
  return jax.tree.map(lambda *a: np.stack(a), *batches)


def _collate_view(views, levels, channels) -> View:
  coords = [
    np.concatenate([np.full((len(v.coords), 1), i, np.int32), v.coords], 1)
    for i, v in enumerate(views)
  ]
  return View(
    coords=_rows(coords, levels[0], -1, shape=(4,)),
    features=_rows(
      [v.features for v in views], levels[0], 0, np.float32, (channels,)
    ),
    count=np.int32(sum(len(v.coords) for v in views)),
    capacities=levels,
  )


def _rows(arrays, capacity, fill, dtype=np.int32, shape=()) -> np.ndarray:
  out = np.full((capacity, *shape), fill, dtype)
  at = 0
  for a in arrays:
    out[at : at + len(a)] = a
    at += len(a)
  return out


def _tags(tags, slots, num_classes) -> np.ndarray:
  out = np.zeros((slots, num_classes), bool)
  for i, t in enumerate(tags):
    out[i] = t
  return out


def _offset_regions(regions, numbers, none):
  """Region ids that run through the batch; `none` for elements without."""
  offsets = np.cumsum([0, *numbers])
  return [
    np.where(r < 0, none, r + o).astype(np.int32)
    for r, o in zip(regions, offsets, strict=False)
  ]


def _collate_images(samples, layout, room, num_classes, teacher) -> Images:
  views, (h, w) = layout.num_views, layout.image_size
  total = layout.slots * views
  student = np.zeros((total, h, w, 3), np.uint8)
  other = np.zeros_like(student) if teacher else None
  region = np.full((total, h, w), room.regions, np.int32) if teacher else None
  mask = np.zeros(total, bool)
  regions = None
  if teacher:
    regions = _offset_regions(
      [s.images.region for s in samples],
      [s.images.num_regions for s in samples],
      room.regions,
    )
  for i, sample in enumerate(samples):
    if sample.images is None:
      continue
    own = slice(i * views, i * views + len(sample.images.student))
    student[own] = sample.images.student
    mask[own] = True
    if teacher:
      other[own] = sample.images.teacher
      region[own] = regions[i]
  tags = [s.tags if s.images is None else s.images.tags for s in samples]
  return Images(
    student=student,
    mask=mask,
    tags=_tags(tags, layout.slots, num_classes),
    teacher=other,
    region=region,
    num_regions=room.regions if teacher else 0,
  )


def _collate_pairs(samples, layout) -> Pairs:
  slots, number = layout.slots, layout.num_pairs
  voxel = np.zeros((slots, number), np.int32)
  image = np.zeros((slots, number), np.int32)
  position = np.zeros((slots, number, 2), np.float32)
  count = np.zeros(slots, np.int32)
  offset = 0
  for i, sample in enumerate(samples):
    v, view, row_col = sample.pairs
    n = count[i] = len(v)
    voxel[i, :n] = v + offset
    image[i, :n] = view + i * layout.num_views
    position[i, :n] = row_col
    offset += len(sample.student.coords)
  return Pairs(voxel, image, position, count)
