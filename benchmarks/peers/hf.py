"""transformers as a worker, with bitsandbytes where asked: python benchmarks/peers/hf.py SPECIFICATION.

SPECIFICATION is a JSON object: params (a params.json), what ("decoder" or "tower"), format ("bf16", "f32" or "nf4") and
threads.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from torch import nn
from worker import clock, serve

DTYPES = {"bf16": torch.bfloat16, "nf4": torch.bfloat16, "f32": torch.float32}


def decoder(params: dict[str, Any], format: str) -> Any:
    """A MistralForCausalLM with random weights; with nf4 its layers are bitsandbytes' Linear4bit, the head stays."""
    config = transformers.MistralConfig(
        vocab_size=params["vocab_size"], hidden_size=params["dim"], intermediate_size=params["hidden_dim"],
        num_hidden_layers=params["n_layers"], num_attention_heads=params["n_heads"], head_dim=params["head_dim"],
        num_key_value_heads=params["n_kv_heads"], rms_norm_eps=params["norm_eps"], rope_theta=params["rope_theta"],
        max_position_embeddings=32768, sliding_window=None,
    )  # fmt: skip
    model = filled(lambda: transformers.MistralForCausalLM(config), DTYPES[format])
    if format == "nf4":
        import bitsandbytes

        for block in model.model.layers:
            for parent in (block.self_attn, block.mlp):
                for name, old in list(parent.named_children()):
                    if isinstance(old, nn.Linear):
                        new = bitsandbytes.nn.Linear4bit(
                            old.in_features,
                            old.out_features,
                            bias=False,
                            compute_dtype=torch.bfloat16,
                            quant_type="nf4",
                        )
                        new.load_state_dict({"weight": old.weight.data})
                        setattr(parent, name, new.to("cpu"))
    return model


def tower(params: dict[str, Any], format: str) -> Any:
    """A PixtralVisionModel with random weights, SDPA."""
    vision = params["vision_encoder"]
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "rope_theta",
    )  # fmt: skip
    config = transformers.PixtralVisionConfig(**{name: vision[name] for name in names}, hidden_act="silu")
    return filled(
        lambda: transformers.PixtralVisionModel._from_config(config, attn_implementation="sdpa"),
        DTYPES[format],
    )


def filled(build: Any, dtype: torch.dtype) -> Any:
    """The model in `dtype`; its matrices repeat a pool of normal values of a size that keeps what goes through."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with transformers.modeling_utils.no_init_weights():
            model = build()
    finally:
        torch.set_default_dtype(before)
    pool = torch.randn(1 << 20)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        if parameter.dim() == 1:
            flat.fill_(1.0)
            continue
        part = (pool * parameter[0].numel() ** -0.5).to(dtype)
        for first in range(0, flat.numel(), part.numel()):
            flat[first : first + part.numel()] = part[: flat.numel() - first]
    return model.eval()


class Decoder:
    """Prefill and decoding of one model, as its own generate() calls it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.caches: dict[tuple[int, int], Any] = {}

    @torch.inference_mode()
    def prefill(self, rows: int) -> dict[str, float]:
        """Seconds to read `rows` positions; logits of the last one."""
        ids = torch.arange(rows)[None]
        started = clock()
        self.model(ids, use_cache=True, logits_to_keep=1)
        return {"seconds": clock() - started}

    @torch.inference_mode()
    def decode(self, rows: int, context: int, steps: int) -> dict[str, float]:
        """Seconds of one step of `rows` sequences after `context` positions."""
        if (rows, context) not in self.caches:
            self.caches[rows, context] = self._cache(rows, context)
        cache, ids = self.caches[rows, context], torch.zeros(rows, 1, dtype=torch.long)
        started = clock()
        for _ in range(steps):
            self.model(ids, past_key_values=cache, use_cache=True).logits.argmax(-1)
            cache.crop(context)
        return {"seconds": (clock() - started) / steps}

    def _cache(self, rows: int, context: int) -> Any:
        config = self.model.config
        past = torch.randn(rows, config.num_key_value_heads, context, config.head_dim).to(self.model.dtype)
        cache = transformers.DynamicCache()
        for layer in range(config.num_hidden_layers):
            cache.update(past.clone(), past.clone(), layer)
        return cache


class Tower:
    """The vision tower alone."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def encode(self, images: int, side: int) -> dict[str, float]:
        """Seconds for so many images of side × side pixels."""
        pixels = torch.randn(images, 3, side, side).to(self.model.dtype)
        sizes = [(side, side)] * images
        started = clock()
        self.model(pixels, image_sizes=sizes)
        return {"seconds": clock() - started}


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    about: dict[str, Any] = {
        "peer": "transformers",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    if given["format"] == "nf4":
        import bitsandbytes

        about["bitsandbytes"] = bitsandbytes.__version__
    if given["what"] == "tower":
        vision = Tower(tower(given["params"], given["format"]))
        serve(about, {"encode": vision.encode})
    else:
        text = Decoder(decoder(given["params"], given["format"]))
        serve(about, {"prefill": text.prefill, "decode": text.decode})


if __name__ == "__main__":
    main()
