"""Worker process of `vitrail read`: file names in, readings out. Started by worker_pool.py.

Standard input: a JSON list of file names per line. Standard output: for each such line one, {"files": [[pages,
paged, error], …]}, a page being [text, confidence, seconds]; or {"fault": reason}, and the end.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any

from vitrail.errors import VitrailError
from vitrail.reader.files import read_files


def main(model: str) -> None:
    """Read lists of files until the input ends. `model`: a checkpoint folder, or empty for the embedded one."""
    answers = _take_output()
    try:
        from vitrail.reader.reading import BatchReader

        reader = BatchReader(Path(model) if model else None)
        for line in sys.stdin.buffer:
            _tell(answers, files=[astuple(file) for file in read_files(reader, json.loads(line))])
    except VitrailError as error:
        _tell(answers, fault=str(error))
    except BrokenPipeError:  # the parent has ended
        return


def _take_output() -> IO[bytes]:
    """Reserve standard output for answers: redirect everything else written to it to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _tell(answers: IO[bytes], **fields: Any) -> None:
    answers.write(json.dumps(fields).encode("ascii") + b"\n")
    answers.flush()
