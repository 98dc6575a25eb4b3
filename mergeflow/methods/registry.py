"""Every method by its name: the table's, those declared in this process, those of installed plug-ins. In that order.

    [project.entry-points."mergeflow.methods"]       in a plug-in's pyproject.toml
    spread = "my_package.merging:spread"             a function declared with @mergeflow.merge_method

The table stays as it is: a method that is declared is kept beside it, in the one place of the package where importing
a module changes what a name means. So no name can mean two things: one that the table has, or that another function
has, is refused. Plug-ins are imported when a recipe names one of their methods, and never for a name of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import cast

from mergeflow.methods.own import Declaration, Identity, OwnMethodError, row
from mergeflow.methods.schema import Method
from mergeflow.methods.source import source_digest
from mergeflow.methods.table import METHODS

GROUP = "mergeflow.methods"

_declared: dict[str, Declaration] = {}


def register(declaration: Declaration) -> None:
    """Make a declared method known by its name. Declaring a function again (a cell run twice) replaces it.

    Raises:
        ValueError: the name is taken.
    """
    name = declaration.name
    if name in METHODS:
        raise ValueError(f"{name!r} is the name of a built-in method; give yours another with name=")
    other = _declared.get(name)
    if other is not None and other.reference != declaration.reference:
        raise ValueError(f"{name!r} is already the name of the method {other.reference}; give this one another")
    _declared[name] = declaration


def find_method(name: str) -> Method | None:
    """The method called `name`; None when there is none.

    Raises:
        ValueError: there is a plug-in of that name, and it cannot be used.
    """
    if name in METHODS:
        return METHODS[name]
    declaration = _find(name)
    return None if declaration is None else row(declaration, identity(declaration))


def method_names() -> tuple[str, ...]:
    """The name of every method; imports no plug-in."""
    return tuple(dict.fromkeys([*METHODS, *_declared, *(point.name for point in _points())]))


def all_methods() -> tuple[Mapping[str, Method], tuple[str, ...]]:
    """Every method, plug-ins imported; and for each plug-in that cannot be used, why."""
    found: dict[str, Method] = {}
    broken: list[str] = []
    for name in method_names():
        try:
            method = find_method(name)
        except ValueError as error:
            broken.append(str(error))
        else:
            found |= {name: method} if method is not None else {}
    clashes = [f"{_described(point)}: its name is that of a built-in method" for point in _points(METHODS)]
    return MappingProxyType(found), (*broken, *clashes)


def identity(declaration: Declaration) -> Identity:
    """What a user's method is known by in keys: all that can change what it computes."""
    known: dict[str, str | int] = {
        "name": declaration.name,
        "version": declaration.version,
        "function": declaration.reference,
        "code": source_digest(declaration.function),
    }
    for point in _points():
        if point.dist is not None and f"{point.module}:{point.attr}" == declaration.reference:
            known["package"] = f"{point.dist.name} {point.dist.version}"
    return known


def declaration_of(known: Mapping[str, object]) -> Declaration:
    """The method with this identity, imported if need be: what a task computes with.

    Raises:
        OwnMethodError: it cannot be imported here, or is another version than the run was planned with.
    """
    return _declaration_of(tuple(sorted(cast(Identity, known).items())))


@lru_cache(maxsize=64)
def _declaration_of(items: tuple[tuple[str, str | int], ...]) -> Declaration:
    known = dict(items)
    name, reference = str(known["name"]), str(known["function"])
    if name not in _declared:
        _import(name, reference.partition(":")[0])
    here = identity(_declared[name])
    if here != known:
        differing = ", ".join(
            f"{field} {here.get(field, 'none')}, not {known.get(field, 'none')}"
            for field in dict.fromkeys([*known, *here])
            if here.get(field) != known.get(field)
        )
        raise OwnMethodError(f"the method {name!r} is not the one the run was planned with: {differing}")
    return _declared[name]


def _import(name: str, module: str) -> None:
    """Import the module of a method that another process declared."""
    if module == "__main__":
        raise OwnMethodError(
            f"the method {name!r} is declared in a script or notebook, which a worker process cannot import: "
            "put it into a module, or run with the scheduler threads"
        )
    try:
        import_module(module)
    except Exception as error:
        raise OwnMethodError(f"the method {name!r} cannot be imported: {_reason(error)}") from error
    if name not in _declared:
        raise OwnMethodError(f"importing {module} declares no method {name!r}: declare it at the module's top level")


def _find(name: str) -> Declaration | None:
    declared = _declared.get(name)
    points = [point for point in _points() if point.name == name]
    references = dict.fromkeys(f"{point.module}:{point.attr}" for point in points)
    if declared is not None:
        references = {declared.reference: None} | references
    if len(references) > 1:
        raise ValueError(f"there are {len(references)} methods {name!r}: {', '.join(references)}; rename or remove one")
    if declared is None and points:
        _load(points[0])
        declared = _declared.get(name)
    return declared


def _load(point: EntryPoint) -> None:
    """Import a plug-in's module, so that its methods are declared."""
    try:
        function: Callable[..., object] = point.load()
    except Exception as error:
        raise ValueError(f"{_described(point)} cannot be used: {_reason(error)}") from error
    declared = _declared.get(point.name)
    if declared is None or declared.reference != f"{point.module}:{point.attr}":
        found = getattr(function, "__qualname__", type(function).__name__)
        raise ValueError(
            f"{_described(point)} names {found}, which is not declared as the method {point.name!r} "
            "with @mergeflow.merge_method"
        )


def _points(names: Mapping[str, object] | None = None) -> list[EntryPoint]:
    """The entry points of plug-ins: those with a name of their own, or those whose name is among `names`."""
    points = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return [point for _, point in sorted(points.items()) if (point.name in METHODS) == (names is not None)]


def _described(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist is not None else ""
    return f"the plug-in {point.name}{package}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
