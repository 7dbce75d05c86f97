"""WSegPC stage 1 (CAM and CMG), on built-in box rooms.

No data set and no download: rooms made of boxes are written to data/box_rooms.
Networks are narrow and the schedule is short. This shows that everything runs,
not how well the method works.

    python -m wsegpc_jax.main --config=configs/tiny_cmg.py --workdir=exp/tiny_cmg

Hardware: two CPU cores. Variant `:smoke` takes a few steps only.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_tiny(variant)
  return config
