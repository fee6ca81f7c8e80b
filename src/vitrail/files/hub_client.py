"""Wrapper of the Hugging Face hub's own client: lookup, fetch of one file, errors in Vitrail's terms.

Only this file imports the client. The library's only other connections are to the image URLs of a question.
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
_LARGE = re.compile(r"[0-9a-f]{64}")  # SHA-256: git's LFS name of a large file
_HTTP_LIMIT = 50 * 10**9  # bytes
# HTTP libraries of the client's versions.
_HTTP = ("requests", "urllib3", "httpx", "httpcore")
_BARS = "huggingface_hub"  # the group of its progress bars
_LIBRARY = "vitrail"


class HubUnreachableError(CheckpointError):
    """The hub did not answer, or the connection broke; a later try may succeed."""


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids every connection."""
    return bool(_client("the hub's cache").constants.HF_HUB_OFFLINE)


def cache_root() -> Path:
    """Return the client's folder of all models (HF_HUB_CACHE, HF_HOME)."""
    return Path(_client("the hub's cache").constants.HF_HUB_CACHE)


def look_up(name: str, revision: str, token: str | bool | None) -> Repository:
    """Return the repository of a name at a revision, in one request.

    Raises:
        CheckpointError: it does not exist or is not accessible.
        HubUnreachableError: no answer.
    """
    client = _client(name)
    with _in_our_words(client, name, revision):
        found = client.HfApi().model_info(name, revision=revision, files_metadata=True, token=token)
        files = {one.rfilename: _remote_file(one) for one in found.siblings or ()}
        return Repository(name, str(found.sha), files)


def fetch(
    cache: HubCache, repository: Repository, file: str, token: str | bool | None, *, anew: bool = False
) -> None:
    """Fetch one file into the cache, continuing an unfinished large file unless `anew`.

    Raises:
        CheckpointError: the file is not accessible or cannot be written.
        HubUnreachableError: no answer.
    """
    client = _client(repository.name)
    about = repository.files[file]
    # Above this size the hub serves a file only in its own protocol, which the client implements.
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
    """Fetch the content of a large file, continuing from the bytes on disk; the client then finds and links it.

    The client itself resumes up to its version 1; later versions start anew after every interruption.
    """
    url = client.hf_hub_url(repository.name, file, revision=repository.commit)
    client.get_hf_file_metadata(url, token=token)  # raises without access, before a folder is made
    blob = cache.blob(repository, file)
    part = unfinished(blob)
    lock = cache.root / ".locks" / cache.folder.name / f"{blob.name}.lock"  # the client's own lock
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
    """Raise CheckpointError, and remove the file, if the pieces of several tries do not match the content's SHA-256."""
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
    """Turn the client's progress bars off in this block (it shows them on terminals only)."""
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
    """Make a RemoteFile: large files are stored under their SHA-256, others under git's hash of the content."""
    large = one.lfs
    size = one.size if one.size is not None else large and large.size
    blob = str(large.sha256 if large else one.blob_id)
    known = (_LARGE if large else _SMALL).fullmatch(blob)
    return RemoteFile(size, blob if known else "")


@contextmanager
def _in_our_words(client: ModuleType, name: str, revision: str) -> Iterator[None]:
    """Convert errors of the client to Vitrail's."""
    try:
        yield
    except (VitrailError, MemoryError, NameError, TypeError, AttributeError):
        raise  # the last three are programming errors
    except Exception as error:  # the client's errors, its HTTP library's and the system's share no base
        raise _told(error, client, name, revision) from error


def _told(error: Exception, client: ModuleType, name: str, revision: str) -> CheckpointError:
    kinds = client.errors
    while isinstance(error, kinds.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the reason for the client's fallback to its cache
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
    """Return the error for a refusal by the hub."""
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
    """Return the system's own error beneath the wrappers of HTTP libraries; `error` without one."""
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
