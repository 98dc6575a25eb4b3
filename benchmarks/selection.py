"""Exact statistics of whole tensors, from 1 to 500 million elements, beside what numpy and torch offer.

    python -m benchmarks.selection [--most 500000000] [--repeat 3] [--json FILE]

The k-th largest magnitude (k = half; by the kernels in C and by those for torch) beside `numpy.partition` and
`torch.topk`; DELLA's masks (ranks inside rows of 4096, and random numbers) beside ranks alone by two argsorts; the sum
of magnitudes in float64 beside `numpy.sum` and `torch.sum`. All on one thread. Ours stream the tensor in blocks and
hold a few buffers; the others hold a copy of its magnitudes, whose making is not counted. The tensor is what a merge of
bfloat16 models sees: a difference of neighbouring models, with few distinct values, and so with many ties.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels import Stream, best, sampled, statistic
from mergeflow.methods.kernels.protocols import Record, rowwise_kernel
from mergeflow.methods.native.library import library
from mergeflow.methods.native.operations import DTYPES
from mergeflow.methods.native.statistics import STATISTICS, Block
from mergeflow.methods.ops import OPS

SIZES = (1, 63, 4096, 65536, 1 << 20, 1 << 23, 1 << 26, 500_000_000)
BLOCK = 1 << 18
COLUMNS = 4096
# Made in pieces: a whole tensor of random numbers would need several times its own memory.
PIECE = 1 << 22

# Longer than this in all, and a measurement is not repeated.
PATIENCE = 20.0

Run = Callable[[], object]


def delta(elements: int) -> Tensor:
    """A difference of two neighbouring models in bfloat16, as float32 (n,)."""
    generator = torch.Generator().manual_seed(0)
    result = torch.empty(elements)
    for piece in torch.split(result, PIECE):
        base = torch.randn(len(piece), generator=generator).mul_(0.02)
        tuned = torch.randn(len(piece), generator=generator).mul_(5e-4).add_(base).bfloat16()
        torch.sub(tuned.float(), base.bfloat16().float(), out=piece)
    return result


def ways(tensor: Tensor) -> dict[str, dict[str, Run]]:
    """What is measured: the statistic -> the tool -> one run of it."""
    count = len(tensor)
    k = max(1, count // 2)
    stream = Stream(count, min(BLOCK, count))
    magnitudes = tensor.abs()
    array = magnitudes.numpy()
    rows = tensor[: count // COLUMNS * COLUMNS].view(-1, COLUMNS) if count >= COLUMNS else tensor.view(1, -1)
    return {
        "k-th largest magnitude": {
            **({"mergeflow, C": lambda: kth_magnitude_in_c(tensor, k)} if library() is not None else {}),
            "mergeflow, torch": statistic(stream, "kth_magnitude", [tensor], {"k": k}),
            "numpy.partition": lambda: np.partition(array, count - k)[count - k],
            "torch.topk": lambda: torch.topk(magnitudes, k, sorted=False).values.min(),
        },
        "ranks in rows": {
            "mergeflow, torch": lambda: magprune(rows),
            "numpy.argsort": lambda: np.argsort(np.argsort(rows.abs().numpy(), axis=1), axis=1),
            "torch.argsort": lambda: torch.argsort(torch.argsort(rows.abs(), dim=1), dim=1),
        },
        "sum of magnitudes": {
            "mergeflow, torch": statistic(stream, "magnitude_sum", [tensor], {}),
            "numpy.sum": lambda: array.sum(dtype=np.float64),
            "torch.sum": lambda: magnitudes.sum(dtype=torch.float64),
        },
    }


def kth_magnitude_in_c(tensor: Tensor, k: int) -> Record:
    """The same by the native library, block by block."""
    search = STATISTICS["kth_magnitude"](len(tensor), {"k": k})
    if search.needs_sample:
        search.sample([_block(sampled(tensor))])
    record = None
    while record is None:
        wanted = search.wanted
        for start in range(wanted.start, wanted.stop, BLOCK):
            search.update(start, [_block(tensor[start : min(start + BLOCK, wanted.stop)])])
        record = search.finish()
    return record


def magprune(rows: Tensor) -> Tensor:
    """DELLA's masked delta (rows, columns), a block of rows at a time."""
    kernel = rowwise_kernel(OPS["magprune"])
    parameters = {"density": 0.5, "epsilon": 0.15, "divide": False, "seed": 0, "stream": "benchmark"}
    together = max(1, BLOCK // rows.shape[1])
    out = torch.empty_like(rows[:together])
    buffers = [torch.empty_like(out) for _ in range(4)]
    for first in range(0, len(rows), together):
        block = rows[first : first + together]
        some = [buffer[: len(block)] for buffer in buffers]
        kernel([block], [], parameters, out[: len(block)], some.__getitem__, first * rows.shape[1])
    return out


def _block(numbers: Tensor) -> Block:
    return Block(numbers.data_ptr(), DTYPES["float32"], len(numbers))


@dataclass(frozen=True, slots=True)
class Timing:
    """One measurement: CPU seconds of the fastest run."""

    statistic: str
    tool: str
    elements: int
    seconds: float

    def __str__(self) -> str:
        cost = self.seconds / self.elements * 1e9
        return f"{self.elements:>12}  {self.statistic:<24}{self.tool:<18}{self.seconds:>12.6f}{cost:>12.2f}"


def timings(sizes: Iterable[int], repeat: int) -> Iterator[Timing]:
    """Every size, statistic and tool."""
    for elements in sizes:
        for name, tools in ways(delta(elements)).items():
            for tool, run in tools.items():
                yield Timing(name, tool, elements, patiently(run, repeat))


def patiently(run: Run, repeat: int) -> float:
    """CPU seconds of the fastest of some runs; of a single one when it takes long."""
    started = time.thread_time()
    run()
    once = time.thread_time() - started
    return once if once * repeat > PATIENCE else best(run, repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="elements of the largest tensor")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{'elements':>12}  {'statistic':<24}{'by':<18}{'seconds':>12}{'ns/element':>12}")
    found = []
    for timing in timings((size for size in SIZES if size <= options.most), options.repeat):
        found.append(timing)
        print(timing, flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(timing) for timing in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
