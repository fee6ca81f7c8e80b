"""128k is real: a prompt of 131,072 positions with 40 images, in chunks, in little memory, and the same as whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

POSITIONS = 131_072
IMAGES = 40
GIB = 1 << 30

SCRIPT = """
import json, sys
import torch
from tests import tiny
from vitrail.generate.loop import generate

positions, images = int(sys.argv[1]), int(sys.argv[2])
IMAGE, BREAK, END = 10, 12, 13
model = tiny.model(
    "llava",
    text_config={
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": positions + 8,
    },
)
side = 32 * model.config.vision_config.patch_size
one = ([IMAGE] * 32 + [BREAK]) * 32
one[-1] = END
generator = torch.Generator().manual_seed(0)
ids = [1]
for _ in range(images):
    ids += one + torch.randint(20, 500, (positions // images // 2,), generator=generator).tolist()
ids += torch.randint(20, 500, (positions - len(ids),), generator=generator).tolist()
assert len(ids) == positions and ids.count(IMAGE) == images * 32 * 32
inputs = {
    "input_ids": torch.tensor([ids]),
    "pixel_values": torch.randn(images, 3, side, side, generator=generator),
    "image_sizes": torch.tensor([[side, side]] * images),
}

def memory():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "RssFile")}

steps = []
plain = model.step
def step(hidden, step, cache, record=None):
    steps.append(len(hidden))
    return plain(hidden, step, cache, record)
model.step = step
options = {"eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
chunked = generate(model, **inputs, max_new_tokens=3, **options)
used = memory()
whole = generate(model, **inputs, max_new_tokens=1, use_cache=False, **options)
difference = (chunked.logits[0] - whole.logits[0]).abs().max() / whole.logits[0].abs().max()
json.dump({
    "peak": used["VmHWM"] - used["RssFile"],
    "steps": steps,
    "difference": float(difference),
    "new": chunked.sequences[0, positions:].tolist(),
    "first": int(whole.sequences[0, positions]),
}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the kernel's memory counters (Linux)"
)
def test_131072_positions_with_40_images_fit_into_two_gib():
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(POSITIONS), str(IMAGES)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["peak"] < 2 * GIB
    prefill, decode = found["steps"][:-3], found["steps"][-3:]
    assert prefill == [2048] * (POSITIONS // 2048)
    assert decode == [1, 1, POSITIONS]  # and the whole prompt at once, without a cache, to compare with
    assert found["difference"] < 1e-5
    assert found["new"][0] == found["first"]
    assert len(found["new"]) == 3
