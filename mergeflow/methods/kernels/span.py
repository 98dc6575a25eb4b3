"""Operations whose result lies in the span of its inputs: what each makes of their Gram matrix.

    gram of X_1 ... X_k ── coefficients c (k numbers, float64) ── R = sum(c_i X_i)

A coefficient is found without looking at a tensor again, by the module of its operation's name; here it is found from
what a node has, its record and its parameters. Whoever applies them needs nothing else of an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from mergeflow.methods.kernels import arc
from mergeflow.methods.kernels.geometric_median import coefficients as geometric_median_coefficients
from mergeflow.methods.kernels.gram_matrix import entries
from mergeflow.methods.kernels.karcher import coefficients as karcher_coefficients
from mergeflow.methods.kernels.model_stock import coefficients as model_stock_coefficients
from mergeflow.methods.kernels.multislerp import coefficients as multislerp_coefficients
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.values import number, numbers, whole

Span = Callable[[Record, Mapping[str, object]], Sequence[float]]


def slerp(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """Parameter: t."""
    return arc.coefficients(entries(record), number(parameters, "t"))


def nuslerp(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """Parameter: t."""
    return arc.nuslerp_coefficients(entries(record), number(parameters, "t"))


def multislerp(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """Parameters: weights, one for each input; eps."""
    return multislerp_coefficients(entries(record), numbers(parameters, "weights"), number(parameters, "eps"))


def karcher(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """Parameters: max_iter, tol."""
    return karcher_coefficients(entries(record), whole(parameters, "max_iter"), number(parameters, "tol"))


def model_stock(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """No parameters."""
    return model_stock_coefficients(entries(record))


def geometric_median(record: Record, parameters: Mapping[str, object]) -> Sequence[float]:
    """Parameters: weights, of the origin first and then of each input; max_iter, tol."""
    weights, max_iter = numbers(parameters, "weights"), whole(parameters, "max_iter")
    _, *others = geometric_median_coefficients(entries(record), weights, max_iter, number(parameters, "tol"))
    return others


SPANS: Mapping[str, Span] = MappingProxyType(
    {
        "slerp": slerp,
        "nuslerp": nuslerp,
        "multislerp": multislerp,
        "karcher": karcher,
        "model_stock": model_stock,
        "geometric_median": geometric_median,
    }
)
