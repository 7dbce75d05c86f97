"""Posed images of a scene: their links, overlays and frusta.

Dimension letters: N points, H and W image height and width, F frames. Poses,
intrinsics and links are those of `data/links.py`.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from wsegpc_jax.data.links import link_points
from wsegpc_jax.palette import number_colors
from wsegpc_jax.types import Frame


@dataclasses.dataclass(frozen=True)
class LinkedFrame:
  """A frame and the pixel that shows each point.

  Attributes:
    frame: the posed image.
    link: int32 [N, 2], (row, column), or (-1, -1) where not seen.
  """

  frame: Frame
  link: np.ndarray


def link_frames(
  coord: np.ndarray, frames: Iterable[Frame], *, tolerance: float
) -> list[LinkedFrame]:
  """Links points float [N, 3] to each frame; tolerance in metres of depth."""
  return [
    LinkedFrame(
      frame,
      link_points(
        coord, frame.depth, frame.pose, frame.intrinsics, tolerance=tolerance
      ),
    )
    for frame in frames
  ]


def first_link(frames: Sequence[LinkedFrame]) -> np.ndarray:
  """int [N]: the first of the frames that sees a point, -1 where none does."""
  seen = np.stack([linked.link[:, 0] >= 0 for linked in frames])
  return np.where(seen.any(axis=0), seen.argmax(axis=0), -1)


def link_overlay(linked: LinkedFrame, color: np.ndarray) -> np.ndarray:
  """The image, darker, with the linked points painted on their pixels.

  Where links are right, the colour of points changes at edges of the image.

  Args:
    linked: a frame with its links.
    color: uint8 [N, 3], of the points.

  Returns:
    uint8 [H, W, 3].
  """
  image = linked.frame.color // 2
  seen = linked.link[:, 0] >= 0
  image[tuple(linked.link[seen].T)] = color[seen]
  return image


def region_overlay(frame: Frame) -> np.ndarray:
  """uint8 [H, W, 3]: the image tinted by its regions; grey where none."""
  return frame.color // 2 + number_colors(frame.region) // 2


def field_of_view(
  intrinsics: np.ndarray, size: tuple[int, int]
) -> tuple[float, float]:
  """Vertical angle in radians and width over height of the view of a camera.

  The view reaches from the outer edge of the first pixel to that of the last,
  and is taken to be centred, as viewers draw it.

  Args:
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels.
    size: (H, W).
  """
  fx, fy = intrinsics[:2]
  height, width = size
  return float(2 * np.arctan(height / 2 / fy)), float(width / fx / height * fy)


def frustum(
  pose: np.ndarray,
  intrinsics: np.ndarray,
  size: tuple[int, int],
  depth: float,
) -> np.ndarray:
  """Corners of the pyramid that a camera sees, up to a depth.

  Args:
    pose: float64 [4, 4].
    intrinsics: float64 [4], in pixels.
    size: (H, W).
    depth: metres along the optical axis.

  Returns:
    float64 [5, 3]: the camera, then the outer corners of the image: top left,
    top right, bottom right, bottom left.
  """
  fx, fy, cx, cy = intrinsics
  height, width = size
  # The centre of the first pixel is 0, its outer corner -0.5.
  left, right = (-0.5 - cx) / fx, (width - 0.5 - cx) / fx
  top, bottom = (-0.5 - cy) / fy, (height - 0.5 - cy) / fy
  rays = np.array(
    [
      [0, 0, 0],
      [left, top, 1],
      [right, top, 1],
      [right, bottom, 1],
      [left, bottom, 1],
    ]
  )
  return depth * rays @ pose[:3, :3].T + pose[:3, 3]
