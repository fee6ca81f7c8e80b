"""Methods that the documents say every model inherits, and the ones that Vitrail refuses by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vitrail
from tests.parity.pairs import TEXTS, VISION_LANGUAGE, Pair, Shape, build, close, images, inputs

LLAVA = VISION_LANGUAGE[0]
MISTRAL3, TIED = (s for s in VISION_LANGUAGE if s.name in ("small-3", "tied"))
SHAPES = [LLAVA, MISTRAL3, TIED, TEXTS[0]]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


@pytest.fixture
def pair(shape: Shape) -> Pair:
    return build(shape)


@pytest.fixture
def model(shape: Shape) -> Any:
    """Ours alone, one for all tests that leave it as it is."""
    return built(shape.name)


@cache
def built(name: str) -> Any:
    return build(next(shape for shape in SHAPES if shape.name == name)).ours


def logits(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**given).logits
    return found


# --- embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"new_num_tokens": 131}, 131),
        ({"new_num_tokens": 80}, 80),
        ({"new_num_tokens": 100, "pad_to_multiple_of": 64}, 128),
        ({"pad_to_multiple_of": 64}, 128),
        ({"new_num_tokens": 131, "mean_resizing": False}, 131),
        ({}, 96),
    ],
    ids=str,
)
def test_resize_token_embeddings(pair: Pair, shape: Shape, arguments: dict[str, Any], rows: int) -> None:
    given = inputs(shape, None)
    given["input_ids"] = given["input_ids"].clamp(max=79)
    before = logits(pair.ours, given)
    returned = pair.ours.resize_token_embeddings(**arguments)
    pair.theirs.resize_token_embeddings(**arguments)
    assert returned is pair.ours.get_input_embeddings()
    assert {k: v.shape for k, v in pair.ours.state_dict().items()} == {
        k: v.shape for k, v in pair.theirs.state_dict().items()
    }
    assert pair.ours.config.get_text_config().vocab_size == rows
    assert pair.theirs.config.get_text_config().vocab_size == rows
    after, theirs = logits(pair.ours, given), logits(pair.theirs, given)
    assert after.shape[-1] == rows
    old = min(rows, 96)
    close(after[..., :old], before[..., :old], "old ids")
    close(after[..., :old], theirs[..., :old], "old ids of the reference")
    tied = pair.ours.get_output_embeddings().weight is pair.ours.get_input_embeddings().weight
    assert tied == (shape is TIED)


def test_new_rows_are_the_mean_of_the_old(pair: Pair) -> None:
    old = pair.ours.get_input_embeddings().weight.detach().clone()
    table = pair.ours.resize_token_embeddings(100).weight.detach()
    close(table[96:], old.mean(dim=0).expand(4, -1), "new rows")
    reference = pair.theirs.resize_token_embeddings(100).weight.detach()
    close(table[96:], reference[96:], "the reference draws closely around the mean", bound=1e-2)


def test_a_resized_model_is_saved_and_loaded(pair: Pair, shape: Shape, tmp_path: Path) -> None:
    pair.ours.resize_token_embeddings(101)
    pair.ours.save_pretrained(tmp_path)
    given = inputs(shape, None)
    ours, theirs = (
        getattr(lib, type(pair.ours).__name__).from_pretrained(tmp_path) for lib in (vitrail, transformers)
    )
    assert torch.equal(logits(ours, given), logits(pair.ours, given))
    close(logits(ours, given), logits(theirs, given), "logits")


def test_get_and_set_embeddings(pair: Pair, shape: Shape) -> None:
    model = pair.ours
    given = inputs(shape, None)
    assert torch.equal(model.get_input_embeddings().weight, pair.theirs.get_input_embeddings().weight)
    assert torch.equal(model.get_output_embeddings().weight, pair.theirs.get_output_embeddings().weight)
    assert model.get_output_embeddings() is model.lm_head
    other = nn.Embedding(96, 40)
    model.set_input_embeddings(other)
    pair.theirs.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    close(logits(model, given), logits(pair.theirs, given), "logits")
    head = nn.Linear(40, 96, bias=False)
    model.set_output_embeddings(head)
    pair.theirs.set_output_embeddings(head)
    close(logits(model, given), logits(pair.theirs, given), "logits")


def test_get_decoder(pair: Pair) -> None:
    assert isinstance(pair.ours.get_decoder(), vitrail.MistralModel)
    ours, theirs = pair.ours.get_decoder().state_dict(), pair.theirs.get_decoder().state_dict()
    assert ours.keys() == theirs.keys()


# --- numbers and places -----------------------------------------------------------------------------------


def test_num_parameters(pair: Pair, shape: Shape) -> None:
    pair.ours.lm_head.weight.requires_grad_(False)
    pair.theirs.lm_head.weight.requires_grad_(False)
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert pair.ours.num_parameters(**options) == pair.theirs.num_parameters(**options)
    assert pair.ours.num_parameters() == sum(p.numel() for p in pair.ours.parameters())
    if shape.family != "mistral":
        tower = pair.ours.vision_tower, pair.theirs.model.vision_tower
        assert tower[0].num_parameters() == tower[1].num_parameters()


def test_device_and_dtype(pair: Pair) -> None:
    model = pair.ours
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.half().dtype == torch.float16 and model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.to("meta").device == torch.device("meta")


@pytest.fixture
def counted(pair: Pair) -> Iterator[list[int]]:
    """How often the first block of the decoder has been computed, as a list that grows."""
    calls: list[int] = []
    block = pair.ours.get_decoder().layers[0].input_layernorm
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_gradient_checkpointing(pair: Pair, shape: Shape, counted: list[int]) -> None:
    """Blocks are computed again in the backward pass, and gradients stay the reference's."""
    model = pair.ours.train()
    given = inputs(shape, None)
    model(**given, labels=given["input_ids"]).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(counted) == 1 and not model.is_gradient_checkpointing
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    output = model(**given, labels=given["input_ids"])
    assert output.past_key_values is None
    output.loss.backward()
    assert len(counted) == 3
    for name, parameter in model.named_parameters():
        if name in plain:
            close(parameter.grad, plain[name], name)
    model.gradient_checkpointing_disable()
    model(**given)
    assert len(counted) == 4
    model.eval().gradient_checkpointing_enable()
    with torch.no_grad():
        model(**given)
    assert len(counted) == 5


