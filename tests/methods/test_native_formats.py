"""The native library reads and writes number formats as torch does."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mergeflow.methods.native import library as native
from mergeflow.methods.native.operations import CAST, DTYPES

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native library could not be built here")

NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cast(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint16]:
    """float32 (n,) rounded by the library, as bits."""
    library = native.library()
    assert library is not None
    out = np.zeros(len(values), np.uint16)
    inputs = (native.Operand * 1)(native.Operand(values.ctypes.data, 4, 4))
    target = native.Operand(out.ctypes.data, 2, 2)
    step = native.Step(CAST, DTYPES[dtype], 1, 0, 0, (ctypes.c_uint64 * 2)(), target, inputs, None)
    steps, error, size = (native.Step * 1)(step), ctypes.c_int32(), len(values)
    assert library.mergeflow_run(None, 0, steps, 1, None, 0, 1, size, 0, size, native.TILE, ctypes.byref(error)) == 0
    return out


@pytest.mark.parametrize("dtype", NARROW)
def test_every_narrow_number_is_widened_as_torch_widens_it(dtype: str) -> None:
    """All 65536 patterns of bfloat16 and float16, NaN included."""
    library = native.library()
    assert library is not None
    patterns = np.arange(65536, dtype=np.uint16)
    out = np.zeros(65536, np.float32)
    library.mergeflow_widen(patterns.ctypes.data, DTYPES[dtype], out.ctypes.data, 65536)
    expected = torch.from_numpy(patterns.view(np.int16)).view(NARROW[dtype]).float().numpy()
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", NARROW)
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    """A million patterns of float32, all narrow numbers, and what lies half way between two of them."""
    patterns = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    halves = np.arange(2**18, dtype=np.uint32) << 14
    fine = (np.arange(2**17, dtype=np.uint32) << 12) + 0x38000000
    values = np.concatenate([patterns, halves, fine]).view(np.float32)
    expected = torch.from_numpy(values).to(NARROW[dtype]).view(torch.int16).numpy().view(np.uint16)
    made = cast(values, dtype)
    finite = ~np.isnan(values)
    assert made[finite].tobytes() == expected[finite].tobytes()
    # Which bits stand for a NaN is each processor's own affair.
    assert np.isnan(torch.from_numpy(made[~finite].view(np.int16)).view(NARROW[dtype]).float().numpy()).all()
