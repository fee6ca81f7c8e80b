"""Names of the hub, by the real client against a local server: what is fetched, what is not, and what is said."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import TOKEN, HubServer
from vitrail.errors import CheckpointError, InputError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.download import Download, watching
from vitrail.files.download_plan import ADAPTER, MODEL, SETTINGS
from vitrail.files.hub import resolve
from vitrail.files.hub_options import HubOptions

NAME = "owner/model"
WEIGHTS = bytes(range(256)) * 32  # 8 KiB: eight of the client's chunks here
SHARED = {
    "tekken.json": b"{ }",
    "tokenizer.json": b"{  }",
    "chat_template.jinja": b"{{ x }}",
    "tokenizer_config.json": b"{   }",
}
OTHER = {
    "README.md": b"#",
    "pytorch_model.bin": b"\x80",
    "optimizer.pt": b"\x80",
    "adapter_model.safetensors": b"0",
}
HF = {
    "config.json": b'{"model_type": "llava"}',
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
}
OWN = {"params.json": b'{"dim": 8}', "consolidated.safetensors": WEIGHTS[1:]}
BOTH = {**SHARED, **OTHER, **HF, **OWN}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def partial(cache: Path) -> list[int]:
    """Sizes of the unfinished files."""
    return [path.stat().st_size for path in cache.rglob("*.incomplete")]


@contextmanager
def no_sockets() -> Iterator[None]:
    """Whoever opens a socket in this block fails, and so does the block."""
    opened: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        opened.append(args)
        raise AssertionError("a connection was made")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("socket", "create_connection", "getaddrinfo"):
            patch.setattr(socket, name, refuse)
        yield
    assert opened == []


# --- what is fetched ------------------------------------------------------------------------------------------


def test_of_both_formats_one_is_fetched_and_huggingface_comes_first(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(NAME, BOTH)
    folder = resolve(NAME, part=MODEL)
    assert folder == tmp_path / "cache/models--owner--model/snapshots" / commit
    assert names(folder) == {*SHARED, *HF}
    assert sorted(hub.sent()) == sorted([*SHARED, *HF])
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == WEIGHTS[::-1]


def test_the_other_format_is_fetched_when_named(hub: HubServer) -> None:
    hub.add(NAME, BOTH)
    folder = resolve(NAME, part=MODEL, format="mistral")
    assert names(folder) == {*SHARED, *OWN}
    assert not [file for file in hub.sent() if file.startswith(("config", "model-")) or file.endswith("bin")]


def test_the_only_complete_format_is_fetched(hub: HubServer) -> None:
    hub.add(NAME, {**SHARED, **OWN, "config.json": b"{}", "pytorch_model.bin": b"\x80"})
    assert names(resolve(NAME, part=MODEL)) == {*SHARED, *OWN}


def test_without_weights_only_small_files_are_fetched(hub: HubServer) -> None:
    hub.add(NAME, BOTH)
    assert names(resolve(NAME)) == {*SHARED, "config.json"}
    assert hub.sent()[-1] == "config.json"  # by which a folder is known comes last


def test_a_single_file_is_preferred_to_shards_and_stray_files(hub: HubServer) -> None:
    hub.add(NAME, {**HF, "model.safetensors": WEIGHTS, "extra.safetensors": b"0"})
    assert names(resolve(NAME, part=MODEL)) == {"config.json", "model.safetensors"}


def test_an_adapter_is_its_own_part(hub: HubServer) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    hub.add(NAME, {**adapter, "README.md": b"#", "tokenizer.json": b"{ }", "adapter_model.bin": b"\x80"})
    assert names(resolve(NAME, part=ADAPTER)) == set(adapter)
    with pytest.raises(CheckpointError, match="is no checkpoint of this family"):
        resolve(NAME, part=MODEL)
    hub.add("owner/base", HF)
    with pytest.raises(CheckpointError, match=r"owner/base holds no adapter: adapter_config\.json"):
        resolve("owner/base", part=ADAPTER)


def test_the_format_does_not_depend_on_what_was_fetched_before(hub: HubServer) -> None:
    """A processor's folder, beside Mistral's weights of an earlier call, is still Hugging Face's."""
    hub.add(NAME, BOTH)
    assert CheckpointFolder(resolve(NAME, part=MODEL, format="mistral")).layout == "mistral"
    assert CheckpointFolder(resolve(NAME)).layout == "hf"
    assert CheckpointFolder(resolve(NAME), format="mistral").layout == "mistral"


