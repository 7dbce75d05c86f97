"""Scenes for a report: read from a data set, labelled by files and networks."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from wsegpc_jax import evaluate, inputs
from wsegpc_jax.data import links
from wsegpc_jax.data.dataset import Dataset
from wsegpc_jax.defaults import get_defaults
from wsegpc_jax.label import FOLDER
from wsegpc_jax.report.records import Room, View
from wsegpc_jax.types import DataError, Scene

logger = logging.getLogger(__name__)

_IMAGE_WIDTH = 320  # pixels; larger frames are made smaller


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a column of pictures has its labels from.

  Attributes:
    title: of the column.
    workdir: working directory of the run.
    pixels: title of what its 2D branch says of the views; "" = `title`.
    stored: take the pseudo-labels that --mode=label wrote, not the network's.
    network: run the network: for the labels of points, unless they are stored,
      and for those of pixels, if it has a 2D branch.
    use_tags: only a scene's tags may be predicted; None = as the run's config
      evaluates.
    superpoints: how probabilities are averaged, see
      `predictor.average_superpoints`; None = as the run's config evaluates.
  """

  title: str
  workdir: str
  pixels: str = ""
  stored: bool = False
  network: bool = True
  use_tags: bool | None = None
  superpoints: str | None = None


def read_config(workdir: str | os.PathLike) -> ConfigDict:
  """The config of a run, as far as its network and its data need it.

  Nothing in it makes a program write: built-in rooms are not generated, nor is
  a cache kept.

  Raises:
    DataError: there is none, or it is of another version.
  """
  path = Path(workdir) / "config.json"
  config = get_defaults()
  try:
    config.update(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise DataError(
      f"{path}: expected the config of a run of this version ({error})"
    ) from error
  for built_in in ("box_rooms", "synthetic"):
    if built_in in config.data:
      config.data[built_in].train = 0
  config.data.cache = ""
  return config


def read_rooms(
  dataset: Dataset,
  names: Sequence[str],
  sources: Sequence[Source],
  *,
  views: int = 2,
  note: str = "",
) -> tuple[Room, ...]:
  """Rooms with a column of labels for each source.

  Args:
    dataset: has the scenes.
    names: of the scenes, in the order of the report.
    sources: the columns; titles must differ.
    views: most posed images of a room.
    note: a sentence about all of them.

  Raises:
    DataError: a scene, a checkpoint or a file of labels is not there or is
      damaged, or a run is of other classes.
  """
  scenes = {name: dataset.load_scene(name) for name in names}
  rooms = {
    name: Room(
      name=name,
      coord=scene.coord,
      color=scene.color,
      classes=dataset.classes,
      truth=scene.label,
      views=tuple(_views(dataset, scene, sources, views)),
      note=note,
    )
    for name, scene in scenes.items()
  }
  for source in sources:
    for name, (label, pixels) in _labels(dataset, scenes, source).items():
      room = rooms[name]
      if label is not None:
        labels = {**room.labels, source.title: label}
        room = dataclasses.replace(room, labels=labels)
      title = source.pixels or source.title
      shown = tuple(
        dataclasses.replace(
          view, labels={**view.labels, title: pixels[view.name]}
        )
        if view.name in pixels
        else view
        for view in room.views
      )
      rooms[name] = dataclasses.replace(room, views=shown)
  return tuple(rooms.values())


def spread(names: Sequence[str], number: int) -> tuple[str, ...]:
  """So many names, evenly spread over the list, its first among them."""
  if number >= len(names):
    return tuple(names)
  return tuple(names[i * len(names) // number] for i in range(number))


def _labels(
  dataset: Dataset, scenes: dict[str, Scene], source: Source
) -> dict[str, tuple[np.ndarray | None, dict[str, np.ndarray]]]:
  """Labels int [N] and, by frame, of pixels, of each scene."""
  found = dict.fromkeys(scenes, (None, {}))
  if source.network:
    config = read_config(source.workdir)
    inputs.check_same_data(source.workdir, dataset)
    logger.info("%s: predicting %d scenes", source.title, len(scenes))
    predictor, variables, _, _ = evaluate.load_network(
      config, source.workdir, len(dataset.classes)
    )
    use_tags, superpoints = source.use_tags, source.superpoints
    predictions = evaluate.predict_scenes(
      predictor,
      variables,
      dataset,
      tuple(scenes),
      config,
      use_tags=config.eval.use_tags if use_tags is None else use_tags,
      superpoints=superpoints or config.eval.superpoints,
    )
    for scene, prediction in predictions:
      label = prediction.probabilities.argmax(1).astype(np.int32)
      pixels = {}
      if prediction.label_2d is not None:
        frames = _frame_names(scene, config.data.num_views)
        pixels = dict(zip(frames, prediction.label_2d, strict=True))
      found[scene.name] = (label, pixels)
  if source.stored:
    folder = Path(source.workdir) / FOLDER
    for name, scene in scenes.items():
      label = inputs.read_labels(folder, scene, len(dataset.classes))
      found[name] = (label, found[name][1])
  return found


def _frame_names(scene: Scene, number: int) -> list[str]:
  """Frames that an evaluation with so many views sees."""
  chosen = links.choose_views(len(scene.frames), number, None)
  return [scene.frames[i] for i in chosen]


def _views(dataset, scene, sources, most):
  """The frames to show, with the truth in the networks' resolution."""
  if not scene.frames or not most:
    return
  size, number = None, most
  for source in sources:
    config = read_config(source.workdir) if source.network else None
    if config is not None and config.method == "wsegpc":
      size, number = tuple(config.data.image_size), config.data.num_views
      break
  for name in spread(list(dict.fromkeys(_frame_names(scene, number))), most):
    frame = dataset.load_frame(scene.name, name)
    color = Image.fromarray(frame.color)
    color.thumbnail((_IMAGE_WIDTH, 4 * _IMAGE_WIDTH))
    if size is not None:
      frame = dataset.load_frame(scene.name, name, image_size=size)
    labels = {} if frame.label is None else {"Truth": frame.label}
    yield View(name, np.asarray(color), labels)
