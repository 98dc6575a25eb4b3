"""Which setting decides a parameter of a step: a model's own comes before the step's.

    per input    models[i].parameters[p], then parameters[p]      (weight, density, ...)
    shared       parameters[p] alone                              (t, lambda, normalize, ...)

A place without a value for the tensor (no setting, no filter that matches, an empty gradient) is passed over. None
at the end means not set: the parameter's default holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from mergeflow.errors import Problem
from mergeflow.recipe.nearest import quoted
from mergeflow.recipe.nodes import join
from mergeflow.recipe.places import all_parameters
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
    own = (step.inputs[input_index].parameters,) if input_index is not None else ()
    return lookup_in((*own, step.parameters), parameter, kind)


def lookup_in(places: Iterable[Parameters], parameter: str, kind: Kind) -> Lookup:
    """The value of a parameter that the first of `places` with one for the tensor gives it, None when none has.

    For a layer of a slice, mergekit's places are those of its sources that are the model (for a parameter of one value
    per input), then the slice's, the module's and the step's.
    """
    settings = tuple(place[parameter] for place in places if parameter in place)
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


def unmatched_filters(
    step: Step, names: Iterable[str], prefix: str | None = None, asked: Mapping[str, Iterable[str]] | None = None
) -> list[Problem]:
    """A warning for each filter of `step` that decides for none of the tensors `names`.

    Args:
        asked: for settings (by their path in the step) that are held against other names: those names.
        prefix: the path of the step in the file, when it is not that of `Step.path`.
    """
    tensors = tuple(names)
    prefix = step.path if prefix is None else prefix
    problems = []
    for path, setting in _settings(step):
        for index, reason in _idle_branches(setting, tuple((asked or {}).get(path, tensors))):
            here = f"{path}.filter"
            if here not in step.positions:
                here = f"{path}[{index}].filter"
            problems.append(Problem(reason, step.position(here), join(prefix, here), "warning"))
    return problems


def _settings(step: Step) -> Iterator[tuple[str, Setting]]:
    """Every setting of a step with its path."""

    for parameters, path in all_parameters(step):
        for name, setting in parameters.items():
            yield f"{path}.{name}", setting


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
