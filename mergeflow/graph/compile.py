"""Recipe + checkpoints -> graph: each step, tensor by tensor, lowered to operations.

Compiling reads headers only and never stops at the first mistake. What shows without a tensor is checked of every
step, whatever is wrong elsewhere: its method, its parameters, whether its inputs are weights or deltas. A step that
cannot be compiled is left out, steps that need it are left out silently, and everything that is wrong comes back in
one list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from mergeflow.dtypes import by_name, compute_dtype
from mergeflow.errors import Problem, some
from mergeflow.graph.arrange import arrange
from mergeflow.graph.check import Finding, check_step, find_method, is_whole, result_type, step_problem
from mergeflow.graph.ingredients import parts_of
from mergeflow.graph.lowering import lower_step
from mergeflow.graph.match import misfits, shapes_that_differ
from mergeflow.graph.nodes import Graph
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.stacks import origins
from mergeflow.graph.stock import stock_of
from mergeflow.graph.values import Compiled, CompiledOutput, OutputTensor, Result, Tensor
from mergeflow.graph.vocabulary import one_vocabulary, tokenizer_misfit
from mergeflow.methods.schema import Method, ValueType
from mergeflow.models.layout import infer_layout
from mergeflow.models.records import Checkpoint, TensorSource
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import ModelReference, Output, Recipe, Source, Step


def compile_recipe(
    recipe: Recipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    digests: Mapping[TensorSource, str] | None = None,
    *,
    deltas: Collection[ModelReference] = (),
) -> Compiled:
    """The graph of a recipe, and every problem that shows from headers (and from digests, where known).

    Args:
        checkpoints: the opened models; steps that use one that is not here are left out.
        digests: content digests of tensors; without them nodes have no keys.
        deltas: those of the models that are differences to a base; all others are weights.
    """
    work = _Compilation(recipe, checkpoints, Graph(digests or {}), frozenset(deltas))
    for step in recipe.steps:
        work.check(step)
    for step in steps_in_order(recipe.steps):
        result = work.step(step)
        if result is not None:
            work.results[step.name] = result
    outputs = [made for output in recipe.outputs if (made := work.output(output)) is not None]
    problems = tuple(dict.fromkeys(work.problems))
    return Compiled(work.graph, work.results, tuple(outputs), problems, checkpoints)


@dataclass
class _Compilation:
    """The state of one compilation: what has been made of the recipe so far."""

    recipe: Recipe
    checkpoints: Mapping[ModelReference, Checkpoint]
    graph: Graph
    deltas: frozenset[ModelReference] = frozenset()
    methods: dict[str, Method] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    types: dict[str, ValueType] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    models: dict[ModelReference, Result] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def unread(self) -> frozenset[str]:
        """The paths of what the recipe's reader could not read, and has reported."""
        return frozenset(problem.path for problem in self.recipe.problems if problem.severity == "error")

    def check(self, step: Step) -> None:
        """Note a step's method, and whether something is wrong with it or with its parameters."""
        form = self.recipe.form
        method = find_method(step, form)
        if isinstance(method, Problem):
            self.problems.append(method)
            return
        self.methods[step.name] = method
        found = list(check_step(step, method, form, self.unread))
        self.problems += found
        if any(problem.severity == "error" for problem in found) or not is_whole(step, method, form, self.unread):
            self.wrong.add(step.name)

    def step(self, step: Step) -> Result | None:
        """The result of one step; None when it (or what it needs) has errors."""
        method = self.methods.get(step.name)
        type_ = self._type(step, method) if method is not None else None
        named = {source: self.result(source) for source, _ in named_sources(step)}
        if method is None or type_ is None or None in named.values() or step.name in self.wrong:
            return None
        inputs = {source: result for source in step.sources() if (result := named[source]) is not None}
        if step.is_adapter:
            return self._adapter(step, inputs)
        words = one_vocabulary(self.graph, step, inputs, self.result, self.checkpoints)
        self._report(step, words.doubts)
        made = None if words.fails else self._merge(step, method, type_, words.inputs)
        return None if made is None else words.onto(made)

    def _type(self, step: Step, method: Method) -> ValueType | None:
        """Whether a step gives weights or a delta; None when its inputs do not fit, or are not known."""
        if step.is_adapter:
            self.types[step.name] = "delta"
            return "delta"
        types: dict[Source, ValueType] = {}
        for source in step.sources():
            if isinstance(source, ModelReference):
                type_: ValueType | None = self._model_type(source)
            else:
                type_ = self.types.get(source.name)
            if type_ is None:
                return None
            types[source] = type_
        found = result_type(step, method, self.recipe.form, types)
        if isinstance(found, Problem):
            self.problems.append(found)
            return None
        self.types[step.name] = found
        return found

    def result(self, source: Source) -> Result | None:
        """What a source stands for: a step's result, or a checkpoint as it is."""
        if not isinstance(source, ModelReference):
            return self.results.get(source.name)
        if source not in self.models and source in self.checkpoints:
            checkpoint = self.checkpoints[source]
            tensors = {
                name: Tensor(self.graph.load(tensor), tensor.stored) for name, tensor in checkpoint.tensors.items()
            }
            self.models[source] = Result(checkpoint.label, self._model_type(source), tensors, source)
        return self.models.get(source)

    def _model_type(self, model: ModelReference) -> ValueType:
        opened = self.checkpoints.get(model)
        is_delta = model in self.deltas or model.is_adapter or (opened is not None and opened.is_delta)
        return "delta" if is_delta else "weights"

    def output(self, output: Output) -> CompiledOutput | None:
        """One model to write, its tensors cast to the dtype they are stored in."""
        type_ = self.types.get(output.step, "weights")
        if type_ == "delta" and output.delta is None:
            message = f"{output.step} is a delta, not a model: add it to a base (task_arithmetic does) to write it"
            path = f"outputs.{output.step}" if self.recipe.form == "native" else ""
            self.problems.append(Problem(message, output.position, path))
            return None
        result = self.results.get(output.step)
        if result is None:
            return None
        tensors = tuple(self._stored(name, tensor, output, type_) for name, tensor in result.tensors.items())
        floats = {tensor.dtype.name for tensor in tensors if tensor.dtype.is_float}
        tokenizer = self.checkpoints.get(output.tokenizer) if isinstance(output.tokenizer, ModelReference) else None
        dtype = floats.pop() if len(floats) == 1 else None
        if tokenizer is not None and (fault := tokenizer_misfit(tokenizer, tensors)) is not None:
            path = f"outputs.{output.step}.tokenizer"
            self.problems.append(Problem(fault, output.position, path))
        donor, vocabulary = self.checkpoints[result.donor], result.vocabulary if tokenizer is None else None
        return CompiledOutput(
            output, donor, tokenizer, tensors, dtype, result.stacks, vocabulary, result.chat_template, type_
        )

    def _stored(self, name: str, tensor: Tensor, output: Output, type_: ValueType) -> OutputTensor:
        node = self.graph[tensor.node]
        if node.dtype is not None and node.dtype.is_float:
            stored = by_name(output.dtype) if output.dtype else tensor.stored
            if type_ == "delta" and not output.dtype and not self._states_a_dtype(output.step):
                stored = compute_dtype(node.dtype)  # a difference of two bfloat16 numbers has more digits
            node = self.graph[self.graph.cast(tensor.node, stored)]
        assert node.dtype is not None  # an output is a tensor, never a statistic
        return OutputTensor(name, node.id, node.dtype, node.shape)

    def _states_a_dtype(self, step: str) -> bool:
        return any(it.dtype or it.out_dtype for it in self.recipe.steps if it.name == step)

    def _adapter(self, step: Step, inputs: Mapping[Source, Result]) -> Result | None:
        """An adapter alone: a delta as it is. A base that is a step must have the tensors that it names."""
        alone = inputs[step.inputs[0].source]
        base = inputs[step.base].tensors if step.base is not None else alone.tensors
        strange = [name for name in alone.tensors if name not in base]
        if strange:
            message = f"the adapter changes {some(strange)}, which {step.base} has not"
            self._report(step, [Finding("models[0].model", message)])
            return None
        return replace(alone, label=step.name)

    def _merge(self, step: Step, method: Method, type_: ValueType, inputs: Mapping[Source, Result]) -> Result | None:
        """The result of a step over its inputs; None when they do not fit, with the reason among the problems."""
        parts, donor = parts_of(step), step.base or step.sources()[0]
        stocks = {source: stock_of(self.graph, it, self._config(it.donor)) for source, it in inputs.items()}
        differences = [it for part in parts for them in part.ingredients for it in misfits(them, stocks)]
        self._report(step, differences)
        if differences:
            return None
        arrangement = arrange(parts, stocks, donor)
        self._report(step, arrangement.findings)
        odd = list(shapes_that_differ(arrangement.entries, stocks))
        self._report(step, odd)
        if odd or any(it.severity == "error" for it in arrangement.findings):
            return None
        first = len(self.graph)
        form, seed = self.recipe.form, self.recipe.seed
        made = lower_step(self.graph, step, method, type_, arrangement, inputs, seed, form)
        self.problems += made.problems
        if any(problem.severity == "error" for problem in made.problems):
            return None
        nodes, model = range(first, len(self.graph)), inputs[donor].donor
        stacks = origins(arrangement.stacks, inputs, self._layer_counts(model), model)
        return Result(step.name, type_, made.tensors, model, made.parameters, nodes, stacks)

    def _config(self, model: ModelReference) -> Mapping[str, object]:
        return self.checkpoints[model].config if model in self.checkpoints else {}

    def _layer_counts(self, model: ModelReference) -> Mapping[str, int]:
        return infer_layout(self.checkpoints[model].tensors).stacks if model in self.checkpoints else {}

    def _report(self, step: Step, findings: Iterable[Finding]) -> None:
        form = self.recipe.form
        self.problems += [step_problem(step, form, it.path, it.message, it.severity) for it in findings]
