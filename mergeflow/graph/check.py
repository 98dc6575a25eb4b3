"""Is a step something its method can do? Every mistake that shows without looking at a tensor.

A native recipe is strict: a parameter its method does not have is an error. A mergekit file must run as it runs
there, where such a parameter is ignored in silence: here it is a warning. For the same reason a value behind a filter
is looked at here in a native recipe only; in a mergekit file it counts when a tensor asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from mergeflow.errors import Position, Problem, Severity
from mergeflow.methods import registry
from mergeflow.methods.schema import Method, Parameter, Value, ValueType, _Required
from mergeflow.recipe.fields import OPERATIONS
from mergeflow.recipe.nearest import did_you_mean, nearest
from mergeflow.recipe.nodes import join
from mergeflow.recipe.records import Branch, Form, Parameters, Setting, Source, Step
from mergeflow.recipe.settings import convert


def step_path(step: Step, form: Form, path: str = "") -> str:
    """The path of a step's field in the file. The one step of a mergekit file is the file."""
    path = _as_written(step, path)
    return path if form == "mergekit" else join(f"steps.{step.name}", path) if path else f"steps.{step.name}"


def _as_written(step: Step, path: str) -> str:
    """A merge's field under the name it has in a step that is one operation, such as ``sparsify.density``."""
    name = step.merge_method
    if name not in OPERATIONS or name not in step.positions:
        return path
    names = {"parameters": name, "models[0].model": f"{name}.{next(iter(OPERATIONS[name].sources))}"}
    names |= {"base_model": f"{name}.base", "merge_method": name}
    head, dot, rest = path.partition(".")
    return names.get(path) or names.get(head, head) + dot + rest


def find_method(step: Step, form: Form) -> Method | Problem:
    """The method of a step, or what is wrong with its name."""
    try:
        method = registry.find_method(step.merge_method)
    except ValueError as error:
        return _problem(step, form, "merge_method", str(error))
    if method is not None:
        return method
    hint = did_you_mean(step.merge_method, registry.method_names(), "methods")
    return _problem(step, form, "merge_method", f"there is no merge method {step.merge_method!r}{hint}")


def check_step(step: Step, method: Method, form: Form, unread: Collection[str] = ()) -> Iterator[Problem]:
    """Problems of a step's parameters and of the number of its inputs.

    Args:
        unread: paths of fields that could not be read and were reported: nothing more is said of them.
    """
    yield from _check_inputs(step, method, form)
    yield from _check_required(step, method, form, unread)
    yield from _check_parameters(step, method, form, "parameters", step.parameters)
    for index, entry in enumerate(step.inputs):
        path = f"models[{index}].parameters"
        yield from _check_parameters(step, method, form, path, entry.parameters)
        yield from _check_scopes(step, method, form, path, entry.parameters)


def is_whole(step: Step, method: Method, form: Form, unread: Collection[str]) -> bool:
    """Whether everything that is written of a step could be read."""
    own = step_path(step, form)
    if any(not own or path.startswith(f"{own}.") for path in unread):
        return False
    places = [_places(step, index) for index in range(len(step.inputs))]
    return all(
        declared.name in parameters or f"{path}.{declared.name}" not in step.positions
        for place in places
        for path, parameters in place.items()
        for declared in method.parameters
    )


def out_of_bounds(declared: Parameter, value: Value) -> str | None:
    """Why a parameter may not have a value of its own type; None when it may."""
    if isinstance(value, str) and declared.choices and value not in declared.choices:
        return f"{declared.name} must be one of {', '.join(declared.choices)}{_meant(declared, value)}"
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


def _meant(declared: Parameter, value: str) -> str:
    guess = nearest(value, declared.choices)
    return f", not {value!r}" + (f"; did you mean {guess!r}?" if guess else "")


def operand_sources(step: Step, method: Method) -> tuple[Source, ...]:
    """The sources a method is applied to, in listed order.

    A method with a base of its own does not count it among its operands. A method that ignores the idea of a base
    takes a configured one as an ordinary input, appended when it is not listed (as mergekit does).
    """
    if method.base == "ignored":
        return step.sources()
    return tuple(entry.source for entry in step.inputs if entry.source != step.base)


def result_type(step: Step, method: Method, form: Form, types: Mapping[Source, ValueType]) -> ValueType | Problem:
    """Whether a step gives weights or a delta, or why its inputs do not fit its method."""
    is_based = method.base == "optional" and step.base is not None
    gives = "weights" if is_based and method.gives == "same" else method.gives
    if step.base is not None and gives not in ("same", "mixed") and types[step.base] != "weights":
        message = f"{step.base} is a delta; the base of {method.name} must be weights"
        return _problem(step, form, "base_model", message)
    operands = operand_sources(step, method)
    for source in operands:
        if types[source] not in method.takes:
            message = f"{source} is {_a(types[source])}; {method.name} takes {method.takes[0]}"
            return _problem(step, form, path_of(step, source), message)
    if gives == "mixed":
        return "weights" if any(types[source] == "weights" for source in operands) else "delta"
    if gives != "same":
        return gives
    given = [*operands, *([step.base] if step.base else [])]
    first = given[-1]
    for source in operands:
        if types[source] != types[first]:
            mix = f"{source} is {_a(types[source])}, {first} is {_a(types[first])}"
            message = f"{method.name} cannot mix weights and deltas: {mix}"
            return _problem(step, form, path_of(step, source), message)
    return types[first]


