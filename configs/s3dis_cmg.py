"""WSegPC stage 1 (CMG) on S3DIS, area 5 held out, 13 classes.

Duan et al., High-quality Pseudo-labeling for Point Cloud Segmentation with
Scene-level Annotation, TPAMI 2025 (arXiv 2506.23227), published
hyper-parameters. Random 3D network; the paper starts the 2D network from
ImageNet weights, which cannot be read yet: it starts from random weights, too.

    python -m wsegpc_jax.main --config=configs/s3dis_cmg.py --workdir=exp/s3dis_cmg

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
  config.loss.cam_warmup = config.loss.cmg_warmup = 2400
  config.train.lr = 0.1
  config.train.batch_size = 4
  config.train.epochs = 50
  return config
