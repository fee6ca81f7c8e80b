"""The Hugging Face hub's own client, wrapped: what lies there, one file of it, and its errors in our words.

Only this file imports it, and nothing else in the library connects to anything but the image URLs of a question.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vitrail.errors import CheckpointError, MissingPackageError, VitrailError
from vitrail.files.hub_cache import HubCache, unfinished
from vitrail.files.repository import RemoteFile, Repository

_SMALL = re.compile(r"[0-9a-f]{40}")  # git's name of a content
_LARGE = re.compile(r"[0-9a-f]{64}")  # SHA-256, of what lies in the store of large files
_HTTP_LIMIT = 50 * 10**9  # bytes
# The libraries that versions of the client speak through.
_HTTP = ("requests", "urllib3", "httpx", "httpcore")
_BARS = "huggingface_hub"  # the group of its progress bars
_LIBRARY = "vitrail"


class HubUnreachableError(CheckpointError):
    """The hub did not answer, or broke off: trying again later may do."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every connection."""
    return bool(_client("the hub's cache").constants.HF_HUB_OFFLINE)


def cache_root() -> Path:
    """The folder in which the client keeps all models (HF_HUB_CACHE, HF_HOME)."""
    return Path(_client("the hub's cache").constants.HF_HUB_CACHE)


def look_up(name: str, revision: str, token: str | bool | None) -> Repository:
    """What lies under a name at a revision; one request.

    Raises CheckpointError for what is not there or may not be seen, HubUnreachableError.
    """
    client = _client(name)
    with _in_our_words(client, name, revision):
        found = client.HfApi().model_info(name, revision=revision, files_metadata=True, token=token)
        files = {one.rfilename: _remote_file(one) for one in found.siblings or ()}
        return Repository(name, str(found.sha), files)


def fetch(
    cache: HubCache, repository: Repository, file: str, token: str | bool | None, *, anew: bool = False
) -> None:
    """Bring one file into the cache; what an earlier try left unfinished of a large one is continued, unless `anew`.

    Raises CheckpointError where it may not be read or cannot be written, HubUnreachableError.
    """
    client = _client(repository.name)
    about = repository.files[file]
    # Beyond this size the hub serves a file in its own protocol alone, which the client speaks.
    large = _LARGE.fullmatch(about.blob) and about.size and about.size <= _HTTP_LIMIT
    with _in_our_words(client, repository.name, repository.commit):
        if large:
            _fetch_large(client, cache, repository, file, token, anew)
        client.hf_hub_download(
            repository.name,
            file,
            revision=repository.commit,
            cache_dir=cache.root,
            token=token,
            force_download=anew and not large,
            library_name=_LIBRARY,
        )


def _fetch_large(
    client: ModuleType,
    cache: HubCache,
    repository: Repository,
    file: str,
    token: str | bool | None,
    anew: bool,
) -> None:
    """Bring the content of a large file, going on from what is here; the client then finds it and links it.

    The client alone did so up to its version 1; later ones begin anew after every interruption.
    """
    url = client.hf_hub_url(repository.name, file, revision=repository.commit)
    client.get_hf_file_metadata(url, token=token)  # raises where it may not be read, before a folder is made
    blob = cache.blob(repository, file)
    part = unfinished(blob)
    lock = cache.root / ".locks" / cache.folder.name / f"{blob.name}.lock"  # as the client locks it
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with client.utils.WeakFileLock(str(lock)):
        if anew:
            blob.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
        if blob.is_file():
            return
        with part.open("ab") as stream:
            start = stream.tell()
            client.file_download.http_get(
                url,
                stream,
                resume_size=start,
                headers=client.utils.build_hf_headers(token=token, library_name=_LIBRARY),
                expected_size=repository.files[file].size,
                displayed_filename=file,
            )
        if start:
            _check_content(part, blob.name, file)
        part.replace(blob)


