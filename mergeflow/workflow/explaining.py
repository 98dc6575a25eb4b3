"""How each tensor of an output is made: its formula step by step, its parameters, and what of it is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mergeflow.errors import Problem, RecipeError
from mergeflow.execute.events import Listener
from mergeflow.graph.formula import formula
from mergeflow.graph.history import describe_steps, differences
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.tasks import Known, is_known, needed_nodes
from mergeflow.graph.values import Compiled, Result
from mergeflow.recipe.cycles import reached
from mergeflow.recipe.nearest import did_you_mean
from mergeflow.recipe.records import Recipe, Source, Step, StepReference
from mergeflow.workflow.history_file import read_history
from mergeflow.workflow.models import check, compile_from_headers
from mergeflow.workflow.options import Options
from mergeflow.workflow.planning import look_up


@dataclass(frozen=True, slots=True)
class StepExplanation:
    """One step of the making of one tensor.

    Args:
        formula: over the names of the step's inputs, each with its tensor's name where that is another
            (``a:model.layers.1.mlp.up_proj.weight``).
        shared, inputs: the parameters as they resolved for this tensor; `inputs` by the input's name.
        state: ``carried`` (not merged), ``cached``, ``to compute``, or ``unknown`` before the inputs are hashed.
        statistics_known, statistics: how many statistics it needs and how many are cached.
        why: what changed about the step since the last run of the recipe.
    """

    step: str
    formula: str
    shared: Mapping[str, object]
    inputs: Mapping[str, Mapping[str, object]]
    state: str
    statistics_known: int
    statistics: int
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorExplanation:
    """The making of one output tensor, first step first."""

    output: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    key: str | None
    steps: tuple[StepExplanation, ...]


def explain_recipe(recipe: Recipe, glob: str, options: Options, listen: Listener) -> list[TensorExplanation]:
    """The making of every output tensor whose name matches `glob` (``*`` and ``?``, case-sensitive).

    Raises:
        RecipeError: the recipe has errors, or no tensor matches.
    """
    compiled = compile_from_headers(recipe, listen, download=False, state=options.state)
    check(compiled, strict=False)
    known = look_up(compiled.graph, options.cache, listen)
    now, before = describe_steps(recipe, compiled), read_history(options.state, recipe)
    why = {name: tuple(differences(name, now, before)) for name in now}
    found = [
        TensorExplanation(
            output=output.output.step,
            name=tensor.name,
            dtype=tensor.dtype.name,
            shape=tensor.shape,
            key=compiled.graph[tensor.node].key,
            steps=tuple(_steps(recipe, compiled, output.output.step, tensor.name, known, why)),
        )
        for output in compiled.outputs
        for tensor in output.tensors
        if fnmatchcase(tensor.name, glob)
    ]
    if not found:
        names = dict.fromkeys(tensor.name for output in compiled.outputs for tensor in output.tensors)
        raise RecipeError([Problem(f"no output tensor is called {glob!r}{did_you_mean(glob, names, 'tensors')}")])
    return found


def _steps(
    recipe: Recipe,
    compiled: Compiled,
    last: str,
    name: str,
    known: Known,
    why: Mapping[str, tuple[str, ...]],
) -> Iterator[StepExplanation]:
    asked: dict[str, dict[str, None]] = {last: {name: None}}
    needed = reached(recipe.steps, [last])
    order = [step for step in steps_in_order(recipe.steps) if step.name in needed]
    for step in reversed(order):
        for tensor in asked.get(step.name, {}):
            for source, read in _read(compiled, step, tensor):
                if isinstance(source, StepReference):
                    asked.setdefault(source.name, {})[read] = None
    for step in order:
        for tensor in asked.get(step.name, {}):
            yield _explain(recipe, compiled, step, tensor, known, why[step.name])


def _read(compiled: Compiled, step: Step, name: str) -> tuple[tuple[Source, str], ...]:
    """The tensors that one tensor of a step is made from."""
    return compiled.results[step.name].parameters[name].read


def _explain(
    recipe: Recipe, compiled: Compiled, step: Step, name: str, known: Known, why: tuple[str, ...]
) -> StepExplanation:
    graph, result = compiled.graph, compiled.results[step.name]
    read = _read(compiled, step, name)
    labels = [_tensor_label(recipe, source, tensor, name) for source, tensor in read]
    names = {_node(compiled, *tensor): label for tensor, label in zip(read, labels, strict=True)}
    node = graph[result.tensors[name].node]
    if node.kind != "load":
        names.pop(node.id, None)
    inner = [graph[i] for i in needed_nodes(graph, [node.id], Known()) if i in result.nodes]
    statistics = [it for it in inner if it.kind == "statistic"]
    return StepExplanation(
        step=step.name,
        formula=formula(
            graph, node.id, {i: label for i, label in names.items() if i != node.id or node.kind == "load"}
        ),
        shared=_shared(result, name),
        inputs=_per_input(result, name, labels),
        state=_state(node.kind == "load", node.key, is_known(node, known)),
        statistics_known=sum(1 for it in statistics if is_known(it, known)),
        statistics=len(statistics),
        why=why,
    )


def _tensor_label(recipe: Recipe, source: Source, tensor: str, name: str) -> str:
    """An input by its name; where its tensor is called otherwise (in another layer, say), with that."""
    label = _label(recipe, source)
    return label if tensor == name else f"{label}:{tensor}"


def _state(is_load: bool, key: str | None, is_cached: bool) -> str:
    if is_load:
        return "carried"
    if key is None:
        return "unknown"
    return "cached" if is_cached else "to compute"


def _node(compiled: Compiled, source: Source, name: str) -> int:
    if isinstance(source, StepReference):
        return compiled.results[source.name].tensors[name].node
    return compiled.graph.load(compiled.checkpoints[source].tensors[name])


def _label(recipe: Recipe, source: Source) -> str:
    if isinstance(source, StepReference):
        return source.name
    aliases = [alias for alias, reference in recipe.models.items() if reference == source]
    return aliases[0] if aliases else str(source)


def _shared(result: Result, name: str) -> Mapping[str, object]:
    return {key: value for key, value in result.parameters[name].shared.items() if value is not None}


def _per_input(result: Result, name: str, labels: list[str]) -> Mapping[str, Mapping[str, object]]:
    inputs = result.parameters[name].inputs
    return {label: dict(values) for label, values in zip(labels, inputs, strict=False) if values}
