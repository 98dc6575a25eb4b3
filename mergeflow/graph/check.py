"""Is a step something its method can do? Every mistake that shows without looking at a tensor.

A native recipe is strict: a parameter its method does not have is an error. A mergekit file must run as it runs
there, where such a parameter is ignored in silence: here it is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergeflow.errors import Problem, Severity
from mergeflow.methods.schema import Method, ValueType
from mergeflow.methods.table import METHODS
from mergeflow.recipe.nearest import did_you_mean
from mergeflow.recipe.records import Form, Parameters, Source, Step


def find_method(step: Step) -> Method | Problem:
    """The method of a step, or what is wrong with its name."""
    method = METHODS.get(step.merge_method)
    if method is not None:
        return method
    hint = did_you_mean(step.merge_method, METHODS, "methods")
    return _problem(step, "merge_method", f"there is no merge method {step.merge_method!r}{hint}")


def check_step(step: Step, method: Method, form: Form) -> Iterator[Problem]:
    """Problems of a step's parameters and of the number of its inputs."""
    yield from _check_inputs(step, method)
    yield from _check_parameters(step, method, form, "parameters", step.parameters)
    for index, entry in enumerate(step.inputs):
        path = f"models[{index}].parameters"
        yield from _check_parameters(step, method, form, path, entry.parameters)
        yield from _check_scopes(step, method, form, path, entry.parameters)


def operand_sources(step: Step, method: Method) -> tuple[Source, ...]:
    """The sources a method is applied to, in listed order.

    A method with a base of its own does not count it among its operands. A method that ignores the idea of a base
    takes a configured one as an ordinary input, appended when it is not listed (as mergekit does).
    """
    if method.base == "ignored":
        return step.sources()
    return tuple(entry.source for entry in step.inputs if entry.source != step.base)


def result_type(step: Step, method: Method, types: Mapping[Source, ValueType]) -> ValueType | Problem:
    """Whether a step gives weights or a delta, or why its inputs do not fit its method."""
    if step.base is not None and method.gives != "same" and types[step.base] != "weights":
        return _problem(step, "base_model", f"{step.base} is a delta; the base of {method.name} must be weights")
    operands = operand_sources(step, method)
    for source in operands:
        if types[source] not in method.takes:
            return _problem(
                step, _path_of(step, source), f"{source} is {_a(types[source])}; {method.name} takes {method.takes[0]}"
            )
    if method.gives != "same":
        return method.gives
    given = [types[source] for source in (*operands, *([step.base] if step.base else []))]
    if len(set(given)) > 1:
        odd = next(source for source in operands if types[source] != given[-1])
        return _problem(
            step, _path_of(step, odd), f"{method.name} cannot mix weights and deltas: {odd} is {_a(types[odd])}"
        )
    return given[0]


def _check_inputs(step: Step, method: Method) -> Iterator[Problem]:
    seen: set[Source] = set()
    for index, entry in enumerate(step.inputs):
        if entry.source in seen:
            yield _problem(step, f"models[{index}]", f"{entry.source} is listed twice; list each model once")
        seen.add(entry.source)
    if method.base == "required" and step.base is None:
        yield _problem(step, "merge_method", f"{method.name} needs a base_model")
    count = len(operand_sources(step, method))
    kind = "models" if method.base == "ignored" else "models besides its base"
    if count < method.minimum:
        yield _problem(step, "models", f"{method.name} needs at least {method.minimum} {kind}, not {count}")
    elif method.maximum is not None and count > method.maximum:
        yield _problem(step, "models", f"{method.name} takes at most {method.maximum} {kind}, not {count}")


def _check_parameters(step: Step, method: Method, form: Form, path: str, parameters: Parameters) -> Iterator[Problem]:
    names = [parameter.name for parameter in method.parameters]
    for name in parameters:
        if name not in names:
            message = f"{method.name} has no parameter {name!r}{did_you_mean(name, names, 'parameters')}"
            yield _problem(step, f"{path}.{name}", message, _severity(form))


def _check_scopes(step: Step, method: Method, form: Form, path: str, parameters: Parameters) -> Iterator[Problem]:
    for name in parameters:
        parameter = method.parameter(name)
        if parameter is not None and parameter.scope == "shared":
            rule = "is one value for the whole step, and under a model nothing looks at it"
            message = f"{name!r} {rule}: move it to the step's parameters"
            yield _problem(step, f"{path}.{name}", message, _severity(form))


def _severity(form: Form) -> Severity:
    return "error" if form == "native" else "warning"


def _path_of(step: Step, source: Source) -> str:
    places: Sequence[int] = [i for i, entry in enumerate(step.inputs) if entry.source == source]
    return f"models[{places[0]}]" if places else "base_model"


def _a(type_: ValueType) -> str:
    return "a delta" if type_ == "delta" else "weights"


def _problem(step: Step, path: str, message: str, severity: Severity = "error") -> Problem:
    return Problem(message, step.position(path), f"steps.{step.name}.{path}", severity)
