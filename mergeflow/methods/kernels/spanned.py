"""The kernels of the operations of `span`: coefficients from a record, one weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mergeflow.methods.kernels.elementwise import add_weighed
from mergeflow.methods.kernels.protocols import PointwiseKernel, Record, Scratch
from mergeflow.methods.kernels.span import SPANS, Span


def spanned(span: Span) -> PointwiseKernel:
    """The kernel of one of them: R = sum(c_i X_i), added from first to last, each c_i rounded once."""

    def kernel(
        blocks: Sequence[Tensor],
        records: Sequence[Record],
        parameters: Mapping[str, object],
        out: Tensor,
        scratch: Scratch,
        start: int,
    ) -> None:
        (record,) = records
        add_weighed(blocks, span(record, parameters), out, scratch)

    return kernel


slerp = spanned(SPANS["slerp"])
nuslerp = spanned(SPANS["nuslerp"])
multislerp = spanned(SPANS["multislerp"])
karcher = spanned(SPANS["karcher"])
model_stock = spanned(SPANS["model_stock"])
geometric_median = spanned(SPANS["geometric_median"])
