"""One thread's memory: allocated once, reused for every block, tensor and task.

Fresh memory is the enemy: a page fault costs as much as ten passes over the page (measured). So each thread
owns a `Workspace` whose buffers only ever grow to the size the budget allows, and nothing else allocates in a loop.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch

from mergeflow.graph.memory import Budget

MOST_VIEWS = 4096  # a model has a few dozen shapes; one with thousands must not fill the memory with views


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)  # names come from our own table
    return dtype


def memory(block: torch.Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, writable, without a copy."""
    return block.view(torch.uint8).numpy().data


def new_bytes(nbytes: int, *, pinned: bool = False) -> torch.Tensor:
    """Page-aligned memory as a uint8 tensor (nbytes,). Alignment keeps vector code on its fast path."""
    if pinned:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]


class Workspace:
    """The buffers of one thread on one device.

    Slots and scratch hold a block in the compute dtype; `raw` holds a block's bytes as they lie on disk; the arena
    holds what is kept between passes. Views handed out are valid until the next request for the same place.
    """

    def __init__(self, budget: Budget, device: torch.device) -> None:
        self.device = device
        self.block_elements = budget.block_elements
        self._pinned = device.type == "cuda"
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        self._views: dict[tuple[str, int, int, torch.dtype], torch.Tensor] = {}
        self._arena = torch.empty(0, dtype=torch.uint8)

    def slot(self, place: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Buffer number `place` for a value of the block, on the device: (elements,) of `dtype`."""
        return self._typed("slot", place, elements, dtype, host=False)

    def scratch(self, elements: int, dtype: torch.dtype) -> Callable[[int], torch.Tensor]:
        """A kernel's own buffers: a function from a number to a buffer of (elements,)."""
        return lambda place: self._typed("scratch", place, elements, dtype, host=False)

    def raw(self, place: str, nbytes: int) -> torch.Tensor:
        """Host memory for a block's bytes on their way from or to a file: (nbytes,) uint8."""
        return self._typed(place, 0, nbytes, torch.uint8, host=True)

    def arena(self, nbytes: int) -> torch.Tensor:
        """Host memory kept between passes: (nbytes,) uint8. Growing it drops what it held."""
        if self._arena.numel() < nbytes:
            self._arena = torch.empty(0, dtype=torch.uint8)
            self._arena = new_bytes(nbytes, pinned=self._pinned)
        return self._arena[:nbytes]

    def _typed(self, name: str, place: int, elements: int, dtype: torch.dtype, *, host: bool) -> torch.Tensor:
        # Nearly every block has the same length, and making a view takes longer than finding the last one.
        if (name, place, elements, dtype) not in self._views:
            self._views[name, place, elements, dtype] = self._new_view(name, place, elements, dtype, host=host)
        return self._views[name, place, elements, dtype]

    def _new_view(self, name: str, place: int, elements: int, dtype: torch.dtype, *, host: bool) -> torch.Tensor:
        nbytes = elements * dtype.itemsize
        buffer = self._buffers.get((name, place))
        if buffer is None or buffer.numel() < nbytes:
            size = max(nbytes, self.block_elements * 4)
            on_host = host or self.device.type == "cpu"
            buffer = (
                new_bytes(size, pinned=self._pinned)
                if on_host
                else torch.empty(size, dtype=torch.uint8, device=self.device)
            )
            self._buffers[name, place] = buffer
            self._views.clear()  # views of the buffer that was too small would keep it alive
        if len(self._views) >= MOST_VIEWS:
            self._views.clear()
        return buffer[:nbytes].view(dtype)
