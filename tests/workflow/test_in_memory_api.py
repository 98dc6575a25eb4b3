"""Merging tensors and state dicts in memory: what may be asked, what comes back, and how mistakes are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import llama_tensors
from torch import Tensor, nn

import mergeflow
from mergeflow.errors import MergeError

X, Y = (torch.randn(40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
LINEAR: dict[str, Any] = {"parameters": {"weight": 1.0}}


def states(count: int, dtype: torch.dtype = torch.float32, layers: int = 3) -> list[dict[str, Tensor]]:
    return [llama_tensors(seed, layers, dtype) for seed in range(count)]


def test_a_list_has_a_value_for_each_tensor() -> None:
    """Of a parameter of the models: as a list, a tuple, an array or a tensor; a single one is for all."""
    expected = 0.25 * X + 0.75 * Y
    for weights in ([0.25, 0.75], (0.25, 0.75), np.array([0.25, 0.75]), torch.tensor([0.25, 0.75])):
        made = mergeflow.merge_tensors([X, Y], "linear", parameters={"weight": weights})
        torch.testing.assert_close(made, expected)
    torch.testing.assert_close(mergeflow.merge_tensors([X, Y], "linear", **LINEAR), (X + Y) / 2)


def test_a_base_may_be_one_of_the_models_or_not() -> None:
    """As in a recipe: listed beside the others or by itself, it is the base and no operand."""
    alone = mergeflow.merge_tensors([Y], "slerp", base=X, parameters={"t": 0.3})
    listed = mergeflow.merge_tensors([X, Y], "slerp", base=X, parameters={"t": 0.3})
    assert torch.equal(alone, listed)

    base, other = states(2)
    by_name = mergeflow.merge_state_dicts({"x": base, "y": other}, "slerp", base="x", parameters={"t": 0.3})
    as_object = mergeflow.merge_state_dicts({"y": other}, "slerp", base=base, parameters={"t": 0.3})
    same_object = mergeflow.merge_state_dicts({"x": base, "y": other}, "slerp", base=base, parameters={"t": 0.3})
    named_base = mergeflow.merge_state_dicts({"base": other}, "slerp", base=base, parameters={"t": 0.3})
    for name, tensor in by_name.items():
        assert all(torch.equal(tensor, made[name]) for made in (as_object, same_object, named_base))


def test_a_module_is_its_state_dict() -> None:
    """Modules merge, gradients and training mode left alone, and the result loads back."""
    modules = [nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)) for _ in range(2)]
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    made = mergeflow.merge_state_dicts({"a": modules[0], "b": modules[1]}, "linear", **LINEAR)
    assert not any(tensor.requires_grad for tensor in made.values())
    torch.testing.assert_close(made["0.weight"], (before[0]["0.weight"] + before[1]["0.weight"]) / 2)
    for module, old in zip(modules, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in module.state_dict().items())
    modules[0].load_state_dict(made)


def test_gradients_and_filters_mean_what_they_mean_in_a_recipe() -> None:
    """A list runs over the layers; conditions look at names; a model's own value comes first."""
    base, other = states(2)
    made = mergeflow.merge_state_dicts(
        {"other": other},
        "task_arithmetic",
        base=base,
        parameters={"weight": [0.0, 1.0]},
        model_parameters={"other": {"weight": [{"filter": "mlp", "value": 1.0}, {"filter": "norm", "value": 0.0}]}},
    )
    for name, tensor in made.items():
        if "mlp" in name:
            weight = 1.0
        elif "norm" in name or "layers" not in name:
            weight = 0.0
        else:
            weight = int(name.split(".")[2]) / 2
        torch.testing.assert_close(tensor, base[name] + weight * (other[name] - base[name]))


def test_the_result_has_the_tensors_format_or_the_one_that_is_asked_for() -> None:
    """As an output: the widest of the inputs' formats; a delta stays in the format it was computed in."""
    x, y = X.bfloat16(), Y.bfloat16()
    assert mergeflow.merge_tensors([x, y], "linear", **LINEAR).dtype == torch.bfloat16
    assert mergeflow.merge_tensors([x, Y], "linear", **LINEAR).dtype == torch.float32
    for dtype in (torch.float16, "float16", "torch.float16"):
        assert mergeflow.merge_tensors([x, y], "linear", dtype=dtype, **LINEAR).dtype == torch.float16
    delta = mergeflow.merge_tensors([y], "task_vector", base=x)
    assert delta.dtype == torch.float32
    assert torch.equal(delta, y.float() - x.float())


def test_deltas_are_not_subtracted_from_again() -> None:
    """What a task vector gave goes back in as what it is, and adding it to its base gives the model."""
    delta = mergeflow.merge_tensors([Y], "task_vector", base=X)
    made = mergeflow.merge_tensors([delta], "task_arithmetic", base=X, deltas=True, parameters={"weight": 1.0})
    assert torch.equal(made, X + (Y - X))
    both = mergeflow.merge_tensors([delta, delta], "linear", deltas=True, **LINEAR)
    torch.testing.assert_close(both, delta)


