"""Output of `vitrail info`: tables, and the architecture as a tree."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vitrail.cli.console import PlainConsole
from vitrail.cli.output import printable
from vitrail.files.formatting import in_words
from vitrail.files.layout import NAMES

if TYPE_CHECKING:
    from vitrail.describe import ModelInfo
    from vitrail.model.architecture import Part

WIDTH = 110  # if the output is not a terminal
_PARTS = {
    "vision_tower": "vision tower",
    "projector": "projector",
    "embeddings": "embeddings",
    "language_model": "language model",
    "head": "head",
}
_PRECISIONS = {"bfloat16": "bfloat16, float16", "fp4": "FP4", "nf4": "NF4", "nf4_double": "NF4, double"}


def show(info: ModelInfo, speed: dict[str, Any]) -> None:
    """Print a ModelInfo. speed: the record of `bench.limits`."""
    console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_facts(info))
    for table in (_parameters(info), _memory(info, speed), _images(info)):
        if table is not None:
            console.print(table)
    console.print(_speed(info, speed))
    console.print(_tree(info.architecture))


def _facts(info: ModelInfo) -> Table:
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in (
        ("model", info.model),
        ("class", info.architecture.name),
        ("format", _format(info)),
        ("weights", _weights(info)),
        ("tokenizer", _tokenizer(info)),
        ("tower", _tower(info.geometry.get("vision"))),
        ("decoder", _decoder(info.geometry["text"])),
        ("context", f"{info.positions:,} positions"),
        ("free memory", _free(info)),
    ):
        facts.add_row(name, _text(value))
    return facts


def _tower(vision: dict[str, Any] | None) -> str:
    if vision is None:
        return "none: it reads text only"
    merge = vision["spatial_merge_size"]
    merged = f", {merge}×{merge} of them a token" if merge > 1 else ", each a token"
    return (
        f"{vision['num_hidden_layers']} blocks, {vision['hidden_size']} wide, {vision['num_attention_heads']} heads of "
        f"{vision['head_dim']}; patches of {vision['patch_size']} pixels{merged}, sides up to {vision['image_size']}"
    )


def _decoder(text: dict[str, Any]) -> str:
    rope = text["rope_scaling"] or {}
    yarn = f", YaRN × {rope['factor']:g}" if "factor" in rope else ""
    window = f", a window of {text['sliding_window']:,}" if text["sliding_window"] else ""
    return (
        f"{text['num_hidden_layers']} blocks, {text['hidden_size']} wide, {text['num_attention_heads']} heads of "
        f"{text['head_dim']} ({text['num_key_value_heads']} of keys and values), {text['vocab_size']:,} rows; "
        f"rotary base {text['rope_theta']:g}{yarn}{window}"
    )


def _format(info: ModelInfo) -> str:
    if not info.format:
        return "a published geometry; no files were looked at"
    other = [name for name in info.formats if name != info.format]
    also = f" ({NAMES[other[0]]} is there too: --format {other[0]})" if other else ""
    return NAMES[info.format] + also


def _weights(info: ModelInfo) -> str:
    files, size = info.weights["files"], info.weights["bytes"]
    number = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    if not info.weights["here"]:
        return f"not here: {number}, {in_words(size)}" if size else "not here"
    kinds = ", ".join(f"{name} {in_words(part)}" for name, part in info.weights["dtypes"].items())
    packed = f", quantised: {info.weights['quantized']}" if info.weights["quantized"] else ""
    packed += f", {info.weights['bits_per_weight']:.2f} bits a weight"
    return f"{number}, {in_words(size)} ({kinds}){packed}"


def _tokenizer(info: ModelInfo) -> str:
    if not info.tokenizer:
        return "none"
    used = info.tokenizer["used"]
    others = ", ".join(name for name in info.tokenizer["found"] if name != used)
    also = f"; {others} is there too: tokenizer_mode='hf'" if others == "tokenizer.json" else ""
    return f"{used}, {info.tokenizer['ids']:,} ids{also}"


def _free(info: ModelInfo) -> str:
    size = info.free["bytes"]
    return "unknown" if size is None else f"{in_words(size)} on {info.free['device']}"


def _table(title: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _parameters(info: ModelInfo) -> Table:
    table = _table("part", "parameters")
    for part, shown in _PARTS.items():
        count = info.parameters[part]
        if count:
            table.add_row(shown, f"{count:,}")
        elif part == "head" and info.tied:
            table.add_row(shown, "tied")
    table.add_row("all", f"{info.parameters['total']:,}")
    return table


def _memory(info: ModelInfo, speed: dict[str, Any]) -> Table:
    """Return a table: precision, weights, while loading, cache, whether it fits, highest tokens per second."""
    mapped = any(need["mapped"] for need in info.memory.values())
    columns = (
        "weights",
        *(["of them mapped"] if mapped else []),
        "while loading",
        "cache of 1,000 positions",
    )
    table = _table("precision", *columns, "fits now", "tokens/s at most")
    free = info.free["bytes"]
    for name, need in info.memory.items():
        cache = info.cache["float32" if name == "float32" else "bfloat16"]
        fits = "" if free is None else ("yes" if need["while_loading"] <= free else "no")
        table.add_row(
            _PRECISIONS.get(name, name),
            in_words(need["weights"]),
            *([in_words(need["mapped"])] if mapped else []),
            in_words(need["while_loading"]),
            in_words(cache),
            fits,
            _number(speed["tokens_per_second"][name]),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _speed(info: ModelInfo, speed: dict[str, Any]) -> str:
    image = "1024 × 768 pixels and a short question" if info.images else "a short question"
    return (
        f"This machine reads {in_words(speed['bytes_per_second'])} a second and computes "
        f"{speed['flop_per_second'] / 1e9:,.0f} billion operations a second: an answer to {image} "
        f"({info.question['ids']:,} tokens) begins after {_number(speed['question_seconds'])} s at the earliest. "
        "`vitrail bench` measures how near Vitrail comes.\n"
    )


def _images(info: ModelInfo) -> Table | None:
    """Return a table of tokens by size, with those of the other dialect where they differ."""
    if not info.images:
        return None
    used = info.images["dialect"]
    other = "hf" if used == "mistral" else "mistral"
    sizes = info.images["sizes"]
    differs = any(row[other] != row["tokens"] for row in sizes)
    table = _table("image", "read at", f"tokens ({used})", *([f"tokens ({other})"] if differs else []))
    for row in sizes:
        cells = [
            f"{row['width']} × {row['height']}",
            f"{row['read_width']} × {row['read_height']}",
            f"{row['tokens']:,}",
        ]
        table.add_row(*cells, *([f"{row[other]:,}"] if differs else []))
    return table


def _tree(part: Part, branch: Tree | None = None) -> Tree:
    label = _text(f"{part.name}  ")
    label.append(printable(part.detail if part.detail != part.name else ""), style="dim")
    if part.parameters:
        label.append(f"  {part.parameters:,}", style="cyan")
    node = Tree(label) if branch is None else branch.add(label)
    for child in part.children:
        _tree(child, node)
    return node


def _text(words: str) -> Text:
    return Text(printable(words))
