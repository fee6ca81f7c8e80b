"""Mistral's tokenizer files as tokenizer.json, so that the tests can ask for the same ids from both. No tests."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.prompts import SENTENCEPIECE, tokenizer, tokenizer_file
from vitrail.tokenizer.fast import FastTokenizer

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {byte: chr(byte) for byte in _PRINTABLE}
_BYTES |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in _BYTES)}


# v7m1 has the bytes of v7; the Tekken files differ in names of control tokens alone.
_FILES = {"v7m1": "v7", "v7-tekken": "v3-tekken", "v11": "v15", "v13": "v15"}


def json_tokenizer(version: str) -> FastTokenizer:
    """The tokenizer of a version, as one over a tokenizer.json, converted once; reference: the formats of both files."""
    return _converted(_FILES.get(version, version))


@functools.cache
def _converted(version: str) -> FastTokenizer:
    made = _from_sentencepiece(version) if version in SENTENCEPIECE else _from_tekken(tokenizer_file(version))
    return FastTokenizer(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _from_sentencepiece(version: str) -> Tokenizer:
    model: Any = tokenizer(version).tokenizer.instruct_tokenizer.tokenizer._model
    pieces = [model.id_to_piece(index) for index in range(model.vocab_size())]
    controls = {i for i in range(len(pieces)) if model.IsControl(i) or model.IsUnknown(i)}
    bytes_ = {i for i in range(len(pieces)) if model.IsByte(i)}
    words = {
        index
        for index, piece in enumerate(pieces)
        if index not in controls | bytes_ and piece.startswith("[") and model.GetScore(index) == 0
    }
    ranks = {p: -model.GetScore(i) for i, p in enumerate(pieces) if i not in controls | bytes_ | words}
    backend = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            _merges(ranks, {piece: index for index, piece in enumerate(pieces)}),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spaces)
    return _with_added(backend, [pieces[i] for i in sorted(controls)], [pieces[i] for i in sorted(words)])


def _from_tekken(file: Path) -> Tokenizer:
    content = json.loads(file.read_text())
    config = content["config"]
    start = config["default_num_special_tokens"]
    specials = [f"<SPECIAL_{index}>" for index in range(start)]
    listed = content.get("special_tokens") or tokenizer("v3-tekken").control_tokens
    for index, token in enumerate(listed):
        specials[index] = token["token_str"] if isinstance(token, dict) else token
    used = content["vocab"][: config["default_vocab_size"] - start]
    words = ["".join(_BYTES[byte] for byte in base64.b64decode(entry["token_bytes"])) for entry in used]
    vocabulary = {word: start + rank for rank, word in enumerate(words)}
    assert vocabulary.keys().isdisjoint(specials)
    ranks = {word: float(rank) for rank, word in enumerate(words)}
    merges = _merges(ranks, vocabulary)
    vocabulary |= {token: index for index, token in enumerate(specials)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(config["pattern"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return _with_added(backend, specials, [])


def _merges(ranks: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the pieces with the best rank first."""
    merges: list[tuple[str, str]] = []
    for piece in sorted(ranks, key=ranks.__getitem__):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _with_added(backend: Tokenizer, controls: list[str], words: list[str]) -> Tokenizer:
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in words])
    return backend
