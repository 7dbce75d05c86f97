"""Images of one object each and its class: a small stand-in for ImageNet.

An object of `objects.build` stands at a wall, in a corner, on an open floor, or
floats before a texture; pose, scale, light, materials and what lies around it
are drawn. Only the class of the image is told, no pixel's.

Objects are drawn from seeds of their own: no room, of any seed below 2^64, has
an object or a material of these images, and the splits share none either.

Dimension letters: N images, H and W image height and width (H = W).
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int32, UInt8
from tqdm import tqdm

from wsegpc_jax.data.synthetic import render, structure
from wsegpc_jax.data.synthetic.materials import FAMILIES, colors_at, draw
from wsegpc_jax.data.synthetic.mesh import (
  Assembly,
  Mesh,
  box,
  cushion,
  lathe,
  rod,
)
from wsegpc_jax.data.synthetic.objects import SHAPES, build
from wsegpc_jax.types import IGNORE_LABEL, DataError

VERSION = 1  # to be raised whenever a seed gives another image

CLASSES = tuple(SHAPES)
SPLITS = ("train", "val")
# Where the key of a room has its seed; four words of 32 bits.
_KEY = int.from_bytes(b"synthetic_image")
_ON_WALL = ("door", "window", "picture")
_SMALL = ("lamp", "plant", "pillow", "box")
_LEAST_SEEN = 0.08  # share of the pixels that show the object
_TRIES = 12
_HALF = 7.0  # metres, half of the length of walls and floor
_CHUNK = 26  # images of one task of a worker


@dataclasses.dataclass(frozen=True)
class Images:
  """Images with a class each.

  Attributes:
    color: uint8 [N, H, W, 3], RGB.
    label: int32 [N], position in CLASSES.
  """

  color: UInt8[np.ndarray, "n h w 3"]
  label: Int32[np.ndarray, " n"]


def make_image(
  seed: int, split: str, index: int, *, size: int = 56
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
  """Makes an image, the same for the same arguments.

  Args:
    seed: of the set, from 0.
    split: "train" or "val".
    index: number of the image in its split. Classes take turns, so that they
      are as frequent as each other.
    size: H = W, pixels.

  Returns:
    The image, and its class as a position in CLASSES.

  Raises:
    DataError: embreex is not installed.
  """
  rng = np.random.default_rng([_KEY, seed, SPLITS.index(split), index])
  label = index % len(CLASSES)
  thing, others, wall = _draw_scene(rng, CLASSES[label])
  low, high = thing.vertices.min(0), thing.vertices.max(0)
  lights = render.draw_lights(rng, low - 2.5, high + (2.5, 2.5, 2.0))
  world = render.World([thing, *others], [1] + [0] * len(others), lights)
  for _ in range(_TRIES):
    pose, intrinsics = _draw_camera(rng, CLASSES[label], low, high, wall, size)
    rays = render.camera_rays(pose, intrinsics, (size, size))
    hits = world.cast(np.broadcast_to(pose[:3, 3], rays.shape), rays)
    seen = (hits.triangle >= 0) & (world.label[hits.triangle] == 1)
    if seen.mean() >= _LEAST_SEEN:
      break
  color, _, what = render.render(world, pose, intrinsics, (size, size), rng)
  nothing = what == IGNORE_LABEL
  color[nothing] = _texture(rng, size)[nothing]
  return color, label


def make_images(
  split: str, count: int, *, seed: int = 0, size: int = 56, workers: int = 1
) -> Images:
  """Makes the first `count` images of a split, with a progress bar.

  Args:
    split, seed, size: as in `make_image`.
    count: N; a larger one adds images.
    workers: number of processes, on which the result does not depend.

  Raises:
    DataError: an argument is out of range, embreex is not installed, or a
      worker was killed.
  """
  for field, value, least in (
    ("images", count, 1),
    ("seed", seed, 0),
    ("size", size, 8),
    ("workers", workers, 1),
  ):
    if value < least:
      raise DataError(f"{field}: expected at least {least}, got {value}")
  render.require_embree()
  color = np.empty((count, size, size, 3), np.uint8)
  chunks = [range(k, min(k + _CHUNK, count)) for k in range(0, count, _CHUNK)]
  task = functools.partial(_make_chunk, seed, split, size)
  with tqdm(total=count, desc=f"{split} images", unit="image") as bar:
    for chunk, part in _results(task, chunks, workers):
      color[chunk.start : chunk.stop] = part
      bar.update(len(chunk))
  return Images(color, np.arange(count, dtype=np.int32) % len(CLASSES))


def _make_chunk(seed, split, size, chunk: range) -> np.ndarray:
  return np.stack([make_image(seed, split, k, size=size)[0] for k in chunk])


def _results(task, chunks, workers) -> Iterator[tuple[range, np.ndarray]]:
  if workers == 1 or len(chunks) == 1:
    yield from ((chunk, task(chunk)) for chunk in chunks)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    # JAX has threads, which a fork would not have.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )
  try:
    running = {pool.submit(task, chunk): chunk for chunk in chunks}
    for future in concurrent.futures.as_completed(running):
      yield running[future], future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise DataError(
      "a worker that draws images was killed, maybe for lack of memory: use"
      " fewer workers"
    ) from error
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
  # Ctrl-C ends workers without a traceback each, and they end with the parent
  # even if that is killed.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  parent = multiprocessing.parent_process()

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _draw_scene(
  rng: np.random.Generator, name: str
) -> tuple[Mesh, list[Mesh], bool]:
  """The object, what is around it, and whether there is a wall behind it."""
  thing = build(name, rng)
  if name in _ON_WALL:
    height = rng.uniform(1.2, 1.7) if name == "picture" else 0.0
    room = _room(rng, 0.0, (thing.hole,) if thing.hole else ())
    thing = thing.placed((0, 0, height))
    return thing, room + _clutter(rng, thing), True
  tilt = rng.uniform(-1.3, 1.3) if name == "pillow" else 0.0
  turned = rng.uniform(-np.pi, np.pi)
  kind = rng.choice(3, p=[0.55, 0.25, 0.2])  # at a wall, on a floor, floating
  if kind == 0 and name not in _SMALL and rng.random() < 0.7:
    turned = rng.normal(0, 0.15)  # its back to the wall
  elif name == "bookshelf":  # no more than a board from behind
    turned = rng.uniform(-0.6, 0.6)
  thing = thing.placed((0, 0, 0), turned, tilt)
  thing = thing.placed((0, 0, -thing.vertices[:, 2].min()))
  if kind == 2:
    return thing, [], False
  gap = rng.uniform(0.01, 0.5) if kind == 0 else rng.uniform(2.0, 5.0)
  room = _room(rng, thing.vertices[:, 1].min() - gap)
  return thing, room + _clutter(rng, thing), True


def _room(rng, y: float, holes=()) -> list[Mesh]:
  """A floor, a wall that looks along y, and sometimes walls at its sides."""
  height = rng.uniform(2.1, 2.5)
  corners = [(-_HALF, y), (_HALF, y), (_HALF, y + 9.0), (-_HALF, y + 9.0)]
  plan = structure.Plan(np.array(corners), height)
  materials = structure.wall_materials(rng, plan)
  side = rng.uniform(1.0, 3.5)
  open_ = [(_HALF - w / 2, _HALF + w / 2, z0, z1) for w, z0, z1 in holes]
  meshes = [structure.floor(rng, plan)]
  back = structure.wall(materials[0], 2 * _HALF, height, open_)
  meshes.append(back.placed((-_HALF, y, 0)))
  for k, sign in ((1, -1), (2, 1)):
    if rng.random() < 0.4:
      wall = structure.wall(materials[k], 9.0, height, [])
      start = y + 9.0 if sign < 0 else y
      meshes.append(wall.placed((sign * side, start, 0), sign * np.pi / 2))
  return meshes


def _clutter(rng, thing: Mesh) -> list[Mesh]:
  """A few solids beside the object, which are nothing in particular."""
  low, high = thing.vertices.min(0), thing.vertices.max(0)
  meshes = []
  for _ in range(int(rng.integers(0, 4))):
    a, half = Assembly(), rng.uniform(0.05, 0.3, 3)
    material = draw(rng, *FAMILIES)
    kind = rng.integers(4)
    if kind == 0:
      a.add(material, cushion((0, 0, half[2]), half, rng.uniform(2, 6)))
    elif kind == 1:
      radii = half[0] * rng.uniform(0.2, 1.0, 4)
      levels = np.linspace(0, 3 * half[2], 4)
      a.add(material, lathe(list(zip(radii, levels, strict=True))))
    elif kind == 2:
      end = rng.normal(0, 0.4, 3) + (0, 0, 1.2)
      a.add(material, rod((0, 0, 0), end, 0.15 * half[0]))
    else:
      a.add(material, box(-half[0], half[0], -half[1], half[1], 0, half[2]))
    x = rng.choice([low[0] - 0.35, high[0] + 0.35]) + rng.normal(0, 0.3)
    y = rng.uniform(low[1] + 0.1, high[1] + 0.4)
    meshes.append(a.mesh("").placed((x, y, 0), rng.uniform(-np.pi, np.pi)))
  return meshes


def _draw_camera(
  rng, name, low, high, wall: bool, size: int
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, " 4"]]:
  """Pose and intrinsics of a camera that the object fills about."""
  center, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
  around = rng.uniform(-1.2, 1.2) if wall else rng.uniform(-np.pi, np.pi)
  above = rng.uniform(
    *((-0.2, 0.4) if name in _ON_WALL else (0.05, 1.0 if wall else 1.2))
  )
  focal = rng.uniform(0.6, 1.1)
  distance = 2 * focal * radius / rng.uniform(0.6, 1.35)
  distance = max(distance, 1.2 * radius)
  way = np.array(
    [
      np.sin(around) * np.cos(above),
      np.cos(around) * np.cos(above),
      np.sin(above),
    ]
  )
  eye = center + distance * way
  eye[2] = max(eye[2], 0.15)
  target = center + rng.normal(0, 0.12, 3) * radius
  middle = (size - 1) / 2
  intrinsics = np.array([focal * size, focal * size, middle, middle])
  return render.look_at(eye, target), intrinsics


def _texture(rng, size: int) -> UInt8[np.ndarray, "h w 3"]:
  """What is behind everything: a texture seen from in front."""
  material = draw(rng, *FAMILIES, size=(0.1, 0.6))
  rows, columns = np.mgrid[:size, :size] / size * 3
  depth = np.full(rows.shape, rng.uniform(0, 9))
  place = np.stack([columns, depth, rows], -1).reshape(-1, 3)
  color = colors_at((material,), np.zeros(len(place), np.int32), place)
  color = color * rng.uniform(0.3, 1.1) + rng.normal(0, 4, color.shape)
  return np.rint(color).clip(0, 255).astype(np.uint8).reshape(size, size, 3)
