"""Vitrail beside transformers, the same geometry and random weights: decoding and prefill, in any of our formats.

python benchmarks/peers/compare_transformers.py --ours q4 --theirs bf16 --prefill 512      (q4 against bf16)
python benchmarks/peers/compare_transformers.py --ours nf4 --theirs nf4 --rows 1           (against bitsandbytes)
"""

from __future__ import annotations

import json
import sys

from comparison import Timed, compare_prefill, compared, header, numbers, options, reader, set_threads
from worker import Worker

from vitrail.bench.decode import DecodeStep
from vitrail.bench.geometries import params_of
from vitrail.bench.random_model import FORMATS, random_model


def main() -> None:
    parser = options(__doc__, layers=2)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--ours", choices=FORMATS, default="q4")
    parser.add_argument("--theirs", choices=("bf16", "f32", "nf4"), default="bf16")
    parser.add_argument("--rows", default="1", help="sequences to decode at once, or 0 for none")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--prefill", default="0", help="positions, or 0 for none")
    given = parser.parse_args()
    set_threads(given.threads)
    params = params_of(given.geometry, given.layers)
    request = {"params": params, "what": "decoder", "format": given.theirs, "threads": given.threads}
    peer = Worker(given.peer_python, "hf.py", json.dumps(request))
    header(peer.about)
    model = random_model(params, given.ours)
    read = reader(given.geometry)
    for count in [n for n in numbers(given.rows) if n]:
        step = DecodeStep(model, count, given.context)
        peer.ask("decode", rows=count, context=given.context, steps=1)
        compared(
            f"decode {count} rows after {given.context} positions, {given.ours} against {given.theirs}",
            Timed(step),
            lambda count=count: peer.ask("decode", rows=count, context=given.context, steps=2)["seconds"],  # type: ignore[misc]
            given.turns,
            work=step.cost.bytes,
            limits={"the streaming read": read},
            out=given.out,
        )
    compare_prefill(
        model, peer, [n for n in numbers(given.prefill) if n], given, f", {given.ours} against {given.theirs}"
    )
    peer.close()


if __name__ == "__main__":
    main()
