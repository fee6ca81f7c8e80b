"""Teach the embedded reader seven-segment meters with LoRA: python examples/finetune.py [--out DIR] [--steps N].

It draws its own images, trains for about ten minutes on two cores, and says how many unseen meters the reader gets
right before and after. DIR then holds an adapter: model.load_adapter(DIR).
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from vitrail import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LoraConfig,
    TrainingJob,
    TrainingSettings,
    embedded_path,
)

QUESTION = "What does it say?"
# The segments of a digit: a top, b and c right, d bottom, e and f left, g middle; each as two corners on a 1 × 2 cell.
ENDS = {"a": (0, 0, 1, 0), "b": (1, 0, 1, 1), "c": (1, 1, 1, 2), "d": (0, 2, 1, 2), "e": (0, 1, 0, 2), "f": (0, 0, 0, 1),
        "g": (0, 1, 1, 1)}  # fmt: skip
LIT = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg"]


def meter(text: str, chance: random.Random) -> Image.Image:
    """A display that shows `text`, digits and points, in one of many colours, slants and sizes."""
    height = chance.randint(18, 30)
    width, gap, thick = height * 0.5, height * 0.34, max(2, round(height * chance.uniform(0.09, 0.15)))
    slant, margin = chance.uniform(0, 0.12), chance.randint(6, 12)
    dark = chance.random() < 0.6
    paper = [chance.randint(0, 60) if dark else chance.randint(150, 230) for _ in range(3)]
    ink = [chance.randint(160, 255) if dark else chance.randint(0, 60) for _ in range(3)]
    faint = tuple(round(p + (i - p) * chance.uniform(0, 0.12)) for p, i in zip(paper, ink, strict=True))
    digits = sum(letter != "." for letter in text)
    size = (round(digits * (width + gap) + height * slant + 2 * margin), height + 2 * margin)
    image = Image.new("RGB", size, tuple(paper))
    pen = ImageDraw.Draw(image)
    left = margin + height * slant
    for letter in text:
        if letter == ".":
            at = left - gap * 0.55
            pen.ellipse(
                [at - thick * 0.6, margin + height - thick, at + thick * 0.6, margin + height], tuple(ink)
            )
            continue
        for name, (x0, y0, x1, y1) in ENDS.items():
            ends = [
                (left + x * width - y * height / 2 * slant, margin + y * height / 2)
                for x, y in ((x0, y0), (x1, y1))
            ]
            pen.line(ends, tuple(ink) if name in LIT[int(letter)] else faint, thick)
        left += width + gap
    return image.filter(ImageFilter.GaussianBlur(chance.uniform(0.2, 0.8)))


def reading(chance: random.Random) -> str:
    """Two to six digits, every second time with a point."""
    digits = [chance.choice("0123456789") for _ in range(chance.randint(2, 6))]
    if chance.random() < 0.5:
        digits.insert(chance.randint(1, len(digits) - 1), ".")
    return "".join(digits)


def write_talks(folder: Path, count: int, chance: random.Random) -> Path:
    """`count` images and a file with a conversation about each on a line."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "meters.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            text = reading(chance)
            meter(text, chance).save(folder / f"{number:05}.png")
            content = [{"type": "image", "path": f"{number:05}.png"}, {"type": "text", "text": QUESTION}]
            talk = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": talk}) + "\n")
    return folder / "meters.jsonl"


def right(model: AutoModelForImageTextToText, processor: AutoProcessor, count: int) -> float:
    """The share of `count` unseen meters that the model reads without a fault."""
    chance, good = random.Random(1), 0
    for _ in range(count):
        text = reading(chance)
        content = [{"type": "image", "image": meter(text, chance)}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        good += answer == text
    return good / count


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("meters"))
parser.add_argument("--images", type=int, default=2000)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--tests", type=int, default=100)
options = parser.parse_args()

data = write_talks(options.out / "images", options.images, random.Random(0))
job = TrainingJob(
    data,
    str(embedded_path()),
    options.out / "adapter",
    TrainingSettings(steps=options.steps, batch=16, lr=4e-3, optimizer="muon", ema=0.99, save_every=100),
    lora=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
    parts=("vision_tower", "projector", "language_model"),
)
found = job.read()
print(f"{len(found.data)} conversations, {sum(found.data.learned)} tokens to learn")


def tell(record: dict[str, float]) -> None:
    """Say now and then how it goes."""
    if record["step"] % 50 == 0:
        print(f"step {record['step']}: loss {record['loss']:.3f}, {record['seconds']:.2f} s")


outcome = job.run(found, on_step=tell)
if outcome.reason == "asked to stop":
    raise SystemExit(f"stopped after step {outcome.step}; the same command goes on")
model = AutoModelForImageTextToText.from_pretrained(embedded_path(), dtype="float32")
processor = AutoProcessor.from_pretrained(embedded_path())
before = right(model, processor, options.tests)
model.load_adapter(options.out / "adapter")
after = right(model, processor, options.tests)
print(f"after {outcome.step} steps: {after:.0%} of {options.tests} meters right, {before:.0%} before")