def test_nothing_is_fetched_twice(hub: HubServer) -> None:
    commit = hub.add(NAME, BOTH)
    folder = resolve(NAME, part=MODEL)
    hub.forget()
    assert resolve(NAME, part=MODEL) == folder
    assert hub.asked == [f"GET /api/models/{NAME}/revision/main"]
    with no_sockets():
        assert resolve(NAME, HubOptions(revision=commit), part=MODEL) == folder


def test_a_branch_that_moved_brings_only_what_changed(hub: HubServer) -> None:
    first = resolve(NAME, part=MODEL) if hub.add(NAME, HF) else None
    hub.add(NAME, {**HF, "config.json": b'{"model_type": "mistral3"}'})
    hub.forget()
    folder = resolve(NAME, part=MODEL)
    assert folder != first
    assert hub.sent() == ["config.json"]
    assert names(folder) == set(HF)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer) -> None:
    main = hub.add(NAME, HF)
    other = hub.add(NAME, OWN, branch="refs/pr/1")
    assert resolve(NAME, HubOptions(revision="refs/pr/1")).name == other
    assert resolve(NAME, HubOptions(revision=main)).name == main
    with pytest.raises(CheckpointError, match="owner/model has no revision 'v9' on the hub"):
        resolve(NAME, HubOptions(revision="v9"))
    with pytest.raises(InputError, match="name of a branch, a tag or a commit"):
        resolve(NAME, HubOptions(revision="../../x"))


def test_force_download_fetches_again(hub: HubServer) -> None:
    hub.add(NAME, HF)
    resolve(NAME, part=MODEL)
    hub.forget()
    resolve(NAME, HubOptions(force_download=True), part=MODEL)
    assert sorted(hub.sent()) == sorted(HF)


# --- interrupted ----------------------------------------------------------------------------------------------


def test_a_broken_connection_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, HF)
    shard = "model-00002-of-00002.safetensors"
    hub.cut[shard] = 5000
    with pytest.raises(CheckpointError, match=r"run this again: 12\.\d kB of 16\.\d kB are here"):
        resolve(NAME, part=MODEL)
    assert partial(tmp_path) == [4096]
    with pytest.raises(
        CheckpointError, match=rf"only in part, without {shard} \(8\.2 kB\), and local_files_only"
    ):
        resolve(NAME, HubOptions(local_files_only=True), part=MODEL)
    folder = resolve(NAME, part=MODEL)
    assert hub.ranges(shard) == [None, "bytes=4096-"]
    assert (folder / shard).read_bytes() == WEIGHTS[::-1]
    assert partial(tmp_path) == []


def test_a_killed_process_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, OWN)
    hub.hold["consolidated.safetensors"] = 6000
    code = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1024\n"
        f"from vitrail.files.hub import resolve; resolve({NAME!r}, part='model')"
    )
    keys = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
    keys |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **keys}) as child:
        waited = time.monotonic() + 60
        while hub.hold and child.poll() is None and time.monotonic() < waited:
            time.sleep(0.05)
        while not any(partial(tmp_path)) and child.poll() is None and time.monotonic() < waited:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    (size,) = partial(tmp_path)
    assert size > 0
    with pytest.raises(CheckpointError, match="only in part, without consolidated"):
        resolve(NAME, HubOptions(local_files_only=True), part=MODEL)
    folder = resolve(NAME, part=MODEL)
    assert (folder / "consolidated.safetensors").read_bytes() == WEIGHTS[1:]
    assert hub.ranges("consolidated.safetensors") == [None, f"bytes={size}-"]


def test_interrupted_small_files_are_not_taken_for_whole(hub: HubServer) -> None:
    commit = hub.add(NAME, {**SHARED, **HF})
    hub.cut["tokenizer.json"] = 1
    with pytest.raises(CheckpointError, match="run this again"):
        resolve(NAME)
    for revision in ("main", commit):
        with pytest.raises(CheckpointError, match=r"not in the cache|only in part"):
            resolve(NAME, HubOptions(revision=revision, local_files_only=True))


@pytest.mark.parametrize("damage", ["file", "content", "link"])
def test_what_has_another_size_is_fetched_again(hub: HubServer, damage: str) -> None:
    hub.add(NAME, OWN)
    file = resolve(NAME, part=MODEL) / "consolidated.safetensors"
    blob = file.resolve()
    if damage == "file":  # as on disks without links
        file.unlink()
        file.write_bytes(WEIGHTS[:100])
    else:
        blob.write_bytes(WEIGHTS[:100]) if damage == "content" else blob.unlink()
    with pytest.raises(CheckpointError, match="only in part"):
        resolve(NAME, HubOptions(local_files_only=True), part=MODEL)
    assert (resolve(NAME, part=MODEL) / file.name).read_bytes() == WEIGHTS[1:]


