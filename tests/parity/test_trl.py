"""TRL's SFTTrainer around a Vitrail model logs the losses, gradients and accuracies of transformers' model.

TRL needs Python 3.11 and takes ten seconds to import: few cases, two steps each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.pairs import Pair, Shape, build
from tests.tiny import DATA
from vitrail.errors import InputError

if sys.version_info < (3, 11):
    pytest.skip("TRL needs Python 3.11", allow_module_level=True)

pytestmark = pytest.mark.slow

FOLDER = DATA / "mistral3-0"
TEXTS = ["Hello there", "The quick brown fox", "One two three four five", "a"] * 2
ANSWERS = TEXTS[::-1]
TEXT = Shape("text", "mistral", {"vocab_size": 512})
VISION = Shape("vision", "mistral3", {"vocab_size": 512}, {"patch_size": 7, "image_size": 112})
# As TRL's training templates: what the assistant says is inside {% generation %}.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]{% else %}"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
MESSAGES = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}
    for text, answer in zip(TEXTS, ANSWERS, strict=True)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in TEXTS],
    "completion": [{"prompt": p, "completion": c} for p, c in zip(TEXTS, ANSWERS, strict=True)],
    "messages": MESSAGES,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "evaluated": (
        "completion",
        {"eval_strategy": "steps", "eval_steps": 1, "gradient_accumulation_steps": 2},
    ),
    "assistant-only": ("messages", {"assistant_only_loss": True, "neftune_noise_alpha": 5.0}),
    "padding-free": ("text", {"padding_free": True, "max_length": None, "gradient_checkpointing": False}),
    "packed": ("text", {"packing": True, "max_length": 32}),
}


@pytest.fixture(scope="module")
def trl() -> Any:
    found = pytest.importorskip("trl", reason="TRL is not installed (extra test, Python 3.11)")
    pytest.importorskip("datasets").disable_progress_bars()
    return found


def processing(vision: bool) -> Any:
    import transformers

    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / "tokenizer.json"), **names)
    tokenizer.chat_template = TEMPLATE
    if not vision:
        return tokenizer
    template = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    images = transformers.PixtralImageProcessor(
        patch_size={"height": 7, "width": 7}, size={"longest_edge": 112}
    )
    options = {"patch_size": 7, "spatial_merge_size": 2, "chat_template": template}
    return transformers.PixtralProcessor(images, tokenizer, **options)


def fit(
    trl: Any, model: Any, rows: list[dict[str, Any]], folder: Path, peft: Any = None, **options: Any
) -> Any:
    """The trainer after two steps, and what it logged."""
    import datasets

    settings = {
        "per_device_train_batch_size": 2, "max_steps": 2, "report_to": [], "use_cpu": True, "bf16": False, "seed": 1,
        "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3, **options,
    }  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(str(folder), **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows[:3]) if "eval_strategy" in options else None,
        processing_class=processing("images" in rows[0]),
        peft_config=peft,
    )
    trainer.train()
    kept = ("loss", "grad_norm", "eval_loss", "mean_token_accuracy", "entropy", "num_tokens")
    return trainer, [entry[name] for entry in trainer.state.log_history for name in kept if name in entry]


def both(trl: Any, pair: Pair, rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    """Our trainer, when what both log is the same."""
    ours, found = fit(trl, pair.ours, rows, folder, **options)
    _, expected = fit(trl, pair.theirs, rows, folder, **options)
    assert len(found) >= 10 and found == pytest.approx(expected, rel=2e-5)
    return ours


@pytest.mark.parametrize("name", CASES)
def test_sft_trainer_logs_what_it_logs_of_transformers_model(name: str, trl: Any, tmp_path: Path) -> None:
    kind, options = CASES[name]
    trainer = both(trl, build(TEXT, gain=0.7), ROWS[kind], tmp_path, **options)
    assert "sft" in trainer.model.model_tags


def test_sft_trainer_trains_an_adapter_on_images_and_saves_it(trl: Any, tmp_path: Path) -> None:
    import peft
    from PIL import Image

    with Image.open(DATA / "images" / "00.png") as image:
        rows = [{"images": [image.convert("RGB")], **row} for row in MESSAGES]
    targets = r".*language_model.*\.(q_proj|v_proj)"
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    options = {"max_length": None, "save_strategy": "steps", "save_steps": 2, "peft": config}
    trainer = both(trl, build(VISION, gain=0.7), rows, tmp_path, **options)
    again = build(VISION, gain=0.7).ours
    again.load_adapter(tmp_path / "checkpoint-2")
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=ids).logits for model in (trainer.model, again))
        assert not torch.equal(build(VISION, gain=0.7).ours(input_ids=ids).logits, theirs)
    torch.testing.assert_close(theirs, ours)


def test_boundaries_of_packed_rows_that_differ_from_position_ids_are_refused() -> None:
    model = build(TEXT).ours
    ids, places = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])
    given = {"input_ids": ids, "position_ids": places}
    right = {
        "cu_seq_lens_q": torch.tensor([0, 3, 5]),
        "max_length_q": 3,
        "seq_idx": torch.tensor([[0, 0, 0, 1, 1]]),
    }
    with torch.no_grad():
        expected = model(**given).logits
        types = torch.zeros_like(ids)
        assert torch.equal(model(**given, **right, token_type_ids=types).logits, expected)
        for wrong in ({"cu_seq_lens_k": [0, 5]}, {"max_length_q": 2}, {"seq_idx": torch.zeros(1, 5)}):
            with pytest.raises(InputError, match="say different things"):
                model(**given, **wrong)
            with pytest.raises(InputError, match="need position_ids"):
                model(input_ids=ids, **wrong)
