"""What a method costs, read off the program of its own example: nobody writes these figures by hand.

The example recipe of the method's row is compiled over models that exist as headers only, a few bfloat16 layers of
4096 x 4096 each, and lowered as any recipe is. What its program does to one matrix in the middle is the answer:

    example ── compile ── lower ── program ── passes, and the inputs that each of them reads
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow.dtypes import BFLOAT16
from mergeflow.graph.compile import compile_recipe
from mergeflow.graph.nodes import Graph
from mergeflow.graph.program import Program
from mergeflow.graph.tasks import Known, Target, form_tasks
from mergeflow.graph.values import Compiled
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import Method, Op, OpKind
from mergeflow.models.records import Checkpoint, FileIdentity, Segment, TensorSource
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import ModelReference, Recipe

SHAPE = (4096, 4096)
# The one in the middle is measured: there a gradient such as [0, 0.5, 1] is at none of its ends.
NAMES = tuple(f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3))
STEP = "example"
SKILL = "  math_skill: {task_vector: {model: ./models/math, base: ./models/base}}\n"


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What the example of a method does to one matrix; every input and the result are in bfloat16.

    Args:
        inputs: how many tensors it reads, the base's among them.
        passes: how often it sweeps over them; a statistic of all elements must be known before what depends on it.
        bytes_read: per byte of the result, when nothing is kept in memory between passes; else `inputs` are enough.
        passes_again: with its statistics in the cache, as they are when another parameter has changed.
        bytes_read_again: the same, per byte of the result.
        statistics: names of the operations that are statistics, and how many of each there are.
        unit: what a pass must have at once: a block of any elements, whole rows, or a whole tensor.
        random: whether it draws random numbers.
    """

    inputs: int
    passes: int
    bytes_read: float
    passes_again: int
    bytes_read_again: float
    statistics: tuple[tuple[str, int], ...]
    unit: OpKind
    random: bool


def method_cost(method: Method) -> MethodCost | None:
    """The cost of a method's example; None for a method without one, or with one that does not compile."""
    read = read_recipe("example.yaml", text=example_recipe(method), working_folder=Path("/"))
    recipe = replace(read, outputs=())  # a delta cannot be one
    models = _headers(recipe)
    named = [(f"{label}/{name}", model.tensors[name]) for label, model in models.items() for name in model.tensors]
    digests = {source: label for label, tensor in named for source in tensor.sources()}
    compiled = compile_recipe(recipe, models, digests)
    is_wrong = any(problem.severity == "error" for problem in (*recipe.problems, *compiled.problems))
    if not method.example or is_wrong or not compiled.results:
        return None

    graph = compiled.graph
    target = _stored(compiled)
    nodes = [graph[i] for i in graph.upstream([target.node])]
    statistics = [node for node in nodes if node.kind == "statistic"]
    first = _program(graph, target, Known())
    again = _program(graph, target, Known(records={str(node.key): {} for node in statistics}))
    return MethodCost(
        inputs=len(first.reads()),
        passes=len(first.passes),
        bytes_read=_bytes_read(first),
        passes_again=len(again.passes),
        bytes_read_again=_bytes_read(again),
        statistics=tuple(sorted(Counter(node.op for node in statistics).items())),
        unit=_unit(OPS[node.op] for node in nodes if node.op in OPS),
        random=any(OPS[node.op].random for node in nodes if node.op in OPS),
    )


def example_recipe(method: Method) -> str:
    """A method's example as a whole native recipe; as it is, when it is a whole recipe already.

    An example of a delta may use the step ``math_skill``, as every recipe of the documentation does.
    """
    if method.example.startswith("mergeflow:"):
        return method.example
    body = "".join(f"    {line}\n" for line in method.example.strip().splitlines())
    return f"mergeflow: 1\nsteps:\n{SKILL}  {STEP}:\n{body}"


def _headers(recipe: Recipe) -> dict[ModelReference, Checkpoint]:
    """A checkpoint that is not on any disk for each model that a recipe names."""
    sources = [source for step in recipe.steps for source in step.sources()]
    return {source: _checkpoint(source) for source in sources if isinstance(source, ModelReference)}


def _checkpoint(reference: ModelReference) -> Checkpoint:
    file = FileIdentity(str(reference), 0, 0, 0, 0)
    nbytes = SHAPE[0] * SHAPE[1] * BFLOAT16.itemsize
    tensors = {name: TensorSource(name, BFLOAT16, SHAPE, (Segment(file, 0, nbytes),)) for name in NAMES}
    return Checkpoint(str(reference), None, tensors)


def _stored(compiled: Compiled) -> Target:
    """The middle tensor of the example's last step, rounded to bfloat16 as an output would be."""
    *_, last = compiled.results.values()
    node = last.tensors[NAMES[1]].node
    if compiled.graph[node].dtype != BFLOAT16:
        node = compiled.graph.add("cast", [node], {"dtype": BFLOAT16.name})
    return Target(node, NAMES[1], STEP, None)


def _program(graph: Graph, target: Target, known: Known) -> Program:
    (task,) = form_tasks(graph, [target], known)
    (program,) = task.programs
    return program


def _bytes_read(program: Program) -> float:
    """Bytes read per byte of the result; inputs and result have the same dtype."""
    return float(sum(len(passes) for passes in program.reads().values()))


def _unit(ops: Iterable[Op]) -> OpKind:
    kinds = {op.kind for op in ops}
    if "whole" in kinds:
        return "whole"
    return "rowwise" if "rowwise" in kinds else "pointwise"
