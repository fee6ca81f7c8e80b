"""LlavaConfig and Mistral3Config: a vision tower, a projector and a language model together."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

from vitrail.arguments import short
from vitrail.configs.base import PretrainedConfig
from vitrail.configs.fields import check_cell, check_field
from vitrail.configs.text import Ministral3Config, MistralConfig
from vitrail.configs.vision import PixtralVisionConfig
from vitrail.errors import ConfigError

TEXT_TYPES: dict[str, type[MistralConfig]] = {"mistral": MistralConfig, "ministral3": Ministral3Config}


def _keys(value: Any) -> Any:
    """Return the keys of transformers' configuration as in its config.json; anything else as it is."""
    write = None if isinstance(value, (PretrainedConfig, dict)) else getattr(value, "to_json_string", None)
    return json.loads(write()) if callable(write) and hasattr(value, "model_type") else value


def text_config_from(value: "dict[str, Any] | MistralConfig", owner: str) -> MistralConfig:
    """Return the language model's configuration as it is, or make it from a dict (class by its model_type)."""
    if isinstance(value, MistralConfig):
        return value
    value = _keys(value)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{owner}: text_config must be a configuration or an object of keys, got {short(value)}."
        )
    kind = value.get("model_type", "mistral")
    if not isinstance(kind, str) or kind not in TEXT_TYPES:
        raise ConfigError(
            f"{owner}: text_config has model_type {short(kind)}; supported: {', '.join(TEXT_TYPES)}."
        )
    return TEXT_TYPES[kind]._as_part(value)


def vision_config_from(value: "dict[str, Any] | PixtralVisionConfig", owner: str) -> PixtralVisionConfig:
    """Return the vision tower's configuration as it is, or make it from a dict."""
    if isinstance(value, PixtralVisionConfig):
        return value
    value = _keys(value)
    if not isinstance(value, dict):
        raise ConfigError(
            f"{owner}: vision_config must be a configuration or an object of keys, got {short(value)}."
        )
    kind = value.get("model_type", "pixtral")
    if kind != "pixtral":
        raise ConfigError(f"{owner}: vision_config has model_type {short(kind)}; supported: pixtral.")
    return PixtralVisionConfig._as_part(value)


class VisionLanguageConfig(PretrainedConfig):
    """Common base of LlavaConfig and Mistral3Config."""

    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}
    part_makers: ClassVar[dict[str, Callable[..., PretrainedConfig]]] = {
        "text_config": text_config_from,  # first: a keyword of both parts is the language model's
        "vision_config": vision_config_from,
    }
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "text_config": MistralConfig,
        "vision_config": PixtralVisionConfig,
    }
    vision_config: PixtralVisionConfig
    text_config: MistralConfig
    image_token_index: int
    image_token_id: int
    projector_hidden_act: str
    vision_feature_layer: int | list[int]
    multimodal_projector_bias: bool

    def check(self) -> None:
        super().check()
        self.text_config.check()
        self.vision_config.check()
        owner = type(self).__name__
        check_field(owner, "image_token_index", self.image_token_index, int, minimum=0)
        check_field(owner, "multimodal_projector_bias", self.multimodal_projector_bias, bool)
        check_field(owner, "projector_hidden_act", self.projector_hidden_act, str)
        check_field(owner, "vision_feature_layer", self.vision_feature_layer, (int, list, tuple))
        if not isinstance(self.vision_feature_layer, int):
            self.vision_feature_layer = list(self.vision_feature_layer)
            if not self.vision_feature_layer:
                raise ConfigError(f"{owner}: vision_feature_layer is an empty list; name at least one layer.")
        layers = self.vision_config.num_hidden_layers
        for layer in (
            [self.vision_feature_layer]
            if isinstance(self.vision_feature_layer, int)
            else self.vision_feature_layer
        ):
            check_field(owner, "vision_feature_layer", layer, int)
            if not -layers - 1 <= layer <= layers:
                raise ConfigError(
                    f"{owner}: vision_feature_layer {layer} is outside the tower's {layers} layers."
                )

    @property
    def has_vision(self) -> bool:
        """True: the other part is the language model."""
        return True

    @property
    def feature_layers(self) -> int:
        """Number of layers whose features are concatenated for the projector."""
        return 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)