def test_pieces_that_do_not_fit_together_begin_anew(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, OWN)
    hub.cut["consolidated.safetensors"] = 5000
    with pytest.raises(CheckpointError):
        resolve(NAME, part=MODEL)
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(b"x" * 4096)
    with pytest.raises(
        CheckpointError, match=r"consolidated\.safetensors was continued .* is not what the hub has"
    ):
        resolve(NAME, part=MODEL)
    assert (resolve(NAME, part=MODEL) / "consolidated.safetensors").read_bytes() == WEIGHTS[1:]


def test_what_is_unfinished_beyond_its_end_begins_anew(hub: HubServer) -> None:
    hub.add(NAME, OWN)
    file = resolve(NAME, part=MODEL) / "consolidated.safetensors"
    blob = file.resolve()
    shutil.move(blob, blob.with_name(f"{blob.name}.incomplete"))
    with blob.with_name(f"{blob.name}.incomplete").open("ab") as stream:
        stream.write(b"more")
    assert (resolve(NAME, part=MODEL) / file.name).read_bytes() == WEIGHTS[1:]


# --- sizes and disks ------------------------------------------------------------------------------------------


def test_the_watcher_hears_sizes_before_the_first_byte(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(NAME, BOTH)
    heard: list[tuple[Download, int]] = []
    with watching(lambda download: heard.append((download, len(hub.sent())))):
        resolve(NAME, part=MODEL)
    (first, sent), last = heard[0], heard[-1][0]
    assert sent == 0
    assert (first.name, first.commit, first.format, first.weights) == (NAME, commit, "hf", True)
    assert (first.files, first.done) == (len(SHARED) + len(HF), 0)
    assert first.size == sum(len(content) for content in {**SHARED, **HF}.values())
    assert first.folder == tmp_path / "cache"
    assert abs(first.free - shutil.disk_usage(tmp_path).free) < 10**9
    assert last.done == last.size
    heard.clear()
    with watching(lambda download: heard.append((download, 0))):
        resolve(NAME, part=MODEL)
    assert heard == []


def test_the_watcher_hears_what_an_earlier_call_left(hub: HubServer) -> None:
    hub.add(NAME, OWN)
    hub.cut["consolidated.safetensors"] = 5000
    heard: list[Download] = []
    with watching(heard.append):
        with pytest.raises(CheckpointError):
            resolve(NAME, part=MODEL)
        heard.clear()
        resolve(NAME, part=MODEL)
    assert [heard[0].done, heard[0].files] == [4096, 1]


def test_too_small_a_disk_is_told_before_anything_is_written(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, BOTH)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**4, 0, 10**4))
    with pytest.raises(CheckpointError, match=r"needs 16\.4 kB more, and .*cache has 10\.0 kB free; nothing"):
        resolve(NAME, part=MODEL)
    assert list(tmp_path.iterdir()) == []
    assert names(resolve(NAME)) == {*SHARED, "config.json"}  # which fits


def test_a_disk_that_becomes_full_keeps_what_has_come(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    hub.add(NAME, OWN)
    real = file_download.http_get

    def full(url: str, temp_file: Any, **kwargs: Any) -> None:
        if url.endswith(".safetensors"):
            temp_file.write(WEIGHTS[1:3000])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(url, temp_file, **kwargs)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(CheckpointError, match="the disk became full while owner/model was fetched"):
        resolve(NAME, part=MODEL)
    assert partial(tmp_path) == [2999]
    monkeypatch.setattr(file_download, "http_get", real)
    assert (resolve(NAME, part=MODEL) / "consolidated.safetensors").read_bytes() == WEIGHTS[1:]
    assert hub.ranges("consolidated.safetensors") == ["bytes=2999-"]


def test_a_cache_that_cannot_be_written_is_told(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, OWN)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match=r"could not be fetched|cannot be written"):
        resolve(NAME)


# --- refused --------------------------------------------------------------------------------------------------


def test_a_name_that_does_not_exist(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="there is no folder 'owner/modle', and no model of that name on the hub"
    ):
        resolve("owner/modle")
    assert list(tmp_path.iterdir()) == []


def test_gated_repositories_say_how_to_log_in(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, OWN, gated=True)
    with pytest.raises(
        CheckpointError, match=rf"accept its licence at {hub.url}/{NAME} .*`hf auth login`, set HF_TOKEN"
    ):
        resolve(NAME)
    assert list(tmp_path.rglob("*.json")) == []
    folder = resolve(NAME, HubOptions(token=TOKEN), part=MODEL)
    assert names(folder) == set(OWN)


