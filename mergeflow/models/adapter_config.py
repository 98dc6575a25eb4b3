"""What a low-rank adapter says of itself: ``adapter_config.json``, as PEFT writes it.

    delta of a module = scale * B A          scale = alpha / r, or alpha / sqrt(r) with `use_rslora`

`r` and `alpha` are numbers for all modules, and `rank_pattern` and `alpha_pattern` name those that have others. A key
of theirs is a regular expression that must match the end of a module's name, from a dot on (``q_proj``,
``layers.1.mlp.up_proj``, ``^model.layers.0..*``); the first key that matches, in the order of the file, decides. In a
key of letters, digits and dots alone, a dot is a dot.

Which modules an adapter changes is not read here: the names of its tensors say it. What cannot be merged into weights,
or would be merged wrongly without more than the file has, is refused with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mergeflow.errors import CheckpointError
from mergeflow.models.patterns import Pattern, parse_pattern

MAX_RANK = 1_000_000
# mergekit-extract-lora writes one plain key per module; real regular expressions are written by hand.
MAX_KEYS = 200_000
MAX_EXPRESSIONS = 200
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)

# Initialisations that take something away from the base's weights: the adapter fits what is left, not the base.
_CHANGES_ITS_BASE = ("pissa", "olora", "corda", "lora_ga")
# Fields that make an adapter something else than a sum of low-rank terms, when they are set.
_REFUSED: Mapping[str, str] = {
    "target_parameters": "changes bare parameters, not modules",
    "trainable_token_indices": "replaces rows of single tokens",
    "layer_replication": "repeats layers of its base",
    "use_qalora": "belongs to a quantised base (QALoRA)",
    "use_bdlora": "is block-diagonal (BD-LoRA)",
    "alora_invocation_tokens": "acts only behind certain tokens (aLoRA)",
    "arrow_config": "chooses among adapters by the input (Arrow)",
    "megatron_config": "is split over machines (Megatron)",
    "velora_config": "is no sum of low-rank terms (VeLoRA)",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
}


@dataclass(frozen=True)
class ByModule:
    """Numbers for modules whose names the keys match: `rank_pattern` or `alpha_pattern`."""

    values: Mapping[str, float] = field(default_factory=dict)

    def find(self, module: str) -> float | None:
        """The number for a module, by its full name; None when no key matches."""
        parts = list(_ends(module))
        plain = [order for _, end in parts if (order := self._plain.get(end)) is not None]
        best = min(plain, default=len(self._keys))
        for order, pattern in self._expressions:
            if order >= best:
                break
            if any(pattern.matches(module, start) for start, _ in parts):
                best = order
                break
        return self.values[self._keys[best]] if best < len(self._keys) else None

    @cached_property
    def _keys(self) -> list[str]:
        return list(self.values)

    @cached_property
    def _plain(self) -> dict[str, int]:
        return {key: order for order, key in enumerate(self._keys) if _PLAIN.fullmatch(key)}

    @cached_property
    def _expressions(self) -> list[tuple[int, Pattern]]:
        return [(order, parse_pattern(key)) for order, key in enumerate(self._keys) if key not in self._plain]


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The parts of an adapter's configuration that its weights do not show.

    Args:
        rank, alpha: for modules that no key of `ranks` or `alphas` matches.
        rank_stabilised: scale by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        transposed: `fan_in_fan_out`: the modules keep their matrices as (inputs, outputs).
        trained_whole: `modules_to_save`: modules that are in the file as they are, also such as the base has not.
        base: the model it was trained on, as its author called it; empty when it does not say.
    """

    rank: int
    alpha: float
    ranks: ByModule
    alphas: ByModule
    rank_stabilised: bool = False
    transposed: bool = False
    trained_whole: tuple[str, ...] = ()
    base: str = ""

    def rank_of(self, module: str) -> int:
        """The rank a module's matrices must have."""
        found = self.ranks.find(module)
        return self.rank if found is None else int(found)

    def scale_of(self, module: str) -> float:
        """By what a module's product B A is multiplied."""
        found = self.alphas.find(module)
        alpha = self.alpha if found is None else found
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_adapter_config(fields: Mapping[str, object], where: str) -> AdapterConfig:
    """The configuration in a parsed adapter_config.json.

    Raises:
        CheckpointError: no LoRA adapter, one that cannot be merged into weights, or values of the wrong kind.
    """
    _check_kind(fields, where)
    rank = _rank(fields.get("r"), "r", where)
    alpha = _number(fields.get("lora_alpha"), "lora_alpha", where)
    ranks = {
        key: float(_rank(value, f"rank_pattern[{key!r:.80}]", where))
        for key, value in _by_module(fields, "rank_pattern", where)
    }
    alphas = {
        key: _number(value, f"alpha_pattern[{key!r:.80}]", where)
        for key, value in _by_module(fields, "alpha_pattern", where)
    }
    base = fields.get("base_model_name_or_path")
    return AdapterConfig(
        rank,
        alpha,
        ByModule(ranks),
        ByModule(alphas),
        rank_stabilised=_flag(fields, "use_rslora", where),
        transposed=_flag(fields, "fan_in_fan_out", where),
        trained_whole=_names(fields.get("modules_to_save"), "modules_to_save", where),
        base=base if isinstance(base, str) else "",
    )


