"""The model inside the package: its size, what it reads on the example sign, and that transformers reads the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vitrail import AutoModelForImageTextToText, AutoProcessor
from vitrail.reader import charset, embedded_path

ROOT = Path(__file__).parents[2]
SIGN = ROOT / "examples" / "sign.png"
TEXT = "Reading Room\nSecond Floor"


def test_weights_are_small_and_in_bfloat16() -> None:
    path = embedded_path() / "model.safetensors"
    assert path.stat().st_size < 10_000_000
    with safe_open(path, framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # no mapping
    assert kinds == {"BF16"}


def _inputs(processor: Any) -> Any:
    content = [{"type": "image", "path": str(SIGN)}, {"type": "text", "text": "What does it say?"}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.fixture(scope="module")
def reading() -> tuple[Any, torch.Tensor]:
    """Inputs and greedy ids of the example sign."""
    processor = AutoProcessor.from_pretrained(embedded_path())
    model = AutoModelForImageTextToText.from_pretrained(embedded_path(), dtype="float32")
    inputs = _inputs(processor)
    return inputs, model.generate(**inputs, max_new_tokens=80, do_sample=False)


def test_the_example_sign_is_read(reading: tuple[Any, torch.Tensor]) -> None:
    inputs, ids = reading
    assert charset.decode(ids[0, inputs["input_ids"].shape[1] :].tolist()) == TEXT
    assert ids[0, -1] == charset.EOS


def test_transformers_reads_the_same(reading: tuple[Any, torch.Tensor]) -> None:
    transformers = pytest.importorskip("transformers")
    inputs, ids = reading
    model = transformers.Mistral3ForConditionalGeneration.from_pretrained(
        embedded_path(), dtype=torch.float32, attn_implementation="eager"
    )
    theirs = model.generate(**dict(inputs), max_new_tokens=80, do_sample=False)
    assert torch.equal(theirs, ids)
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_path())
    prompt = tokenizer.decode(inputs["input_ids"][0])
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == inputs["input_ids"][0].tolist()
    assert tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == TEXT
