"""Call forms: every class, constructor and method the documents name, against transformers and the documents' text."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests.contract import snippets
from tests.contract.differences import DIFFERENCES

CONFIG = ("__init__", "from_pretrained", "save_pretrained", "from_dict", "to_dict", "to_json_string")
CONFIG_FILES = ("to_json_file", "from_json_file")
MODEL = (
    "__init__",
    "forward",
    "from_pretrained",
    "save_pretrained",
    "resize_token_embeddings",
    "get_input_embeddings",
    "set_input_embeddings",
    "get_output_embeddings",
    "num_parameters",
    "gradient_checkpointing_enable",
    "gradient_checkpointing_disable",
    "prune_heads",
    "tie_weights",
)
GENERATES = (*MODEL, "generate", "set_output_embeddings", "get_decoder", "set_decoder")
IMAGES = ("from_pretrained", "save_pretrained", "from_dict", "to_dict", "to_json_string", "__call__")
NAMED: dict[str, tuple[str, ...]] = {
    "PixtralVisionConfig": CONFIG + CONFIG_FILES,
    "MistralConfig": CONFIG + CONFIG_FILES,
    "LlavaConfig": CONFIG + CONFIG_FILES,
    "Mistral3Config": CONFIG + CONFIG_FILES,
    "PixtralVisionModel": MODEL,
    "MistralForCausalLM": GENERATES,
    "LlavaForConditionalGeneration": (*GENERATES, "get_image_features"),
    "Mistral3ForConditionalGeneration": (*GENERATES, "get_image_features"),
    "PixtralImageProcessor": ("__init__", "preprocess", *IMAGES),
    "PixtralImageProcessorFast": ("__init__", "preprocess"),
    "PixtralProcessor": (
        "__init__",
        "__call__",
        "apply_chat_template",
        "decode",
        "batch_decode",
        "from_pretrained",
        "save_pretrained",
    ),
    "BitsAndBytesConfig": ("__init__", "from_dict", "to_dict", "to_json_string", "to_json_file"),
    "MistralCommonTokenizer": (
        "__init__",
        "__call__",
        "encode",
        "decode",
        "batch_decode",
        "apply_chat_template",
        "convert_tokens_to_ids",
        "convert_ids_to_tokens",
        "from_pretrained",
        "save_pretrained",
    ),
    "AutoConfig": ("from_pretrained", "for_model"),
    "AutoTokenizer": ("from_pretrained",),
    "AutoImageProcessor": ("from_pretrained",),
    "AutoProcessor": ("from_pretrained",),
    "AutoModelForImageTextToText": ("from_pretrained", "from_config"),
    "AutoModelForCausalLM": ("from_pretrained", "from_config"),
    "BatchFeature": ("__init__", "to"),
    "pipeline": ("",),
}
FORMS = [(name, method) for name, methods in NAMED.items() for method in methods]
Form = dict[str, tuple[str, Any]]  # parameter → kind and default


def ours(name: str, method: str) -> Form:
    thing = getattr(vitrail, name)
    return form(getattr(thing, method) if method else thing, bool(method))


def theirs(name: str, method: str) -> Form:
    import transformers

    if name == "PixtralImageProcessorFast":  # cannot be imported without torchvision: its source is read
        return form_of_source("models/pixtral/image_processing_pixtral_fast.py", name, method)
    thing = getattr(transformers, name)
    return form(getattr(thing, method) if method else thing, bool(method))


def form(function: Callable[..., Any], is_method: bool) -> Form:
    """Parameters without the object itself; functions and enumerations as their plain value."""
    found: Form = {}
    for place, parameter in enumerate(inspect.signature(function).parameters.values()):
        if place == 0 and inspect.isfunction(function) and is_method:
            continue
        found[parameter.name] = (parameter.kind.description, plain(parameter.default))
    return found


def plain(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return "required"
    if callable(default):
        return f"<{default.__name__}>"
    return getattr(default, "value", default)


def form_of_source(path: str, class_name: str, method: str) -> Form:
    """The form of a method as its source has it, or its base's; the module is not run."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    for place, name in ((path, class_name), ("image_processing_utils_fast.py", "BaseImageProcessorFast")):
        tree = ast.parse((folder / place).read_text("utf-8"))
        (found,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
        for node in found.body:
            if isinstance(node, ast.FunctionDef) and node.name == method:
                return form_of_arguments(node.args)
    raise AssertionError(f"{class_name} has no {method}")


def form_of_arguments(args: ast.arguments) -> Form:
    kinds = inspect.Parameter
    defaults = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    found: Form = {}
    for argument, default in zip(args.args, defaults, strict=True):
        value = "required" if default is None else ast.literal_eval(default)
        found[argument.arg] = (kinds.POSITIONAL_OR_KEYWORD.description, value)
    found.pop("self", None)
    if args.vararg:
        found[args.vararg.arg] = (kinds.VAR_POSITIONAL.description, "required")
    for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        value = "required" if default is None else ast.literal_eval(default)
        found[argument.arg] = (kinds.KEYWORD_ONLY.description, value)
    if args.kwarg:
        found[args.kwarg.arg] = (kinds.VAR_KEYWORD.description, "required")
    return found


def changes(mine: Form, reference: Form) -> list[str]:
    """How `mine` differs, in the words of differences.py."""
    found = []
    for place, name in enumerate(mine):
        if name not in reference:
            later = [other for other in list(mine)[place + 1 :] if other in reference]
            by_place = mine[name][0] == inspect.Parameter.POSITIONAL_OR_KEYWORD.description
            shifts = by_place and bool(later) and mine[later[0]][0] == mine[name][0]
            found.append(f"+ {name} before {later[0]}" if shifts else f"+ {name}")
    found += [f"- {name}" for name in reference if name not in mine]
    common = [name for name in reference if name in mine]
    for name in common:
        for what, before, after in zip(("kind", "default"), reference[name], mine[name], strict=True):
            if before != after or type(before) is not type(after):
                found.append(f"{what} of {name}: {before!r} -> {after!r}")
    order = [name for name in mine if name in reference]
    if order != common:
        found.append(f"order: {', '.join(common)} -> {', '.join(order)}")
    return found


def where(name: str, method: str) -> str:
    return f"{name}.{method}" if method not in ("", "__init__") else name


def all_changes() -> set[tuple[str, str]]:
    return {
        (where(name, method), change)
        for name, method in FORMS
        for change in changes(ours(name, method), theirs(name, method))
    }


@pytest.mark.parametrize(("name", "method"), FORMS, ids=[where(*form) for form in FORMS])
def test_call_form_equals_the_references_but_for_what_is_listed(name: str, method: str) -> None:
    place = where(name, method)
    listed = [d.change for d in DIFFERENCES if d.where == place]
    assert sorted(changes(ours(name, method), theirs(name, method))) == sorted(listed)


def test_the_list_is_exact() -> None:
    """Nothing is listed that no longer differs, nothing twice, nothing without a reason."""
    listed = [(d.where, d.change) for d in DIFFERENCES]
    assert len(set(listed)) == len(listed)
    assert set(listed) == all_changes()
    assert all(len(d.reason) > 20 for d in DIFFERENCES)


def test_changes_are_seen() -> None:
    def reference(self: Any, a: int, b: int = 1, **kwargs: Any) -> None: ...

    def mine(self: Any, b: int = 2, own: int = 0, *, a: int) -> None: ...

    assert sorted(changes(form(mine, True), form(reference, True))) == [
        "+ own",
        "- kwargs",
        "default of b: 1 -> 2",
        "kind of a: 'positional or keyword' -> 'keyword-only'",
        "order: a, b -> b, a",
    ]
    assert changes(form(reference, True), form(reference, True)) == []


def test_every_class_that_the_documents_name_is_here() -> None:
    """`[[autodoc]] X`, `class transformers.X`, "[`X`]" and every imported name: exported and compared."""
    text = "\n".join(snippets.document(name) for name in snippets.DOCUMENTS)
    named = set(re.findall(r"\[\[autodoc\]\] (\w+)", text))
    named |= set(re.findall(r"class transformers\.(\w+)", text))
    named |= set(re.findall(r"\[`([A-Z]\w+)`\]", text))
    for line in re.findall(r"from transformers import (.+)", text):
        named |= {name.strip() for name in line.split(",")}
    assert named <= set(vitrail.__all__)
    assert named <= set(NAMED)
    assert len(named) == 15


def test_every_method_that_the_documents_list_is_compared() -> None:
    text = snippets.document("pixtral")
    found = re.findall(r"\[\[autodoc\]\] (\w+)\n- (\w+)", text)
    assert found
    for name, method in found:
        assert method in NAMED[name]


def documented(lines_after: str, document: str) -> Form:
    """The form that stands in a document behind a line: `< source >( a: X = None b = 1 **kwargs )`."""
    text = snippets.document(document)
    line = text[text.index(lines_after) :].split("< source >(", 1)[1].split(" )", 1)[0]
    found: Form = {}
    for name, default in re.findall(r"(\w+)(?:: [\w.]+(?:\[[^=]*?\])?)? = ('\w*'|[-\w]+)", line):
        found[name] = (inspect.Parameter.POSITIONAL_OR_KEYWORD.description, ast.literal_eval(default))
    for name in re.findall(r"\*\*(\w+)", line):
        found[name] = (inspect.Parameter.VAR_KEYWORD.description, "required")
    return found


def test_configuration_is_called_as_the_document_prints_it() -> None:
    printed = documented("class transformers.Mistral3Config", "mistral3")
    assert len(printed) == 8
    assert ours("Mistral3Config", "__init__") == printed


def test_forward_is_called_as_the_document_prints_it() -> None:
    """The document's text describes vision_feature_select_strategy, its signature forgets it."""
    printed = documented("\nforward\n", "mistral3")
    assert len(printed) == 16
    mine = ours("Mistral3ForConditionalGeneration", "forward")
    expected = {"lm_kwargs" if name == "kwargs" else name: form for name, form in mine.items()}
    expected.pop("vision_feature_select_strategy")
    assert expected == printed
    assert list(expected) == list(printed)


def test_outputs_have_the_references_fields() -> None:
    from dataclasses import fields

    from transformers.models.llava import modeling_llava
    from transformers.models.mistral3 import modeling_mistral3

    for name, module in (
        ("LlavaCausalLMOutputWithPast", modeling_llava),
        ("Mistral3CausalLMOutputWithPast", modeling_mistral3),
    ):
        here, there = fields(getattr(vitrail, name)), fields(getattr(module, name))
        assert [f.name for f in here] == [f.name for f in there]
