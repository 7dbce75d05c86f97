"""Evaluation metrics as mergeable sums."""
