"""What is changed in the documents' code blocks before they run, besides the import line, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["mistake", "surroundings", "dtype"]


@dataclass(frozen=True)
class Erratum:
    """In the blocks `where`, every `old` becomes `new`; {place} in it is filled with a string literal.

    Kinds: a mistake of the document; surroundings (network, accelerator, size) that tests do not have; a dtype
    in which correct results differ by rounding, so that equal ids would be luck.
    """

    where: tuple[str, ...]
    old: str
    new: str
    reason: str
    kind: Kind = "surroundings"


PIXTRAL = "mistral-community/pixtral-12b"
SMALL = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
ROUNDING = (
    "in 16 bits two correct orders of summation give different ids; a test of its own runs the block without this "
    "patch and bounds the distance from float32"
)
_SINGLE, _TEXT, _BATCH, _FOUR_BITS, _FORWARD = (f"mistral3-{i}" for i in (2, 3, 4, 5, 7))


def _image(where: tuple[str, ...], url: str, place: str) -> Erratum:
    return Erratum(where, f'"{url}"', place, "tests have no network: the image is a local file")


ERRATA: tuple[Erratum, ...] = (
    # --- mistakes of the documents ---
    Erratum(
        ("pixtral-1",),
        'return_tensors"pt"',
        'return_tensors="pt"',
        "the equals sign is missing",
        "mistake",
    ),
    Erratum(
        ("mistral3-1",),
        "from transformers import pipeline",
        "from transformers import pipeline\nimport torch",
        "the block uses torch without importing it",
        "mistake",
    ),
    Erratum(
        (_TEXT,),
        f'".{SMALL}"',
        f'"{SMALL}"',
        "a dot stands before the model's name",
        "mistake",
    ),
    Erratum(
        (_FOUR_BITS,),
        ".to(model.device, dtype=torch.bfloat16)",
        ".to(model.device, dtype=model.dtype)",
        "without a dtype a 4-bit model is loaded in float16, and transformers cannot read bfloat16 images with it; "
        "Vitrail can, and a test of its own runs the block as it stands",
        "mistake",
    ),
    # `>>> ]` needs no patch: both kinds of prompt are four characters, and the bracket is still open there.
    # --- the checkpoint ---
    Erratum(
        ("pixtral-1", "pixtral-2"),
        f'"{PIXTRAL}"',
        "{model}",
        "tests have no network: the model is a tiny checkpoint in a folder",
    ),
    Erratum(
        ("mistral3-1", _SINGLE, _TEXT, _BATCH, _FOUR_BITS, _FORWARD),
        f'"{SMALL}"',
        "{model}",
        "tests have no network: the model is a tiny checkpoint in a folder",
    ),
    # --- images ---
    _image(("pixtral-1", "pixtral-2"), "https://picsum.photos/id/237/200/300", "{first}"),
    _image(("pixtral-1", "pixtral-2"), "https://picsum.photos/seed/picsum/200/300", "{second}"),
    _image(
        ("mistral3-1",),
        "https://hugging-face.cn/datasets/huggingface/documentation-images/resolve/main/bee.jpg",
        "{first}",
    ),
    _image((_SINGLE, _FORWARD), "http://images.cocodataset.org/val2017/000000039769.jpg", "{second}"),
    _image((_BATCH, _FOUR_BITS), "https://llava-vl.github.io/static/images/view.jpg", "{first}"),
    _image((_BATCH,), "https://www.ilankelman.org/stopsigns/australia.jpg", "{second}"),
    _image(
        (_FOUR_BITS,),
        "https://cdn.britannica.com/61/93061-050-99147DCE/Statue-of-Liberty-Island-New-York-Bay.jpg",
        "{second}",
    ),
    _image(
        (_FOUR_BITS,),
        "https://thumbs.dreamstime.com/b/golden-gate-bridge-san-francisco-purple-flowers-california-"
        "echium-candicans-36805947.jpg",
        "{third}",
    ),
    Erratum(
        ("pixtral-2",),
        "requests.get(dog_url, stream=True).raw",
        "dog_url",
        "tests have no network: the image is a local file",
    ),
    Erratum(
        ("pixtral-2",),
        "requests.get(mountain_url, stream=True).raw",
        "mountain_url",
        "tests have no network: the image is a local file",
    ),
    Erratum(
        (_FORWARD,),
        "requests.get(url, stream=True).raw",
        "url",
        "tests have no network: the image is a local file",
    ),
    # --- the machine ---
    Erratum(
        (_SINGLE, _TEXT, _BATCH, _FOUR_BITS),
        'torch_device = "cuda"',
        'torch_device = "cpu"',
        "tests have no accelerator",
    ),
    Erratum(
        (_TEXT,),
        ".to(0, dtype=torch.float16)",
        '.to("cpu", dtype=torch.float16)',
        "device 0 is an accelerator, tests have none",
    ),
    Erratum(
        ("mistral3-6",),
        "model = Mistral3ForConditionalGeneration(configuration)",
        'with __import__("torch").device("meta"):\n    model = Mistral3ForConditionalGeneration(configuration)',
        "the defaults make a model of billions of weights; it is built without their memory",
    ),
    # --- rounding ---
    Erratum(
        ("mistral3-1", _SINGLE, _TEXT, _BATCH),
        "torch.bfloat16",
        "torch.float32",
        ROUNDING,
        "dtype",
    ),
    Erratum(
        ("pixtral-2",),
        "bnb_4bit_compute_dtype=torch.bfloat16",
        "bnb_4bit_compute_dtype=torch.float32",
        ROUNDING,
        "dtype",
    ),
    Erratum(
        ("pixtral-2", _FOUR_BITS),
        "quantization_config=quantization_config",
        "quantization_config=quantization_config, torch_dtype=torch.float32",
        ROUNDING,
        "dtype",
    ),
)
