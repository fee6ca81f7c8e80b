"""llama.cpp as a worker: python benchmarks/peers/llama.py FILE.gguf THREADS [MOST_POSITIONS] [MOST_ROWS]."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llama_cpp as api
from worker import clock, serve


class Llama:
    """One model and one context, through the C interface: no vocabulary, no sampling."""

    def __init__(self, path: str, threads: int, positions: int, rows: int) -> None:
        api.llama_log_set(_silent, ctypes.c_void_p())
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx = positions * rows
        params.n_batch = params.n_ubatch = max(512, rows)
        params.n_seq_max = rows
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        self.memory = api.llama_get_memory(self.context)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(params.n_batch, 0, 1)
        self.filled: tuple[int, int] = (0, 0)

    def about(self) -> dict[str, Any]:
        """Version and what it was built for."""
        info = api.llama_print_system_info().decode()
        return {"peer": "llama.cpp", "llama_cpp_python": api.__version__, "system": info}

    def prefill(self, rows: int) -> dict[str, float]:
        """Seconds to read `rows` positions from nothing."""
        api.llama_memory_clear(self.memory, True)
        self.filled = (0, 0)
        return {"seconds": self._read(rows)}

    def decode(self, rows: int, context: int, steps: int) -> dict[str, float]:
        """Seconds of one step of `rows` sequences after `context` positions."""
        if self.filled != (rows, context):
            api.llama_memory_clear(self.memory, True)
            if context:
                self._read(context)
            for row in range(1, rows):
                api.llama_memory_seq_cp(self.memory, 0, row, -1, -1)
            self.filled = (rows, context)
        started = clock()
        for _ in range(steps):
            self._fill([(row, context) for row in range(rows)], every=True)
            self._run()
            for row in range(rows):
                api.llama_memory_seq_rm(self.memory, row, context, -1)
        return {"seconds": (clock() - started) / steps}

    def _read(self, rows: int) -> float:
        started = clock()
        for first in range(0, rows, 512):
            self._fill([(0, at) for at in range(first, min(rows, first + 512))], every=False)
            self._run()
        return clock() - started

    def _fill(self, places: list[tuple[int, int]], every: bool) -> None:
        batch = self.batch
        batch.n_tokens = len(places)
        for index, (sequence, position) in enumerate(places):
            batch.token[index] = (20 + position + sequence) % self.vocabulary
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = every or index == len(places) - 1

    def _run(self) -> None:
        status = api.llama_decode(self.context, self.batch)
        if status:
            raise SystemExit(f"llama_decode gave status {status}")
        api.llama_get_logits(self.context)[0]  # waits for the result


@api.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


def main() -> None:
    path, threads, *more = sys.argv[1:]
    positions, rows = (int(more[0]) if more else 1056), (int(more[1]) if len(more) > 1 else 1)
    peer = Llama(path, int(threads), positions, rows)
    serve(peer.about(), {"prefill": peer.prefill, "decode": peer.decode})


if __name__ == "__main__":
    main()
