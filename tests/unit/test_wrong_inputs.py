"""forward() on arguments that do not fit each other: an InputError that gives both numbers, never a torch error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail.errors import ContextError, InputError, UnsupportedError

IMAGE = 10
MODEL: list[Any] = []


def model() -> Any:
    """Patch 8, no merging; made once."""
    if not MODEL:
        MODEL.append(tiny.model("llava").requires_grad_(False))
    return MODEL[0]


def given(**changes: Any) -> dict[str, Any]:
    """A conversation about one image of 2 × 3 patches, changed."""
    good = {
        "input_ids": torch.tensor([[1, *[IMAGE] * 6, 20, 21]]),
        "pixel_values": torch.zeros(1, 3, 16, 24),
        "image_sizes": torch.tensor([[16, 24]]),
        "attention_mask": torch.ones(1, 9, dtype=torch.int64),
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


CACHE = tuple((torch.zeros(1, 2, 4, 24), torch.zeros(1, 2, 4, 24)) for _ in range(3))
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("fewer-images", {"pixel_values": None, "image_sizes": None}, InputError, "6 image tokens.*no pixel_values"),
    ("smaller-image", {"image_sizes": torch.tensor([[8, 24]])}, InputError, "6 image tokens.*3 features"),
    ("more-images", {"pixel_values": torch.zeros(2, 3, 16, 24), "image_sizes": None}, InputError, "6 image.*12 feat"),
    ("no-tokens", {"input_ids": torch.tensor([[1, 20, 21]]), "attention_mask": None}, InputError, "0 image tokens"),
    ("sizes-count", {"image_sizes": torch.tensor([[16, 24], [16, 24]])}, InputError, "1 images.*2 in image_sizes"),
    ("sizes-larger", {"image_sizes": torch.tensor([[16, 32]])}, InputError, "image 0: image_sizes says 16×32"),
    ("sizes-nothing", {"image_sizes": torch.tensor([[0, 24]])}, InputError, "at least one patch of 8"),
    ("sizes-shape", {"image_sizes": torch.tensor([16, 24])}, InputError, "image_sizes"),
    ("sizes-list", {"image_sizes": [[16, 24, 3]]}, InputError, "image_sizes"),
    ("pixels-shape", {"pixel_values": torch.zeros(3, 16, 24)}, InputError, r"\(images, 3, height, width\)"),
    ("pixels-none", {"pixel_values": torch.zeros(0, 3, 16, 24), "image_sizes": None}, InputError, "no image"),
    ("vocabulary", {"input_ids": torch.tensor([[1, 512]]), "attention_mask": None}, ContextError, "id 512.*of 512"),
    ("negative-id", {"input_ids": torch.tensor([[1, -3]]), "attention_mask": None}, ContextError, "id -3"),
    ("float-ids", {"input_ids": torch.zeros(1, 3)}, InputError, "must be integers"),
    ("flat-ids", {"input_ids": torch.tensor([1, 2])}, InputError, r"\(batch, positions\)"),
    ("nothing", {"input_ids": None}, InputError, "exactly one of input_ids and inputs_embeds"),
    ("both", {"inputs_embeds": torch.zeros(1, 9, 80)}, InputError, "exactly one of input_ids and inputs_embeds"),
    ("mask-length", {"attention_mask": torch.ones(1, 8)}, InputError, r"\(1, 8\), expected \(1, 9\)"),
    ("mask-4d", {"attention_mask": torch.ones(1, 1, 9, 9)}, UnsupportedError, "4 dimensions"),
    ("mask-empty", {"attention_mask": torch.zeros(1, 9)}, InputError, "leaves no position"),
    ("positions", {"position_ids": torch.zeros(1, 4, dtype=torch.int64)}, InputError, r"\(1, 4\), expected \(1, 9\)"),
    ("cache-position", {"cache_position": torch.arange(1, 10)}, InputError, "from 0 to 8"),
    ("labels", {"labels": torch.zeros(1, 4, dtype=torch.int64)}, InputError, r"\(1, 4\), expected \(1, 9\)"),
    ("labels-beyond", {"labels": torch.full((1, 9), 700)}, ContextError, "700.*512"),
    ("labels-kept", {"labels": torch.zeros(1, 9, dtype=torch.int64), "logits_to_keep": 1}, InputError, "logits_to_keep"),
    ("keep-2d", {"logits_to_keep": torch.zeros(1, 2, dtype=torch.int64)}, InputError, "1-D tensor"),
    ("keep-beyond", {"logits_to_keep": torch.tensor([9])}, InputError, "logits_to_keep"),
    ("keep-float", {"logits_to_keep": torch.tensor([0.5])}, InputError, "logits_to_keep"),
    ("cache-layers", {"past_key_values": CACHE[:2]}, InputError, "2 layers, the model 3"),
    ("cache-kind", {"past_key_values": {"a": 1}}, InputError, "past_key_values"),
    (
        "cache-batch",
        {"past_key_values": tuple((k.repeat(2, 1, 1, 1),) * 2 for k, _ in CACHE)},
        InputError,
        "past_key_values",
    ),
    ("layer", {"vision_feature_layer": 5}, InputError, "outside the tower's 2 layers"),
    ("layers", {"vision_feature_layer": [-1, -2]}, InputError, "names 2 layers of 64"),
    ("layers-none", {"vision_feature_layer": []}, InputError, "vision_feature_layer"),
    ("strategy", {"vision_feature_select_strategy": "cls"}, InputError, "'default' or 'full'"),
    ("unknown", {"pixel_mask": 1}, UnsupportedError, "pixel_mask"),
    ("embeds-flat", {"input_ids": None, "pixel_values": None, "inputs_embeds": torch.zeros(9, 80)}, InputError, "width"),
    ("embeds-width", {"input_ids": None, "pixel_values": None, "inputs_embeds": torch.zeros(1, 9, 8)}, InputError, "80"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "error", "message"), WRONG, ids=[name for name, *_ in WRONG])
def test_the_error_says_what_does_not_fit(
    name: str, changes: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        model()(**given(**changes))


def test_the_good_one_is_good() -> None:
    assert model()(**given()).logits.shape == (1, 9, 512)


def test_images_for_a_text_only_model() -> None:
    text = vitrail.MistralForCausalLM(model().config.text_config)
    with pytest.raises(UnsupportedError, match="pixel_values"):
        text(**given())
    with pytest.raises(InputError, match="text-only"):
        text.encode_images(torch.zeros(1, 3, 16, 24))


def test_a_context_longer_than_the_model() -> None:
    small = tiny.model("llava", text_config={"max_position_embeddings": 8})
    with pytest.raises(ContextError, match="9 positions, the model 8"):
        small(**given())
    first = small(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]))
    with pytest.raises(ContextError, match="9 positions, the model 8"):
        small(input_ids=torch.tensor([[9]]), past_key_values=first.past_key_values)


def test_a_mask_that_changes_what_is_cached() -> None:
    first = model()(input_ids=torch.tensor([[1, 2, 3]]))
    with pytest.raises(InputError, match="cached rows cannot change"):
        model()(
            input_ids=torch.tensor([[4]]), attention_mask=torch.tensor([[0, 1, 1, 1]]),
            past_key_values=first.past_key_values,
        )  # fmt: skip


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    first = model()(input_ids=torch.tensor([[1, 2, 3]]))
    cache = first.past_key_values
    for changes in ({"input_ids": torch.tensor([[600]])}, {"position_ids": torch.zeros(1, 5, dtype=torch.int64)},
                    {"cache_position": torch.tensor([7])}, {"logits_to_keep": torch.tensor([4])}):  # fmt: skip
        with pytest.raises(InputError):
            model()(**{"input_ids": torch.tensor([[4]]), **changes}, past_key_values=cache)
        assert cache.get_seq_length() == 3
        assert cache.length(cache.sequences[0]) == 3


def test_what_is_not_supported_says_so() -> None:
    for call in (lambda: model().prune_heads({0: [1]}), lambda: model().push_to_hub("name"),
                 lambda: model().gradient_checkpointing_enable({"use_reentrant": True})):  # fmt: skip
        with pytest.raises(UnsupportedError, match=r"prune_heads|push_to_hub|use_reentrant"):
            call()
    with pytest.raises(InputError, match="LlavaConfig, got MistralConfig"):
        vitrail.LlavaForConditionalGeneration(vitrail.MistralConfig())
