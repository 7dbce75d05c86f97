"""SPVCNN on SemanticKITTI, cross-entropy, the baseline.

Feng et al., Clustering based Point Cloud Representation Learning for 3D
Analysis, ICCV 2023 (arXiv 2307.14605); Tang et al., ECCV 2020 (arXiv
2007.16100).

    python -m wsegpc_jax.main --config=configs/semantickitti_spvcnn.py \\
        --workdir=exp/semantickitti_spvcnn

Variant `:smoke` trains on two scans and scores a third, on a CPU, with
--config.data.root pointing to the folder that has sequences/00.

Measured result: not run on the whole data set yet.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  return defaults.get_semantic_kitti("spvcnn", cluster=False, variant=variant)
