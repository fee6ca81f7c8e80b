"""From pictures and a question to an answer, timed. Imported only when a command runs; prints nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitrail import auto
from vitrail.cli.estimate import Estimate, estimate
from vitrail.cli.source import Source
from vitrail.cli.transcript import count_pictures
from vitrail.configs import PretrainedConfig
from vitrail.responses.events import Piece, Response
from vitrail.responses.streamer import ResponseStream

if TYPE_CHECKING:
    from vitrail.images.load import PilImage


LONGEST = 512  # new tokens, where neither the caller nor generation_config.json says


@dataclass(frozen=True)
class Question:
    """What is asked of which model, and how the answer is drawn (temperature 0: the likeliest id)."""

    text: str
    pictures: Sequence["PilImage"]
    source: Source
    config: PretrainedConfig
    system: str | None = None
    tools: list[Any] | None = None
    history: Sequence[dict[str, Any]] = ()  # messages before the question
    max_image_tokens: int | None = None
    max_new_tokens: int | None = None  # None: what the checkpoint says, else LONGEST
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    adapter: str | None = None  # a folder or a name on the hub
    cache_dtype: str | None = None  # None: what the model computes with


@dataclass
class Answer:
    """What was answered, what it cost in tokens, and the seconds of each stage."""

    response: Response = field(default_factory=Response)
    prompt_tokens: int = 0
    picture_tokens: list[int] = field(default_factory=list)
    completion_tokens: int = 0
    stopped_by: str = ""
    estimate: Estimate | None = None  # made before the prompt was read; None where that is quick
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self, model: str) -> dict[str, Any]:
        """The record that `--json` prints."""
        return {
            "text": self.response.text,
            "reasoning": self.response.reasoning,
            "tool_calls": [call.as_openai() for call in self.response.tool_calls],
            "faults": list(self.response.faults),
            "model": model,
            "tokens": {
                "prompt": self.prompt_tokens,
                "pictures": self.picture_tokens,
                "completion": self.completion_tokens,
            },
            "estimate": None if self.estimate is None else self.estimate.as_json(),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "stopped_by": self.stopped_by,
        }


def answer(
    question: Question,
    *,
    say: Callable[[str], None],
    tell: Callable[[str], None],
    hear: Callable[[Piece], None],
) -> Answer:
    """Load the model, read the pictures, answer.

    `say` hears what is being done, `tell` what it will cost where that is more than a few seconds, `hear` each piece of
    the answer.

    Raises VitrailError for every mistake in the question, the pictures or the checkpoint.
    """
    began = time.perf_counter()
    say(f"loading {question.source.name}")
    processor, model = load(question)
    loaded = time.perf_counter()
    inputs = _prepare(question, processor, model)
    result = Answer(prompt_tokens=inputs["input_ids"].shape[1])
    result.picture_tokens = _picture_tokens(processor, inputs)
    sizes = inputs["image_sizes"].tolist() if "image_sizes" in inputs else ()
    result.estimate = estimate(model, result.prompt_tokens, sizes)
    if result.estimate is not None and result.estimate.noticeable:
        tell(f"{_cost(result)}; {result.estimate.in_words()}")
    reading = f"reading {_counted(question.pictures, result.prompt_tokens)}"
    say(reading)
    prepared = time.perf_counter()
    streamer = ResponseStream(processor, hear)
    longest = question.max_new_tokens or model.generation_config.max_new_tokens or LONGEST
    ids = model.generate(
        **inputs,
        max_new_tokens=longest,
        **_drawing(question),
        streamer=streamer,
        progress=lambda done, all_: say(f"{reading}: {done * 100 // all_} %"),
    )
    done = time.perf_counter()
    new = ids[0, result.prompt_tokens :].tolist()
    result.response = streamer.response
    result.completion_tokens = len(new)
    result.stopped_by = "length" if len(new) >= longest and not _ends(model, new) else "stop"
    result.seconds = {
        "load": loaded - began,
        "prepare": prepared - loaded,
        "first_token": (streamer.first or done) - prepared,
        "generate": done - prepared,
        "total": done - began,
    }
    return result


def load(question: Question) -> tuple[Any, Any]:
    """Processor and model of the checkpoint."""
    processor, model = auto.load(
        question.source.folder, config=question.config, dtype=question.dtype, device_map=question.device
    )
    if question.adapter is not None:
        model.load_adapter(question.adapter)
    return processor, model


def _prepare(question: Question, processor: Any, model: Any) -> Any:
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in question.pictures]
    content.append({"type": "text", "text": question.text})
    messages: list[dict[str, Any]] = [*question.history, {"role": "user", "content": content}]
    if question.system is not None:
        messages.insert(0, {"role": "system", "content": question.system})
    options: dict[str, Any] = {} if question.tools is None else {"tools": question.tools}
    if question.max_image_tokens is not None and any(map(count_pictures, messages)):
        options["max_image_tokens"] = question.max_image_tokens
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    return inputs.to(model.device, dtype=model.dtype)


def _drawing(question: Question) -> dict[str, Any]:
    """Keywords of generate(); where nothing was asked, generation_config.json of the checkpoint decides."""
    chosen: dict[str, Any] = {} if question.cache_dtype is None else {"cache_dtype": question.cache_dtype}
    if question.temperature > 0:
        chosen |= {"do_sample": True, "temperature": question.temperature}
        chosen |= {"top_p": question.top_p} if question.top_p is not None else {}
        chosen |= {"top_k": question.top_k} if question.top_k is not None else {}
        chosen |= {"seed": question.seed} if question.seed is not None else {}
    else:
        chosen["do_sample"] = False
    return chosen


def _picture_tokens(processor: Any, inputs: Any) -> list[int]:
    """What each picture costs: ids from its first [IMG] up to its [IMG_END]."""
    if "image_sizes" not in inputs:
        return []
    step = processor.patch_size * processor.spatial_merge_size
    sizes = inputs["image_sizes"].tolist()
    return [(height // step) * (width // step + 1) for height, width in sizes]


def _cost(result: Answer) -> str:
    if not result.picture_tokens:
        return f"{result.prompt_tokens:,} tokens"
    number = len(result.picture_tokens)
    word = "the picture costs" if number == 1 else f"{number} pictures cost"
    return f"{word} {sum(result.picture_tokens):,} of {result.prompt_tokens:,} tokens"


def _counted(pictures: Sequence["PilImage"], tokens: int) -> str:
    if not pictures:
        return f"{tokens} tokens"
    return f"{len(pictures)} picture{'s' if len(pictures) > 1 else ''}, {tokens} tokens"


def _ends(model: Any, ids: list[int]) -> bool:
    ends = model.generation_config.eos_token_id
    return bool(ids) and ids[-1] in (ends if isinstance(ends, list) else [ends])
