"""What config.json says of layers, when a model's stacks have not the layers of the donor any more.

A configuration speaks of layers in a few ways, which show in its keys and values, whatever the architecture:

    how many there are        num_hidden_layers: 32, n_layer, decoder_layers, depth, ...   the new number
    something for each        layer_types: [...], attention_layers, no_rope_layers: [1, 0], num_kv_heads: [...],
                              hybrid_override_pattern: "M-M*"     each output layer has what the layer it is from had
    something for each, run   attention_types: [[["global", "local"], 6]]   written out
    which ones                mlp_only_layers: [3, 5], fullatt_block_indexes   the output layers that are from those
    how many come first       first_k_dense_replace: 3, max_window_layers    counted anew
    how many come behind      num_nextn_predict_layers: 1 (predictors of further tokens, numbered as layers)   too
    every so many             sliding_window_pattern: 6, decoder_sparse_step   stays; a warning where it then is wrong

A key names a number of layers when it says so and its value is the number of layers of the stack. Of two stacks that
one configuration describes (T5, Whisper), keys with ``decoder`` are the decoder's, the others the encoder's. What a
layer had is looked up in the configuration of the model that the layer is from, at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeGuard

from mergeflow.models.config_parts import Config, Path, part_of, paths_for, with_part, words

_COUNT = re.compile(
    r"(?:(?:num|n|number_of)_)?(?:(?:hidden|encoder|decoder|transformer|text|vision|audio|language|llm|main)_)*"
    r"(?:layers|blocks)|(?:num|n)_(?:hidden_)?(?:layer|block)|depth"
)
# Counts of other things whose value may be the number of layers too.
_FIRST = re.compile(r"first_k_\w+|first_\w+_layers?|max_window_layers|num_dense_layers|n_dense_layers|\w+_start_layer")
_EVERY = re.compile(r"_?(?:\w+_)?(?:pattern|interval|period|freq|step|every_n_layers?)")
_OF_LAYERS = re.compile(r"layer|window|sparse|moe|expert|atte?n|rope|global|local|cross")
_MIXTURE = re.compile(r"sparse|moe|expert|dense")
_WHICH = re.compile(r"layers?|blocks?|layer_ids|index(?:es)?|indices|idxs?|ids")
_ONLY_WHICH = re.compile(r"only|index|indices|idx|ids|skip")
# Lists that may happen to be as long as a stack is deep, or to hold its numbers.
_NOT_OF_LAYERS = re.compile(
    r"token|architectures|label|mean|std|pinpoint|kernel|stride|dilation|size|shape|section|lang"
)
_PREDICTORS = re.compile(r"nextn|mtp")
_SIDES = frozenset({"encoder", "decoder"})
_MAIN_LISTS = frozenset({"layers", "layer", "h", "block", "blocks", "resblocks"})


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer of an output: the configuration of the model it is from, its number there, and how many that has."""

    config: Config = field(repr=False)
    layer: int
    depth: int


@dataclass(frozen=True, slots=True)
class Stacked:
    """A stack of the output: its name, how many layers the donor's has, and where each of its own is from."""

    name: str
    depth: int
    layers: tuple[SourceLayer, ...]


