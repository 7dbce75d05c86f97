"""WSegPC stage 1 on built-in box rooms: a minute on a laptop.

No data set and no download: rooms made of boxes are written to data/box_rooms.
Networks are narrow and the schedule is short; this shows that everything runs,
not how well the method works.

    python -m wsegpc_jax.main --config=configs/tiny_cmg.py --workdir=exp/tiny_cmg

Variants: `:smoke` trains a few steps only.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_defaults()
  config.data.root = "data/box_rooms"
  config.data.box_rooms.train = 8
  config.data.box_rooms.val = 4
  config.data.voxel_size = 0.1
  config.data.image_size = config.data.box_rooms.image_size = (48, 64)
  config.data.num_views = 4
  config.data.num_pairs = 128
  config.data.smallest_bucket = 4_000
  config.data.largest_bucket = 40_000
  config.model.arch = "14A"
  config.model.width = 8
  config.model.image_depth = 18
  config.model.image_width = 8
  config.loss.cam_warmup = config.loss.cmg_warmup = 20
  config.loss.rpc_warmup = 20
  config.ema_keep = 0.95
  config.train.lr = 0.05
  config.train.loop = 10
  config.train.epochs = 8
  config.train.batch_size = 4
  config.train.log_every = 10
  if variant == "smoke":
    config.data.box_rooms.train = 4
    config.data.box_rooms.val = 2
    config.data.root = "data/box_rooms_smoke"
    config.train.batch_size = 2
    config.train.total_steps = 6
    config.train.eval_every = 3
    config.train.log_every = 1
  elif variant:
    raise ValueError(f"unknown variant {variant!r}; expected 'smoke'")
  return config
