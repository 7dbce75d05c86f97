"""Pre-trains the small 2D network on rendered objects, in place of ImageNet.

  python -m wsegpc_jax.synthetic_image --out data/synthetic_image/r18_w16.safetensors

Learns to tell the class of images of single objects, drawn from seeds that no
room has, and writes the network without its classifier under torchvision's
names: --config.model.image_weights=FILE starts from it. Depth and width must be
those of the run (model.image_depth, model.image_width). A file of the same
settings is kept as it is.
"""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from wsegpc_jax.arguments import count
from wsegpc_jax.data.image_augment import color_jitter
from wsegpc_jax.data.synthetic import rooms, single_objects
from wsegpc_jax.data.synthetic.single_objects import CLASSES, Images
from wsegpc_jax.interop import safetensors_io, weights
from wsegpc_jax.methods import common
from wsegpc_jax.methods.image_classification import ImageClassification
from wsegpc_jax.models.dilated_resnet import DilatedResNet
from wsegpc_jax.types import DataError, TrainState

VERSION = 1  # to be raised whenever the same settings give other weights

_RECORD = "synthetic_image"  # key of the settings in the file's metadata
_RESULT = "synthetic_image_result"
_RENDERED, _SEEN = 56, 48  # pixels: of a rendered image, of a crop of it
_HELD_OUT = 40  # images of each class
_BATCH = 64
_LEARNING_RATE = 0.1
_WEIGHT_DECAY = 5e-4
_WARMUP = 0.1  # share of the steps
_JITTER = dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)


@dataclasses.dataclass(frozen=True)
class Settings:
  """All that the weights depend on.

  Attributes:
    depth, width: of the network, see `models.dilated_resnet`.
    images: number of images to learn from.
    epochs: passes over them.
    seed: of images, weights and order.
  """

  depth: int = 18
  width: int = 16
  images: int = 5200
  epochs: int = 8
  seed: int = 0

  def record(self) -> dict[str, int]:
    """The settings with the versions of what they are used by."""
    return {
      "version": VERSION,
      "images_version": single_objects.VERSION,
      "generator_version": rooms.VERSION,
      **dataclasses.asdict(self),
    }

  def command(self, path: str | os.PathLike) -> str:
    """The command that makes the file."""
    words = ["python", "-m", "wsegpc_jax.synthetic_image", "--out", str(path)]
    for field, value in dataclasses.asdict(self).items():
      words += [f"--{field}", str(value)]
    return shlex.join(words)


def ensure(
  path: str | os.PathLike,
  settings: Settings,
  *,
  workers: int = 2,
  say: Callable[[str], None] = print,
) -> Path:
  """Makes the file of weights, unless it is there with these settings.

  A file that was made here with other settings or by another version is made
  anew. The file appears whole or not at all.

  Args:
    path: of the file, .safetensors.
    settings: all that the weights depend on.
    workers: processes that render; the images do not depend on it.
    say: prints a line.

  Returns:
    The path.

  Raises:
    DataError: a setting is out of range, the file was made by something else,
      or embreex is not installed.
    OSError: the file cannot be written.
    FloatingPointError: the loss is not finite.
  """
  path = Path(path)
  _check(path, settings)
  if path.exists():
    old, result = _read_metadata(path, settings)
    new = settings.record()
    if old == new:
      say(f"{path} is there: {in_words(result)}")
      return path
    differing = ", ".join(
      f"{field} was {old.get(field)} and is now {value}"
      for field, value in new.items()
      if old.get(field) != value
    )
    say(f"{path}: {differing}; it is made anew")
  else:
    say(f"{path} is not there: pre-training on rendered objects")
  # Now, and not after minutes of work.
  path.parent.mkdir(parents=True, exist_ok=True)

  def render(split, number):
    return single_objects.make_images(
      split, number, seed=settings.seed, size=_RENDERED, workers=workers
    )

  train = render("train", settings.images)
  held_out = render("val", _HELD_OUT * len(CLASSES))
  method, state = train_network(settings, train)
  result = {
    "train_accuracy": accuracy(method, state, train),
    "held_out_accuracy": accuracy(method, state, held_out),
  }
  save(path, settings, state, result)
  say(f"{path}: {in_words(result)}")
  return path


def in_words(result: dict[str, float]) -> str:
  """The accuracies, and that of guessing."""
  return (
    f"accuracy {result['train_accuracy']:.3f} on images it learned from, "
    f"{result['held_out_accuracy']:.3f} on held-out objects "
    f"(chance {1 / len(CLASSES):.3f})"
  )


