"""Every public callable with arguments that work, and values of wrong kinds to put in their place (test_wrong_kinds.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitrail
from tests import tiny
from vitrail.configs.generation_options import KNOWN
from vitrail.tokenizer.fast import FastTokenizer

IMAGE = tiny.image(28, 42)
IDS = torch.arange(30, 36)[None]
CHAT = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
PICTURE = IMAGE


class Odd:
    """A thing that no library knows."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __repr__(self) -> str:
        return "Odd()"


def _closed(folder: Path) -> Any:
    file = (folder / "closed").open("wb")
    file.close()
    return file


# Made afresh for every call, in an empty folder.
WRONG: dict[str, Callable[[Path], Any]] = {
    "None": lambda _: None,
    "int": lambda _: 3,
    "negative": lambda _: -1,
    "huge": lambda _: 10**18,
    "nan": lambda _: float("nan"),
    "float": lambda _: 1.5,
    "True": lambda _: True,
    "text": lambda _: "x",
    "empty text": lambda _: "",
    "surrogate": lambda _: "\ud800",
    "zero byte": lambda _: "a\0b",
    "long text": lambda _: "a" * 5000,
    "bytes": lambda _: b"x",
    "list": lambda _: [],
    "nested list": lambda _: [[]],
    "list of text": lambda _: ["x"],
    "list of None": lambda _: [None],
    "ragged list": lambda _: [[1], [1, 2]],
    "dict": lambda _: {},
    "dict of one": lambda _: {"x": 1},
    "object": lambda _: Odd(),
    "class": lambda _: Odd,
    "function": lambda _: lambda *_: None,
    "set": lambda _: {1},
    "generator": lambda _: (n for n in range(2)),
    "complex": lambda _: 1j,
    "array": lambda _: np.zeros((2, 2)),
    "array of text": lambda _: np.array(["x"]),
    "array of objects": lambda _: np.array([None, Odd()], dtype=object),
    "tensor": lambda _: torch.zeros(2, 3, 4),
    "tensor of ids": lambda _: torch.tensor([[10**9]]),
    "empty tensor": lambda _: torch.zeros(0),
    "complex tensor": lambda _: torch.zeros(1, 2, dtype=torch.complex64),
    "meta tensor": lambda _: torch.zeros(1, 2, device="meta"),
    "sparse tensor": lambda _: torch.eye(2).to_sparse(),
    "missing path": lambda folder: folder / "missing",
    "folder": lambda folder: folder,
    "closed file": _closed,
}


@dataclass
class Call:
    """A public callable: who makes its receiver afresh, arguments that work, and the parameters to replace."""

    name: str
    make: Callable[[], Any]
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()


