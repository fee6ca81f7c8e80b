"""LlavaModel and Mistral3Model: vision tower, projector and decoder joined, without a head.

Letters: B conversations · T new positions · N images · D text width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.arguments import short
from vitrail.configs import LlavaConfig, Mistral3Config, VisionLanguageConfig
from vitrail.errors import InputError
from vitrail.kv.cache import KVCache
from vitrail.model.decoder import MistralModel
from vitrail.model.outputs import ImageFeatures, LlavaModelOutputWithPast, Mistral3ModelOutputWithPast
from vitrail.model.padded import PaddedModel, refuse_unknown, take_cache, take_repeated
from vitrail.model.projector import LlavaMultiModalProjector, Mistral3MultiModalProjector
from vitrail.model.record import Record
from vitrail.model.vision import PixtralVisionModel
from vitrail.ops import threads
from vitrail.ops.inputs import as_pixels, as_tensors, check_flags, chosen_layers, replace_rows


class VisionLanguageParts(PaddedModel):
    """Tower, projector and decoder under the names of checkpoints; no head."""

    output_class: ClassVar[type[LlavaModelOutputWithPast]] = LlavaModelOutputWithPast

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
        """Return the table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> MistralModel:
        """Return the language model."""
        return self.language_model

    def set_decoder(self, decoder: MistralModel) -> None:
        """Replace the language model."""
        self.language_model = decoder

    # --- images -------------------------------------------------------------------------------------------

    @property
    def vision(self) -> bool:
        """False after `remove_vision`."""
        return getattr(self, "vision_tower", None) is not None

    def remove_vision(self) -> None:
        """Remove tower and projector; text works as before, images raise InputError."""
        self.vision_tower = None  # type: ignore[assignment]
        self.multi_modal_projector = None  # type: ignore[assignment]

    def encode_images(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
    ) -> list[Tensor]:
        """Return for each image the rows of its image tokens, (tokens, D).

        Args:
            pixel_values: (N, 3, H, W), padded at the right and the bottom.
            image_sizes: (N, 2) height and width in pixels without padding; None: all are H × W.
            vision_feature_layer: index into the tower's hidden states (0 is before the first block, −1 after the
                last), or several, whose features are joined; None: the configuration's.
        """
        if not self.vision:
            raise InputError("this model was loaded with vision=False and reads no images; load it without.")
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
        with threads.fitting(sum(h * w for h, w in grids), self.config.text_config.hidden_size**2):
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

    def image_features(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None",
        vision_feature_layer: "int | Sequence[int] | None",
        kwargs: dict[str, Any],
    ) -> ImageFeatures:
        """Implement get_image_features(): `encode_images`, after removing arguments without effect."""
        kwargs.pop("return_dict", None)  # the result is a tuple with transformers 5's pooler_output
        check_strategy(kwargs.pop("vision_feature_select_strategy", None))
        refuse_unknown("get_image_features", kwargs)
        return ImageFeatures(self.encode_images(pixel_values, image_sizes, vision_feature_layer))

    def place_images(self, rows: Tensor, input_ids: Tensor | None, features: Tensor | None) -> Tensor:
        """Return embeddings (B, T, D) with features (n, D) in the rows of image tokens."""
        return rows if features is None else replace_rows(rows, self._image_places(input_ids, rows), features)

    def check_no_images(self, input_ids: Tensor) -> None:
        """Raise InputError for image tokens without images."""
        wanted = 0 if input_ids.is_meta else int((input_ids == self.config.image_token_index).sum())
        if wanted:
            raise InputError(
                f"the prompt has {wanted} image tokens, but there are no pixel_values; pass the images."
            )

    def _image_places(self, input_ids: Tensor | None, rows: Tensor) -> Tensor:
        """Return the mask of image tokens, bool (B, T)."""
        image = torch.tensor([self.config.image_token_index], device=rows.device)
        if input_ids is not None:
            return torch.eq(input_ids, image)
        marker: Tensor = self.get_input_embeddings()(image)
        return torch.eq(rows, marker).all(dim=-1)

    # --- forward ------------------------------------------------------------------------------------------

    def _forward(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        images: Mapping[str, Any],
        return_dict: bool | None,
        kwargs: dict[str, Any],
        past_key_values: Any,
        **given: Any,
    ) -> "LlavaModelOutputWithPast | tuple[Any, ...]":
        """Return hidden states of every position; arguments as in vlm.py."""
        check_flags(return_dict=return_dict)
        input_ids, inputs_embeds = as_tensors(self.device, input_ids=input_ids, inputs_embeds=inputs_embeds)
        past_key_values = take_cache(kwargs, past_key_values)
        features = take_features(kwargs, self.encode_images, **images)
        take_repeated(kwargs, given.get("position_ids"))
        refuse_unknown(f"{type(self).__name__}.forward", kwargs)
        if features is None and past_key_values is None and input_ids is not None:
            self.check_no_images(input_ids)
        rows = self.place_images(self._embeddings(input_ids, inputs_embeds), input_ids, features)
        fields = self._last_hidden(
            self.language_model.run, rows, input_ids, past_key_values=past_key_values, **given
        )
        output = self.output_class(**fields, image_hidden_states=features)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class LlavaModel(VisionLanguageParts):
    """Pixtral 12B and Pixtral Large in Hugging Face's format, without the head."""

    config_class: ClassVar[type[LlavaConfig]] = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config, LlavaMultiModalProjector)

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
        return self.image_features(pixel_values, image_sizes, vision_feature_layer, kwargs)

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
        cache_position: Tensor | None = None,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> "LlavaModelOutputWithPast | tuple[Any, ...]":
        """Return hidden states of every position; arguments as in vlm.py."""
        check_strategy(vision_feature_select_strategy)
        return self._forward(
            input_ids, inputs_embeds,
            {"pixel_values": pixel_values, "image_sizes": image_sizes, "vision_feature_layer": vision_feature_layer},
            return_dict, kwargs, past_key_values, attention_mask=attention_mask, position_ids=position_ids,
            use_cache=use_cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )  # fmt: skip


