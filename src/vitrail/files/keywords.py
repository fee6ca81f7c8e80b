"""Unknown keywords of calls, refused with similar names; names of secrets, which are never written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vitrail.errors import InputError, UnsupportedError, VitrailError

_SECRET = re.compile(
    r"(use_)?((hf|hub|huggingface|hf_hub|huggingface_hub|push_to_hub|api|access|auth|bearer|private|refresh|secret)_?)*"
    r"(token|key|password|passwd|secret|credentials?|authorization)|proxies",
    re.ASCII,
)
# Keywords of transformers without meaning here, or with another: what to do instead.
_INSTEAD = {
    "adapter_kwargs": "use model.load_adapter",
    "add_prefix_space": "change tokenizer.json itself",
    "from_flax": "give a checkpoint with safetensors",
    "from_slow": "give a folder with a tokenizer.json",
    "from_tf": "give a checkpoint with safetensors",
    "gguf_file": "give a checkpoint with safetensors",
    "load_in_4bit": "give quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "give quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "push_to_hub": "use save_pretrained and the hub's own client",
    "split_special_tokens": "use apply_chat_template, which keeps typed control tokens text",
    "tokenizer_file": "give the folder that holds tokenizer.json",
    "tokenizer_type": "the class is chosen by the folder's files",
}


def is_secret(name: object) -> bool:
    """Return whether a key is a secret's by its name: "token", "use_auth_token", "api_key", … but not "pad_token"."""
    return isinstance(name, str) and _SECRET.fullmatch(name.lower().replace("-", "_")) is not None


def without_secrets(value: Any) -> Any:
    """Return a JSON value without the keys, at any depth, that hold secrets."""
    if isinstance(value, Mapping):
        return {key: without_secrets(one) for key, one in value.items() if not is_secret(key)}
    if type(value) in (list, tuple):
        return type(value)(without_secrets(one) for one in value)
    return value


def near(name: str, known: Iterable[str], cutoff: float = 0.7) -> list[str]:
    """Return at most three names among `known` similar to `name`."""
    return difflib.get_close_matches(name, [word for word in known if not word.startswith("_")], 3, cutoff)


def refuse_unknown(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    *,
    error: type[VitrailError] = InputError,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Raise `error` with every name of `given` that is not in `known`, and its replacement; never a value.

    Args:
        hints: advice for single names, beside that for transformers' own keywords.
    """
    unknown = sorted({str(name) for name in given if name not in known})
    if not unknown:
        return
    instead = {**_INSTEAD, **(hints or {})}
    said = []
    for name in unknown:
        if name in instead:
            said.append(instead[name] + (f" in place of {name}" if len(unknown) > 1 else ""))
        elif words := near(name, known):
            said.append(f"did you mean {' or '.join(words)}" + (f" for {name}?" if len(unknown) > 1 else "?"))
    ending = (
        f"; {'; '.join(said)}" if said else "; leave it out." if len(unknown) == 1 else "; leave them out."
    )
    kind = UnsupportedError if any(name in instead for name in unknown) and error is InputError else error
    raise kind(f"{owner} does not know the argument {', '.join(unknown)}{ending}")
