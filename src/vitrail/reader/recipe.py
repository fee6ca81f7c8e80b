"""Training recipe of the embedded model: stages as data, and the command that runs them in order.

    python -m vitrail.reader.recipe --out RUN --fonts DIR… --words FILE…

Fonts and word lists are not part of the package; docs/reader.md names those that were used. The command can be stopped
at any time; started again, it resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from vitrail.errors import InputError
from vitrail.reader import fonts
from vitrail.reader.batches import Batch, Images, Look
from vitrail.reader.fonts import Face
from vitrail.reader.network import Reader
from vitrail.reader.text import Words
from vitrail.train import checkpoint
from vitrail.train.distributed import Peers
from vitrail.train.loop import Schedule, TrainingLoop
from vitrail.train.metrics import StepMeans
from vitrail.train.muon import Muon

_log = logging.getLogger(__name__)

STARTERS = ("DejaVu Sans", "FreeSans", "Noto Sans", "DejaVu Serif", "Clear", "Caladea", "Open")
"""Families of the first stage: few and ordinary, so that letter shapes are learned quickly."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage with one distribution of images."""

    name: str
    look: Look
    schedule: Schedule
    count: int  # images per step
    patches: float = 1.0  # weight of the loss on characters under patches
    answer: float = 0.0  # weight of the next-token loss on the answer
    pointer: float = 0.0  # weight of the attention loss of the pointing heads
    located: float = 0.0  # weight of the loss on row and column of image tokens
    frozen: int = 0  # number of frozen tower layers, from the lowest
    families: tuple[str, ...] = ()  # () = all
    group: int = 12
    rate: float = 8e-3  # learning rate of Muon, for matrices
    rate_rest: float = 5e-3  # learning rate of AdamW, for everything else


STAGES: tuple[Stage, ...] = (
    Stage(
        "letters",
        Look(sizes=(20, 28), characters=(2, 9), lines=(1.0,), wear=0.1, accents=0.0, margin=3.0, plain=1.0),
        Schedule(steps=700, warmup=30, save_every=300),
        count=20,
        families=STARTERS,
    ),
    Stage(
        "words",
        Look(sizes=(18, 30), characters=(2, 10), lines=(1.0,), wear=0.4, accents=0.04, margin=4.0, plain=0.8),
        Schedule(steps=1000, warmup=30, save_every=300),
        count=20,
        group=5,
        rate=3.5e-3,
        rate_rest=2e-3,
    ),
    Stage(
        "shapes",
        Look(characters=(3, 18), lines=(0.75, 0.25), wear=0.7, margin=6.0, plain=0.6),
        Schedule(steps=2500, warmup=30, final=0.6, save_every=300),
        count=10,
        group=2,
        rate=3e-3,
        rate_rest=1.5e-3,
    ),
    Stage(
        "point",
        Look(sizes=(18, 36), characters=(3, 18), lines=(0.75, 0.25), wear=0.5, accents=0.05, margin=5.0),
        Schedule(steps=400, warmup=30, save_every=100),
        count=16,
        patches=0.0,
        answer=1.0,
        pointer=0.5,
        located=0.5,
        frozen=6,
        group=2,
        rate=5e-3,
        rate_rest=4e-3,
    ),
    Stage(
        "pages",
        Look(characters=(3, 34), lines=(0.5, 0.35, 0.15), margin=7.0),
        Schedule(steps=1800, warmup=30, final=0.8, ema=0.998, save_every=200),
        count=10,
        patches=0.5,
        answer=1.0,
        pointer=0.2,
        located=0.1,
        group=1,
        rate=2.5e-3,
        rate_rest=1.5e-3,
    ),
    Stage(
        "finish",
        Look(characters=(3, 34), lines=(0.5, 0.35, 0.15), margin=8.0, accents=0.12, blank=0.02),
        Schedule(steps=1300, warmup=10, final=0.0, ema=0.995, save_every=250),
        count=10,
        patches=0.3,
        answer=1.0,
        pointer=0.1,
        located=0.05,
        group=1,
        rate=1.5e-3,
        rate_rest=0.9e-3,
    ),
)


