"""Floating-point dtypes that operators compute in."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
