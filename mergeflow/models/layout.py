"""Which layer a tensor belongs to, inferred from the names alone: no table of architectures.

The first number between two dots is the layer, what stands before it is the stack, and a stack has as many layers as
its largest number says:

    model.layers.3.mlp.experts.7.w1.weight     stack model.layers, layer 3 (the expert is inside the layer)
    decoder.block.0.layer.1.EncDecAttention.k  stack decoder.block, layer 0; the encoder has a ramp of its own
    0.auto_model.encoder.layer.2.output.dense  stack 0.auto_model.encoder.layer: a leading number (torch's Sequential,
                                               as sentence-transformers nests models) numbers modules, not layers

A layer has parts: the numbered list counts as a stack when some name goes on for two more parts behind the number
(`self_attn.q_proj`). So `mm_projector.2.weight`, one matrix in a list of them, is outside every stack; and so are
experts that stand in no layer, which are run side by side.

What is outside lies before or after the stack it is nearest to. Names cannot show the order in which a model runs, so
words decide: what embeds, comes before; what does not, after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

_NUMBERED = re.compile(r"(?P<stack>[^.]+(?:\.[^.]+)*?)\.(?P<layer>[0-9]+)\.(?P<rest>.+)")
_MAX_DIGITS = 6
# Parts of a name that say "before the layers". GPT-NeoX's output head is an `embed_out`: by its name it goes with the
# embeddings (shared golden case arch_gpt_neox_franken), unlike every `lm_head`.
_BEFORE = re.compile(
    r"(^|\.)(\w*embed\w*|wte|wpe|shared|\w*position\w*|token_type\w*|patch\w*|rotary\w*|conv\d|\w+_token"
    r"|ln_pre|norm_pre|pre_la\w*norm)(\.|$)",
    re.IGNORECASE,
)

Side = Literal["before", "inside", "after"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. `layer` is None outside the stacks; `stack` is then the nearest one, None if none is."""

    stack: str | None
    layer: int | None
    side: Side


@dataclass(frozen=True, slots=True)
class Layout:
    """The stacks of a model: prefix such as ``model.layers`` -> number of layers, in order of the names."""

    stacks: Mapping[str, int]

    def place(self, name: str) -> Place:
        """Where the tensor called `name` lies; the name need not be one the layout was inferred from."""
        found = _numbered(name)
        if found and found[0] in self.stacks:
            return Place(found[0], found[1], "inside")
        return Place(self._nearest(name), None, "before" if _BEFORE.search(name) else "after")

    def gradient_position(self, name: str) -> float:
        """Where on a gradient a tensor's value is taken, 0 to 1.

        Layer k of L layers stands at k / (L - 1), the only layer of a stack at 1, a tensor outside the stacks at 0:
        also one that comes after them, as in mergekit.
        """
        found = _numbered(name)
        if not found or found[0] not in self.stacks:
            return 0.0
        count = self.stacks[found[0]]
        return min(found[1] / (count - 1), 1.0) if count > 1 else 1.0

    def _nearest(self, name: str) -> str | None:
        """The stack that shares most leading parts with a name; the only one when there is only one."""
        if len(self.stacks) == 1:
            return next(iter(self.stacks))
        shared = {stack: _shared_parts(stack, name) for stack in self.stacks}
        most = max(shared.values(), default=0)
        nearest = [stack for stack, count in shared.items() if count == most]
        return nearest[0] if most > 0 and len(nearest) == 1 else None


def infer_layout(names: Iterable[str]) -> Layout:
    """The layout of the model whose tensors have these names."""
    counts: dict[str, int] = {}
    with_parts: set[str] = set()
    for name in names:
        found = _numbered(name)
        if found:
            stack, layer, rest = found
            counts[stack] = max(counts.get(stack, 0), layer + 1)
            if "." in rest and stack.rpartition(".")[2] != "experts":
                with_parts.add(stack)
    return Layout({stack: counts[stack] for stack in sorted(with_parts)})


def _numbered(name: str) -> tuple[str, int, str] | None:
    """(stack, layer, rest of the name) at the first number between dots that has something before it."""
    match = _NUMBERED.match(name)
    if not match or len(match["layer"]) > _MAX_DIGITS:
        return None
    return match["stack"], int(match["layer"]), match["rest"]


def _shared_parts(stack: str, name: str) -> int:
    count = 0
    for left, right in zip(stack.split("."), name.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count
