"""Networks (flax.linen), one file a family."""
