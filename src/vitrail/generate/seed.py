"""set_seed(): the generators of Python, NumPy and PyTorch, as transformers' function of that name sets them."""

import random

import numpy as np
import torch

from vitrail.errors import InputError


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Set every generator's seed; `generate(seed=…)` does without, and does not depend on the batch.

    deterministic: PyTorch refuses operations whose results depend on the run.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number of at least 0 and below 2**32, got {seed!r}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of every device
    if deterministic:
        torch.use_deterministic_algorithms(True)
