"""Which point is seen at which pixel, which views to use, which pairs to draw.

Source: Duan et al., "High-quality Pseudo-labeling for Point Cloud Segmentation
with Scene-level Annotation", TPAMI 2025. Two things differ from its official
code: points behind the camera are never linked, and every frame of a scene can
be drawn even if the views do not divide the frames.

Dimension letters: N points, M voxels, H and W image height and width, V views
of a scene, P pairs. The centre of the first pixel is (0, 0); a pose is float64
[4, 4], camera-to-world, with the camera looking along +z, x right and y down;
intrinsics are float64 [4], (fx, fy, cx, cy) in pixels.
"""

import numpy as np

from wsegpc_jax.types import DataError


def project_points(
  coord: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Projects points into a pinhole camera.

  Args:
    coord: float32 [N, 3], metres, in the world of the pose.
    pose: float64 [4, 4], finite and invertible.
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels.

  Returns:
    row: float64 [N], pixels, down the image; NaN for points that are not in
      front of the camera, which have no projection.
    col: float64 [N], pixels, to the right; NaN likewise.
    depth: float64 [N], metres along the optical axis.
  """
  world_to_camera = np.linalg.inv(np.asarray(pose, np.float64))
  # Not a matmul: BLAS threads of many data workers would fight for the cores.
  planes = np.ascontiguousarray(coord.T, np.float64)
  in_camera = np.einsum("ij,jn->in", world_to_camera[:3, :3], planes)
  x, y, depth = in_camera + world_to_camera[:3, 3:]
  fx, fy, cx, cy = intrinsics
  divisor = np.where(depth > 0, depth, np.nan)
  # The quotient of a point next to the camera plane may be infinite.
  with np.errstate(over="ignore"):
    row = y * fy / divisor + cy
    col = x * fx / divisor + cx
  return row, col, depth


def link_points(
  coord: np.ndarray,
  frame_depth: np.ndarray,
  pose: np.ndarray,
  intrinsics: np.ndarray,
  *,
  tolerance: float,
) -> np.ndarray:
  """Links each point to the pixel that shows it.

  A point is linked to the pixel nearest to its projection if it is in front of
  the camera, the pixel is inside the image and has a measured depth, and that
  depth and the point's differ by `tolerance` at most: otherwise something else
  hides the point.

  Args:
    coord: float32 [N, 3], metres, in the world of the pose (not axis-aligned
      if the poses are not).
    frame_depth: float32 [H, W], metres; 0 = not measured.
    pose: float64 [4, 4]. Where tracking was lost and it is not finite, nothing
      is linked.
    intrinsics: float64 [4], (fx, fy, cx, cy) in pixels of `frame_depth`.
    tolerance: largest difference of depths, metres.

  Returns:
    int32 [N, 2], (row, col), or (-1, -1) where not linked.
  """
  links = np.full((len(coord), 2), -1, np.int32)
  if not np.isfinite(pose).all():
    return links
  height, width = frame_depth.shape
  row, col, depth = project_points(coord, pose, intrinsics)
  row, col = np.round(row), np.round(col)
  # NaN fails every comparison, so points behind the camera fall out here.
  inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
  point = np.flatnonzero(inside)
  pixel = np.stack([row[point], col[point]], axis=1).astype(np.int32)
  measured = frame_depth[pixel[:, 0], pixel[:, 1]].astype(np.float64)
  seen = (measured > 0) & (np.abs(measured - depth[point]) <= tolerance)
  links[point[seen]] = pixel[seen]
  return links


def choose_views(
  num_frames: int, num_views: int, rng: np.random.Generator | None
) -> np.ndarray:
  """Chooses frames of a scene that are spread over the whole capture.

  The frames are cut into `num_views` runs whose lengths differ by one at most,
  and one frame is taken from each. With `num_views` frames or fewer, they are
  cycled through.

  Args:
    num_frames: frames of the scene, at least 1.
    num_views: views to choose, V.
    rng: draws the frame of each run; None takes the first.

  Returns:
    int64 [V], indices of frames.

  Raises:
    DataError: the scene has no frames.
  """
  if num_frames < 1:
    raise DataError(
      f"frames: expected at least 1 to choose {num_views} views from, "
      f"got {num_frames}"
    )
  views = np.arange(num_views, dtype=np.int64)
  if num_frames <= num_views:
    return views % num_frames
  start = views * num_frames // num_views
  if rng is None:
    return start
  stop = (views + 1) * num_frames // num_views
  return rng.integers(start, stop)


def draw_pairs(
  links: np.ndarray,
  rng: np.random.Generator,
  *,
  min_linked: int = 64,
  per_view: int = 512,
  per_scene: int = 512,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws the voxel-pixel pairs of one scene to be contrasted.

  From each view with more than `min_linked` linked voxels, up to `per_view` of
  them are drawn; from all of these, up to `per_scene`. Nothing is drawn twice,
  but a voxel may come with several views.

  Args:
    links: int32 [V, M, 2], (row, col) of each voxel in each view, negative =
      not linked.
    rng: source of all randomness.
    min_linked: a view with this many linked voxels or fewer is left out.
    per_view: most pairs from one view.
    per_scene: most pairs in total.

  Returns:
    voxel: int32 [P], 0..M-1; P may be 0.
    view: int32 [P], 0..V-1.
    row_col: float32 [P, 2], pixels.
  """
  pairs = [np.empty((0, 2), np.int32)]
  for view, link in enumerate(links):
    voxel = np.flatnonzero(link[:, 0] >= 0)
    if len(voxel) > min_linked:
      drawn = _draw(voxel, per_view, rng)
      pairs.append(np.stack([drawn, np.full_like(drawn, view)], axis=1))
  drawn = _draw(np.concatenate(pairs).astype(np.int32), per_scene, rng)
  voxel, view = drawn.T
  return voxel, view, links[view, voxel].astype(np.float32)


def _draw(items: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
  """Up to `most` of the items, without replacement, in random order."""
  return rng.choice(items, min(len(items), most), replace=False)
