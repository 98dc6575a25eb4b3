"""Merging tensors in memory: for notebooks and training loops, with the methods and the rules of recipes.

What is asked becomes a recipe of one step, compiled and checked as any other, over tensors in the place of files. So
gradients, filters, number formats, mistakes and results are those of files.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from mergeflow.dtypes import FLOAT_NAMES
from mergeflow.errors import MergeError, RunError
from mergeflow.graph.compile import compile_recipe
from mergeflow.graph.program import Place, Program
from mergeflow.graph.tasks import Known, Target, form_tasks
from mergeflow.graph.values import Compiled
from mergeflow.methods import registry
from mergeflow.methods.ops import OPS
from mergeflow.models.records import TensorSource
from mergeflow.recipe.native import LARGEST_SEED
from mergeflow.recipe.nearest import did_you_mean, quoted
from mergeflow.recipe.records import ModelReference
from mergeflow.workflow.memory_models import ONLY, Model, ModelsInMemory, StateDict, open_models, state_dict_of
from mergeflow.workflow.options import available_cores
from mergeflow.workflow.python_recipe import STEP, Asked, Values, recipe_of, told

if TYPE_CHECKING:
    import torch

    from mergeflow.execute.in_memory import TensorsInMemory

# How many calls lie between the caller's own line and the place where a warning is given.
CALLER = 4


def merge_tensors(
    tensors: Sequence[torch.Tensor],
    method: str,
    *,
    base: torch.Tensor | None = None,
    parameters: Values | None = None,
    deltas: bool = False,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    allow_non_finite: bool = False,
) -> torch.Tensor:
    """The merge of tensors of one shape, as a recipe's step would merge tensors of one name.

        mergeflow.merge_tensors([a, b], "ties", base=base, parameters={"weight": [0.6, 0.4], "density": 0.5})

    Args:
        tensors: of the models, in order; they are not changed, and the result shares no memory with them.
        method: any that ``mergeflow methods`` lists, or one declared with `mergeflow.merge_method`.
        base: the base model's tensor; it may be one of `tensors` too, as in a recipe.
        parameters: by name; of a parameter of the models a list has one value for each of `tensors`.
        deltas: `tensors` are differences to the base already, as ``task_vector`` gives them.
        seed: of random methods, which draw by it and by the contents of the tensors.
        dtype: the result's; else that of the tensors (the widest), and of a delta that it was computed in.
        allow_non_finite: return NaN and infinities that no input had, instead of raising.

    Returns:
        A tensor of the same shape, on the device of the inputs (on the CPU when they are on several).

    Raises:
        MergeError: everything that is wrong with what was asked, or a result that would not be finite.
    """
    names = [f"tensors[{place}]" for place in range(len(tensors))]
    models: dict[str, StateDict] = {name: {ONLY: tensor} for name, tensor in zip(names, tensors, strict=True)}
    base_name = None
    if base is not None:
        base_name = next((name for name, tensor in zip(names, tensors, strict=True) if tensor is base), "base")
        models.setdefault(base_name, {ONLY: base})
    shared, own = _by_tensor(method, parameters or {}, names)
    asked = Asked(method, tuple(names), base_name, shared, own, _dtype_name(dtype), _checked_seed(seed))
    return _merge(asked, models, deltas, allow_non_finite)[ONLY]


def merge_state_dicts(
    models: Mapping[str, Model],
    method: str,
    *,
    base: str | Model | None = None,
    parameters: Values | None = None,
    model_parameters: Mapping[str, Values] | None = None,
    deltas: bool = False,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    allow_non_finite: bool = False,
) -> dict[str, torch.Tensor]:
    """The merge of models in memory, tensor by tensor, as a recipe's step would merge their checkpoints.

        mergeflow.merge_state_dicts({"math": math, "chat": chat}, "slerp", base="chat",
                                    parameters={"t": [0, 0.5, 1]})

    Args:
        models: modules or state dicts by name, in order; they are not changed, and the result shares no memory with
            them.
        method: any that ``mergeflow methods`` lists, or one declared with `mergeflow.merge_method`.
        base: the base model: the name of one of `models`, or a module or state dict of its own.
        parameters: by name, for all models: a value, a gradient over the layers, or conditions on the tensors' names
            (``[{"filter": "mlp", "value": 0.3}, {"value": 0.6}]``), exactly as in a recipe.
        model_parameters: the same for single models, by their names.
        deltas, seed, dtype, allow_non_finite: as for `merge_tensors`.

    Returns:
        A state dict with the names of the first model in their order, on the device of the inputs (on the CPU when
        they are on several). Integer tensors are carried along, and must be equal in all models.

    Raises:
        MergeError: everything that is wrong with what was asked, or a result that would not be finite.
    """
    own = model_parameters or {}
    _check_names(own, models)
    named = {name: state_dict_of(name, model) for name, model in models.items()}
    base_name = _base_name(base, models)
    if base_name is not None and base_name not in named:
        named[base_name] = state_dict_of("base", base)
    asked = Asked(method, tuple(models), base_name, parameters or {}, own, _dtype_name(dtype), _checked_seed(seed))
    return _merge(asked, named, deltas, allow_non_finite)


def _merge(asked: Asked, models: Mapping[str, StateDict], deltas: bool, allow: bool) -> dict[str, torch.Tensor]:
    """Compile, check and evaluate one step."""
    from mergeflow.execute.in_memory import TensorsInMemory

    inputs = open_models(models)
    data = TensorsInMemory(inputs.tensors)
    compiled = _compile(asked, inputs, deltas, data)
    names = compiled.results[STEP].tensors
    # Tensors in memory are whole, and a merge of one step gathers no rows: nothing is to be computed before.
    if any(node.kind == "view" for node in compiled.graph):
        raise AssertionError("a merge in memory has no views: there is no cache to read their parts from")
    tasks = form_tasks(compiled.graph, _targets(compiled), Known(cache_is_off=True))
    found = _evaluate([program for task in tasks for program in task.programs], data, inputs.device, allow)
    return {name: found[name].to(inputs.device) for name in names}


def _targets(compiled: Compiled) -> list[Target]:
    """The tensors of the result. Weights are rounded to the format they are stored in, as those of an output are."""
    result = compiled.results[STEP]
    targets = []
    for name, tensor in result.tensors.items():
        node = compiled.graph[tensor.node]
        is_float = node.dtype is not None and node.dtype.is_float
        if result.type == "weights" and is_float and node.dtype != tensor.stored:
            node = compiled.graph[compiled.graph.add("cast", [node.id], {"dtype": tensor.stored.name})]
        targets.append(Target(node.id, name, STEP, Place("", 0)))
    return targets


def _evaluate(
    programs: Sequence[Program], data: TensorsInMemory, device: torch.device, allow: bool
) -> dict[str, torch.Tensor]:
    import torch

    from mergeflow.execute.in_memory import evaluate_programs

    # Kernels ask for float64, which not every other kind of device has.
    where, threads = (device, 1) if device.type == "cuda" else (torch.device("cpu"), available_cores())
    if where.type == "cuda":
        torch.cuda.synchronize(where)  # what makes the inputs may be under way on a stream of the caller's
    try:
        return evaluate_programs(programs, data, where, threads, allow_non_finite=allow)
    except RunError as error:
        raise MergeError(str(error)) from error


def _compile(asked: Asked, inputs: ModelsInMemory, deltas: bool, data: TensorsInMemory) -> Compiled:
    """The step as a graph, with keys as far as they matter: to integer tensors, and to random methods."""
    recipe = recipe_of(asked)
    _refuse(told(recipe.problems, asked, "error"))
    differences = [ModelReference(name) for name in asked.models if deltas and name != asked.base]

    def compiled_with(sources: Collection[TensorSource]) -> Compiled:
        digests = {source: data.digest(source) for source in sources}
        compiled = compile_recipe(recipe, inputs.checkpoints, digests, deltas=differences)
        _refuse(told(compiled.problems, asked, "error"))
        return compiled

    compiled = compiled_with([source for source in inputs.tensors if not source.dtype.is_float])
    for warning in told(compiled.problems, asked, "warning"):
        warnings.warn(warning, stacklevel=CALLER)
    is_random = any(node.kind != "load" and OPS[node.op].random for node in compiled.graph)
    return compiled_with(list(inputs.tensors)) if is_random else compiled


def _refuse(mistakes: Sequence[str]) -> None:
    if mistakes:
        raise MergeError("\n".join(mistakes))


def _by_tensor(method: str, parameters: Values, names: Sequence[str]) -> tuple[Values, Mapping[str, Values]]:
    """The parameters that are for all tensors, and those that are lists for each tensor, by its name."""
    mistakes: list[str] = []
    shared: dict[str, object] = {}
    own: dict[str, dict[str, object]] = {name: {} for name in names}
    for parameter, value in parameters.items():
        listed = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
        if isinstance(listed, Mapping):
            mistakes.append(f"parameters.{parameter}: tensors have no names to tell them by; give a value, or a list")
        elif not isinstance(listed, list | tuple):
            shared[parameter] = listed
        elif not _is_of_models(method, parameter):
            mistakes.append(f"parameters.{parameter}: it is one value for all tensors, not a list")
        elif len(listed) != len(names):
            mistakes.append(f"parameters.{parameter}: {len(listed)} values for {len(names)} tensors")
        else:
            for name, item in zip(names, listed, strict=True):
                own[name][parameter] = item
    _refuse(mistakes)
    return shared, own


def _is_of_models(method: str, parameter: str) -> bool:
    """Whether a method has a value of a parameter for each model; a mistake in either name is told later."""
    try:
        found = registry.find_method(method)
    except ValueError:
        return True
    declared = found.parameter(parameter) if found is not None else None
    return declared is None or declared.scope != "shared"


def _check_names(own: Mapping[str, Values], models: Mapping[str, Model]) -> None:
    unknown = [name for name in own if name not in models]
    hints = [f"{quoted(name)}{did_you_mean(name, models, 'models')}" for name in unknown]
    _refuse([f"model_parameters: there is no model {hint}" for hint in hints])


def _base_name(base: str | Model | None, models: Mapping[str, Model]) -> str | None:
    """The name of the base: of the model that it is, or a new one."""
    if base is None:
        return None
    if isinstance(base, str):
        if base not in models:
            raise MergeError(f"base: there is no model {quoted(base)}{did_you_mean(base, models, 'models')}")
        return base
    same = next((name for name, model in models.items() if model is base), None)
    name = "base"
    while same is None and name in models:
        name = f"the {name}"
    return same or name


def _checked_seed(seed: int) -> int:
    if 0 <= seed <= LARGEST_SEED:
        return seed
    raise MergeError(f"seed: {seed} is not between 0 and 2^64 - 1")


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FLOAT_NAMES:
        hint = did_you_mean(name, FLOAT_NAMES, "formats")
        raise MergeError(f"dtype: {quoted(name)} is not a number format for weights{hint}")
    return name
