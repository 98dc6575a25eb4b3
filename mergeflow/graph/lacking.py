"""What becomes of a tensor that not every input of a merge has.

    a delta lacks it                          the delta changes nothing there: it counts as zeros
    one model alone has it                    carried over from that model, unchanged (whatever its weight)
    several have it, the method can do        merged from those that have it
    the base has it, the method cannot        carried over from the base, unchanged
    the base lacks it, others are equal       carried over from the first of them
    the base lacks it, others differ          an error
    only in weights, and a delta is made      left out: without its base it has no difference (so is a delta's without
                                              weights that it could be added to)

"The method can do" means: the inputs that are left are as many as it takes, and its base is among them. Integers and
booleans are carried along from those that have them, when they are equal. Whatever happens to weights is a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mergeflow.errors import some
from mergeflow.graph.arrange import Entry
from mergeflow.graph.check import Finding
from mergeflow.graph.ingredients import Ingredients
from mergeflow.methods.schema import Method, ValueType

Fate = Literal["merge", "carry", "equal", "drop"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with one tensor: merged from `inputs` (places among the ingredients'), or carried from the first.

    `zeros` are the deltas among `inputs` that lack it. ``equal``: carried when all of `inputs` are equal.
    """

    fate: Fate
    inputs: tuple[int, ...]
    zeros: frozenset[int] = frozenset()


def decide(entry: Entry, method: Method, gives: ValueType, types: Sequence[ValueType]) -> Decision:
    """What becomes of the tensor of an entry.

    Args:
        gives: what the step makes.
        types: of each of the ingredients' inputs.
    """
    places = range(len(entry.names))
    having = tuple(place for place in places if entry.names[place] is not None)
    is_carried = not entry.ingredients.levels
    if len(having) == len(places) and not is_carried:
        is_base_alone = method.adds_to_its_base and not entry.ingredients.operands(method)
        return Decision("carry" if is_base_alone else "merge", having)
    zeros = frozenset(place for place in places if types[place] == "delta" and place not in having)
    left = tuple(place for place in places if place in having or place in zeros)
    operands = set(entry.ingredients.operands(method))
    if zeros and operands.intersection(having) and _can_merge(method, entry.ingredients, left, operands):
        return Decision("merge", left, zeros)
    weights = tuple(place for place in having if types[place] == gives)
    if not weights:
        return Decision("drop", having)
    if len(having) > 1 and _can_merge(method, entry.ingredients, having, operands):
        return Decision("merge", having)
    based = [place for place in weights if place not in operands]
    if based:
        return Decision("carry", (based[0],))
    return Decision("carry" if len(weights) == 1 else "equal", weights)


def _can_merge(method: Method, ingredients: Ingredients, left: Sequence[int], operands: set[int]) -> bool:
    count = len(operands.intersection(left))
    has_base = ingredients.based(method) is None or any(place not in operands for place in left)
    return has_base and method.minimum <= count <= (method.maximum or count)


@dataclass(slots=True)
class Lacking:
    """What was decided of the tensors that some inputs lack, gathered for the warnings."""

    found: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def note(self, entry: Entry, decision: Decision, labels: Sequence[str], types: Sequence[ValueType]) -> None:
        """Remember one tensor. `labels` and `types` are those of the ingredients' inputs."""
        lacking = [place for place, name in enumerate(entry.names) if name is None]
        if not any(types[place] == "weights" for place in lacking) and decision.fate != "drop":
            return
        who = ", ".join(labels[place] for place in lacking)
        kept = [labels[place] for place in decision.inputs if entry.names[place] is not None]
        end = {
            "merge": f"merged from {', '.join(kept)} alone",
            "carry": f"carried over unchanged from {kept[0]}",
            "equal": f"carried over unchanged from {kept[0]}",
            "drop": f"left out, though {kept[0]} has it: there is nothing it differs from",
        }[decision.fate]
        path = entry.ingredients.inputs[lacking[0]].path if lacking else entry.ingredients.path
        self.found.setdefault((path, f"{who} lack{'s' if len(lacking) == 1 else ''}", end), []).append(entry.name)

    def warnings(self) -> list[Finding]:
        """One for all the tensors that fared alike."""
        found = self.found.items()
        return [Finding(path, f"{who} {some(names)}: {end}", "warning") for (path, who, end), names in found]
