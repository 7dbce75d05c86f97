"""WSegPC stage 2 (CMG and RPC) on ScanNet v2, 20 classes.

Duan et al., High-quality Pseudo-labeling for Point Cloud Segmentation with
Scene-level Annotation, TPAMI 2025 (arXiv 2506.23227), published
hyper-parameters. Starts from the best checkpoint of stage 1
(--config.init_from). Afterwards --mode=label writes the pseudo-labels of the
training split.

    python -m wsegpc_jax.main --config=configs/scannet_rpc.py --workdir=exp/scannet_rpc

Measured result: not run yet.
"""

from wsegpc_jax import defaults


def get_config():
  config = defaults.get_defaults()
  config.data.root = "data/scannet"
  config.data.how_to_get = defaults.SCANNET_HOW_TO_GET
  config.data.voxel_size = 0.04
  config.model.arch = "18A"
  config.model.image_depth = 50
  config.train.loop = 4
  config.init_from = "exp/scannet_cmg"
  config.loss.rpc_3d = config.loss.rpc_2d = 1.0
  config.loss.cam_warmup = config.loss.cmg_warmup = 1
  config.loss.rpc_warmup = 2400
  config.train.lr = 0.05
  config.train.batch_size = 4
  config.train.epochs = 25
  config.train.patience = 5
  return config
