"""Regions of an image without labels.

Dimension letters: H, W image height and width.
"""

import warnings

import numpy as np
from scipy import ndimage

from wsegpc_jax.types import DataError

# Of log depth against colour in 0..1: a step of 10% in depth counts like one of
# 0.1 in a colour channel. More cuts walls seen at a grazing angle into strips.
_DEPTH_WEIGHT = 1.0


def image_regions(
  color: np.ndarray,
  depth: np.ndarray | None = None,
  *,
  scale: float = 100.0,
  sigma: float = 0.8,
  min_size: int = 200,
) -> np.ndarray:
  """Over-segments an image (Felzenszwalb and Huttenlocher, IJCV 2004).

  Args:
    color: uint8 [H, W, 3], RGB.
    depth: float [H, W], 0 = not measured; where given, edges in depth part
      regions of equal colour.
    scale: larger gives larger regions.
    sigma: width in pixels of the Gaussian that smooths the image first.
    min_size: smallest region, pixels.

  Returns:
    int32 [H, W], regions 0.. without gaps.

  Raises:
    DataError: on wrong shapes or dtypes.
    ImportError: if scikit-image is missing.
  """
  try:
    from skimage.segmentation import felzenszwalb
  except ImportError as e:
    raise ImportError(
      'image_regions needs scikit-image: pip install "wsegpc-jax[prepare]"'
    ) from e

  color = np.asarray(color)
  if color.ndim != 3 or color.shape[2] != 3 or color.dtype != np.uint8:
    raise DataError(
      f"color: expected uint8 [H, W, 3], got {color.dtype} {color.shape}"
    )
  image = color.astype(np.float64) / 255
  if depth is not None:
    depth = np.asarray(depth, np.float64)
    if depth.shape != color.shape[:2]:
      raise DataError(
        f"depth: shape {depth.shape} differs from color's {color.shape[:2]}"
      )
    image = np.dstack([image, _DEPTH_WEIGHT * _log_depth(depth)])
  with warnings.catch_warnings():
    # Four channels are meant.
    warnings.filterwarnings("ignore", "Got image with third dimension")
    region = felzenszwalb(
      image, scale=scale, sigma=sigma, min_size=min_size, channel_axis=-1
    )
  _, region = np.unique(region, return_inverse=True)
  return region.reshape(color.shape[:2]).astype(np.int32)


def _log_depth(depth):
  """Log depth, holes filled with the nearest measured pixel."""
  missing = ~(np.isfinite(depth) & (depth > 0))
  if missing.all():
    return np.zeros_like(depth)
  if missing.any():
    nearest = ndimage.distance_transform_edt(
      missing, return_distances=False, return_indices=True
    )
    depth = depth[tuple(nearest)]
  return np.log(depth)
