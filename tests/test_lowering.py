"""The training step lowers for platforms that this machine lacks."""

import jax
import numpy as np
import pytest
from parallel_equality_parts import make_batch, make_method

from wsegpc_jax import parallel


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_training_step_lowers(platform):
  batch = make_batch()
  method = make_method(np.float32)
  state = method.init(0, jax.tree.map(lambda a: a[0], batch))
  step = parallel.data_parallel(method.train_step)
  lowered = step.trace(state, batch).lower(lowering_platforms=(platform,))
  text = lowered.as_text()
  assert "stablehlo" in text
  # Convolutions are matrix products, on these platforms, too.
  assert text.count("stablehlo.dot_general") > 50
