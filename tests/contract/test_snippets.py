"""Every code block of the documents, run with vitrail and with transformers on the same tiny checkpoint."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny
from tests.contract import snippets
from tests.contract.errata import ERRATA
from tests.contract.snippets import Run, Snippet

LIBRARIES = ("vitrail", "transformers")
ALL = {snippet.name: snippet for name in snippets.DOCUMENTS for snippet in snippets.extract(name)}
FOUR_BITS = ("pixtral-2", "mistral3-5")
CONFIGURATION, PROMPT = "mistral3-6", "pixtral-3"
LONGEST = "pixtral-1"  # both libraries generate 500 ids
ANSWERING = tuple(name for name in ALL if name not in (CONFIGURATION, PROMPT))
IN_16_BITS = tuple(n for n in ANSWERING if any(e.kind == "dtype" for e in snippets.errata_of(ALL[n])))
# bitsandbytes' CPU kernels are right for whole blocks of 64 only, so these widths are multiples of 64.
WHOLE_BLOCKS: dict[str, Any] = {
    "text_config": {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32},
    "vision_config": {"hidden_size": 64, "intermediate_size": 128},
}
Values = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def values(
    tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path, tiny_mistral3: Path
) -> Callable[[str], dict[str, Any]]:
    """values(block's name) → what the places in its errata stand for: checkpoint and images."""
    folder = tmp_path_factory.mktemp("snippets")
    images = {}
    for seed, (place, size) in enumerate(
        {"first": (300, 200), "second": (310, 190), "third": (64, 150)}.items()
    ):
        images[place] = folder / f"{place}.png"
        tiny.image(*size, seed=seed).save(images[place])
    plain = {"pixtral": tiny_llava, "mistral3": tiny_mistral3}
    wide = {
        "pixtral": tiny.write_checkpoint(folder / "llava", "llava", **WHOLE_BLOCKS),
        "mistral3": tiny.write_checkpoint(folder / "mistral3", "mistral3", **WHOLE_BLOCKS),
    }

    def of(name: str) -> dict[str, Any]:
        models = wide if name in FOUR_BITS else plain
        return {"model": models[name.partition("-")[0]], **images}

    return of


@pytest.fixture(autouse=True)
def _same_products(request: pytest.FixtureRequest) -> None:
    """What bitsandbytes multiplies does not depend on the processor; imported where a block in 4 bits is run."""
    callspec = getattr(request.node, "callspec", None)
    if "values" in request.fixturenames and callspec and callspec.params.get("name") in FOUR_BITS:
        request.getfixturevalue("decoding_linear4bit")


def both(name: str, values: Values, skip: tuple[str, ...] = ()) -> tuple[Run, Run]:
    """The block's runs with vitrail and with transformers."""
    ours, theirs = (
        snippets.run(snippets.patched(ALL[name], library, values(name), skip)) for library in LIBRARIES
    )
    return ours, theirs


def assert_same(ours: Any, theirs: Any, what: str) -> None:
    """Texts and whole numbers identical, images within 1e-6; other objects are not compared."""
    if isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor) and ours.shape == theirs.shape, what
        assert ours.dtype == theirs.dtype, what
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6, msg=lambda text: f"{what}: {text}")
        else:
            assert torch.equal(ours, theirs), what
    elif isinstance(ours, Mapping) and hasattr(theirs, "items"):
        assert list(ours) == list(theirs), what
        for key in ours:
            assert_same(ours[key], theirs[key], f"{what}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), what
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{what}[{place}]")
    elif isinstance(ours, (str, int, float, bool)):
        assert ours == theirs, what


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5) -> None:
    """Within `bound` of the largest value."""
    assert ours.shape == theirs.shape
    distance = (ours - theirs).abs().max() / theirs.abs().max()
    assert distance <= bound, f"{float(distance):.2e} of the largest value"


def answers(run: Run) -> list[str]:
    """The texts that the block decoded."""
    decoded = [
        v for k, v in run.names.items() if k.startswith(("output", "decoded")) and isinstance(v, (str, list))
    ]
    decoded.append(run.shown)
    flat = [text for value in decoded for text in (value if isinstance(value, list) else [value])]
    return [text for text in flat if isinstance(text, str)]


def forward(run: Run) -> torch.Tensor:
    """Logits (rows, V) of the run's own model over its own inputs, without padding, in float32."""
    inputs = run.names["inputs"]
    with torch.no_grad():
        logits = run.names["model"](**inputs).logits
    return logits[inputs["attention_mask"].bool()].float()


def test_every_block_of_the_documents_is_found() -> None:
    assert [len(snippets.extract(name)) for name in snippets.DOCUMENTS] == [3, 7, 0]
    imports = [line for s in ALL.values() for line in s.source.splitlines() if "import" in line]
    said = [line for name in snippets.DOCUMENTS for line in snippets.document(name).splitlines()]
    # Every line of the documents that imports from the library is part of a block.
    assert sum("from transformers import" in line for line in imports) == 9
    assert sum("from transformers import" in line for line in said) == 9


