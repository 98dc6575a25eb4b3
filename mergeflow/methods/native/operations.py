"""What the native library makes of an operation: a step's number, its coefficients, a flag and an index.

A row here says that the library has an operation's kernel; each gives the same bytes as the torch kernel of that name
in `methods.kernels`, which is where the formulas are explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mergeflow.methods.kernels.chances import bounds, keep_probabilities
from mergeflow.methods.kernels.energies import SMALLEST_WEIGHT, energy_shares
from mergeflow.methods.kernels.norms import rescaling
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.span import SPANS, Span
from mergeflow.methods.kernels.streams import bound, stream_of
from mergeflow.methods.values import flag, number, numbers, real, text, whole

# enum operation of blocks.c
WIDEN, CAST, SUBTRACT, ADD, WEIGHTED_SUM, TRIM, CONSENSUS = range(7)
TRIM_OUTLIERS, DROP, MAGPRUNE, VARIANCE, SELECT, SCE, MAGNITUDES = range(7, 14)

# enum dtype of blocks.c
DTYPES: Mapping[str, int] = MappingProxyType({"float32": 0, "bfloat16": 1, "float16": 2})


@dataclass(frozen=True, slots=True)
class Encoded:
    """One operation for the library. `numbers` are rounded once, to float32; `integers` stand in their place."""

    operation: int
    numbers: tuple[float, ...] = ()
    flag: bool = False
    index: int = 0
    words: tuple[int, int] = (0, 0)
    integers: NDArray[np.int32] | None = None


# Of the records and parameters of a node, and the length of its tensors' rows.
Encode = Callable[[Sequence[Record], Mapping[str, object], int], Encoded]


def _subtract(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(SUBTRACT)


def _add(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(ADD)


def _cast(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(CAST)


def _scale(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(WEIGHTED_SUM, (number(parameters, "factor"),))


def _weighted_sum(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(WEIGHTED_SUM, numbers(parameters, "coefficients"))


def _spanned(coefficients: Span) -> Encode:
    """Of an operation whose result is a sum of its inputs with coefficients found from their Gram matrix."""

    def encode(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
        return Encoded(WEIGHTED_SUM, tuple(coefficients(records[0], parameters)))

    return encode


def _trim(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(TRIM, _limits(records[0]), index=whole(records[0], "cut"))


def _trim_outliers(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    outliers, kept = records
    numbers = (*_limits(kept), *_limits(outliers))
    return Encoded(TRIM_OUTLIERS, numbers, index=whole(kept, "cut"), words=(whole(outliers, "cut") % 2**64, 0))


def _select(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(SELECT, _limits(records[0]), index=whole(records[0], "cut"))


def _limits(record: Record) -> tuple[float, float]:
    """What is kept lies above the first up to the cut, and above the second after it."""
    threshold = np.float32(real(record, "threshold"))
    return float(np.nextafter(threshold, np.float32(0))), float(threshold)


def _drop(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(DROP, index=bound(number(parameters, "density")), words=_stream(parameters))


def _magprune(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    chances = keep_probabilities(columns, number(parameters, "density"), number(parameters, "epsilon"))
    return Encoded(MAGPRUNE, integers=bounds(chances), words=_stream(parameters))


def _stream(parameters: Mapping[str, object]) -> tuple[int, int]:
    stream = stream_of(whole(parameters, "seed"), text(parameters, "stream"))
    return stream.start, stream.step


def _variance(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(VARIANCE)


def _sce(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    return Encoded(SCE, (*energy_shares(records, whole(parameters, "size")), SMALLEST_WEIGHT))


def _consensus(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
    weights = numbers(parameters, "weights")
    return Encoded(CONSENSUS, (*weights, number(parameters, "lambda")), flag=flag(parameters, "normalize"))


def _rescale(records: Sequence[Record], parameters: Mapping[str, object], columns: int) -> Encoded:
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
        "trim_outliers": _trim_outliers,
        "drop": _drop,
        "magprune": _magprune,
        "variance": _variance,
        "select": _select,
        "sce": _sce,
        "rescale": _rescale,
        "consensus": _consensus,
        **{op: _spanned(coefficients) for op, coefficients in SPANS.items()},
    }
)
