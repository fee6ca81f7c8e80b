"""BatchFeature: a dict with attributes that moves, casts and converts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from vitrail import BatchFeature, InputError, UnsupportedError


def _batch() -> BatchFeature:
    return BatchFeature(
        {
            "input_ids": torch.tensor([[1, 2]]),
            "pixel_values": torch.ones(1, 3, 2, 2),
            "nested": [[torch.ones(1), torch.tensor([3])]],
            "text": ["a"],
        }
    )


def test_it_is_a_dict_with_attributes() -> None:
    batch = _batch()
    assert isinstance(batch, dict)
    assert batch.input_ids is batch["input_ids"]
    assert {**batch}.keys() == batch.keys() == batch.data.keys()
    batch["pixel_values"] = torch.zeros(1)
    assert batch.pixel_values.tolist() == [0.0]
    assert not hasattr(batch, "labels")
    with pytest.raises(AttributeError, match=r"'labels'.*input_ids"):
        _ = batch.labels


def test_it_can_be_copied_and_pickled() -> None:
    batch = BatchFeature({"a": [1]})
    assert pickle.loads(pickle.dumps(batch)) == copy.deepcopy(batch) == batch


@pytest.mark.parametrize(
    ("args", "kwargs", "dtype"),
    [
        (("cpu",), {}, torch.float32),
        ((torch.device("cpu"),), {}, torch.float32),
        ((torch.bfloat16,), {}, torch.bfloat16),
        (("cpu", torch.float16), {}, torch.float16),
        (("cpu",), {"dtype": torch.bfloat16}, torch.bfloat16),
        ((), {"device": "cpu", "dtype": torch.bfloat16}, torch.bfloat16),
        ((), {"dtype": torch.bfloat16, "non_blocking": True}, torch.bfloat16),
        ((None,), {}, torch.float32),
    ],
)
def test_to_casts_floats_only(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    batch = _batch()
    assert batch.to(*args, **kwargs) is batch
    assert batch.pixel_values.dtype == dtype
    assert batch.input_ids.dtype == torch.int64
    assert [value.dtype for value in batch.nested[0]] == [dtype, torch.int64]
    assert batch.text == ["a"]


def test_to_moves_to_a_device() -> None:
    batch = _batch().to("meta")
    assert {batch.input_ids.device.type, batch.nested[0][1].device.type} == {"meta"}


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((3.5,), {}),
        (("no such device",), {}),
        (("cpu", "cpu"), {}),
        ((), {"copy": True}),
        (("cpu",), {"device": "cpu"}),
    ],
)
def test_to_refuses_what_it_does_not_know(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        _batch().to(*args, **kwargs)


def test_conversion() -> None:
    data = {"ids": [[1, 2], [3, 4]], "arrays": [np.ones(2, np.float32)] * 2, "floats": [0.5]}
    tensors = BatchFeature(data, tensor_type="pt")
    assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
        "ids": ((2, 2), torch.int64),
        "arrays": ((2, 2), torch.float32),
        "floats": ((1,), torch.float32),
    }
    stacked = BatchFeature({"rows": [torch.ones(2), torch.zeros(2)]}, tensor_type="pt")
    assert stacked.rows.tolist() == [[1, 1], [0, 0]]
    arrays = BatchFeature({**data, "tensor": torch.ones(2)}, tensor_type="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert BatchFeature(data).convert_to_tensors(None).ids == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_ragged_rows_are_named(kind: str) -> None:
    with pytest.raises(InputError, match=r"'ids'.*padding=True"):
        BatchFeature({"ids": [[1, 2], [3]]}, tensor_type=kind)


def test_frameworks() -> None:
    with pytest.raises(UnsupportedError, match="tf"):
        BatchFeature({"ids": [1]}, tensor_type="tf")
    with pytest.raises(InputError, match="torch"):
        BatchFeature({"ids": [1]}, tensor_type="torch")
