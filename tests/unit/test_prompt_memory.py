"""PromptMemory: a growing prompt computes its own positions only, and draws what a fresh start draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy import IMAGE, ToyModel
from vitrail.errors import InputError
from vitrail.generate.loop import generate
from vitrail.generate.reuse import Continuation, PromptImage, PromptMemory
from vitrail.images.fingerprint import fingerprint

TEXT = [1, 5, 6, 7, 8]


def image(value: float, tokens: int = 3) -> PromptImage:
    """An image of one row, whose features depend on `value`; the toy has a feature for two columns."""
    pixels = torch.full((3, 1, 2 * tokens), value)
    return PromptImage(fingerprint(pixels), tokens, lambda: pixels)


def fresh(model: ToyModel, ids: list[int], images: list[PromptImage], **options: Any) -> tuple[int, ...]:
    """What generate() draws without any memory."""
    given = {}
    if images:
        pixels = torch.stack([p.pixels() for p in images])
        sizes = torch.tensor([[1, pixels.shape[3]]] * len(images))
        given = {"pixel_values": pixels, "image_sizes": sizes}
    out = generate(model, torch.tensor([ids]), **given, max_new_tokens=6, **options)
    assert isinstance(out, Tensor)
    return tuple(out[0, len(ids) :].tolist())


def positions(model: ToyModel) -> int:
    """Rows that went through the decoder since the last call."""
    count = sum(len(step.positions) for step in model.steps)
    model.steps.clear()
    return count


@pytest.fixture
def model() -> ToyModel:
    return ToyModel()


def go_on(memory: PromptMemory, ids: list[int], images: list[PromptImage] | None = None) -> Continuation:
    return memory.go_on(ids, images or [], max_new_tokens=6)


def test_the_second_turn_computes_only_its_own_positions(model: ToyModel) -> None:
    """The prompt, the answer's ids and the image are cached; the decoder and the tower see the rest."""
    memory, sign = PromptMemory(model), image(0.5)
    ids = [1, IMAGE, IMAGE, IMAGE, *TEXT]
    first = go_on(memory, ids, [sign])
    assert (first.reused, first.computed, first.encoded) == (0, len(ids), 1)
    assert first.ids == fresh(model, ids, [sign])
    positions(model)
    longer = [*ids, *first.ids, 9, 10, 11]
    second = go_on(memory, longer, [sign])
    known = len(ids) + len(first.ids) - 1  # the last id of an answer was drawn, and not read
    assert (second.reused, second.computed, second.encoded) == (known, 4, 0)
    assert positions(model) == 4 + len(second.ids) - 1
    assert second.ids == fresh(model, longer, [sign])


def test_what_differs_is_computed_anew_and_what_follows_it(model: ToyModel) -> None:
    """Other ids than were drawn, a shorter prompt, another beginning: always the fresh prompt's answer."""
    memory = PromptMemory(model)
    go_on(memory, TEXT)
    for ids, reused in (
        ([*TEXT, 20, 21, 22], 5),
        ([*TEXT, 20, 21], 6),
        ([1, 30, 6, 7], 1),
        (TEXT, 1),
        (TEXT, 4),
    ):
        found = go_on(memory, ids)
        assert found.ids == fresh(model, ids, [])
        assert found.reused == reused


def test_another_image_of_the_same_size_is_noticed(model: ToyModel) -> None:
    """Their ids are equal. The part before it is reused; its features are remembered when it comes back."""
    memory = PromptMemory(model)
    ids = [1, 4, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, IMAGE, 6]
    red, blue, grey = image(0.1), image(0.9), image(0.4)
    assert go_on(memory, ids, [red, blue]).encoded == 2
    for images, reused, encoded in (
        ([red, grey], 6, 1),
        ([blue, grey], 2, 0),
        ([blue, blue], 6, 0),
        ([red, blue], 2, 0),
    ):
        found = go_on(memory, ids, images)
        assert (found.reused, found.encoded) == (reused, encoded)
        assert found.ids == fresh(model, ids, images)


def test_a_part_of_an_image_is_never_reused(model: ToyModel) -> None:
    """A smaller image whose ids are the beginning of the larger one's."""
    memory = PromptMemory(model)
    go_on(memory, [1, 4, *[IMAGE] * 4, 6, 7], [image(0.5, 4)])
    small = image(0.5, 2)
    found = go_on(memory, [1, 4, *[IMAGE] * 2, 6, 7], [small])
    assert (found.reused, found.encoded) == (2, 1)
    assert found.ids == fresh(model, [1, 4, IMAGE, IMAGE, 6, 7], [small])


def test_features_are_bounded(model: ToyModel) -> None:
    """The oldest are forgotten, and encoded again when they are needed."""
    memory = PromptMemory(model, feature_bytes=3 * 8 * 8)
    ids = [1, IMAGE, IMAGE, IMAGE, 6]
    red, blue = image(0.1), image(0.9)
    assert [go_on(memory, ids, [p]).encoded for p in (red, red, blue, blue, red)] == [1, 0, 1, 0, 1]
    memory.forget()
    assert memory.length == 0
    assert go_on(memory, ids, [red]).encoded == 1


def test_stopping_keeps_what_was_read_and_failing_takes_it_back(model: ToyModel) -> None:
    """A criterion ends the answer and leaves it cached; an exception leaves what was there before."""
    memory, start = PromptMemory(model), [1, 10, 6, 7]
    whole = fresh(model, start, [])
    found = memory.go_on(
        start, max_new_tokens=6, stopping_criteria=lambda ids, _: ids.shape[1] >= len(start) + 2
    )
    assert (found.ids, found.reason) == (whole[:2], "criteria")
    assert memory.length == len(start) + 1

    def fail(*_: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.go_on([*start, *whole[:2], 9], max_new_tokens=6, stopping_criteria=fail)
    assert memory.length == len(start) + 1
    longer = [*start, *whole[:2], 9, 10]
    assert go_on(memory, longer).ids == fresh(model, longer, [])


def test_a_long_conversation_grows_the_cache() -> None:
    """Turn after turn beyond what was set aside at first; always the fresh prompt's answer."""
    model = ToyModel(positions=8192, image=None)
    memory = PromptMemory(model)
    ids = [1]
    for turn in range(4):
        ids = [*ids, *[4 + (turn + n) % 50 for n in range(900)]]
        found = go_on(memory, ids)
        assert found.computed <= 901
        ids += found.ids
    assert found.ids == fresh(model, ids[: -len(found.ids)], [])


def test_images_and_image_tokens_must_fit(model: ToyModel) -> None:
    """Nothing is cached then."""
    memory = PromptMemory(model)
    for images in ([], [image(0.5, 2)], [image(0.5), image(0.5)]):
        with pytest.raises(InputError, match="3 image tokens"):
            go_on(memory, [1, IMAGE, IMAGE, IMAGE, 6], images)
    assert memory.length == 0


def test_fingerprints_tell_shapes_and_kinds_of_numbers_apart() -> None:
    """An image of 30×100 with the bytes of one of 100×30 is another image."""
    pixels = torch.arange(24.0).reshape(3, 2, 4)
    assert fingerprint(pixels) == fingerprint(pixels.clone())
    others = (pixels.reshape(3, 4, 2), pixels.double(), pixels + 1, pixels.to(torch.bfloat16))
    assert len({fingerprint(pixels), *map(fingerprint, others)}) == 5
