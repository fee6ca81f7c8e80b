"""Files of the embedded model's folder: tokenizer.json, chat template, processor and generation configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.reader import batches, charset

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}[SYSTEM_PROMPT]"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}[/SYSTEM_PROMPT]"
    "{% elif m['role'] == 'user' %}[INST]"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] if p['type'] != 'text' %}[IMG]{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}"
    "{{ p['text'] if 'text' in p else p['content'] }}{% endfor %}{% endif %}[/INST]"
    "{% elif m['role'] == 'assistant' %}"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
"""Prompt format v7 on characters. Images always precede the question, wherever the user put them, as in training."""


LONGEST_ANSWER = 320  # three lines of 34 characters with their positions, and a third more


def tokenizer_json() -> dict[str, Any]:
    """Return a `tokenizers` file: one token per character, control and position tokens as added tokens."""
    control = {
        **dict(enumerate(charset.SPECIALS)),
        **dict(enumerate(charset.places(), charset.first_place())),
    }
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in control.items()
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "[\\s\\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": charset.vocabulary(),
            "unk_token": charset.SPECIALS[charset.UNK],
        },
    }


def write_assets(folder: Path) -> None:
    """Write every file of the checkpoint folder except config.json and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    special = charset.SPECIALS
    _write(folder / "tokenizer.json", tokenizer_json())
    _write(
        folder / "tokenizer_config.json",
        {
            "bos_token": special[charset.BOS],
            "clean_up_tokenization_spaces": False,
            "eos_token": special[charset.EOS],
            "model_max_length": 4096,
            "pad_token": special[charset.PAD],
            "padding_side": "left",
            "processor_class": "PixtralProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": special[charset.UNK],
        },
    )
    images = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "PixtralImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": {"height": batches.PATCH, "width": batches.PATCH},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": batches.LONGEST_EDGE},
    }
    _write(folder / "preprocessor_config.json", {**images, "processor_class": "PixtralProcessor"})
    _write(
        folder / "processor_config.json",
        {
            "image_break_token": special[charset.IMG_BREAK],
            "image_end_token": special[charset.IMG_END],
            "image_token": special[charset.IMG],
            "patch_size": batches.PATCH,
            "processor_class": "PixtralProcessor",
            "spatial_merge_size": batches.UNIT // batches.PATCH,
        },
    )
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": charset.BOS,
            "eos_token_id": charset.EOS,
            "max_new_tokens": LONGEST_ANSWER,
            "pad_token_id": charset.PAD,
        },
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
