"""A user's function as a method: declared, found, lowered to one node, called and checked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from method_evaluation import BLOCKS, apply
from torch import Tensor

import mergeflow
from mergeflow.errors import MethodError
from mergeflow.methods import registry
from mergeflow.methods.ops import OPS
from mergeflow.methods.own import OwnMethodError, declare
from mergeflow.methods.schema import Call, Operand
from mergeflow.methods.table import METHODS


def lean(tensors: list[Tensor], base: Tensor, weight: mergeflow.PerModel[float] = 1.0, t: float = 0.5) -> Tensor:
    """Moves the base to the weighted sum of the others."""
    return base + t * sum((w * (x - base) for w, x in zip(weight, tensors, strict=True)), torch.zeros_like(base))


def lowered(name: str, tensors: Sequence[Tensor], base: bool, own: Sequence[dict[str, Any]], **shared: Any) -> Any:
    """The one call of `emit` that a method makes: operation, input numbers, parameters."""
    method = registry.find_method(name)
    assert method is not None
    operands = tuple(Operand(place, "weights", values) for place, values in enumerate(own))
    calls: list[Any] = []

    def emit(op: str, inputs: Sequence[int], **parameters: object) -> int:
        calls.append((op, list(inputs), parameters))
        return 99

    handle = method.lower(Call(operands, len(own) if base else None, shared, tuple(tensors[0].shape)), emit)
    return (handle, *calls)


def call(function: Callable[..., Any], tensors: Sequence[Tensor], has_base: bool = False, **arguments: Any) -> Tensor:
    """A declared method as an executor calls it, through its identity."""
    declaration = registry._declared[function.__name__]
    parameters = {"method": registry.identity(declaration), "arguments": arguments, "has_base": has_base}
    result = apply(OPS["own_pointwise" if declaration.pointwise else "own_method"], tensors, parameters)
    assert isinstance(result, Tensor)
    return result


def test_a_declared_function_is_a_method() -> None:
    """It is found by its name, with its schema, its first line of documentation, and the policies of its base."""
    mergeflow.merge_method(version=3, paper="https://example.org", formula="R = B + t * sum(w_i * D_i)")(lean)
    method = registry.find_method("lean")
    assert method is not None
    assert [parameter.name for parameter in method.parameters] == ["weight", "t"]
    assert (method.base, method.takes, method.gives) == ("required", ("weights",), "weights")
    assert method.summary == "Moves the base to the weighted sum of the others."
    assert "lean" in registry.method_names()
    assert "lean" not in METHODS


def test_a_method_without_a_base_takes_weights_or_deltas() -> None:
    """Nothing in it tells one from the other: it gives what it gets."""

    @mergeflow.merge_method
    def first(tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    method = registry.find_method("first")
    assert method is not None
    assert (method.base, method.takes, method.gives) == ("ignored", ("weights", "delta"), "same")


def test_the_function_stays_a_function() -> None:
    """It can be called with tensors; a single value of a parameter of the models is repeated for all of them."""
    declared = mergeflow.merge_method(lean)
    base, x, y = torch.zeros(3), torch.ones(3), torch.full((3,), 2.0)
    assert declared([x, y], base).tolist() == [1.5] * 3
    assert declared([x, y], base, [1.0, 0.0], t=1.0).tolist() == [1.0] * 3
    assert declared.__doc__ == lean.__doc__


def test_it_lowers_to_one_node_that_names_it() -> None:
    """Operands first, the base last; the node knows the function, its version, its source and its arguments."""
    mergeflow.merge_method(version=3)(lean)
    handle, (op, inputs, parameters) = lowered("lean", [torch.ones(2)], True, [{"weight": 0.5}, {"weight": 1.0}], t=0.1)
    assert (handle, op, inputs) == (99, "own_method", [0, 1, 2])
    assert parameters["arguments"] == {"weight": [0.5, 1.0], "t": 0.1}
    assert parameters["has_base"] is True
    known = parameters["method"]
    assert {key: known[key] for key in ("name", "version", "function")} == {
        "name": "lean",
        "version": 3,
        "function": f"{__name__}:lean",
    }
    assert len(known["code"]) == 16


def test_an_empty_tensor_is_not_computed() -> None:
    """Functions need not think of tensors without elements."""
    mergeflow.merge_method(lean)
    assert lowered("lean", [torch.ones(0, 3)], True, [{"weight": 1.0}], t=0.1) == (1,)


def test_a_name_means_one_method() -> None:
    """A built-in's name, or another function's, is refused; declaring the same function again replaces it."""
    with pytest.raises(MethodError, match="'ties' is the name of a built-in method"):
        mergeflow.merge_method(name="ties")(lean)
    mergeflow.merge_method(version=1)(lean)
    mergeflow.merge_method(version=2)(lean)
    assert registry._declared["lean"].version == 2

    def other(tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    with pytest.raises(MethodError, match="is already the name of the method"):
        mergeflow.merge_method(name="lean")(other)


def test_a_function_that_is_no_method_is_refused() -> None:
    """One message names the function, where it is, and everything that is wrong."""
    with pytest.raises(MethodError, match="broken in .* is no merge method: .*; it gives one tensor"):

        @mergeflow.merge_method
        def broken(tensor: Tensor) -> None: ...


@pytest.mark.parametrize("version", [0, True, "1"])
def test_a_version_is_a_number_from_one_on(version: Any) -> None:
    """It enters keys, so it is checked."""
    with pytest.raises(MethodError, match="version"):
        mergeflow.merge_method(version=version)(lean)


def test_what_a_function_captures_must_be_a_parameter() -> None:
    """A number of an enclosing function can change without the source showing it."""
    factor = 2.0
    with pytest.raises(MethodError, match="factor"):

        @mergeflow.merge_method
        def scaled(tensors: list[Tensor]) -> Tensor:
            return tensors[0] * factor


def test_whole_tensors_come_in_their_shape() -> None:
    """The function sees rows and columns, and the base by its name."""

    @mergeflow.merge_method
    def rows(tensors: list[Tensor], base: Tensor) -> Tensor:
        return base - base.mean(dim=1, keepdim=True) + tensors[0]

    x, base = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert call(rows, [x, base], has_base=True).tolist() == [[-1.0, 0.0, 1.0]] * 2


def test_a_base_may_be_absent() -> None:
    """A method whose base is optional gets None when there is none."""

    @mergeflow.merge_method
    def perhaps(tensors: list[Tensor], base: Tensor | None) -> Tensor:
        return tensors[0] if base is None else base

    x, y = torch.ones(2), torch.zeros(2)
    assert call(perhaps, [x, y]).tolist() == [1.0, 1.0]
    assert call(perhaps, [x, y], has_base=True).tolist() == [0.0, 0.0]


def test_a_pointwise_method_sees_blocks_and_leaves_no_trace_of_them() -> None:
    """It is given flat pieces, and its result does not depend on their length."""

    @mergeflow.merge_method(pointwise=True)
    def larger(tensors: list[Tensor]) -> Tensor:
        assert tensors[0].ndim == 1
        return torch.where(tensors[0].abs() >= tensors[1].abs(), tensors[0], tensors[1])

    x, y = torch.randn(2, 300, 401, generator=torch.Generator().manual_seed(0))
    known = registry.identity(registry._declared["larger"])
    parameters = {"method": known, "arguments": {}, "has_base": False}
    results = [apply(OPS["own_pointwise"], [x, y], parameters, block) for block in BLOCKS]
    assert all(torch.equal(result, torch.where(x.abs() >= y.abs(), x, y)) for result in results)


def test_a_method_that_is_not_pointwise_is_found_out() -> None:
    """Declared pointwise by mistake, it would depend on the length of blocks."""

    @mergeflow.merge_method(pointwise=True)
    def centred(tensors: list[Tensor]) -> Tensor:
        return tensors[0] - tensors[0].mean()

    with pytest.raises(OwnMethodError, match="depends on other elements"):
        call(centred, [torch.arange(100.0)])


def test_what_a_method_gives_is_checked() -> None:
    """No tensor, another shape, another dtype, an exception: each is one message that names the method."""

    @mergeflow.merge_method
    def nothing(tensors: list[Tensor]) -> Tensor:
        return None  # type: ignore[return-value]

    @mergeflow.merge_method
    def shorter(tensors: list[Tensor]) -> Tensor:
        return tensors[0][1:]

    @mergeflow.merge_method
    def halved(tensors: list[Tensor]) -> Tensor:
        return tensors[0].half()

    @mergeflow.merge_method
    def failing(tensors: list[Tensor]) -> Tensor:
        raise KeyError("lost")

    tensor = torch.ones(3)
    for function, words in (
        (nothing, "'nothing' gave NoneType, not a tensor"),
        (shorter, "'shorter' gave float32 [2]; from tensors of float32 [3]"),
        (halved, "'halved' gave float16 [3]"),
        (failing, "'failing' failed with KeyError: 'lost' ("),
    ):
        with pytest.raises(OwnMethodError) as raised:
            call(function, [tensor])
        assert words in str(raised.value)
    assert f"{__file__}:" in str(raised.value)


@pytest.mark.parametrize("pointwise", [False, True])
def test_a_method_that_writes_to_its_inputs_is_found_out(pointwise: bool) -> None:
    """What it was given may be needed by others."""

    def doubling(tensors: list[Tensor]) -> Tensor:
        return tensors[0].mul_(2)

    mergeflow.merge_method(pointwise=pointwise)(doubling)
    with pytest.raises(OwnMethodError, match="changes its inputs"):
        call(doubling, [torch.ones(4)])


def test_another_version_is_not_computed_with() -> None:
    """A node that was planned with one version of a function is refused by a process that has another."""
    mergeflow.merge_method(version=1)(lean)
    planned = {**registry.identity(registry._declared["lean"]), "version": 7, "package": "other 1.0"}
    with pytest.raises(OwnMethodError, match="package none, not other 1.0, version 1, not 7"):
        registry.declaration_of(planned)


def test_a_worker_says_what_it_cannot_import() -> None:
    """A function of a script, of a module that is not there, or that a module does not declare."""
    for function, words in (
        ("__main__:odd", "in a script or notebook"),
        ("no_such_module:odd", "No module named"),
        ("json:odd", "importing json declares no method"),
    ):
        known = {"name": "odd", "version": 1, "function": function, "code": "0"}
        with pytest.raises(OwnMethodError, match=words):
            registry.declaration_of(known)


def test_a_script_is_known_by_one_name() -> None:
    """A worker process that imports the main script has it under another name; the method is the same."""

    def function(tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    function.__qualname__ = "function"
    references = []
    for module in ("__main__", "__mp_main__"):
        function.__module__ = module
        references.append(declare(function).reference)
    assert references == ["__main__:function"] * 2


def test_looking_up_methods_needs_no_torch() -> None:
    """Finding a built-in method, and that there is none of a name, imports neither torch nor numpy."""
    program = (
        "import sys, mergeflow.workflow.own_methods\n"
        "from mergeflow.methods.registry import find_method\n"
        "assert find_method('ties') and not find_method('nothing')\n"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
