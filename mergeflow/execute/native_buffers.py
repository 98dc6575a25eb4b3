"""One thread's memory for native evaluations: allocated once, reused for every block, tensor and task."""

from __future__ import annotations

import ctypes
import mmap

from mergeflow.graph.memory import Budget

# Tiles lie this many bytes further apart than they are long: at the same place of a page, they would all fall into the
# same sets of the cache.
TILE_SKEW = 192


class NativeWorkspace:
    """The buffers of one thread."""

    def __init__(self, budget: Budget) -> None:
        self.block_elements = budget.block_elements
        self._buffers: dict[tuple[str, int], memoryview] = {}
        self._tiles = _new_bytes(0)
        self._arena = _new_bytes(0)

    def block(self, place: str, number: int, nbytes: int) -> memoryview:
        """Memory for a block's bytes; the same for the same place and number."""
        if (place, number) not in self._buffers or len(self._buffers[place, number]) < nbytes:
            self._buffers[place, number] = _new_bytes(max(nbytes, self.block_elements * 4))
        return self._buffers[place, number][:nbytes]

    def tiles(self, nbytes: int) -> memoryview:
        """Memory for tiles."""
        if len(self._tiles) < nbytes:
            self._tiles = _new_bytes(nbytes)
        return self._tiles

    def arena(self, nbytes: int) -> memoryview:
        """Memory kept between passes. Growing it drops what it held."""
        if len(self._arena) < nbytes:
            self._arena = _new_bytes(0)
            self._arena = _new_bytes(nbytes)
        return self._arena[:nbytes]


def _new_bytes(nbytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def address(block: memoryview) -> int:
    """Where a block begins, for the library."""
    return ctypes.addressof(ctypes.c_char.from_buffer(block)) if len(block) else 0


def copy(source: memoryview, target: memoryview) -> None:
    """Copies all of `source`; unlike an assignment to a slice, it lets other threads run meanwhile."""
    ctypes.memmove(address(target), address(source), len(source))
