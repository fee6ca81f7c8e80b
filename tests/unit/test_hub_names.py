"""Names in a hub's listing: only paths that stay inside of the repository's folder, whoever the listing comes from."""

from __future__ import annotations

import json
import ntpath
import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tests.hub_server import HubServer
from tests.unit.test_hub import HF, NAME, names
from vitrail.errors import CheckpointError
from vitrail.files.download_plan import ADAPTER, MODEL
from vitrail.files.hub import resolve
from vitrail.files.names import is_plain
from vitrail.files.repository import RemoteFile, Repository
from vitrail.prompts.template_files import save_chat_template

COMMIT = "a" * 40
OUTSIDE = [
    "../x", "a/../x", "a/../../x", "..", ".", "./x", "a/./x", "", "/", "/etc/passwd", "//server/x", "a//b", "a/",
    "C:", "C:x", "c:/x", "C:\\x", "\\x", "..\\x", "a\\b", "a\\..\\..\\x", "\\\\server\\share\\x", "...", ".. /x", "a/ /b",
    "a\0", "a\nb", "a\x1b[2J", "a\x7f", "a\x85", "\ud800",
]  # fmt: skip
INSIDE = [
    "config.json", ".gitattributes", "additional_chat_templates/tool.jinja", "a/b/c.txt", "..a", "a..b", "a/..b/c", "a.",
    "model-00001-of-00002.safetensors", "with space.txt", "~x", "模型.safetensors", "runs/10:15:00.log", "aux.json", "con",
]  # fmt: skip
ADAPTED = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, b"x"], ids=ascii)
def test_a_listing_with_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert not is_plain(name)
    with pytest.raises(
        CheckpointError, match=r"the listing of owner/model names .*inside of the repository"
    ) as said:
        Repository(NAME, COMMIT, {"config.json": RemoteFile(1, ""), name: RemoteFile(1, "")})
    assert str(said.value).isprintable()


@pytest.mark.parametrize("name", INSIDE, ids=ascii)
def test_ordinary_names_are_taken(name: str) -> None:
    listing = Repository(NAME, COMMIT, {name: RemoteFile(1, "b" * 64)})
    assert Repository.from_json(listing.as_json()) == listing


@pytest.mark.parametrize("name", ["aux.json", "con", "sub/NUL.tar.gz", "lpt1", "Com9 .txt"])
def test_names_of_devices_are_refused_where_they_are_devices(name: str) -> None:
    assert is_plain(name, windows=False) and not is_plain(name, windows=True)


PARTS = st.one_of(
    st.text(max_size=4), st.sampled_from(["..", ".", "", "a", "C:", "\\", "..\\", "/", " ", ". ."])
)
PATHS = st.tuples(st.lists(PARTS, max_size=6), st.sampled_from(["/", "\\", ""])).map(
    lambda of: of[1].join(of[0])
)


@pytest.mark.slow
@given(PATHS)
def test_what_is_plain_stays_below_its_folder_on_every_system(name: str) -> None:
    if not is_plain(name):
        return
    assert os.fsencode(name).decode("utf-8") == name
    for system, root in ((posixpath, "/cache/x"), (ntpath, "D:\\cache\\x")):
        joined = system.normpath(system.join(root, name))
        assert joined.startswith(root + system.sep) and len(joined) > len(root) + 1
        assert joined[len(root) + 1 :].replace("\\", "/") == name


@given(st.lists(st.from_regex(r"[\w.-]*\w", fullmatch=True), min_size=1, max_size=4).map("/".join))
def test_every_path_of_ordinary_words_is_plain(name: str) -> None:
    assert is_plain(name, windows=False)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("up", range(3, 8))
def test_no_listing_makes_a_file_outside_disappear(
    hub: HubServer, tmp_path: Path, up: int, pinned: bool
) -> None:
    """One of these depths leads from the snapshot to tmp_path."""
    mine = tmp_path / "precious.json"
    mine.write_text("keep me")
    commit = hub.add(
        NAME, {**ADAPTED, "adapter_0/!.json": b"{}", f"adapter_0/{'../' * up}precious.json": b"[]"}
    )
    with pytest.raises(CheckpointError, match=r"listing of owner/model names .*precious\.json"):
        resolve(NAME, part=ADAPTER, revision=commit if pinned else None)
    assert mine.read_text() == "keep me"
    assert hub.sent() == [] and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("name", "blob"),
    [("adapter_/../../../../../precious.json", ""), ("adapter_model.safetensors", "../../../precious.json")],
)
def test_a_listing_kept_in_the_cache_is_not_trusted_either(
    hub: HubServer, tmp_path: Path, name: str, blob: str, offline: bool
) -> None:
    mine = tmp_path / "precious.json"
    mine.write_text("keep me")
    commit = hub.add(NAME, ADAPTED)
    resolve(NAME, part=ADAPTER)
    (kept,) = (tmp_path / "cache").rglob(f".vitrail/{commit}.json")
    listing = json.loads(kept.read_text())
    listing["files"][name] = [3, blob]
    kept.write_text(json.dumps(listing))
    with pytest.raises(
        CheckpointError, match=rf"{commit}\.json is damaged .*remove it, and the hub is asked again"
    ):
        resolve(NAME, part=ADAPTER, revision=commit, local_files_only=offline)
    assert mine.read_text() == "keep me"
    kept.unlink()
    assert names(resolve(NAME, part=ADAPTER)) == set(ADAPTED)


def test_one_such_name_refuses_every_part(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, {**HF, "../README.md": b"#"})
    for part in ("settings", MODEL):
        with pytest.raises(
            CheckpointError, match=r"names '\.\./README\.md', and paths inside of the repository"
        ):
            resolve(NAME, part=part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\0", "\ud800", "C:x"], ids=ascii)
def test_a_chat_template_whose_name_is_no_files_is_not_saved(tmp_path: Path, name: str) -> None:
    """Its name comes from tokenizer_config.json and becomes a file's."""
    with pytest.raises(CheckpointError, match="its name becomes a file's"):
        save_chat_template(tmp_path, {name: "{{ x }}"})
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in save_chat_template(tmp_path, {"tool_use": "{{ x }}"})] == ["tool_use.jinja"]
