"""Character error rate, and the reader's network and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from vitrail.errors import InputError
from vitrail.reader import charset
from vitrail.reader.batches import Batch
from vitrail.reader.evaluate import edit_distance, labels, score
from vitrail.reader.network import Reader, config, image_ids, pointer_losses, prompts


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
    result = score([("1.png", "abcd", "abxd"), ("2.png", "ef", "ef")])
    assert (result.pictures, result.characters, result.edits, result.exact) == (2, 6, 1, 1)
    assert result.error_rate == pytest.approx(1 / 6)


@pytest.mark.parametrize("content", [None, "{", '{"a": 1}', '[{"file": "x.png"}]'])
def test_bad_labels_are_an_input_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match="labels"):
        labels(tmp_path)


def test_labels_keep_their_order(tmp_path: Path) -> None:
    entries = [{"file": "b.png", "text": "two"}, {"file": "a.png", "text": "one"}]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    assert labels(tmp_path) == [(tmp_path / "b.png", "two"), (tmp_path / "a.png", "one")]


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
    return Batch(torch.randn(3, 3, 32, 32), sizes, labels, places, ("ab", "c", "d"), "?")


def test_prompts_ask_for_each_answer_and_its_end() -> None:
    ids, keep, targets, lengths = prompts(_batch())
    assert charset.decode(targets.tolist()) == "abcd"
    assert (targets == charset.EOS).sum() == 3
    assert len(ids) == sum(lengths)
    assert lengths[0] == lengths[1]
    first = int(keep[0])
    assert ids[first] == charset.END_INST
    assert ids[first + 1] == targets[0]


def test_pointers_are_right_when_heads_look_at_the_character() -> None:
    batch = _batch()
    ids, keep, _, lengths = prompts(batch)
    right = [torch.full((6, n, n), 1e-6) for n in lengths]
    # "a" lies on the first picture token, "b" on the second; [/INST] (row keep[0]) writes "a", the next row "b".
    first = int(keep[0])
    assert ids[2] == charset.IMG
    right[0][:, first, 2] = right[0][:, first + 1, 3] = 1.0
    right[1][:, int(keep[3]) - lengths[0], 2] = 1.0
    right[2][:, int(keep[5]) - lengths[0] - lengths[1], 2] = 1.0
    wrong = [torch.full_like(weights, 1e-6) for weights in right]
    assert float(pointer_losses(wrong, right, batch)[1]) == pytest.approx(0.0, abs=1e-3)
    assert float(pointer_losses(wrong, wrong, batch)[1]) > 5
    # The earlier layer looks one row later, when the character has been written.
    late = [torch.roll(weights, 1, dims=1) for weights in right]
    assert float(pointer_losses(late, wrong, batch)[0]) == pytest.approx(0.0, abs=1e-3)


def test_the_reader_learns_all_losses_and_is_small() -> None:
    torch.manual_seed(0)
    reader = Reader()
    loss, figures = reader.loss(_batch(), patches=1.0, answer=1.0, pointer=0.3, order=0.3)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in reader.parameters())
    assert {
        "here",
        "before",
        "after",
        "answer",
        "patch_loss",
        "answer_loss",
        "point_here",
        "order_loss",
    } <= set(figures)
    shipped = sum(p.numel() for p in reader.model.parameters())
    assert 2 * shipped < 10_000_000
    assert config().text_config.vocab_size >= len(charset.vocabulary())
