"""A training step against PEFT's and transformers' on the same model; adapters saved by either, loaded by the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.pairs import IMAGE, TEXTS, VISION_LANGUAGE, Pair, Shape, build, close, inputs
from vitrail import LoraConfig
from vitrail.errors import CheckpointError, ConfigError
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


def peft_adapter(theirs: Any, folder: Path, *, embeddings: bool = False, **options: Any) -> Any:
    """PEFT's model with an adapter whose trained tensors are moved, saved into `folder`."""
    import peft

    config = peft.LoraConfig(r=4, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(theirs, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(folder, save_embedding_layers=embeddings)
    return wrapped


WHOLE = (
    "multi_modal_projector",
    "patch_merger",
    "projector",
    "vision_tower",
    "linear_1",
    "norm",
    "head",
    "embed_tokens",
)


@pytest.mark.parametrize("whole", WHOLE)
def test_load_adapter_of_peft_with_modules_to_save_gives_its_logits(whole: str, tmp_path: Path) -> None:
    """Containers, endings of names, single layers; saved here, PEFT loads the same file again."""
    import peft

    shape = SMALL if whole == "patch_merger" else PIXTRAL
    pair, given = build(shape, gain=0.7), inputs(shape, None)
    targets = r".*language_model.*\.q_proj"
    theirs = peft_adapter(pair.theirs, tmp_path / "theirs", target_modules=targets, modules_to_save=[whole])
    pair.ours.load_adapter(tmp_path / "theirs")
    pair.ours.save_adapter(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(build(shape, gain=0.7).theirs, tmp_path / "ours").eval()
    with torch.no_grad():
        expected = theirs(**given).logits
        close(pair.ours(**given).logits, expected, "logits")
        close(again(**given).logits, expected, "saved here")
        fresh = build(shape, gain=0.7).ours
        names = fresh.add_adapter(LoraConfig(target_modules=targets, modules_to_save=[whole]))
        close(fresh(**given).logits, build(shape, gain=0.7).ours(**given).logits, "fresh")
    assert set(names) == {name.removesuffix(".base_layer") for name, _ in pair.ours.named_modules()
                          if name.endswith(".base_layer")}  # fmt: skip


@pytest.mark.parametrize("rows", [0, 8], ids=["same-vocabulary", "resized"])
def test_load_adapter_with_embeddings_saved_whole_gives_pefts_logits(rows: int, tmp_path: Path) -> None:
    pair, given = build(PIXTRAL, gain=0.7), inputs(PIXTRAL, None)
    size = pair.theirs.get_input_embeddings().weight.shape[0] + rows
    for model in (pair.theirs, pair.ours):
        model.resize_token_embeddings(size)
    with torch.no_grad():
        plain = pair.ours(**given).logits
        pair.theirs.get_input_embeddings().weight += 0.25
        theirs = peft_adapter(pair.theirs, tmp_path, embeddings=True, target_modules=["q_proj"])
        names = [name for name, _ in pair.ours.named_modules()]
        pair.ours.load_adapter(tmp_path)
        close(pair.ours(**given).logits, theirs(**given).logits, "logits")
        trained = [name for name, p in pair.ours.named_parameters() if p.requires_grad]
        assert trained and all(".lora_" in name for name in trained), "the embeddings are not trained"
        pair.ours.delete_adapter("default")
        assert [name for name, _ in pair.ours.named_modules()] == names
        assert torch.equal(pair.ours(**given).logits, plain)
    if rows:
        with pytest.raises(CheckpointError, match="resize_token_embeddings"):
            build(PIXTRAL, gain=0.7).ours.load_adapter(tmp_path)


@pytest.mark.parametrize("whole", [None, ["lm_head"]], ids=["matrices", "whole"])
def test_load_adapter_with_keys_without_prefix_gives_pefts_logits(whole: Any, tmp_path: Path) -> None:
    """transformers writes them with save_peft_format=False."""
    pair, given = build(PIXTRAL, gain=0.7), inputs(PIXTRAL, None)
    theirs = peft_adapter(pair.theirs, tmp_path, target_modules=["q_proj"], modules_to_save=whole)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key.removeprefix("base_model.model."): value for key, value in load_file(file).items()}, file)
    pair.ours.load_adapter(tmp_path)
    with torch.no_grad():
        close(pair.ours(**given).logits, theirs(**given).logits, "logits")


def test_orthogonal_init_is_pefts_and_loads_from_either(tmp_path: Path) -> None:
    import peft

    pair, given = build(TEXTS[0], gain=0.7), inputs(TEXTS[0], None)
    options: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}
    with torch.no_grad():
        plain = pair.ours(**given).logits
        torch.manual_seed(1)  # PEFT draws other numbers first: values differ, their kind does not
        theirs = peft.get_peft_model(pair.theirs, peft.LoraConfig(**options))
        pair.ours.add_adapter(LoraConfig(**options))
        close(pair.ours(**given).logits, plain, "it begins as nothing")
    for model in (pair.ours, theirs):
        parts = [p.detach() for name, p in model.named_parameters() if "lora_" in name]
        for a, b in zip(parts[0::2], parts[1::2], strict=True):
            assert a.any() and b.any() and float((b @ a).abs().max()) < 1e-7
            assert 0.02 < float(a.std()) < 0.1
    theirs.save_pretrained(tmp_path)
    again = build(TEXTS[0], gain=0.7).ours
    again.load_adapter(tmp_path)
    with torch.no_grad():
        close(again(**given).logits, theirs(**given).logits, "loaded")
    with pytest.raises(ConfigError, match="even r, got 3"):
        build(TEXTS[0]).ours.add_adapter(LoraConfig(**{**options, "r": 3}))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (
            "language_model.layers.1.self_attn.q_proj",
            r"target_modules also names .*layers\.1\.self_attn\.q_proj",
        ),
        (".v_proj.", r"target_modules also names .*v_proj"),
        ("linear_2", r"modules_to_save also names model\.multi_modal_projector\.linear_2"),
    ],
)
def test_load_adapter_that_lacks_modules_of_its_configuration_is_refused(
    lost: str, said: str, tmp_path: Path
) -> None:
    pair = build(PIXTRAL, gain=0.7)
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["multi_modal_projector"]}
    peft_adapter(pair.theirs, tmp_path, **options)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if lost not in key}, file)
    names = [name for name, _ in pair.ours.named_modules()]
    with pytest.raises(CheckpointError, match=said):
        pair.ours.load_adapter(tmp_path)
    assert [name for name, _ in pair.ours.named_modules()] == names


def test_load_adapter_of_a_text_model_on_a_vision_language_model_needs_no_matrices_for_images(
    tmp_path: Path,
) -> None:
    """Its target_modules name layers of the tower too, which the adapter's own model did not have."""
    pair = build(PIXTRAL, gain=0.7)
    peft_adapter(pair.theirs, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    text = {key.replace(".language_model.", "."): value for key, value in load_file(file).items()
            if ".language_model." in key}  # fmt: skip
    save_file(text, file)
    pair.ours.load_adapter(tmp_path)
    assert sum(name.endswith(".lora_A") for name, _ in pair.ours.named_parameters()) == len(text) // 2
    text.pop(next(key for key in text if "layers.1." in key and "lora_A" in key))
    text.pop(next(key for key in text if "layers.1." in key and "lora_B" in key))
    save_file(text, file)
    with pytest.raises(
        CheckpointError, match=r"also names model\.language_model\.layers\.1\.self_attn\.q_proj, with"
    ):
        pair.ours.load_adapter(tmp_path, "other")


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
