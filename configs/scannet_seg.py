"""WSegPC stage 3 (a 3D network on pseudo-labels) on ScanNet v2, 20 classes.

Duan et al., High-quality Pseudo-labeling for Point Cloud Segmentation with
Scene-level Annotation, TPAMI 2025 (arXiv 2506.23227), published
hyper-parameters. Reads what --mode=label of stage 2 wrote
(--config.data.labels_from).

    python -m wsegpc_jax.main --config=configs/scannet_seg.py --workdir=exp/scannet_seg

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
  config.method = "segmentation"
  config.data.labels_from = "exp/scannet_rpc/pseudo_labels"
  config.data.max_rotation = 3.1416
  config.eval.weights = "student"
  config.eval.use_tags = False
  config.train.lr = 0.1
  config.train.batch_size = 8
  config.train.epochs = 50
  return config
