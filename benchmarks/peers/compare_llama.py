"""Vitrail's q4 beside llama.cpp's Q4_0, the same bytes a weight: decoding 1 … 16 rows, and prefill.

    python benchmarks/peers/compare_llama.py --llama-python PYTHON [--gguf FILE] [--rows 1,2,4,8,16] [--prefill 512]

PYTHON is an interpreter with llama-cpp-python (and gguf, unless --gguf names a file that random_gguf.py wrote). Both sides
have random weights of one geometry: 4.5 bits in the decoder, 8.5 in head and embeddings.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from comparison import Timed, compare_prefill, compared, header, numbers, options, reader, set_threads
from worker import HERE, Worker

from vitrail.bench.decode import DecodeStep
from vitrail.bench.geometries import params_of
from vitrail.bench.random_model import random_model


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--gguf")
    parser.add_argument("--rows", default="1,2,4,8,16")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--prefill", default="512", help="positions, or 0 for none")
    given = parser.parse_args()
    set_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = given.gguf or str(Path(folder) / "random.gguf")
        if given.gguf is None:
            write = [given.llama_python, str(HERE / "random_gguf.py"), file, "--python", sys.executable]
            subprocess.run([*write, "--geometry", given.geometry, "--layers", str(given.layers)], check=True)
        rows, lengths = numbers(given.rows), [n for n in numbers(given.prefill) if n]
        room = max([given.context + 32, *lengths])
        peer = Worker(given.llama_python, "llama.py", file, given.threads, room, max(rows))
        header(peer.about)
        model = random_model(params_of(given.geometry, given.layers), "q4")
        read = reader(given.geometry)
        for count in rows:
            step = DecodeStep(model, count, given.context)
            peer.ask("decode", rows=count, context=given.context, steps=1)
            once = peer.ask("decode", rows=count, context=given.context, steps=1)["seconds"]
            steps = max(1, round(0.5 / once))
            compared(
                f"decode {count} rows after {given.context} positions",
                Timed(step),
                lambda count=count, steps=steps: peer.ask(  # type: ignore[misc]
                    "decode", rows=count, context=given.context, steps=steps
                )["seconds"],
                given.turns,
                work=step.cost.bytes,
                limits={"the streaming read": read},
                out=given.out,
            )
        compare_prefill(model, peer, lengths, given)
        peer.close()


if __name__ == "__main__":
    main()
