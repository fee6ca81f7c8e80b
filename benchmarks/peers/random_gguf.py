"""A decoder of a real geometry with random weights as a GGUF file, for llama.cpp.

    python benchmarks/peers/random_gguf.py OUT.gguf [--geometry pixtral-12b] [--layers 8] [--head Q8_0]

Matrices are Q4_0 with random codes and one sane scale; the head and the embeddings are what --head says. There is no
vocabulary: ids go in and logits come out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from typing import Any

import gguf
import numpy as np

POOL = 1 << 22
CODES = {"Q4_0": 16, "Q8_0": 32}  # bytes of a block's codes; a float16 scale stands before them
SPREAD = {"Q4_0": 4.6, "Q8_0": 73.0}  # standard deviation of random codes


def params_of(python: str, geometry: str, layers: int) -> dict[str, Any]:
    """The geometry, as the Python that has Vitrail tells it."""
    code = (
        "import json, sys; from vitrail.bench.geometries import params_of; "
        "print(json.dumps(params_of(sys.argv[1], int(sys.argv[2]))))"
    )
    done = subprocess.run(
        [python, "-c", code, geometry, str(layers)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def blocks(name: str, kind: str, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """uint8 (rows, bytes of a row): scales that keep the size of what goes through, and random codes."""
    count = rows * columns // 32
    made = np.empty((count, 2 + CODES[kind]), dtype=np.uint8)
    scale = np.array([columns**-0.5 / SPREAD[kind]], dtype=np.float16)
    made[:, :2] = scale.view(np.uint8)
    pool = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, POOL, dtype=np.uint8)
    made[:, 2:] = np.resize(pool, (count, CODES[kind]))
    return made.reshape(rows, -1)


def write(path: str, params: dict[str, Any], head: str) -> None:
    """The file."""
    writer = gguf.GGUFWriter(path, "llama")
    dim, hidden, width = params["dim"], params["hidden_dim"], params["head_dim"]
    writer.add_block_count(params["n_layers"])
    writer.add_context_length(params.get("max_position_embeddings", 131072))
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(params["n_heads"])
    writer.add_head_count_kv(params["n_kv_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(params["rope_theta"])
    writer.add_layer_norm_rms_eps(params["norm_eps"])
    writer.add_vocab_size(params["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    queries, keys = params["n_heads"] * width, params["n_kv_heads"] * width
    shapes = {
        "attn_q": (queries, dim), "attn_k": (keys, dim), "attn_v": (keys, dim), "attn_output": (dim, queries),
        "ffn_gate": (hidden, dim), "ffn_up": (hidden, dim), "ffn_down": (dim, hidden),
    }  # fmt: skip

    def matrix(name: str, kind: str, rows: int, columns: int) -> None:
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, blocks(name, kind, rows, columns), raw_dtype=type_)

    matrix("token_embd.weight", head, params["vocab_size"], dim)
    matrix("output.weight", head, params["vocab_size"], dim)
    writer.add_tensor("output_norm.weight", np.ones(dim, dtype=np.float32))
    for layer in range(params["n_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(dim, dtype=np.float32))
        for name, (rows, columns) in shapes.items():
            matrix(f"blk.{layer}.{name}.weight", "Q4_0", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--geometry", default="pixtral-12b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--head", default="Q8_0", choices=list(CODES))
    parser.add_argument("--python", default=sys.executable, help="a Python that has vitrail [this one]")
    given = parser.parse_args()
    write(given.out, params_of(given.python, given.geometry, given.layers), given.head)


if __name__ == "__main__":
    main()