def test_the_result_is_new_memory() -> None:
    """Also where it is an input as it is: writing to it leaves the input alone."""
    made = mergeflow.merge_tensors([Y], "slerp", base=X, parameters={"t": 1.0})
    assert torch.equal(made, Y)
    made.zero_()
    assert not torch.equal(made, Y)


def test_any_view_merges() -> None:
    """Transposed, strided, negated, a parameter that is being trained."""
    square = torch.arange(12.0).reshape(3, 4)
    views = [square.t(), square.clone().t().contiguous(), nn.Parameter(square.t()), torch._neg_view(-square.t())]
    for view in views:
        made = mergeflow.merge_tensors([view, square.t()], "linear", **LINEAR)
        assert torch.equal(made, square.t())
    every_other = torch.arange(10.0)[::2]
    assert mergeflow.merge_tensors([every_other] * 2, "linear", **LINEAR).tolist() == [0, 2, 4, 6, 8]


def test_random_methods_depend_on_the_seed_and_the_contents() -> None:
    """The same tensors and seed give the same mask, another seed another one."""
    parameters = {"weight": 1.0, "density": 0.5}

    def made(seed: int) -> Tensor:
        return mergeflow.merge_tensors([Y], "dare_linear", base=X, parameters=parameters, seed=seed)

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))


def test_the_callers_threads_are_as_before() -> None:
    """A merge leaves torch's number of threads alone, also when it fails."""
    before = torch.get_num_threads()
    mergeflow.merge_state_dicts({"a": states(1)[0], "b": states(2)[1]}, "linear", **LINEAR)
    with pytest.raises(MergeError):
        mergeflow.merge_tensors(
            [torch.tensor([3e38]), torch.tensor([3e38])], "linear", parameters={"weight": 1.0, "normalize": False}
        )
    assert torch.get_num_threads() == before


def test_a_result_that_is_not_finite_is_refused() -> None:
    """Unless an input was not finite, or the caller takes it."""
    large = torch.tensor([1.0, 3e38])
    asked: dict[str, Any] = {"parameters": {"weight": 1.0, "normalize": False}}
    with pytest.raises(MergeError, match="would have a NaN or infinity at element 1"):
        mergeflow.merge_tensors([large, large], "linear", **asked)
    made = mergeflow.merge_tensors([large, large], "linear", allow_non_finite=True, **asked)
    assert made.tolist() == [2.0, float("inf")]
    nan = torch.tensor([1.0, float("nan")])
    assert mergeflow.merge_tensors([nan, nan], "linear", **asked).isnan().tolist() == [False, True]


def test_a_users_method_works_in_memory() -> None:
    """On whole tensors and in blocks; what it does wrong is a MergeError that names the tensor."""

    @mergeflow.merge_method
    def largest(tensors: list[Tensor], scale: mergeflow.PerModel[float] = 1.0) -> Tensor:
        return torch.stack([s * x for s, x in zip(scale, tensors, strict=True)]).amax(dim=0)

    @mergeflow.merge_method(pointwise=True)
    def wrong(tensors: list[Tensor]) -> Tensor:
        return tensors[0][:-1]

    made = mergeflow.merge_tensors([X, Y], "largest", parameters={"scale": [1.0, 2.0]})
    assert torch.equal(made, torch.maximum(X, 2 * Y))
    with pytest.raises(MergeError, match=r"w: the method 'wrong' gave float32 \[39\]"):
        mergeflow.merge_state_dicts({"a": {"w": X}}, "wrong")


