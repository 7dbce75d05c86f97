"""WSegPC stage 2 (CAM, CMG and RPC), on built-in box rooms.

No data set and no download: rooms made of boxes are written to data/box_rooms.
Networks are narrow and the schedule is short. This shows that everything runs,
not how well the method works.
Starts from the best checkpoint of exp/tiny_cmg (--config.init_from).

    python -m wsegpc_jax.main --config=configs/tiny_rpc.py --workdir=exp/tiny_rpc

Hardware: two CPU cores. Variant `:smoke` takes a few steps only.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_tiny(variant)
  config.init_from = "exp/tiny_cmg"
  config.loss.rpc_3d = config.loss.rpc_2d = 1.0
  config.loss.cam_warmup = config.loss.cmg_warmup = 1
  config.train.lr = 0.02
  return config
