"""Llava and Mistral3: vision tower, projector and decoder joined. Each part lives in a file of its own.

Letters: B conversations · T new positions · S cached + new · N pictures · D text width · V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.arguments import short
from vitrail.configs import LlavaConfig, Mistral3Config, VisionLanguageConfig
from vitrail.errors import InputError
from vitrail.kv.cache import KVCache
from vitrail.model.causal import CausalModel, refuse_unknown
from vitrail.model.decoder import MistralModel
from vitrail.model.layers import Linear
from vitrail.model.outputs import LlavaCausalLMOutputWithPast, Mistral3CausalLMOutputWithPast
from vitrail.model.pretrained import PreTrainedModel
from vitrail.model.projector import LlavaMultiModalProjector, Mistral3MultiModalProjector
from vitrail.model.record import Record
from vitrail.model.vision import PixtralVisionModel
from vitrail.ops.inputs import as_pixels, as_tensors, check_flags, chosen_layers, replace_rows


class VisionLanguageParts(PreTrainedModel):
    """Tower, projector and decoder under the names that checkpoints use; no head and no forward of its own."""

    config: VisionLanguageConfig
    vision_tower: PixtralVisionModel
    multi_modal_projector: "LlavaMultiModalProjector | Mistral3MultiModalProjector"
    language_model: MistralModel

    def __init__(
        self,
        config: VisionLanguageConfig,
        projector: "Callable[[Any], LlavaMultiModalProjector | Mistral3MultiModalProjector]",
    ) -> None:
        super().__init__(config)
        self.vision_tower = PixtralVisionModel(config.vision_config)
        self.multi_modal_projector = projector(config)
        self.language_model = MistralModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.language_model.set_input_embeddings(value)


class LlavaModel(VisionLanguageParts):
    """The parts of Pixtral 12B and Pixtral Large in Hugging Face's format."""

    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config, LlavaMultiModalProjector)


class Mistral3Model(VisionLanguageParts):
    """The parts of Mistral Small 3.1 and all later members."""

    config_class: ClassVar[type[Mistral3Config]] = Mistral3Config

    def __init__(self, config: Mistral3Config) -> None:
        super().__init__(config, Mistral3MultiModalProjector)


