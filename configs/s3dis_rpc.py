"""WSegPC stage 2 (CMG and RPC) on S3DIS, area 5 held out, 13 classes.

Duan et al., High-quality Pseudo-labeling for Point Cloud Segmentation with
Scene-level Annotation, TPAMI 2025 (arXiv 2506.23227), published
hyper-parameters. Starts from the best checkpoint of stage 1
(--config.init_from). Afterwards --mode=label writes the pseudo-labels of the
training split.

    python -m wsegpc_jax.main --config=configs/s3dis_rpc.py --workdir=exp/s3dis_rpc

Measured result: not run yet.
"""

from wsegpc_jax import defaults


def get_config():
  config = defaults.get_defaults()
  config.data.root = "data/s3dis"
  config.data.how_to_get = defaults.S3DIS_HOW_TO_GET
  config.data.voxel_size = 0.04
  config.data.max_voxels = 200_000
  config.data.image_size = (256, 256)
  config.data.link_tolerance = 0.05
  config.model.arch = "18A"
  config.model.image_depth = 50
  config.train.loop = 16
  config.init_from = "exp/s3dis_cmg"
  config.loss.rpc_3d = config.loss.rpc_2d = 1.0
  config.loss.cam_warmup = config.loss.cmg_warmup = 1
  config.loss.rpc_warmup = 2400
  config.train.lr = 0.05
  config.train.batch_size = 4
  config.train.epochs = 25
  config.train.patience = 5
  return config
