"""Loading an output in transformers as strictly as one can: no key too many, none missing, not a word of complaint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers as hf
from tiny_models import Architecture
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _listening() -> Iterator[list[str]]:
    handler = _Complaints()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)


def load(architecture: Architecture, folder: Path) -> hf.PreTrainedModel:
    """The model in `folder`, after checking that it loads without a complaint."""
    with _listening() as complaints, warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = architecture.model.from_pretrained(folder, output_loading_info=True)
    assert {kind: names for kind, names in info.items() if names} == {}
    assert complaints == []
    return model.eval()


def run(architecture: Architecture, model: hf.PreTrainedModel) -> torch.Tensor:
    """The first tensor of one forward pass: all finite."""
    with torch.no_grad():
        output = model(**architecture.inputs())
    first = next(value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.ndim > 1)
    assert torch.isfinite(first).all()
    return first
