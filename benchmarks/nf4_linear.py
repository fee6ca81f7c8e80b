"""One NF4 matrix times 1 … N rows: Vitrail's kernel and bitsandbytes' Linear4bit on the CPU, the same bytes, in turn.

    OMP_NUM_THREADS=2 python benchmarks/nf4_linear.py [--out 14336] [--columns 5120] [--rows 1 8 32] [--rounds 5]

Needs bitsandbytes (the `test` extra). Wall seconds and the process's own (all threads together), the least of the
rounds; on a machine that others use the second is the one to read. The largest difference of the two results stands
beside them, as a part of the largest value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import bitsandbytes
import torch
from torch import Tensor

from vitrail.ops.cpu import library
from vitrail.ops.linear import linear
from vitrail.quant.bitsandbytes_codes import quantize_4bit

Side = Callable[[Tensor], Tensor]


def sides(out: int, columns: int) -> dict[str, Side]:
    """Both products with one random matrix. Raises RuntimeError if the packed bytes differ."""
    matrix = torch.randn(out, columns).bfloat16()
    layer = bitsandbytes.nn.Linear4bit(
        columns, out, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
    )
    layer.weight = bitsandbytes.nn.Params4bit(matrix, requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").eval()
    packed = quantize_4bit(matrix, "nf4")
    if not torch.equal(layer.weight.data.view(-1), packed.tensors["codes"]):
        raise RuntimeError("the two packed matrices differ")
    return {"vitrail": lambda x: linear(x, packed), "bitsandbytes": layer}


def least(work: dict[str, Side], x: Tensor, rounds: int) -> dict[str, tuple[float, float]]:
    """Side → its least wall and CPU seconds; one turn beforehand warms up."""
    found = dict.fromkeys(work, (float("inf"), float("inf")))
    for turn in range(rounds + 1):
        for name, call in work.items():
            wall, own = time.perf_counter(), time.process_time()
            call(x)
            spent = time.perf_counter() - wall, time.process_time() - own
            if turn:
                found[name] = min(found[name][0], spent[0]), min(found[name][1], spent[1])
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("out", 14336), ("columns", 5120), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    chosen = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{chosen.out} × {chosen.columns}, NF4 in groups of 64, bfloat16 activations; {torch.get_num_threads()} threads, "
        f"kernels {library.status().used}, bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}"
    )
    with torch.inference_mode():
        work = sides(chosen.out, chosen.columns)
        for rows in chosen.rows:
            x = torch.randn(rows, chosen.columns).bfloat16()
            ours, theirs = work["vitrail"](x).float(), work["bitsandbytes"](x).float()
            (wall, own), (their_wall, their_own) = least(work, x, chosen.rounds).values()
            print(
                f"{rows:4} rows: {wall * 1e3:8.2f} ms against {their_wall * 1e3:8.2f} ({their_wall / wall:5.1f}×); "
                f"CPU {own * 1e3:8.2f} against {their_own * 1e3:8.2f} ({their_own / own:5.1f}×); "
                f"difference {(ours - theirs).abs().max() / theirs.abs().max():.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
