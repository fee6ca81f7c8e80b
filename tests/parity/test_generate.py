"""generate() gives the ids of transformers' generate(), greedy, on tiny random checkpoints in float32."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests import tiny
from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError
from vitrail.generate.loop import generate
from vitrail.generate.outputs import GenerateOutput

transformers = pytest.importorskip("transformers")

IMAGE, BREAK, END = 10, 12, 13
PAD = 11


@dataclass
class Pair:
    """One checkpoint, loaded by both."""

    ours: Any
    theirs: Any
    side: int  # pixels of an image per image token

    def both(self, **inputs: Any) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = self.theirs.generate(**inputs)
            return generate(self.ours, **inputs), theirs

    def agree(self, **inputs: Any) -> torch.Tensor:
        found, expected = self.both(**inputs)
        assert found.tolist() == expected.tolist()
        return found

    def prompts(self, *grids: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A left-padded batch: one prompt per list of grids (rows, columns of image tokens)."""
        generator = torch.Generator().manual_seed(len(grids))
        rows, images = [], []
        for grid in grids:
            ids = [1, *torch.randint(20, 400, (3 + len(rows),), generator=generator).tolist()]
            for height, width in grid:
                for _ in range(height):
                    ids += [IMAGE] * width + [BREAK]
                ids[-1] = END
                images.append(torch.randn(3, height * self.side, width * self.side, generator=generator))
            rows.append([*ids, 30 + len(rows), 40])
        longest = max(map(len, rows))
        inputs = {
            "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        if images:
            height = max(p.shape[1] for p in images)
            width = max(p.shape[2] for p in images)
            pixels = torch.zeros(len(images), 3, height, width)
            for n, image in enumerate(images):
                pixels[n, :, : image.shape[1], : image.shape[2]] = image
            inputs["pixel_values"] = pixels
            inputs["image_sizes"] = torch.tensor([p.shape[1:] for p in images])
        return inputs


@pytest.fixture(scope="module", params=["llava", "mistral3"])
def pair(request, tiny_llava, tiny_mistral3) -> Pair:
    kind, folder, side = transformers.LlavaForConditionalGeneration, tiny_llava, 8
    if request.param == "mistral3":
        kind, folder, side = transformers.Mistral3ForConditionalGeneration, tiny_mistral3, 14
    ours = tiny.model(request.param)
    ours.generation_config = GenerationConfig.from_pretrained(folder)
    return Pair(ours, kind.from_pretrained(folder).eval(), side)


@pytest.fixture(scope="module")
def text() -> Pair:
    """A text-only model with tied embeddings, grouped heads and heads wider than width / heads."""
    torch.manual_seed(0)
    config = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    import vitrail
    from vitrail.model.causal import MistralForCausalLM

    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**config)).eval()
    ours = MistralForCausalLM(vitrail.MistralConfig(**config)).eval()
    ours.load_state_dict(theirs.state_dict())
    return Pair(ours, theirs, side=0)


GRIDS = [
    ([], []),
    ([(2, 3)],),
    ([(2, 3)], [(3, 2), (1, 4)], []),
    ([(1, 1)], [(4, 5)], [(2, 2)]),
]


@pytest.mark.parametrize("grids", GRIDS)
def test_greedy_ids_with_images_and_padding(pair, grids):
    found = pair.agree(**pair.prompts(*grids), max_new_tokens=12)
    assert len(set(found[0, -12:].tolist())) > 3  # the checkpoint says something


def test_rows_end_each_at_its_own_ids(pair):
    inputs = pair.prompts([(2, 3)], [], [(1, 2)])
    free = pair.agree(**inputs, max_new_tokens=12)
    ends = [int(free[0, -9]), int(free[2, -5])]
    found = pair.agree(**inputs, max_new_tokens=12, eos_token_id=ends, pad_token_id=PAD)
    assert (found[0, -8:] == PAD).any() or found.shape[1] < free.shape[1]
    pair.agree(**inputs, max_new_tokens=12, eos_token_id=ends[0])  # its own end id fills the rest
    pair.agree(**inputs, max_new_tokens=12, eos_token_id=ends, min_new_tokens=8, pad_token_id=PAD)
    pair.agree(**inputs, max_new_tokens=12, eos_token_id=ends, min_length=40, pad_token_id=PAD)


