"""What enters a key, and nothing else: the rule by which a value is known to be the same value.

    key(node) = blake3(canonical(["node/1", op, version, parameters, dtype, [key(input), ...]]))
    key(leaf) = the digest of the tensor's dtype, shape and bytes          (models.digests)

Whatever can change a value's bytes is in its key: the operation and its version, its resolved parameters, the
number format of its result, and the keys of its inputs in order. What cannot change a value is not: device,
threads, workers, block size, names of steps and files, the order of the YAML, comments. Shapes follow from
the leaves, and a gradient or a filter enters only through the number it resolved to for this tensor.

`version` is an integer in the table of operations, bumped by hand when an operation's bytes change; a test
holds a digest of each operation's bytes, so that they cannot change unnoticed.

Canonical text is JSON with sorted keys, no spaces, and Python's shortest round-trip form of a float. NaN and
infinities cannot be written: no parameter may be either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import blake3

FORMAT = "node/1"


def canonical(value: object) -> bytes:
    """The one byte string that stands for `value` (numbers, strings, booleans, lists, mappings by string).

    Raises:
        ValueError: a float is NaN or infinite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def node_key(op: str, version: int, parameters: bytes, dtype: str | None, inputs: Sequence[str]) -> str:
    """The key of a computed value, 64 hexadecimal characters.

    Args:
        parameters: their canonical text.
        inputs: keys, in the operation's order.
    """
    head = canonical([FORMAT, op, version])[:-1]
    tail = canonical([dtype, list(inputs)])[1:]
    return blake3.blake3(b",".join((head, parameters, tail))).hexdigest()


def combined_key(keys: Sequence[str]) -> str:
    """One key for several values, in order: what a step or a model as a whole is known by."""
    return blake3.blake3(canonical(["all/1", list(keys)])).hexdigest()
