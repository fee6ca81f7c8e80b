"""Every number of every configuration has a largest value: a wrong one is one sentence, at once, and nothing is built."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail.arguments import short as shown
from vitrail.configs import CONFIG_TYPES, read_config
from vitrail.configs.fields import CELL_LIMIT, LIMITS
from vitrail.configs.generation import GenerationConfig
from vitrail.configs.params import config_from_params
from vitrail.configs.params_writer import params_from_config
from vitrail.errors import VitrailError
from vitrail.images.grid import image_grid
from vitrail.model.room import parameters

HUGE = [2**31, 2**63, 10**5000, -(2**63), -(10**5000), float("inf"), float("nan"), 1e300, 1.5, -7]
ODD = ["9" * 100_000, [2**63] * 100_000, [[]], {"a": 10**5000}]
# Numbers with fractions, which float32 holds up to 1e38.
REAL = [
    "rope_theta",
    "beta",
    "beta_fast",
    "beta_slow",
    "alpha",
    "mscale",
    "mscale_all_dim",
    "llama_4_scaling_beta",
]
FAMILIES = ["llava", "mistral3", "ministral3"]


def numbers(data: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every number in a configuration, its parts included."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, name))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, name)


def put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def attempt(make: Any) -> str | None:
    """What a refusal says; None where there is none. Any other error fails the test."""
    try:
        make()
    except VitrailError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_a_config_huge_value_refused(family: str) -> None:
    data = tiny.config(family).to_dict()
    kind = CONFIG_TYPES[data["model_type"]]
    paths = list(numbers(data))
    assert len(paths) > 25
    for path in paths:
        for value in HUGE + ODD:
            said = attempt(lambda path=path, value=value: kind.from_dict(put(data, path, value)))
            assert said is None or (len(said) < 600 and "\n" not in said), path
            if isinstance(value, int) and value > (2**100 if path[-1] in REAL else 2**62):
                assert said is not None, f"{path} takes {shown(value)}"


@pytest.mark.parametrize("name", sorted(CONFIG_TYPES))
def test_keywords_of_a_config_huge_value_refused(name: str) -> None:
    kind = CONFIG_TYPES[name]
    for keyword, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for value in HUGE + ODD:
            said = attempt(lambda keyword=keyword, value=value: kind(**{keyword: value}))
            if isinstance(value, int) and value > (2**100 if keyword in REAL else 2**30):
                assert said is not None, f"{keyword} takes {shown(value)}"


def test_attributes_set_later_model_refuses_before_it_builds() -> None:
    for path in numbers(tiny.config("mistral3").to_dict()):
        if path[-1] in REAL or "rope_parameters" in path:
            continue
        config = tiny.config("mistral3")
        part = getattr(config, path[0]) if len(path) == 2 else config
        setattr(part, path[-1], 2**63)
        with torch.device("meta"), pytest.raises(VitrailError, match=path[-1]):
            vitrail.Mistral3ForConditionalGeneration(config)


def test_numbers_of_params_json_huge_value_refused() -> None:
    data = params_from_config(tiny.config("mistral3"))
    for path in numbers(data):
        for value in HUGE + ODD:
            said = attempt(
                lambda path=path, value=value: CONFIG_TYPES["mistral3"].from_dict(
                    config_from_params(put(data, path, value), "params.json")
                )
            )
            assert said is None or len(said) < 600, path
            if isinstance(value, int) and value > (2**100 if path[-1] in REAL else 2**62):
                assert said is not None, f"{path} takes {shown(value)}"


def test_generation_options_huge_value_refused_or_kept() -> None:
    kept = {"max_time", "seed"}  # a wait of any length, and 64 bits of randomness
    names = [
        *[
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "top_k",
            "no_repeat_ngram_size",
            "prefill_chunk_size",
        ],
        *[
            "num_return_sequences",
            "bos_token_id",
            "pad_token_id",
            "eos_token_id",
            "temperature",
            "repetition_penalty",
            "top_p",
            "min_p",
        ],
        *kept,
    ]
    for name in names:
        for value in HUGE + ODD:
            said = attempt(lambda name=name, value=value: GenerationConfig.from_dict({name: value}))
            assert said is None or len(said) < 400
            if isinstance(value, int) and value > 2**64:
                assert said is not None, name
            if value == 2**63:
                assert (said is None) == (name in kept | {"temperature", "repetition_penalty"}), name


FILES = [
    ("generation_config.json", "eos_token_id", 2**63),
    ("generation_config.json", "max_new_tokens", 2**40),
    ("preprocessor_config.json", "patch_size", {"height": 30_000, "width": 30_000}),
    ("preprocessor_config.json", "size", {"longest_edge": 2**63}),
    ("preprocessor_config.json", "image_std", [1e-1, 10**400, 1.0]),
    ("preprocessor_config.json", "rescale_factor", 1e300),
    ("processor_config.json", "patch_size", 30_000),
    ("processor_config.json", "spatial_merge_size", 65),
    ("processor_config.json", "spatial_merge_size", 2**31),
    ("tokenizer_config.json", "model_max_length", float("inf")),
    ("tokenizer_config.json", "model_max_length", float("nan")),
    ("tokenizer_config.json", "model_max_length", -1),
]


@pytest.mark.parametrize(("file", "name", "value"), FILES)
def test_files_beside_config_huge_value_is_one_sentence(
    tmp_path: Path, file: str, name: str, value: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.DATA / tiny.FAMILIES["mistral3"], folder)
    read_config(folder)
    path = folder / file
    told = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**told, name: value}), encoding="utf-8")

    def use() -> None:
        processor = vitrail.AutoProcessor.from_pretrained(folder)
        processor(text="[IMG]", images=tiny.image(20, 20))
        GenerationConfig.from_pretrained(folder)

    said = attempt(use)
    assert said is not None
    assert "\n" not in said
    assert len(said) < 400


def test_processor_from_code_limits_hold() -> None:
    processor = vitrail.AutoProcessor.from_pretrained(tiny.DATA / tiny.FAMILIES["mistral3"])
    parts = (processor.image_processor, processor.tokenizer)
    for changed in (
        {"patch_size": 2**31},
        {"spatial_merge_size": -1},
        {"patch_size": 1024, "spatial_merge_size": 3},
    ):
        with pytest.raises(VitrailError, match="must be at"):
            vitrail.PixtralProcessor(*parts, **changed)
    with pytest.raises(VitrailError, match=r"patch_size · merge is at most 2,048"):
        image_grid(20, 20, patch_size=1024, merge=3)


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_model_from_code_larger_than_memory_is_refused_before_it_is_built(family: str) -> None:
    """Random weights of a configuration within all limits: one sentence, not a process that the system ends."""
    text = {"hidden_size": 1 << 17, "intermediate_size": 1 << 20, "num_hidden_layers": 1024}
    config = tiny.config(family, text_config=text)
    for make in (
        lambda: vitrail.AutoModelForImageTextToText.from_config(config),
        lambda: vitrail.MistralForCausalLM(config.text_config),
    ):
        with pytest.raises(VitrailError, match=r"needs .* of memory on cpu, and .* is free"):
            make()
    small = tiny.config(family)
    model = tiny.model(family)
    assert 0.7 * model.num_parameters() < parameters(small) <= model.num_parameters()


def test_limits_published_geometries_far_below() -> None:
    largest = {
        "hidden_size": 12288,
        "num_hidden_layers": 88,
        "vocab_size": 131072,
        "intermediate_size": 32768,
    }
    assert all(LIMITS[name] >= 10 * value for name, value in largest.items())
    assert CELL_LIMIT >= 2 * 16 * 14
