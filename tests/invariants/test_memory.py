"""Memory of the vision tower grows with the number of images, not with its square: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Peak anonymous memory (bytes) that one call adds: RssAnon sampled every millisecond by a thread.
SCRIPT = """
import json, sys, threading, time
import torch
from vitrail import PixtralVisionConfig, PixtralVisionModel

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

count = int(sys.argv[1])
torch.manual_seed(0)
config = PixtralVisionConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
model = PixtralVisionModel(config).eval()
with torch.no_grad():
    model(torch.randn(1, 3, 32, 32))  # what libraries allocate once
    pixels = torch.randn(count, 3, 512, 512)
    start, peak, done = anonymous(), 0, False

    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    model(pixels)
    done = True
    thread.join()
print(json.dumps(peak - start))
"""


def added(count: int) -> int:
    """Bytes that the tower takes for `count` images of 512 × 512."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_eight_images_take_less_than_nine_times_one() -> None:
    one = added(1)
    eight = added(8)
    rows = 1024 * 256 * 4  # one activation of one image
    assert one > 2 * rows  # the measurement sees the activations
    assert one < 1024 * 1024 * 4 * 4  # and they are less than one matrix of scores of each head
    assert eight < 9 * one, f"{eight / one:.2f} times"