class World:
    """What calls are made on: one tiny checkpoint and what is loaded of it."""

    def __init__(self, folder: Path, adapter: Path) -> None:
        self.folder, self.adapter = folder, adapter
        self.model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
        self.text = vitrail.MistralForCausalLM.from_pretrained(folder)
        self.processor = vitrail.AutoProcessor.from_pretrained(folder)
        self.adapted = vitrail.MistralForCausalLM.from_pretrained(folder)
        self.adapted.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
        self.adapted.save_adapter(adapter)
        import mistral_common

        data = Path(mistral_common.__file__).parent / "data"
        self.common_file = next(iter(sorted(data.glob("*.model.v3"))))  # small, and read in no time
        self.common = vitrail.MistralCommonTokenizer(self.common_file)

    @staticmethod
    def dynamic_cache() -> Any:
        """One layer with one position."""
        return vitrail.DynamicCache([(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))])

    def receivers(self) -> dict[str, Callable[[], Any]]:
        """Class or function → what makes a receiver for it. A class stands for itself in its class methods."""
        import copy

        from vitrail.auto import AutoConfig

        processor, model = self.processor, self.model
        fast = vitrail.AutoImageProcessor.from_pretrained(self.folder, use_fast=True)
        slow = vitrail.AutoImageProcessor.from_pretrained(self.folder, use_fast=False)
        output = model(input_ids=IDS)
        objects: list[Any] = [
            model.config,
            model.config.text_config,
            model.config.vision_config,
            AutoConfig.for_model("llava"),
            AutoConfig.for_model("ministral3"),
            vitrail.GenerationConfig(),
            vitrail.LoraConfig(),
            vitrail.BitsAndBytesConfig(load_in_4bit=True),
            vitrail.QuantizeConfig(),
            slow,
            fast,
            vitrail.FetchPolicy(),
            vitrail.Grid(28, 28, 2, 2),
            vitrail.BatchFeature({"a": [1]}),
            vitrail.Response(),
            output,
            vitrail.GenerateOutput(IDS),
        ]
        made: dict[str, Callable[[], Any]] = {
            type(one).__name__: lambda one=one: copy.deepcopy(one) for one in objects
        }
        made |= {
            type(model).__name__: lambda: copy.deepcopy(model),
            "MistralForCausalLM": lambda: copy.deepcopy(self.adapted),
            "PixtralVisionModel": lambda: copy.deepcopy(model.vision_tower),
            "PixtralProcessor": lambda: copy.deepcopy(processor),
            "FastTokenizer": lambda: copy.deepcopy(processor.tokenizer),
            "KVCache": lambda: copy.deepcopy(output.past_key_values),
            "DynamicCache": self.dynamic_cache,
            "MistralCommonBackend": lambda: copy.copy(self.common),
            "TrainingJob": lambda: vitrail.TrainingJob(
                data=[{"prompt": "a", "completion": "b"}], model=str(self.folder)
            ),
            "MaxLengthCriteria": lambda: vitrail.MaxLengthCriteria(9),
            "MaxTimeCriteria": lambda: vitrail.MaxTimeCriteria(9.0),
            "EosTokenCriteria": lambda: vitrail.EosTokenCriteria(2),
            "StopStringCriteria": lambda: vitrail.StopStringCriteria(processor, "x"),
            "StoppingCriteriaList": lambda: vitrail.StoppingCriteriaList([vitrail.MaxLengthCriteria(9)]),
            "LogitsProcessorList": lambda: vitrail.LogitsProcessorList([lambda ids, scores: scores]),
            "Dialogue": lambda: vitrail.Dialogue(model, processor, CHAT),
            "Assistant": lambda: vitrail.Assistant(model, processor),
            "ImageTextToTextPipeline": lambda: vitrail.ImageTextToTextPipeline(
                model, processor, max_new_tokens=1
            ),
            "ResponseParser": lambda: vitrail.ResponseParser(processor),
            "TextStreamer": lambda: vitrail.TextStreamer(processor),
            "TextIteratorStreamer": lambda: vitrail.TextIteratorStreamer(processor, timeout=1.0),
        }
        return made


