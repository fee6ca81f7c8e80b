"""The table of rotations: the values that computing them anew gives, whatever was asked before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests import tiny
from vitrail.model import rotation
from vitrail.model.rotation import Rotation, Rotations, rotation_of


def assert_same(found: Rotation, expected: Rotation) -> None:
    assert torch.equal(found.cos, expected.cos)
    assert torch.equal(found.sin, expected.sin)
    assert (found.temperature is None) == (expected.temperature is None)
    if expected.temperature is not None:
        assert torch.equal(found.temperature, expected.temperature)


@pytest.fixture(params=["llava", "ministral3"])
def config(request: pytest.FixtureRequest) -> Any:
    return tiny.config(request.param).get_text_config()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_those_that_are_computed(config: Any, dtype: torch.dtype) -> None:
    table = Rotations()
    for asked in ([0], [5, 3, 3], [1023, 1024], [70_001], list(range(40)), []):
        positions = torch.tensor(asked, dtype=torch.int64)
        found = table.at(config, positions, dtype)
        assert found.cos.shape == (len(asked), config.head_dim)
        assert found.cos.dtype == dtype
        assert_same(found, rotation_of(config, positions, dtype))


def test_positions_beyond_the_table_are_computed(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_MOST", 2048)
    table = Rotations()
    for asked in ([2047], [2048], [10**9], [-1, 4]):
        assert_same(
            table.at(config, torch.tensor(asked), torch.float32),
            rotation_of(config, torch.tensor(asked), torch.float32),
        )
    assert table._held is not None
    assert len(table._held[1].cos) == 2048


def test_a_changed_configuration_is_seen(config: Any) -> None:
    table, positions = Rotations(), torch.tensor([3, 900])
    before = table.at(config, positions, torch.float32)
    if config.rope_scaling is None:
        config.rope_theta = config.rope_theta * 2
    else:
        config.rope_scaling["factor"] = config.rope_scaling["factor"] * 2
    after = table.at(config, positions, torch.float32)
    assert not torch.equal(before.cos, after.cos)
    assert_same(after, rotation_of(config, positions, torch.float32))


def test_a_table_made_without_gradients_serves_steps_with_them(config: Any) -> None:
    table, positions = Rotations(), torch.tensor([3, 900])
    with torch.inference_mode():
        table.at(config, positions, torch.float32)
    x = torch.ones(2, config.head_dim, requires_grad=True)
    (x * table.at(config, positions, torch.float32).cos).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, rotation_of(config, positions, torch.float32).cos)


def test_copies_begin_without_a_table(config: Any) -> None:
    table = Rotations()
    table.at(config, torch.tensor([1]), torch.float32)
    assert copy.deepcopy(table)._held is None