def with_layers(config: Config, stacks: Sequence[Stacked], names: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """The donor's configuration for an output with other layers, and what is doubtful about it.

    Args:
        config: of the donor.
        stacks: those whose layers are not the donor's.
        names: of all stacks of the donor.
    """
    result, doubts = dict(config), []
    for stack in stacks:
        rivals = [name for name in names if name != stack.name]
        applies = partial(_is_described, stack, rivals)
        paths = paths_for(stack.name, config, applies)
        if not paths:
            doubts.append(
                f"config.json: no key says that {stack.name} has {stack.depth} layers, so none was set to "
                f"{len(stack.layers)}: the output may not load"
            )
        for path in paths:
            part = part_of(config, path) or {}
            mended = _Part(part, path, _without_predictors(stack, path, part))
            new = {**(part_of(result, path) or {}), **mended.values(_counts(stack, rivals, path, part))}
            if _predictors(part, stack.depth):
                predictors = len(stack.layers) - len(mended.stack.layers)
                new |= {key: predictors for key in part if _PREDICTORS.search(key)}
                doubts += _misplaced_predictors(mended.stack, stack)
            result = with_part(result, path, new)
            doubts += mended.doubts()
    return result, doubts


def _is_described(stack: Stacked, rivals: Sequence[str], path: Path, part: Config) -> bool:
    return bool(_counts(stack, rivals, path, part))


def _counts(stack: Stacked, rivals: Sequence[str], path: Path, part: Config) -> list[str]:
    """The keys of the configuration at `path` that hold the number of layers of a stack."""
    depth = stack.depth - _predictors(part, stack.depth)
    # What a configuration of an encoder or of a decoder alone says, it says of no other stack.
    rivals = [] if words(".".join(path)) & _SIDES else rivals
    return [
        key
        for key, value in part.items()
        if _is_number(value) and value == depth and _COUNT.fullmatch(key) and _is_its(key, stack.name, rivals)
    ]


def _is_its(key: str, name: str, rivals: Sequence[str]) -> bool:
    """Whether a key speaks of this stack, and not of another one that the same configuration may describe."""
    said, own = words(key) & _SIDES, words(name) & _SIDES
    alike = [rival for rival in rivals if words(rival) - _SIDES == words(name) - _SIDES and _is_main(rival)]
    if not _is_main(name) and alike:
        return False
    if said:
        return said == own or not alike
    return not (own == {"decoder"} and any(words(rival) & _SIDES == {"encoder"} for rival in alike))


def _predictors(part: Config, depth: int) -> int:
    """How many of a stack's last layers only predict further tokens.

    No number of layers counts them. A checkpoint may lack them though its configuration states how many there are:
    then a number of layers is that of the stack.
    """
    found = [value for key, value in part.items() if _PREDICTORS.search(key) and _is_number(value)]
    if any(_COUNT.fullmatch(key) and _is_number(value) and value == depth for key, value in part.items()):
        return 0
    return found[0] if len(found) == 1 else 0


def _without_predictors(stack: Stacked, path: Path, part: Config) -> Stacked:
    """The stack without the layers that no number of layers counts."""

    def without(layer: SourceLayer) -> SourceLayer:
        theirs = part_of(layer.config, path) or part
        return replace(layer, depth=layer.depth - _predictors(theirs, layer.depth))

    layers = [without(layer) for layer in stack.layers]
    counted = tuple(layer for layer in layers if layer.layer < layer.depth)
    return Stacked(stack.name, stack.depth - _predictors(part, stack.depth), counted)


def _misplaced_predictors(counted: Stacked, stack: Stacked) -> list[str]:
    """A predictor that other layers follow would be taken for one of the model's own."""
    kept = [(layer.config, layer.layer) for layer in counted.layers]
    if kept == [(layer.config, layer.layer) for layer in stack.layers[: len(kept)]]:
        return []
    return [
        f"config.json: layers of {stack.name} that only predict further tokens stand before other layers, and would "
        "be run as the model's own: leave the last layer out of the first slices"
    ]


def _is_main(name: str) -> bool:
    return name.rpartition(".")[2] in _MAIN_LISTS


@dataclass(frozen=True, slots=True)
class _Part:
    """One configuration, of the donor, and the stack that it describes."""

    config: Config
    path: Path
    stack: Stacked

    def values(self, counts: Sequence[str]) -> dict[str, object]:
        """What changes: under the keys `counts` the number of layers, and what is said of each."""
        found: dict[str, object] = dict.fromkeys(counts, len(self.stack.layers))
        for key, value in self.config.items():
            if key in counts or _NOT_OF_LAYERS.search(key):
                continue
            new = self._mended(key, value)
            if new is not None and new != value:
                found[key] = new
        return found

    def doubts(self) -> Iterator[str]:
        """Keys that count layers by their position, which is another one now."""
        for key, value in self.config.items():
            if not _is_number(value):
                continue
            if _is_first(key) and not self._is_listed(key) and self._how_many_first(key, value) is None:
                yield self._doubt(key, value, "layers of the other kind now stand among the first")
            if _is_period(key) and value > 1 and not self._is_listed(key) and not self._keeps_step(value):
                yield self._doubt(key, value, "layers stand at other positions now")

    def _mended(self, key: str, value: object) -> object | None:
        if _is_number(value):
            return self._how_many_first(key, value) if _is_first(key) else None
        if isinstance(value, str):
            return self._each_of_text(key, value) if "pattern" in key else None
        if not isinstance(value, list) or not value:
            return None
        if _is_runs(value) and sum(len(run[0]) * run[1] for run in value) == self.stack.depth:
            return [[[item], 1] for item in self._each(key, _written_out)]
        if _names_layers(key, value, self.stack.depth):
            return [at for at, layer in enumerate(self.stack.layers) if layer.layer in self._list_of(layer, key, value)]
        return self._each(key, _as_list) if len(value) == self.stack.depth else None

    def _each(self, key: str, items: Callable[[object, int], Sequence[object] | None]) -> list[object]:
        """What each layer of the output had in its own model; what its place has in the donor, where that is silent."""
        own = items(self.config[key], self.stack.depth) or ()
        found: list[object] = []
        for layer in self.stack.layers:
            theirs = items((part_of(layer.config, self.path) or {}).get(key), layer.depth) or own
            found.append(theirs[layer.layer] if layer.layer < len(theirs) else own[-1])
        return found

    def _each_of_text(self, key: str, value: str) -> str | None:
        if len(value) != self.stack.depth:
            return None
        return "".join(map(str, self._each(key, lambda text, depth: _of_length(text, str, depth))))

    def _list_of(self, layer: SourceLayer, key: str, default: list[object]) -> list[object]:
        theirs = (part_of(layer.config, self.path) or {}).get(key, default)
        return theirs if isinstance(theirs, list) else default

    def _how_many_first(self, key: str, value: int) -> int | None:
        """How many of the output's layers come first, of those that are among the first of their models."""
        flags = []
        for layer in self.stack.layers:
            theirs = (part_of(layer.config, self.path) or {}).get(key, value)
            flags.append(layer.layer < theirs if isinstance(theirs, int) else False)
        if all(flags) and value > self.stack.depth:
            return max(value, len(flags))
        return sum(flags) if flags == sorted(flags, reverse=True) else None

    def _keeps_step(self, step: int) -> bool:
        return all(at % step == layer.layer % step for at, layer in enumerate(self.stack.layers))

    def _is_listed(self, key: str) -> bool:
        """Whether the configuration also says, layer by layer, what this key says in short."""
        lists = [name for name, value in self.config.items() if isinstance(value, list) and "layer" in name]
        return bool(lists) and not _MIXTURE.search(key)

    def _doubt(self, key: str, value: int, why: str) -> str:
        name = ".".join((*self.path, key))
        return f"config.json: {name} is {value}, but {why} ({self.stack.name}): the output may not load, or run wrong"


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_first(key: str) -> bool:
    return _FIRST.fullmatch(key) is not None


def _is_period(key: str) -> bool:
    return _EVERY.fullmatch(key) is not None and _OF_LAYERS.search(key) is not None


def _names_layers(key: str, value: Sequence[object], depth: int) -> bool:
    """Whether a list holds numbers of layers: rising, each below `depth`, under a key that says so."""
    numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
    if len(numbers) < len(value) or not _WHICH.search(key):
        return False
    if not all(0 <= number < depth for number in numbers) or numbers != sorted(set(numbers)):
        return False
    return len(numbers) != depth or _ONLY_WHICH.search(key) is not None


def _is_runs(value: object) -> bool:
    """Whether a list is made of runs, ``[[pattern, times], ...]``, as GPT-Neo writes the types of its layers."""
    return isinstance(value, list) and all(
        isinstance(run, list) and len(run) == 2 and isinstance(run[0], list) and _is_number(run[1]) for run in value
    )


def _written_out(value: object, depth: int) -> Sequence[object] | None:
    if not isinstance(value, list) or not _is_runs(value):
        return None
    items = [item for pattern, times in value for item in list(pattern) * min(times, depth)]
    return items if len(items) == depth else None


def _as_list(value: object, depth: int) -> Sequence[object] | None:
    return _of_length(value, list, depth)


def _of_length(value: object, kind: type[list[object]] | type[str], depth: int) -> Sequence[object] | None:
    return value if isinstance(value, kind) and len(value) == depth else None
