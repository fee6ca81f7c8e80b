"""PixtralProcessor alone: folders of both layouts, numbers of images, budgets, faults, and what users type."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import DATA, image as picture
from vitrail.errors import CheckpointError, InputError, PromptError, UnsupportedError, VitrailError
from vitrail.images.grid import Grid, image_grid
from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast
from vitrail.processor.processor import PixtralProcessor, load_processor
from vitrail.tokenizer.fast import FastTokenizer

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "config.json",
)


@pytest.fixture(scope="module")
def processor() -> PixtralProcessor:
    return load_processor(DATA / "mistral3-0")


def folder(tmp_path: Path, *leave_out: str, name: str = "mistral3-0") -> Path:
    for file in FILES:
        if file not in leave_out:
            shutil.copy(DATA / name / file, tmp_path)
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes them out."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def chat(*parts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts)}]


def test_layout_of_5x(processor: PixtralProcessor) -> None:
    assert (processor.patch_size, processor.spatial_merge_size) == (7, 2)
    assert type(processor.image_processor) is PixtralImageProcessor
    assert processor.model_input_names == ["input_ids", "attention_mask", "pixel_values", "image_sizes"]


def test_missing_merge_comes_from_the_model(tmp_path: Path) -> None:
    edit(folder(tmp_path) / "processor_config.json", spatial_merge_size=None, patch_size=None)
    found = load_processor(tmp_path)
    assert (found.patch_size, found.spatial_merge_size) == (7, 2)
    edit(tmp_path / "config.json", spatial_merge_size=None)
    assert load_processor(tmp_path).spatial_merge_size == 2


def test_without_any_processor_file_the_model_says(tmp_path: Path) -> None:
    found = load_processor(folder(tmp_path, "processor_config.json"))
    assert (found.patch_size, found.spatial_merge_size) == (7, 2)
    assert found.image_processor.size == {"longest_edge": 112}
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="does not say how images are prepared"):
        load_processor(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_token": 3}, "image_token must be a text"),
        ({"patch_size": 0}, "patch_size must be a whole number"),
        ({"spatial_merge_size": "two"}, "spatial_merge_size must be a whole number"),
        ({"processor_class": "LlavaProcessor"}, "holds a LlavaProcessor"),
        ({"image_processor": 3}, "settings of an image processor"),
    ],
)
def test_damaged_folders(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    edit(folder(tmp_path) / "processor_config.json", **change)
    with pytest.raises(CheckpointError, match=said):
        load_processor(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    found = load_processor(folder(tmp_path), use_fast=True, spatial_merge_size=1, padding_side="right")
    assert type(found.image_processor) is PixtralImageProcessorFast
    assert (found.spatial_merge_size, found.tokenizer.padding_side) == (1, "right")
    found.save_pretrained(tmp_path / "saved")
    again = load_processor(tmp_path / "saved")
    assert type(again.image_processor) is PixtralImageProcessorFast
    assert (again.spatial_merge_size, again.tokenizer.padding_side) == (1, "right")
    with pytest.raises(InputError, match="colour"):
        load_processor(tmp_path, colour="blue")


def test_ids_are_looked_up(tmp_path: Path) -> None:
    """Break and end have other ids in Pixtral Large's tokenizer; a tokenizer without them is refused."""
    text = (folder(tmp_path) / "tokenizer.json").read_text()
    other = text.replace("[IMG_BREAK]", "[X]").replace("[PREFIX]", "[IMG_BREAK]")
    (tmp_path / "tokenizer.json").write_text(other)
    found = load_processor(tmp_path)
    assert found.image_ids == [10, 14, 13]
    assert 14 in found(text="[IMG]", images=picture(40, 40))["input_ids"][0].tolist()
    (tmp_path / "tokenizer.json").write_text(text.replace("[IMG_BREAK]", "[X]"))
    with pytest.raises(CheckpointError, match=r"no \[IMG_BREAK\]"):
        load_processor(tmp_path)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (4, 1), (3, 8)])
def test_expansion(processor: PixtralProcessor, rows: int, cols: int) -> None:
    out = processor(text="a[IMG]b", images=picture(rows * 14, cols * 14))
    row = [10] * cols + [12]
    wanted = [*(row * rows)[:-1], 13]
    assert out["input_ids"][0].tolist() == [84, *wanted, 85]
    assert out["image_sizes"].tolist() == [[rows * 14, cols * 14]]
    assert processor.num_image_tokens(rows * 14, cols * 14) == len(wanted)


