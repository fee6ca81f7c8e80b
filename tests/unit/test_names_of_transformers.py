"""Names of transformers that code around a model imports and calls: they do the same, or importing them says what to use."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import vitrail
from tests.parity.pairs import TEXTS, VISION_LANGUAGE, Shape, build, inputs
from vitrail._elsewhere import ELSEWHERE

LLAVA, TEXT = VISION_LANGUAGE[0], TEXTS[0]
MISTRAL3 = next(shape for shape in VISION_LANGUAGE if shape.name == "small-3")
IDS = torch.tensor([[20, 21, 22, 23]])


@pytest.fixture(params=[LLAVA, MISTRAL3, TEXT], ids=str, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param).ours


# --- models -----------------------------------------------------------------------------------------------


def test_can_generate_is_asked_of_the_class_and_the_model(model: Any) -> None:
    assert model.can_generate() is type(model).can_generate() is True
    assert model.model.can_generate() is vitrail.PixtralVisionModel.can_generate() is False


def test_base_model_is_the_one_without_its_head(model: Any) -> None:
    assert model.base_model is model.model and model.model.base_model is model.model
    assert (model.framework, model.supports_gradient_checkpointing) == ("pt", True)


@pytest.mark.parametrize("shape", [LLAVA, TEXT], ids=str)
def test_memory_footprint_equals_the_reference(shape: Shape) -> None:
    pair = build(shape)
    assert pair.ours.get_memory_footprint(return_buffers=False) == pair.theirs.get_memory_footprint(
        return_buffers=False
    )
    assert pair.ours.half().get_memory_footprint() == 2 * pair.ours.num_parameters()


def test_memory_footprint_counts_packed_weights(tmp_path: Path) -> None:
    model = build(TEXT).ours
    model.save_pretrained(tmp_path)
    four = vitrail.MistralForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=vitrail.BitsAndBytesConfig(load_in_4bit=True)
    )
    packed = sum(m.packed_parameters for m in four.modules() if hasattr(m, "packed_parameters"))
    assert packed > 0
    plain = sum(p.numel() * 4 for p in four.parameters())
    assert plain + packed // 2 <= four.get_memory_footprint(return_buffers=False) < plain + packed


def test_input_gradients_are_enabled_and_disabled(model: Any) -> None:
    table = model.get_input_embeddings()
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    assert not table(IDS).requires_grad
    model.enable_input_require_grads()
    model.enable_input_require_grads()
    assert table(IDS).requires_grad and model(IDS).logits.requires_grad
    model.disable_input_require_grads()
    assert not table(IDS).requires_grad
    for parameter, before in zip(model.parameters(), wanted, strict=True):
        parameter.requires_grad_(before)


def test_positions_have_no_table(model: Any) -> None:
    with pytest.raises(vitrail.UnsupportedError, match="rotary"):
        model.resize_position_embeddings(7)
    name = "model.norm.weight" if hasattr(model.model, "norm") else "model.language_model.norm.weight"
    assert model.get_parameter_or_buffer(name) is dict(model.named_parameters())[name]
    with pytest.warns(UserWarning, match="flash_attention_2"):
        model.set_attn_implementation("flash_attention_2")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [LLAVA, TEXT], ids=str)
def test_transition_scores_equal_the_reference(shape: Shape, normalize: bool) -> None:
    pair = build(shape)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
    ours = pair.ours.generate(IDS, output_scores=True, **options)
    theirs = pair.theirs.generate(IDS, output_scores=True, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    found, expected = (
        m.compute_transition_scores(o.sequences, o.scores, normalize_logits=normalize)
        for m, o in ((pair.ours, ours), (pair.theirs, theirs))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scores": None}, "output_scores=True"),
        ({"scores": ()}, "output_scores=True"),
        ({"sequences": [[1, 2]]}, "sequences must be ids"),
        ({"sequences": IDS[:, :1]}, "sequences must be ids"),
        ({"sequences": IDS.repeat(2, 1)}, "2 rows"),
        ({"beam_indices": IDS}, "beam_indices"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_transition_scores_of_wrong_kinds_are_refused(model: Any, change: dict[str, Any], word: str) -> None:
    given = {"sequences": IDS, "scores": (torch.zeros(1, 96), torch.zeros(1, 96)), **change}
    with pytest.raises(vitrail.VitrailError, match=word):
        model.compute_transition_scores(**given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_model_of_a_configuration_has_its_type(model: Any, dtype: Any) -> None:
    auto = (
        vitrail.AutoModelForCausalLM
        if type(model).__name__ == "MistralForCausalLM"
        else vitrail.AutoModelForImageTextToText
    )
    assert auto.from_config(model.config, dtype=dtype).dtype is torch.bfloat16
    config = type(model.config).from_dict(model.config.to_dict(), dtype=dtype)
    assert auto.from_config(config).dtype is torch.bfloat16
    assert (
        auto.from_config(config, torch_dtype=torch.float32, attn_implementation="sdpa").dtype is torch.float32
    )
    assert type(vitrail.AutoModel.from_config(config)) is type(model.model)


def test_older_and_newer_names_of_the_auto_class(tmp_path: Path) -> None:
    build(LLAVA).ours.save_pretrained(tmp_path)
    for auto in (vitrail.AutoModelForVision2Seq, vitrail.AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(tmp_path)) is vitrail.LlavaForConditionalGeneration


# --- generation -------------------------------------------------------------------------------------------


def test_generation_mode(model: Any) -> None:
    theirs = transformers.GenerationConfig
    for options in ({}, {"do_sample": True}):
        ours = vitrail.GenerationConfig(**options).get_generation_mode()
        assert ours == theirs(**options).get_generation_mode().value
    with pytest.raises(vitrail.UnsupportedError, match="num_beams"):
        vitrail.GenerationConfig(num_beams=2).get_generation_mode()


class _SecondBest(vitrail.LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, scores.argmax(1, keepdim=True), -1e9)


def test_processors_and_criteria_in_lists_equal_the_reference() -> None:
    pair = build(TEXT)
    given = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0}
    made = []
    for library, model in ((vitrail, pair.ours), (transformers, pair.theirs)):
        made.append(
            model.generate(
                IDS,
                logits_processor=library.LogitsProcessorList([_SecondBest()]),
                stopping_criteria=library.StoppingCriteriaList(
                    [library.MaxLengthCriteria(11), library.generation.EosTokenCriteria(3)]
                    if library is transformers
                    else [vitrail.MaxLengthCriteria(11), vitrail.EosTokenCriteria(3)]
                ),
                **given,
            )
        )
    assert torch.equal(made[0], made[1]) and made[0].shape == (1, 11)
    assert not torch.equal(made[0], pair.ours.generate(IDS, **given)[:, :11])


def test_criteria_say_what_ends() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    assert vitrail.EosTokenCriteria([4, 9])(ids, None).tolist() == [False, True]
    assert vitrail.MaxLengthCriteria(2)(ids, None).all() and not vitrail.MaxLengthCriteria(3)(ids, None).any()
    assert vitrail.MaxTimeCriteria(0.0, initial_timestamp=time.time() - 1)(ids, None).all()
    assert not vitrail.MaxTimeCriteria(60.0)(ids, None).any()
    both = vitrail.StoppingCriteriaList([vitrail.EosTokenCriteria(2), vitrail.MaxLengthCriteria(5)])
    assert both(ids, None).tolist() == [True, False] and both.max_length == 5
    assert vitrail.StoppingCriteriaList().max_length is None

    class Letters:
        def decode(self, ids: Any, **options: Any) -> str:
            return "".join(chr(96 + int(i)) for i in ids)

    assert vitrail.StopStringCriteria(Letters(), "ab")(ids, None).tolist() == [True, False]  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        vitrail.StoppingCriteria()  # type: ignore[abstract]


@pytest.mark.parametrize("shape", [LLAVA, TEXT], ids=str)
def test_dynamic_cache_is_filled_as_the_references_own(shape: Shape) -> None:
    pair = build(shape)
    ours, theirs = vitrail.DynamicCache(), transformers.DynamicCache()
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    first = pair.ours.generate(IDS, past_key_values=ours, **options)
    assert torch.equal(first, pair.theirs.generate(IDS, past_key_values=theirs, **options))
    assert len(ours) == len(theirs.layers) and ours.get_seq_length() == theirs.get_seq_length() == 6
    for (k, v), layer in zip(ours, theirs.layers, strict=True):
        torch.testing.assert_close(k, layer.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(v, layer.values, rtol=1e-4, atol=1e-5)
    again = pair.ours.generate(first, past_key_values=ours, **options)
    assert torch.equal(again, pair.ours.generate(first, **options))


def test_dynamic_cache_changes_rows_and_lengths_as_the_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = [tuple(torch.randn(2, 3, 5, 4, generator=generator) for _ in range(2)) for _ in range(2)]
    steps: list[Callable[[Any], Any]] = [
        lambda cache: cache.crop(4),
        lambda cache: cache.crop(-1),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([3, 1])),
        lambda cache: cache.update(torch.ones(2, 3, 1, 4), torch.zeros(2, 3, 1, 4), 1),
    ]
    caches = [vitrail.DynamicCache(pairs), transformers.DynamicCache(pairs)]
    for step in steps:
        for cache in caches:
            step(cache)
        assert caches[0].get_seq_length(1) == caches[1].get_seq_length(1)
        for (k, v), layer in zip(caches[0], caches[1].layers, strict=True):
            assert torch.equal(k, layer.keys) and torch.equal(v, layer.values)
    again = vitrail.DynamicCache.from_legacy_cache(caches[0].to_legacy_cache())
    assert all(torch.equal(a, b) for a, b in zip(again[0], caches[0][0], strict=True))
    with pytest.raises(vitrail.InputError, match="cannot take"):
        again.update(torch.ones(3, 3, 1, 4), torch.ones(3, 3, 1, 4), 0)
    with pytest.raises(vitrail.InputError, match="takes keys and values as tensors"):
        again.update([1], [2], 0)  # type: ignore[arg-type]
    with pytest.raises(vitrail.UnsupportedError, match="offloading"):
        vitrail.DynamicCache(offloading=True)
    again.reset()
    assert len(again) == again.get_seq_length() == 0


def test_set_seed_fixes_every_generator() -> None:
    drawn = []
    for library in (vitrail, vitrail, transformers):
        library.set_seed(5)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1] == drawn[2]
    for wrong in (-1, 2**32, "7", None, True):
        with pytest.raises(vitrail.InputError, match="seed must be"):
            vitrail.set_seed(wrong)  # type: ignore[arg-type]


def test_infer_device_is_where_torch_computes() -> None:
    assert vitrail.infer_device() == transformers.infer_device()


# --- what is not here -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_importing_a_name_that_is_elsewhere_says_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match=f"vitrail has no {name}: "):
        exec(f"from vitrail import {name}")
    assert name not in vitrail.__all__


def test_names_that_are_elsewhere_are_transformers_and_point_at_what_is_here() -> None:
    import re

    # Of transformers 5, or of versions before 4.57.
    fifth = {"TokenizersBackend", "PixtralImageProcessorPil", "Ministral3ForCausalLM", "Ministral3Model"}
    fifth |= {"SinkCache", "HybridCache", "LogitsWarper"}
    for name, advice in ELSEWHERE.items():
        assert name in fifth or hasattr(transformers, name), name
        for named in re.findall(r"vitrail\.(\w+)", advice):
            assert named in vitrail.__all__, named


def test_hooks_of_input_gradients_are_no_part_of_a_saved_model(tmp_path: Path) -> None:
    model = build(TEXT).ours
    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
    again = vitrail.MistralForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs(TEXT, None)).logits, model(**inputs(TEXT, None)).logits)
    assert isinstance(again, nn.Module)


@pytest.mark.parametrize("name", ["id2label", "num_labels", "num_beams", "torchscript", "base_model_tp_plan"])
def test_attributes_of_configurations_that_the_family_has_no_use_for_are_absent(name: str) -> None:
    assert hasattr(transformers.MistralConfig(), name)
    assert not hasattr(vitrail.MistralConfig(), name)
    assert not hasattr(vitrail.MistralConfig(), "nonsense")


@pytest.mark.parametrize("name", ["dequantize", "init_weights", "get_extended_attention_mask", "tp_plan"])
def test_methods_of_models_that_vitrail_does_not_have_are_absent(model: Any, name: str) -> None:
    assert hasattr(transformers.MistralForCausalLM, name)
    assert not hasattr(model, name)


def test_outputs_are_dicts_whose_fields_stay() -> None:
    output = vitrail.ModelOutput()
    with pytest.raises(KeyError):
        output["loss"] = 1
    with pytest.raises(vitrail.VitrailError, match="cannot be taken away"):
        output.clear()
    made = vitrail.CausalLMOutputWithPast(logits=torch.zeros(1))
    made.loss = torch.ones(1)
    assert list(made) == ["loss", "logits"]
