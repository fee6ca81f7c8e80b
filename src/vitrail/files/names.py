"""File names from a file or a hub: those that may be joined to a folder. No access to the disk.

Used by files/repository.py (a hub's listing), weights/safetensors_checkpoint.py (an index) and
prompts/template_files.py.
"""

from __future__ import annotations

import ntpath
import os
import re

# Control characters, surrogates (invalid in every file system), and the other system's separator.
_NEVER = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE | re.ASCII)


def is_plain(name: object, *, windows: bool = os.name == "nt") -> bool:
    """Return whether `name` is a relative path with "/" between its parts that stays below the folder it is joined to.

    The rules of all systems hold on each, except device names (aux.json), refused on Windows only.
    """
    if not isinstance(name, str) or _NEVER.search(name) or ntpath.splitdrive(name)[0]:
        return False
    parts = name.split("/")
    # Windows drops dots and spaces at the end of a part, so ".. " is its "..".
    below = all(part.rstrip(". ") for part in parts)
    return below and not (windows and any(_DEVICE.fullmatch(part) for part in parts))
