"""CAM only: WSegPC stage 1 without CMG, the baseline of the method, on built-in box rooms.

No data set and no download: rooms made of boxes are written to data/box_rooms.
Networks are narrow and the schedule is short. This shows that everything runs,
not how well the method works.

    python -m wsegpc_jax.main --config=configs/tiny_cam.py --workdir=exp/tiny_cam

Hardware: two CPU cores. Variant `:smoke` takes a few steps only.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_tiny(variant)
  config.loss.cmg_3d = config.loss.cmg_2d = 0.0
  return config
