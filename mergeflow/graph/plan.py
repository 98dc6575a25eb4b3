"""A plan: what a run would compute, read, write and need, and why. Printed by `mergeflow plan`, carried out by `run`.

A plan is made from a compiled recipe and from what is known: the keys in the cache, and the outputs that are there
already. It is frozen; making it reads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mergeflow.graph.candidates import Keeping, StepKeeping, what_to_keep
from mergeflow.graph.memory import Budget, allocate, peak_bytes
from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.policy import NOMINALLY, Circumstances, Rates
from mergeflow.graph.program import READ, Instruction, Pass, Program
from mergeflow.graph.tasks import Known, Target, Task, form_tasks, is_known, needed_nodes, tasks_before
from mergeflow.graph.values import Compiled, CompiledOutput, OutputTensor
from mergeflow.recipe.records import CachePolicy, Recipe

Fate = Literal["computed", "cached", "kept"]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a run does of one step.

    Args:
        tensors: how many the step has; `computed` of them are evaluated now, `cached` are read from the cache, and
            nothing needs the others.
        statistics: how many the run needs of this step; `statistics_known` of them are in the cache.
        why: why it must run, a line each (`workflow.reasons` fills it in); empty when nothing of it runs.
        keeping: what of its results is put into the cache; None where it computes none that could be.
    """

    name: str
    method: str
    tensors: int
    computed: int
    cached: int
    statistics: int
    statistics_known: int
    policy: CachePolicy
    why: tuple[str, ...] = ()
    keeping: StepKeeping | None = None


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What a run does for one output: the fate of each tensor, and the bytes it writes."""

    step: str
    path: str | None
    fates: Mapping[str, Fate]
    bytes_written: int

    def count(self, fate: Fate) -> int:
        return sum(1 for found in self.fates.values() if found == fate)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that would happen.

    Args:
        before: waves of tasks whose results `tasks` read.
        digests_missing: how many tensors have never been read on this machine: until a run reads them, nothing that
            depends on them has a key, and all of it counts as computed.
        rates: the rates by which it was decided what to keep.
    """

    recipe: Recipe
    compiled: Compiled
    steps: tuple[StepPlan, ...]
    outputs: tuple[OutputPlan, ...]
    tasks: tuple[Task, ...]
    before: tuple[tuple[Task, ...], ...]
    budget: Budget
    bytes_read: int
    bytes_written: int
    cache_bytes_written: int
    peak_bytes: int
    digests_missing: int
    rates: Rates


def computed_keys(nodes: Iterable[Node]) -> list[str]:
    """The keys of everything among `nodes` that might be in the cache."""
    return [node.key for node in nodes if node.kind != "load" and node.key is not None]


def unkept_nodes(recipe: Recipe, compiled: Compiled) -> frozenset[int]:
    """The nodes that nothing is cached of: those that a step with ``cache: never`` was the first to need."""
    never = [step.name for step in recipe.steps if step.cache == "never" and step.name in compiled.results]
    return frozenset(node for name in never for node in compiled.results[name].nodes)


def make_plan(
    recipe: Recipe,
    compiled: Compiled,
    targets: Sequence[Target],
    known: Known,
    budget: Budget,
    is_native: Callable[[Program], bool] = lambda _: False,
    circumstances: Circumstances = NOMINALLY,
) -> Plan:
    """The plan that brings `targets` (the output tensors that are not there already) to their places.

    Args:
        known: tensors and statistics of the cache.
        is_native: whether the native library evaluates a program, which takes less memory.
        circumstances: what the rule of ``cache: auto`` is told of the machine, the room and later candidates.
    """
    graph = compiled.graph
    unkept = unkept_nodes(recipe, compiled)
    needed = needed_nodes(graph, (target.node for target in targets), known)  # what is kept is among them
    keeping = what_to_keep(recipe, compiled, targets, needed, known, unkept, circumstances, budget.threads)
    wanted = [*targets, *keeping.targets]
    before_tasks, after = tasks_before(graph, wanted, known, unkept)
    # A part of a view that is to be cached besides is in the cache by then.
    left = [target for target in wanted if target.place is not None or not is_known(graph[target.node], after)]
    tasks = form_tasks(graph, left, after, unkept)
    programs = [program for wave in (*before_tasks, tasks) for task in wave for program in task.programs]
    is_needed = frozenset(needed)
    natively = {id(program) for program in programs if is_native(program)}
    return Plan(
        recipe=recipe,
        compiled=compiled,
        steps=tuple(_step(name, recipe, compiled, is_needed, known, keeping) for name in compiled.results),
        outputs=tuple(_output(output, graph, targets, known) for output in compiled.outputs),
        tasks=tasks,
        before=before_tasks,
        budget=budget,
        bytes_read=sum(_bytes_read(program, budget, is_native=id(program) in natively) for program in programs),
        bytes_written=sum(_bytes(graph, target) for target in targets),
        cache_bytes_written=0 if known.cache_is_off else sum(_bytes_cached(program) for program in programs),
        peak_bytes=peak_bytes(programs, budget, lambda program: id(program) in natively),
        digests_missing=sum(1 for node in graph if node.kind == "load" and node.key is None),
        rates=keeping.rates,
    )


