"""What the native library makes of an operation: a step's number, its coefficients, a flag and an index.

A row here says that the library has an operation's kernel; each gives the same bytes as the torch kernel of that name
in `methods.kernels`, which is where the formulas are explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mergeflow.methods.kernels.norms import rescaling
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.span import SPANS, Span
from mergeflow.methods.values import flag, number, numbers, real, whole

# enum operation of blocks.c
WIDEN, CAST, SUBTRACT, ADD, WEIGHTED_SUM, TRIM, CONSENSUS = range(7)

# enum dtype of blocks.c
DTYPES: Mapping[str, int] = MappingProxyType({"float32": 0, "bfloat16": 1, "float16": 2})


@dataclass(frozen=True, slots=True)
class Encoded:
    """One operation for the library. `numbers` are rounded once, to float32."""

    operation: int
    numbers: tuple[float, ...] = ()
    flag: bool = False
    index: int = 0


Encode = Callable[[Sequence[Record], Mapping[str, object]], Encoded]


def _subtract(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    return Encoded(SUBTRACT)


def _add(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    return Encoded(ADD)


def _cast(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    return Encoded(CAST)


def _scale(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    return Encoded(WEIGHTED_SUM, (number(parameters, "factor"),))


def _weighted_sum(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    return Encoded(WEIGHTED_SUM, numbers(parameters, "coefficients"))


def _spanned(coefficients: Span) -> Encode:
    """Of an operation whose result is a sum of its inputs with coefficients found from their Gram matrix."""

    def encode(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
        return Encoded(WEIGHTED_SUM, tuple(coefficients(records[0], parameters)))

    return encode


def _trim(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    threshold = np.float32(real(records[0], "threshold"))
    below = np.nextafter(threshold, np.float32(0))
    return Encoded(TRIM, (float(below), float(threshold)), index=whole(records[0], "cut"))


def _consensus(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    weights = numbers(parameters, "weights")
    return Encoded(CONSENSUS, (*weights, number(parameters, "lambda")), flag=flag(parameters, "normalize"))


def _rescale(records: Sequence[Record], parameters: Mapping[str, object]) -> Encoded:
    before, after = (real(record, "sum") for record in records)
    return Encoded(WEIGHTED_SUM, (rescaling(before, after),))


NATIVE: Mapping[str, Encode] = MappingProxyType(
    {
        "task_vector": _subtract,
        "add": _add,
        "cast": _cast,
        "scale": _scale,
        "weighted_sum": _weighted_sum,
        "trim": _trim,
        "rescale": _rescale,
        "consensus": _consensus,
        **{op: _spanned(coefficients) for op, coefficients in SPANS.items()},
    }
)
