"""What a function's annotations say of it as a method, and everything that is wrong with them at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from torch import Tensor

from mergeflow.methods.schema import REQUIRED, Parameter
from mergeflow.methods.signature import Bounds, PerModel, read_signature


def test_annotations_are_the_schema() -> None:
    """Kind, scope, default, bounds, choices and meaning of each parameter stand in the signature."""

    def method(
        tensors: list[Tensor],
        base: Tensor,
        weight: PerModel[float],
        density: PerModel[Annotated[float, Bounds(0, 1), "share that is kept"]] = 1,
        rank: int | None = None,
        limit: PerModel[int | None] = None,
        exact: Annotated[bool, "to the last bit"] = True,
        sign: Literal["sum", "count"] = "sum",
        note: str = "",
        *,
        scale: float,
    ) -> Tensor: ...

    signature = read_signature(method)
    assert signature.base == "required"
    assert signature.parameters == (
        Parameter("weight", "float", "non_base"),
        Parameter("density", "float", "non_base", 1.0, 0, 1, "share that is kept"),
        Parameter("rank", "int", "shared", None),
        Parameter("limit", "int", "non_base", None),
        Parameter("exact", "bool", "shared", True, meaning="to the last bit"),
        Parameter("sign", "string", "shared", "sum", choices=("sum", "count")),
        Parameter("note", "string", "shared", ""),
        Parameter("scale", "float", "shared", REQUIRED),
    )


def test_a_base_is_required_optional_or_none() -> None:
    """Whether a method has a base is whether its function takes one."""

    def with_base(tensors: list[Tensor], base: Tensor) -> Tensor: ...
    def perhaps(tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor: ...
    def without(tensors: list[Tensor], weight: PerModel[float] = 1.0) -> Tensor: ...

    assert [read_signature(f).base for f in (with_base, perhaps, without)] == ["required", "optional", "ignored"]
    assert read_signature(without).parameters[0].scope == "input"


def no_tensors() -> Tensor: ...
def single(tensor: Tensor) -> Tensor: ...
def no_result(tensors: list[Tensor]): ...  # type: ignore[no-untyped-def]
def other_base(tensors: list[Tensor], base: float) -> Tensor: ...
def untyped(tensors: list[Tensor], t=1.0) -> Tensor: ...  # type: ignore[no-untyped-def]
def odd_type(tensors: list[Tensor], t: dict[str, float]) -> Tensor: ...
def wrong_default(tensors: list[Tensor], t: float = "half") -> Tensor: ...  # type: ignore[assignment]
def endless(tensors: list[Tensor], t: float = float("inf")) -> Tensor: ...
def hidden_none(tensors: list[Tensor], t: float = None) -> Tensor: ...  # type: ignore[assignment]  # noqa: RUF013
def spreading(tensors: list[Tensor], *more: float) -> Tensor: ...
def by_place(tensors: list[Tensor], t: float, /) -> Tensor: ...
def unknown_name(tensors: "list[Nothing]") -> Tensor: ...  # type: ignore[name-defined]  # noqa: F821, UP037


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_tensors, "write tensors: list[torch.Tensor]"),
        (single, "write tensors: list[torch.Tensor]"),
        (no_result, "write -> torch.Tensor"),
        (other_base, "write base: torch.Tensor"),
        (untyped, "t has no annotation"),
        (odd_type, "t is annotated dict[str, float]"),
        (wrong_default, "t has the default 'half', which is no float"),
        (endless, "t has the default inf, which is no float"),
        (hidden_none, "say so with | None"),
        (spreading, "it takes *more; name each parameter"),
        (by_place, "cannot stand before a /"),
        (unknown_name, "cannot be read: name 'Nothing' is not defined"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(function: Callable[..., Any], words: str) -> None:
    """Each wrong signature has a message that names the parameter and the rule."""
    with pytest.raises(ValueError, match=re.escape(words)):
        read_signature(function)


def test_all_mistakes_are_told_at_once() -> None:
    """A signature with three mistakes has one message with all three."""

    def method(tensor: Tensor, base: int, t: float = "x") -> None: ...  # type: ignore[assignment]

    with pytest.raises(ValueError, match="first parameter.*; it gives.*; base.*; t has the default 'x'"):
        read_signature(method)