class VisionLanguageModel(CausalModel):
    """What LlavaForConditionalGeneration and Mistral3ForConditionalGeneration share: everything but the parts."""

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
        """The id whose rows pictures replace."""
        return self.config.image_token_index

    def set_decoder(self, decoder: MistralModel) -> None:
        """Replace the language model."""
        self.model.language_model = decoder

    # --- pictures -----------------------------------------------------------------------------------------

    @property
    def vision(self) -> bool:
        """False after `remove_vision`."""
        return getattr(self.model, "vision_tower", None) is not None

    def remove_vision(self) -> None:
        """Take out tower and projector: texts are answered as before, pictures are refused."""
        self.model.vision_tower = None  # type: ignore[assignment]
        self.model.multi_modal_projector = None  # type: ignore[assignment]

    def encode_images(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
    ) -> list[Tensor]:
        """Per picture the rows that replace its image tokens, (tokens, D).

        Args:
            pixel_values: (N, 3, H, W), padded at the right and the bottom.
            image_sizes: (N, 2) height and width in pixels without padding; None: all are H × W.
            vision_feature_layer: index into the tower's hidden states (0 is before the first block, −1 after the
                last), or several, whose features are joined; None: the configuration's.
        """
        if not self.vision:
            raise InputError(
                f"this {type(self).__name__} was loaded with vision=False and reads no pictures; load it without."
            )
        tower, projector = self.vision_tower, self.multi_modal_projector
        chosen = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        depth = self.config.vision_config.num_hidden_layers
        layers = chosen_layers(chosen, depth)
        pixel_values, image_sizes = as_pixels(pixel_values, image_sizes)
        if pixel_values is None:
            raise InputError("encoding images needs pixel_values; got None.")
        self._check_projector_width(len(layers))
        wanted = [layer if layer >= 0 else depth + 1 + layer for layer in layers]
        grids = tower.grids(pixel_values, image_sizes)
        record = Record(hidden=True) if wanted != [max(wanted)] else Record()
        last = tower.encode(pixel_values, grids, record, depth=max(wanted))
        features = [record.hidden_states[layer] for layer in wanted] if record.hidden else [last]
        rows: Tensor = projector(features, grids)
        return list(torch.split(rows, [projector.tokens(grid) for grid in grids]))

    def _check_projector_width(self, layers: int) -> None:
        width = self.config.vision_config.hidden_size
        first: Any = self.multi_modal_projector.linear_1
        if first.in_features != width * layers:
            raise InputError(
                f"vision_feature_layer names {layers} layers of {width}, the projector was made for "
                f"{first.in_features} in all; set vision_feature_layer in the configuration before building the model."
            )

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
        """From ids and pictures to logits.

        1. Ids become embeddings; 2. pictures become features; 3. rows of image tokens are replaced by features;
        4. the decoder reads the rows that are no padding.

        Args:
            input_ids: (B, T). pixel_values: (N, 3, H, W). image_sizes: (N, 2) height, width without padding.
            attention_mask: (B, S) of 0 and 1; positions with 0 are left out. position_ids: (B, T), default counted
                over the positions that are not left out.
            past_key_values: the cache an earlier call returned, or (key, value) per layer, each (B, G, S, K).
            inputs_embeds: (B, T, D) instead of ids; pictures replace the rows equal to the image token's embedding.
            vision_feature_layer, vision_feature_select_strategy: which features of the tower; "default" equals
                "full", since the tower has no class token.
            labels: (B, T), −100 where nothing is asked; shifted inside.
            logits_to_keep: 0 for all, n for the last n positions, or a 1-D tensor of positions.

        Returns:
            loss, logits (B, T, V), past_key_values, hidden_states, attentions, image_hidden_states; a tuple of
            those that are there for return_dict=False.

        Raises:
            InputError: arguments that do not fit each other. ContextError: too many positions, an unknown id.
        """
        refuse_unknown(f"{type(self).__name__}.forward", kwargs)
        _check_strategy(vision_feature_select_strategy)
        check_flags(use_cache=use_cache, output_attentions=output_attentions, return_dict=return_dict)
        check_flags(output_hidden_states=output_hidden_states)
        input_ids, inputs_embeds = as_tensors(self.device, input_ids=input_ids, inputs_embeds=inputs_embeds)
        rows = self._embeddings(input_ids, inputs_embeds)
        features = None
        if pixel_values is not None:
            features = torch.cat(self.encode_images(pixel_values, image_sizes, vision_feature_layer))
            rows = replace_rows(rows, self._image_places(input_ids, rows), features)
        elif past_key_values is None and input_ids is not None:
            self._check_no_images(input_ids)
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
        )
        output = self.output_class(**fields, image_hidden_states=features)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _image_places(self, input_ids: Tensor | None, rows: Tensor) -> Tensor:
        """bool (B, T): where pictures go."""
        image = torch.tensor([self.config.image_token_index], device=rows.device)
        if input_ids is not None:
            return torch.eq(input_ids, image)
        marker: Tensor = self.get_input_embeddings()(image)
        return torch.eq(rows, marker).all(dim=-1)

    def _check_no_images(self, input_ids: Tensor) -> None:
        wanted = 0 if input_ids.is_meta else int((input_ids == self.config.image_token_index).sum())
        if wanted:
            raise InputError(
                f"the prompt has {wanted} image tokens, but there are no pixel_values; pass the pictures."
            )


def _check_strategy(strategy: str | None) -> None:
    if strategy is not None and (not isinstance(strategy, str) or strategy not in ("default", "full")):
        raise InputError(
            f"vision_feature_select_strategy must be 'default' or 'full', got {short(strategy)}."
        )


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
    ) -> tuple[Tensor, ...]:
        """The projected features of each picture, (tokens, D); arguments as in forward()."""
        refuse_unknown("get_image_features", kwargs)
        _check_strategy(vision_feature_select_strategy)
        return tuple(self.encode_images(pixel_values, image_sizes, vision_feature_layer))


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
    ) -> tuple[Tensor, ...]:
        """The projected features of each picture, (tokens, D); arguments as in forward()."""
        refuse_unknown("get_image_features", kwargs)
        return tuple(self.encode_images(pixel_values, image_sizes, vision_feature_layer))