def _check_content(part: Path, digest: str, file: str) -> None:
    """Raise CheckpointError, and remove the file, where pieces of several tries do not make the content's SHA-256."""
    found = hashlib.sha256()
    with part.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != digest:
        part.unlink()
        raise CheckpointError(
            f"{file} was continued after an interruption and is not what the hub has; run this again, it begins anew."
        )


@contextmanager
def silent_bars(silent: bool) -> Iterator[None]:
    """Within this block the client draws no bars (it draws them on terminals only)."""
    utils = _client("the hub's cache").utils
    if not silent or utils.are_progress_bars_disabled(_BARS):
        yield
        return
    utils.disable_progress_bars(_BARS)
    try:
        yield
    finally:
        utils.enable_progress_bars(_BARS)


def _client(name: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
    except ImportError as error:
        raise MissingPackageError(
            f"{name!r} is no folder here, and the hub needs a package: pip install huggingface_hub."
        ) from error
    return huggingface_hub


def _remote_file(one: Any) -> RemoteFile:
    """Large files are kept under their SHA-256, others under git's name of their content."""
    large = one.lfs
    size = one.size if one.size is not None else large and large.size
    blob = str(large.sha256 if large else one.blob_id)
    known = (_LARGE if large else _SMALL).fullmatch(blob)
    return RemoteFile(size, blob if known else "")


@contextmanager
def _in_our_words(client: ModuleType, name: str, revision: str) -> Iterator[None]:
    """Turns what goes wrong on the way into errors of ours."""
    try:
        yield
    except (VitrailError, MemoryError, NameError, TypeError, AttributeError):
        raise  # the last three are mistakes of a program
    except Exception as error:  # the client's errors, its HTTP library's and the system's share no base
        raise _told(error, client, name, revision) from error


def _told(error: Exception, client: ModuleType, name: str, revision: str) -> CheckpointError:
    kinds = client.errors
    while isinstance(error, kinds.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the client went and looked in its cache instead
    if isinstance(error, kinds.HfHubHTTPError):
        return _refused(error, kinds, name, revision, client.constants.ENDPOINT)
    speaks_http = type(error).__module__.startswith(_HTTP)
    if speaks_http or isinstance(error, (ConnectionError, TimeoutError)):
        return HubUnreachableError(
            f"the hub at {client.constants.ENDPOINT} could not be reached for {name!r}, or broke off "
            f"({_first_line(_root(error))}); check the connection"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"the disk became full while {name} was fetched. Free some and run this again: what has come is kept and "
            "continued, and never taken for whole."
        )
    return CheckpointError(f"{name} (revision {revision}) could not be fetched: {_first_line(error)}")


def _refused(error: Any, kinds: ModuleType, name: str, revision: str, endpoint: str) -> CheckpointError:
    """What the hub's refusal means."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`, set HF_TOKEN, or pass token="
    if isinstance(error, kinds.GatedRepoError):
        known = "this account has not been let in yet" if status == 403 else f"then {login}"
        return CheckpointError(
            f"{name} is gated: accept its licence at {endpoint}/{name} with your account; {known}."
        )
    if isinstance(error, kinds.RevisionNotFoundError):
        return CheckpointError(f"{name} has no revision {revision!r} on the hub.")
    if isinstance(error, kinds.RepositoryNotFoundError):
        return CheckpointError(
            f"there is no folder {name!r}, and no model of that name on the hub; if it is a private one, {login}."
        )
    if status == 401:
        return CheckpointError(f"the hub refuses the token that was sent for {name}; {login} anew.")
    if status == 429 or (status is not None and status >= 500):
        return HubUnreachableError(f"the hub answered with status {status} for {name!r}; try again later")
    return CheckpointError(f"the hub refused {name} (revision {revision}): {_first_line(error)}")


def _root(error: BaseException) -> BaseException:
    """The system's own error beneath those that HTTP libraries wrap around it; `error` where there is none."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, (ConnectionError, TimeoutError, socket.gaierror)):
            return one
        one = one.__cause__ or one.__context__
    return error


def _first_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error)  # without "[Errno 111]"
    lines = str(said).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