# Parameters of these names have these values, where a call says nothing else; a value in the form of a function is made from
# (world, an empty folder).
NAMED: dict[str, Any] = {
    "pretrained_model_name_or_path": lambda w, _: w.folder,
    "pretrained_model_name": lambda w, _: w.folder,
    "peft_model_id": lambda w, _: w.adapter,
    "adapter_config": lambda *_: vitrail.LoraConfig(r=1, target_modules=["k_proj"]),
    "save_directory": lambda _, out: out / "saved",
    "json_file_path": lambda _, out: out / "file.json",
    "json_file": lambda w, _: w.folder / "config.json",
    "model_type": "mistral",
    "config": lambda w, _: w.model.config,
    "model_config": lambda w, _: w.model.config,
    "model": lambda w, _: w.model,
    "processor": lambda w, _: w.processor,
    "tokenizer": lambda w, _: w.processor.tokenizer,
    "adapter_name": "default",
    "adapter_names": "default",
    "content": "hi",
    "question": "hi",
    "images": lambda *_: PICTURE,
    "image": lambda *_: PICTURE,
    "source": lambda *_: PICTURE,
    "messages": CHAT,
    "conversation": CHAT,
    "text": "hi",
    "tokens": ["hi"],
    "new_tokens": ["<new>"],
    "special_tokens_dict": {"pad_token": "<pad>"},
    "ids": [40, 41],
    "token_ids": [40, 41],
    "sequences": [[40, 41]],
    "generated_outputs": [[40, 41]],
    "height": 28,
    "width": 28,
    "pixel_values": lambda *_: torch.zeros(1, 3, 28, 28),
    "input_ids": IDS,
    "inputs": lambda *_: IDS,
    "value": lambda *_: torch.tensor([40]),
    "encoded_inputs": {"input_ids": [[40, 41]]},
    "part": {"type": "text", "text": "hi"},
    "config_dict": {},
    "values": {},
    "image_processor_dict": {},
    "key": "logits",
    "files": lambda *_: [],
    "batch": {"image_sizes": [[28, 28]]},
    "max_length": 3,
    "repeats": 2,
    "beam_idx": torch.tensor([0]),
    "cell": 14,
    "error": ValueError("x"),
    "name": "q_proj",
    "rank": 2,
    "patch_size": 14,
    "format": "v7",
    "timeout": 1.0,
    "isa": "off",
    "listener": lambda *_: print,
    "save_peft_format": True,
    "prompt": "hi",
    "hosts": ("example.org",),
    "heads_to_prune": {0: [1]},
    "out": lambda _, out: out / "converted",
    "to": "mistral",
    "tags": ["x"],
    "tokenizer_path": lambda w, _: w.common_file,
    "tokenizer_file": lambda w, _: w.common_file,
    "key_states": torch.zeros(1, 1, 1, 2),
    "value_states": torch.zeros(1, 1, 1, 2),
    "layer_idx": 0,
    "indices": torch.tensor([0]),
    "geometry": lambda w, _: w.text.kv_geometry,
    "rooms": [16],
    "capacities": [16],
    "blocks": 2,
    "rows": 1,
    "sequence": 0,
    "length": 1,
    "start": 0,
    "keys": [b"x"],
    "index": 0,
    "scores": torch.zeros(1, 512),
    "eos_token_id": 2,
    "max_time": 1.0,
    "stop_strings": "x",
    "input_dict": {"input_ids": IDS},
    "target": "lm_head.weight",
    "made": lambda w, _: w.model.config,
    "place": "x",
    "data": lambda *_: [{"prompt": "a", "completion": "b"}],
    "tokenizer_object": lambda w, _: w.processor.tokenizer.backend_tokenizer,
}
CALLS: dict[str, dict[str, Any]] = {
    "AutoModelForImageTextToText.from_pretrained": {"pretrained_model_name_or_path": lambda w, _: w.folder},
    "AutoModelForCausalLM.from_pretrained": {"pretrained_model_name_or_path": lambda w, _: w.folder},
    ".forward": {"input_ids": IDS},
    "TrainingJob.__init__": {"model": lambda w, _: str(w.folder)},
    "KVCache.record_ids": {"ids": [1]},
    "MistralCommonBackend.from_pretrained": {
        "pretrained_model_name_or_path": lambda w, _: w.common_file.parent
    },
    "MistralForCausalLM.add_adapter": {"adapter_name": "other"},
    "MistralForCausalLM.load_adapter": {"adapter_name": "other"},
    "PixtralProcessor.__call__": {"text": "hi"},
    "PixtralProcessor.__init__": {
        "image_processor": lambda w, _: w.processor.image_processor,
        "tokenizer": lambda w, _: w.processor.tokenizer,
    },
    "PixtralProcessor.decode": {"token_ids": [40]},
    "PixtralProcessor.batch_decode": {"sequences": [[40]]},
    "ImageTextToTextPipeline.__call__": {"images": None, "text": CHAT},
    "BatchFeature.__init__": {"data": {"a": [1]}},
    "AutoModelForCausalLM.from_config": {"config": lambda w, _: w.text.config},
    "MistralForCausalLM.__init__": {"config": lambda w, _: w.text.config},
    "MistralModel.__init__": {"config": lambda w, _: w.text.config},
    "PixtralVisionModel.__init__": {"config": lambda w, _: w.model.config.vision_config},
    "load_pages": {"source": lambda *_: b"%PDF-"},
    "pipeline": {"task": "image-text-to-text", "model": lambda w, _: w.folder},
    "stream_text": {"inputs": {"input_ids": IDS}, "max_new_tokens": 1},
    "FastTokenizer.__call__": {"text": "hi"},
    "convert": {"source": lambda w, _: w.folder},
    "PixtralVisionModel.forward": {"pixel_values": lambda *_: torch.zeros(1, 3, 28, 28)},
    ".generate": {"max_new_tokens": 1},
    "Dialogue.ask": {"max_new_tokens": 1},
    "Dialogue.retry": {"max_new_tokens": 1},
    "Assistant.ask": {"max_new_tokens": 1, "images": None},
    "Assistant.stream": {"max_new_tokens": 1, "images": None},
}
_INPUTS = (
    "attention_mask",
    "pixel_values",
    "image_sizes",
    "inputs_embeds",
    "past_key_values",
    "cache_position",
)
_LOADING = ("dtype", "torch_dtype", "device_map", "quantization_config", "attn_implementation", "format", "vision", "config",
            "revision", "token", "cache_dir", "local_files_only", "trust_remote_code")  # fmt: skip
