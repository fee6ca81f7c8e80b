"""What images cost: N equal ones against one, ragged ones against their sum, and the dense mask of transformers.

    OMP_NUM_THREADS=1 python benchmarks/vision_ragged.py [--width 1024] [--layers 2] [--side 512] [--rounds 3]
    … --dense 4     also transformers' tower (needs the `test` extra) on 1 and 4 images

Rounds are interleaved, so that a machine that slows down slows every row; the least CPU time of each is shown.
CPU seconds and not wall seconds, since a shared machine makes the latter meaningless.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vitrail import PixtralVisionConfig, PixtralVisionModel

Work = Callable[[], object]


def machine() -> str:
    """The processor's name, cores, threads and torch."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def interleaved(work: dict[str, Work], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each piece of work over `rounds` turns."""
    least: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, call in work.items():
            start = time.process_time()
            call()
            spent = time.process_time() - start
            if number:  # the first turn warms up
                least[name] = min(spent, least.get(name, spent))
    return least


def images(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Noise padded to the largest image, and the sizes."""
    table = torch.tensor(sizes)
    height, width = table.amax(0).tolist()
    return torch.randn(len(sizes), 3, height, width), table


def tower(config: PixtralVisionConfig, sizes: list[tuple[int, int]], model: PixtralVisionModel) -> Work:
    """One call of our tower on images of these sizes."""
    pixels, table = images(sizes)
    return lambda: model(pixels, table)


def dense(config: PixtralVisionConfig, sizes: list[tuple[int, int]]) -> Work:
    """One call of transformers' tower (SDPA under one mask over all images) of the same geometry."""
    import transformers

    settings = transformers.PixtralVisionConfig(**config.to_dict())
    model = transformers.PixtralVisionModel._from_config(settings, attn_implementation="sdpa").eval()
    pixels, table = images(sizes)
    return lambda: model(pixels, table)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("width", 1024), ("layers", 2), ("side", 512), ("rounds", 3), ("dense", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    config = PixtralVisionConfig(
        hidden_size=chosen.width,
        intermediate_size=4 * chosen.width,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.width // 64,
    )
    model = PixtralVisionModel(config).eval()
    side = chosen.side
    equal = {f"{n} of {side}²": [(side, side)] * n for n in (1, 2, 4, 8)}
    parts = [(side, side), (side, side // 2), (side // 4, side)]
    ragged = {f"{h}×{w}": [(h, w)] for h, w in parts[1:]} | {"ragged, together": parts}
    work = {name: tower(config, sizes, model) for name, sizes in (equal | ragged).items()}
    counts = [1, chosen.dense] if chosen.dense else []
    work |= {f"transformers, {n} of {side}²": dense(config, [(side, side)] * n) for n in counts}
    print(
        f"{machine()}\ntower {chosen.width} wide, {chosen.layers} layers, float32; least of {chosen.rounds} CPU times"
    )
    with torch.no_grad():
        spent = interleaved(work, chosen.rounds)
    one = spent[f"1 of {side}²"]
    for n in (1, 2, 4, 8):
        now = spent[f"{n} of {side}²"]
        print(f"{n} of {side}²{'':<12} {now:8.3f} s   {now / (n * one):.3f} of {n} × one")
    apart = one + sum(spent[f"{h}×{w}"] for h, w in parts[1:])
    together = spent["ragged, together"]
    print(f"three sizes at once   {together:8.3f} s   {together / apart:.3f} of one by one")
    for n in counts:
        now = spent[f"transformers, {n} of {side}²"]
        print(f"transformers, {n:<7} {now:12.3f} s   {now / spent[f'{n} of {side}²']:.3f} of ours")


if __name__ == "__main__":
    main()
