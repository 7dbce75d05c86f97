"""What the programs ask of a data set, whatever its files look like."""

import abc
import dataclasses
from pathlib import Path

from wsegpc_jax.types import Frame, Scene


@dataclasses.dataclass(frozen=True)
class Dataset(abc.ABC):
  """Scenes on disk; a subclass reads one kind of layout.

  Attributes:
    root: its folder.
    name: its name, for logs and tables.
    classes: the K class names; labels are indices into it.
    splits: scene names by split, for example "train" and "val".
  """

  root: Path
  name: str
  classes: tuple[str, ...]
  splits: dict[str, tuple[str, ...]]

  @abc.abstractmethod
  def load_scene(self, scene_name: str) -> Scene:
    """Reads the points of a scene and lists its usable frames in order.

    Raises:
      DataError: a file is missing, truncated or malformed.
    """

  @abc.abstractmethod
  def load_frame(
    self,
    scene_name: str,
    frame_name: str,
    *,
    image_size: tuple[int, int] | None = None,
  ) -> Frame:
    """Reads one posed image, resized to (H', W') with its intrinsics.

    Raises:
      DataError: a file is missing, truncated or malformed.
    """

  @abc.abstractmethod
  def has_labels(self, scene_name: str) -> bool:
    """Whether the scene's points have labels, without reading them."""
