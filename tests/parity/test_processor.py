"""PixtralProcessor beside transformers 4.57's, on the same folder: ids, masks, sizes, pixels and prompts equal."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import DATA, image as picture
from vitrail.processor.processor import PixtralProcessor

transformers = pytest.importorskip("transformers")

QUESTION = "Décrivez l'image."


@pytest.fixture(scope="module", params=["pixtral-0", "mistral3-0"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PixtralProcessor, Any]:
    """A folder that transformers 4.57 wrote, loaded by both."""
    source = DATA / request.param
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
        source, model_input_names=["input_ids", "attention_mask"]
    )
    patch, edge, merge = {"pixtral-0": (8, 96, 1), "mistral3-0": (7, 112, 2)}[request.param]
    images = transformers.PixtralImageProcessor(
        patch_size={"height": patch, "width": patch}, size={"longest_edge": edge}
    )
    folder = tmp_path_factory.mktemp("processor")
    transformers.PixtralProcessor(
        images,
        tokenizer,
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=(source / "chat_template.jinja").read_text(),
    ).save_pretrained(folder)
    theirs = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    return PixtralProcessor.from_pretrained(folder), theirs


def same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name in theirs:
        if name == "pixel_values":
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
        else:
            assert torch.as_tensor(ours[name]).tolist() == torch.as_tensor(theirs[name]).tolist()


SIZES = [(2, 5), (7, 113), (40, 40), (96, 97), (150, 31), (300, 200), (5, 200)]


@pytest.mark.parametrize("size", SIZES)
def test_one_image(pair: tuple[PixtralProcessor, Any], size: tuple[int, int]) -> None:
    """Every size of image becomes the same ids."""
    ours, theirs = pair
    image = picture(*size)
    prompt = f"<s>[INST][IMG]{QUESTION}[/INST]"
    same(ours(text=prompt, images=image), theirs(text=prompt, images=image))


def test_numbers_of_images(pair: tuple[PixtralProcessor, Any]) -> None:
    ours, theirs = pair
    images = [picture(30, 60), picture(60, 30, seed=1), picture(99, 99, seed=2), picture(8, 8, seed=3)]
    texts = ["<s>[INST][IMG]a[IMG][/INST]", "<s>[INST]none[/INST]", "<s>[INST][IMG][IMG]b[/INST]"]
    flat = {"text": texts, "images": images, "padding": True, "return_tensors": "pt"}
    same(ours(**flat), theirs(**flat))
    nested = {**flat, "images": [images[:2], [], images[2:]]}
    same(ours(**nested), theirs(**flat))
    text_only = {"text": texts[1], "return_tensors": "pt"}
    same(ours(**text_only), theirs(**text_only))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_modes(pair: tuple[PixtralProcessor, Any], mode: str) -> None:
    ours, theirs = pair
    image = picture(50, 70).convert(mode)
    same(ours(text="[IMG]", images=[image]), theirs(text="[IMG]", images=[image]))


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"size": {"longest_edge": 56}},
        {"images_kwargs": {"do_rescale": False}, "text_kwargs": {"add_special_tokens": False}},
        {"padding": "max_length", "max_length": 400},
        {"return_mm_token_type_ids": True},
    ],
)
def test_options(pair: tuple[PixtralProcessor, Any], options: dict[str, Any]) -> None:
    ours, theirs = pair
    given = {"text": "[IMG]ab", "images": picture(50, 70), **options}
    same(ours(**given), theirs(**given))


def conversations(folder: Path) -> list[list[dict[str, Any]]]:
    """Conversations in the spellings of the documents, with images on disk."""
    files = []
    for seed, (height, width) in enumerate([(40, 60), (70, 30), (64, 64)]):
        file = folder / f"{seed}.png"
        picture(height, width, seed=seed).save(file)
        files.append(str(file))
    return [
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "content": "Can this animal"},
                    {"type": "image", "url": files[0]},
                    {"type": "text", "content": "live here?"},
                    {"type": "image", "path": files[1]},
                ],
            }
        ],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "image", "image": Image.open(files[2])}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
    ]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1]])
def test_chat(pair: tuple[PixtralProcessor, Any], tmp_path: Path, chosen: list[int]) -> None:
    ours, theirs = pair
    chats = [conversations(tmp_path)[index] for index in chosen]
    for batched, tokenize in itertools.product((False, True), repeat=2):
        if not batched and len(chats) > 1:
            continue
        chat = chats if batched else chats[0]
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": tokenize}
        if tokenize:
            options |= {"return_dict": True, "return_tensors": "pt", "padding": True}
            same(ours.apply_chat_template(chat, **options), theirs.apply_chat_template(chat, **options))
            del options["return_dict"]
            mine = ours.apply_chat_template(chat, **options)
            assert torch.equal(mine, theirs.apply_chat_template(chat, **options))
        else:
            assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


def test_two_steps(pair: tuple[PixtralProcessor, Any]) -> None:
    """The second snippet of the first document: a prompt as text, then images."""
    ours, theirs = pair
    parts = [
        {"type": "text", "text": "Can this"},
        {"type": "image"},
        {"type": "text", "text": "?"},
        {"type": "image"},
    ]
    chat = [{"role": "user", "content": parts}]
    images = [picture(33, 44), picture(44, 33)]
    prompt = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    same(
        ours(text=prompt, images=images, return_tensors="pt"),
        theirs(text=str(prompt), images=images, return_tensors="pt"),
    )


def test_text_again(pair: tuple[PixtralProcessor, Any]) -> None:
    ours, theirs = pair
    ids = theirs(text=["<s>[INST]a b[/INST] c</s>", "hi"], padding=True)["input_ids"]
    for options in ({}, {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}):
        assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
        assert ours.batch_decode(ids.tolist(), **options) == theirs.batch_decode(ids, **options)
        assert ours.batch_decode(ids.numpy(), **options) == theirs.batch_decode(ids, **options)
        assert ours.decode(ids[0, 2:], **options) == theirs.decode(ids[0, 2:], **options)
    assert ours.post_process_image_text_to_text(ids) == theirs.post_process_image_text_to_text(ids)


def test_saved_folder(pair: tuple[PixtralProcessor, Any], tmp_path: Path) -> None:
    """What we save is what transformers loads as the same processor."""
    ours, theirs = pair
    ours.save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path, use_fast=False)
    assert type(again) is transformers.PixtralProcessor
    given = {"text": ["a[IMG]b", "c"], "images": picture(60, 41), "padding": True, "return_tensors": "pt"}
    same(again(**given), theirs(**given))
    assert again.chat_template == theirs.chat_template
    second = tmp_path / "second"
    PixtralProcessor.from_pretrained(tmp_path).save_pretrained(second)
    for file in second.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name