class LlavaConfig(VisionLanguageConfig):
    """Pixtral 12B and Pixtral Large in Hugging Face's format: tower, two-layer projector, Mistral decoder.

    Argument names, order and defaults are transformers'. The defaults are CLIP's (-2, "default", 32000); absent keys of
    a config.json with a Pixtral tower take Pixtral's values (-1, "full", 10). Without sub-configurations the geometry
    is Pixtral 12B's (transformers: CLIP and Llama).
    """

    model_type: ClassVar[str] = "llava"
    vision_feature_select_strategy: str
    image_seq_length: int

    def __init__(
        self,
        vision_config: "PixtralVisionConfig | dict[str, Any] | None" = None,
        text_config: "MistralConfig | dict[str, Any] | None" = None,
        image_token_index: int = 32000,
        projector_hidden_act: str = "gelu",
        vision_feature_select_strategy: str = "default",
        vision_feature_layer: "int | list[int]" = -2,
        image_seq_length: int = 576,
        multimodal_projector_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        if "image_token_id" in kwargs:
            image_token_index = kwargs.pop("image_token_id")
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
        self.vision_config = vision_config_from(
            PixtralVisionConfig() if vision_config is None else vision_config, "LlavaConfig"
        )
        self.text_config = text_config_from(
            pixtral_12b_text() if text_config is None else text_config, "LlavaConfig"
        )
        self.image_token_index = image_token_index
        self.projector_hidden_act = projector_hidden_act
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.vision_feature_layer = vision_feature_layer
        self.image_seq_length = image_seq_length
        self.multimodal_projector_bias = multimodal_projector_bias
        self.check()

    def check(self) -> None:
        super().check()
        if self.vision_feature_select_strategy not in ("default", "full"):
            raise ConfigError(
                "LlavaConfig: vision_feature_select_strategy must be 'default' or 'full', "
                f"got {short(self.vision_feature_select_strategy)}."
            )
        check_field("LlavaConfig", "image_seq_length", self.image_seq_length, int, minimum=0)


class Mistral3Config(VisionLanguageConfig):
    """Mistral Small 3.1/3.2, Magistral, Devstral Small 2 and Ministral 3: tower, patch merger, Mistral decoder.

    Argument names, order and defaults are transformers'; `Mistral3Config()` alone is the 24B.
    """

    model_type: ClassVar[str] = "mistral3"
    spatial_merge_size: int

    def __init__(
        self,
        vision_config: "PixtralVisionConfig | dict[str, Any] | None" = None,
        text_config: "MistralConfig | dict[str, Any] | None" = None,
        image_token_index: int = 10,
        projector_hidden_act: str = "gelu",
        vision_feature_layer: "int | list[int]" = -1,
        multimodal_projector_bias: bool = False,
        spatial_merge_size: int = 2,
        **kwargs: Any,
    ) -> None:
        if "image_token_id" in kwargs:
            image_token_index = kwargs.pop("image_token_id")
        super().__init__(**kwargs)
        vision = small_3_vision() if vision_config is None else vision_config
        self.vision_config = vision_config_from(vision, "Mistral3Config")
        text = small_3_text() if text_config is None else text_config
        self.text_config = text_config_from(text, "Mistral3Config")
        self.image_token_index = image_token_index
        self.projector_hidden_act = projector_hidden_act
        self.vision_feature_layer = vision_feature_layer
        self.multimodal_projector_bias = multimodal_projector_bias
        self.spatial_merge_size = spatial_merge_size
        self.check()

    def check(self) -> None:
        super().check()
        check_field("Mistral3Config", "spatial_merge_size", self.spatial_merge_size, int, minimum=1)
        check_cell("Mistral3Config", self.vision_config.patch_size, self.spatial_merge_size)


def pixtral_12b_text() -> MistralConfig:
    """Return Pixtral 12B's decoder (its published params.json)."""
    return MistralConfig(
        vocab_size=131072, hidden_size=5120, intermediate_size=14336, num_hidden_layers=40, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=1024000, rms_norm_eps=1e-5, rope_theta=1e9,
        sliding_window=None,
    )  # fmt: skip


def small_3_text() -> MistralConfig:
    """Return Mistral Small 3.1's decoder, 24B (its published config.json)."""
    return MistralConfig(
        vocab_size=131072, hidden_size=5120, intermediate_size=32768, num_hidden_layers=40, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=1e9,
        sliding_window=None,
    )  # fmt: skip


def small_3_vision() -> PixtralVisionConfig:
    """Return the vision tower of Mistral Small 3.1 and later: patches of 14, images up to 1540."""
    return PixtralVisionConfig(image_size=1540, patch_size=14, head_dim=64)