def test_an_account_that_was_not_let_in(hub: HubServer) -> None:
    hub.add(NAME, OWN, gated=True, refused=True)
    with pytest.raises(CheckpointError, match=r"is gated.*this account has not been let in yet"):
        resolve(NAME, HubOptions(token=TOKEN))


def test_private_repositories_want_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, OWN, private=True)
    with pytest.raises(CheckpointError, match="if it is a private one, log in with"):
        resolve(NAME)
    with pytest.raises(CheckpointError, match="the hub refuses the token"):
        resolve(NAME, HubOptions(token="hf_wrong"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert names(resolve(NAME)) == {"params.json"}


def test_pickles_are_never_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, {**SHARED, "config.json": b"{}", "pytorch_model.bin": b"\x80"})
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model\.bin\)"):
        resolve(NAME, part=MODEL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [SETTINGS, MODEL])
def test_a_repository_with_neither_format(hub: HubServer, part: str) -> None:
    hub.add(NAME, {"README.md": b"#", "model.gguf": b"GGUF"})
    with pytest.raises(
        CheckpointError, match=r"config\.json with .* was looked for, and there is README\.md, model\.gguf"
    ):
        resolve(NAME, part=part)


def test_the_format_that_is_not_there(hub: HubServer) -> None:
    hub.add(NAME, HF)
    with pytest.raises(CheckpointError, match=r"owner/model has no params\.json.*say format='hf'"):
        resolve(NAME, format="mistral")
    with pytest.raises(InputError, match="'hf' or 'mistral', got 'gguf'"):
        resolve(NAME, format="gguf")


def test_a_hub_that_is_down_or_gone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, HF)
    hub.status = 503
    with pytest.raises(CheckpointError, match=r"no whole copy in the cache .*status 503"):
        resolve(NAME)
    hub.status = 200
    folder = resolve(NAME)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"could not be reached.*the copy in the cache"):
        assert resolve(NAME) == folder
    with pytest.raises(CheckpointError, match=r"no whole copy in the cache ") as caught:
        resolve(NAME, part=MODEL)
    # The system's own words, not those of the libraries around it.
    told = "the hub at http://127.0.0.1:9 could not be reached for 'owner/model', or broke off (Connection refused); check"
    assert told in str(caught.value)


def test_an_answer_that_is_not_the_hubs(hub: HubServer) -> None:
    hub.add(NAME, HF)
    model = hub.models[NAME]
    model.commits["../../../x"] = model.commits[model.branches["main"]]
    model.branches["main"] = "../../../x"
    with pytest.raises(CheckpointError, match="names no commit of owner/model"):
        resolve(NAME)


# --- without a connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline_makes_no_connection(
    hub: HubServer, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = hub.add(NAME, BOTH)
    folder = resolve(NAME, part=MODEL, format="mistral")
    keywords = {"local_files_only": True} if how == "local_files_only" else {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not keywords)
    with no_sockets():
        assert resolve(NAME, HubOptions(**keywords), format="mistral", part=MODEL) == folder
        assert resolve(NAME, HubOptions(revision=commit, **keywords), format="mistral") == folder
        with pytest.raises(
            CheckpointError, match=rf"{how} forbids .* here in Mistral's own format: say format='mistral'"
        ):
            resolve(NAME, HubOptions(**keywords), part=MODEL)
        with pytest.raises(CheckpointError, match=rf"owner/other .* is not in the cache .*{how} forbids"):
            resolve("owner/other", HubOptions(**keywords))
        with pytest.raises(CheckpointError, match=r"revision v2.* is not in the cache"):
            resolve(NAME, HubOptions(revision="v2", **keywords))
        with pytest.raises(InputError, match="force_download asks for what"):
            resolve(NAME, HubOptions(force_download=True, **keywords))


def test_what_another_program_fetched_is_taken(hub: HubServer) -> None:
    from huggingface_hub import snapshot_download

    hub.add(NAME, HF)
    folder = Path(snapshot_download(NAME))
    with no_sockets():
        assert resolve(NAME, HubOptions(local_files_only=True), part=MODEL) == folder
    hub.forget()
    assert resolve(NAME, part=MODEL) == folder
    assert hub.sent() == []


def test_the_clients_own_tools_read_the_cache(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    hub.add(NAME, HF)
    folder = resolve(NAME)
    report = scan_cache_dir(tmp_path / "cache")
    assert report.warnings == []
    assert [repo.repo_id for repo in report.repos] == [NAME]
    assert try_to_load_from_cache(NAME, "config.json") == str(folder / "config.json")


def test_cache_dir_is_used(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, HF)
    assert resolve(NAME, HubOptions(cache_dir=tmp_path / "own")).is_relative_to(tmp_path / "own")
    assert not (tmp_path / "cache").exists()
