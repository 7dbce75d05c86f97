"""CAM only: WSegPC stage 1 without CMG, the baseline, on synthetic rooms.

Rooms are generated on the fly (wsegpc_jax.data.synthetic); the 2D network starts
from images of single objects (wsegpc_jax.synthetic_image). Half-width networks,
14 cm voxels, two CPU cores; variants: `:demo` has fewer rooms, `:gpu` full
width and 4 cm voxels, `:smoke` takes two steps. scripts/ladder.py runs all
stages and their controls over several seeds, scripts/demo.py once.

    python -m wsegpc_jax.synthetic_image --out data/synthetic_image/r18_w16.safetensors
    python -m wsegpc_jax.main --config=configs/synthetic_cam.py --workdir=exp/cam
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_synthetic(variant)
  config.loss.cmg_3d = config.loss.cmg_2d = 0.0
  return config
