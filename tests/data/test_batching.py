"""Batches against the samples they are made of, by meaning and not by index."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsegpc_jax.data import batching
from wsegpc_jax.data.batching import Layout
from wsegpc_jax.data.samples import ImageSample, Sample, VoxelSample
from wsegpc_jax.types import IGNORE_LABEL, NO_REGION, DataError

K, VIEWS, SIZE, PAIRS = 4, 2, (16, 24), 6
LAYOUT = Layout((160, 240, 400), 3, VIEWS, SIZE, PAIRS)


def make_voxels(rng, number):
  coords = rng.permutation(125)[:number]
  coords = np.stack([coords % 5, coords // 5 % 5, coords // 25], 1)
  counts = [len(np.unique(coords >> i, axis=0)) for i in range(5)]
  # Not 0: features of padding are.
  features = rng.uniform(0.1, 1, (number, 6)).astype(np.float32)
  return VoxelSample(coords.astype(np.int32), features, tuple(counts))


def make_sample(seed, *, student=12, teacher=15, pairs=4, views=VIEWS):
  rng = np.random.default_rng(seed)
  region = rng.integers(NO_REGION, 5, (views, *SIZE)).astype(np.int32)
  pictures = rng.integers(1, 256, (2, views, *SIZE, 3)).astype(np.uint8)
  superpoint = rng.integers(NO_REGION, 3, student).astype(np.int32)
  return Sample(
    name=f"scene{seed}",
    student=make_voxels(rng, student),
    label=rng.integers(0, K, student).astype(np.int32),
    tags=rng.random(K) < 0.5,
    teacher=make_voxels(rng, teacher),
    teacher_row=rng.integers(0, teacher, student).astype(np.int32),
    superpoint=superpoint,
    num_superpoints=3,
    images=ImageSample(
      pictures[0], rng.random(K) < 0.5, pictures[1], region, num_regions=5
    ),
    pairs=(
      rng.integers(0, student, pairs).astype(np.int32),
      rng.integers(0, views, pairs).astype(np.int32),
      rng.uniform(0, 16, (pairs, 2)).astype(np.float32),
    ),
  )


def collate(samples, *, layout=LAYOUT, bucket=0, teacher=True):
  return batching.collate(
    samples, layout, bucket, num_classes=K, teacher=teacher
  )


def shapes(batch):
  leaves, structure = jax.tree.flatten(batch)
  return [(a.shape, a.dtype) for a in leaves], structure


class TestBuckets:
  @settings(max_examples=300, deadline=None)
  @given(st.integers(1, 5000), st.integers(0, 10**6), st.floats(1.05, 2.0))
  def test_ladder(self, smallest, more, ratio):
    largest = smallest + more
    sizes = batching.geometric_buckets(smallest, largest, ratio)
    assert sizes[-1] == largest
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] <= max(smallest + 4, 8)
    # Up to the rounding of both to multiples of 8.
    for low, high in zip(sizes, sizes[1:], strict=False):
      assert high <= ratio * (low + 4) + 4
    # Not more programs than the ratio calls for.
    assert len(sizes) <= 2 + math.log(largest / smallest) / math.log(ratio)

  def test_default_ladder(self):
    sizes = batching.geometric_buckets(20_000, 800_000)
    assert sizes[0] == 20_000 and sizes[-1] == 800_000
    assert all(
      1.15 < b / a <= 1.2501 for a, b in zip(sizes, sizes[1:], strict=False)
    )

  @pytest.mark.parametrize(
    "arguments", [(0, 10), (-8, 10), (20, 10), (10, 20, 1.0), (10, 20, 0.5)]
  )
  def test_impossible_ladders(self, arguments):
    with pytest.raises(ValueError, match="0 < smallest <= largest"):
      batching.geometric_buckets(*arguments)

  def test_capacities_grow_with_the_bucket(self):
    layout = Layout((1000, 1350, 1800), 2, 3, (240, 320), 16)
    rooms = [layout.capacities(i) for i in range(3)]
    for size, room in zip(layout.buckets, rooms, strict=True):
      assert room.levels[0] == size
      assert len(room.levels) == 5
      assert all(
        coarse < fine
        for fine, coarse in zip(room.levels, room.levels[1:], strict=False)
      )
    for low, high in zip(rooms, rooms[1:], strict=False):
      assert all(a < b for a, b in zip(low.levels, high.levels, strict=True))
      assert low.superpoints < high.superpoints
      assert low.regions < high.regions
    assert rooms[0].regions == 2 * 3 * 240 * 320 // 16

  def test_there_are_no_more_regions_than_pixels(self):
    layout = Layout((100, 10**6), 2, 1, (6, 8))
    assert layout.capacities(1).regions == 2 * 6 * 8

  @settings(max_examples=100, deadline=None)
  @given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), max_size=3)
  )
  def test_the_smallest_bucket_that_fits(self, sizes):
    samples = [
      make_sample(i, student=a, teacher=b) for i, (a, b) in enumerate(sizes)
    ]

    def fits(bucket):
      room = LAYOUT.capacities(bucket)
      for view in ("student", "teacher"):
        for level in range(5):
          total = sum(getattr(s, view).level_counts[level] for s in samples)
          if total > room.levels[level]:
            return False
      return True

    expected = next((b for b in range(3) if fits(b)), None)
    if expected is None:
      with pytest.raises(DataError):
        batching.choose_bucket(samples, LAYOUT)
    else:
      assert batching.choose_bucket(samples, LAYOUT) == expected

  @pytest.mark.parametrize("view", ["student", "teacher"])
  @pytest.mark.parametrize("level", range(5))
  def test_voxels_beyond_the_largest_bucket_are_named(self, level, view):
    sample, most = make_sample(7), LAYOUT.capacities(2).levels[level]
    counts = tuple(most + 1 if i == level else 1 for i in range(5))
    voxels = dataclasses.replace(sample.student, level_counts=counts)
    sample = dataclasses.replace(sample, **{view: voxels})
    pattern = (
      f"scene7: {most + 1} voxels at stride {2**level}, .*room for {most};"
      ".*largest_bucket.*level_ratios"
    )
    with pytest.raises(DataError, match=pattern):
      batching.choose_bucket([sample], LAYOUT)

  def test_regions_beyond_the_largest_bucket_are_named(self):
    sample, room = make_sample(7), LAYOUT.capacities(2)
    many = dataclasses.replace(sample, num_superpoints=room.superpoints)
    assert batching.choose_bucket([many], LAYOUT) == 2
    with pytest.raises(DataError, match=f"{room.superpoints + 3} superpoints"):
      batching.choose_bucket([many, sample], LAYOUT)
    images = dataclasses.replace(sample.images, num_regions=room.regions)
    many = dataclasses.replace(sample, images=images)
    assert batching.choose_bucket([many], LAYOUT) == 2
    with pytest.raises(DataError, match=f"{room.regions + 5} image regions"):
      batching.choose_bucket([many, sample], LAYOUT)

  @pytest.mark.parametrize("what", ["level", "superpoints", "regions"])
  def test_every_need_can_move_a_batch_to_the_next_bucket(self, what):
    sample, room = make_sample(0), LAYOUT.capacities(0)
    assert batching.choose_bucket([sample], LAYOUT) == 0
    if what == "level":
      counts = (1, 1, room.levels[2] + 1, 1, 1)
      sample = dataclasses.replace(
        sample, teacher=dataclasses.replace(sample.teacher, level_counts=counts)
      )
    elif what == "superpoints":
      sample = dataclasses.replace(sample, num_superpoints=room.superpoints + 1)
    else:
      images = dataclasses.replace(sample.images, num_regions=room.regions + 1)
      sample = dataclasses.replace(sample, images=images)
    assert batching.choose_bucket([sample], LAYOUT) == 1

  def test_an_empty_share_takes_the_first(self):
    assert batching.choose_bucket([], LAYOUT) == 0


class TestCollate:
  @pytest.fixture(
    scope="class", params=[(), (5,), (12, 7), (9, 1, 14)], ids=len
  )
  @classmethod
  def share(cls, request):
    samples = [
      make_sample(i, student=n, teacher=20 - n, pairs=n // 3)
      for i, n in enumerate(request.param)
    ]
    return samples, collate(samples)

  def test_shapes_depend_on_the_bucket_only(self, share):
    samples, batch = share
    assert shapes(batch) == shapes(collate([make_sample(40)]))
    larger = collate(samples, bucket=1)
    assert shapes(larger) == shapes(collate([], bucket=1))
    assert shapes(larger) != shapes(batch)
    assert larger.student.capacities == LAYOUT.capacities(1).levels

  def test_dtypes(self, share):
    batch = share[1]
    images, pairs = batch.images, batch.pairs
    for kind, arrays in {
      np.int32: (
        *(batch.student.coords, batch.student.count, batch.label),
        *(batch.teacher.coords, batch.teacher_row, batch.superpoint),
        *(images.region, pairs.voxel, pairs.image, pairs.count),
      ),
      np.float32: (
        *(batch.student.features, batch.teacher.features, pairs.position),
      ),
      np.bool_: (batch.scene_mask, batch.tags, images.mask, images.tags),
      np.uint8: (images.student, images.teacher),
    }.items():
      assert {a.dtype for a in arrays} == {np.dtype(kind)}

  @pytest.mark.parametrize("name", ["student", "teacher"])
  def test_views(self, share, name):
    samples, batch = share
    view, at = getattr(batch, name), 0
    for slot, sample in enumerate(samples):
      own = getattr(sample, name)
      rows = slice(at, at + len(own.coords))
      assert (view.coords[rows, 0] == slot).all()
      np.testing.assert_array_equal(view.coords[rows, 1:], own.coords)
      np.testing.assert_array_equal(view.features[rows], own.features)
      at = rows.stop
    assert view.count == at
    assert (view.coords[at:] == -1).all()
    assert (view.features[at:] == 0).all()

  def test_rows_of_the_student(self, share):
    samples, batch = share
    at, seen = 0, set()
    for sample in samples:
      n = len(sample.label)
      rows = slice(at, at + n)
      np.testing.assert_array_equal(batch.label[rows], sample.label)
      np.testing.assert_array_equal(
        batch.teacher.features[batch.teacher_row[rows]],
        sample.teacher.features[sample.teacher_row],
      )
      region = batch.superpoint[rows]
      pairs = set(zip(sample.superpoint, region, strict=True))
      assert len(pairs) == len(set(sample.superpoint))
      for before, after in pairs:
        if before == NO_REGION:
          assert after == batch.num_superpoints
        else:
          assert 0 <= after < batch.num_superpoints
          assert after not in seen
          seen.add(after)
      at += n
    assert (batch.label[at:] == IGNORE_LABEL).all()
    assert (batch.teacher_row[at:] == len(batch.teacher.coords)).all()
    assert (batch.superpoint[at:] == batch.num_superpoints).all()
    assert batch.num_superpoints == LAYOUT.capacities(0).superpoints

  def test_scenes(self, share):
    samples, batch = share
    n = len(samples)
    np.testing.assert_array_equal(batch.scene_mask, [i < n for i in range(3)])
    for slot, sample in enumerate(samples):
      np.testing.assert_array_equal(batch.tags[slot], sample.tags)
      np.testing.assert_array_equal(batch.images.tags[slot], sample.images.tags)
    assert not batch.tags[n:].any() and not batch.images.tags[n:].any()

  def test_images(self, share):
    samples, batch = share
    images, seen = batch.images, set()
    for slot, sample in enumerate(samples):
      own = slice(slot * VIEWS, (slot + 1) * VIEWS)
      assert images.mask[own].all()
      np.testing.assert_array_equal(images.student[own], sample.images.student)
      np.testing.assert_array_equal(images.teacher[own], sample.images.teacher)
      before, after = sample.images.region, images.region[own]
      np.testing.assert_array_equal(before < 0, after == images.num_regions)
      pairs = set(zip(before[before >= 0], after[before >= 0], strict=True))
      assert len(pairs) == 5
      numbers = {int(b) for _, b in pairs}
      assert not numbers & seen and max(numbers) < images.num_regions
      seen |= numbers
    rest = slice(len(samples) * VIEWS, None)
    assert not images.mask[rest].any()
    assert (images.region[rest] == images.num_regions).all()

  def test_pairs(self, share):
    samples, batch = share
    counts = [len(s.pairs[0]) for s in samples]
    np.testing.assert_array_equal(
      batch.pairs.count, counts + [0] * (3 - len(counts))
    )
    for slot, sample in enumerate(samples):
      voxel, view, position = sample.pairs
      n = counts[slot]
      np.testing.assert_array_equal(
        batch.student.features[batch.pairs.voxel[slot, :n]],
        sample.student.features[voxel],
      )
      np.testing.assert_array_equal(
        batch.images.student[batch.pairs.image[slot, :n]],
        sample.images.student[view],
      )
      np.testing.assert_array_equal(batch.pairs.position[slot, :n], position)
    # Whatever padding says can be read without harm.
    assert (batch.pairs.voxel >= 0).all()
    assert (batch.pairs.voxel < len(batch.student.coords)).all()
    assert (batch.pairs.image >= 0).all()
    assert (batch.pairs.image < len(batch.images.student)).all()

  def test_without_teacher_and_images(self):
    layout = dataclasses.replace(LAYOUT, num_views=0, num_pairs=0)
    batch = collate([make_sample(0)], layout=layout, teacher=False)
    assert batch.teacher is batch.teacher_row is batch.superpoint is None
    assert batch.images is batch.pairs is None

  def test_evaluation(self):
    """A scene with views and one without, as the programs score them."""
    sample, other = (
      dataclasses.replace(
        make_sample(i), teacher=None, teacher_row=None, pairs=None
      )
      for i in (0, 1)
    )
    other = dataclasses.replace(other, images=None)
    layout = dataclasses.replace(LAYOUT, num_pairs=0)
    batch = collate([sample, other], layout=layout, teacher=False)
    images = batch.images
    np.testing.assert_array_equal(images.mask, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(images.tags[1], other.tags)
    assert images.teacher is images.region is batch.pairs is None
    assert images.num_regions == 0

  def test_what_does_not_fit_is_refused(self):
    """Rows are never cut off silently."""
    with pytest.raises(ValueError, match="4 scenes.*room for 3"):
      collate([make_sample(i) for i in range(4)])
    large = [make_sample(i, student=100) for i in range(2)]
    with pytest.raises(ValueError, match="200 voxels at stride 1.*160"):
      collate(large)
    assert collate(large, bucket=1).student.count == 200

  def test_stack(self):
    shares = [collate([make_sample(0)]), collate([]), collate([make_sample(1)])]
    stacked = batching.stack(shares)
    for device, share in enumerate(shares):
      row = jax.tree.map(lambda a, d=device: a[d], stacked)
      assert jax.tree.structure(row) == jax.tree.structure(share)
      for a, b in zip(
        jax.tree.leaves(row), jax.tree.leaves(share), strict=True
      ):
        np.testing.assert_array_equal(a, b)
