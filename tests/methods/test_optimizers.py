"""AdamW of the short schedules, against its definition, and how it is chosen."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsegpc_jax import config_checks, defaults, experiment
from wsegpc_jax.methods import common
from wsegpc_jax.types import DataError

B1, B2, EPS = 0.9, 0.99, 1e-8


def by_definition(param, gradients, rates, decay):
  """Loshchilov and Hutter, algorithm 2, with the rate on the decay as well."""
  first = second = 0.0
  for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    first = B1 * first + (1 - B1) * g
    second = B2 * second + (1 - B2) * g**2
    step = (first / (1 - B1**t)) / (np.sqrt(second / (1 - B2**t)) + EPS)
    param = param - rate * (step + decay * param)
  return param


def test_adamw_is_its_definition():
  rng = np.random.default_rng(0)
  param, gradients = rng.normal(size=5), rng.normal(size=(4, 5))
  rates = [0.1, 0.05, 0.02, 0.01]
  optimizer = common.adamw(
    lambda step: jnp.array(rates)[step], weight_decay=0.3
  )
  found = jnp.asarray(param)
  state = optimizer.init(found)
  for g in gradients:
    update, state = optimizer.update(jnp.asarray(g), state, found)
    found = found + update
  expected = by_definition(param, gradients, rates, 0.3)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_config_chooses(name):
  config = defaults.get_synthetic()
  config.train.optimizer = name
  steps = experiment.schedule(config, 8)
  optimizer = experiment._optimizer(config, steps)
  param = jnp.ones(3)
  update, _ = optimizer.update(
    jnp.array([1.0, 10.0, -0.1]), optimizer.init(param), param
  )
  # The first step of AdamW has the size of the rate, whatever the gradient is.
  alike = np.allclose(np.abs(update), config.train.lr, rtol=1e-3)
  assert alike == (name == "adamw")


def test_another_name_is_refused():
  config = defaults.get_synthetic()
  config.train.optimizer = "adam"
  with pytest.raises(DataError, match=r"train\.optimizer.*'adamw'"):
    config_checks.check_config(config)
