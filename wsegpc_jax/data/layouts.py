"""Which reader opens which layout of files."""

import os
from typing import Any

from wsegpc_jax.data import assets
from wsegpc_jax.data.dataset import Dataset

LAYOUTS = ("assets", "scannet", "s3dis", "semantic_kitti")


def open_dataset(
  root: str | os.PathLike, layout: str = "assets", **options: Any
) -> Dataset:
  """Opens a data set.

  Args:
    root: its folder.
    layout: "assets" (docs/assets.md), or as WSegPC's authors processed them,
      "scannet" (docs/scannet.md) or "s3dis" (docs/s3dis.md); or
      "semantic_kitti" (docs/semantic_kitti.md).
    options: of "scannet" and "semantic_kitti", see their `open_dataset`.

  Raises:
    DataError: it is not there, or not as documented.
    ValueError: an unknown layout.
  """
  match layout:
    case "assets":
      return assets.open_dataset(root)
    case "scannet":
      from wsegpc_jax.data import scannet_processed

      return scannet_processed.open_dataset(root, **options)
    case "s3dis":
      from wsegpc_jax.data import s3dis_processed

      return s3dis_processed.open_dataset(root)
    case "semantic_kitti":
      from wsegpc_jax.data import semantic_kitti

      return semantic_kitti.open_dataset(root, **options)
  raise ValueError(
    f"layout {layout!r} is unknown; expected one of {', '.join(LAYOUTS)}"
  )
