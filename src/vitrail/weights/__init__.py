"""Weights: checkpoints on disk to parameters and back."""