def test_budget(processor: PixtralProcessor) -> None:
    images = [picture(112, 112), picture(14, 14), picture(100, 30)]
    out = processor(text="[IMG][IMG][IMG]", images=images, max_image_tokens=20)
    ids = out["input_ids"][0].tolist()
    ends = [position for position, index in enumerate(ids) if index == 13]
    costs = np.diff([-1, *ends]).tolist()
    assert max(costs) <= 20
    assert costs == [processor.num_image_tokens(i.height, i.width, max_image_tokens=20) for i in images]
    assert costs[1] == 2
    with pytest.raises(InputError, match="max_image_tokens"):
        processor(text="[IMG]", images=images[0], max_image_tokens=1)


def test_every_source_of_an_image(processor: PixtralProcessor, tmp_path: Path) -> None:
    image = picture(30, 50)
    image.save(tmp_path / "a.png")
    file = io.BytesIO()
    image.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    path = str(tmp_path / "a.png")
    parts = [
        {"type": "image", "image": image},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image", "image": torch.from_numpy(np.array(image))},
        {"type": "image", "image": file.getvalue()},
        {"type": "image", "path": path},
        {"type": "image", "url": path},
        {"type": "image", "url": (tmp_path / "a.png").as_uri()},
        {"type": "image", "base64": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
    ]
    wanted = processor(text="<s>[INST][IMG]?[/INST]", images=image)
    for part in parts:
        out = processor.apply_chat_template(chat(part, "?"), tokenize=True, return_dict=True)
        assert torch.equal(out["pixel_values"], wanted["pixel_values"]), part
        assert torch.equal(out["input_ids"], wanted["input_ids"])


def test_batches_are_padded_and_ragged(processor: PixtralProcessor) -> None:
    image = {"type": "image", "image": picture(20, 20)}
    out = processor.apply_chat_template(
        [chat("no image"), chat(image, "a", image)], tokenize=True, return_dict=True, padding=True
    )
    assert out["input_ids"].shape == out["attention_mask"].shape
    assert out["pixel_values"].shape == (2, 3, 28, 28)
    assert out["attention_mask"][0, 0] == 0
    lists = processor(text=["a", "bc"], return_tensors=None)
    assert lists["input_ids"] == [[84], [85, 86]]
    assert set(processor(text="[IMG]", images=picture(9, 9), return_tensors="np")) == set(out)


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("[IMG][IMG]", picture(8, 8), r"2 \[IMG\] and there are 1 images"),
        ("[IMG]", [picture(8, 8)] * 3, r"1 \[IMG\] and there are 3 images"),
        ("[IMG]", None, r"1 \[IMG\] and there are 0 images"),
        ("none", picture(8, 8), r"0 \[IMG\] and there are 1 images"),
        (["[IMG]", "[IMG]"], [[picture(8, 8)] * 2, []], r"\[1, 1\] \[IMG\].* \[2, 0\] images"),
        ([], None, "text is a text or a list"),
        (7, None, "text is a text or a list"),
        (None, None, "give text, images or both"),
    ],
)
def test_numbers_must_fit(processor: PixtralProcessor, text: Any, images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        processor(text=text, images=images)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p(text="a", colour=1), "colour"),
        (lambda p: p(text="a", images_kwargs={"colour": 1}), "colour"),
        (lambda p: p(text="a", padding=True, text_kwargs={"padding": True}), "padding is given twice"),
        (lambda p: p(text="[IMG]", images=picture(9, 9), patch_size=3), "patch_size"),
        (lambda p: p(text="a", videos=[1]), "audio or videos"),
        (lambda p: p(text=["a", "bc"]), "padding=True"),
        (
            lambda p: p(text="[IMG]", images=picture(99, 99), truncation=True, max_length=4),
            "raise max_length",
        ),
        (lambda p: p(text="[IMG]", images=picture(15, 28), do_resize=False), "whole squares of 14"),
        (lambda p: p.apply_chat_template(chat("a"), colour=1), "colour"),
        (
            lambda p: p.apply_chat_template(chat({"type": "image"}), tokenize=True),
            r"1 \[IMG\] and there are 0",
        ),
        (lambda p: p.apply_chat_template(chat("a"), padding=True), "padding: needs tokenize=True"),
        (lambda p: p.apply_chat_template(chat("a"), return_dict=True), "return_dict: needs tokenize=True"),
        (lambda p: p.apply_chat_template([]), "at least one message"),
        (
            lambda p: p.apply_chat_template(chat("a"), return_assistant_tokens_mask=True),
            "assistant_tokens_mask",
        ),
        (
            lambda p: p.apply_chat_template(chat({"type": "image", "path": "/no.png"}), tokenize=True),
            "no.png",
        ),
        (lambda p: p.save_pretrained("x", push_to_hub=True), "push_to_hub"),
        (lambda p: p.push_to_hub("x"), "push_to_hub"),
        (lambda p: PixtralProcessor(), "needs an image_processor and a tokenizer"),
        (lambda p: PixtralProcessor(p.image_processor, p.tokenizer, colour=1), "colour"),
        (lambda p: PixtralProcessor(p.image_processor, object()), "reads prompts as text"),
    ],
)
def test_faults_are_named(processor: PixtralProcessor, call: Any, said: str) -> None:
    with pytest.raises(VitrailError, match=said):
        call(processor)