_TEXTS = ("padding", "truncation", "max_length", "add_special_tokens", "return_tensors", "text_kwargs", "images_kwargs",
          "max_image_tokens", "size", "patch_size", "do_resize", "do_rescale", "rescale_factor", "image_mean", "image_std",
          "resample", "device", "padding_side", "pad_to_multiple_of", "dialect")  # fmt: skip
_CHATS = ("tools", "documents", "tokenize", "return_dict", "add_generation_prompt", "continue_final_message", "format",
          "return_tensors", "padding", "truncation", "max_length", "reasoning_effort")  # fmt: skip
# What **kwargs stand for, by the end of a name.
KEYWORDS: dict[str, tuple[str, ...]] = {
    ".generate": (*KNOWN, *_INPUTS, "tokenizer", "progress"),
    "stream_text": ("max_new_tokens", "do_sample", "temperature", "attention_mask", "tokenizer"),
    "Dialogue.ask": ("max_new_tokens", "do_sample", "temperature", "streamer", "stopping_criteria"),
    "Dialogue.__init__": ("tools", "format", "chat_template"),
    "Assistant.ask": ("on_event", "stop", "max_new_tokens"),
    "Generation.from_pretrained": _LOADING,
    "CausalLM.from_pretrained": ("pretrained_model_name_or_path", *_LOADING),
    "ImageTextToText.from_pretrained": ("pretrained_model_name_or_path", *_LOADING),
    "Processor.from_pretrained": ("tokenizer_mode", "format", "use_fast", "size", "patch_size", "padding_side", "dialect"),
    "Tokenizer.from_pretrained": ("tokenizer_mode", "format", "padding_side", "pad_token", "extra_special_tokens",
                                  "model_max_length", "chat_template", "subfolder", "revision"),
    "Config.from_pretrained": ("format", "hidden_size", "text_config", "return_unused_kwargs", "subfolder"),
    ".from_config": ("dtype",),
    "Processor.__call__": _TEXTS,
    "ImageProcessorFast.__call__": _TEXTS,
    ".apply_chat_template": _CHATS,
    "Pipeline.__call__": (
        "max_new_tokens", "generate_kwargs", "return_full_text", "return_tensors", "stop_sequence", "tools",
        "continue_final_message", "skip_special_tokens", "timeout", "max_image_tokens", "batch_size",
    ),
    "load": ("format", "revision", "token", "cache_dir", "local_files_only", "tokenizer_mode"),
    "GenerationConfig.__init__": tuple(KNOWN),
    "GenerationConfig.update": tuple(KNOWN),
    ".load_adapter": ("revision", "token", "cache_dir", "is_trainable", "device_map"),
    ".decode": ("unknown",),
    "BatchFeature.to": ("device", "dtype"),
}  # fmt: skip
# Public, and nothing that a user calls with values of their own: made by Vitrail, or inner steps of the model.
LEFT_OUT = {
    "step", "run", "encode", "embed", "run_layer", "post_init", "settings", "layer", "streams", "record_ids", "from_legacy",
    "first_values", "rows", "grid_options", "with_grids", "expand", "check_whole", "of_size", "grids",
    "render_chat", "encode_prompts", "read_prompt", "find_token", "prompt_limit", "encode_prompt", "tie_weights",
    "set_decoder", "set_input_embeddings", "set_output_embeddings", "prepare_images", "alpha", "scaling", "post_process",
}  # fmt: skip
# Held by Vitrail's own code alone, plain records of what came out, or with a test of wrong values of their own.
CLASSES_LEFT_OUT = {
    "ArgumentsDelta", "CallBegin", "CallEnd", "Fault", "ReasoningDelta", "TextDelta", "ToolCall", "Response", "Reply",
    "PromptSize", "Attachment", "Download", "FileReading", "ReplyStream", "ModelOutput", "LlavaCausalLMOutputWithPast",
    "Mistral3CausalLMOutputWithPast", "GenerateOutput", "Grid", "PreTrainedModel", "LlavaModel",
    "Mistral3Model", "LlavaForConditionalGeneration", "PretrainedConfig", "LogitsProcessor", "StoppingCriteria",
}  # fmt: skip


