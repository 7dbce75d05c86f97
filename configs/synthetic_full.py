"""Full labels: stage 3 on the true labels, the upper bound, on synthetic rooms.

Rooms are generated (python -m wsegpc_jax.data.synthetic). Half-width networks,
14 cm voxels, two CPU cores; variants: `:demo` has fewer rooms, `:gpu` full
width and 4 cm voxels, `:smoke` takes two steps. scripts/ladder.py runs all
stages and their controls over several seeds, scripts/demo.py once.

    python -m wsegpc_jax.main --config=configs/synthetic_full.py --workdir=exp/full
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_synthetic(variant)
  config.method = "segmentation"
  config.model.image_weights = ""  # there is no 2D network
  config.data.max_rotation = 3.1416
  config.eval.weights = "student"
  config.eval.use_tags = False
  return config
