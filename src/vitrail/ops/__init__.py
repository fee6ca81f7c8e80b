"""Operators on tensors: segments, attention, rotary positions, packed weights; no parameters, no configurations."""
