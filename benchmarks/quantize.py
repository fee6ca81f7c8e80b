"""Packing a random matrix and measuring its error: the kernels beside PyTorch's definition, in turn, the same bytes.

    OMP_NUM_THREADS=2 python benchmarks/quantize.py [--out 4096] [--columns 5120] [--rounds 3] [--formats q4 q8 nf4]

What `vitrail quantize` does with each matrix, without reading and writing files. Wall seconds and the process's own (all
threads together), the least of the rounds; on a machine that others use the second is the one to read. Where bitsandbytes
is installed its own packing on the CPU stands beside NF4.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vitrail.ops.cpu import library
from vitrail.ops.cpu.encode import squared_error
from vitrail.ops.weight import PackedWeight
from vitrail.quant.bitsandbytes_codes import quantize_4bit
from vitrail.quant.formats.vitrail import quantize_own

PIXTRAL_12B = 12_681_000_000  # weights in matrices, tower and projector included
Seconds = tuple[float, float]


def packed(matrix: Tensor, kind: str) -> PackedWeight:
    """The matrix as `vitrail quantize` packs it."""
    return quantize_4bit(matrix, kind) if kind == "nf4" else quantize_own(matrix, kind, dtype=torch.float32)


def spent(work: Callable[[], object]) -> Seconds:
    """Wall and CPU seconds of one turn."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def least(
    work: dict[str, Callable[[], object]], isas: list[str], rounds: int
) -> dict[tuple[str, str], Seconds]:
    """(what, by whom) → the least wall and CPU seconds of the rounds, in each of which everybody has one turn."""
    found: dict[tuple[str, str], Seconds] = {}
    for _ in range(rounds):
        for what, call in work.items():
            for isa in isas:
                with library.using(isa):
                    turn = spent(call)
                before = found.get((what, isa), turn)
                found[what, isa] = min(before[0], turn[0]), min(before[1], turn[1])
    return found


def peer(matrix: Tensor, rounds: int) -> Seconds | None:
    """bitsandbytes' own packing of NF4, where it is installed."""
    try:
        from bitsandbytes.functional import quantize_4bit as theirs
    except ImportError:
        return None
    turns = [spent(lambda: theirs(matrix, quant_type="nf4", blocksize=64)) for _ in range(rounds)]
    return min(wall for wall, _ in turns), min(own for _, own in turns)


def measure(matrix: Tensor, kind: str, rounds: int) -> None:
    """Print one format's lines."""
    isa = library.status().used
    if isa is None:
        raise SystemExit("there are no kernels to compare with")
    with library.using("off"):
        slow = packed(matrix, kind)
    fast = packed(matrix, kind)
    if any(not torch.equal(slow.tensors[name], part) for name, part in fast.tensors.items()):
        raise RuntimeError("the two packed matrices differ")
    work: dict[str, Callable[[], object]] = {
        "packing": lambda: packed(matrix, kind),
        "its error": lambda: squared_error(matrix, fast),
    }
    found, count = least(work, ["off", isa], rounds), matrix.numel()
    for what in work:
        (slow_wall, slow_own), (wall, own) = found[what, "off"], found[what, isa]
        print(
            f"{kind} {what:9}: {own / count * 1e9:6.2f} ns of CPU a weight against {slow_own / count * 1e9:6.2f} "
            f"({slow_own / own:4.1f}×); wall {wall * 1e3:7.1f} ms against {slow_wall * 1e3:7.1f} ({slow_wall / wall:4.1f}×)",
            flush=True,
        )
    total = sum(found[what, isa][1] for what in work) / count * PIXTRAL_12B
    before = sum(found[what, "off"][1] for what in work) / count * PIXTRAL_12B
    print(f"{kind}: Pixtral 12B would take {total:.0f} CPU seconds, {before:.0f} without kernels")
    other = peer(matrix, rounds) if kind == "nf4" else None
    if other is not None:
        print(
            f"nf4 packing by bitsandbytes: {other[1] / count * 1e9:.2f} ns of CPU a weight, wall {other[0] * 1e3:.1f} ms"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("out", 4096), ("columns", 5120), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--formats", nargs="+", choices=("q4", "q8", "nf4"), default=["q4", "q8", "nf4"])
    chosen = parser.parse_args()
    torch.manual_seed(0)
    matrix = (torch.randn(chosen.out, chosen.columns) * 0.02).bfloat16()
    print(
        f"{chosen.out} × {chosen.columns}, bfloat16; {torch.get_num_threads()} threads, kernels {library.status().used}, "
        f"torch {torch.__version__}"
    )
    for kind in chosen.formats:
        measure(matrix, kind, chosen.rounds)


if __name__ == "__main__":
    main()
