"""Adapters for tests: folders as PEFT writes them, and the numbers of a tensor that is a view of files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import numpy_dtype, view_kernel
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint, TensorSource, TensorView
from mergeflow.recipe.records import AdapterReference, ModelReference


@dataclass(frozen=True)
class FilePart:
    """A tensor of a checkpoint, as a view's kernel sees it."""

    tensor: TensorSource | TensorView

    @property
    def dtype(self) -> str:
        return self.tensor.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self, start: int, out: memoryview) -> None:
        if isinstance(self.tensor, TensorView):
            opened(self.tensor).read(start, out)
            return
        parts = [Path(s.file.path).read_bytes()[s.offset : s.offset + s.nbytes] for s in self.tensor.segments]
        begin = start * self.tensor.dtype.itemsize
        out[:] = b"".join(parts)[begin : begin + len(out)]


def opened(view: TensorView) -> Any:
    """The kernel of a view over its inputs."""
    parts = [FilePart(tensor) for tensor in view.inputs]
    return view_kernel(OPS[view.op])(parts, dict(view.parameters), view.dtype.name, view.shape)


def values(tensor: TensorSource | TensorView) -> np.ndarray[Any, Any]:
    """All numbers of a tensor, in float64."""
    dtype = numpy_dtype(tensor.dtype.name)
    out = np.empty(math.prod(tensor.shape), dtype)
    FilePart(tensor).read(0, memoryview(out.view(np.uint8)))
    return out.astype(np.float64).reshape(tensor.shape)


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """An adapter's folder: `tensors` by name without the prefix, and a configuration of rank 2 and alpha 4."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """A model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def adapted(base: Path, *adapters: Path | tuple[Path, float]) -> Checkpoint:
    """`base` with adapters, opened as a recipe opens it; one that is a pair has a weight."""
    pairs = [adapter if isinstance(adapter, tuple) else (adapter, 1.0) for adapter in adapters]
    references = tuple(AdapterReference(str(path), None, weight) for path, weight in pairs)
    return open_model(ModelReference(str(base), adapters=references), [], download=False)


def delta(adapter: Path, weight: float = 1.0) -> Checkpoint:
    """An adapter alone."""
    return open_model(ModelReference("", adapters=(AdapterReference(str(adapter), None, weight),)), [], download=False)
