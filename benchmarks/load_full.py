"""One full-size load: Ministral 3 3B's geometry with random bfloat16 weights is written, loaded, and answers.

    OMP_NUM_THREADS=1 python benchmarks/load_full.py [--folder SCRATCH] [--layers 26] [--transformers]

7.7 GB are written shard by shard into a new folder inside SCRATCH, which is removed afterwards. Each library loads in a
process of its own: wall and CPU seconds, the most anonymous memory (RssAnon, sampled every 5 ms) beyond what was there
before, and what `vitrail info` foretold. transformers 4.57 does not know ministral3, so it reads the same weights as a
`mistral` decoder without YaRN.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitrail
from vitrail.files.safetensors import write_safetensors
from vitrail.weights.names import saved_names

SHARD = 1_000_000_000
POOL = 1 << 22  # random values that are repeated: drawing all of them would take longer than everything else
TEXT = {
    "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 9216, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 262144,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "head_dim": 64,
    "image_size": 1540, "patch_size": 14, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip


def configuration(layers: int, kind: str) -> dict[str, Any]:
    """config.json; kind: the decoder's model_type, "ministral3" or "mistral"."""
    rope = {"rope_parameters": YARN} if kind == "ministral3" else {"rope_theta": 1e6}
    text = {"model_type": kind, **TEXT, "num_hidden_layers": layers, **rope}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "dtype": "bfloat16",
        "image_token_index": 10, "multimodal_projector_bias": False, "projector_hidden_act": "gelu",
        "spatial_merge_size": 2, "vision_feature_layer": -1, "tie_word_embeddings": True,
        "text_config": text, "vision_config": {"model_type": "pixtral", **TOWER},
    }  # fmt: skip


def write(folder: Path, layers: int) -> int:
    """The checkpoint, shard by shard; its size in bytes."""
    config = configuration(layers, "ministral3")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with torch.device("meta"):
        model = vitrail.Mistral3ForConditionalGeneration(vitrail.Mistral3Config.from_dict(config))
    shapes = {name: p.shape for name, p in model.named_parameters()}  # a tied head appears once
    names = saved_names(shapes)
    shards = list(divided(shapes))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {names[name]: values(name, shapes[name]) for name in shard})
        where |= {names[name]: file for name in shard}
        print(f"{file} of {len(shards)}", file=sys.stderr)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return size


def divided(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    """Names, so many at a time as make a shard."""
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        shard.append(name)
        size += 2 * shape.numel()
        if size >= SHARD:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


@cache
def scaled(deviation: float) -> Tensor:
    """The random values in a size."""
    return (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * deviation).to(torch.bfloat16)


def values(name: str, shape: torch.Size) -> Tensor:
    """Ones for norms, else random values that keep the size of what goes through them."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    turned = scaled(0.02 if "embed" in name else shape[1:].numel() ** -0.5).roll(
        zlib.crc32(name.encode()) % POOL
    )
    return turned.repeat(-(-shape.numel() // POOL))[: shape.numel()].view(shape)


# --- in a process of its own --------------------------------------------------------------------------------------


def resident(kind: str) -> int:
    """Bytes of this process in memory: "RssAnon", no file's, or "RssFile", mapped from files."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


def watched(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and what it took."""
    before, peak, done = resident("RssAnon"), [0], threading.Event()
    mapped = resident("RssFile")

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    spent = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": peak[0] - before}
    spent["mapped"] = resident("RssFile") - mapped
    return result, spent


def measure(library: str, folder: str) -> None:
    """Load and answer with one library; prints a JSON object."""
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if library == "vitrail":
        kind: Any = vitrail.Mistral3ForConditionalGeneration
    else:
        import transformers

        kind = transformers.Mistral3ForConditionalGeneration
        layers = json.loads((Path(folder) / "config.json").read_text("utf-8"))["text_config"][
            "num_hidden_layers"
        ]
        options["config"] = transformers.Mistral3Config.from_dict(configuration(layers, "mistral"))
    model, load = watched(lambda: kind.from_pretrained(folder, **options))
    rows = [[10, 10, 12, 10, 10, 13]]  # an image of 56 × 56 pixels: two rows of two tokens
    ids = torch.tensor([[1, 3, *rows[0], 1500, 2500, 3500, 4]])
    images = {
        "pixel_values": torch.zeros(1, 3, 56, 56, dtype=torch.bfloat16),
        "image_sizes": torch.tensor([[56, 56]]),
    }
    answer, spent = watched(
        lambda: model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **images,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
        )
    )
    print(json.dumps({"load": load, "answer": spent, "ids": answer[0, ids.shape[1] :].tolist()}))


def main() -> None:
    """Write, load in processes of their own, print a table, remove."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--transformers", action="store_true", help="load with transformers too")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(*arguments.measure)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        began = time.perf_counter()
        size = write(Path(folder), arguments.layers)
        print(f"{size / 1e9:.2f} GB, written in {time.perf_counter() - began:.0f} s", flush=True)
        told = subprocess.run(
            [sys.executable, "-m", "vitrail", "info", folder, "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        info = json.loads(told.stdout)
        print(
            f"{info['parameters']['total']:,} parameters; foretold peak {info['memory']['bfloat16']['while_loading']:,}"
        )
        for library in ("vitrail", *(["transformers"] if arguments.transformers else [])):
            child = [sys.executable, __file__, "--measure", library, folder]
            found = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
            for step in ("load", "answer"):
                spent = found[step]
                print(
                    f"{library:12} {step:6}  wall {spent['wall']:7.1f} s  cpu {spent['cpu']:7.1f} s  "
                    f"peak {spent['peak'] / 1e9:6.2f} GB  mapped {spent['mapped'] / 1e9:6.2f} GB"
                )
            print(f"{library:12} ids     {found['ids']}", flush=True)


if __name__ == "__main__":
    main()