def test_the_batch_stops_when_every_row_has(text):
    ids = torch.tensor([[1, 5, 9], [1, 8, 30]])
    free = text.agree(input_ids=ids, max_new_tokens=20, eos_token_id=None)
    ends = [int(free[0, 5]), int(free[1, 7])]
    found = text.agree(input_ids=ids, max_new_tokens=20, eos_token_id=ends)
    assert found.shape[1] < free.shape[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_length": 30},
        {"max_new_tokens": 3, "min_new_tokens": 3},
        {"max_new_tokens": 8, "repetition_penalty": 1.7},
        {"max_new_tokens": 24, "no_repeat_ngram_size": 1},
        {"max_new_tokens": 24, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 40, "no_repeat_ngram_size": 4, "min_new_tokens": 38},
        {"max_new_tokens": 8, "use_cache": False},
        {"generation_config": "given", "max_new_tokens": 6},
        {"generation_config": "given"},
    ],
)
def test_lengths_and_options(text, options):
    ids = torch.tensor([[1, 5, 9], [1, 8, 30]])
    ours, theirs = dict(options), dict(options)
    if "generation_config" in options:
        values = {"max_new_tokens": 5, "repetition_penalty": 1.3}
        ours["generation_config"] = GenerationConfig(**values)
        theirs["generation_config"] = transformers.GenerationConfig(**values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = text.theirs.generate(ids, **theirs)
        assert generate(text.ours, ids, **ours).tolist() == expected.tolist()


def test_padding_is_found_without_a_mask(text):
    ids = torch.tensor([[0, 0, 1, 5, 9], [1, 8, 30, 7, 9]])
    found = text.agree(input_ids=ids, max_new_tokens=6)
    alone = generate(text.ours, ids[:1, 2:], max_new_tokens=6)
    assert found[0, 2:].tolist()[: alone.shape[1]] == alone[0].tolist()


def test_the_prompt_may_be_missing(text):
    found, expected = generate(text.ours, max_new_tokens=5), text.theirs.generate(max_new_tokens=5)
    assert found.tolist() == expected.tolist()


def test_embeddings_instead_of_ids(text):
    ids = torch.tensor([[0, 1, 5, 9], [1, 8, 30, 7]])
    mask = (ids != 0).long()
    embeds = text.theirs.get_input_embeddings()(ids).detach()
    found = text.agree(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6)
    assert found.shape[1] == 6
    text.agree(input_ids=ids, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6)


def test_stop_strings(pair, tiny_llava):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llava)
    inputs = pair.prompts([(2, 2)], [])
    free = pair.agree(**inputs, max_new_tokens=14)
    seen = 0
    for row in range(2):
        text = tokenizer.decode(free[row, -14:], clean_up_tokenization_spaces=False)
        for start in range(2, len(text) - 4, 5):
            stop = text[start : start + 2]
            if "\ufffd" in stop:
                continue
            seen += 1
            pair.agree(**inputs, max_new_tokens=14, stop_strings=[stop, "never"], tokenizer=tokenizer)
    assert seen > 3


def test_callables_of_the_user(text):
    ids = torch.tensor([[1, 5, 9], [1, 8, 30]])
    calls: list[tuple[Any, ...]] = []

    def even(input_ids, scores):
        calls.append((tuple(input_ids.shape), tuple(scores.shape)))
        scores = scores.clone()
        scores[:, 1::2] = -torch.inf
        return scores

    def long_enough(input_ids, scores, **kwargs):
        return (input_ids[:, -1] > 80) | (input_ids.shape[1] >= 11)

    found = text.agree(
        input_ids=ids,
        max_new_tokens=20,
        logits_processor=[even],
        stopping_criteria=[long_enough],
        pad_token_id=0,
        eos_token_id=95,
    )
    assert found.shape[1] <= 11
    assert all(id_ % 2 == 0 for id_ in found[:, 3:].flatten().tolist())
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


