"""The number formats a checkpoint can hold: one table, so that names are spelled in one place.

A dtype is known by its own name (``bfloat16``: torch's, ml_dtypes' and zarr's word for it) and by its code in
safetensors headers (``BF16``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "integer", "boolean"]


@dataclass(frozen=True, slots=True)
class DType:
    """One number format. `itemsize` is in bytes; `code` is its name in a safetensors header."""

    name: str
    code: str
    itemsize: int
    kind: Kind

    def __str__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "float"


FLOAT64 = DType("float64", "F64", 8, "float")
FLOAT32 = DType("float32", "F32", 4, "float")
FLOAT16 = DType("float16", "F16", 2, "float")
BFLOAT16 = DType("bfloat16", "BF16", 2, "float")
FLOAT8_E4M3 = DType("float8_e4m3fn", "F8_E4M3", 1, "float")
FLOAT8_E5M2 = DType("float8_e5m2", "F8_E5M2", 1, "float")

DTYPES: tuple[DType, ...] = (
    FLOAT64,
    FLOAT32,
    FLOAT16,
    BFLOAT16,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    DType("int64", "I64", 8, "integer"),
    DType("int32", "I32", 4, "integer"),
    DType("int16", "I16", 2, "integer"),
    DType("int8", "I8", 1, "integer"),
    DType("uint64", "U64", 8, "integer"),
    DType("uint32", "U32", 4, "integer"),
    DType("uint16", "U16", 2, "integer"),
    DType("uint8", "U8", 1, "integer"),
    DType("bool", "BOOL", 1, "boolean"),
)

_BY_NAME = {dtype.name: dtype for dtype in DTYPES}

# What a recipe may ask for with `dtype:`. Integers are left out: truncating weights is never meant.
FLOAT_NAMES = tuple(dtype.name for dtype in DTYPES if dtype.is_float)


def by_name(name: str) -> DType:
    """The dtype called `name`, with or without the prefix ``torch.``; KeyError when there is none."""
    return _BY_NAME[name.removeprefix("torch.")]


def promote(left: DType, right: DType) -> DType:
    """The smallest float format that holds every value of both (bfloat16 with float16 is float32)."""
    if left == right:
        return left
    narrower, wider = sorted((left, right), key=lambda dtype: dtype.itemsize)
    if narrower.itemsize == wider.itemsize:
        return FLOAT32 if wider.itemsize == 2 else BFLOAT16 if wider.itemsize == 1 else wider
    return wider


def compute_dtype(dtype: DType) -> DType:
    """The format in which values stored as `dtype` are computed: float64 for float64, else float32."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32
