"""Settings of all tests, made before jax is imported."""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[1]

# What one test compiles, another finds; subprocesses inherit it.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Little is computed here, but much is compiled: four times faster like this.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)

from hypothesis import settings  # noqa: E402

# The same examples in every run: a failure can be had again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Files that take minutes, each in processes of its own: begun first, so that no
# worker is left with one of them at the end.
_LONG = ("test_parallel", "test_resume", "test_programs", "test_dataset_chain")


def pytest_collection_modifyitems(items):
  """Puts the long files first; the order is otherwise the same."""
  order = {name: i for i, name in enumerate(_LONG)}
  items.sort(key=lambda item: order.get(item.path.stem, len(_LONG)))
