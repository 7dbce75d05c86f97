"""WSegPC stage 3: a 3D network on the pseudo-labels, on synthetic rooms.

Rooms are generated (python -m wsegpc_jax.data.synthetic). Half-width networks,
14 cm voxels, two CPU cores; variants: `:demo` has fewer rooms, `:gpu` full
width and 4 cm voxels, `:smoke` takes two steps. scripts/ladder.py runs all
stages and their controls over several seeds, scripts/demo.py once.

Reads the labels that --mode=label wrote into exp/rpc
(--config.data.labels_from).

    python -m wsegpc_jax.main --config=configs/synthetic_seg.py --workdir=exp/seg
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  config = defaults.get_synthetic(variant)
  config.method = "segmentation"
  config.model.image_weights = ""  # there is no 2D network
  config.data.labels_from = "exp/rpc/pseudo_labels"
  config.data.max_rotation = 3.1416
  config.eval.weights = "student"
  config.eval.use_tags = False
  return config
