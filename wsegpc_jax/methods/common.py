"""What the train steps of all methods share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from wsegpc_jax import schedules
from wsegpc_jax.sparse import plan as plan_lib
from wsegpc_jax.types import TrainState, View


def sgd(
  base_lr: float,
  total_steps: int,
  *,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
  power: float = 0.9,
) -> optax.GradientTransformation:
  """SGD with weight decay on all parameters and polynomial decay.

  The decay is added to the gradient before the momentum, as torch does.
  """
  schedule = schedules.polynomial_decay(base_lr, total_steps, power)
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(schedule, momentum=momentum),
  )


def cosine_sgd(
  base_lr: float,
  total_steps: int,
  *,
  warmup_steps: int = 0,
  momentum: float = 0.9,
  weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
  """Nesterov's SGD with weight decay on all parameters and cosine decay.

  The decay is added to the gradient before the momentum, as torch does.
  """
  schedule = schedules.cosine_decay(
    base_lr, total_steps, warmup_steps=warmup_steps
  )
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(schedule, momentum=momentum, nesterov=True),
  )


def adamw(
  schedule: optax.Schedule, *, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
  """AdamW: in a few hundred steps it gets further than SGD.

  Its second moment is averaged over about 100 steps, as schedules that need it
  are short.
  """
  return optax.adamw(schedule, b2=0.99, weight_decay=weight_decay)


def init_optimizer(
  optimizer: optax.GradientTransformation, params: PyTree
) -> PyTree:
  """The optimiser's first state, compiled at once instead of op by op."""
  return jax.jit(optimizer.init)(params)


def apply_gradients(
  optimizer: optax.GradientTransformation,
  state: TrainState,
  gradients: PyTree,
  batch_stats: PyTree,
) -> TrainState:
  """The state after one update with gradients that are already summed."""
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  return state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )


def update_teacher(state: TrainState, keep: float) -> TrainState:
  """Moves the teacher's parameters and batch statistics by 1 - keep."""
  new = (state.params, state.batch_stats)
  old = (state.ema_params, state.ema_batch_stats)
  params, batch_stats = optax.incremental_update(new, old, 1 - keep)
  return state.replace(ema_params=params, ema_batch_stats=batch_stats)


def denominators(counts: PyTree) -> PyTree:
  """Counts over all devices as divisors: an empty sum divides by one."""
  return jax.tree.map(lambda n: jnp.maximum(n, 1), counts)


def implementation_of(net: nn.Module | None) -> str | None:
  """Of a network's sparse convolutions; None for one that has none."""
  return getattr(net, "implementation", None)


def build_plan(view: View, net: nn.Module | None = None) -> plan_lib.Plan:
  """The plan of a view's voxels, for the network that will use it."""
  return plan_lib.build_plan(
    view.coords,
    view.count,
    view.capacities,
    implementation=implementation_of(net),
  )


def valid_rows(view: View) -> Bool[Array, " m"]:
  """Which rows of a view hold a voxel."""
  return jnp.arange(view.coords.shape[0]) < view.count