def _step(
    name: str,
    recipe: Recipe,
    compiled: Compiled,
    needed: frozenset[int],
    known: Known,
    keeping: Keeping,
) -> StepPlan:
    graph, result = compiled.graph, compiled.results[name]
    here = [graph[tensor.node] for tensor in result.tensors.values() if tensor.node in needed]
    computed = sum(1 for node in here if node.kind == "load" or not is_known(node, known))
    statistics = [graph[i] for i in result.nodes if i in needed and graph[i].kind == "statistic"]
    step = recipe.step(name)
    return StepPlan(
        name=name,
        method=step.merge_method,
        tensors=len(result.tensors),
        computed=computed,
        cached=len(here) - computed,
        statistics=len(statistics),
        statistics_known=sum(1 for node in statistics if is_known(node, known)),
        policy=step.cache,
        keeping=keeping.steps.get(name),
    )


def _output(output: CompiledOutput, graph: Graph, targets: Sequence[Target], known: Known) -> OutputPlan:
    mine = {target.name: target for target in targets if target.output == output.output.step}
    fates = {tensor.name: _fate(tensor, graph, tensor.name in mine, known) for tensor in output.tensors}
    written = sum(_bytes(graph, target) for target in mine.values())
    return OutputPlan(output.output.step, output.output.path, fates, written)


def _fate(tensor: OutputTensor, graph: Graph, is_wanted: bool, known: Known) -> Fate:
    if not is_wanted:
        return "kept"
    node = graph[tensor.node]
    if node.op == "cast" and not is_known(node, known):
        node = graph[node.inputs[0]]
    return "cached" if node.kind != "load" and is_known(node, known) else "computed"


def _bytes(graph: Graph, target: Target) -> int:
    node = graph[target.node]
    size = 1
    for length in node.shape:
        size *= length
    return size * node.dtype.itemsize if node.dtype else 0


def _bytes_cached(program: Program) -> int:
    """What a program writes to the cache; parts of views that may not stay there go elsewhere."""
    sinks = [sink for sink in program.sinks if sink.place is None]
    values = [program.instructions[sink.instruction] for sink in sinks if not sink.is_part]
    values += [it for sink in sinks if sink.is_part and (it := program.instructions[sink.instruction]).keep]
    return sum(program.size * value.dtype.itemsize for value in values if value.dtype)


def _bytes_read(program: Program, budget: Budget, *, is_native: bool) -> int:
    # The native evaluation retains no inputs.
    keeps = () if is_native else allocate(program, budget.share_bytes).keeps
    kept = {keep.instruction for keep in keeps}
    total = 0
    for i, passes in program.reads().items():
        times = 1 if i in kept else len(passes)
        total += times * _input_bytes(program, program.instructions[i])
    return total + sum(_bytes_gathered(program, sweep) for sweep in program.passes)


def _bytes_gathered(program: Program, sweep: Pass) -> int:
    """What the operations on whole tensors of a pass read from files."""
    inputs = [program.instructions[j] for i in sweep.whole for j in program.instructions[i].inputs]
    return sum(_input_bytes(program, it) for it in inputs if it.kind in READ)


def _input_bytes(program: Program, instruction: Instruction) -> int:
    """What reading an input once takes: of a view, all that it is made of."""
    if instruction.reading is not None:
        return sum(source.nbytes for source in instruction.sources())
    return program.size * instruction.dtype.itemsize if instruction.dtype else 0
