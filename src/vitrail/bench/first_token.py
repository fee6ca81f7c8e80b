"""Process that loads a checkpoint and reads a prompt, timing both; started by `vitrail bench load`.

    python -m vitrail.bench.first_token FOLDER POSITIONS THREADS

It prints one JSON object: seconds of each part, the first id, and the process's memory in bytes.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident(kind: str) -> int | None:
    """Return resident bytes of this process: "RssAnon" (private) or "RssFile" (mapped); None if unknown."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(kind)), None)


def main(folder: str, positions: int, threads: int) -> None:
    """Load the checkpoint, read the prompt, print the figures."""
    marks = [time.perf_counter()]
    import torch

    torch.set_num_threads(threads)
    marks.append(time.perf_counter())
    from vitrail.auto import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    marks.append(time.perf_counter())
    from vitrail.generate.runner import Request, Runner

    with torch.inference_mode():
        request = Request(torch.arange(20, 20 + positions) % model.text_config.vocab_size)
        first = int(Runner(model, [request], room=1).prefill().argmax(-1)[0])
    marks.append(time.perf_counter())
    parts = [after - before for before, after in pairwise(marks)]
    found = dict(zip(("import_torch", "load", "first_prefill"), parts, strict=True))
    memory = {"anonymous": resident("RssAnon"), "mapped": resident("RssFile")}
    sys.stdout.write(json.dumps({**found, "id": first, **memory}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
