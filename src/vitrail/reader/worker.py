"""Worker process of `vitrail read`: file names in, readings out. Started by worker_pool.py.

Standard input: a JSON list of file names per line. Standard output: for each such line one, {"files": [[pages,
paged, error], …]}, a page being [text, confidence, seconds]; or {"fault": reason}, and the end.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, astuple
from pathlib import Path
from typing import IO, Any

from vitrail.errors import VitrailError
from vitrail.files.worker_process import Watch
from vitrail.images.fetch import FetchPolicy
from vitrail.images.limits import ImageLimits, PdfLimits
from vitrail.images.request import image_request, set_image_defaults
from vitrail.reader.files import read_files


def main(model: str, limits: str) -> None:
    """Read lists of files until the input ends; while it reads, the process ends with its parent.

    model: a checkpoint folder, or empty for the embedded one. limits: the result of `written_limits`; they hold for each
    file.
    """
    answers = _take_output()
    watch = Watch(answers.fileno())
    try:
        _take_limits(limits)
        from vitrail.reader.reading import BatchReader

        reader = BatchReader(Path(model) if model else None)
        for line in sys.stdin.buffer:
            with watch.over():
                files = [astuple(file) for file in read_files(reader, json.loads(line))]
            _tell(answers, files=files)
    except VitrailError as error:
        _tell(answers, fault=str(error))
    except (BrokenPipeError, EOFError):  # the parent has ended
        return


def written_limits() -> str:
    """What images may cost, and be opened from, where this is called."""
    with image_request() as request:
        return json.dumps([asdict(part) for part in (request.limits, request.policy, request.pdf_limits)])


def _take_limits(written: str) -> None:
    limits, policy, pdf_limits = (_fields(part) for part in json.loads(written))
    set_image_defaults(ImageLimits(**limits), FetchPolicy(**policy), PdfLimits(**pdf_limits))


def _fields(part: dict[str, Any]) -> Any:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in part.items()}


def _take_output() -> IO[bytes]:
    """Reserve standard output for answers: redirect everything else written to it to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _tell(answers: IO[bytes], **fields: Any) -> None:
    answers.write(json.dumps(fields).encode("ascii") + b"\n")
    answers.flush()