# A method that several classes inherit is called on the first of them.
FIRST = ("MistralForCausalLM", "Mistral3Config", "FastTokenizer")


def public_calls(world: World) -> Iterator[Call]:
    """Every public function, and every public method of a public class, found by looking."""
    receivers = world.receivers()
    seen: set[Any] = set()
    for name in [*FIRST, *(name for name in vitrail.__all__ if name not in FIRST)]:
        thing = FastTokenizer if name == "FastTokenizer" else getattr(vitrail, name)
        if inspect.isclass(thing):
            if not issubclass(thing, Exception) and name not in CLASSES_LEFT_OUT:
                yield from _methods(thing, name, receivers, seen)
        elif callable(thing):
            yield _call(name, lambda thing=thing: thing, "", thing)


def _methods(
    kind: type, name: str, receivers: dict[str, Callable[[], Any]], seen: set[Any]
) -> Iterator[Call]:
    """The methods of a class that no class before it had."""
    for method in sorted(dir(kind)):
        if (method.startswith("_") and method not in ("__init__", "__call__")) or method in LEFT_OUT:
            continue
        found = inspect.getattr_static(kind, method)
        plain = found.__func__ if isinstance(found, (classmethod, staticmethod)) else found
        if not inspect.isfunction(plain) or not plain.__module__.startswith("vitrail") or plain in seen:
            continue
        seen.add(plain)
        if method == "__init__":
            yield _call(f"{name}.__init__", lambda: kind, "", kind)
        elif isinstance(found, (classmethod, staticmethod)):
            yield _call(f"{name}.{method}", lambda: kind, method, getattr(kind, method))
        elif name in receivers:
            yield _call(f"{name}.{method}", receivers[name], method, getattr(kind, method), skip=1)


def _call(name: str, make: Callable[[], Any], method: str, function: Any, skip: int = 0) -> Call:
    arguments = {
        key: value for end, given in CALLS.items() if name.endswith(end) for key, value in given.items()
    }
    parameters, positional = [], []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty and parameter.name not in arguments:
            arguments[parameter.name] = NAMED.get(parameter.name, "x")  # a new name is tried, too
        if parameter.kind == parameter.POSITIONAL_ONLY:
            positional.append(parameter.name)
        parameters.append(parameter.name)
    for end, names in KEYWORDS.items():
        if name.endswith(end):
            parameters.extend(names)
    parameters.extend(arguments)
    return Call(name, make, method, arguments, tuple(dict.fromkeys(parameters)), tuple(positional))
