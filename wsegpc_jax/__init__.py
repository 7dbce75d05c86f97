"""3D point-cloud segmentation from few labels, in JAX."""

__version__ = "0.1.0"
