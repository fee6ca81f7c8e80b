"""files/replacing.py: a save killed anywhere leaves the old files, the new ones, or a folder that says it is neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError
from vitrail.files import replacing as module
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.replacing import INCOMPLETE, refuse_incomplete, replacing, scratch_folder
from vitrail.weights.convert import convert

# Saves over three earlier files, and dies at the n-th time that a file is opened, moved, made or removed.
SAVE = """
import os, sys
from pathlib import Path
from vitrail.files.replacing import replacing
from vitrail.files.writing import write_text
def save(target, names, text):
    with replacing(target, last="config.json", stale=lambda name: name.endswith(".safetensors")) as new:
        for name in names:
            (new / name).parent.mkdir(exist_ok=True)
            write_text(new / name, text)
OLD, NEW = ["config.json", "a.safetensors", "b.safetensors", "more/x"], ["config.json", "model.safetensors", "more/x"]
root, names = Path(sys.argv[1]), set(sys.argv[2].split())
for number in range(1000):
    target = root / str(number)
    save(target, OLD, "old")
    child = os.fork()
    if child == 0:
        left = number
        def count(event, arguments):
            global left
            if event in names and left >= 0:
                left -= 1
                if left < 0:
                    os._exit(9)
        sys.addaudithook(count)
        save(target, NEW, "new")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(number)
        break
"""
EVENTS = "open os.rename os.remove os.mkdir os.rmdir shutil.rmtree os.listdir os.scandir"
OLD = {"config.json", "a.safetensors", "b.safetensors", "more/x"}
NEW = {"config.json", "model.safetensors", "more/x"}


def files(folder: Path) -> dict[str, str]:
    """The files of a folder but those of cut-off saves."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_text() for name in found if not name.startswith(".")}


def complete(folder: Path) -> bool:
    try:
        refuse_incomplete(folder)
    except CheckpointError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are ended as on POSIX")
def test_save_killed_at_every_step_old_new_or_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path), EVENTS], capture_output=True, text=True, check=True
    )
    count, refused = int(done.stdout), 0
    assert count > 20
    old, new = dict.fromkeys(OLD, "old"), dict.fromkeys(NEW, "new")
    monkeypatch.setattr(module, "_FRESH", -1.0)
    for number in range(count + 1):
        folder = tmp_path / str(number)
        if complete(folder):
            assert files(folder) in (old, new), number
        else:
            refused += 1
            with pytest.raises(CheckpointError, match=r"incomplete: a save of .*config\.json"):
                CheckpointFolder.at(folder).files  # noqa: B018
        with replacing(folder, last="config.json", stale=lambda name: name.endswith(".safetensors")) as place:
            for name in NEW:
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_text("new")
        assert complete(folder)
        assert files(folder) == new
        assert not list(folder.glob(".saving-*")), number
    assert 3 < refused < count


def test_error_between_two_moves_puts_the_old_files_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("old")
    real, left = os.replace, 3

    def fails(*names: object, **more: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        real(*names, **more)  # type: ignore[arg-type]

    def save() -> None:
        with replacing(tmp_path) as new:
            for name in ("a", "b", "c"):
                (new / name).write_text("new")
            monkeypatch.setattr(os, "replace", fails)

    with pytest.raises(CheckpointError, match="No space"):
        save()
    monkeypatch.undo()
    assert files(tmp_path) == dict.fromkeys("abc", "old")
    assert not list(tmp_path.glob(".*"))


def test_another_save_does_not_finish_one_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / INCOMPLETE).write_text(json.dumps(["config.json", "model.safetensors"]))
    with replacing(tmp_path) as new:
        (new / "tokenizer.json").write_text("{}")
    assert not complete(tmp_path)
    with replacing(tmp_path) as new:
        (new / "config.json").write_text("{}")
        (new / "model.safetensors").write_text("")
    assert complete(tmp_path)


def test_hidden_folders_of_the_living_and_of_the_user_stay(tmp_path: Path) -> None:
    mine = tmp_path / ".saving-mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    old = time.time() - 1000
    os.utime(mine, (old, old))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".vitrail-lock").write_text("")
    (tmp_path / ".saving-link").symlink_to(elsewhere)
    with scratch_folder(tmp_path, ".saving-") as living, replacing(tmp_path) as new:
        (new / "a").write_text("")
        assert living.is_dir()
    assert (mine / "thesis.txt").read_text() == "mine"
    assert (elsewhere / ".vitrail-lock").exists()
    dead = tmp_path / ".saving-dead"
    dead.mkdir()
    (dead / ".vitrail-lock").write_text("")
    (dead / "model.safetensors").write_text("half")
    with replacing(tmp_path) as new:
        (new / "a").write_text("")
    assert not dead.exists()


def test_saves_of_several_threads_into_one_folder_leave_one_of_them(tmp_path: Path) -> None:
    def save(text: str) -> None:
        for _ in range(5):
            with replacing(tmp_path, last="config.json") as new:
                for name in ("config.json", "a", "b"):
                    (new / name).write_text(text)

    threads = [threading.Thread(target=save, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete(tmp_path)
    assert len(set(files(tmp_path).values())) == 1
    assert not list(tmp_path.glob(".*"))


def test_incomplete_folder_every_loader_says_so(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    (folder / INCOMPLETE).write_text(json.dumps(["config.json", "model.safetensors"]))
    for load in (vitrail.AutoModelForImageTextToText, vitrail.AutoConfig, vitrail.AutoProcessor):
        with pytest.raises(
            CheckpointError, match=r"is incomplete: a save of config\.json, model\.safetensors"
        ):
            load.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="is incomplete"):
        convert(folder, tmp_path / "out", "mistral")
    (folder / INCOMPLETE).write_text("{")
    with pytest.raises(CheckpointError, match="is incomplete: a save of unknown files"):
        vitrail.AutoConfig.from_pretrained(folder)


def test_processor_and_adapter_over_earlier_ones_are_whole(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    processor = vitrail.AutoProcessor.from_pretrained(folder)
    written = processor.save_pretrained(folder)
    assert all(Path(name).is_file() and Path(name).parent == folder for name in written)
    model = vitrail.AutoModelForImageTextToText.from_pretrained(folder)
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    for _ in range(2):
        model.save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (tmp_path / "adapter" / INCOMPLETE).write_text('["adapter_model.safetensors"]')
    with pytest.raises(CheckpointError, match="is incomplete"):
        model.load_adapter(tmp_path / "adapter", "again")


def test_converting_again_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    left = tmp_path / ".out.partial-dead"
    (left / "new").mkdir(parents=True)
    (left / ".vitrail-lock").write_text("")
    convert(folder, tmp_path / "out", "mistral")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("marker", [b"[" * 100_000, b"\xff", b'["' + b"a" * (5 << 20)])
def test_damaged_marker_says_incomplete(tmp_path: Path, marker: bytes) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    (folder / INCOMPLETE).write_bytes(marker)
    with pytest.raises(CheckpointError, match="is incomplete: a save of unknown files"):
        vitrail.AutoConfig.from_pretrained(folder)
