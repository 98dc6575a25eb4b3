"""Calling a user's method: on whole tensors, or on blocks of them. What it gives is checked; it never sees our buffers
change under it, and if it changes them, the run ends.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, cast

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.own import Declaration, OwnMethodError
from mergeflow.methods.registry import declaration_of

# A result that changes by more than this share of its largest element when the block is cut is not pointwise. (Less may
# be a library's: its vector code and its code for the last few elements may round a sine differently.)
SAME = 1e-5


def whole(tensors: Sequence[Tensor], records: Sequence[Record], parameters: Mapping[str, object]) -> Tensor:
    """R = the function of the whole tensors."""
    declaration, arguments = _method(parameters)
    return _call(declaration, tensors, arguments, has_base=parameters["has_base"] is True)


def pointwise(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = the function of each block (n,). The first block is computed in two ways, to see that it is pointwise."""
    declaration, arguments = _method(parameters)
    has_base = parameters["has_base"] is True
    out.copy_(_call(declaration, blocks, arguments, has_base=has_base))
    half = out.numel() // 2
    if start == 0 and half:
        first = _call(declaration, [block[:half] for block in blocks], arguments, has_base=has_base)
        if not _nearly_equal(first, out[:half]):
            raise OwnMethodError(
                f"{_named(declaration)} is declared pointwise, but an element of its result depends on other elements: "
                "declare it without pointwise=True"
            )


def _method(parameters: Mapping[str, object]) -> tuple[Declaration, Mapping[str, Any]]:
    known = cast(Mapping[str, object], parameters["method"])
    return declaration_of(known), cast(Mapping[str, Any], parameters["arguments"])


def _call(
    declaration: Declaration, inputs: Sequence[Tensor], arguments: Mapping[str, Any], *, has_base: bool
) -> Tensor:
    """The function's result, checked; OwnMethodError when it fails, gives no such tensor, or writes to its inputs."""
    tensors = list(inputs)
    given = {name: list(value) if isinstance(value, list | tuple) else value for name, value in arguments.items()}
    if declaration.signature.base != "ignored":
        given["base"] = tensors.pop() if has_base else None
    before = [_writes(tensor) for tensor in inputs]
    try:
        result = declaration.function(tensors, **given)
    except Exception as error:
        raise OwnMethodError(
            f"{_named(declaration)} failed with {type(error).__name__}: {error} ({_place(error)})"
        ) from error
    if [_writes(tensor) for tensor in inputs] != before:
        raise OwnMethodError(f"{_named(declaration)} changes its inputs; it must make new tensors (x * 2, not x *= 2)")
    _check(declaration, result, inputs[0])
    return cast(Tensor, result)


def _check(declaration: Declaration, result: object, like: Tensor) -> None:
    if not isinstance(result, Tensor):
        raise OwnMethodError(f"{_named(declaration)} gave {type(result).__name__}, not a tensor")
    if (result.shape, result.dtype, result.device) != (like.shape, like.dtype, like.device):
        raise OwnMethodError(
            f"{_named(declaration)} gave {_form(result)}; from tensors of {_form(like)} it must give the same"
        )


def _form(tensor: Tensor) -> str:
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}{place}"


def _writes(tensor: Tensor) -> int:
    """How often the tensor's memory was written to through torch."""
    return 0 if tensor.is_inference() else tensor._version


def _nearly_equal(left: Tensor, right: Tensor) -> bool:
    largest = torch.nan_to_num(right, nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()
    return torch.allclose(left, right, rtol=0.0, atol=SAME * largest, equal_nan=True)


def _named(declaration: Declaration) -> str:
    return f"the method {declaration.name!r}"


def _place(error: Exception) -> str:
    """The file and line in which an error was raised: of the innermost frame that is not torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "torch" not in PurePath(frame.filename).parts] or frames
    return f"{own[-1].filename}:{own[-1].lineno}"
