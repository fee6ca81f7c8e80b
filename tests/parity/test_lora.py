"""A training step against PEFT's and transformers' on the same model; adapters saved by either, loaded by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import IMAGE, TEXTS, VISION_LANGUAGE, Pair, Shape, build, close, inputs
from vitrail import LoraConfig
from vitrail.train.packing import Pack, loss_sum

PIXTRAL, SMALL = VISION_LANGUAGE[0], VISION_LANGUAGE[6]
PATTERN = r".*(language_model.*\.(q_proj|down_proj)|vision_tower.*\.v_proj|multi_modal_projector\.linear_1)"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "by-pattern": {"target_modules": PATTERN, "use_rslora": True},
    "ranks": {
        "target_modules": ["q_proj", "down_proj", "linear_1"],
        "exclude_modules": r".*layers\.0\..*",
        "rank_pattern": {r"layers\.1\..*q_proj": 2},
        "alpha_pattern": {"linear_1": 5},
    },
    "dora": {"target_modules": ["q_proj", "linear_1", "v_proj"], "use_dora": True},
    "layers": {"target_modules": ["o_proj"], "layers_to_transform": [1], "modules_to_save": ["lm_head"]},
    "tables": {"target_modules": ["embed_tokens", "lm_head"]},
}


def labelled(shape: Shape) -> dict[str, Tensor]:
    """Two conversations; the last ids of each are learned."""
    given = inputs(shape, "right")
    labels = torch.full_like(given["input_ids"], -100)
    for row, mask in enumerate(given["attention_mask"]):
        end = int(mask.sum())
        learned = given["input_ids"][row, end - 4 - row : end]
        labels[row, end - 4 - row : end] = torch.where(learned == IMAGE, -100, learned)
    return {**given, "labels": labels}


def packed(given: dict[str, Tensor]) -> Pack:
    """The same conversations without padding."""
    kept = given["attention_mask"].bool()
    lengths = tuple(int(n) for n in kept.sum(1))
    shifted = torch.nn.functional.pad(given["labels"][:, 1:], (0, 1), value=-100)[kept]
    keep = (shifted != -100).nonzero().squeeze(1)
    return Pack(
        ids=given["input_ids"][kept],
        positions=given["position_ids"][kept],
        lengths=lengths,
        keep=keep,
        targets=shifted[keep],
        pixel_values=given.get("pixel_values"),
        image_sizes=given.get("image_sizes"),
    )


def our_step(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by name, of packed rows."""
    rows = packed(given)
    loss = loss_sum(model, rows) / len(rows.targets)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def their_step(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by name, of a padded batch."""
    loss = model(**given, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def as_peft_names(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of an adapter's parameters as PEFT's live model has them."""
    found = {}
    for name, grad in grads.items():
        head, _, tail = name.partition(".adapters.default.")
        if tail == "weight":  # saved whole
            tail = "modules_to_save.default.weight"
        elif tail == "lora_magnitude_vector":
            tail = "lora_magnitude_vector.default.weight"
        else:
            tail = f"{tail}.default" + ("" if "embedding" in tail else ".weight")
        found[f"base_model.model.{head}.{tail}"] = grad
    return found


def adapted(shape: Shape, kind: str, folder: Path) -> Pair:
    """Both models with the same adapter, ours saved and loaded by PEFT."""
    import peft  # here: it brings PyTorch's compiler with it, seconds of imports for every process that collects

    pair = build(shape, gain=0.7)
    torch.manual_seed(3)
    pair.ours.add_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **KINDS[kind]))
    pair.ours.save_adapter(folder)
    theirs = peft.PeftModel.from_pretrained(pair.theirs, folder, is_trainable=True)
    return Pair(pair.ours, theirs.eval())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [PIXTRAL, SMALL], ids=str)
def test_a_step_of_an_adapter(shape: Shape, kind: str, tmp_path: Path) -> None:
    if shape is SMALL and kind not in ("plain", "dora"):
        pytest.skip("one family is enough for the choice of layers")
    pair, given = adapted(shape, kind, tmp_path), labelled(shape)
    ours, our_grads = our_step(pair.ours, given)
    theirs, their_grads = their_step(pair.theirs, given)
    close(ours, theirs, "loss")
    renamed = as_peft_names(our_grads)
    assert renamed.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        close(renamed[name], grad, name)
    trained = {name for name, p in pair.theirs.named_parameters() if p.requires_grad}
    assert trained == set(their_grads), "every parameter of the adapter takes part"


@pytest.mark.parametrize("shape", [PIXTRAL, TEXTS[0]], ids=str)
def test_an_adapter_that_peft_saved(shape: Shape, tmp_path: Path) -> None:
    import peft

    pair, given = build(shape, gain=0.7), inputs(shape, None)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(pair.theirs, config)
    theirs.save_pretrained(tmp_path)
    pair.ours.load_adapter(tmp_path)
    with torch.no_grad():
        close(pair.ours(**given).logits, theirs(**given).logits, "logits")
        close(
            pair.ours.merge_and_unload()(**given).logits, theirs.merge_and_unload()(**given).logits, "merged"
        )


@pytest.mark.parametrize("shape", [PIXTRAL, SMALL, TEXTS[0]], ids=str)
def test_a_step_of_all_weights(shape: Shape) -> None:
    """Loss, gradients, and the weights after AdamW: packed rows here, a padded batch there."""
    pair, given = build(shape, gain=0.7), labelled(shape)
    ours, our_grads = our_step(pair.ours.train(), given)
    theirs, their_grads = their_step(pair.theirs.train(), given)
    close(ours, theirs, "loss")
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        close(our_grads[name], grad, name)
    for model in (pair.ours, pair.theirs):
        torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3).step()
    for name, parameter in pair.theirs.named_parameters():
        close(pair.ours.get_parameter(name).detach(), parameter.detach(), name)
