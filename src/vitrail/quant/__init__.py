"""Quantised formats: how each is stored and converted to a PackedWeight, and which layers get which format."""
