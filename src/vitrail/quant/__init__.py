"""Quantised formats: one file per format, how it is stored and how it becomes a PackedWeight."""
