"""Scenes on disk, augmentation and batching (numpy, host only)."""
