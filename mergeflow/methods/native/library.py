"""The compiled library, if there is one: found beside this module, checked for its version, called through ctypes.

ctypes lets go of the interpreter's lock while a function runs, so the threads of one process compute at once.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from functools import cache
from pathlib import Path

# Counts up with blocks.c whenever a structure or a function's arguments change: an old build is not called.
INTERFACE = 5

TILE = 1024
MOST_TILE = 32768

# Set to "0" to compute everything with torch: for comparing the two.
SWITCH = "MERGEFLOW_NATIVE"

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Operand(ctypes.Structure):
    """`struct operand` of blocks.c: where a step's input or result lies."""

    _fields_ = (("at", _POINTER), ("near", _INT), ("far", _INT))


class Read(ctypes.Structure):
    """`struct read` of blocks.c: an input that lies in one piece in an open file."""

    _fields_ = (("buffer", Operand), ("offset", _LONG), ("descriptor", _INT), ("itemsize", _INT))


class Products(ctypes.Structure):
    """`struct products` of blocks.c: dot products, summed over lanes."""

    _fields_ = (
        ("totals", _POINTER),
        ("width", _LONG),
        ("count", _INT),
        ("inputs", ctypes.POINTER(Operand)),
        ("dtypes", _POINTER),
    )


class Step(ctypes.Structure):
    """`struct step` of blocks.c."""

    _fields_ = (
        ("operation", _INT),
        ("dtype", _INT),
        ("count", _INT),
        ("flag", _INT),
        ("index", _LONG),
        ("words", ctypes.c_uint64 * 2),
        ("out", Operand),
        ("inputs", ctypes.POINTER(Operand)),
        ("numbers", _POINTER),
    )


class Counts(ctypes.Structure):
    """`struct counts` of blocks.c."""

    _fields_ = (("above", _LONG), ("at_high", _LONG), ("at_low", _LONG), ("inside", _LONG))


_SIGNATURES = {
    "mergeflow_run": (
        _INT,
        (
            ctypes.POINTER(Read),
            _INT,
            ctypes.POINTER(Step),
            _INT,
            ctypes.POINTER(Products),
            _INT,
            _INT,
            _LONG,
            _LONG,
            _LONG,
            _LONG,
            ctypes.POINTER(_INT),
        ),
    ),
    "mergeflow_first_non_finite": (_LONG, (_POINTER, _INT, _LONG)),
    "mergeflow_widen": (None, (_POINTER, _INT, _POINTER, _LONG)),
    "mergeflow_compare": (None, (_POINTER, _INT, _LONG, _FLOAT, _FLOAT, ctypes.POINTER(Counts), _POINTER)),
    "mergeflow_products": (None, (_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG)),
}


@cache
def library() -> ctypes.CDLL | None:
    """The library, loaded once; None when there is none, it is another version's, or it is switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_blocks{suffix}")
        if path.exists():
            return _loaded(path)
    return None


def loaded() -> ctypes.CDLL:
    """The library, for those who know that it is there."""
    found = library()
    assert found is not None  # `execute.native.has_kernels` was asked first
    return found


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(str(path))
        if found.mergeflow_interface() != INTERFACE:
            return None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):  # built for another machine, or not ours
        return None
    return found