class Mistral3Model(VisionLanguageParts):
    """Mistral Small 3.1 and all later members, without the head."""

    config_class: ClassVar[type[Mistral3Config]] = Mistral3Config
    output_class: ClassVar[type[LlavaModelOutputWithPast]] = Mistral3ModelOutputWithPast

    def __init__(self, config: Mistral3Config) -> None:
        super().__init__(config, Mistral3MultiModalProjector)

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
        **kwargs: Any,
    ) -> ImageFeatures:
        """Return the projected features of each image, (tokens, D); arguments as in forward()."""
        return self.image_features(pixel_values, image_sizes, vision_feature_layer, kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None" = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: "int | Sequence[int] | None" = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        **kwargs: Any,
    ) -> "LlavaModelOutputWithPast | tuple[Any, ...]":
        """Return hidden states of every position; arguments as in vlm.py."""
        return self._forward(
            input_ids, inputs_embeds,
            {"pixel_values": pixel_values, "image_sizes": image_sizes, "vision_feature_layer": vision_feature_layer},
            return_dict, kwargs, past_key_values, attention_mask=attention_mask, position_ids=position_ids,
            use_cache=use_cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )  # fmt: skip


def take_features(
    kwargs: dict[str, Any],
    encode: "Callable[..., Sequence[Tensor]]",
    *,
    pixel_values: Tensor | None,
    image_sizes: Any,
    vision_feature_layer: Any,
) -> Tensor | None:
    """Return the features of a call's images (n, D): of `pixel_values`, or `mm_encoder_outputs` taken out of `kwargs`.

    transformers 5 passes results of get_image_features() as mm_encoder_outputs={"image": …}.
    """
    ready = kwargs.pop("mm_encoder_outputs", None)
    if ready is None:
        return (
            None
            if pixel_values is None
            else torch.cat(list(encode(pixel_values, image_sizes, vision_feature_layer)))
        )
    image = ready.get("image") if isinstance(ready, Mapping) else None
    features = getattr(image, "pooler_output", image)
    rows = [features] if isinstance(features, Tensor) else features
    if (
        pixel_values is not None
        or set(ready) != {"image"}
        or not isinstance(rows, (list, tuple))
        or not all(isinstance(part, Tensor) and part.dim() == 2 for part in rows)
        or not rows
    ):
        raise InputError(
            'mm_encoder_outputs takes {"image": what get_image_features() returned}, in the place of pixel_values.'
        )
    return torch.cat(list(rows))


def check_strategy(strategy: str | None) -> None:
    """Raise InputError for an unknown strategy; both of transformers' are one, since the tower has no class token."""
    if strategy is not None and (not isinstance(strategy, str) or strategy not in ("default", "full")):
        raise InputError(
            f"vision_feature_select_strategy must be 'default' or 'full', got {short(strategy)}."
        )
