"""LlavaForConditionalGeneration and Mistral3ForConditionalGeneration: the joined parts (multimodal.py) with a head.

Letters: B conversations · T new positions · S cached + new · N images · D text width · V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from vitrail.configs import LlavaConfig, Mistral3Config, VisionLanguageConfig
from vitrail.kv.cache import KVCache
from vitrail.model.causal import CausalModel
from vitrail.model.decoder import MistralModel
from vitrail.model.layers import Linear
from vitrail.model.multimodal import (
    LlavaModel,
    Mistral3Model,
    VisionLanguageParts,
    check_strategy,
    take_features,
)
from vitrail.model.outputs import (
    ImageFeatures,
    LlavaCausalLMOutputWithPast,
    Mistral3CausalLMOutputWithPast,
)
from vitrail.model.padded import refuse_unknown, take_cache, take_repeated
from vitrail.model.projector import LlavaMultiModalProjector, Mistral3MultiModalProjector
from vitrail.model.vision import PixtralVisionModel
from vitrail.ops.inputs import as_tensors, check_flags


class VisionLanguageModel(CausalModel):
    """Base of LlavaForConditionalGeneration and Mistral3ForConditionalGeneration."""

    base_model_prefix: ClassVar[str] = "model"
    output_class: ClassVar[type[LlavaCausalLMOutputWithPast]] = LlavaCausalLMOutputWithPast
    config: VisionLanguageConfig
    model: VisionLanguageParts

    def __init__(self, config: VisionLanguageConfig, parts: VisionLanguageParts) -> None:
        super().__init__(config)
        self.model = parts
        self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @property
    def decoder(self) -> MistralModel:
        """The language model without its head."""
        return self.model.language_model

    @property
    def language_model(self) -> MistralModel:
        """The language model without its head."""
        return self.model.language_model

    @property
    def vision_tower(self) -> PixtralVisionModel:
        """The vision tower."""
        return self.model.vision_tower

    @property
    def multi_modal_projector(self) -> "LlavaMultiModalProjector | Mistral3MultiModalProjector":
        """The projector between tower and language model."""
        return self.model.multi_modal_projector

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows images replace."""
        return self.config.image_token_index

    def set_decoder(self, decoder: MistralModel) -> None:
        """Replace the language model."""
        self.model.language_model = decoder

    # --- images -----------------------------------------------------------------------------------------

    @property
    def vision(self) -> bool:
        """False after `remove_vision`."""
        return self.model.vision

    def remove_vision(self) -> None:
        """Remove tower and projector; text works as before, images raise InputError."""
        self.model.remove_vision()

    def encode_images(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
    ) -> list[Tensor]:
        """Return for each image the rows of its image tokens, (tokens, D); see VisionLanguageParts."""
        return self.model.encode_images(pixel_values, image_sizes, vision_feature_layer)

    # --- forward ------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None" = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
        vision_feature_select_strategy: str | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: "int | Tensor" = 0,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        **kwargs: Any,
    ) -> "LlavaCausalLMOutputWithPast | tuple[Any, ...]":
        """Return logits of ids and images.

        1. Embed the ids; 2. encode the images; 3. replace the rows of image tokens by features; 4. run the decoder on
        the rows without padding.

        Args:
            input_ids: (B, T). pixel_values: (N, 3, H, W). image_sizes: (N, 2) height, width without padding.
            attention_mask: (B, S) of 0 and 1; 0 is padding. position_ids: (B, T), default counted without padding.
            past_key_values: the cache of an earlier call, or (key, value) per layer, each (B, G, S, K).
            inputs_embeds: (B, T, D) instead of ids; images replace the rows equal to the image token's embedding.
            vision_feature_layer, vision_feature_select_strategy: which features of the tower; "default" equals
                "full", since the tower has no class token.
            labels: (B, T), −100 without loss; shifted inside.
            logits_to_keep: 0 for all, n for the last n positions, or a 1-D tensor of positions.
            kwargs: num_items_in_batch, divisor of the summed loss (a trainer counts labels over all batches of a step);
                None: the number of labels here.

        Returns:
            loss, logits (B, T, V), past_key_values, hidden_states, attentions, image_hidden_states; for
            return_dict=False a tuple of those that are not None.

        Raises:
            InputError: arguments that do not fit each other. ContextError: too many positions, an unknown id.
        """
        check_flags(return_dict=return_dict)
        input_ids, inputs_embeds = as_tensors(self.device, input_ids=input_ids, inputs_embeds=inputs_embeds)
        items = kwargs.pop("num_items_in_batch", None)
        past_key_values = take_cache(kwargs, past_key_values)
        features = take_features(
            kwargs,
            self.encode_images,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            vision_feature_layer=vision_feature_layer,
        )
        take_repeated(kwargs, position_ids)
        refuse_unknown(f"{type(self).__name__}.forward", kwargs)
        check_strategy(vision_feature_select_strategy)
        if features is None and past_key_values is None and input_ids is not None:
            self.model.check_no_images(input_ids)
        rows = self.model.place_images(self._embeddings(input_ids, inputs_embeds), input_ids, features)
        fields = self._run(
            rows,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=items,
        )
        output = self.output_class(**fields, image_hidden_states=features)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class LlavaForConditionalGeneration(VisionLanguageModel):
    """Pixtral 12B and Pixtral Large in Hugging Face's format, with the head."""

    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig
    config: LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config, LlavaModel(config))

    def get_image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: "int | Sequence[int] | None" = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        **kwargs: Any,
    ) -> ImageFeatures:
        """Return the projected features of each image, (tokens, D); arguments as in forward()."""
        check_strategy(vision_feature_select_strategy)
        return self.model.image_features(pixel_values, image_sizes, vision_feature_layer, kwargs)


class Mistral3ForConditionalGeneration(VisionLanguageModel):
    """Mistral Small 3.1/3.2, Magistral, Devstral Small 2 and Ministral 3, with the head."""

    config_class: ClassVar[type[Mistral3Config]] = Mistral3Config
    output_class: ClassVar[type[LlavaCausalLMOutputWithPast]] = Mistral3CausalLMOutputWithPast
    config: Mistral3Config

    def __init__(self, config: Mistral3Config) -> None:
        super().__init__(config, Mistral3Model(config))

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
        **kwargs: Any,
    ) -> ImageFeatures:
        """Return the projected features of each image, (tokens, D); arguments as in forward()."""
        return self.model.image_features(pixel_values, image_sizes, vision_feature_layer, kwargs)
