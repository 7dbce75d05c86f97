"""Losses used by more than one method."""
