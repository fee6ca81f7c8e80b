"""pipeline("image-text-to-text") beside transformers' on the same tiny checkpoints: records of every form."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import tiny

transformers = pytest.importorskip("transformers")


def user(*parts: Any) -> dict[str, Any]:
    """A user's message; a str is text, anything else an image."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ],
    }


ONE = tiny.image(60, 90)
TWO = tiny.image(40, 72, seed=3)
CHAT = [user(ONE, "What is this?")]
TURNS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    user(ONE, "And", TWO, "that?"),
    {"role": "assistant", "content": [{"type": "text", "text": "Two signs."}]},
    user("Are you sure?"),
]
BEGUN = [user(ONE, "What is this?"), {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
PROMPT = "<s>[INST][IMG]What is this?[/INST]"

CALLS: dict[str, dict[str, Any]] = {
    "new text": {"text": CHAT, "return_full_text": False},
    "full text": {"text": CHAT, "return_full_text": True},
    "full text by default": {"text": CHAT},
    "turns": {"text": TURNS, "return_full_text": False},
    "conversations": {"text": [CHAT, TURNS], "return_full_text": False},
    "conversations in full": {"text": [CHAT, TURNS]},
    "begun answer": {"text": BEGUN},
    "begun answer, new text": {"text": BEGUN, "return_full_text": False},
    "begun answer as a turn of its own": {"text": BEGUN, "continue_final_message": False},
    "images apart": {"images": [ONE], "text": [{"role": "user", "content": [{"type": "image"}]}]},
    "prompt": {"images": ONE, "text": PROMPT},
    "prompt, new text": {"images": ONE, "text": PROMPT, "return_full_text": False},
    "prompts": {"images": [ONE, TWO], "text": [PROMPT, PROMPT]},
    "a dict": {"images": {"images": ONE, "text": PROMPT}},
    "special tokens": {"text": CHAT, "skip_special_tokens": False},
    "options of generate": {
        "text": CHAT,
        "generate_kwargs": {"min_new_tokens": 6, "repetition_penalty": 1.3},
    },
}


@pytest.fixture(scope="module", params=["llava", "mistral3"])
def pipes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Vitrail's pipeline and transformers' on one checkpoint."""
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    ours = vitrail.pipeline("image-text-to-text", model=folder, torch_dtype="float32")
    theirs = transformers.pipeline("image-text-to-text", model=str(folder), dtype="float32", device="cpu")
    return ours, theirs


@pytest.mark.parametrize("name", CALLS)
def test_records_are_those_of_transformers(pipes: tuple[Any, Any], name: str) -> None:
    """Same nesting, same keys, same text; messages come back as they were given."""
    # A copy for each: transformers writes into the messages and the options that it is given.
    ours, theirs = (pipe(**copy.deepcopy(CALLS[name]), max_new_tokens=8) for pipe in pipes)
    assert ours == theirs


def test_ids_instead_of_text(pipes: tuple[Any, Any]) -> None:
    """return_tensors=True gives prompt and completion as ids."""
    ours, theirs = (pipe(text=CHAT, max_new_tokens=8, return_tensors=True) for pipe in pipes)
    assert ours[0]["generated_token_ids"].tolist() == theirs[0]["generated_token_ids"].tolist()
    assert set(ours[0]) == set(theirs[0])


SEVERAL = {"num_return_sequences": 2, "do_sample": True, "top_k": 1}  # drawn, and still always the same


def test_several_answers_to_a_conversation(pipes: tuple[Any, Any]) -> None:
    """A record for each. transformers' pipeline keeps the first and drops the others, and mixes up several images."""
    options = {"max_new_tokens": 6, "generate_kwargs": SEVERAL}
    ours, theirs = (pipe(**copy.deepcopy({"text": CHAT, **options})) for pipe in pipes)
    assert ours == [*theirs, *theirs]
    alone = pipes[1](text=copy.deepcopy([CHAT, TURNS]), max_new_tokens=6)
    assert pipes[0](text=[CHAT, TURNS], **options) == [[*records, *records] for records in alone]


def test_several_answers_to_prompts(pipes: tuple[Any, Any]) -> None:
    """Those of a prompt stand side by side; transformers gives the second prompt what was made of the first."""
    call = {"images": [ONE, TWO], "text": [PROMPT, PROMPT + "It"], "max_new_tokens": 6}
    alone = pipes[1](**copy.deepcopy(call))
    ours = pipes[0](**copy.deepcopy(call), generate_kwargs=SEVERAL)
    assert ours == [record for record in alone for _ in range(2)]
    ids = pipes[0](**copy.deepcopy(call), generate_kwargs=SEVERAL, return_tensors=True)
    assert [record["input_text"] for record in ids] == [record["input_text"] for record in ours]


def test_conversations_with_and_without_images_of_their_own(pipes: tuple[Any, Any]) -> None:
    """`None` stands for a conversation that opens none."""
    chats = [[{"role": "user", "content": [{"type": "image"}]}], [user("And?")]]
    ours, theirs = (
        pipe(images=[[ONE], None], text=copy.deepcopy(chats), max_new_tokens=4, return_full_text=False)
        for pipe in pipes
    )
    assert [r["generated_text"] for (r,) in ours] == [r["generated_text"] for (r,) in theirs]


@pytest.mark.parametrize(
    "call",
    [
        {"text": 5},
        {"text": {1, 2}},
        {"text": [CHAT, "x"]},
        {"text": CHAT, "generate_kwargs": 5},
        {"images": 5, "text": PROMPT},
        {"text": CHAT, "max_new_tokens": "4"},
    ],
)
def test_wrong_kinds_are_named(pipes: tuple[Any, Any], call: dict[str, Any]) -> None:
    with pytest.raises(vitrail.VitrailError):
        pipes[0](**call)


@pytest.mark.parametrize("device", [True, "nowhere", "meta", 1.5, object()])
def test_a_device_that_cannot_be_leaves_the_model(pipes: tuple[Any, Any], device: Any) -> None:
    model = pipes[0].model
    with pytest.raises(vitrail.InputError, match="device"):
        vitrail.ImageTextToTextPipeline(model, pipes[0].processor, device=device)
    assert str(model.device) == "cpu"


@pytest.mark.slow
def test_the_default_length_is_theirs(pipes: tuple[Any, Any]) -> None:
    """256 new ids where nobody said a number, and the checkpoint's own number where it has one."""
    ours, theirs = pipes
    assert len(ours(text=CHAT, return_tensors=True)[0]["generated_token_ids"]) == len(
        theirs(text=CHAT, return_tensors=True)[0]["generated_token_ids"]
    )


def test_the_messages_of_the_caller_stay_untouched(pipes: tuple[Any, Any]) -> None:
    """transformers writes images into them; here the caller's list is as before."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    before = repr(chat)
    pipes[0](images=[ONE], text=chat, max_new_tokens=2)
    assert repr(chat) == before


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ({}, vitrail.InputError, "needs text"),
        ({"images": ONE}, vitrail.InputError, "text"),
        ({"text": CHAT, "do_sample": True}, vitrail.InputError, "do_sample"),
        ({"text": CHAT, "batch_size": 4}, vitrail.UnsupportedError, "batch_size"),
        ({"text": CHAT, "images": [ONE]}, vitrail.InputError, "images"),
        ({"text": [{"role": "user"}]}, vitrail.InputError, "content"),
        (
            {"text": CHAT, "max_new_tokens": 3, "generate_kwargs": {"max_new_tokens": 4}},
            vitrail.InputError,
            "twice",
        ),
        ({"text": CHAT, "return_tensors": True, "return_full_text": True}, vitrail.InputError, "exclude"),
    ],
)
def test_mistakes_are_named(pipes: tuple[Any, Any], call: Any, error: type[Exception], said: str) -> None:
    """Nothing is dropped silently."""
    with pytest.raises(error, match=said):
        pipes[0](**call)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"task": "image-classification"}, vitrail.UnsupportedError, "image-classification"),
        ({"task": "image-text-to-text"}, vitrail.InputError, "model="),
        ({"model": "x", "feature_extractor": "y"}, vitrail.UnsupportedError, "feature_extractor"),
        ({"model": "x", "framework": "tf"}, vitrail.UnsupportedError, "tf"),
        ({"model": "x", "colour": True}, vitrail.InputError, "colour"),
        ({"model": "x", "model_kwargs": {"proxies": {"http": "x"}}}, vitrail.UnsupportedError, "HTTPS_PROXY"),
        ({"model": "x", "device": "cpu", "device_map": "auto"}, vitrail.InputError, "not both"),
    ],
)
def test_a_pipeline_that_cannot_be(arguments: Any, error: type[Exception], said: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(error, match=said):
        vitrail.pipeline(**arguments)


def test_a_loaded_model_is_taken(tiny_llava: Path) -> None:
    """With the processor that lies beside it, or a given one."""
    model = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_llava)
    processor = vitrail.AutoProcessor.from_pretrained(tiny_llava)
    found = vitrail.pipeline(model=model, max_new_tokens=4)(text=CHAT)
    given = vitrail.pipeline(model=model, processor=processor, max_new_tokens=4)(text=CHAT)
    assert found == given
    assert given == vitrail.ImageTextToTextPipeline(model=model, processor=processor)(
        text=CHAT, max_new_tokens=4
    )
