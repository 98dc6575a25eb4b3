"""Recipe + checkpoints -> graph: each step, tensor by tensor, lowered to operations.

Compiling reads headers only and never stops at the first mistake: a step that cannot be compiled is left out,
steps that need it are left out silently, and everything that is wrong comes back in one list.

Integer and boolean tensors (position ids, counters) are carried along unchanged by every method when they are
equal in all models, and are an error when they are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NoReturn

from mergeflow.dtypes import DType, by_name, promote
from mergeflow.errors import Problem
from mergeflow.graph.check import check_step, find_method, operand_sources, result_type
from mergeflow.graph.match import buffers_differ, is_buffer, names_that_differ, shapes_that_differ
from mergeflow.graph.nodes import Graph
from mergeflow.graph.order import steps_in_order
from mergeflow.graph.values import Compiled, CompiledOutput, OutputTensor, Parameters, Result, Tensor
from mergeflow.methods.schema import Call, Method, Operand, Value, _Required
from mergeflow.methods.schema import Parameter as Declared
from mergeflow.models.layout import Layout, infer_layout
from mergeflow.models.records import Checkpoint, TensorSource
from mergeflow.recipe.records import Input, ModelReference, Output, Recipe, Source, Step
from mergeflow.recipe.resolve import resolve, unmatched_filters
from mergeflow.recipe.settings import SettingError


def compile_recipe(
    recipe: Recipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    digests: Mapping[TensorSource, str] | None = None,
) -> Compiled:
    """The graph of a recipe, and every problem that shows from headers (and from digests, where known).

    Args:
        checkpoints: the opened models; steps that use one that is not here are left out.
        digests: content digests of tensors; without them nodes have no keys.
    """
    work = _Compilation(recipe, checkpoints, Graph(digests or {}))
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
class _Compilation:
    """The state of one compilation: what has been made of the recipe so far."""

    recipe: Recipe
    checkpoints: Mapping[ModelReference, Checkpoint]
    graph: Graph
    results: dict[str, Result] = field(default_factory=dict)
    models: dict[ModelReference, Result] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def step(self, step: Step) -> Result | None:
        """The result of one step; None when it (or what it needs) has errors."""
        method = find_method(step)
        if isinstance(method, Problem):
            self.problems.append(method)
            return None
        found = list(check_step(step, method, self.recipe.form))
        self.problems += found
        inputs = {source: result for source in step.sources() if (result := self.result(source)) is not None}
        if len(inputs) < len(step.sources()) or any(p.severity == "error" for p in found):
            return None
        return self._merge(step, method, inputs)

    def result(self, source: Source) -> Result | None:
        """What a source stands for: a step's result, or a checkpoint as it is."""
        if not isinstance(source, ModelReference):
            return self.results.get(source.name)
        if source not in self.models and source in self.checkpoints:
            checkpoint = self.checkpoints[source]
            tensors = {
                name: Tensor(self.graph.load(tensor), tensor.dtype) for name, tensor in checkpoint.tensors.items()
            }
            self.models[source] = Result(checkpoint.label, "weights", tensors, source)
        return self.models.get(source)

    def output(self, output: Output) -> CompiledOutput | None:
        """One model to write, its tensors cast to the dtype they are stored in."""
        result = self.results.get(output.step)
        if result is None:
            return None
        if result.type == "delta":
            message = f"{output.step} is a delta, not a model: add it to a base (task_arithmetic does) to write it"
            self.problems.append(Problem(message, output.position, f"outputs.{output.step}"))
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

    def _merge(self, step: Step, method: Method, inputs: Mapping[Source, Result]) -> Result | None:
        results = list(inputs.values())
        type_ = result_type(step, method, {source: result.type for source, result in inputs.items()})
        if isinstance(type_, Problem):
            self.problems.append(type_)
            return None
        misfits = [*names_that_differ(results), *shapes_that_differ(self.graph, results)]
        if misfits:
            self.problems += [_problem(step, "models", misfit) for misfit in misfits]
            return None
        names = list(results[0].tensors)
        self.problems += unmatched_filters(step, names)
        layout = infer_layout(names)
        tensors: dict[str, Tensor] = {}
        parameters: dict[str, Parameters] = {}
        failed = False
        first = len(self.graph)
        for name in names:
            try:
                tensors[name], parameters[name] = self._tensor(step, method, inputs, name, layout)
            except _Stop:
                failed = True
        donor = inputs[step.base if step.base is not None else step.inputs[0].source].donor
        nodes = range(first, len(self.graph))
        return None if failed else Result(step.name, type_, tensors, donor, parameters, nodes)

    def _tensor(
        self, step: Step, method: Method, inputs: Mapping[Source, Result], name: str, layout: Layout
    ) -> tuple[Tensor, Parameters]:
        tensors = {source: result.tensors[name] for source, result in inputs.items()}
        nodes = [tensor.node for tensor in tensors.values()]
        if is_buffer(self.graph, nodes):
            return self._carry(step, {inputs[source].label: t.node for source, t in tensors.items()}, name)
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
            size=math.prod(self.graph[nodes[0]].shape),
        )
        try:
            node = method.lower(call, self._emit)
        except ValueError as error:
            self._fail(_problem(step, "parameters", f"{error} (tensor {name})"))
        stored = reduce(promote, (tensor.stored for tensor in tensors.values()))
        for dtype in (step.dtype, step.out_dtype):
            if dtype:
                stored = by_name(dtype)
                node = self._cast(node, stored)
        return Tensor(node, stored), parameters

    def _emit(self, op: str, inputs: Sequence[int], **parameters: object) -> int:
        return self.graph.add(op, inputs, parameters)

    def _carry(self, step: Step, nodes: Mapping[str, int], name: str) -> tuple[Tensor, Parameters]:
        difference = buffers_differ(self.graph, nodes)
        if difference:
            message = f"{name} holds integers and cannot be merged, only carried along, but {difference}"
            self._fail(_problem(step, "models", message))
        node = next(iter(nodes.values()))
        dtype = self.graph[node].dtype
        assert dtype is not None  # a model's tensor, never a statistic
        return Tensor(node, dtype), Parameters({}, ())

    def _parameters(self, step: Step, method: Method, operands: Sequence[Source], name: str, t: float) -> Parameters:
        listed = {entry.source: index for index, entry in enumerate(step.inputs)}
        shared: dict[str, Value | None] = {}
        inputs: list[dict[str, Value | None]] = [{} for _ in operands]
        for declared in method.parameters:
            if declared.scope == "shared":
                shared[declared.name] = self._value(step, declared, None, name, t)
                continue
            for source, own in zip(operands, inputs, strict=True):
                own[declared.name] = self._value(step, declared, listed.get(source), name, t)
        return Parameters(shared, tuple(inputs))

    def _value(self, step: Step, declared: Declared, index: int | None, name: str, t: float) -> Value | None:
        entry: Input | None = step.inputs[index] if index is not None else None
        path = "parameters" if entry is None else f"models[{index}].parameters"
        try:
            value = resolve(step, index, declared.name, declared.kind, name, t)
        except SettingError as error:
            self._fail(Problem(str(error), error.position, f"steps.{step.name}.{path}.{declared.name}"))
        if value is None:
            if isinstance(declared.default, _Required):
                owner = f"model {entry.source}" if entry else f"step {step.name}"
                message = f"{step.merge_method} needs the parameter {declared.name!r} for {owner}, and nothing sets it"
                if _is_set_somewhere(step, index, declared.name):
                    message += f" for tensor {name}: no filter matches it; add an entry without a filter"
                self._fail(_problem(step, path, message))
            return declared.default
        fault = _out_of_bounds(declared, value)
        if fault:
            self._fail(_problem(step, f"{path}.{declared.name}", fault))
        return value

    def _fail(self, problem: Problem) -> NoReturn:
        self.problems.append(problem)
        raise _Stop


def _is_set_somewhere(step: Step, index: int | None, name: str) -> bool:
    return name in step.parameters or (index is not None and name in step.inputs[index].parameters)


def _out_of_bounds(declared: Declared, value: Value) -> str | None:
    """Why a resolved value is not allowed; None when it is."""
    if isinstance(value, str | bool):
        return None
    if not math.isfinite(value):
        return f"{declared.name} must be a finite number, not {value}"
    low, high = declared.minimum, declared.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"between {low:g} and {high:g}" if low is not None and high is not None else ""
        bounds = bounds or (f"at least {low:g}" if low is not None else f"at most {high:g}")
        return f"{declared.name} must be {bounds}, not {value:g}"
    return None


def _problem(step: Step, path: str, message: str) -> Problem:
    return Problem(message, step.position(path), f"steps.{step.name}.{path}")
