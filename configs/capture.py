"""WSegPC on one's own posed RGB-D captures, sized for a small machine.

The scenes are what scripts/prepare_posed_rgbd.py wrote to data/capture. The
variant is the stage: `:cmg`, `:rpc` or `:seg`. Networks are narrower than in
the paper, voxels larger, images smaller. There is no held-out scene: what is
scored, where labels exist, is the fit to the captures themselves.

    python -m wsegpc_jax.main --config=configs/capture.py:cmg --workdir=exp/capture_cmg
    python -m wsegpc_jax.main --config=configs/capture.py:rpc --workdir=exp/capture_rpc
    python -m wsegpc_jax.main --config=configs/capture.py:rpc --workdir=exp/capture_rpc --mode=label
    python -m wsegpc_jax.main --config=configs/capture.py:seg --workdir=exp/capture_seg

Hardware: two CPU cores, 4 GB.
"""

from wsegpc_jax import defaults


def get_config(stage: str = "cmg"):
  if stage not in ("cmg", "rpc", "seg"):
    raise ValueError(f"unknown stage {stage!r}; expected cmg, rpc or seg")
  config = defaults.get_defaults()
  data, train = config.data, config.train
  data.root = "data/capture"
  data.how_to_get = (
    "Convert your captures with scripts/prepare_posed_rgbd.py (README, section "
    "Your own capture); configs/tiny_cmg.py needs no data."
  )
  data.voxel_size = 0.08
  data.num_views = 2
  data.image_size = (96, 128)
  data.smallest_bucket = data.largest_bucket = 20_000
  config.model.arch = "14A"
  config.model.width = 16
  config.model.image_depth = 18
  config.model.image_width = 16
  config.loss.cam_warmup = config.loss.cmg_warmup = 20
  config.loss.rpc_warmup = 20
  config.ema_keep = 0.98
  config.eval.split = "train"
  train.batch_size = 4
  train.total_steps = 200
  train.eval_every = 100
  train.checkpoint_every = 50
  train.log_every = 10
  train.lr = 0.1
  if stage == "rpc":
    config.init_from = "exp/capture_cmg"
    config.loss.rpc_3d = config.loss.rpc_2d = 1.0
    config.loss.cam_warmup = config.loss.cmg_warmup = 1
    train.lr = 0.05
  if stage == "seg":
    config.method = "segmentation"
    data.labels_from = "exp/capture_rpc/pseudo_labels"
    data.max_rotation = 3.1416
    config.eval.weights = "student"
    config.eval.use_tags = False
  return config
