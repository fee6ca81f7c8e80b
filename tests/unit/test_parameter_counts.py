"""The published geometries on the meta device: every count equals the published files' to the unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrail

TOWER_12B: dict[str, Any] = {}
TOWER_LARGE = {"head_dim": 88, "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40}
TOWER_SMALL = {"image_size": 1540, "patch_size": 14, "head_dim": 64}
COMMON = {"head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}


def pixtral_12b() -> Any:
    text = {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 14336, **COMMON,
        "num_hidden_layers": 40, "max_position_embeddings": 1024000, "rope_theta": 1e9, "sliding_window": None,
    }  # fmt: skip
    return vitrail.LlavaConfig(
        TOWER_12B, text, 10, vision_feature_layer=-1, vision_feature_select_strategy="full"
    )


def pixtral_large() -> Any:
    text = {
        "vocab_size": 32768, "hidden_size": 12288, "intermediate_size": 28672, "num_hidden_layers": 88,
        **COMMON, "num_attention_heads": 96, "max_position_embeddings": 131072, "rope_theta": 1e9, "sliding_window": None,
    }  # fmt: skip
    return vitrail.LlavaConfig(
        TOWER_LARGE, text, 10, multimodal_projector_bias=False, vision_feature_layer=-1
    )


def ministral(width: int, hidden: int, layers: int, tied: bool = False) -> Any:
    text = {
        "model_type": "ministral3", "vocab_size": 131072, "hidden_size": width, "intermediate_size": hidden,
        "num_hidden_layers": layers, **COMMON, "tie_word_embeddings": tied,
    }  # fmt: skip
    return vitrail.Mistral3Config(TOWER_SMALL, text)


MODELS = {
    # name: configuration, text, tower, adapter with merger and norm, all
    "Pixtral 12B": (pixtral_12b, 12_247_782_400, 403_489_792, 31_467_520, 12_682_739_712),
    "Pixtral Large": (pixtral_large, 122_610_069_504, 1_356_479_872, 168_296_448, 124_134_845_824),
    "Small 3.1": (vitrail.Mistral3Config, 23_572_403_200, 403_305_472, 35_652_608, 24_011_361_280),
    "Ministral 3 3B": (
        lambda: ministral(3072, 9216, 26, True),
        3_429_006_336,
        403_305_472,
        16_778_240,
        3_849_090_048,
    ),
    "Ministral 3 8B": (
        lambda: ministral(4096, 14336, 34),
        8_489_553_920,
        403_305_472,
        25_166_848,
        8_918_026_240,
    ),
    "Ministral 3 14B": (
        lambda: ministral(5120, 16384, 40),
        13_506_073_600,
        403_305_472,
        35_652_608,
        13_945_031_680,
    ),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_a_published_model(name: str) -> None:
    make, text, tower, adapter, total = MODELS[name]
    config = make()
    llava = isinstance(config, vitrail.LlavaConfig)
    kind = vitrail.LlavaForConditionalGeneration if llava else vitrail.Mistral3ForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count(model.vision_tower) == tower
    assert count(model.multi_modal_projector) == adapter
    assert count(model) - tower - adapter == text
    assert model.num_parameters() == count(model) == total
    embeddings = config.text_config.vocab_size * config.text_config.hidden_size
    assert model.num_parameters(exclude_embeddings=True) == total - embeddings
    assert model.num_parameters(only_trainable=True) == total


@pytest.mark.parametrize("name", MODELS)
def test_shapes_that_are_easily_got_wrong(name: str) -> None:
    """Heads times head width is not the hidden width; a tied head is one tensor with the embeddings."""
    config = MODELS[name][0]()
    kind = vitrail.LlavaForConditionalGeneration
    if not isinstance(config, vitrail.LlavaConfig):
        kind = vitrail.Mistral3ForConditionalGeneration
    with torch.device("meta"):
        model = kind(config)
    text, names = config.text_config, model.state_dict()
    layer = "model.language_model.layers.0.self_attn."
    assert names[layer + "q_proj.weight"].shape == (text.num_attention_heads * 128, text.hidden_size)
    assert names[layer + "o_proj.weight"].shape == (text.hidden_size, text.num_attention_heads * 128)
    assert names[layer + "k_proj.weight"].shape == (8 * 128, text.hidden_size)
    side = config.vision_config.patch_size
    assert names["model.vision_tower.patch_conv.weight"].shape[1:] == (3, side, side)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == text.tie_word_embeddings


def test_the_tower_and_the_decoder_alone() -> None:
    with torch.device("meta"):
        assert vitrail.PixtralVisionModel(vitrail.PixtralVisionConfig()).num_parameters() == 403_489_792
        text = vitrail.MistralForCausalLM(vitrail.Mistral3Config().text_config)
    assert text.num_parameters() == 23_572_403_200
