"""Bounded readers of what lies on disk. Nothing here knows a model."""
