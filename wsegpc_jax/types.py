"""Structs shared by the whole project.

Dimension letters: N points of a scene, H and W image height and width, K
classes; of a batch: M voxel rows, B scene slots, I images, P pairs a scene.
`Scene` and `Frame` live on the host (numpy, ragged); from `Batch` on every
shape is static. Nothing here knows a config object.
"""

import dataclasses
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

IGNORE_LABEL = 255  # label of points that take no part in a loss or a score
NO_REGION = -1  # superpoint or image region of an element that has none


class DataError(ValueError):
  """A fault in the user's data: names the file, the field, what was expected."""


@dataclasses.dataclass(frozen=True)
class Frame:
  """One posed RGB-D image.

  Attributes:
    name: file stem of the frame, unique in its scene.
    color: uint8 [H, W, 3], RGB.
    depth: float32 [H, W], metres along the optical axis; 0 = not measured.
    pose: float64 [4, 4], camera-to-world; the camera looks along +z, x right,
      y down.
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels of this image; the
      centre of the first pixel is (0, 0).
    region: int32 [H, W], regions of this image from 0, NO_REGION = none; None
      if not computed.
    label: int32 [H, W] in 0..K-1, IGNORE_LABEL = not scored; None if unknown.
  """

  name: str
  color: np.ndarray
  depth: np.ndarray
  pose: np.ndarray
  intrinsics: np.ndarray
  region: np.ndarray | None = None
  label: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
  """One scan with its scene-level tags.

  Attributes:
    name: folder name of the scene, unique in its dataset.
    coord: float32 [N, 3], metres, z up.
    color: uint8 [N, 3], RGB; None of a laser scan.
    normal: float32 [N, 3], unit length, or zero where unknown; None of a laser
      scan.
    tags: bool [K], the classes that occur in the scene.
    label: int32 [N] in 0..K-1, IGNORE_LABEL = not scored; None if unknown.
    superpoint: int32 [N] from 0, NO_REGION = none; None if not computed.
    frames: names of the posed frames, in order; may be empty.
    intensity: float32 [N], remission of a laser scan; None without one.
  """

  name: str
  coord: np.ndarray
  color: np.ndarray | None
  normal: np.ndarray | None
  tags: np.ndarray
  label: np.ndarray | None = None
  superpoint: np.ndarray | None = None
  frames: tuple[str, ...] = ()
  intensity: np.ndarray | None = None


@flax.struct.dataclass
class View:
  """Voxels of all scenes of one device, one after the other.

  Attributes:
    coords: int32 [M, 4], (scene slot, x, y, z); padding rows are -1.
    features: float32 [M, C]; padding rows are 0.
    count: int32 [], valid rows; they come first.
    capacities: rows of every pyramid level, the finest first (static).
  """

  coords: Int32[Array, "m 4"]
  features: Float[Array, "m c"]
  count: Int32[Array, ""]
  capacities: tuple[int, ...] = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Images:
  """Posed images of all scenes of one device, S for each scene slot.

  Attributes:
    student: uint8 [I, H, W, 3], RGB; I = B S.
    mask: bool [I], False for images that do not exist.
    tags: bool [B, K], classes present in the scene.
    teacher: uint8 [I, H, W, 3], another augmentation; None in evaluation.
    region: int32 [I, H, W], regions numbered through the device's batch;
      num_regions = none. None in evaluation.
    num_regions: capacity (static).
  """

  student: UInt8[Array, "i h w 3"]
  mask: Bool[Array, " i"]
  tags: Bool[Array, "b k"]
  teacher: UInt8[Array, "i h w 3"] | None = None
  region: Int32[Array, "i h w"] | None = None
  num_regions: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class Pairs:
  """Linked (voxel, pixel) pairs for contrastive distillation.

  Attributes:
    voxel: int32 [B, P], row of the student's view.
    image: int32 [B, P], index into the images of this device.
    position: float32 [B, P, 2], (row, column) in pixels.
    count: int32 [B], valid pairs of each scene; they come first.
  """

  voxel: Int32[Array, "b p"]
  image: Int32[Array, "b p"]
  position: Float[Array, "b p 2"]
  count: Int32[Array, " b"]


@flax.struct.dataclass
class Batch:
  """One device's share of a global batch.

  Attributes:
    student: the view that is trained on (or evaluated).
    label: int32 [M], label of each student voxel, IGNORE_LABEL = none: the
      truth in stages 1 and 2 (never in a loss), pseudo-labels in stage 3.
    scene_mask: bool [B], False for an empty slot.
    tags: bool [B, K], classes whose points are in the 3D view.
    teacher: the same scenes in the teacher's view; None where not needed.
    teacher_row: int32 [M], teacher's voxel that holds the point of the student
      voxel; the teacher's capacity = none.
    superpoint: int32 [M], superpoints numbered through the device's batch;
      num_superpoints = none.
    images, pairs: None where a method does without.
    num_superpoints: capacity (static).
  """

  student: View
  label: Int32[Array, " m"]
  scene_mask: Bool[Array, " b"]
  tags: Bool[Array, "b k"]
  teacher: View | None = None
  teacher_row: Int32[Array, " m"] | None = None
  superpoint: Int32[Array, " m"] | None = None
  images: Images | None = None
  pairs: Pairs | None = None
  num_superpoints: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class TrainState:
  """All that a training run must keep to continue exactly.

  Attributes:
    step: int32 [], steps done.
    params, batch_stats: the student's variables.
    opt_state: optax state.
    ema_params, ema_batch_stats: the teacher's variables; None without one.
    selected_3d, selected_2d: exact counters of the class-wise cutoff (see
      `losses.region_point`); None without one.
    memory: what else a method keeps from step to step, such as the centres and
      queues of `methods.clustering`; None without.
  """

  step: Int32[Array, ""]
  params: Any
  batch_stats: Any
  opt_state: Any
  ema_params: Any = None
  ema_batch_stats: Any = None
  selected_3d: Int32[Array, "2 k"] | None = None
  selected_2d: Int32[Array, "2 k"] | None = None
  memory: Any = None
