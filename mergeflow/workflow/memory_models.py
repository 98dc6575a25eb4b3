"""Models in memory as checkpoints: what is known of them without looking at a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mergeflow.dtypes import DType, by_name
from mergeflow.errors import MergeError
from mergeflow.models.records import Checkpoint, FileIdentity, Segment, TensorSource
from mergeflow.recipe.records import ModelReference

if TYPE_CHECKING:
    import torch


@runtime_checkable
class HasStateDict(Protocol):
    """A module, or whatever else has a state dict."""

    def state_dict(self) -> Mapping[str, Any]: ...


# The name of the tensor of a model that is one tensor.
ONLY = "tensor"

StateDict = Mapping[str, "torch.Tensor"]
Model = HasStateDict | StateDict


def state_dict_of(name: str, model: object) -> StateDict:
    """The tensors of a model by name; MergeError when it is no model."""
    if isinstance(model, HasStateDict):
        return model.state_dict()
    if isinstance(model, Mapping):
        return model
    raise MergeError(f"{name} is a {type(model).__name__}, neither a module nor a state dict")


@dataclass(frozen=True, slots=True)
class ModelsInMemory:
    """The models as checkpoints in memory, the tensor of each source, and the device they are all on (or the CPU)."""

    checkpoints: Mapping[ModelReference, Checkpoint]
    tensors: Mapping[TensorSource, torch.Tensor]
    device: torch.device


def open_models(models: Mapping[str, StateDict]) -> ModelsInMemory:
    """The models by name, with every tensor in a place of its own; MergeError names all that cannot be merged."""
    import torch

    mistakes: list[str] = [] if models else ["there is nothing to merge"]
    checkpoints: dict[ModelReference, Checkpoint] = {}
    tensors: dict[TensorSource, torch.Tensor] = {}
    for model, state in models.items():
        sources = {}
        for name, tensor in state.items():
            fault = _unusable(tensor)
            if fault is not None:
                mistakes.append(f"{model}{f': {name}' if name != ONLY else ''} {fault}")
                continue
            source = _source(model, name, tensor, len(tensors))
            sources[name], tensors[source] = source, tensor
        checkpoints[ModelReference(model)] = Checkpoint(model, None, sources)
    if mistakes:
        raise MergeError("\n".join(mistakes))
    devices = {tensor.device for tensor in tensors.values()}
    return ModelsInMemory(checkpoints, tensors, devices.pop() if len(devices) == 1 else torch.device("cpu"))


def _source(model: str, name: str, tensor: torch.Tensor, number: int) -> TensorSource:
    """The tensor as if it lay in a file; `number` makes it another one than all others."""
    place = Segment(FileIdentity(f"memory://{model}", 0, 0, 0, 0), number, tensor.numel() * tensor.dtype.itemsize)
    return TensorSource(name, _dtype(tensor), tuple(tensor.shape), (place,))


def _dtype(tensor: torch.Tensor) -> DType:
    return by_name(str(tensor.dtype))


def _unusable(tensor: object) -> str | None:
    """Why something cannot be merged; None when it can."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if tensor.layout is not torch.strided or tensor.is_meta:
        return f"has no plain memory: it is {'on the meta device' if tensor.is_meta else tensor.layout}"
    try:
        _dtype(tensor)
    except KeyError:
        return f"is {tensor.dtype}, which cannot be merged"
    return None
