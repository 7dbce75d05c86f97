"""The training step lowers for platforms that this machine lacks."""

import jax
import numpy as np
from parallel_equality_parts import make_batch, make_method

from wsegpc_jax import parallel


def test_training_step_lowers_for_gpus_and_tpus():
  batch = make_batch()
  method = make_method(np.float32)
  state = method.init(0, jax.tree.map(lambda a: a[0], batch))
  traced = parallel.data_parallel(method.train_step).trace(state, batch)
  for platform in ("cuda", "tpu"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Convolutions are matrix products, on these platforms, too.
    assert text.count("stablehlo.dot_general") > 50, platform
