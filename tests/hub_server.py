"""A local HTTP server that speaks the hub's protocol, as far as the real huggingface_hub client uses it to read models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (
    ".safetensors",
    ".bin",
    "tekken.json",
    "tokenizer.json",
)  # what the hub keeps in its large-file store
TOKEN = "hf_reader"


@dataclass
class Model:
    """A repository. commits: commit → files; branches: name → commit. gated and private ones want TOKEN."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    refused: bool = False  # the gate stays shut for the owner of TOKEN


@dataclass
class HubServer:
    """The server's state, and what it was asked: "METHOD path" of every request; the file and the Range of contents."""

    url: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    contents: list[tuple[str, str | None]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)  # file → bytes after which the connection breaks, once
    hold: dict[str, int] = field(default_factory=dict)  # file → bytes after which nothing more comes, once
    held: threading.Event = field(default_factory=threading.Event)
    status: int = 200  # of every answer; 503 is a hub that is down

    def add(self, name: str, files: Mapping[str, bytes] | Path, branch: str = "main", **kind: bool) -> str:
        """Put files (or a folder's) on a branch of a model; the commit."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        model = self.models.setdefault(name, Model())
        vars(model).update(kind)
        text = json.dumps(
            [(file, hashlib.sha1(content).hexdigest()) for file, content in sorted(files.items())]
        )
        commit = hashlib.sha1((name + text).encode()).hexdigest()
        model.commits[commit] = dict(files)
        model.branches[branch] = commit
        return commit

    def sent(self) -> list[str]:
        """The names of the files whose content was asked for, in order."""
        return [file for file, _ in self.contents]

    def ranges(self, file: str) -> list[str | None]:
        """The Range headers of the requests for a file's content."""
        return [span for name, span in self.contents if name == file]

    def forget(self) -> None:
        """Forget what was asked so far."""
        self.asked.clear()
        self.contents.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if self.hub.status != 200:
            self._say(self.hub.status, {})
        elif parts[:2] == ["api", "models"]:
            self._listing("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[0] == "cdn" and self.headers.get("Authorization"):
            self._say(400, {"X-Error-Message": "the token was sent to another host"})
        elif parts[0] == "cdn":
            self._content(self._large(parts[1]), parts[-1])
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _find(self, name: str, revision: str) -> tuple[Model, str] | None:
        """The model and the commit; None after an error was sent."""
        model = self.hub.models.get(name)
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}"):
            self._say(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif model is None or (model.private and sent is None):
            self._say(401 if sent is None else 404, {"X-Error-Code": "RepoNotFound"})
        elif (commit := model.branches.get(revision, revision)) not in model.commits:
            self._say(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            return model, commit
        return None

    def _listing(self, name: str, revision: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        model, commit = found
        files = [_sibling(file, content) for file, content in model.commits[commit].items()]
        data = {
            "_id": "1",
            "id": name,
            "sha": commit,
            "gated": model.gated,
            "private": False,
            "siblings": files,
        }
        self._say(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        model, commit = found
        if model.gated and (model.refused or self.headers.get("Authorization") is None):
            status = 403 if model.refused else 401
            self._say(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            return
        content = model.commits[commit].get(file)
        if content is None:
            self._say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        if file.endswith(LARGE):
            name_of = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{name_of}"', "X-Linked-Size": str(len(content))}
            where = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name_of}/{file}"  # another host
            self._say(302, {"X-Repo-Commit": commit, "ETag": '"of-the-pointer"', "Location": where, **linked})
        else:
            self._content(content, file, {"X-Repo-Commit": commit, "ETag": f'"{_git_name(content)}"'})

    def _large(self, name: str) -> bytes:
        contents = (
            c for m in self.hub.models.values() for files in m.commits.values() for c in files.values()
        )
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == name)

    def _content(self, content: bytes, file: str, headers: Mapping[str, str] | None = None) -> None:
        span = self.headers.get("Range")
        if self.command == "GET":
            self.hub.contents.append((file, span))
        start = 0 if span is None else int(span.removeprefix("bytes=").split("-")[0])
        if start >= len(content) > 0:
            self._say(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if span else {}
        self._say(206 if span else 200, {**(headers or {}), **part}, content[start:], file)

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"", file: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if (stop := self.hub.cut.pop(file, None)) is not None:
            self.wfile.write(body[:stop])
            self.close_connection = True
        elif (stop := self.hub.hold.pop(file, None)) is not None:
            self.wfile.write(body[:stop])
            self.wfile.flush()
            self.hub.held.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(body)


def _sibling(file: str, content: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git_name(content)}
    if file.endswith(LARGE):
        about["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return about


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """A server on a free port of this machine while the block runs."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.held.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def client_of(hub: HubServer, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client talks to `hub` and keeps what it fetches in `cache`; its sessions are new before and after.

    `patch` is the test's own: what both set must be undone in one order.
    """
    import huggingface_hub
    from huggingface_hub import constants, file_download

    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "HF_TOKEN"):
        patch.delenv(name, raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # whichever the client's version looks at
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    utils: Any = huggingface_hub.utils
    new_sessions = getattr(utils, "reset_sessions", None) or utils.close_session
    new_sessions()
    try:
        yield
    finally:
        new_sessions()
