"""set_seed(): seeds Python's, NumPy's and PyTorch's generators, as in transformers."""

import random

import numpy as np
import torch

from vitrail.errors import InputError


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed all generators. `generate(seed=…)` does not need it and does not depend on the batch.

    Args:
        seed: of all generators.
        deterministic: make PyTorch raise for nondeterministic operations.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number of at least 0 and below 2**32, got {seed!r}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # all devices
    if deterministic:
        torch.use_deterministic_algorithms(True)
