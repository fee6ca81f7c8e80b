"""Character error rate with its groups, the evaluation's folders, and the reader's network and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image, ImageFont

from vitrail.errors import InputError
from vitrail.reader import answers, charset, evaluate, testset
from vitrail.reader.batches import Batch
from vitrail.reader.contact_sheet import save_sheet
from vitrail.reader.network import Reader, config, image_ids, pointer_loss, prompts
from vitrail.reader.score import Label, edit_distance, score


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
        ("a b", "ab", 1),
    ],
)
def test_edit_distance(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edits


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_score_counts_edits_per_character_of_the_truth() -> None:
    result = score([Label("1.png", "abcd"), Label("2.png", "ef")], ["abxd", "ef"])
    assert (result.images, result.characters, result.edits, result.exact) == (2, 6, 1, 1)
    assert result.error_rate == pytest.approx(1 / 6)
    assert [graded.label.file for graded in result.worst(5)] == ["1.png"]


def test_groups_are_scored_apart_worst_first() -> None:
    labels = [
        Label("1", "ab", (("font", "A"), ("wear", "noisy"), ("wear", "turned"))),
        Label("2", "cd", (("font", "B"), ("wear", "noisy"))),
    ]
    result = score(labels, ["ab", "xx"])
    assert {name: part.error_rate for name, part in result.by("font").items()} == {"B": 1.0, "A": 0.0}
    assert list(result.by("font")) == ["B", "A"]
    assert {name: part.images for name, part in result.by("wear").items()} == {"noisy": 2, "turned": 1}


@pytest.mark.parametrize("content", [None, "{", '{"a": 1}', '[{"file": "x.png"}]', "[3]"])
def test_bad_labels_are_an_input_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match="labels"):
        evaluate.read_labels(tmp_path)


def test_labels_keep_their_order_and_groups(tmp_path: Path) -> None:
    entries = [{"file": "b.png", "text": "two", "wear": ["x", "y"]}, {"file": "a.png", "text": "one"}]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    first, second = evaluate.read_labels(tmp_path)
    assert (first.file, first.text, first.groups) == ("b.png", "two", (("wear", "x"), ("wear", "y")))
    assert second == Label("a.png", "one")


def test_a_testset_is_made_judged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "plain.otf").write_bytes(font.font_bytes)
    folder = tmp_path / "set"
    testset.make_testset(folder, [tmp_path / "fonts"], count=6, seed=5)
    labels = evaluate.read_labels(folder)
    assert len(labels) == 6
    assert all(dict(label.groups)["font"].startswith("Aileron") for label in labels)
    with pytest.raises(InputError, match="not empty"):
        testset.make_testset(folder, [tmp_path / "fonts"])
    wrong = score(labels, ["?" for _ in labels])
    save_sheet(wrong.worst(3), folder, tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width == 1000
        assert np.asarray(sheet.convert("L")).min() < 100
    assert evaluate.main([str(folder), "--by", "wear"]) == 0
    told = capsys.readouterr().out
    assert "| wear | images | vitrail CER | exact |" in told
    assert "of 6 images without error" in told
    assert evaluate.main([str(tmp_path / "nothing")]) == 2


def test_image_ids_follow_the_merged_grid() -> None:
    assert image_ids((32, 48)) == [10, 10, 10, 12, 10, 10, 10, 13]
    assert image_ids((16, 16)) == [10, 13]


def _batch() -> Batch:
    torch.manual_seed(0)
    sizes = torch.tensor([[16, 32], [16, 32], [32, 32]])
    patches = int((sizes // 8).prod(dim=1).sum())
    labels = torch.full((patches, 4), charset.encode("a")[0])
    places = torch.full((patches,), -1)
    places[:2], places[2:4], places[8], places[16] = 0, 1, 0, 0
    texts = ("ab", "c", "d")
    rng = np.random.default_rng(0)
    answered = [answers.placed(text, np.full((len(text), 2), 8.0), rng, off=0, wrong=0) for text in texts[:2]]
    return Batch(
        torch.randn(3, 3, 32, 32),
        sizes,
        labels,
        places,
        texts,
        ("?", "?", "Hello"),
        (*answered, answers.plain(answers.ABOUT)),
        (True, True, False),
    )


def test_prompts_ask_for_each_answer_and_its_end() -> None:
    batch = _batch()
    packed = prompts(batch)
    targets = np.concatenate([answer.first for answer in batch.answers])
    assert charset.decode(targets.tolist()) == "abc" + answers.ABOUT
    assert len(packed.keep) == len(targets)
    assert len(packed.ids) == sum(packed.lengths)
    first = int(packed.keep[0])
    assert packed.ids[first] == charset.END_INST
    assert (packed.ids[first + 1 : packed.lengths[0]].numpy() == batch.answers[0].written[:-1]).all()
    shown = packed.ids.split(packed.lengths)
    assert [int((ids == charset.IMG).sum()) for ids in shown] == [2, 2, 0]


def test_pointers_are_right_when_heads_look_at_the_character() -> None:
    batch = _batch()
    packed = prompts(batch)
    right = [torch.full((6, n, n), 1e-6) for n in packed.lengths]
    # "a" lies on the first image token, "b" on the second. "a" takes three ids (line, place, letter), "b" two.
    first = int(packed.keep[0])
    assert packed.ids[2] == charset.IMG
    right[0][:, first : first + 3, 2] = right[0][:, first + 3 : first + 5, 3] = 1.0
    second = int(packed.keep[6]) - packed.lengths[0]
    right[1][:, second : second + 3, 2] = 1.0
    wrong = [torch.full_like(weights, 1e-6) for weights in right]
    assert float(pointer_loss([right], batch)) == pytest.approx(0.0, abs=1e-3)
    assert float(pointer_loss([wrong], batch)) > 5
    assert float(pointer_loss([right, wrong], batch)) == pytest.approx(
        float(pointer_loss([wrong], batch)) / 2, rel=1e-3
    )


def test_the_reader_learns_all_losses_and_is_small() -> None:
    torch.manual_seed(0)
    reader = Reader()
    loss, figures = reader.loss(_batch(), patches=1.0, answer=1.0, pointer=0.3, located=0.3)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in reader.parameters())
    expected = {
        "here",
        "before",
        "after",
        "letters",
        "places",
        "patch_loss",
        "answer_loss",
        "point",
        "locate",
    }
    assert expected <= set(figures)
    shipped = sum(p.numel() for p in reader.model.parameters())
    assert 2 * shipped < 10_000_000
    assert config().text_config.vocab_size >= len(charset.vocabulary())
