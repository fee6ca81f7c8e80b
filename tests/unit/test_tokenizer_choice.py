"""Which tokenizer of a folder counts, what its file says, and that one of another model is refused with both numbers."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import geometries, tiny
from vitrail.errors import CheckpointError, InputError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.token_ids import read_token_ids
from vitrail.tokenizer.load import check_tokenizer, choose_tokenizer

TEKKEN = {
    "config": {"default_vocab_size": 320, "default_num_special_tokens": 20, "version": "v3"},
    "vocab": [],
}


def data_file(name: str) -> Path:
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / name


def test_precedence(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).tokenizer_file() is None
    order = [
        "tokenizer.model",
        "tokenizer.json",
        "a.model.v3",
        "a.model.v7",
        "a.model.v7m1",
        "a.model.v11",
        "tekken.json",
    ]
    for name in order:
        (tmp_path / name).write_text("{}")
        assert CheckpointFolder(tmp_path).tokenizer_file() == tmp_path / name
        assert CheckpointFolder(tmp_path).tokenizer_file("hf") == tmp_path / (
            "tokenizer.json" if name != "tokenizer.model" else name
        )
    with pytest.raises(InputError, match="tokenizer_mode must be one of auto, mistral, hf"):
        CheckpointFolder(tmp_path).tokenizer_file("slow")


def test_without_mistral_common_the_other_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mistral_common")
    for name in ("tekken.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert choose_tokenizer(tmp_path).name == "tekken.json"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"needs mistral-common .* tokenizer\.json is used"):
        assert choose_tokenizer(tmp_path).name == "tokenizer.json"


@pytest.mark.skipif(
    importlib.util.find_spec("mistral_common") is None,
    reason="mistral_common is not installed: pip install -e '.[test]'",
)
@pytest.mark.parametrize(
    ("name", "size", "ids"),
    [
        ("mistral_instruct_tokenizer_240323.model.v3", 32768, (10, None, None)),
        ("mistral_instruct_tokenizer_241114.model.v7m1", 32768, (10, 14, 15)),
        ("tokenizer.model.v1", 32000, (None, None, None)),
        ("tekken_240911.json", 131072, (10, 12, 13)),
    ],
)
def test_ids_of_published_files(name: str, size: int, ids: tuple[Any, ...], tmp_path: Path) -> None:
    file = tmp_path / ("tekken.json" if name.startswith("tekken") else name)
    shutil.copy(data_file(name), file)
    found = read_token_ids(file)
    assert found.size == size
    assert tuple(found.controls.get(text) for text in ("[IMG]", "[IMG_BREAK]", "[IMG_END]")) == ids
    assert (found.controls["<unk>"], found.controls["<s>"], found.controls["</s>"]) == (0, 1, 2)


@pytest.mark.parametrize(
    "data", [b"", b"\x0a", b"\x0a\xff\xff", b"\xff" * 20, b"\x0a\x02\x18\x03", b"\x13\x00"]
)
def test_a_damaged_sentencepiece_file(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.model.v3"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        read_token_ids(file)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config": {"default_vocab_size": "9"}},
        {"config": {"default_vocab_size": 9}, "special_tokens": {"rank": 1}},
        {"config": {"default_vocab_size": 9}, "special_tokens": [{"rank": -1, "token_str": "a"}]},
    ],
)
def test_a_damaged_tekken_file(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tekken\.json"):
        read_token_ids(tmp_path / "tekken.json")


def test_ids_against_the_configuration(tmp_path: Path) -> None:
    config = geometries.config_of(geometries.small("Ministral 3 8B"))
    check_tokenizer(tmp_path, config)  # no tokenizer, nothing to say
    (tmp_path / "tekken.json").write_text(json.dumps(TEKKEN))
    check_tokenizer(tmp_path, config)
    larger = {**TEKKEN, "config": {"default_vocab_size": 321}}
    (tmp_path / "tekken.json").write_text(json.dumps(larger))
    with pytest.raises(CheckpointError, match="321 ids, and the embeddings have 320 rows"):
        check_tokenizer(tmp_path, config)
    moved = {
        **TEKKEN,
        "special_tokens": [{"rank": 11, "token_str": "[IMG]"}, {"rank": 14, "token_str": "[IMG_BREAK]"}],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(moved))
    with pytest.raises(
        CheckpointError, match=r"\[IMG\] has the id 11, .* is 10; its \[IMG_BREAK\] has the id 14, .* 12"
    ):
        check_tokenizer(tmp_path, config)


def test_a_foreign_tokenizer_is_refused_by_everything_that_loads(tiny_mistral3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_mistral3, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_index": 11}))
    for kind in (
        vitrail.AutoProcessor,
        vitrail.AutoTokenizer,
        vitrail.PixtralProcessor,
        vitrail.AutoModelForImageTextToText,
    ):
        with pytest.raises(
            CheckpointError, match=r"\[IMG\] has the id 10, and image_token_index of .* is 11"
        ):
            kind.from_pretrained(folder)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Mistral's own format with Pixtral 12B's geometry and tokenizer, without weights."""
    pytest.importorskip("mistral_common")
    folder = tmp_path_factory.mktemp("native")
    (folder / "params.json").write_text(json.dumps(geometries.PUBLISHED["Pixtral 12B"]))
    shutil.copy(data_file("tekken_240911.json"), folder / "tekken.json")
    return folder


def test_a_native_folder_has_a_processor(native: Path) -> None:
    """Images follow the mistral dialect, prompts the tokenizer's own format."""
    processor = vitrail.AutoProcessor.from_pretrained(native)
    assert isinstance(processor, vitrail.PixtralProcessor)
    assert isinstance(processor.tokenizer, vitrail.MistralCommonTokenizer)
    assert processor.image_processor.dialect == "mistral"
    assert (processor.patch_size, processor.spatial_merge_size) == (16, 1)
    assert processor.image_ids == [10, 12, 13]
    # At this size the two dialects differ by a row of tokens (width×height 1199×3191).
    assert processor.num_image_tokens(3191, 1199) == 64 * 26
    content = [{"type": "image", "image": tiny.image(16, 32)}, {"type": "text", "text": "a"}]
    ids = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
    assert ids.tolist() == [[1, 3, 10, 10, 13, 1097, 4]]


@pytest.mark.slow
def test_a_named_dialect_stays(native: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "copy"))
    settings = {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": 16,
        "size": {"longest_edge": 1024},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert vitrail.AutoProcessor.from_pretrained(folder).image_processor.dialect == "mistral"
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "dialect": "hf"}))
    assert vitrail.AutoProcessor.from_pretrained(folder).image_processor.dialect == "hf"


def test_the_image_processor_alone(native: Path) -> None:
    processor = vitrail.AutoImageProcessor.from_pretrained(native, max_image_tokens=100)
    assert (processor.dialect, processor.size, processor.max_image_tokens) == (
        "mistral",
        {"longest_edge": 1024},
        100,
    )
    assert vitrail.AutoImageProcessor.from_pretrained(native, use_fast=True).is_fast