def test_what_checkpointing_cannot_do_is_named(model: Any) -> None:
    with pytest.raises(vitrail.UnsupportedError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(vitrail.UnsupportedError, match="determinism_check"):
        model.gradient_checkpointing_enable({"determinism_check": "none"})


# --- save and load ----------------------------------------------------------------------------------------


def test_save_and_load_again(pair: Pair, shape: Shape, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path)
    again = type(pair.ours).from_pretrained(tmp_path)
    given = inputs(shape, None)
    assert torch.equal(logits(again, given), logits(pair.ours, given))
    expected = pair.ours.config.to_dict()
    expected.pop(
        "tie_word_embeddings", None
    )  # an outer flag that means nothing; a loaded one tells the truth
    found = again.config.to_dict()
    assert found.pop("tie_word_embeddings", True) == (shape is TIED)
    assert found == expected
    assert not again.training and again.name_or_path == str(tmp_path)
    narrow = type(pair.ours).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert type(pair.ours).from_pretrained(tmp_path, torch_dtype="float16").dtype == torch.float16


def test_a_model_from_a_configuration(model: Any) -> None:
    made = type(model)(model.config)
    assert made.config is model.config
    deviation = made.get_input_embeddings().weight.detach().std()
    assert 0.018 < float(deviation) < 0.022


# --- what is refused --------------------------------------------------------------------------------------


def test_unsupported_methods_name_themselves(model: Any, tmp_path: Path) -> None:
    with pytest.raises(vitrail.UnsupportedError, match="prune_heads"):
        model.prune_heads({0: [1]})
    for thing in (model, model.config, vitrail.PixtralImageProcessor()):
        with pytest.raises(vitrail.UnsupportedError, match="push_to_hub"):
            thing.push_to_hub("name")
        with pytest.raises(vitrail.UnsupportedError, match="push_to_hub"):
            thing.save_pretrained(tmp_path, push_to_hub=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"safe_serialization": False}, "safe_serialization"),
        ({"variant": "fp16"}, "variant"),
        ({"save_function": torch.save, "safe_serialization": False}, "safe_serialization"),
        ({"repo_id": "name"}, "repo_id"),
    ],
    ids=lambda given: (
        given if isinstance(given, str) else "given"
    ),  # a function's str is another in each process
)
def test_unsupported_arguments_of_save_pretrained(
    model: Any, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(vitrail.UnsupportedError, match=word):
        model.save_pretrained(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"load_in_4bits": True}, "load_in_4bits"),
        ({"attn_implementation": "flash_attention_9"}, "flash_attention_9"),
        ({"load_in_4bit": True}, r"BitsAndBytesConfig\(load_in_4bit=True\)"),
        ({"load_in_8bit": True}, r"BitsAndBytesConfig\(load_in_8bit=True\)"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes"),
        ({"use_safetensors": False}, "use_safetensors"),
    ],
    ids=str,
)
def test_unsupported_arguments_of_from_pretrained(
    model: Any, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(vitrail.UnsupportedError, match=word):
        type(model).from_pretrained(tmp_path, **options)


@pytest.mark.parametrize(
    "name",
    [
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
        {"text_config": "flash_attention_2", "": "sdpa"},
    ],
    ids=str,
)
def test_attention_of_another_name_is_ours_with_one_warning(
    model: Any, shape: Shape, tmp_path: Path, name: Any
) -> None:
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="attn_implementation=.* is Vitrail's own exact attention") as seen:
        named = type(model).from_pretrained(tmp_path, attn_implementation=name, load_in_4bit=False)
    assert len(seen) == 1
    given = inputs(shape, None)
    assert torch.equal(logits(named, given), logits(model, given))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids"),
        ({"max_new_token": 3}, "max_new_token"),
        ({"head_mask": None}, "head_mask"),
        ({"negative_prompt_ids": torch.tensor([[1]])}, "negative_prompt_ids"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_unsupported_and_unknown_arguments_of_generate(
    model: Any, shape: Shape, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(vitrail.VitrailError, match=word):
        model.generate(input_ids=inputs(shape, None)["input_ids"], **options)


def test_image_features_of_one_image(pair: Pair, shape: Shape) -> None:
    if shape.family == "mistral":
        with pytest.raises(vitrail.InputError, match="text-only"):
            pair.ours.encode_images(torch.zeros(1, 3, 16, 16), None)
        return
    given = images(shape)
    height, width = given["image_sizes"][0].tolist()
    alone = pair.ours.get_image_features(given["pixel_values"][:1, :, :height, :width])
    close(alone[0].detach(), pair.ours.get_image_features(**given)[0].detach(), "features")