@pytest.mark.parametrize("name", ALL)
def test_errata_are_exact(name: str) -> None:
    """Each patch has something to replace; patched blocks parse, and import from nothing but the library."""
    source = snippets.patched(ALL[name], "vitrail", {"model": "m", "first": "1", "second": "2", "third": "3"})
    tree = ast.parse(source)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {"vitrail", "PIL"}
    assert "transformers" not in source and "http" not in source and "cuda" not in source


def test_errata_name_blocks_that_exist_and_give_reasons() -> None:
    for erratum in ERRATA:
        assert set(erratum.where) <= set(ALL)
        assert len(erratum.reason) > 10
    unpatched = [name for name in ALL if not snippets.errata_of(ALL[name])]
    assert unpatched == [PROMPT]


def test_mistakes_are_mistakes() -> None:
    """Blocks that the list calls wrong fail to parse or name something that is not there."""
    with pytest.raises(SyntaxError):
        ast.parse(ALL["pixtral-1"].source)
    assert "import torch" not in ALL["mistral3-1"].source
    wrong = [e for e in ERRATA if e.kind == "mistake"]
    assert len(wrong) == 4


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == LONGEST else ()) for n in ANSWERING]
)
def test_block_gives_the_same_answer(name: str, values: Values) -> None:
    ours, theirs = both(name, values)
    assert set(ours.names) == set(theirs.names)
    for key in ours.names:
        assert_same(ours.names[key], theirs.names[key], key)
    assert_same(ours.shown, theirs.shown, "the last line")
    assert ours.printed == theirs.printed
    assert answers(ours) and all(answers(ours)), "nothing was generated"
    if "inputs" in ours.names:
        assert_close(forward(ours), forward(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in IN_16_BITS if n != "mistral3-1"])
def test_block_in_16_bits_is_as_near_to_float32_as_the_reference(name: str, values: Values) -> None:
    """The block as the document has it: twice the reference's own distance from its float32 result at most."""
    ours, theirs = both(name, values, skip=("dtype",))
    for key in ("input_ids", "attention_mask"):
        assert_same(ours.names["inputs"][key], theirs.names["inputs"][key], key)
    assert ours.names["model"].dtype == theirs.names["model"].dtype
    assert ours.names["model"].dtype in (torch.bfloat16, torch.float16)
    exact = forward(snippets.run(snippets.patched(ALL[name], "transformers", values(name))))
    allowed = 2 * (forward(theirs) - exact).abs().max()
    assert allowed > 0
    assert (forward(ours) - exact).abs().max() <= allowed


def test_pipeline_block_runs_in_bfloat16(values: Values) -> None:
    run = snippets.run(snippets.patched(ALL["mistral3-1"], "vitrail", values("mistral3-1"), skip=("dtype",)))
    assert run.names["pipe"].model.dtype == torch.bfloat16
    assert run.shown and isinstance(run.shown, str)


def test_batch_block_in_4_bits_runs_as_it_stands(values: Values) -> None:
    """bfloat16 images for a model in float16: what the document writes, and transformers refuses."""
    source = snippets.patched(ALL["mistral3-5"], "vitrail", values("mistral3-5"), skip=("dtype", "mistake"))
    run = snippets.run(source)
    assert run.names["inputs"]["pixel_values"].dtype == torch.bfloat16
    assert run.names["model"].dtype == torch.float16
    assert len(run.names["decoded_outputs"]) == 2


def test_configuration_block(values: Values) -> None:
    ours, theirs = both(CONFIGURATION, values)
    model, reference = ours.names["model"], theirs.names["model"]
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    assert model.num_parameters() == reference.num_parameters()
    assert ours.names["configuration"] is model.config
    assert model.config.vision_config.to_dict() == ours.names["vision_config"].to_dict()


def test_prompt_block(values: Values, tiny_llava: Path) -> None:
    """The prompt of the document, with its image: the same ids from both processors."""
    import transformers

    import vitrail

    prompt = snippets.run(ALL[PROMPT].source).shown
    image = Image.open(values(PROMPT)["first"])
    ours, theirs = (
        library.AutoProcessor.from_pretrained(tiny_llava)(text=prompt, images=image, return_tensors="pt")
        for library in (vitrail, transformers)
    )
    assert_same(ours, theirs, "inputs")
    assert int((ours["input_ids"] == 10).sum()) == 12 * 8


def test_a_snippet_is_what_the_document_says() -> None:
    """The extraction loses nothing but prompts: its lines, in order, are lines of the document."""
    for name in snippets.DOCUMENTS:
        text = snippets.document(name)
        for snippet in snippets.extract(name):
            place = 0
            for line in snippet.source.splitlines():
                place = text.index(line, place)


def test_unfitting_errata_are_refused() -> None:
    wrong = Snippet("pixtral-1", "import torch\n")
    with pytest.raises(ValueError, match="correct the list"):
        snippets.patched(wrong, "vitrail", {})