def train_network(
  settings: Settings, images: Images
) -> tuple[ImageClassification, TrainState]:
  """Trains from random weights; shows progress.

  Raises:
    FloatingPointError: the loss is not finite.
  """
  per_epoch = max(len(images.label) // _BATCH, 1)
  total = per_epoch * settings.epochs
  warmup = int(_WARMUP * total)
  optimizer = common.cosine_sgd(
    _LEARNING_RATE,
    total - warmup,
    warmup_steps=warmup,
    weight_decay=_WEIGHT_DECAY,
  )
  model = DilatedResNet(
    depth=settings.depth, num_classes=len(CLASSES), width=settings.width
  )
  method = ImageClassification(model, optimizer)
  state = method.init(settings.seed)
  step = jax.jit(method.train_step, donate_argnums=0)
  with tqdm(total=total, desc="pre-training", unit="step") as bar:
    for batch in batches(images, settings.epochs, seed=settings.seed):
      state, metrics = step(state, *batch)
      bar.update()
      if bar.n % 20 == 0 or bar.n == total:
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
          raise FloatingPointError(f"pre-training: loss {loss} at step {bar.n}")
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
  return method, jax.tree.map(np.asarray, state)


def batches(
  images: Images, epochs: int, *, seed: int
) -> Iterator[tuple[UInt8[np.ndarray, "b h w 3"], Int32[np.ndarray, " b"]]]:
  """Shuffled batches of crops, mirrored by chance, colours jittered.

  All have the same size; what is left over of an epoch is left out.
  """
  number = len(images.label)
  size = min(_BATCH, number)
  for epoch in range(epochs):
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(number)
    for first in range(0, number - size + 1, size):
      rows = order[first : first + size]
      crops = [_augmented(images.color[k], rng) for k in rows]
      yield np.stack(crops), images.label[rows]


def _augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  h, w = (int(rng.integers(n - _SEEN + 1)) for n in image.shape[:2])
  crop = image[h : h + _SEEN, w : w + _SEEN]
  if rng.random() < 0.5:
    crop = crop[:, ::-1]
  return color_jitter(crop, rng, **_JITTER)


def accuracy(
  method: ImageClassification, state: TrainState, images: Images
) -> float:
  """Share of images, seen in their middle, whose class is found."""
  edge = (images.color.shape[1] - _SEEN) // 2
  inside = slice(edge, edge + _SEEN)
  predict = jax.jit(method.predict)
  right = 0
  for first in range(0, len(images.label), _BATCH):
    label = images.label[first : first + _BATCH]
    crops = np.zeros((_BATCH, _SEEN, _SEEN, 3), np.uint8)
    crops[: len(label)] = images.color[first : first + _BATCH, inside, inside]
    mask = jnp.arange(_BATCH) < len(label)
    found = np.asarray(predict(state, crops, mask)).argmax(-1)
    right += int((found[: len(label)] == label).sum())
  return right / len(images.label)


def save(
  path: str | os.PathLike,
  settings: Settings,
  state: TrainState,
  result: dict[str, float],
) -> None:
  """Writes the network without its classifier under torchvision's names.

  Raises:
    OSError: the file cannot be written.
  """
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  safetensors_io.save(
    path,
    weights.to_state_dict(variables, names="torchvision"),
    metadata={
      "format": "pt",
      _RECORD: json.dumps(settings.record()),
      _RESULT: json.dumps(result),
    },
  )


def _check(path: Path, settings: Settings) -> None:
  if path.suffix != ".safetensors":
    raise DataError(f"{path}: expected a file that ends in .safetensors")
  for field, least in (("width", 1), ("images", 1), ("epochs", 1), ("seed", 0)):
    value = getattr(settings, field)
    if value < least:
      raise DataError(f"{field}: expected at least {least}, got {value}")
  if settings.depth not in (18, 34, 50, 101):
    raise DataError(f"depth: expected 18, 34, 50 or 101, got {settings.depth}")


def _read_metadata(path: Path, settings: Settings) -> tuple[dict, dict]:
  """Record of the settings, and accuracies, of a file that was made here."""
  try:
    texts = safetensors_io.load_metadata(path)
    record, result = json.loads(texts[_RECORD]), json.loads(texts[_RESULT])
    in_words(result)
    return dict(record), result
  except (KeyError, TypeError, ValueError) as error:
    raise DataError(
      f"{path}: expected weights made by this command, got others or a damaged"
      f" file; remove it, then run: {settings.command(path)}"
    ) from error


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  args = vars(_parse_args(argv))
  path, workers = args.pop("out"), args.pop("workers")
  try:
    ensure(path, Settings(**args), workers=workers)
  except (DataError, FloatingPointError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("\ninterrupted; nothing is written", file=sys.stderr)
    return 130
  return 0


def _parse_args(argv):
  parser = argparse.ArgumentParser(
    prog="python -m wsegpc_jax.synthetic_image",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  default = Settings()
  add("--out", required=True, help="the file, .safetensors")
  add("--depth", type=int, default=default.depth, help="18, 34, 50 or 101")
  for name, text in (
    ("width", "planes of the first layer"),
    ("images", "to learn from"),
    ("epochs", "passes over them"),
  ):
    value = getattr(default, name)
    add(f"--{name}", type=count, default=value, help=f"{text} ({value})")
  add("--seed", type=int, default=default.seed, help="of everything")
  add("--workers", type=count, default=2, help="processes that render (2)")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
