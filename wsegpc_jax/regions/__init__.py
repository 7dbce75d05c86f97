"""Superpoints in 3D and regions in 2D, computed without labels."""
