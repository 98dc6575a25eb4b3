"""The names of a sweep's candidates, which are the names of their folders: ``density=0.3,t=0.2``.

Values stand as they were written, a list with ``_`` between its items. What a file system, a shell or a reader could
stumble over becomes ``_``, and a name too long is cut; then, and where two names are the same but for case, a digest of
the values stands behind, so that no two candidates share a name. A name starts with a variable's: it is never ``..``
nor hidden.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from mergeflow.recipe.nodes import BrokenNode, ListNode, Node, ScalarNode
from mergeflow.recipe.variables import Value

# A folder's name may have 255 bytes, and the folder it is built in is named after it.
LONGEST = 120
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]")


def candidate_names(choices: Sequence[Mapping[str, Value | BrokenNode]]) -> list[str]:
    """A name for each candidate, from the values of its swept variables."""
    names = [_name(choice) for choice in choices]
    count = Counter(name.casefold() for name in names)
    return [
        _with_digest(name, choice) if count[name.casefold()] > 1 else name
        for name, choice in zip(names, choices, strict=True)
    ]


def _name(choice: Mapping[str, Value | BrokenNode]) -> str:
    written = {name: _text(node) for name, node in choice.items()}
    safe = {name: _STRANGE.sub("_", text) for name, text in written.items()}
    full = ",".join(f"{name}={text}" for name, text in safe.items())
    is_changed = safe != written or len(full.encode()) > LONGEST
    return _with_digest(full, choice) if is_changed else full


def _with_digest(name: str, choice: Mapping[str, Value | BrokenNode]) -> str:
    canonical = json.dumps([(key, _items(node)) for key, node in choice.items()])
    digest = hashlib.sha256(canonical.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    cut = name.encode()[: LONGEST - len(digest) - 1].decode("utf-8", "ignore")
    return f"{cut}~{digest}"


def _text(node: Node) -> str:
    items = _items(node)
    return items if isinstance(items, str) else "_".join(items)


def _items(node: Node) -> str | list[str]:
    match node:
        case ScalarNode(text=text):
            return text
        case ListNode(items=items):
            return [item.text for item in items if isinstance(item, ScalarNode)]
        case _:
            return ""
