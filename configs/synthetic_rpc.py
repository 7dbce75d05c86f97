"""WSegPC stage 2 (CAM, CMG and RPC) on synthetic rooms.

Rooms are generated (python -m wsegpc_jax.data.synthetic). Half-width networks,
14 cm voxels, two CPU cores; variants: `:demo` has fewer rooms, `:gpu` full
width and 4 cm voxels, `:smoke` takes two steps. scripts/ladder.py runs all
stages and their controls over several seeds, scripts/demo.py once.

Starts from the last checkpoint of exp/cmg (--config.init_from).

    python -m wsegpc_jax.main --config=configs/synthetic_rpc.py --workdir=exp/rpc
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_synthetic(variant)
  config.init_from = "exp/cmg"
  config.model.image_weights = ""  # those of stage 1
  config.loss.rpc_3d = config.loss.rpc_2d = 1.0
  config.loss.cam_warmup = config.loss.cmg_warmup = 1
  config.train.lr /= 3
  return config
