"""Memory check of a model with random weights, from its configuration, before allocation."""

from __future__ import annotations

import os
from typing import Any

import torch

from vitrail.configs import MistralConfig, PixtralVisionConfig, PretrainedConfig
from vitrail.errors import OutOfMemory
from vitrail.files.formatting import in_words
from vitrail.weights.free_memory import free_memory
from vitrail.weights.memory import SWITCH

_NOTICEABLE = 1 << 30  # bytes; smaller models are not checked


def refuse_if_too_large(config: Any) -> None:
    """Raise OutOfMemory if the parameters of `config`, in the default dtype, exceed the device's free memory."""
    probe = torch.empty(0)
    need = parameters(config) * probe.element_size()
    if probe.device.type == "meta" or need < _NOTICEABLE:
        return
    if os.environ.get(SWITCH, "").strip().lower() in ("off", "0", "no", "false"):
        return
    room = free_memory(probe.device)
    if room is not None and need > room:
        raise OutOfMemory(
            f"a model of this configuration needs {in_words(need)} of memory on {probe.device}, and {in_words(room)} is "
            f"free; make it smaller, or build it on the meta device. {SWITCH}=off in the environment builds it all the same."
        )


def parameters(config: PretrainedConfig) -> int:
    """Return the number of weights of all large matrices and tables; norms, biases and projector are not counted."""
    if isinstance(config, MistralConfig):
        heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
        block = config.hidden_size * (heads + 3 * config.intermediate_size)
        return config.num_hidden_layers * block + config.vocab_size * config.hidden_size
    if isinstance(config, PixtralVisionConfig):
        heads = 4 * config.num_attention_heads * config.head_dim
        block = config.hidden_size * (heads + 3 * config.intermediate_size)
        return (
            config.num_hidden_layers * block + config.num_channels * config.patch_size**2 * config.hidden_size
        )
    return sum(parameters(part) for part in vars(config).values() if isinstance(part, PretrainedConfig))
