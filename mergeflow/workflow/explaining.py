"""How each tensor of an output is made: its formula, its parameters step by step, and what must run for it, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mergeflow.errors import Problem, RecipeError
from mergeflow.execute.events import Listener
from mergeflow.graph.chain import chain_formula, tensors_on_the_way
from mergeflow.graph.formula import formula, short
from mergeflow.graph.history import shown_model
from mergeflow.graph.nodes import Node
from mergeflow.graph.plan import Plan
from mergeflow.graph.tasks import is_known
from mergeflow.graph.values import Parameters
from mergeflow.graph.why import FIRST
from mergeflow.graph.within import between, node_of, read_by
from mergeflow.recipe.nearest import did_you_mean
from mergeflow.recipe.records import Recipe, Source, Step, StepReference
from mergeflow.workflow.options import Options
from mergeflow.workflow.planning import planned
from mergeflow.workflow.reasons import Reasons, reasons_of


@dataclass(frozen=True, slots=True)
class StatisticExplanation:
    """A statistic that is to be computed: its formula over the names of the step's inputs, and why, a line each."""

    op: str
    formula: str
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepExplanation:
    """One step of the making of one tensor.

    Args:
        formula: over the names of the step's inputs, each with its tensor's name where that is another
            (``a:model.layers.1.mlp.up_proj.weight``).
        shared, inputs: the parameters as they resolved for this tensor; `inputs` by the input's name.
        state: ``carried`` (not merged), ``cached``, ``to compute``, ``not needed``, or ``unknown`` before the inputs
            are hashed.
        statistics_known, statistics: how many statistics it needs and how many are cached.
        missing: those that a run computes.
        why: why it must run, a line each, most specific first; empty when it need not.
    """

    step: str
    formula: str
    shared: Mapping[str, object]
    inputs: Mapping[str, Mapping[str, object]]
    state: str
    statistics_known: int
    statistics: int
    missing: tuple[StatisticExplanation, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorExplanation:
    """The making of one output tensor, first step first.

    Args:
        formula: the whole chain in one line, over the names of models.
        state: ``kept in OUT``, ``cached`` or ``to compute``.
    """

    output: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    key: str | None
    formula: str
    state: str
    steps: tuple[StepExplanation, ...]


def explain_recipe(
    recipe: Recipe, glob: str, options: Options, listen: Listener, out: Path | None = None
) -> list[TensorExplanation]:
    """The making of every output tensor whose name matches `glob` (``*`` and ``?``, case-sensitive).

    Raises:
        RecipeError: the recipe has errors, or no tensor matches.
    """
    found = planned(recipe, out, options, listen, folders_needed=False)
    compiled = found.plan.compiled
    reasons = reasons_of(found.plan, found.destinations, found.wanted, found.known, options)
    states = dict(_states(found.plan))
    explained = [
        TensorExplanation(
            output=output.output.step,
            name=tensor.name,
            dtype=tensor.dtype.name,
            shape=tensor.shape,
            key=compiled.graph[tensor.node].key,
            formula=chain_formula(recipe, compiled, way),
            state=states[output.output.step, tensor.name],
            steps=tuple(_explain(recipe, step, name, reasons) for step, name in way),
        )
        for output in compiled.outputs
        for tensor in output.tensors
        if fnmatchcase(tensor.name, glob)
        for way in [tensors_on_the_way(recipe, compiled, output.output.step, tensor.name)]
    ]
    if not explained:
        names = dict.fromkeys(tensor.name for output in compiled.outputs for tensor in output.tensors)
        raise RecipeError([Problem(f"no output tensor is called {glob!r}{did_you_mean(glob, names, 'tensors')}")])
    return explained


def _states(plan: Plan) -> Iterator[tuple[tuple[str, str], str]]:
    for output in plan.outputs:
        place = f"kept in {Path(output.path).name}" if output.path is not None else "kept"
        states = {"kept": place, "cached": "cached", "computed": "to compute"}
        for name, fate in output.fates.items():
            yield (output.step, name), states[fate]


def _explain(recipe: Recipe, step: Step, name: str, reasons: Reasons) -> StepExplanation:
    compiled, known = reasons.situation.compiled, reasons.situation.known
    graph, result = compiled.graph, compiled.results[step.name]
    read = read_by(step, result, name)
    labels = [_tensor_label(recipe, source, tensor, name) for source, tensor in read]
    names = {node_of(compiled, *tensor): label for tensor, label in zip(read, labels, strict=True)}
    node = graph[result.tensors[name].node]
    inner = [graph[i] for i in between(graph, node.id, names.keys()).nodes]
    statistics = [it for it in inner if it.kind == "statistic"]
    causes = reasons.causes[step.name].get(name)
    made = result.parameters.get(name)
    return StepExplanation(
        step=step.name,
        formula=formula(graph, node.id, names),
        shared=_shared(made),
        inputs=_per_input(recipe, made, name, read),
        state=_state(node, reasons),
        statistics_known=sum(1 for it in statistics if is_known(it, known)),
        statistics=len(statistics),
        missing=tuple(
            _missing(step, name, it, names, reasons)
            for it in statistics
            if causes is not None and it.id in reasons.situation.needed and not is_known(it, known)
        ),
        why=tuple(causes.lines()) if causes is not None else (),
    )


def _missing(step: Step, name: str, node: Node, names: Mapping[int, str], reasons: Reasons) -> StatisticExplanation:
    graph = reasons.situation.compiled.graph
    causes = FIRST if reasons.changes is None else reasons.changes.of_statistic(step, name, node.id)
    why = tuple(causes.lines()) or (_not_kept(step, reasons),)
    inputs = [formula(graph, i, names) for i in node.inputs]
    settings = [f"{parameter}={short(value)}" for parameter, value in node.parameters.items()]
    told = f"; {', '.join(settings)}" if settings else ""
    return StatisticExplanation(node.op, f"{node.op}({', '.join(inputs)}{told})", why)


def _not_kept(step: Step, reasons: Reasons) -> str:
    if reasons.situation.known.cache_is_off:
        return "there is no cache"
    return "never kept (cache: never)" if step.cache == "never" else "its value is not in the cache any more"


def _tensor_label(recipe: Recipe, source: Source, tensor: str, name: str) -> str:
    """An input by its name; where its tensor is called otherwise (in another layer, say), with that."""
    label = source.name if isinstance(source, StepReference) else shown_model(recipe, source)
    return label if tensor == name else f"{label}:{tensor}"


def _state(node: Node, reasons: Reasons) -> str:
    if node.kind == "load":
        return "carried"
    if is_known(node, reasons.situation.known):
        return "cached"
    if node.id not in reasons.situation.needed:
        return "not needed"
    return "unknown" if node.key is None else "to compute"


def _shared(made: Parameters | None) -> Mapping[str, object]:
    return {key: value for key, value in made.shared.items() if value is not None} if made is not None else {}


def _per_input(
    recipe: Recipe, made: Parameters | None, name: str, read: tuple[tuple[Source, str], ...]
) -> Mapping[str, Mapping[str, object]]:
    """The parameters of each input by its label. A delta that lacks the tensor has some too, and is not read."""
    if made is None or made.ingredients is None:
        return {}
    names = dict(read)
    found: dict[str, Mapping[str, object]] = {}
    for place, values in zip(made.places, made.inputs, strict=True):
        source = made.ingredients.inputs[place].source
        told = {parameter: value for parameter, value in values.items() if value is not None}
        if told and source in names:
            found[_tensor_label(recipe, source, names[source], name)] = told
    return found
