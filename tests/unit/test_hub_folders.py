"""What never asks the hub: folders, names that cannot be its own, and every module but the two that may connect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_hub import no_sockets
from vitrail.errors import CheckpointError
from vitrail.files.hub import resolve


def test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    with no_sockets():
        assert resolve(tmp_path) == tmp_path
        for wrong, said in (
            (tmp_path / "none", "there is no folder"),
            ("./owner/model", "there is no folder"),
            ("", "is empty"),
            (" ", "is empty"),
        ):
            with pytest.raises(CheckpointError, match=said):
                resolve(wrong)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "file")


def test_nothing_else_in_the_library_connects() -> None:
    """Only the hub's client and the fetcher of images may import what opens connections."""
    import vitrail

    root = Path(vitrail.__file__).parent
    roads = r"(socket|ssl|http|urllib|requests|httpx|aiohttp|ftplib|huggingface_hub|asyncio)\b(?!\.parse)"
    line = re.compile(rf"^[ \t]*(?:from|import)[ ]+{roads}(?!\.request import url2pathname$)", re.MULTILINE)
    found = {
        path.relative_to(root).as_posix(): line.findall(path.read_text("utf-8"))
        for path in root.rglob("*.py")
    }
    connecting = {path: set(names) for path, names in found.items() if names}
    assert connecting.pop("files/hub_client.py") == {"huggingface_hub", "socket"}  # of socket only an error
    assert set(connecting) == {"images/fetch.py"}
