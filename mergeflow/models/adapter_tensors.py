"""The tensors of an adapter, by the module each of them changes.

    base_model.model.M.lora_A.weight (r, in, ...)        M's weight W (out, in, ...) becomes W + scale * B A
    base_model.model.M.lora_B.weight (out, r, ...)
    base_model.model.M.lora_embedding_A (r, tokens)      an embedding's W (tokens, width) becomes W + scale * (B A)'
    base_model.model.M.lora_embedding_B (width, r)
    base_model.model.M.lora_magnitude_vector (out)       DoRA: then m * W / |W|, for each output
    base_model.model.M.lora_B.bias (out)                 M's bias b becomes b + scale * this one
    base_model.model.M.base_layer.weight, ...bias        what M's own tensors are in place of the base's
    base_model.model.M.weight                            so of a module that was trained as a whole (modules_to_save)

Names may have the adapter's own name in them (``lora_A.default.weight``), as a trainer's checkpoints have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeflow.errors import CheckpointError
from mergeflow.models.adapter_config import AdapterConfig
from mergeflow.models.records import TensorSource, TensorView

# Of a pickled adapter a tensor may be a view: one whose bytes do not lie in a row.
Tensor = TensorSource | TensorView

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.(?P<kind>weight|bias))?"
)
_WRAPPERS = (".modules_to_save.default.", ".modules_to_save.", ".token_adapter.base_layer.", ".base_layer.")
_UNUSED = ".original_module."


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to the weight of one module, and how it is scaled.

    Args:
        a: (r, in, ...).
        b: (out, r, ...).
        is_embedding: the module keeps (tokens, width): the product is turned.
        magnitude: DoRA's, one number for each output; None without.
        bias: added to the module's bias, as scaled as the product.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    is_embedding: bool
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of B A: (outputs, inputs, ...)."""
        return (self.b.shape[0], *self.a.shape[1:])


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, opened from its headers.

    Args:
        low_rank: by the name of the module, in the order of the file.
        trained: tensors that stand in place of the base's, by their names in the base.
    """

    label: str
    config: AdapterConfig
    low_rank: Mapping[str, LowRank]
    trained: Mapping[str, Tensor]
    weight: float = 1.0


@dataclass(slots=True)
class _Parts:
    """What has been found of one module."""

    low_rank: dict[str, Tensor] = field(default_factory=dict)
    bias: Tensor | None = None


def read_adapter_tensors(
    tensors: Mapping[str, Tensor], config: AdapterConfig, label: str, weight: float = 1.0
) -> Adapter:
    """The adapter whose file holds these tensors.

    Raises:
        CheckpointError: a name or a shape is not what an adapter has.
    """
    modules: dict[str, _Parts] = {}
    trained: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.dtype.is_float:
            raise CheckpointError(
                f"{label}: tensor {name!r:.120} is {tensor.dtype}; an adapter has numbers with fractions"
            )
        plain = name.removeprefix(_PREFIX)
        match = _PART.fullmatch(plain)
        if match:
            _add(modules.setdefault(match["module"], _Parts()), match["part"], match["kind"], tensor, label)
        elif _UNUSED not in plain:
            trained[_name_in_base(plain, label)] = tensor
    low_rank = {module: _low_rank(module, parts, config, label) for module, parts in modules.items()}
    if not low_rank and not trained:
        raise CheckpointError(f"{label}: the adapter holds no tensors")
    return Adapter(label, config, low_rank, trained, weight)


def _add(parts: _Parts, part: str, kind: str | None, tensor: Tensor, label: str) -> None:
    if kind == "bias":
        if part != "B":
            raise CheckpointError(f"{label}: tensor {tensor.name!r:.120} is no part of an adapter that is known here")
        parts.bias = tensor
    elif part in parts.low_rank:
        raise CheckpointError(f"{label}: tensor {tensor.name!r:.120} is there under two names")
    else:
        parts.low_rank[part] = tensor


def _name_in_base(plain: str, label: str) -> str:
    if ".lora_" in plain or "trainable_tokens" in plain:
        raise CheckpointError(f"{label}: tensor {plain!r:.120} is of a kind of adapter that is not read")
    for wrapper in _WRAPPERS:
        plain = plain.replace(wrapper, ".")
    return plain


def _low_rank(module: str, parts: _Parts, config: AdapterConfig, label: str) -> LowRank:
    found = parts.low_rank
    prefix = "embedding_" if "embedding_A" in found or "embedding_B" in found else ""
    a, b = found.pop(f"{prefix}A", None), found.pop(f"{prefix}B", None)
    magnitude = found.pop("magnitude_vector", None)
    if a is None or b is None or found:
        raise CheckpointError(f"{label}: {module!r:.120} must have both matrices of its product (lora_A and lora_B)")
    _check_shapes(module, a, b, config.rank_of(module), label)
    outputs = b.shape[0]
    for vector, what in ((magnitude, "a magnitude"), (parts.bias, "a bias")):
        if vector is not None and vector.size != outputs:
            raise CheckpointError(
                f"{label}: {module!r:.120} has {outputs} outputs, but {what} of {vector.size} numbers"
            )
    return LowRank(module, a, b, config.scale_of(module), bool(prefix), magnitude, parts.bias)


def _check_shapes(module: str, a: Tensor, b: Tensor, rank: int, label: str) -> None:
    is_product = len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[0] == b.shape[1] and set(b.shape[2:]) <= {1}
    if not is_product or not a.size or not b.size:
        raise CheckpointError(
            f"{label}: {module!r:.120} has matrices A {list(a.shape)} and B {list(b.shape)}, which make no product B A"
        )
    if a.shape[0] != rank:
        raise CheckpointError(
            f"{label}: {module!r:.120} has matrices of rank {a.shape[0]}, but the adapter's configuration says {rank}"
        )
