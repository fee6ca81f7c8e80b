"""resize_token_embeddings: old rows stay, tying stays, the configuration follows, and the model still runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail.errors import InputError


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.tensor([[1, 20, 30]])).logits
    return result


@pytest.mark.parametrize("rows", [300, 600])
@pytest.mark.parametrize("family", ["llava", "mistral3", "ministral3"])
def test_old_rows_keep_their_values(family: str, rows: int) -> None:
    model = tiny.model(family)
    before, table = logits(model), model.get_input_embeddings().weight.clone()
    returned = model.resize_token_embeddings(rows)
    kept = min(rows, 512)
    assert returned is model.get_input_embeddings()
    assert model.config.text_config.vocab_size == rows
    assert returned.weight.shape == model.lm_head.weight.shape == (rows, table.shape[1])
    assert torch.equal(returned.weight[:kept], table[:kept])
    after = logits(model)
    assert after.shape[-1] == rows
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    tied = family == "ministral3"
    assert (model.lm_head.weight is returned.weight) == tied
    names = dict(model.named_parameters())
    assert ("lm_head.weight" in names) != tied


def test_new_rows() -> None:
    model = tiny.model("llava")
    table = model.get_input_embeddings().weight.detach().clone()
    new = model.resize_token_embeddings(514).weight
    torch.testing.assert_close(new[512:], table.mean(dim=0).expand(2, -1))
    other = tiny.model("llava").resize_token_embeddings(2512, mean_resizing=False).weight
    assert float(other[512:].detach().std()) == pytest.approx(0.02, rel=0.05)


def test_rounded_up_to_a_multiple() -> None:
    model = tiny.model("llava")
    assert model.resize_token_embeddings(513, pad_to_multiple_of=64).num_embeddings == 576
    assert model.resize_token_embeddings(pad_to_multiple_of=128).num_embeddings == 640
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(640).num_embeddings == 640


@pytest.mark.parametrize("change", [{"new_num_tokens": 0}, {"new_num_tokens": -5}, {"pad_to_multiple_of": 0}])
def test_numbers_that_cannot_be(change: dict[str, int]) -> None:
    model = tiny.model("llava")
    with pytest.raises(InputError, match="must be positive"):
        model.resize_token_embeddings(**change)
    assert model.get_input_embeddings().num_embeddings == 512


def test_type_and_training_flag_stay() -> None:
    model = tiny.model("llava").to(torch.bfloat16)
    model.get_input_embeddings().weight.requires_grad_(False)
    table = model.resize_token_embeddings(520)
    assert table.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16
    assert not table.weight.requires_grad
    assert model.lm_head.weight.requires_grad


def test_text_only_models_too() -> None:
    config = vitrail.MistralConfig.from_dict(tiny.config_dict("llava")["text_config"])
    model = vitrail.MistralForCausalLM(config).eval()
    model.resize_token_embeddings(520)
    assert logits(model).shape[-1] == model.config.vocab_size == 520
