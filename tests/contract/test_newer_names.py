"""Names of parameters in transformers 5.24: each call takes them, or refuses them by name and docs/differences.md says so.

The extra `test` holds transformers below 5, so the newer names are kept in signatures_5_24.json as a list of facts.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from tests.parity.pairs import TEXTS, VISION_LANGUAGE, build, images, inputs

ROOT = Path(__file__).parents[2]
NAMES: dict[str, list[str]] = json.loads(Path(__file__).with_name("signatures_5_24.json").read_text("utf-8"))[
    "names"
]
SHAPES = {
    "Llava": VISION_LANGUAGE[0],
    "Mistral3": next(shape for shape in VISION_LANGUAGE if shape.name == "small-3"),
    "Mistral": TEXTS[0],
    "Pixtral": VISION_LANGUAGE[0],
}
IDS = torch.tensor([[20, 21, 22]])
CHAT = [{"role": "user", "content": "hello"}]
ONE = torch.ones(1, dtype=torch.int64)

# A value that asks for something, for each name that has another than True.
VALUES: dict[str, Any] = {
    # forward
    "cu_seq_lens_q": ONE, "cu_seq_lens_k": ONE, "seq_idx": ONE, "max_length_q": 3, "max_length_k": 3,
    "is_causal": False, "num_items_in_batch": ONE, "return_dict": False, "use_cache": False, "logits_to_keep": 1,
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "position_ids": torch.arange(3)[None],
    "attention_mask": torch.ones(1, 3, dtype=torch.int64), "labels": IDS, "inputs_embeds": None,
    # from_pretrained and save_pretrained
    "attn_implementation": "sdpa", "device_map": "cpu", "dtype": "float32", "torch_dtype": "float32",
    "revision": "main", "cache_dir": None, "token": False, "config": None, "quantization_config": None,
    "generation_config": None, "adapter_kwargs": {"a": 1}, "adapter_name": "x", "subfolder": "x", "variant": "x",
    "gguf_file": "x", "tp_size": 2, "tp_plan": "auto", "proxies": {"https": "x"}, "max_memory": {0: "1GB"},
    "offload_folder": "x", "state_dict": {}, "key_mapping": {"a": "b"}, "kernel_config": {"a": "b"},
    "fusion_config": {"a": True}, "experts_implementation": "eager", "commit_message": "x", "repo_id": "x",
    "max_shard_size": "1GB", "use_safetensors": True, "filename_prefix": "x",
    # generate and its configuration
    "generation_config ": None, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "top_h": 0.4,
    "typical_p": 0.5, "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "max_length": 9, "max_new_tokens": 1,
    "min_length": 1, "min_new_tokens": 1, "max_time": 9.0, "stop_strings": None, "num_return_sequences": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "prefill_chunk_size": 2, "num_beams": 2,
    "num_beam_groups": 2, "cache_implementation": "dynamic", "assistant_confidence_threshold": 0.3,
    "assistant_lookbehind": 3, "target_lookbehind": 3, "max_matching_ngram_size": 2, "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "constant", "length_penalty": 2.0, "diversity_penalty": 0.5,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "encoder_repetition_penalty": 1.5, "penalty_alpha": 0.5,
    "encoder_no_repeat_ngram_size": 2, "guidance_scale": 2.0, "bad_words_ids": [[1]], "suppress_tokens": [1],
    "begin_suppress_tokens": [1], "sequence_bias": {(1,): 2.0}, "forced_bos_token_id": 1, "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": (1, 1.5), "dola_layers": "high", "prompt_lookup_num_tokens": 2,
    "assistant_early_exit": 2, "decoder_start_token_id": 1, "force_words_ids": [[1]], "max_cache_len": 9,
    "transformers_version": "5.24.0", "cache_config": {"a": 1}, "watermarking_config": {"a": 1},
    "compile_config": {"a": 1}, "continuous_batching_config": {"a": 1}, "speculation_type": "x",
    "assistant_ensemble_weight": 0.5, "custom_generate": "x", "streamer": None, "logits_processor": [],
    "stopping_criteria": [], "prefix_allowed_tokens_fn": None, "negative_prompt_ids": IDS,
    "negative_prompt_attention_mask": IDS, "assistant_model": object(), "assistant_tokenizer": object(),
    # processors and tokenizers
    "audio": [0.0], "videos": ["x"], "text_pair": "b", "text_target": "b", "text_pair_target": "b", "padding": True,
    "padding_side": "left", "stride": 1, "pad_to_multiple_of": 2, "return_tensors": "pt", "patch_size": 8,
    "size": {"longest_edge": 64}, "crop_size": {"height": 8, "width": 8}, "pad_size": {"height": 8, "width": 8},
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.5, "resample": 3,
    "data_format": "channels_first", "input_data_format": "channels_first", "device": "cpu", "image_seq_length": 4,
    "documents": [], "tools": [], "chat_template": "{{ messages[0].content }}", "processor_kwargs": {"padding": True},
    "tokenizer_kwargs": {"return_special_tokens_mask": True}, "continue_final_message": False, "truncation": False,
    "return_assistant_tokens_mask": True,
}  # fmt: skip
# Requirements that a name has beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "temperature": {"do_sample": True}, "top_k": {"do_sample": True}, "top_p": {"do_sample": True},
    "min_p": {"do_sample": True}, "num_return_sequences": {"do_sample": True},
    "output_scores": {"return_dict_in_generate": True}, "output_logits": {"return_dict_in_generate": True},
    "max_length": {"max_new_tokens": None}, "truncation": {}, "stride": {},
    "return_assistant_tokens_mask": {"tokenize": True, "return_dict": True},
}  # fmt: skip


def cases() -> list[tuple[str, str]]:
    return [(where, name) for where, names in NAMES.items() for name in names]


@cache
def model_of(name: str) -> Any:
    return build(next(shape for family, shape in SHAPES.items() if name.startswith(family))).ours


@cache
def folder() -> Path:
    import tempfile

    return tiny.write_checkpoint(Path(tempfile.mkdtemp()) / "llava", "llava")


@cache
def processor() -> Any:
    return vitrail.AutoProcessor.from_pretrained(folder())


def value_of(where: str, name: str) -> Any:
    """What stands for `name` in a call of `where`."""
    if name in ("cache", "past_key_values"):
        return vitrail.DynamicCache()
    if name == "mm_encoder_outputs":
        shape = SHAPES["Llava" if where.startswith("Llava") else "Mistral3"]
        model = model_of(where) if "forward" in where else model_of("Llava")
        return {"image": model.get_image_features(**images(shape))}
    return VALUES.get(name, True)


def forward(where: str, name: str) -> Any:
    owner, _, method = where.partition(".")
    model = model_of(owner)
    if owner == "PixtralVisionModel":
        given: dict[str, Any] = images(SHAPES["Pixtral"])
        return model.vision_tower(**({name: value_of(where, name)} | given))
    if owner.endswith("Model"):
        model = model.model
    given = {"input_ids": IDS}
    if (
        name in ("pixel_values", "image_sizes", "mm_encoder_outputs", "vision_feature_layer")
        or "image" in method
    ):
        shape = SHAPES["Llava" if owner.startswith("Llava") else "Mistral3"]
        given = dict(inputs(shape, None))
        if name == "mm_encoder_outputs":
            del given["pixel_values"], given["image_sizes"]
        if "image" in method:
            given = images(shape)
    if name == "inputs_embeds":
        return model(inputs_embeds=model.get_input_embeddings()(IDS))
    if name == "input_ids" or name in given:
        return getattr(model, method)(**given)
    if name == "num_items_in_batch" and "labels" in NAMES[where]:
        given["labels"] = IDS
    return getattr(model, method)(**given, **BESIDE.get(name, {}), **{name: value_of(where, name)})


def generate(where: str, name: str) -> Any:
    model = model_of("Mistral")
    given = {"max_new_tokens": 1, "pad_token_id": 0, **BESIDE.get(name, {})}
    if name in ("pixel_values", "image_sizes"):
        with_image = {k: v for k, v in inputs(SHAPES["Llava"], None).items() if k != "position_ids"}
        return model_of("Llava").generate(**with_image, **given)
    if name == "input_ids":
        return model.generate(input_ids=IDS, **given)
    if name == "inputs_embeds":
        return model.generate(inputs_embeds=model.get_input_embeddings()(IDS), **given)
    if name == "inputs":
        return model.generate(inputs=IDS, **given)
    if where == "GenerationConfig":
        given.update({name: value_of(where, name)})
        return model.generate(IDS, generation_config=vitrail.GenerationConfig(**given))
    return model.generate(IDS, **given, **{name: value_of(where, name)})


def load(where: str, name: str) -> Any:
    kind: Any = {
        "PreTrainedModel": vitrail.LlavaForConditionalGeneration,
        "PreTrainedConfig": vitrail.LlavaConfig,
        "GenerationConfig": vitrail.GenerationConfig,
        "PixtralProcessor": vitrail.PixtralProcessor,
        "PixtralImageProcessor": vitrail.PixtralImageProcessor,
        "tokenizer": vitrail.AutoTokenizer,
    }[where.partition(".")[0]]
    if name in ("pretrained_model_name_or_path", "pretrained_model_name"):
        return kind.from_pretrained(**{name: folder()})
    value = "generation_config.json" if name == "config_file_name" else value_of(where, name)
    return kind.from_pretrained(folder(), **{name: value})


def save(where: str, name: str, tmp_path: Path) -> Any:
    thing: Any = {
        "PreTrainedModel": lambda: model_of("Mistral"),
        "PreTrainedConfig": lambda: model_of("Mistral").config,
        "PixtralProcessor": processor,
        "tokenizer": lambda: processor().tokenizer,
    }[where.partition(".")[0]]()
    if name == "save_directory":
        return thing.save_pretrained(save_directory=tmp_path / "out")
    value = model_of("Mistral").state_dict() if name == "state_dict" else value_of(where, name)
    return thing.save_pretrained(tmp_path / "out", **{name: value})


def prepare(where: str, name: str) -> Any:
    owner, _, method = where.partition(".")
    value = value_of(where, name)
    image = tiny.image(16, 24)
    if owner == "PixtralImageProcessor":
        if name == "images":
            return processor().image_processor.preprocess(images=image)
        return processor().image_processor.preprocess(image, **{name: value})
    thing = processor() if owner == "PixtralProcessor" else processor().tokenizer
    if method == "apply_chat_template":
        options = {"tokenize": True, "return_dict": True, name: value}
        options |= {"padding": True, "max_length": 9} if name in ("padding", "max_length") else {}
        if name == "conversation":
            return thing.apply_chat_template(conversation=CHAT)
        return thing.apply_chat_template(CHAT, **options)
    if method in ("decode", "batch_decode"):
        ids = [[5, 6]] if method == "batch_decode" else [5, 6]
        return (
            getattr(thing, method)(**{name: ids})
            if name in ("token_ids", "sequences")
            else getattr(thing, method)(ids, **{name: value})
        )
    if method == "__init__":
        own = {"image_processor": processor().image_processor, "tokenizer": processor().tokenizer}
        return vitrail.PixtralProcessor(**({name: getattr(processor(), name)} | own))
    options = {} if name == "text" else {name: value}
    if name == "is_split_into_words":
        return thing(text=["a", "b"], **options)
    if name == "images":
        return thing(text="[IMG]", images=image)
    if name in ("max_length", "stride"):
        options |= {"truncation": True}
    return thing(text="a", **options)


def other(where: str, name: str) -> Any:
    model = model_of("Mistral")
    if where == "compute_transition_scores":
        given = {"sequences": IDS, "scores": (torch.zeros(1, 96),)}
        return model.compute_transition_scores(**({name: value_of(where, name)} | given))
    if where == "PreTrainedConfig.update":
        return vitrail.MistralConfig().update(config_dict={"vocab_size": 7})
    method = where.partition(".")[2]
    values = {
        "new_num_tokens": 96,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "missing_keys": set(),
    }
    fresh = build(SHAPES["Mistral"]).ours
    return getattr(fresh, method)(**{name: values.get(name, value_of(where, name))})


def call(where: str, tmp_path: Path) -> Callable[[str, str], Any]:
    owner, _, method = where.partition(".")
    if method in ("forward", "get_image_features"):
        return forward
    if where in ("generate", "GenerationConfig"):
        return generate
    if method == "from_pretrained":
        return load
    if method == "save_pretrained":
        return lambda where, name: save(where, name, tmp_path)
    if owner in ("tokenizer", "PixtralProcessor", "PixtralImageProcessor"):
        return prepare
    return other


def refused_in_docs() -> dict[str, set[str]]:
    """Call → the names that the table of docs/differences.md says it refuses."""
    text = (ROOT / "docs" / "differences.md").read_text("utf-8")
    table = text[text.index("## Parameters that are refused") :].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", table, re.M)
    found: dict[str, set[str]] = {}
    for calls, names in rows:
        for place in re.findall(r"`([^`]+)`", calls):
            found.setdefault(place, set()).update(re.findall(r"`([^`]+)`", names))
    return found


def refusal_of(ask: Callable[[], Any]) -> str | None:
    """What a call is refused with, None where it is answered."""
    try:
        ask()
    except vitrail.VitrailError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("where", "name"), cases(), ids=[f"{w}-{n}" for w, n in cases()])
def test_newer_name_is_taken_or_refused_by_name_and_listed(where: str, name: str, tmp_path: Path) -> None:
    listed = name in refused_in_docs().get(where, set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = refusal_of(lambda: call(where, tmp_path)(where, name))
    if refusal is None:
        assert not listed, f"{where} takes {name}, which docs/differences.md lists as refused"
    else:
        assert name in refusal, f"refused without its name: {refusal}"
        assert listed, f"{where} refuses {name}, which docs/differences.md does not list"


def test_docs_list_no_name_that_transformers_lacks() -> None:
    for where, names in refused_in_docs().items():
        assert names <= set(NAMES[where]), (where, names - set(NAMES[where]))
