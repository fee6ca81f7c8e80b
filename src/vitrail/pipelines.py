"""ImageTextToTextPipeline, pipeline(): messages in, records out, through processor, model and generate().

Named as in transformers; a module `vitrail.pipeline` would hide the function of that name.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitrail.arguments import check, check_methods, checked, short
from vitrail.errors import InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import KEYWORDS as HUB_KEYWORDS, HubOptions
from vitrail.images.request import image_request

if TYPE_CHECKING:
    import torch

    from vitrail.configs import PretrainedConfig

TASK = "image-text-to-text"
MAX_NEW_TOKENS = 256  # where neither the call nor generation_config.json sets a number
UNSET_LENGTH = 20  # the default max_length of a GenerationConfig
Record = dict[str, Any]
Messages = list[dict[str, Any]]

READING_KEYWORDS = ("fix_mistral_regex", "tokenizer_mode")
PROCESSOR_KEYWORDS = ("max_image_tokens", "padding", "truncation", "max_length")
CALL_KEYWORDS = (
    "batch_size",
    "clean_up_tokenization_spaces",
    "continue_final_message",
    "generate_kwargs",
    "max_new_tokens",
    "num_workers",
    "return_full_text",
    "return_tensors",
    "skip_special_tokens",
    "stop_sequence",
    "timeout",
    "tools",
)


@checked
def pipeline(
    task: str | None = None,
    model: Any = None,
    config: "str | PretrainedConfig | None" = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    framework: str | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: "int | str | torch.device | None" = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    **kwargs: Any,
) -> "ImageTextToTextPipeline":
    """Return a callable from messages and images to text.

    Args:
        task: "image-text-to-text" or None.
        model: a folder, a hub name or a loaded model.
        processor: a folder, a hub name or an object; default the model's.
        device: default, without `device_map`, an accelerator if there is one.
        model_kwargs: of from_pretrained; its hub keywords (cache_dir, local_files_only) and `format` apply to the
            processor too.
        kwargs: defaults of the calls.

    Raises:
        UnsupportedError: another task, or an argument without support.
    """
    if task not in (None, TASK):
        raise UnsupportedError(f"pipeline: task {task!r} is not supported; {TASK!r} is.")
    for name, value in (
        ("tokenizer", tokenizer),
        ("feature_extractor", feature_extractor),
        ("image_processor", image_processor),
        ("pipeline_class", pipeline_class),
    ):
        if value is not None:
            raise UnsupportedError(f"pipeline: {name}= is not supported; pass processor= instead.")
    if framework not in (None, "pt"):
        raise UnsupportedError(
            f"pipeline: framework {framework!r} is not supported; Vitrail runs on PyTorch."
        )
    if not use_fast:
        raise UnsupportedError("pipeline: use_fast=False is not supported; leave it out.")
    if model is None:
        raise InputError("pipeline needs model=: a checkpoint's folder, its name or a loaded model.")
    if device is not None and device_map is not None:
        raise InputError("pipeline takes device= or device_map=, not both.")
    named = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    settings: dict[str, Any] = dict(model_kwargs or {})
    settings |= {name: value for name, value in named.items() if value is not None}
    of_hub = [name for name in kwargs if name in HUB_KEYWORDS or name == "use_auth_token"]
    settings |= {name: kwargs.pop(name) for name in of_hub}
    hub = HubOptions.take(settings)
    for_processor = {name: kwargs.pop(name) for name in READING_KEYWORDS if name in kwargs}
    dtype = kwargs.pop("torch_dtype", dtype)
    _known(kwargs)  # before opening files
    source = _source_of(model)
    if isinstance(model, (str, os.PathLike)):
        format = settings.pop("format", None)
        source = CheckpointFolder.open(model, hub, format=format)
        hub = replace(hub, subfolder="")  # the subfolder is the model's alone
        settings = {"dtype": dtype, **settings, **hub.keywords()}
        if format is not None:
            for_processor["format"] = format
        if config is not None:
            settings["config"] = config
        if device is None:
            settings.setdefault("device_map", "auto" if device_map is None else device_map)
    elif dtype != "auto" or config is not None or device_map is not None or model_kwargs:
        raise InputError(
            "pipeline: the model is loaded already; dtype (torch_dtype), device_map, config and model_kwargs do not apply."
        )
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = _load_processor(processor or source, {**hub.keywords(), **for_processor})
    elif for_processor:
        raise InputError(
            f"pipeline: the processor is loaded already; {', '.join(for_processor)} does not apply."
        )
    if isinstance(
        model, (str, os.PathLike)
    ):  # after the processor, whose parsed tokenizer file the model uses too
        from vitrail.auto import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(source, **settings)
    return ImageTextToTextPipeline(model=model, processor=processor, device=device, **kwargs)


def _source_of(model: Any) -> str | os.PathLike[str] | None:
    if isinstance(model, (str, os.PathLike)):
        return model
    return getattr(getattr(model, "config", None), "name_or_path", None) or None


def _load_processor(name: str | os.PathLike[str] | None, hub: dict[str, Any]) -> Any:
    from vitrail.auto import AutoProcessor

    if name is None:
        raise InputError("pipeline: this model does not say where it came from; pass processor= too.")
    return AutoProcessor.from_pretrained(name, **hub)


@checked
class ImageTextToTextPipeline:
    """Pipeline from messages with images to answers. Questions run one by one, so that no answer depends on another.

    A call returns, for one conversation, a list of one record; for a list of conversations, a list of such lists; for
    `images` and `text`, one list with a record per text. num_return_sequences in `generate_kwargs` gives as many records
    per question, one after another.

    A record holds `input_text` and `generated_text` (or `generated_token_ids` with return_tensors=True): the new text
    alone with return_full_text=False, else the conversation with the answer as its last message, or the prompt
    followed by the answer. Reasoning and tool calls are separate: `reasoning`, `tool_calls` (in OpenAI's format) and
    `faults`, where the model writes them.
    """

    task = TASK

    def __init__(self, model: Any, processor: Any = None, device: Any = None, **defaults: Any) -> None:
        if processor is None:
            processor = _load_processor(_source_of(model), {})
        if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "image_processor"):
            raise InputError(
                f"{TASK} needs a processor of images and text, got {type(processor).__name__}; "
                "this checkpoint may read text only."
            )
        check_methods("model", model, "generate", "to", "eval")
        if device is not None:
            model = _moved(model, device)
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self._defaults = _known(defaults)

    @property
    def device(self) -> "torch.device":
        """Device of the model's inputs."""
        found: torch.device = self.model.device
        return found

    @property
    def dtype(self) -> "torch.dtype":
        """Dtype of the model's images."""
        found: torch.dtype = self.model.dtype
        return found

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Answer `text`.

        Args:
            images: images of prompts, or of parts {"type": "image"} without a source.
            text: a conversation, a list of conversations, or prompts.
            kwargs: max_new_tokens, generate_kwargs (options of generate()), return_full_text, return_tensors,
                continue_final_message, skip_special_tokens, clean_up_tokenization_spaces, stop_sequence, timeout
                (seconds per image download), max_image_tokens, tools.

        Raises:
            InputError: an unknown keyword.
        """
        options = {**self._defaults, **_known(kwargs)}
        if images is None and text is None:
            raise InputError("the pipeline needs text (messages or a prompt) or images.")
        if text is None and (_is_conversation(images) or _is_batch(images) or isinstance(images, Mapping)):
            images, text = None, images
        if _is_conversation(text):
            return self._answer_chat(text, images, options)
        if _is_batch(text):
            given = [None] * len(text) if images is None else list(images)
            if len(given) != len(text):
                raise InputError(f"{len(text)} conversations came with {len(given)} lists of images.")
            return [self._answer_chat(chat, own, options) for chat, own in zip(text, given, strict=True)]
        if isinstance(text, Mapping):
            return self._answer_prompts(text.get("images"), text.get("text"), options)
        if text is None:
            raise InputError("the pipeline needs text beside the images.")
        if hasattr(text, "read"):
            raise InputError("pipeline: text is a prompt or messages, not a file.")
        check("pipeline", "text", text, str | Iterable[Any])
        if images is None and not isinstance(text, str):
            return [self._answer_prompts(None, prompt, options) for prompt in text]
        return self._answer_prompts(images, text, options)

    def _answer_chat(
        self, chat: Sequence[Mapping[str, Any]], images: Any, options: dict[str, Any]
    ) -> list[Record]:
        messages = _with_images(chat, images)
        continued = options.get("continue_final_message")
        if continued is None:
            continued = messages[-1]["role"] == "assistant"
        with _fetching(options.get("timeout")):
            inputs = self.processor.apply_chat_template(
                messages,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **({} if options.get("tools") is None else {"tools": options["tools"]}),
                **_processing(options),
            )
        records = self._generate(inputs, [messages], options)
        if _wants_full(options):
            for record in records:
                parts = {name: record[name] for name in ("reasoning", "tool_calls") if record.get(name)}
                record["generated_text"] = _conversation(messages, record["generated_text"], continued, parts)
        return records

    def _answer_prompts(self, images: Any, text: Any, options: dict[str, Any]) -> list[Record]:
        if text is None:
            raise InputError("the pipeline needs text beside the images.")
        if options.get("tools") is not None:
            raise InputError("tools belong to messages; a prompt has its tools written in it already.")
        check("pipeline", "text", text, str | Sequence[str])
        prompts = [text] if isinstance(text, str) else list(text)
        processing = _processing(options)
        if len(prompts) > 1:
            processing.setdefault("padding", True)
        with _fetching(options.get("timeout")):
            inputs = self.processor(images=images, text=text, return_tensors="pt", **processing)
        records = self._generate(inputs, prompts, options)
        if _wants_full(options):
            for record in records:
                record["generated_text"] = record["input_text"] + record["generated_text"]
        return records

    def _generate(self, inputs: Any, asked: Sequence[Any], options: dict[str, Any]) -> list[Record]:
        """Return a record per completion of each row of `inputs`; generated_text is the new text alone."""
        inputs = inputs.to(self.device, dtype=self.dtype)
        made = self.model.generate(**inputs, **self._generate_kwargs(options))
        ids = getattr(made, "sequences", made)  # with return_dict_in_generate
        each = len(ids) // len(asked)
        asked = [question for question in asked for _ in range(each)]
        given = inputs["input_ids"].repeat_interleave(each, dim=0)
        if options.get("return_tensors"):
            return [{"input_text": a, "generated_token_ids": row} for a, row in zip(asked, ids, strict=True)]
        decoding = {"skip_special_tokens": options.get("skip_special_tokens", True)}
        if options.get("clean_up_tokenization_spaces") is not None:
            decoding["clean_up_tokenization_spaces"] = options["clean_up_tokenization_spaces"]
        whole = self.processor.batch_decode(ids, **decoding)
        prompts = self.processor.batch_decode(given, **decoding)
        # Cut off as text: some tokenizers write a space before the answer only where a prompt precedes it.
        answers = [text[len(prompt) :] for text, prompt in zip(whole, prompts, strict=True)]
        records: list[Record] = [
            {"input_text": a, "generated_text": b} for a, b in zip(asked, answers, strict=True)
        ]
        if decoding["skip_special_tokens"]:
            for record, row, prompt_ids in zip(records, ids, given, strict=True):
                record |= self._structure(row[len(prompt_ids) :].tolist(), prompt_ids.tolist())
        return records

    def _structure(self, ids: list[int], prompt: list[int]) -> Record:
        """Return the record's fields beside text; {} without reasoning and tool calls."""
        from vitrail.responses.parser import is_structured

        if not is_structured(self.tokenizer, ids, prompt):
            return {}
        response = self.processor.parse_response(ids, prompt=prompt)
        return {
            "generated_text": response.text,
            "reasoning": response.reasoning,
            "tool_calls": [call.as_openai() for call in response.tool_calls],
            "faults": list(response.faults),
        }

    def _generate_kwargs(self, options: dict[str, Any]) -> dict[str, Any]:
        given = options.get("generate_kwargs") or {}
        check("pipeline", "generate_kwargs", given, Mapping[str, Any])
        given = dict(given)
        if options.get("max_new_tokens") is not None:
            if "max_new_tokens" in given:
                raise InputError(
                    "max_new_tokens is given twice, as a keyword and in generate_kwargs; keep one."
                )
            given["max_new_tokens"] = options["max_new_tokens"]
        config = given.get("generation_config", self.model.generation_config)
        limited = config.max_new_tokens is not None or config.max_length not in (None, UNSET_LENGTH)
        if not limited and not {"max_new_tokens", "max_length"} & set(given):
            given["max_new_tokens"] = MAX_NEW_TOKENS
        if options.get("stop_sequence") is not None:
            given.setdefault("stop_strings", options["stop_sequence"])
            given.setdefault("tokenizer", self.tokenizer)
        if getattr(config, "pad_token_id", None) is None and self.tokenizer.pad_token_id is not None:
            given.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        return given


def _moved(model: Any, device: Any) -> Any:
    """Move the model to a device: a name, a number (below 0 the CPU) or a torch.device."""
    import torch

    check("pipeline", "device", device, str | int | torch.device)
    try:
        place = torch.device("cpu" if isinstance(device, int) and device < 0 else device)
        if place.type != "meta":
            return model.to(place)
        reason = "it holds no values"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    raise InputError(f"pipeline: device {short(device)} cannot be used here ({reason}).")


def _known(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return `kwargs`, or raise InputError or UnsupportedError for an unknown or unsupported keyword."""
    unknown = sorted(set(kwargs) - {*CALL_KEYWORDS, *PROCESSOR_KEYWORDS})
    if unknown:
        raise InputError(
            f"the pipeline does not know {', '.join(unknown)}; options of generate() go in generate_kwargs."
        )
    if (kwargs.get("batch_size") or 1) != 1 or kwargs.get("num_workers"):
        raise UnsupportedError(
            "the pipeline runs one question at a time; leave out batch_size and num_workers."
        )
    if kwargs.get("return_tensors") and kwargs.get("return_full_text") is not None:
        raise InputError("return_full_text and return_tensors exclude each other; keep one.")
    return kwargs


def _processing(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in PROCESSOR_KEYWORDS if options.get(name) is not None}


def _wants_full(options: dict[str, Any]) -> bool:
    return not options.get("return_tensors") and options.get("return_full_text") is not False


def _is_conversation(value: Any) -> bool:
    return _is_list(value) and isinstance(value[0], Mapping)


def _is_batch(value: Any) -> bool:
    return _is_list(value) and _is_conversation(value[0])


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


@contextmanager
def _fetching(timeout: float | None) -> Iterator[None]:
    """Limit each image download to `timeout` seconds, in place of the policy's limit."""
    with image_request() as around, image_request(policy=around.policy.within(timeout)):
        yield


def _with_images(chat: Sequence[Mapping[str, Any]], images: Any) -> Messages:
    """Return a copy of the conversation with `images` in its parts {"type": "image"} without a source."""
    given = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    left = iter(given)
    used = 0
    messages: Messages = []
    for message in chat:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError("every message needs the keys 'role' and 'content'.")
        content = message["content"]
        if isinstance(content, (list, tuple)):
            content = [dict(part) if isinstance(part, Mapping) else part for part in content]
            for part in content:
                if isinstance(part, dict) and part.get("type") == "image" and not _has_source(part):
                    part["image"] = next(left, None)
                    used += 1
        messages.append({**message, "content": content})
    if used != len(given):
        raise InputError(f"the messages leave {used} images open, and {len(given)} came in images=.")
    return messages


def _has_source(part: Mapping[str, Any]) -> bool:
    return any(part.get(key) is not None for key in ("image", "url", "path", "base64"))


def _conversation(messages: Messages, answer: str, continued: bool, parts: Record) -> Messages:
    """Return the conversation with the answer as its last message, or appended to the continued one.

    parts: the answer's reasoning and tool calls, if any.
    """
    if not continued:
        return [*messages, {"role": "assistant", "content": answer, **parts}]
    last = {**messages[-1], **parts}
    if isinstance(last["content"], str):
        last["content"] = last["content"] + answer
    else:
        *before, part = last["content"]
        last["content"] = [*before, {**part, "text": part["text"] + answer}]
    return [*messages[:-1], last]