@pytest.mark.parametrize(
    ("tensors", "method", "more", "words"),
    [
        ([X, Y], "linaer", {}, "there is no merge method 'linaer'; did you mean 'linear'?"),
        ([X, Y], "linear", {}, "linear needs the parameter 'weight' for model tensors[0], and nothing sets it"),
        ([X, Y], "linear", {"parameters": {"wieght": 1}}, "did you mean 'weight'?"),
        ([X, Y], "linear", {"parameters": {"weight": [1, 2, 3]}}, "parameters.weight: 3 values for 2 tensors"),
        (
            [X, Y],
            "linear",
            {"parameters": {"weight": ["x", 1]}},
            "parameters['tensors[0]'].weight: 'x' is not a number",
        ),
        ([X, Y], "linear", {"parameters": {"weight": 1, "normalize": [True, True]}}, "one value for all tensors"),
        ([X, Y], "linear", {"parameters": {"weight": {"value": 1}}}, "tensors have no names"),
        ([X, Y], "linear", {"parameters": {"weight": [1, -1]}}, "sum to zero"),
        ([X, Y[:3]], "linear", LINEAR, "the shapes of tensor differ: [40] in tensors[0], [3] in tensors[1]"),
        ([X, Y], "slerp", {"parameters": {"t": 0.5}}, "slerp needs a base"),
        ([X, 1.0], "linear", LINEAR, "tensors[1] is a float, not a tensor"),
        ([X, Y.to_sparse()], "linear", LINEAR, "tensors[1] has no plain memory"),
        ([X, Y.to(torch.complex64)], "linear", LINEAR, "tensors[1] is torch.complex64, which cannot be merged"),
        ([], "linear", LINEAR, "there is nothing to merge"),
        ([X, Y], "linear", {**LINEAR, "dtype": "bf16"}, "dtype: 'bf16' is not a number format for weights"),
        ([X, Y], "linear", {**LINEAR, "dtype": torch.int8}, "dtype: 'int8' is not"),
        ([X, Y], "linear", {**LINEAR, "seed": -1}, "seed: -1 is not between"),
        ([X, X], "linear", {"parameters": {"weight": object()}}, "a object is no value of a parameter"),
    ],
)
def test_a_mistake_is_one_kind_of_error(tensors: list[Any], method: str, more: dict[str, Any], words: str) -> None:
    """Whatever is wrong with what was asked is a MergeError, in the words of the call."""
    with pytest.raises(MergeError) as raised:
        mergeflow.merge_tensors(tensors, method, **more)
    assert words in str(raised.value)


def test_mistakes_of_models_are_told_all_at_once() -> None:
    """One line for each, with the argument it is about."""
    base, other = states(2)
    with pytest.raises(MergeError) as raised:
        mergeflow.merge_state_dicts(
            {"math": other},
            "ties",
            base=base,
            parameters={"density": 1.5},
            model_parameters={"math": {"weight": "heavy"}},
        )
    assert str(raised.value).splitlines() == [
        "parameters.density: density must be between 0 and 1, not 1.5",
        "model_parameters['math'].weight: 'heavy' is not a number",
    ]


def test_names_that_are_not_there_are_told() -> None:
    """Of a base and of a model's parameters; and what is neither module nor state dict."""
    base, other = states(2)
    with pytest.raises(MergeError, match="base: there is no model 'bsae'; did you mean 'base'"):
        mergeflow.merge_state_dicts({"base": base, "other": other}, "slerp", base="bsae")
    with pytest.raises(MergeError, match="model_parameters: there is no model 'othr'"):
        mergeflow.merge_state_dicts({"other": other}, "linear", model_parameters={"othr": {"weight": 1.0}})
    with pytest.raises(MergeError, match="x is a int, neither a module nor a state dict"):
        mergeflow.merge_state_dicts({"x": 3}, "linear")  # type: ignore[dict-item]
    with pytest.warns(UserWarning, match="other lacks extra: carried over unchanged from base"):
        mergeflow.merge_state_dicts({"base": base | {"extra": X}, "other": other}, "linear", **LINEAR)


def test_integer_tensors_are_carried_when_they_are_equal() -> None:
    """A counter that differs is no number to average."""
    steps = torch.tensor(7)
    made = mergeflow.merge_state_dicts(
        {"a": {"n": steps, "w": X}, "b": {"n": steps.clone(), "w": Y}}, "linear", **LINEAR
    )
    assert torch.equal(made["n"], steps)
    assert made["n"].dtype == torch.int64
    with pytest.raises(MergeError, match="its contents in a and b differ"):
        mergeflow.merge_state_dicts({"a": {"n": steps}, "b": {"n": steps + 1}}, "linear", **LINEAR)


def test_a_filter_that_matches_nothing_warns() -> None:
    """As in a recipe; the warning points at the caller's line."""
    base, other = states(2)
    parameters = {"weight": [{"filter": "mpl", "value": 1.0}, {"value": 0.5}]}
    with pytest.warns(UserWarning, match="'mpl'") as caught:
        mergeflow.merge_state_dicts({"base": base, "other": other}, "linear", parameters=parameters)
    assert caught[0].filename == __file__


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_merge_there_to_the_same_bytes() -> None:
    """The result is on the inputs' device, and equals the CPU's."""
    here = mergeflow.merge_tensors([Y], "slerp", base=X, parameters={"t": 0.3})
    there = mergeflow.merge_tensors([Y.cuda()], "slerp", base=X.cuda(), parameters={"t": 0.3})
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), here)


def test_whatever_is_kept_has_room_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging in memory opens no scratch file, however large the values that it keeps between its passes."""

    def refuse(**_: object) -> None:
        raise AssertionError("a scratch file was opened")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    base, a, b = (torch.full((1024, 2304), number) for number in (0.0, 1.0, 2.0))
    parameters = {"density": 0.5, "weight": 0.3}
    assert mergeflow.merge_tensors([a, b], "dare_ties", base=base, parameters=parameters).shape == base.shape
