"""SPVNAS-10.8M on SemanticKITTI, with within-class clustering and Lovasz-softmax.

Feng et al., Clustering based Point Cloud Representation Learning for 3D
Analysis, ICCV 2023 (arXiv 2307.14605); Tang et al., ECCV 2020 (arXiv
2007.16100).

    python -m wsegpc_jax.main --config=configs/semantickitti_spvnas_cluster.py \\
        --workdir=exp/semantickitti_spvnas_cluster

Variant `:smoke` trains on two scans and scores a third, on a CPU, with
--config.data.root pointing to the folder that has sequences/00.

Measured result: not run on the whole data set yet.
"""

from wsegpc_jax import defaults


def get_config(variant: str = ""):
  return defaults.get_semantic_kitti(
    "spvnas_10.8m", cluster=True, variant=variant
  )