def optimizers(reader: Reader, stage: Stage) -> list[Optimizer]:
    """Return Muon for the matrices of tower, projector and decoder, and AdamW for everything else."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in reader.named_parameters():
        hidden = (
            parameter.ndim == 2
            and parameter is not reader.table
            and not name.startswith(("heads", "row", "column"))
        )
        (matrices if hidden else rest).append(parameter)
    return [
        Muon(matrices, lr=stage.rate, weight_decay=0.01),
        AdamW(rest, lr=stage.rate_rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    out: Path,
    folders: Sequence[Path],
    word_files: Sequence[Path],
    stages: Sequence[Stage] = STAGES,
    workers: int = 1,
    peers: Peers | None = None,
) -> bool:
    """Run the stages in order, each in its own folder of `out`.

    Args:
        out: folder of the run; an interrupted run in it is resumed.
        folders: of fonts.
        word_files: word lists.
        stages: of training.
        workers: processes that draw images.
        peers: other processes that train the same model.

    Returns:
        False if stopped before the end.
    """
    torch.manual_seed(1)
    reader = Reader()
    families, _ = fonts.split_families(_faces(out / "faces.json", folders))
    words = Words(word_files)
    previous: Path | None = None
    for number, stage in enumerate(stages):
        folder = out / f"{number:02d}-{stage.name}"
        if checkpoint.finished(folder, stage.schedule.steps):
            previous = folder
            continue
        chosen = {
            name: faces for name, faces in families.items() if not stage.families or name in stage.families
        }
        if not chosen:
            raise InputError(
                f"stage {stage.name}: none of the families {', '.join(stage.families)} was found."
            )
        images = Images(chosen, words, stage.look, count=stage.count, seed=1000 + number, group=stage.group)
        reader.freeze(stage.frozen)
        loop = _loop(reader, stage, images, folder, workers, peers or Peers())
        if not loop.restore() and previous is not None:
            checkpoint.begin_from(loop, previous)
        _log.info("stage %s: %d families, %d steps", stage.name, len(chosen), stage.schedule.steps)
        means = StepMeans(folder, stage.name, stage.schedule, _report)
        if not loop.run(means.add if loop.peers.rank == 0 else None):
            return False
        previous = folder
    return True


def _faces(note: Path, folders: Sequence[Path]) -> list[Face]:
    """Return the usable faces, cached in `note`: scanning hundreds of fonts takes a while."""
    if note.is_file():
        return [
            Face(Path(path), family, style) for path, family, style in json.loads(note.read_text("utf-8"))
        ]
    faces = fonts.find_faces(folders)
    note.write_text(json.dumps([(str(face.path), face.family, face.style) for face in faces]), "utf-8")
    return faces


def _loop(
    reader: Reader, stage: Stage, images: Images, folder: Path, workers: int, peers: Peers
) -> TrainingLoop[Batch]:
    def data(step: int) -> Iterable[list[Batch]]:
        steps = range(step * peers.count + peers.rank, stage.schedule.steps * peers.count, peers.count)
        batches: DataLoader[Batch] = DataLoader(
            images,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=6 if workers else None,
        )
        return ([batch] for batch in batches)

    def loss(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        return reader.loss(
            batch, patches=stage.patches, answer=stage.answer, pointer=stage.pointer, located=stage.located
        )

    return TrainingLoop(
        reader, optimizers(reader, stage), loss, data, stage.schedule, folder, name=stage.name, peers=peers
    )


def _report(record: dict[str, Any]) -> None:
    _log.info(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in record.items()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m vitrail.reader.recipe", description="Train the embedded reader."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and metrics")
    parser.add_argument(
        "--fonts", type=Path, nargs="+", required=True, help="folders with .ttf and .otf files"
    )
    parser.add_argument("--words", type=Path, nargs="*", default=[], help="word lists, one word a line")
    parser.add_argument("--threads", type=int, default=0, help="threads of the trainer (default: PyTorch's)")
    parser.add_argument(
        "--peers", type=int, default=1, help="processes that train together (each draws its own images)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that draw images (0: none)")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.peers == 1:
        _peer(0, given, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_peer, (given, f"file://{folder}/meeting"), nprocs=given.peers)  # type: ignore[no-untyped-call]


def _peer(rank: int, given: argparse.Namespace, meeting: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    peers = Peers.join(rank, given.peers, meeting)
    train(given.out, given.fonts, given.words, workers=given.workers, peers=peers)


if __name__ == "__main__":
    main()
