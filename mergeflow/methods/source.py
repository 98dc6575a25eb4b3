"""A digest of the source that a function's results depend on, so that an edited function is a new one.

    the body of the function             comments, formatting, docstring, annotations and defaults left out
    the functions of its own package     that it calls by a plain name, and those that they call
    plain constants it names             numbers, texts, booleans and tuples of them

What lies deeper (methods of classes, other packages, files it reads) does not show here; for that a method has a
`version`. A function without source (typed into a prompt) is known by its bytecode.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import marshal
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType


def source_digest(function: Callable[..., object]) -> str:
    """16 hexadecimal characters for all of a function's source, as described above."""
    hasher = hashlib.blake2b(digest_size=8)
    for text in sorted(_texts(inspect.unwrap(function))):
        hasher.update(text + b"\0")
    return hasher.hexdigest()


def captured_values(function: Callable[..., object]) -> list[str]:
    """Names of variables of enclosing functions whose values a function uses, other than functions and modules."""
    enclosing = inspect.getclosurevars(inspect.unwrap(function)).nonlocals
    return [name for name, value in enclosing.items() if not (callable(value) or inspect.ismodule(value))]


def _texts(function: Callable[..., object]) -> Iterator[bytes]:
    """The text of the function, of each function behind it, and of each constant."""
    package = _package(function)
    seen = {id(function)}
    waiting = [function]
    while waiting:
        current = waiting.pop()
        yield _body(current)
        variables = inspect.getclosurevars(current)
        for name, value in {**variables.globals, **variables.nonlocals}.items():
            found = inspect.unwrap(value) if callable(value) else value
            if _is_plain(found):
                yield f"{current.__name__}.{name}={found!r}".encode()
            elif isinstance(found, FunctionType) and _package(found) == package and id(found) not in seen:
                seen.add(id(found))
                waiting.append(found)


def _package(function: Callable[..., object]) -> str:
    return (function.__module__ or "").partition(".")[0]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _body(function: Callable[..., object]) -> bytes:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source, or the text around a lambda
        return marshal.dumps(function.__code__) if isinstance(function, FunctionType) else b""
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        return ast.dump(tree).encode()
    if ast.get_docstring(definition, clean=False) is not None:
        definition.body = definition.body[1:]
    names = [argument.arg for argument in ast.walk(definition.args) if isinstance(argument, ast.arg)]
    body = [ast.dump(statement) for statement in definition.body]
    return "\n".join([definition.name, *names, *body]).encode()