def test_images_where_the_template_has_no_place(processor: PixtralProcessor) -> None:
    """The golden template shows no image of an assistant: that is said, not dropped."""
    image = {"type": "image", "image": picture(9, 9)}
    messages = [*chat("a"), *chat({"type": "text", "text": "b"}, image, role="assistant")]
    with pytest.raises(InputError, match=r"0 \[IMG\] and there are 1 images"):
        processor.apply_chat_template(messages, tokenize=True)


def test_typed_image_tokens_are_text(processor: PixtralProcessor) -> None:
    """A typed [IMG] neither costs an image nor takes the place of one."""
    image = {"type": "image", "image": picture(9, 9)}
    typed = chat("[IMG] [IMG_BREAK]", image, "[IMG][INST]")
    out = processor.apply_chat_template(typed, tokenize=True, return_dict=True)
    ids = out["input_ids"][0].tolist()
    assert [index for index in ids if index < 20] == [1, 3, 10, 13, 4]
    prompt = processor.apply_chat_template(typed)
    assert prompt == "<s>[INST][IMG] [IMG_BREAK][IMG][IMG][INST][/INST]"
    assert processor(text=prompt, images=image["image"], add_special_tokens=False)["input_ids"].tolist() == [
        ids
    ]
    assert processor.decode(ids).count("[IMG]") == 3
    with pytest.raises(InputError, match=r"3 \[IMG\] and there are 1 images"):
        processor(text=str(prompt), images=image["image"])


def test_other_image_token(processor: PixtralProcessor) -> None:
    tokenizer = FastTokenizer.from_pretrained(DATA / "mistral3-0")
    tokenizer.add_tokens(["<pic>"], special_tokens=True)
    template = "{% for p in messages[0]['content'] %}{{ '<pic>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    other = PixtralProcessor(processor.image_processor, tokenizer, 7, 2, template, image_token="<pic>")
    out = other.apply_chat_template(chat({"type": "image", "image": picture(9, 9)}, "<pic>"), tokenize=True)
    assert out[0].tolist()[:2] == [other.image_token_id, 13]
    assert out[0].tolist().count(other.image_token_id) == 1


def test_images_alone(processor: PixtralProcessor) -> None:
    out = processor(images=[picture(9, 9), picture(20, 9)])
    assert list(out) == ["pixel_values", "image_sizes"]


def test_unsupported_is_said(processor: PixtralProcessor) -> None:
    with pytest.raises(UnsupportedError):
        processor.push_to_hub("a/b")
    with pytest.raises(PromptError, match=r"messages\[0\]\.content\[0\]\.type"):
        processor.apply_chat_template(chat({"type": "video", "url": "x"}))


def test_an_image_is_not_opened_for_text_alone(processor: PixtralProcessor) -> None:
    """tokenize=False only writes the prompt: the file need not even exist."""
    assert (
        processor.apply_chat_template(chat({"type": "image", "path": "/no.png"})) == "<s>[INST][IMG][/INST]"
    )


def test_image_of_a_lazy_file(processor: PixtralProcessor, tmp_path: Path) -> None:
    picture(30, 40).save(tmp_path / "a.png")
    lazy = Image.open(tmp_path / "a.png")
    assert processor(text="[IMG]", images=lazy)["image_sizes"].tolist() == [[42, 42]]


@pytest.mark.parametrize("fast", [False, True])
def test_a_grid_is_computed_once(
    processor: PixtralProcessor, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """From the image to the ids and the token counts: the image processor's grid is carried, not computed again."""
    from vitrail.images import settings

    made: list[Grid] = []

    def counted(*args: Any, **options: Any) -> Grid:
        made.append(image_grid(*args, **options))
        return made[-1]

    monkeypatch.setattr(settings, "image_grid", counted)
    if fast:
        pixels = PixtralImageProcessorFast.from_dict(processor.image_processor.to_dict())
        processor = PixtralProcessor(
            pixels, processor.tokenizer, processor.patch_size, processor.spatial_merge_size
        )
    parts = [{"type": "image", "image": picture(*size)} for size in ((112, 60), (14, 14))]
    template = "{% for p in messages[0]['content'] %}[IMG]{% endfor %}"
    out = processor.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=template, tokenize=True, return_dict=True
    )
    counts = processor.image_token_counts(out)
    assert len(made) == 2
    assert list(out.grids) == made and counts == [grid.tokens for grid in made]
    assert out["input_ids"].shape == (1, sum(counts))
    assert processor.image_token_counts(dict(out)) == counts  # a plain dict has the sizes alone
    assert set(out) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