def test_processors_of_transformers_themselves(text):
    from transformers.generation import (
        LogitsProcessorList,
        MaxLengthCriteria,
        NoRepeatNGramLogitsProcessor,
        StoppingCriteriaList,
    )

    text.agree(
        input_ids=torch.tensor([[1, 5, 9], [1, 8, 30]]),
        max_new_tokens=20,
        logits_processor=LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)]),
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(12)]),
    )


def test_allowed_ids(text):
    ids = torch.tensor([[1, 5, 9], [1, 8, 30]])
    text.agree(
        input_ids=ids,
        max_new_tokens=9,
        prefix_allowed_tokens_fn=lambda row, sent: [10 + row, 20 + len(sent), 2],
    )


def test_what_is_recorded(pair):
    inputs = pair.prompts([(2, 3)], [(1, 2)])
    options = {"max_new_tokens": 6, "repetition_penalty": 1.4}
    found, expected = pair.both(
        **inputs, **options, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert isinstance(found, GenerateOutput)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert found["sequences"] is found[0]
    for name in ("scores", "logits"):
        ours, theirs = torch.stack(found[name]), torch.stack(expected[name])
        # transformers also penalises the padding of a row; here a row is the row alone.
        ours[..., PAD] = theirs[..., PAD] = 0
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for layer in range(len(found.past_key_values)):
        for ours, theirs in zip(found.past_key_values[layer], expected.past_key_values[layer], strict=True):
            kept = torch.cat([inputs["attention_mask"], torch.ones(2, 5)], dim=1).bool()
            ours, theirs = ours.transpose(1, 2)[kept], theirs.transpose(1, 2)[kept]
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_streamers_get_the_same_calls(text):
    class Spy:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.calls.append(value.tolist())

        def end(self) -> None:
            self.calls.append("end")

    ids = torch.tensor([[1, 5, 9], [1, 8, 30]])
    end = int(text.agree(input_ids=ids, max_new_tokens=8, eos_token_id=None)[0, 5])
    ours, theirs = Spy(), Spy()
    generate(text.ours, ids, max_new_tokens=8, streamer=ours, eos_token_id=end)
    text.theirs.generate(ids, max_new_tokens=8, streamer=theirs, eos_token_id=end)
    assert ours.calls == theirs.calls
    assert len(ours.calls) > 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": 3},
        {"max_new_tokens": 0},
        {"max_new_token": 5},
        {"stop_strings": "x"},
        {"do_sample": True, "temperature": 0.0},
    ],
)
def test_both_refuse(text, wrong):
    ids = torch.tensor([[1, 5, 9]])
    with pytest.raises(ValueError):  # noqa: PT011 - each library has its own words
        text.theirs.generate(ids, **wrong)
    with pytest.raises(ValueError):  # noqa: PT011
        generate(text.ours, ids, **wrong)


# --- caches -----------------------------------------------------------------------------------------------


def caches(ours: Any, theirs: Any) -> None:
    """Both hold the same keys and values."""
    assert ours.get_seq_length() == theirs.get_seq_length()
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip(one[:2], other[:2], strict=True):
            assert (mine - its).abs().max() <= 1e-5 * its.abs().max()


