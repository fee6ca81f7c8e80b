"""Functions on tensors: segments, attention, rotary positions, weights as stored. No parameters, no config."""
