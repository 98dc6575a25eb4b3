"""Is a step something its method can do? Every mistake that shows without looking at a tensor.

A native recipe is strict: a parameter its method does not have is an error. A mergekit file must run as it runs
there, where such a parameter is ignored in silence: here it is a warning. For the same reason a value behind a filter
is looked at here in a native recipe only; in a mergekit file it counts when a tensor asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergeflow.errors import Position, Problem, Severity
from mergeflow.graph.ingredients import Ingredients, parts_of
from mergeflow.methods import registry
from mergeflow.methods.schema import Method, Parameter, Value, ValueType, _Required
from mergeflow.recipe.fields import OPERATIONS
from mergeflow.recipe.nearest import did_you_mean, nearest
from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import all_parameters, merged_sources
from mergeflow.recipe.records import Branch, Form, Parameters, Setting, Source, Step
from mergeflow.recipe.settings import convert


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong or doubtful about a step, and the field of the step that says so."""

    path: str
    message: str
    severity: Severity = "error"


def step_path(step: Step, form: Form, path: str = "") -> str:
    """The path of a step's field in the file. The step of a mergekit file of one document is the file."""
    prefix = step.path or ("" if form == "mergekit" else f"steps.{step.name}")
    written = _as_written(step, path)
    return join(prefix, written) if written else prefix


def _as_written(step: Step, path: str) -> str:
    """A merge's field under the name it has in a step that is one operation, such as ``sparsify.density``."""
    name = step.merge_method
    if name not in OPERATIONS or name not in step.positions:
        return path
    first = "adapter" if f"{name}.adapter" in step.positions else next(iter(OPERATIONS[name].sources))
    names = {"parameters": name, "models[0].model": f"{name}.{first}"}
    names |= {"base_model": f"{name}.base", "merge_method": name}
    head, dot, rest = path.partition(".")
    return names.get(path) or names.get(head, head) + dot + rest


def step_problem(
    step: Step, form: Form, path: str, message: str, severity: Severity = "error", position: Position | None = None
) -> Problem:
    """Something wrong or doubtful at a field of a step (or, when that is given, at a `position` inside it)."""
    return Problem(message, position or step.position(path), step_path(step, form, path), severity)


def find_method(step: Step, form: Form) -> Method | Problem:
    """The method of a step, or what is wrong with its name."""
    try:
        method = registry.find_method(step.merge_method)
    except ValueError as error:
        return step_problem(step, form, "merge_method", str(error))
    if method is not None:
        return method
    hint = did_you_mean(step.merge_method, registry.method_names(), "methods")
    return step_problem(step, form, "merge_method", f"there is no merge method {step.merge_method!r}{hint}")


def check_step(step: Step, method: Method, form: Form, unread: Collection[str] = ()) -> Iterator[Problem]:
    """Problems of a step's parameters and of the number of its inputs.

    Args:
        unread: paths of fields that could not be read and were reported: nothing more is said of them.
    """
    for part in parts_of(step):
        for ingredients in part.ingredients:
            yield from _check_inputs(step, method, form, ingredients)
            yield from _check_required(step, method, form, ingredients, unread)
    own = _own_paths(step)
    for parameters, path in sorted(all_parameters(step), key=lambda place: place[1] != "parameters"):
        is_own = path in own
        yield from _check_parameters(step, method, form, path, parameters, is_own)
        if is_own:
            yield from _check_scopes(step, method, form, path, parameters)


def without_effect(step: Step, method: Method) -> Iterator[str]:
    """The parameters of a step that its method never looks up where they stand, as paths in the step."""
    own = _own_paths(step)
    for parameters, path in all_parameters(step):
        for name in parameters:
            declared = method.parameter(name)
            if declared is None or (declared.scope == "shared" and path in own):
                yield f"{path}.{name}"


def _own_paths(step: Step) -> set[str]:
    """Where the parameters of single inputs stand."""
    return {path for part in parts_of(step) for ingredients in part.ingredients for path in ingredients.own_paths()}