def test_new_ids_by_cache_position(text: Pair) -> None:
    ids, more = torch.arange(20, 30)[None], torch.arange(60, 66)[None]
    options = {"max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True}
    ours, theirs = text.both(input_ids=ids, **options)
    part = torch.cat([theirs.sequences[:, -1:], more], dim=1)
    further = {**options, "cache_position": torch.arange(13, 20), "attention_mask": torch.ones(1, 20).long()}
    expected = text.theirs.generate(part, past_key_values=theirs.past_key_values, **further)
    found = generate(text.ours, part, past_key_values=ours.past_key_values, **further)
    assert found.sequences.tolist() == expected.sequences.tolist()
    caches(found.past_key_values, expected.past_key_values)


def test_a_dynamic_cache_goes_through_a_chat(text: Pair) -> None:
    """As the guide has it: one DynamicCache, the whole conversation in every turn; it is filled in place."""
    ours, theirs = transformers.DynamicCache(), transformers.DynamicCache(config=text.theirs.config)
    ids = torch.tensor([[1, 5, 9, 14]])
    options = {"max_new_tokens": 5, "eos_token_id": None}
    for turn in range(3):
        found = generate(text.ours, ids, past_key_values=ours, **options)
        expected = text.theirs.generate(ids, past_key_values=theirs, **options)
        assert found.tolist() == expected.tolist()
        caches(ours, theirs)
        ids = torch.cat([found, torch.tensor([[30 + turn, 40, 50]])], dim=1)


def test_a_dynamic_cache_of_rows_that_end_early(text: Pair) -> None:
    ids = torch.tensor([[0, 0, 1, 5, 9], [1, 8, 30, 7, 9]])
    mask = (ids != 0).long()
    end = int(text.agree(input_ids=ids, attention_mask=mask, max_new_tokens=8, eos_token_id=None)[0, 6])
    past = transformers.DynamicCache()
    first = generate(
        text.ours, ids, attention_mask=mask, max_new_tokens=8, eos_token_id=end, past_key_values=past
    )
    whole = torch.cat([first, torch.tensor([[40, 41], [50, 51]])], dim=1)
    inputs = {"attention_mask": (whole != 0).long(), "max_new_tokens": 6, "eos_token_id": None}
    found = generate(text.ours, whole, past_key_values=past, **inputs)
    assert found.tolist() == generate(text.ours, whole, use_cache=False, **inputs).tolist()
    assert found.tolist() == text.theirs.generate(whole, **inputs).tolist()


def test_a_loop_of_forward_fills_a_dynamic_cache(text: Pair) -> None:
    ours, theirs = transformers.DynamicCache(), transformers.DynamicCache()
    for ids in (torch.tensor([[1, 5, 9, 14]]), torch.tensor([[20]]), torch.tensor([[21, 22]])):
        with torch.no_grad():
            found = text.ours(input_ids=ids, past_key_values=ours).logits
            expected = text.theirs(input_ids=ids, past_key_values=theirs).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        caches(ours, theirs)


def test_caches_that_do_not_hold_everything_are_refused(text: Pair) -> None:
    static = transformers.StaticCache(config=text.theirs.config, max_cache_len=64)
    window = copy.deepcopy(text.theirs.config)
    window.sliding_window, window.layer_types = 4, ["sliding_attention"] * 2
    sliding = transformers.DynamicCache(config=window)
    for layer in range(2):
        sliding.update(*(torch.zeros(1, 2, 9, 12),) * 2, layer)
    ids = torch.arange(20, 40)[None]
    for cache, words in ((static, "fixed size"), (sliding, "no longer holds all")):
        for call in (
            lambda cache=cache: generate(text.ours, ids, past_key_values=cache, max_new_tokens=2),
            lambda cache=cache: text.ours(input_ids=ids, past_key_values=cache),
        ):
            with pytest.raises(InputError, match=words):
                call()


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("crop", 5), ("crop", -2), ("crop", 99), ("crop", 0),
        ("reorder_cache", torch.tensor([1, 1])), ("batch_repeat_interleave", 3),
    ],
)  # fmt: skip
def test_methods_of_a_cache(text: Pair, method: str, argument: Any) -> None:
    ids = torch.tensor([[1, 5, 9, 14, 3, 7, 8, 4], [1, 8, 30, 7, 9, 50, 51, 52]])
    with torch.no_grad():
        ours = text.ours(input_ids=ids).past_key_values
        theirs = text.theirs(input_ids=ids).past_key_values
    getattr(ours, method)(argument)
    getattr(theirs, method)(argument)
    assert ours[0][0].shape == theirs[0][0].shape
    if theirs[0][0].numel():
        caches(ours, theirs)
