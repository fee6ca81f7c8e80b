"""Where a signature of Vitrail differs from the documents' library, and why: an open list that tests keep exact."""

from __future__ import annotations

from dataclasses import dataclass


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
        "without sizes every picture fills its room, as for Llava",
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
