"""Declaring a function as a merge method.

    @mergeflow.merge_method(version=1)
    def spread(tensors: list[torch.Tensor], weight: mergeflow.PerModel[float] = 1.0, t: float = 0.5) -> torch.Tensor:
        \"\"\"What it does, in a line.\"\"\"
        ...

From then on ``merge_method: spread`` in a recipe means it. docs/your-own-method.md is the whole story.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from mergeflow.errors import MethodError
from mergeflow.methods.own import call, declare
from mergeflow.methods.registry import register
from mergeflow.methods.schema import ResultType, ValueType

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R", bound="Tensor")


@overload
def merge_method(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def merge_method(
    *,
    name: str | None = None,
    version: int = 1,
    pointwise: bool = False,
    minimum: int = 1,
    maximum: int | None = None,
    takes: Sequence[ValueType] | None = None,
    gives: ResultType | None = None,
    paper: str = "",
    formula: str = "",
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def merge_method(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Declare a plain function as a merge method; it stays a function that can be called.

    Its first parameter takes the tensors of the models, without the base, in listed order; one called `base` the
    base's; the others are the method's parameters, as `mergeflow.methods.signature` says. Tensors come in float32
    (float64 where an input has it), in their own shape, and must not be changed; the result has the same shape and
    dtype. It must depend on nothing else, and may be called by several threads at once.

    Args:
        name: what recipes call it; the function's name.
        version: part of every key. Raise it when the method gives other numbers for a reason that its own source does
            not show (a library it calls, a file it reads); an edit of the source is noticed without it.
        pointwise: an element of the result depends only on the same element of the inputs. Then the function is given
            blocks, one-dimensional pieces of the tensors, and takes no more memory than a built-in method.
        minimum, maximum: how many models it takes, without the base; None for no limit.
        takes: ``weights``, ``delta`` or both. By default weights; without a base both.
        gives: ``weights``, ``delta``, or ``same`` for what its inputs are. By default weights; without a base the same.
        paper, formula: what ``mergeflow methods NAME`` prints, with the first line of the docstring.

    Raises:
        MethodError: the signature is none of a method, or the name is taken.
    """
    if function is None:
        return functools.partial(_declared, **options)
    return _declared(function, **options)


def _declared(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    try:
        declaration = declare(function, **options)
        register(declaration)
    except ValueError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise MethodError(f"{name} in {getattr(function, '__module__', '?')} is no merge method: {error}") from None

    @functools.wraps(function)
    def called(*args: Any, **given: Any) -> Any:
        return call(declaration, *args, **given)

    return called