def path_of(step: Step, source: Source) -> str:
    """The field of a step that names a source."""
    places: Sequence[int] = [i for i, entry in enumerate(step.inputs) if entry.source == source]
    return f"models[{places[0]}].model" if places else "base_model"


def _check_inputs(step: Step, method: Method, form: Form) -> Iterator[Problem]:
    seen: set[Source] = set()
    for index, entry in enumerate(step.inputs):
        if entry.source in seen:
            message = f"{entry.source} is listed twice; list each model once"
            yield _problem(step, form, f"models[{index}].model", message)
        seen.add(entry.source)
    if method.base == "required" and step.base is None:
        yield _problem(step, form, "merge_method", f"{method.name} needs a base_model")
    count = len(operand_sources(step, method))
    kind = "model" if method.base == "ignored" else "model besides its base"
    if count < method.minimum:
        yield _problem(step, form, "models", f"{method.name} needs {_count('at least', method.minimum, kind, count)}")
    elif method.maximum is not None and count > method.maximum:
        yield _problem(step, form, "models", f"{method.name} takes {_count('at most', method.maximum, kind, count)}")


def _count(bound: str, limit: int, kind: str, count: int) -> str:
    """Such as ``at least 2 models besides its base, not 1``."""
    return f"{bound} {limit} {kind if limit == 1 else kind.replace('model', 'models', 1)}, not {count}"


def _check_parameters(step: Step, method: Method, form: Form, path: str, parameters: Parameters) -> Iterator[Problem]:
    names = [parameter.name for parameter in method.parameters]
    for name, setting in parameters.items():
        declared = method.parameter(name)
        if declared is None:
            message = f"{method.name} has no parameter {name!r}{did_you_mean(name, names, 'parameters')}"
            yield _problem(step, form, f"{path}.{name}", message, _severity(form))
            continue
        for branch in setting.branches if form == "native" else _certain(declared, path, setting):
            fault = _wrong_value(declared, branch)
            if fault is not None:
                yield _problem(step, form, f"{path}.{name}", fault, position=branch.position)


def _certain(declared: Parameter, path: str, setting: Setting) -> Sequence[Branch]:
    """The value of a setting in a mergekit file that every tensor gets. (An empty list there is no value.)"""
    is_looked_at = declared.scope != "shared" or path == "parameters"
    first = setting.branches[0]
    return (first,) if is_looked_at and first.filter in (None, "*") and first.value != () else ()


def _check_required(step: Step, method: Method, form: Form, unread: Collection[str]) -> Iterator[Problem]:
    """A parameter without a default must be set for each input, or for the whole step."""
    listed = {entry.source: index for index, entry in enumerate(step.inputs)}
    for declared in method.parameters:
        if not isinstance(declared.default, _Required):
            continue
        sources = [None] if declared.scope == "shared" else operand_sources(step, method)
        for source in sources:
            index = None if source is None else listed.get(source)
            places = _places(step, index)
            is_set = any(declared.name in parameters for parameters in places.values())
            if is_set or any(_is_unread(step, form, path, declared.name, unread) for path in places):
                continue
            owner = f"step {step.name}" if source is None else f"model {source}"
            message = f"{method.name} needs the parameter {declared.name!r} for {owner}, and nothing sets it"
            yield _problem(step, form, f"{next(iter(places))}.{declared.name}", message)


def _places(step: Step, index: int | None) -> dict[str, Parameters]:
    """Where a parameter of an input (or, with None, of the whole step) may be set, by the path in the step."""
    own = {f"models[{index}].parameters": step.inputs[index].parameters} if index is not None else {}
    return own | {"parameters": step.parameters}


def _is_unread(step: Step, form: Form, path: str, name: str, unread: Collection[str]) -> bool:
    """Whether a parameter is written in a place that could not be read. (Settings have been looked for before.)"""
    return f"{path}.{name}" in step.positions or step_path(step, form, path) in unread


def _wrong_value(declared: Parameter, branch: Branch) -> str | None:
    """Why a parameter may not have this value; of a gradient, why it may not have its first wrong one.

    What lies between two values of a gradient is within every bound that both are in.
    """
    if branch.value == ():
        return "an empty list gives no value"
    for value in branch.value if isinstance(branch.value, tuple) else (branch.value,):
        try:
            fault = out_of_bounds(declared, convert(value, declared.kind))
        except ValueError as error:
            fault = str(error)
        if fault is not None:
            return fault
    return None


def _check_scopes(step: Step, method: Method, form: Form, path: str, parameters: Parameters) -> Iterator[Problem]:
    for name in parameters:
        parameter = method.parameter(name)
        if parameter is not None and parameter.scope == "shared":
            rule = "is one value for the whole step, and under a model nothing looks at it"
            message = f"{name!r} {rule}: move it to the step's parameters"
            yield _problem(step, form, f"{path}.{name}", message, _severity(form))


def _severity(form: Form) -> Severity:
    return "error" if form == "native" else "warning"


def _a(type_: ValueType) -> str:
    return "a delta" if type_ == "delta" else "weights"


def _problem(
    step: Step, form: Form, path: str, message: str, severity: Severity = "error", position: Position | None = None
) -> Problem:
    return Problem(message, position or step.position(path), step_path(step, form, path), severity)
