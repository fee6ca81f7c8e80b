"""transformers' Trainer, accelerate and PEFT around a Vitrail model: losses and files as around transformers' own."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import IMAGE, TEXTS, VISION_LANGUAGE, Shape, build, close, inputs
from vitrail import LoraConfig
from vitrail.errors import InputError, UnsupportedError

SMALL, TEXT, TIED = VISION_LANGUAGE[6], TEXTS[0], TEXTS[5]


def rows(count: int = 8) -> list[dict[str, Tensor]]:
    """Texts of different lengths; a beginning of each is not learned."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in torch.randint(4, 12, (count,), generator=generator).tolist():
        ids = torch.randint(IMAGE + 1, 96, (length,), generator=generator)
        labels = ids.clone()
        labels[: 1 + length % 3] = -100
        found.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return found


def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch, padded at the right."""
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in batch], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }  # fmt: skip


def labelled(shape: Shape) -> dict[str, Tensor]:
    given = {name: value for name, value in inputs(shape, "right").items() if name != "position_ids"}
    ids = given["input_ids"]
    return {**given, "labels": ids.masked_fill((given["attention_mask"] == 0) | (ids == IMAGE), -100)}


def fit(model: Any, folder: Path, **options: Any) -> list[float]:
    """What Trainer logs of two steps."""
    import transformers  # its Trainer takes seconds to import

    settings = {
        "per_device_train_batch_size": 4, "max_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3, "seed": 1, **options,
    }  # fmt: skip
    trainer = transformers.Trainer(
        model=model.train(),
        args=transformers.TrainingArguments(str(folder), **settings),
        train_dataset=rows(),
        eval_dataset=rows(3),
        data_collator=collate,
    )
    trainer.train()
    kept = ("loss", "grad_norm", "eval_loss", "total_flos", "num_input_tokens_seen")
    return [entry[name] for entry in trainer.state.log_history for name in kept if name in entry]


OPTIONS: dict[str, dict[str, Any]] = {
    "one-batch": {"eval_strategy": "steps", "eval_steps": 1, "include_num_input_tokens_seen": True},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointed": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "smoothed": {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TEXT, SMALL, TIED], ids=str)
def test_trainer_logs_the_losses_and_gradients_of_transformers_model(shape: Shape, tmp_path: Path) -> None:
    found = {}
    for name, options in OPTIONS.items():
        pair = build(shape, gain=0.7)
        found[name] = fit(pair.ours, tmp_path, **options)
        assert len(found[name]) > 4
        assert found[name] == pytest.approx(fit(pair.theirs, tmp_path, **options), rel=1e-5), name
    steps = [found["one-batch"][0], found["accumulated"][0], found["checkpointed"][0]]
    assert steps == pytest.approx([steps[0]] * 3, rel=1e-4), "a step's loss does not depend on how it is cut"


@pytest.mark.slow
def test_trainer_of_a_peft_model_trains_and_saves_its_adapter(tmp_path: Path) -> None:
    import peft

    found = []
    for which in ("ours", "theirs"):
        model, folder = getattr(build(SMALL, gain=0.7), which), tmp_path / which
        config = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
        checkpointing = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
        found.append(fit(wrapped, folder, save_strategy="steps", save_steps=1, **checkpointing))
        assert (folder / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    again, given = build(SMALL, gain=0.7).ours, labelled(SMALL)
    again.load_adapter(tmp_path / "theirs" / "checkpoint-2")
    with torch.no_grad():
        loss = again(**given).loss
        close(loss, wrapped.eval()(**given).loss, "the adapter that transformers' model trained")


def test_forward_with_num_items_in_batch_divides_the_summed_loss() -> None:
    for shape in (TEXT, SMALL):
        pair, given = build(shape, gain=0.7), labelled(shape)
        with torch.no_grad():
            for items in (7, torch.tensor(7), torch.tensor([3.5])):
                ours = pair.ours(**given, num_items_in_batch=items).loss
                close(ours, pair.theirs(**given, num_items_in_batch=items).loss.reshape(()), "loss")
            for wrong in (0, -1, True, "7", torch.tensor([1, 2]), torch.tensor(0)):
                with pytest.raises(InputError, match="num_items_in_batch must be a number above 0"):
                    pair.ours(**given, num_items_in_batch=wrong)


def test_position_ids_that_begin_anew_without_a_mask_are_sequences_of_their_own() -> None:
    """Padding-free training, as trl's padding_free=True and DataCollatorWithFlattening hand it over."""
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 1, 2], [*range(12)]])
    ids = torch.randint(IMAGE + 1, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    for shape in (TEXT, TEXTS[7], SMALL):
        pair = build(shape, gain=0.7)
        given = {"input_ids": ids, "position_ids": positions, "labels": ids, "output_attentions": True}
        with torch.no_grad():
            ours, theirs = pair.ours(**given), pair.theirs(**given, use_cache=False)
            alone = pair.ours(input_ids=ids[:1, 5:8]).logits
        close(ours.logits, theirs.logits, "logits")
        close(ours.loss, theirs.loss, "loss")
        for one, other in zip(ours.attentions, theirs.attentions, strict=True):
            close(one, other, "attentions")
        close(ours.logits[:1, 5:8], alone, "alone")
        assert ours.past_key_values is None


def test_gradient_checkpointing_kwargs_are_those_of_torch(tmp_path: Path) -> None:
    model = build(TEXT).ours
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    assert model.is_gradient_checkpointing and model.model.is_gradient_checkpointing
    model.train()(**labelled(TEXT)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(UnsupportedError, match="does not know every_nth"):
        model.gradient_checkpointing_enable({"every_nth": 2})
    with pytest.raises(UnsupportedError, match=r"use_reentrant=True .* leave it out, gradients are the same"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("shape", [TEXT, SMALL], ids=str)
def test_a_loop_over_prepare_inputs_for_generation_draws_what_generate_draws(shape: Shape) -> None:
    pair = build(shape)
    given = {name: value for name, value in inputs(shape, "left").items() if name != "position_ids"}
    expected = pair.ours.generate(**given, max_new_tokens=5, do_sample=False)
    ids, mask, past = given.pop("input_ids"), given.pop("attention_mask"), None
    start = 0
    with torch.no_grad():
        for _ in range(5):
            where = torch.arange(start, ids.shape[1])
            step: dict[str, Any] = {"past_key_values": past, "attention_mask": mask, "cache_position": where}
            prepared = pair.ours.prepare_inputs_for_generation(ids, **step, **given)
            if past is None:
                theirs = pair.theirs.prepare_inputs_for_generation(ids, **step, **given)
                for name in ("input_ids", "position_ids", "attention_mask", "pixel_values", "image_sizes"):
                    one, other = prepared.get(name), theirs.get(name)
                    assert (one is None and other is None) or torch.equal(one, other), name
            else:
                assert prepared["input_ids"].shape[1] == 1 and "pixel_values" not in prepared
            output = pair.ours(**prepared)
            past, start = output.past_key_values, ids.shape[1]
            ids = torch.cat([ids, output.logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        assert torch.equal(ids, expected)
        with pytest.raises(InputError, match="there is no new id to read"):
            pair.ours.prepare_inputs_for_generation(ids[:, :-1], past_key_values=past)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL, TIED], ids=str)
def test_accelerate_prepares_saves_and_loads_a_model_in_its_documented_ways(
    shape: Shape, tmp_path: Path
) -> None:
    from accelerate import Accelerator

    found = []
    for which in ("ours", "theirs"):
        model, given = getattr(build(shape, gain=0.7), which), labelled(shape)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
        wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
        losses = []
        for _ in range(4):
            with accelerator.accumulate(wrapped):
                loss = wrapped(**given).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(accelerator.gather(loss.detach()).mean()))
        found.append(losses)
        if which == "ours":
            ours, last = accelerator.unwrap_model(wrapped), wrapped
            assert ours is model
            with torch.no_grad():
                trained = ours.eval()(**given).logits
            accelerator.save_state(str(tmp_path / "state"))
            accelerator.save_model(last, str(tmp_path / "model"))
            ours.config.save_pretrained(tmp_path / "model")
            ours.save_pretrained(
                tmp_path / "folder", is_main_process=accelerator.is_main_process,
                save_function=accelerator.save, state_dict=accelerator.get_state_dict(last),
            )  # fmt: skip
            with torch.no_grad():
                next(iter(ours.parameters())).add_(1)
            accelerator.load_state(str(tmp_path / "state"))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    with torch.no_grad():
        assert torch.equal(ours(**given).logits, trained), "load_state"
        for name in ("model", "folder"):
            again = type(ours).from_pretrained(tmp_path / name)
            assert torch.equal(again(**given).logits, trained), name


def test_save_pretrained_of_an_adapted_model_writes_the_given_state(tmp_path: Path) -> None:
    model, given = build(SMALL, gain=0.7).ours, labelled(SMALL)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(**given).logits
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path, state_dict=state, save_function=torch.save)
    again = build(SMALL, gain=0.7).ours
    again.load_adapter(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**given).logits, expected)
    state.pop(next(name for name in state if "lora_B" in name))
    with pytest.raises(InputError, match=r"state_dict lacks .*lora_B"):
        model.save_pretrained(tmp_path, state_dict=state)


TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [TEXT, SMALL], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_peft_wraps_the_model_for_every_task_as_transformers(
    task: str | None, shape: Shape, tmp_path: Path
) -> None:
    """Classification too, whose head neither model has: PEFT then trains the causal loss."""
    import peft

    pair, given = build(shape, gain=0.7), labelled(shape)
    found = []
    for model in (pair.ours, pair.theirs):
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["norm"],
            trainable_token_indices=[12, 13], task_type=task,
        )  # fmt: skip
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():  # by their names: modules stand in another order here
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                    noise = torch.randn(parameter.shape, generator=generator) * 0.1
                    parameter.copy_(noise + ("norm" in name))
        loss = wrapped.train()(**given).loss
        loss.backward()
        grads = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
        prompt = {name: value for name, value in inputs(shape, "left").items() if name != "position_ids"}
        drawn = wrapped.eval().generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        found.append((wrapped, loss.detach(), grads, drawn))
    (ours, loss, grads, drawn), (theirs, their_loss, their_grads, their_drawn) = found
    assert type(ours) is type(theirs) and grads.keys() == their_grads.keys() and len(grads) > 8
    close(loss, their_loss, "loss")
    for name, grad in their_grads.items():
        close(grads[name], grad, name)
    assert drawn.tolist() == their_drawn.tolist()
    ours.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(shape, gain=0.7).ours, str(tmp_path)).eval()
    with torch.no_grad(), ours.disable_adapter():
        close(ours(**given).loss, build(shape, gain=0.7).theirs(**given).loss, "switched off")
    with torch.no_grad():
        close(again(**given).loss, theirs(**given).loss, "loaded again")
        close(ours.merge_and_unload()(**given).loss, theirs(**given).loss, "merged")


@pytest.mark.slow
def test_peft_prompt_tuning_trains_as_transformers_and_is_refused_where_the_prompt_would_be_lost() -> None:
    import peft

    pair, given = build(SMALL, gain=0.7), labelled(SMALL)
    losses = []
    for model in (pair.ours, pair.theirs):
        torch.manual_seed(0)
        config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, config)
        losses.append(wrapped(**given).loss)
        losses[-1].backward()
        grad = wrapped.prompt_encoder.default.embedding.weight.grad
        assert grad is not None and grad.any()
        if model is pair.ours:
            with pytest.raises(UnsupportedError, match="would leave the trained prompt out"):
                wrapped.generate(input_ids=given["input_ids"][:1, -4:], max_new_tokens=2)
            assert pair.ours.generate(given["input_ids"][1:, -4:], max_new_tokens=2).shape == (1, 6)
    close(losses[0].detach(), losses[1].detach(), "loss")
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(UnsupportedError, match="past_key_values needs gradients"):
        peft.get_peft_model(build(TEXT, gain=0.7).ours, config)(**labelled(TEXT))
