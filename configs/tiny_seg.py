"""WSegPC stage 3: a 3D network on the pseudo-labels of stage 2, on built-in box rooms.

No data set and no download: rooms made of boxes are written to data/box_rooms.
Networks are narrow and the schedule is short. This shows that everything runs,
not how well the method works.
Reads the labels that --mode=label wrote into exp/tiny_rpc
(--config.data.labels_from; "" trains on the true labels instead).

    python -m wsegpc_jax.main --config=configs/tiny_seg.py --workdir=exp/tiny_seg

Hardware: two CPU cores. Variant `:smoke` takes a few steps only.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_tiny(variant)
  config.method = "segmentation"
  config.data.labels_from = "exp/tiny_rpc/pseudo_labels"
  config.data.max_rotation = 3.1416
  config.eval.weights = "student"
  config.eval.use_tags = False
  return config
