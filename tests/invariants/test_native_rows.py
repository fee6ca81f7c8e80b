"""The kernels on single rows equal their PyTorch definitions, on every instruction set and number of threads."""

import pytest
import torch

from vitrail.ops import native, native_rows


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm(isa: str, dtype: torch.dtype) -> None:
    with native.using(isa):
        x = torch.randn(5, 100, dtype=dtype)
        w = torch.randn(100, dtype=dtype)
        torch.testing.assert_close(
            torch.ops.vitrail.rms_norm(x, w, 1e-5), native_rows.rms_norm_oracle(x, w, 1e-5)
        )