def is_whole(step: Step, method: Method, form: Form, unread: Collection[str]) -> bool:
    """Whether everything that is written of a step could be read."""
    own = step_path(step, form)
    if any(not own or path.startswith(f"{own}.") for path in unread):
        return False
    return all(
        declared.name in parameters or f"{path}.{declared.name}" not in step.positions
        for parameters, path in all_parameters(step)
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


def result_type(step: Step, method: Method, form: Form, types: Mapping[Source, ValueType]) -> ValueType | Problem:
    """Whether a step gives weights or a delta, or why its inputs do not fit its method (or each other)."""
    found: dict[str, ValueType] = {}
    for part in parts_of(step):
        for ingredients in part.ingredients:
            type_ = _result_type(step, method, form, types, ingredients)
            if isinstance(type_, Problem):
                return type_
            found[ingredients.path] = type_
    path, first = next(iter(found.items()))
    for other, type_ in found.items():
        if type_ != first:
            return step_problem(
                step, form, other, f"{other} give {_a(type_)}, {path} {_a(first)}: they are parts of one model"
            )
    return first


def _result_type(
    step: Step, method: Method, form: Form, types: Mapping[Source, ValueType], ingredients: Ingredients
) -> ValueType | Problem:
    base = ingredients.base
    is_based = method.base == "optional" and base is not None
    gives = "weights" if is_based and method.gives == "same" else method.gives
    if base is not None and gives not in ("same", "mixed") and types[base] != "weights":
        message = f"{base} is a delta; the base of {method.name} must be weights"
        return step_problem(step, form, path_of(step, base, ingredients), message)
    operands = [ingredients.inputs[index] for index in ingredients.operands(method)]
    for entry in operands:
        if types[entry.source] not in method.takes:
            message = f"{entry.source} is {_a(types[entry.source])}; {method.name} takes {method.takes[0]}"
            return step_problem(step, form, entry.path, message)
    if gives == "mixed":
        return "weights" if any(types[entry.source] == "weights" for entry in operands) else "delta"
    if gives != "same":
        return gives
    own_base = ingredients.based(method)
    first = own_base if own_base is not None else operands[-1].source
    for entry in operands:
        if types[entry.source] != types[first]:
            mix = f"{entry.source} is {_a(types[entry.source])}, {first} is {_a(types[first])}"
            message = f"{method.name} cannot mix weights and deltas: {mix}"
            return step_problem(step, form, entry.path, message)
    return types[first]


def path_of(step: Step, source: Source, ingredients: Ingredients | None = None) -> str:
    """The field of a step (of one of its lists, when that is given) that names a source."""
    place = ingredients.place_of(source) if ingredients is not None else None
    if ingredients is not None and place is not None:
        return ingredients.inputs[place].path
    return next((path for named, path in merged_sources(step) if named == source), "base_model")


def _check_inputs(step: Step, method: Method, form: Form, ingredients: Ingredients) -> Iterator[Problem]:
    seen: set[Source] = set()
    for entry in ingredients.inputs:
        if entry.source in seen:
            yield step_problem(step, form, entry.path, f"{entry.source} is listed twice; list each model once")
        seen.add(entry.source)
    base = ingredients.based(method)
    if method.base == "required" and base is None and not step.is_adapter:
        yield step_problem(step, form, "merge_method", f"{method.name} needs a base_model")
    if base is not None and base not in seen:
        message = f"{method.name} needs the layers of its base, {base}, among the sources of this slice"
        yield step_problem(step, form, ingredients.path, message)
    count = len(ingredients.operands(method))
    kind = "model" if method.base == "ignored" else "model besides its base"
    path = ingredients.path
    if count == 0 and base is not None and method.adds_to_its_base and form == "mergekit":
        message = f"{method.name} has nothing to add to its base, {base}, which is the result"
        yield step_problem(step, form, path, message, "warning")
    elif count < method.minimum:
        yield step_problem(step, form, path, f"{method.name} needs {_count('at least', method.minimum, kind, count)}")
    elif method.maximum is not None and count > method.maximum:
        yield step_problem(step, form, path, f"{method.name} takes {_count('at most', method.maximum, kind, count)}")


def _count(bound: str, limit: int, kind: str, count: int) -> str:
    """Such as ``at least 2 models besides its base, not 1``."""
    return f"{bound} {limit} {kind if limit == 1 else kind.replace('model', 'models', 1)}, not {count}"


def _check_parameters(
    step: Step, method: Method, form: Form, path: str, parameters: Parameters, is_own: bool
) -> Iterator[Problem]:
    names = [parameter.name for parameter in method.parameters]
    for name, setting in parameters.items():
        declared = method.parameter(name)
        if declared is None:
            message = f"{method.name} has no parameter {name!r}{did_you_mean(name, names, 'parameters')}"
            yield step_problem(step, form, f"{path}.{name}", message, _severity(form))
            continue
        for branch in setting.branches if form == "native" else _certain(declared, setting, is_own):
            fault = _wrong_value(declared, branch)
            if fault is not None:
                yield step_problem(step, form, f"{path}.{name}", fault, position=branch.position)


def _certain(declared: Parameter, setting: Setting, is_own: bool) -> Sequence[Branch]:
    """The value of a setting in a mergekit file that every tensor gets. (An empty list there is no value.)

    Args:
        is_own: the setting is of one input, where no shared parameter is looked up.
    """
    is_looked_at = declared.scope != "shared" or not is_own
    first = setting.branches[0]
    return (first,) if is_looked_at and first.filter in (None, "*") and first.value != () else ()


def _check_required(
    step: Step, method: Method, form: Form, ingredients: Ingredients, unread: Collection[str]
) -> Iterator[Problem]:
    """A parameter without a default must be set for each input, or for all of them."""
    for declared in method.parameters:
        if not isinstance(declared.default, _Required):
            continue
        if declared.scope == "shared":
            places = [(f"step {step.name}", "parameters", ingredients.levels)]
        else:
            entries = [ingredients.inputs[index] for index in ingredients.operands(method)]
            places = [(f"model {entry.source}", entry.levels[0].path, entry.levels) for entry in entries]
        for owner, path, levels in places:
            is_set = any(declared.name in level.parameters for level in levels)
            if is_set or any(_is_unread(step, form, level.path, declared.name, unread) for level in levels):
                continue
            message = f"{method.name} needs the parameter {declared.name!r} for {owner}, and nothing sets it"
            yield step_problem(step, form, f"{path}.{declared.name}", message)


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
            yield step_problem(step, form, f"{path}.{name}", message, _severity(form))


def _severity(form: Form) -> Severity:
    return "error" if form == "native" else "warning"


def _a(type_: ValueType) -> str:
    return "a delta" if type_ == "delta" else "weights"
