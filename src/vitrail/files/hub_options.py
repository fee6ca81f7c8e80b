"""HubOptions: Hugging Face's download keywords of every from_pretrained, as one value."""

from __future__ import annotations

import os
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.opening import home_path

# Marks of transformers' own loaders, and resume_download, which is always on.
_WITHOUT_EFFECT = ("_from_auto", "_from_pipeline", "resume_download")
_INSTEAD = {"proxies": "set HTTPS_PROXY in the environment", "mirror": "set HF_ENDPOINT in the environment"}


@dataclass(frozen=True)
class HubOptions:
    """Revision, source and cache of a repository.

    Attributes:
        revision: a branch, a tag or a commit; None is "main".
        token: a token of the hub, or whether the saved one is sent.
        cache_dir: the folder of the cache; None is the client's own (HF_HUB_CACHE, HF_HOME).
        local_files_only: make no connection.
        force_download: fetch cached files again.
        subfolder: the folder to read within the checkpoint's; for folders on the local disk only.
    """

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False
    subfolder: str | os.PathLike[str] = ""

    @classmethod
    def take(cls, keywords: MutableMapping[str, Any], **named: Any) -> HubOptions:
        """Remove the hub's keywords from `keywords` and return them with `named`, those passed as parameters.

        `use_auth_token` is the older name of `token`.

        Raises:
            InputError: both names of the token are given.
            UnsupportedError: `proxies` and `mirror`.
        """
        ignore_remote_code(keywords)
        for name in _WITHOUT_EFFECT:
            keywords.pop(name, None)
        for name, instead in _INSTEAD.items():
            if keywords.pop(name, None):
                raise UnsupportedError(f"{name} is not supported; {instead}.")
        given = named | {name: keywords.pop(name) for name in KEYWORDS if name in keywords}
        older = keywords.pop("use_auth_token", None)
        if older is not None:
            if given.get("token") is not None:
                raise InputError("token and use_auth_token are one thing; give token alone.")
            warnings.warn(
                "use_auth_token is the older name of token; give token.", FutureWarning, stacklevel=4
            )
            given["token"] = older
        if not isinstance(given.get("token"), (str, bool, type(None))):
            raise InputError("token is a token of the hub, True, False or None.")
        if not isinstance(given.get("revision"), (str, type(None))):
            raise InputError("revision is the name of a branch or tag, or a commit.")
        if not isinstance(given.get("cache_dir"), (str, os.PathLike, type(None))):
            raise InputError("cache_dir is a folder.")
        if given.get("subfolder") is None:
            given.pop("subfolder", None)
        return cls(**given)

    def keywords(self) -> dict[str, Any]:
        """Return the options that are set, as keywords of from_pretrained."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if getattr(self, one.name) != one.default
        }

    def entered(self, name_or_path: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], HubOptions]:
        """Return `subfolder` of the folder `name_or_path`, and the options without it; both unchanged if unset.

        Raises:
            InputError: a subfolder that is not within the folder.
            CheckpointError: a missing subfolder.
            UnsupportedError: a name on the hub.
        """
        if not isinstance(self.subfolder, (str, os.PathLike)):
            raise InputError(f"subfolder is the name of a folder; got {type(self.subfolder).__name__}.")
        part = PurePosixPath(os.fspath(self.subfolder).replace("\\", "/"))
        if not part.parts:
            return name_or_path, replace(self, subfolder="")
        if part.is_absolute() or ".." in part.parts or ":" in part.parts[0]:
            raise InputError(f"subfolder {str(part)!r} must lie within the checkpoint's folder.")
        outer = home_path(name_or_path)
        if not outer.is_dir():
            raise UnsupportedError(
                f"subfolder={str(part)!r} is for folders on this disk, and there is no folder {os.fspath(name_or_path)!r}; "
                "fetch the repository with the hub's own client and give the folder within it."
            )
        try:
            there = (outer / part).is_dir()
        except OSError:  # a name beyond the system's limit
            there = False
        if not there:
            raise CheckpointError(f"{outer} has no folder {str(part)!r:.200}, which subfolder names.")
        return str(outer / part), replace(self, subfolder="")


def ignore_remote_code(keywords: MutableMapping[str, Any]) -> None:
    """Remove the keywords for a checkpoint's own code, which never runs, with a warning if one was set."""
    asked = [name for name in ("trust_remote_code", "code_revision") if keywords.pop(name, None)]
    if asked:
        warnings.warn(
            f"no code of a checkpoint is ever run, so {' and '.join(asked)} changes nothing.", stacklevel=4
        )


KEYWORDS = tuple(one.name for one in fields(HubOptions))
