"""Mixture-of-experts layers in one layout, whatever the checkpoint's own.

Checkpoints hold each expert's matrices as tensors of their own; transformers 5 (and so mergekit 0.1.5) knows one packed
tensor per layer. Both are the same bytes in another order of tensors, so the packed one is a view:

    P.experts.e.gate_proj.weight (I, H)   or  w1  \\
    P.experts.e.up_proj.weight   (I, H)   or  w3  /  ->  P.experts.gate_up_proj (E, 2I, H) = per expert [gate; up]
    P.experts.e.down_proj.weight (H, I)   or  w2     ->  P.experts.down_proj    (E, H, I)

Concatenating along the first axis, and stacking, are both concatenations of row-major bytes: nothing is copied. Where
the parts are no plain bytes (experts in fp8 with scales, with an adapter, of a GGUF file) or differ in dtype, the
packed tensor is a view of them, in the smallest dtype that holds them all.

Mixtral's ``block_sparse_moe`` is called ``mlp`` in the packed layout, its router too.

A layer is left as it is unless it fits completely: experts 0..E-1, each with exactly these three matrices, of equal
shapes. An expert with anything more (a bias, scales that are not known) does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

from mergeflow.dtypes import promote
from mergeflow.models.names import in_natural_order
from mergeflow.models.records import TensorSource, TensorView

_EXPERT = re.compile(r"(?P<block>.+)\.experts\.(?P<number>0|[1-9][0-9]*)\.(?P<part>.+)")
# (gate, up, down), as Qwen, DeepSeek and most others name them, and as Mixtral does.
_SPELLINGS = (
    ("gate_proj.weight", "up_proj.weight", "down_proj.weight"),
    ("w1.weight", "w3.weight", "w2.weight"),
)
_MIXTRAL_BLOCK = "block_sparse_moe"

Tensor = TensorSource | TensorView
_Expert = dict[str, Tensor]


def pack_experts(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same tensors, with the experts of every layer that fits packed into two; in natural order of the names."""
    renamed: dict[str, str | None] = {}
    packed: dict[str, Tensor] = {}
    for block, experts in _blocks(tensors).items():
        layer = _pack(_new_block(block), experts)
        gone: dict[str, str | None] = {source.name: None for expert in experts.values() for source in expert.values()}
        moved = {name: new for name, new in _moved(tensors, block).items() if name not in gone}
        arriving = [source.name for source in layer] + list(moved.values())
        if layer and not any(name in tensors and name not in gone for name in arriving):
            packed.update((source.name, source) for source in layer)
            renamed.update(gone | moved)
    if not packed:
        return tensors
    for name, source in tensors.items():
        new = renamed.get(name, name)
        if new is not None:
            packed[new] = source if new == name else replace(source, name=new)
    return {name: packed[name] for name in in_natural_order(packed)}


def _blocks(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, _Expert]]:
    """block -> expert number -> part of the name behind it -> tensor."""
    blocks: dict[str, dict[int, _Expert]] = {}
    for name, source in tensors.items():
        match = _EXPERT.fullmatch(name) if ".experts." in name else None
        if match:
            experts = blocks.setdefault(match["block"], {})
            experts.setdefault(int(match["number"]), {})[match["part"]] = source
    return blocks


def _pack(block: str, experts: Mapping[int, _Expert]) -> tuple[Tensor, ...]:
    """gate_up_proj and down_proj of one layer; nothing when its experts do not fit."""
    if sorted(experts) != list(range(len(experts))):
        return ()
    parts = next((spelling for spelling in _SPELLINGS if experts[0].keys() == set(spelling)), None)
    if parts is None or any(expert.keys() != set(parts) for expert in experts.values()):
        return ()
    gates, ups, downs = ([experts[number][part] for number in range(len(experts))] for part in parts)
    dtypes = {source.dtype for source in (*gates, *ups, *downs)}
    if len(dtypes) != 1 and not all(dtype.is_float for dtype in dtypes):
        return ()
    shapes = {source.shape for source in (*gates, *ups)} | {source.shape[::-1] for source in downs}
    if len(shapes) != 1 or len(gates[0].shape) != 2:
        return ()
    inner, hidden = gates[0].shape
    gate_up = [source for pair in zip(gates, ups, strict=True) for source in pair]
    return (
        _concatenation(f"{block}.experts.gate_up_proj", (len(experts), 2 * inner, hidden), gate_up),
        _concatenation(f"{block}.experts.down_proj", (len(experts), hidden, inner), downs),
    )


def _concatenation(name: str, shape: tuple[int, ...], parts: Sequence[Tensor]) -> Tensor:
    plain = [part for part in parts if isinstance(part, TensorSource)]
    dtype = reduce(promote, (part.dtype for part in parts))
    if len(plain) == len(parts) and all(part.dtype == dtype for part in plain):
        segments = tuple(segment for part in plain for segment in part.segments)
        return TensorSource(name, dtype, shape, segments)
    stored = reduce(promote, (part.stored for part in parts))
    return TensorView(name, dtype, shape, "concatenate", tuple(parts), (), stored)


def _new_block(block: str) -> str:
    """The name of a layer's mixture of experts in the packed layout."""
    parent, dot, last = block.rpartition(".")
    return f"{parent}{dot}mlp" if last == _MIXTRAL_BLOCK else block


def _moved(tensors: Mapping[str, Tensor], block: str) -> dict[str, str]:
    """Old name -> new name of what lies in a block whose name changes (its router); nothing when it does not."""
    new = _new_block(block)
    if new == block:
        return {}
    return {name: new + name[len(block) :] for name in tensors if name.startswith(f"{block}.")}
