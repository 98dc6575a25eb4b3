"""Recipe + checkpoints -> graph: each step, tensor by tensor, lowered to operations.

Compiling reads headers only and never stops at the first mistake. What shows without a tensor is checked of every
step, whatever is wrong elsewhere: its method, its parameters, whether its inputs are weights or deltas. A step that
cannot be compiled is left out, steps that need it are left out silently, and everything that is wrong comes back in
one list.

Integer and boolean tensors (position ids, counters) are carried along unchanged by every method when they are
equal in all models, and are an error when they are not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, reduce

from mergeflow.dtypes import DType, by_name, promote
from mergeflow.errors import Position, Problem
from mergeflow.graph.check import (
    check_step,
    find_method,
    is_whole,
    operand_sources,
    out_of_bounds,
    path_of,
    result_type,
    step_path,
)
from mergeflow.graph.match import buffers_differ, is_buffer, misfits
from mergeflow.graph.nodes import Graph
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.values import Compiled, CompiledOutput, OutputTensor, Parameters, Result, Tensor
from mergeflow.methods.schema import Call, Method, Operand, Value, ValueType, _Required
from mergeflow.methods.schema import Parameter as Declared
from mergeflow.models.layout import Layout, infer_layout
from mergeflow.models.records import Checkpoint, TensorSource
from mergeflow.recipe.records import ModelReference, Output, Recipe, Source, Step
from mergeflow.recipe.resolve import resolve, unmatched_filters
from mergeflow.recipe.settings import SettingError


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


class _Stop(Exception):
    """A tensor cannot be lowered; its problem is recorded already."""


@dataclass
class _Fault:
    """What is wrong with a field of a step, and for which tensors."""

    message: str
    position: Position | None = None
    tensors: list[str] = field(default_factory=list)


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
    faults: dict[str, _Fault] = field(default_factory=dict)
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
        inputs = {source: result for source in step.sources() if (result := self.result(source)) is not None}
        if method is None or type_ is None or len(inputs) < len(step.sources()):
            return None
        differences = list(misfits(self.graph, inputs))
        self.problems += [self._problem(step, path_of(step, source), text) for source, text in differences]
        if differences or step.name in self.wrong:
            return None
        return self._merge(step, method, type_, inputs)

    def _type(self, step: Step, method: Method) -> ValueType | None:
        """Whether a step gives weights or a delta; None when its inputs do not fit, or are not known."""
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
                name: Tensor(self.graph.load(tensor), tensor.dtype) for name, tensor in checkpoint.tensors.items()
            }
            self.models[source] = Result(checkpoint.label, self._model_type(source), tensors, source)
        return self.models.get(source)

    def _model_type(self, model: ModelReference) -> ValueType:
        return "delta" if model in self.deltas else "weights"

    def output(self, output: Output) -> CompiledOutput | None:
        """One model to write, its tensors cast to the dtype they are stored in."""
        if self.types.get(output.step) == "delta":
            message = f"{output.step} is a delta, not a model: add it to a base (task_arithmetic does) to write it"
            path = f"outputs.{output.step}" if self.recipe.form == "native" else ""
            self.problems.append(Problem(message, output.position, path))
            return None
        result = self.results.get(output.step)
        if result is None:
            return None
        tensors = tuple(self._stored(name, tensor, output.dtype) for name, tensor in result.tensors.items())
        floats = {tensor.dtype.name for tensor in tensors if tensor.dtype.is_float}
        tokenizer = self.checkpoints.get(output.tokenizer) if isinstance(output.tokenizer, ModelReference) else None
        dtype = floats.pop() if len(floats) == 1 else None
        return CompiledOutput(output, self.checkpoints[result.donor], tokenizer, tensors, dtype)

    def _stored(self, name: str, tensor: Tensor, dtype: str | None) -> OutputTensor:
        node = self.graph[tensor.node]
        if node.dtype is not None and node.dtype.is_float:
            node = self.graph[self._cast(tensor.node, by_name(dtype) if dtype else tensor.stored)]
        assert node.dtype is not None  # an output is a tensor, never a statistic
        return OutputTensor(name, node.id, node.dtype, node.shape)

    def _cast(self, node: int, dtype: DType) -> int:
        return node if self.graph[node].dtype == dtype else self.graph.add("cast", [node], {"dtype": dtype.name})

    def _merge(self, step: Step, method: Method, type_: ValueType, inputs: Mapping[Source, Result]) -> Result | None:
        names = list(next(iter(inputs.values())).tensors)
        self.problems += unmatched_filters(step, names, step_path(step, self.recipe.form))
        layout = infer_layout(names)
        tensors: dict[str, Tensor] = {}
        parameters: dict[str, Parameters] = {}
        first = len(self.graph)
        for name in names:
            with suppress(_Stop):
                tensors[name], parameters[name] = self._tensor(step, method, inputs, name, layout)
        self._report_faults(step, len(names))
        donor = inputs[step.base if step.base is not None else step.inputs[0].source].donor
        nodes = range(first, len(self.graph))
        return Result(step.name, type_, tensors, donor, parameters, nodes) if len(tensors) == len(names) else None

    def _tensor(
        self, step: Step, method: Method, inputs: Mapping[Source, Result], name: str, layout: Layout
    ) -> tuple[Tensor, Parameters]:
        tensors = {source: result.tensors[name] for source, result in inputs.items()}
        nodes = [tensor.node for tensor in tensors.values()]
        if is_buffer(self.graph, nodes):
            return self._carry([(inputs[source].label, tensor.node) for source, tensor in tensors.items()], name)
        operands = operand_sources(step, method)
        parameters = self._parameters(step, method, operands, name, layout.gradient_position(name))
        has_base = method.base != "ignored" and step.base is not None
        call = Call(
            operands=tuple(
                Operand(tensors[source].node, inputs[source].type, own)
                for source, own in zip(operands, parameters.inputs, strict=True)
            ),
            base=tensors[step.base].node if has_base and step.base is not None else None,
            parameters=parameters.shared,
            shape=self.graph[nodes[0]].shape,
            seed=self.recipe.seed,
        )
        try:
            node = method.lower(call, self._emit)
        except ValueError as error:
            self._note("parameters", _Fault(str(error)), name)
            raise _Stop from None
        stored = reduce(promote, (tensor.stored for tensor in tensors.values()))
        for dtype in (step.dtype, step.out_dtype):
            if dtype:
                stored = by_name(dtype)
                node = self._cast(node, stored)
        return Tensor(node, stored), parameters

    def _emit(self, op: str, inputs: Sequence[int], **parameters: object) -> int:
        return self.graph.add(op, inputs, parameters)

    def _carry(self, nodes: Sequence[tuple[str, int]], name: str) -> tuple[Tensor, Parameters]:
        difference = buffers_differ(self.graph, nodes)
        if difference:
            self._note("models", _Fault(f"an integer tensor is carried along, not merged: {difference}"), name)
            raise _Stop
        _, node = nodes[0]
        dtype = self.graph[node].dtype
        assert dtype is not None  # a model's tensor, never a statistic
        return Tensor(node, dtype), Parameters({}, ())

    def _parameters(self, step: Step, method: Method, operands: Sequence[Source], name: str, t: float) -> Parameters:
        listed = {entry.source: index for index, entry in enumerate(step.inputs)}
        shared: dict[str, Value | None] = {}
        inputs: list[dict[str, Value | None]] = [{} for _ in operands]
        is_sound = True
        for declared in method.parameters:
            places: list[tuple[int | None, dict[str, Value | None]]] = [(None, shared)]
            if declared.scope != "shared":
                places = [(listed.get(source), own) for source, own in zip(operands, inputs, strict=True)]
            for index, values in places:
                value = self._value(step, declared, index, name, t)
                if isinstance(value, _Fault):
                    path = "parameters" if index is None else f"models[{index}].parameters"
                    self._note(f"{path}.{declared.name}", value, name)
                    is_sound = False
                else:
                    values[declared.name] = value
        if not is_sound:
            raise _Stop
        return Parameters(shared, tuple(inputs))

    def _value(self, step: Step, declared: Declared, index: int | None, name: str, t: float) -> Value | _Fault | None:
        try:
            value = resolve(step, index, declared.name, declared.kind, name, t)
        except SettingError as error:
            return _Fault(str(error), error.position)
        if value is None:
            return (
                declared.default if not isinstance(declared.default, _Required) else _Fault(_no_value(step, declared))
            )
        fault = out_of_bounds(declared, value)
        return value if fault is None else _Fault(fault)

    def _note(self, path: str, fault: _Fault, name: str) -> None:
        """Note what is wrong for one tensor; the first tensor's words stand for all."""
        self.faults.setdefault(path, fault).tensors.append(name)

    def _report_faults(self, step: Step, total: int) -> None:
        """One problem for each field that has faults, however many tensors have them."""
        for path, fault in self.faults.items():
            first, *more = fault.tensors
            which = f" (tensor {first}{f' and {len(more)} more' if more else ''})" if len(fault.tensors) < total else ""
            self.problems.append(self._problem(step, path, fault.message + which, fault.position))
        self.faults.clear()

    def _problem(self, step: Step, path: str, message: str, position: Position | None = None) -> Problem:
        return Problem(message, position or step.position(path), step_path(step, self.recipe.form, path))


def _no_value(step: Step, declared: Declared) -> str:
    return f"{step.merge_method} needs {declared.name!r} for every tensor: add a value without a filter"
