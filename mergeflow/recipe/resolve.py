"""Which setting decides a parameter of a step: a model's own comes before the step's.

    per input    models[i].parameters[p], then parameters[p]      (weight, density, ...)
    shared       parameters[p] alone                              (t, lambda, normalize, ...)

A place without a value for the tensor (no setting, no filter that matches, an empty gradient) is passed over. None
at the end means not set: the parameter's default holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mergeflow.errors import Problem
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import join
from mergeflow.recipe.records import Parameters, Scalar, Setting, Step
from mergeflow.recipe.settings import Kind, SettingError, evaluate, value_of

Lookup = Callable[[str, float], Scalar | None]


def resolve(step: Step, input_index: int | None, parameter: str, kind: Kind, name: str, t: float) -> Scalar | None:
    """The value of a parameter for one tensor, None when it is not set. For many tensors, see `lookup`.

    Args:
        input_index: the place in `step.inputs` for a parameter of one value per input; None for a shared one, or
            for a base that is not listed.
        name: the tensor's name, which filters are compared with.
        t: gradient position, from 0 at the first layer to 1 at the last.

    Raises:
        SettingError: the value that applies is not of type `kind`.
    """
    return lookup(step, input_index, parameter, kind)(name, t)


def lookup(step: Step, input_index: int | None, parameter: str, kind: Kind) -> Lookup:
    """`resolve` with all but the tensor given: called once per tensor, it costs next to nothing for a constant."""
    own = step.inputs[input_index].parameters.get(parameter) if input_index is not None else None
    shared = step.parameters.get(parameter)
    settings = tuple(setting for setting in (own, shared) if setting is not None)
    if not settings:
        return _always(None)
    if _is_constant(settings[0]):
        try:
            return _always(value_of(settings[0].branches[0], kind, 0.0))
        except SettingError:
            pass  # raised when, and only when, a tensor asks for it
    return lambda name, t: _first(settings, kind, name, t)


def _always(value: Scalar | None) -> Lookup:
    return lambda name, t: value


def _is_constant(setting: Setting) -> bool:
    first = setting.branches[0] if setting.branches else None
    return first is not None and not isinstance(first.value, tuple) and first.filter in (None, "*")


def _first(settings: tuple[Setting, ...], kind: Kind, name: str, t: float) -> Scalar | None:
    for setting in settings:
        value = evaluate(setting, kind, name, t)
        if value is not None:
            return value
    return None


def unmatched_filters(step: Step, names: Iterable[str], prefix: str | None = None) -> list[Problem]:
    """A warning for each filter of `step` that decides for none of the tensors `names`.

    Args:
        prefix: the path of the step in the file; ``steps.NAME`` when None (a mergekit file's is empty).
    """
    tensors = tuple(names)
    prefix = f"steps.{step.name}" if prefix is None else prefix
    problems = []
    for path, setting in _settings(step):
        for index, reason in _idle_branches(setting, tensors):
            here = f"{path}.filter"
            if here not in step.positions:
                here = f"{path}[{index}].filter"
            problems.append(Problem(reason, step.position(here), join(prefix, here), "warning"))
    return problems


def _settings(step: Step) -> Iterator[tuple[str, Setting]]:
    """Every setting of a step with its path."""

    def under(path: str, parameters: Parameters) -> Iterator[tuple[str, Setting]]:
        for name, setting in parameters.items():
            yield f"{path}.{name}", setting

    for index, entry in enumerate(step.inputs):
        yield from under(f"models[{index}].parameters", entry.parameters)
    yield from under("parameters", step.parameters)


def _idle_branches(setting: Setting, names: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Branches with a filter that decide for no tensor, and why."""
    undecided = names
    for index, branch in enumerate(setting.branches):
        remaining = tuple(name for name in undecided if not branch.matches(name))
        if branch.filter not in (None, "", "*") and len(remaining) == len(undecided):
            shown = quoted(branch.filter or "")
            if any(branch.matches(name) for name in names):
                yield index, f"the filter {shown} is never reached: those above it match the same tensors first"
            else:
                yield index, f"the filter {shown} matches no tensor (a filter is a part of a tensor's name, as written)"
        undecided = remaining
