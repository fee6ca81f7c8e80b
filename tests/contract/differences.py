"""Where a signature of Vitrail differs from the documents' library, and why: an open list that tests keep exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """`change` of the call form of `where` ("Class", "Class.method" or "function").

    Changes are written "+ name" (only here; "before other" where it moves places), "- name" (only there),
    "default of name: theirs -> ours", "kind of name: theirs -> ours" and "order: theirs -> ours" (of the names
    both have).
    """

    where: str
    change: str
    reason: str


OWN = "Vitrail's own option, by keyword only: it changes nothing unless it is given"
BY_NAME = "named here, taken through **kwargs there; an unknown argument is an error here"
DOCUMENTED = (
    "the documents give the older call form, which names it; transformers 4.57 takes it through **kwargs"
)

MODELS = (
    "PixtralVisionModel",
    "MistralForCausalLM",
    "LlavaForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
)
LLAVA, MISTRAL3 = MODELS[2:]

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "PixtralVisionConfig",
        "default of hidden_act: 'gelu' -> 'silu'",
        "every published tower computes SiLU; the reference's default belongs to no checkpoint",
    ),
    *(
        Difference("MistralForCausalLM.forward", f"+ {name}", BY_NAME)
        for name in ("output_attentions", "output_hidden_states", "return_dict")
    ),
    *(
        Difference(f"{LLAVA}.forward", f"+ {name} before cache_position", DOCUMENTED)
        for name in ("use_cache", "output_attentions", "output_hidden_states", "return_dict")
    ),
    Difference(f"{MISTRAL3}.forward", "+ vision_feature_layer before labels", DOCUMENTED),
    Difference(
        f"{MISTRAL3}.forward",
        "+ vision_feature_select_strategy before labels",
        "the documents describe it for Mistral3 too; both families have one forward()",
    ),
    Difference(f"{LLAVA}.get_image_features", "+ image_sizes", BY_NAME),
    Difference(
        f"{MISTRAL3}.get_image_features",
        "default of image_sizes: 'required' -> None",
        "without sizes every image fills its room, as for Llava",
    ),
    *(
        Difference(
            f"{name}.save_pretrained",
            "default of save_function: '<save>' -> None",
            "safetensors are written directly; another function is refused by name",
        )
        for name in MODELS
    ),
    *(
        Difference(f"PixtralImageProcessor{method}", f"+ {name}", OWN)
        for method in ("", ".preprocess")
        for name in ("dialect", "max_image_tokens")
    ),
    *(
        Difference(
            f"{name}.from_config",
            "+ config",
            "the reference takes it as the first of its keywords, from a wrapper without a signature",
        )
        for name in ("AutoModelForImageTextToText", "AutoModelForCausalLM")
    ),
)


@dataclass(frozen=True)
class DefaultValue:
    """`path` in `config()` that is built without arguments: the reference's value and ours."""

    config: str
    path: str
    theirs: Any
    ours: Any
    reason: str


_TOWER = "every published tower computes SiLU; the reference's default belongs to no checkpoint"
_PIXTRAL_12B = (
    "without parts a LlavaConfig is Pixtral 12B here; the reference's is LLaVA 1.5 of CLIP and Llama"
)
ABSENT = "absent"

DEFAULT_VALUES: tuple[DefaultValue, ...] = (
    DefaultValue("PixtralVisionConfig", "hidden_act", "gelu", "silu", _TOWER),
    DefaultValue("Mistral3Config", "vision_config.hidden_act", "gelu", "silu", _TOWER),
    DefaultValue(
        "MistralConfig", "head_dim", None, 128, "resolved when the configuration is made, for every reader"
    ),
    DefaultValue(
        "LlavaConfig",
        "tie_word_embeddings",
        True,
        False,
        "the flag means the head, and LLaVA's was never tied",
    ),
    DefaultValue("LlavaConfig", "vision_config.model_type", "clip_vision_model", "pixtral", _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "vision_config.hidden_act", "quick_gelu", "silu", _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "vision_config.image_size", 336, 1024, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "vision_config.patch_size", 14, 16, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "vision_config.head_dim", ABSENT, 64, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "vision_config.rope_theta", ABSENT, 10000.0, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.model_type", "llama", "mistral", _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.vocab_size", 32000, 131072, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.hidden_size", 4096, 5120, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.intermediate_size", 11008, 14336, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.num_hidden_layers", 32, 40, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.num_key_value_heads", 32, 8, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.max_position_embeddings", 2048, 1024000, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.rms_norm_eps", 1e-6, 1e-5, _PIXTRAL_12B),
    DefaultValue("LlavaConfig", "text_config.rope_theta", 10000.0, 1e9, _PIXTRAL_12B),
)
