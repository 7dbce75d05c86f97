"""Device kernels, one folder an op (installed as wsegpc_jax.kernels)."""
