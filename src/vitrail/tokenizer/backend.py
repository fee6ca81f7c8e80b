"""The `tokenizers.Tokenizer` of a tokenizer.json: read, checked and adjusted to tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import CheckpointError
from vitrail.files.json import JSON_LIMIT
from vitrail.files.lfs import refuse_pointer
from vitrail.files.opening import open_regular
from vitrail.files.token_ids import TokenIds
from vitrail.tokenizer.safety import check_backend, no_panic
from vitrail.tokenizer.special_tokens import added_token, token_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
_HIGHEST = 2**31 - 1  # of ids: beyond it the library's count of new tokens overflows
_LONGEST_CONTROL = 200  # letters of a special token: prompts are searched for them letter by letter
_LONGEST = 10_000  # letters of a token: some models try each as long as it fits, at each letter of a text


def read_backend(file: Path) -> Tokenizer:
    """Read the tokenizer of a tokenizer.json.

    Raises:
        CheckpointError: the file is missing, too large or damaged.
    """
    from tokenizers import Tokenizer

    try:
        with open_regular(file) as stream:
            data = stream.read(JSON_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(data) > JSON_LIMIT:
        raise CheckpointError(f"{file} is larger than the {JSON_LIMIT:,} bytes that a tokenizer may have")
    refuse_pointer(data, str(file))
    with no_panic(f"{file} is no tokenizer that the tokenizers library reads"):
        backend = Tokenizer.from_buffer(data)
    check_backend(backend, str(file))
    _check_added(backend, data, file)
    return backend


def _check_added(backend: Tokenizer, data: bytes, file: Path) -> None:
    """Raise CheckpointError where the library silently gives an added token another id than the file."""
    for entry in _added_tokens(data):
        found = backend.token_to_id(entry["content"])
        if entry["id"] > _HIGHEST:
            raise CheckpointError(
                f"{file} gives {entry['content']!r} the id {entry['id']}; at most {_HIGHEST} may be"
            )
        if found != entry["id"] and entry["content"]:
            raise CheckpointError(
                f"{file} gives {entry['content']!r} the id {entry['id']}, which is not the next free one or is another "
                f"token's; the tokenizers library would use {found}"
            )


def _added_tokens(data: bytes) -> list[dict[str, Any]]:
    """Read the added tokens of a file that the library has accepted, without its vocabulary where that comes last."""
    head, _, _ = data.partition(b'"model"')
    try:
        parsed = json.loads(head.rstrip().removesuffix(b",") + b"}")
    except ValueError:  # another order of the keys
        parsed = json.loads(data)
    added: list[dict[str, Any]] = parsed.get("added_tokens") or []
    return added


def token_ids_of(backend: Tokenizer, file: Path) -> TokenIds:
    """Return `read_token_ids` of the `file` behind `backend`, without parsing it again."""
    controls = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    ids = set(vocabulary.values())
    highest, longest = max(ids, default=-1), max(map(len, vocabulary), default=0)
    if len(ids) != len(vocabulary):
        raise CheckpointError(f"{file} gives two tokens one id")
    if highest > _HIGHEST or longest > _LONGEST:
        raise CheckpointError(
            f"{file} has ids up to {highest:,} and tokens of up to {longest:,} letters; {_HIGHEST:,} and {_LONGEST:,} may be"
        )
    return TokenIds(file, highest + 1, controls)


def declare_tokens(backend: Tokenizer, decoder: Mapping[str, Any], special: Iterable[str]) -> None:
    """Add the tokens that a configuration declares (`added_tokens_decoder`, by id) or names and the file lacks."""
    if not isinstance(decoder, Mapping):
        raise CheckpointError(
            f"added_tokens_decoder must be an object of tokens by their ids; got {type(decoder).__name__}"
        )
    try:
        declared = {int(i): added_token(decoder[i], special=False) for i in sorted(decoder, key=int)}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"added_tokens_decoder must map ids to tokens: {error}") from error
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in declared.items():
        if token.content not in known:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            found = backend.token_to_id(token.content)
            raise CheckpointError(
                f"tokenizer_config.json gives {token.content!r} the id {index}, tokenizer.json has {found}"
            )
    known |= {token.content for token in declared.values()}
    missing = dict.fromkeys(name for name in special if name not in known)
    backend.add_special_tokens([added_token(name, special=True) for name in missing])
    for index, token in backend.get_added_tokens_decoder().items():
        if token.special and len(token.content) > _LONGEST_CONTROL:
            raise CheckpointError(
                f"the special token with the id {index} has {len(token.content):,} letters; {_LONGEST_CONTROL} may be"
            )


def follow_llama_flags(backend: Tokenizer, config: Mapping[str, Any]) -> None:
    """Add bos and eos by `add_bos_token` and `add_eos_token`, as Llama's classes do, instead of the file's way."""
    from tokenizers.processors import TemplateProcessing

    ends: dict[str, list[tuple[str, int]]] = {}
    for name, default in (("bos_token", True), ("eos_token", False)):
        if not config.get(f"add_{name}", default):
            continue
        token = config.get(name) or {"bos_token": "<s>", "eos_token": "</s>"}[name]
        text = token_text(token, name)
        index = backend.token_to_id(text)
        if index is None:
            raise CheckpointError(f"add_{name} is set, but the vocabulary has no {text!r}")
        ends[name] = [(text, index)]
    tokens = [token for pairs in ends.values() for token in pairs]

    def form(sequence: str, kind: int) -> str:
        before, after = ends.get("bos_token"), ends.get("eos_token")
        parts = [
            before and f"{before[0][0]}:{kind}",
            f"${sequence}:{kind}",
            after and f"{after[0][0]}:{kind}",
        ]
        return " ".join(part for part in parts if part)

    with no_panic(f"{' and '.join(ends)} cannot be put around texts"):
        backend.post_processor = TemplateProcessing(
            single=form("A", 0), pair=f"{form('A', 0)} {form('B', 1)}", special_tokens=tokens
        )
