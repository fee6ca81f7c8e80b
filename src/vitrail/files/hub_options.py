"""HubOptions: how the hub is asked, Hugging Face's keywords of every from_pretrained as one value."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class HubOptions:
    """Which revision of a repository is used, and where from.

    revision           a branch, a tag or a commit; None is "main".
    token              a token of the hub, or whether the saved one is sent.
    cache_dir          the folder of the cache; None is the client's own (HF_HUB_CACHE, HF_HOME).
    local_files_only   connect to nothing.
    force_download     fetch again what is in the cache.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def take(cls, keywords: MutableMapping[str, Any]) -> HubOptions:
        """Remove the hub's keywords from `keywords` and return them."""
        return cls(**{name: keywords.pop(name) for name in KEYWORDS if name in keywords})


KEYWORDS = tuple(field.name for field in fields(HubOptions))
