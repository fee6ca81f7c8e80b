"""What generation must keep whatever the batch, the chunks, the cache or the seed; and what it refuses."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.toy import IMAGE, Letters, ToyModel
from vitrail.configs.generation import GenerationConfig
from vitrail.errors import ConfigError, ContextError, InputError, UnsupportedError
from vitrail.generate import runner
from vitrail.generate.loop import generate

ROWS = [[1, 9, 14, 20], [1, 8], [1, 30, 31, 32, 33, 34], [1, 8, 40]]


def _batch(rows, *, side="left"):
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
        for p, r in zip(pads, rows, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _new(found, width):
    """Completions without what fills them up."""
    ends = []
    for row in found[:, width:].tolist():
        ends.append(row[: row.index(2) + 1] if 2 in row else row)
    return ends


def _images(*widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.rand(len(widths), 3, 4, 2 * max(widths), generator=generator),
        "image_sizes": torch.tensor([[4, 2 * width] for width in widths]),
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.8},
        {"do_sample": True, "seed": 5},
        {"do_sample": True, "seed": 6, "temperature": 1.7, "top_k": 30, "repetition_penalty": 1.2},
    ],
)
def test_a_row_in_a_batch_is_the_row_alone(options, side):
    model = ToyModel()
    inputs = _batch(ROWS, side=side)
    together = _new(generate(model, **inputs, max_new_tokens=15, **options), 6)
    turned = {name: value.flip(0) for name, value in inputs.items()}
    backwards = _new(generate(model, **turned, max_new_tokens=15, **options), 6)[::-1]
    alone = [
        _new(generate(model, torch.tensor([row]), max_new_tokens=15, **options), len(row))[0] for row in ROWS
    ]
    assert together == alone == backwards
    assert len({len(row) for row in alone}) > 1 or not options  # rows end at different times


def test_padding_comes_back_as_it_was():
    inputs = _batch(ROWS)
    found = generate(ToyModel(), **inputs, max_new_tokens=5)
    assert torch.equal(found[:, :6], inputs["input_ids"])


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 2048])
def test_chunks_change_nothing(chunk):
    model = ToyModel()
    rows = [[1, 9, *[IMAGE] * 5, 14], [1, 8], [1, IMAGE, 30, *[IMAGE] * 7, 4]]
    inputs = _batch(rows) | _images(5, 1, 7)
    found = generate(model, **inputs, max_new_tokens=6, prefill_chunk_size=chunk)
    prefill = [step for step in model.steps if step.logits_indices is not None]
    assert all(step.segments.rows <= chunk for step in prefill)
    assert sum(step.segments.rows for step in prefill) == sum(map(len, rows))
    assert sum(len(step.logits_indices) for step in prefill) == 3  # logits of the last positions alone
    assert torch.equal(found, generate(ToyModel(), **inputs, max_new_tokens=6, use_cache=False))


def test_a_chunk_is_never_larger_than_2048_positions():
    model = ToyModel(positions=6000)
    ids = torch.randint(4, 60, (2, 2500), generator=torch.Generator().manual_seed(1))
    generate(model, ids, max_new_tokens=2, prefill_chunk_size=10_000)
    assert [step.segments.rows for step in model.steps][:3] == [2048, 2048, 904]


def test_progress_tells_positions():
    calls = []
    generate(
        ToyModel(),
        **_batch(ROWS),
        max_new_tokens=2,
        prefill_chunk_size=4,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(0, 15), (4, 15), (8, 15), (12, 15), (15, 15)]


def test_rows_that_ended_take_no_part_in_further_steps():
    model = ToyModel()
    found = generate(model, **_batch(ROWS), max_new_tokens=15)
    lengths = [len(row) for row in _new(found, 6)]
    for number, step in enumerate(step for step in model.steps if step.logits_indices is None):
        assert len(step.segments) == sum(length > number + 1 for length in lengths)
    assert model.open_sequences == 0


def test_a_seed_fixes_the_text_and_another_gives_another():
    def draw(seed):
        return generate(
            ToyModel(),
            torch.tensor([[1, 9]]),
            do_sample=True,
            seed=seed,
            max_new_tokens=12,
            eos_token_id=None,
        ).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw([1]) == draw(1)


def test_without_a_seed_the_generator_of_torch_decides():
    def draw():
        return generate(ToyModel(), torch.tensor([[1, 9]] * 2), do_sample=True, max_new_tokens=12).tolist()

    torch.manual_seed(3)
    first = draw()
    assert draw() != first
    torch.manual_seed(3)
    assert draw() == first
    assert first[0] != first[1]


def test_greedy_draws_leave_the_generator_of_torch_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate(ToyModel(), torch.tensor([[1, 9]]), max_new_tokens=3)
    assert torch.equal(torch.rand(1), expected)


def test_completions_of_one_prompt_are_those_of_the_repeated_prompt():
    options = {"do_sample": True, "seed": 4, "max_new_tokens": 10, "eos_token_id": None}
    ids = torch.tensor([[1, 9, 14, 20]])
    three = generate(ToyModel(), ids, num_return_sequences=3, **options)
    assert len({tuple(row) for row in three.tolist()}) == 3
    assert torch.equal(three, generate(ToyModel(), ids.repeat(3, 1), **options))
    assert torch.equal(three[:1], generate(ToyModel(), ids, **options))
    among_others = generate(ToyModel(), torch.tensor([[1, 8, 8, 8], [1, 9, 14, 20]]), **options)
    assert torch.equal(three[:1], among_others[1:])


def test_each_prompt_may_have_its_own_seed():
    options = {"do_sample": True, "max_new_tokens": 10, "eos_token_id": None}
    ids = torch.tensor([[1, 9], [1, 8]])
    found = generate(ToyModel(), ids, seed=[7, 8], num_return_sequences=2, **options)
    for row, seed in ((0, 7), (1, 8)):
        alone = generate(ToyModel(), ids[row : row + 1], seed=seed, num_return_sequences=2, **options)
        assert torch.equal(found[2 * row : 2 * row + 2], alone)
    with pytest.raises(InputError, match="3 numbers for 2 prompts"):
        generate(ToyModel(), ids, seed=[1, 2, 3], **options)


def test_the_same_words_about_other_images_are_another_prompt():
    options = {"do_sample": True, "seed": 4, "max_new_tokens": 10, "eos_token_id": None}
    ids = torch.tensor([[1, IMAGE, IMAGE, 9]])
    images = _images(2, 2)
    both = generate(ToyModel(), ids.repeat(2, 1), **images, **options)
    for n in range(2):
        own = {name: value[n : n + 1] for name, value in images.items()}
        assert torch.equal(both[n : n + 1], generate(ToyModel(), ids, **own, **options))


@pytest.mark.parametrize("recorded", [False, True])
def test_completions_share_the_reading_of_prompt_and_images(recorded):
    model = ToyModel()
    inputs = _batch([[1, IMAGE, IMAGE, *range(10, 50)], [1, IMAGE, 9]]) | _images(2, 1)
    options = {
        "do_sample": True,
        "seed": 2,
        "max_new_tokens": 40,
        "num_return_sequences": 3,
        "eos_token_id": None,
    }
    found = generate(model, **inputs, **options, return_dict_in_generate=recorded)
    assert model.encoded == 2
    read = sum(step.segments.rows for step in model.steps if step.logits_indices is not None)
    if recorded:  # each row's cache is returned, so each is read
        assert len(found.past_key_values.sequences) == 6
        found = found.sequences
    else:
        assert read == 46
        assert model.open_sequences == 0
    assert found.shape == (6, 43 + 40)
    assert torch.equal(found, generate(ToyModel(), **inputs, **options, use_cache=False))


def test_a_long_completion_makes_the_cache_grow(monkeypatch):
    plain = generate(ToyModel(), **_batch(ROWS), max_new_tokens=150, eos_token_id=None)
    monkeypatch.setattr(runner, "AHEAD", 1)
    model = ToyModel()
    assert torch.equal(plain, generate(model, **_batch(ROWS), max_new_tokens=150, eos_token_id=None))
    assert model.open_sequences == 0


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_cached_and_chunked_equal_whole_with_a_real_model(family):
    model = tiny.model(family)
    ids = torch.tensor([[1, *range(20, 60)], [11] * 30 + [1, *range(40, 50)]])
    mask = (ids != 11).long()
    whole = generate(model, ids, attention_mask=mask, max_new_tokens=8, use_cache=False)
    for chunk in (3, 16, 2048):
        found = generate(model, ids, attention_mask=mask, max_new_tokens=8, prefill_chunk_size=chunk)
        assert torch.equal(found, whole)


# --- a cache that goes on ---------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_its_cache():
    model = ToyModel()
    inputs = _batch([[1, IMAGE, IMAGE, 10, 11], [1, 8, 9]]) | _images(2)
    first = generate(model, **inputs, max_new_tokens=9, return_dict_in_generate=True)
    kept = torch.cat([inputs["attention_mask"], torch.ones(2, first.sequences.shape[1] - 5)], dim=1)
    for row, reason in enumerate(first.finish_reasons):
        if reason == "eos":
            end = first.sequences[row, 5:].tolist().index(2) + 6
            kept[row, end:] = 0
    further = torch.tensor([[40, 41], [42, IMAGE]])
    ids = torch.cat([first.sequences, further], dim=1)
    mask = torch.cat([kept, torch.ones(2, 2)], dim=1)
    model.steps.clear()
    image = _images(1, seed=1)
    found = generate(
        model, ids, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=5, **image
    )
    assert model.steps[0].segments.rows <= 2 * 3  # the further ids, and each row's last one
    both = {
        "pixel_values": torch.zeros(2, 3, 4, 4),
        "image_sizes": torch.tensor([[4, 4], [4, 2]]),
    }
    both["pixel_values"][0] = inputs["pixel_values"][0]
    both["pixel_values"][1, :, :, :2] = image["pixel_values"][0]
    assert torch.equal(found, generate(ToyModel(), ids, attention_mask=mask, max_new_tokens=5, **both))


def test_a_real_cache_of_forward_goes_on_and_so_do_plain_tuples():
    model = tiny.model("mistral3")
    ids = torch.tensor([[1, *range(20, 40)], [11] * 5 + [1, *range(40, 55)]])
    mask = (ids != 11).long()
    expected = generate(model, ids, attention_mask=mask, max_new_tokens=6)
    with torch.no_grad():
        past = model(input_ids=ids[:, :12], attention_mask=mask[:, :12], use_cache=True).past_key_values
    legacy = past.to_legacy_cache()
    assert torch.equal(
        generate(model, ids, attention_mask=mask, max_new_tokens=6, past_key_values=past), expected
    )
    found = generate(model, ids, attention_mask=mask, max_new_tokens=6, past_key_values=legacy)
    assert torch.equal(found, expected)
    # and the cache that generate() extended serves forward() again
    assert past.get_seq_length() == expected.shape[1] - 1
    whole = torch.cat([mask, torch.ones(2, 6, dtype=torch.long)], dim=1)
    with torch.no_grad():
        last = model(input_ids=expected[:, -1:], attention_mask=whole, past_key_values=past).logits[:, -1]
        full = model(input_ids=expected, attention_mask=whole).logits[:, -1]
    assert (last - full).abs().max() <= 1e-5 * full.abs().max()


def test_an_interrupt_leaves_nothing_behind():
    class Stop(KeyboardInterrupt):
        pass

    def interrupt(ids, scores):
        if ids.shape[1] > 8:
            raise Stop
        return scores

    model = ToyModel()
    with pytest.raises(Stop):
        generate(model, **_batch(ROWS), max_new_tokens=9, logits_processor=[interrupt])
    assert model.caches
    assert model.open_sequences == 0


def test_an_interrupt_gives_a_lent_cache_back_as_it_was():
    model = ToyModel()
    ids = torch.tensor([[1, 9, 14]])
    first = generate(model, ids, max_new_tokens=4, return_dict_in_generate=True, eos_token_id=None)
    cache = first.past_key_values
    before = [cache.length(sequence) for sequence in cache.sequences]

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    mask = torch.ones_like(first.sequences)
    with pytest.raises(KeyboardInterrupt):
        generate(model, first.sequences, attention_mask=mask, past_key_values=cache, progress=interrupt)
    assert [cache.length(sequence) for sequence in cache.sequences] == before


def test_gradients_are_neither_kept_nor_switched_off_for_others():
    found = generate(
        tiny.model("llava"),
        torch.tensor([[1, 20]]),
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert not found.logits[0].requires_grad
    assert not found.logits[0].is_inference()
    assert torch.is_grad_enabled()


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"max_new_token": 5}, InputError, "'max_new_token'; did you mean max_new_tokens"),
        ({"tempreature": 0.5}, InputError, "did you mean temperature"),
        ({"position_ids": torch.zeros(1, 2)}, InputError, "position_ids"),
        ({"num_beams": 4}, UnsupportedError, "num_beams=4"),
        ({"penalty_alpha": 0.6, "typical_p": 0.5}, UnsupportedError, "penalty_alpha=0.6, typical_p=0.5"),
        ({"assistant_model": object()}, UnsupportedError, "assistant_model"),
        ({"output_attentions": True}, UnsupportedError, "output_attentions=True"),
        ({"temperature": -1.0}, ConfigError, "temperature"),
        ({"top_p": 1.5}, ConfigError, "top_p"),
        ({"repetition_penalty": 0.0}, ConfigError, "repetition_penalty"),
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens"),
        ({"max_new_tokens": True}, ConfigError, "max_new_tokens"),
        ({"num_return_sequences": 0}, ConfigError, "num_return_sequences"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"seed": 0.5}, ConfigError, "seed"),
        ({"eos_token_id": ["</s>"]}, ConfigError, "eos_token_id"),
        ({"stop_strings": ""}, ConfigError, "stop_strings"),
        ({"stop_strings": ["x"]}, InputError, "tokenizer="),
        ({"do_sample": True, "temperature": 0}, InputError, "do_sample=False"),
        ({"max_length": 2}, InputError, "max_length is 2"),
        ({"max_new_tokens": 600}, ContextError, "at most 511"),
        ({"attention_mask": torch.zeros(1, 2)}, InputError, "prompt 0 has no position"),
        ({"attention_mask": torch.ones(1, 3)}, InputError, r"\(1, 2\)"),
        ({"past_key_values": 3}, InputError, "past_key_values"),
        ({"inputs": torch.ones(1, 2)}, InputError, "twice"),
        (
            {"pixel_values": torch.zeros(1, 3, 4, 4), "image_sizes": torch.tensor([[4, 4]])},
            InputError,
            "0 image .* 2",
        ),
        ({"logits_processor": lambda ids, scores: None}, InputError, "must return scores"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: []}, InputError, "allows no id"),
        ({"generation_config": {"max_new_tokens": 3}}, ConfigError, "GenerationConfig"),
    ],
)
def test_refusals_say_what_is_wrong(keywords, error, words):
    model = ToyModel()
    with pytest.raises(error, match=words):
        generate(model, input_ids=torch.tensor([[1, 9]]), **keywords)
    assert model.open_sequences == 0


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        (torch.tensor([[1, 64]]), ContextError, "id 64 .* vocabulary of 64"),
        (torch.tensor([[1, -3]]), ContextError, "id -3"),
        (torch.ones(1, 600, dtype=torch.long), ContextError, "600 positions, the model 512"),
        (torch.ones(1, 2), InputError, "whole numbers"),
        (torch.ones(2, dtype=torch.long), InputError, "whole numbers"),
        (torch.ones(1, 0, dtype=torch.long), InputError, "prompt 0 has no position"),
        (torch.tensor([[1, 5], [0, 0]]), InputError, "prompt 1 has no position"),
        (torch.tensor([[1, IMAGE]]), InputError, "1 image tokens and came without images"),
        ({"ids": [1, 2]}, InputError, "input_ids"),
    ],
)
def test_prompts_that_cannot_be_used(ids, error, words):
    with pytest.raises(error, match=words):
        generate(ToyModel(), ids)


def test_counts_of_image_tokens_and_features_must_agree():
    ids = torch.tensor([[1, IMAGE, IMAGE, 9]])
    for widths in ((1,), (3,), (2, 2)):
        with pytest.raises(InputError, match=rf"2 image tokens, the images have {sum(widths)}"):
            generate(ToyModel(), ids, **_images(*widths))


def test_a_text_only_model_reads_no_images():
    with pytest.raises(InputError, match="text-only"):
        generate(ToyModel(image=None), torch.tensor([[1, 9]]), **_images(1))


def test_the_last_position_can_be_used():
    model = ToyModel(positions=12)
    found = generate(model, torch.tensor([[1, 9]]), max_new_tokens=11, eos_token_id=None)
    assert found.shape == (1, 13)  # the last id is drawn and never read
    with pytest.raises(ContextError, match="at most 11"):
        generate(model, torch.tensor([[1, 9]]), max_new_tokens=12)


def test_a_length_that_only_the_checkpoint_asked_for_gives_way_to_the_context():
    model = ToyModel(positions=12)
    model.generation_config = GenerationConfig(max_new_tokens=500)
    assert generate(model, torch.tensor([[1, 9]])).shape == (1, 13)
    model.generation_config = GenerationConfig()
    assert generate(model, torch.tensor([[1, 9]])).shape == (1, 13)


def test_rows_that_end_by_text_need_something_to_fill_them():
    model = ToyModel()
    model.generation_config = GenerationConfig()
    ids = torch.tensor([[1, 9], [1, 8]])
    with pytest.raises(InputError, match="set pad_token_id"):
        generate(model, ids, stop_strings="q", tokenizer=Letters())
    assert generate(model, ids, stop_strings="q", tokenizer=Letters(), pad_token_id=0).shape[0] == 2
    assert generate(model, ids[:1], stop_strings="q", tokenizer=Letters()).shape[0] == 1


def test_idle_options_are_pointed_out():
    ids = torch.tensor([[1, 9]])
    with pytest.warns(UserWarning, match="temperature, top_p have no effect without do_sample"):
        generate(ToyModel(), ids, temperature=0.5, top_p=0.5)
    with pytest.warns(UserWarning, match="output_scores have no effect"):
        generate(ToyModel(), ids, output_scores=True)


def test_every_finish_has_its_reason():
    model = ToyModel()
    found = generate(model, **_batch(ROWS), max_new_tokens=15, return_dict_in_generate=True)
    expected = ["eos" if 2 in row else "length" for row in _new(found.sequences, 6)]
    assert list(found.finish_reasons) == expected
    assert set(expected) == {"eos", "length"}