def _check_kind(fields: Mapping[str, object], where: str) -> None:
    kind = fields.get("peft_type")
    if kind is None:
        raise CheckpointError(f"{where}: has no peft_type, which every adapter that PEFT saved has")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type {kind!r:.40} is not read; only LORA adapters (and DoRA's) are")
    for name, meaning in _REFUSED.items():
        if fields.get(name):
            raise CheckpointError(f"{where}: {name} is set: the adapter {meaning}, and is not read")
    unknown = [name for name, value in fields.items() if name.startswith("use_") and value is True]
    unknown = [name for name in unknown if name not in ("use_rslora", "use_dora")]
    if unknown:
        raise CheckpointError(f"{where}: {unknown[0]!r:.60} is set, and this version does not know what it means")
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_ITS_BASE):
        raise CheckpointError(
            f"{where}: init_lora_weights {start!r:.40} took a part out of the base's weights, and the adapter fits "
            "only what was left; save it again with path_initial_model_for_weight_conversion"
        )


def _by_module(fields: Mapping[str, object], name: str, where: str) -> Iterator[tuple[str, object]]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {name} must map names of modules to numbers, not {value!r:.60}")
    if len(value) > MAX_KEYS or sum(_PLAIN.fullmatch(key) is None for key in value) > MAX_EXPRESSIONS:
        raise CheckpointError(f"{where}: {name} has {len(value)} keys, more than any adapter has")
    for key in value:
        try:
            if not _PLAIN.fullmatch(key):
                parse_pattern(key)
        except ValueError as error:
            raise CheckpointError(f"{where}: {name}: the key {key!r:.80} cannot be read: {error}") from error
    yield from value.items()


def _rank(value: object, name: str, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise CheckpointError(f"{where}: {name} must be a whole number from 1 on, not {value!r:.60}")
    return value


def _number(value: object, name: str, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Beyond this, no float32 is left of anything it multiplies. (An int of many digits is no float at all.)
    if not is_number or not abs(value) <= 1e30:  # type: ignore[arg-type]
        raise CheckpointError(f"{where}: {name} must be a finite number, not {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def _names(value: object, name: str, where: str) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in listed):
        raise CheckpointError(f"{where}: {name} must list names of modules, not {value!r:.60}")
    return tuple(listed)


def _flag(fields: Mapping[str, object], name: str, where: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise CheckpointError(f"{where}: {name} must be true or false, not {value!r:.60}")


def _ends(module: str) -> Iterator[tuple[int, str]]:
    """Where a key may begin to match, and the name from there on."""
    yield 0, module
    for match in re.finditer(r"\.", module):
        yield match.end(), module[match.end() :]
