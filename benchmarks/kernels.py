"""What each kernel costs, in nanoseconds per element on one core, streamed in blocks as a run streams them.

    python benchmarks/kernels.py [--elements 4194304] [--block 262144] [--repeat 5]

The input is what a merge of bfloat16 models sees: differences of neighbouring models, with few distinct values. The
exact k-th largest magnitude is compared with what numpy and torch offer for a whole tensor in memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import (
    Record,
    pointwise_kernel,
    sample_size,
    statistic_kernel,
)
from mergeflow.methods.ops import OPS

Run = Callable[[], object]


class Stream:
    """Reused buffers and a cut of the elements into blocks."""

    def __init__(self, elements: int, block: int) -> None:
        self.elements = elements
        self.block = block
        self._buffers: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.elements, self.block):
            yield start, min(start + self.block, self.elements)

    def buffer(self, index: int, count: int) -> Tensor:
        if index not in self._buffers:
            self._buffers[index] = torch.empty(self.block)
        return self._buffers[index][:count]

    def scratch(self, count: int) -> Callable[[int], Tensor]:
        return lambda index: self.buffer(index, count)


@dataclass(frozen=True)
class Inputs:
    """A base and three fine-tunes, stored as bfloat16 and widened, and their differences."""

    base: Tensor
    tuned: list[Tensor]
    deltas: list[Tensor]

    @classmethod
    def make(cls, elements: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        base = (torch.randn(elements, generator=generator) * 0.02).bfloat16().float()
        tuned = [(base + torch.randn(elements, generator=generator) * 5e-4).bfloat16().float() for _ in range(3)]
        return cls(base, tuned, [model - base for model in tuned])


def best(run: Run, repeat: int) -> float:
    """CPU seconds of the fastest run, after one to warm up: other work on the machine shows less than in wall time."""
    run()
    seconds = []
    for _ in range(repeat):
        started = time.thread_time()
        run()
        seconds.append(time.thread_time() - started)
    return min(seconds)


def pointwise(
    stream: Stream, name: str, tensors: Sequence[Tensor], parameters: Mapping[str, object], *records: Record
) -> Run:
    """One pass of a pointwise operation."""
    kernel = pointwise_kernel(OPS[name])
    out = torch.empty(stream.block)

    def run() -> None:
        for start, stop in stream:
            views = [tensor[start:stop] for tensor in tensors]
            kernel(views, records, parameters, out[: stop - start], stream.scratch(stop - start), start)

    return run


def statistic(
    stream: Stream, name: str, tensors: Sequence[Tensor], parameters: Mapping[str, object]
) -> Callable[[], Record]:
    """A whole statistic: its sample and all of its passes."""
    kernel = statistic_kernel(OPS[name])

    def run() -> Record:
        gathering = kernel(stream.elements, parameters)
        if gathering.needs_sample:
            gathering.sample([sampled(tensor) for tensor in tensors])
        record = None
        while record is None:
            wanted = gathering.wanted
            for start in range(wanted.start, wanted.stop, stream.block):
                stop = min(start + stream.block, wanted.stop)
                gathering.update(start, [tensor[start:stop] for tensor in tensors], stream.scratch(stop - start))
            record = gathering.finish()
        return record

    return run


def sampled(tensor: Tensor, run: int = 1024) -> Tensor:
    starts = np.linspace(0, len(tensor) - run, max(sample_size(len(tensor)) // run, 1)).astype(int)
    return torch.cat([tensor[start : start + run] for start in starts])


def whole_ties(stream: Stream, inputs: Inputs, record: Record) -> Run:
    """The pointwise pass of TIES over three models, from widened weights to the merged block."""
    kernels = {name: pointwise_kernel(OPS[name]) for name in ("task_vector", "trim", "consensus", "add")}
    own = [torch.empty(stream.block) for _ in range(7)]
    parameters = {"weights": [0.5, 0.3, 0.2], "normalize": True, "lambda": 1.0}

    def run() -> None:
        for start, stop in stream:
            delta, *trimmed, merged, out = (buffer[: stop - start] for buffer in own[:6])
            base, scratch = inputs.base[start:stop], stream.scratch(stop - start)
            for model, kept in zip(inputs.tuned, trimmed, strict=True):
                kernels["task_vector"]([model[start:stop], base], [], {}, delta, scratch, start)
                kernels["trim"]([delta], [record], {}, kept, scratch, start)
            kernels["consensus"](trimmed, [], parameters, merged, scratch, start)
            kernels["add"]([base, merged], [], {}, out, scratch, start)

    return run


def operations(stream: Stream, inputs: Inputs) -> dict[str, tuple[Run, int]]:
    """What is measured: name -> (run, number of tensor inputs)."""
    base, deltas = inputs.base, inputs.deltas
    half = {"k": stream.elements // 2}
    record = statistic(stream, "kth_magnitude", deltas[:1], half)()
    consensus = {"weights": [0.5, 0.3, 0.2], "normalize": True, "lambda": 1.0}
    gram: Record = {"gram": [1.0, 0.5, 1.0]}
    return {
        "cast": (pointwise(stream, "cast", [base], {}), 1),
        "task_vector": (pointwise(stream, "task_vector", [inputs.tuned[0], base], {}), 2),
        "add": (pointwise(stream, "add", [base, deltas[0]], {}), 2),
        "scale": (pointwise(stream, "scale", [base], {"factor": 0.3}), 1),
        "weighted_sum of 2": (pointwise(stream, "weighted_sum", inputs.tuned[:2], {"coefficients": [0.6, 0.4]}), 2),
        "slerp": (pointwise(stream, "slerp", inputs.tuned[:2], {"t": 0.3}, gram), 2),
        "trim": (pointwise(stream, "trim", deltas[:1], {}, record), 1),
        "rescale": (pointwise(stream, "rescale", deltas[:1], {}, {"sum": 2.0}, {"sum": 1.0}), 1),
        "consensus of 3": (pointwise(stream, "consensus", deltas, consensus), 3),
        "ties pass of 3": (whole_ties(stream, inputs, record), 4),
        "magnitude_sum": (statistic(stream, "magnitude_sum", deltas[:1], {}), 1),
        "gram of 2": (statistic(stream, "gram", inputs.tuned[:2], {}), 2),
        "kth_magnitude": (statistic(stream, "kth_magnitude", deltas[:1], half), 1),
        "kth_magnitude, no ties": (statistic(stream, "kth_magnitude", [torch.randn(stream.elements)], half), 1),
    }


def selections(delta: Tensor) -> dict[str, Run]:
    """Other ways to the k-th largest magnitude, on a whole tensor that is in memory."""
    k = len(delta) // 2
    magnitudes = delta.abs()
    array = magnitudes.numpy()
    return {
        "numpy.partition": lambda: np.partition(array, len(array) - k)[len(array) - k],
        "torch.kthvalue": lambda: torch.kthvalue(magnitudes, len(delta) - k + 1),
        "torch.topk": lambda: torch.topk(magnitudes, k),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=2**22)
    parser.add_argument("--block", type=int, default=2**18)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(1)
    stream, inputs = Stream(options.elements, options.block), Inputs.make(options.elements)
    print(f"{options.elements} elements, blocks of {options.block}; nanoseconds per element")
    print(f"{'operation':<24}{'per output':>12}{'per input':>12}")
    for name, (run, tensors) in operations(stream, inputs).items():
        cost = best(run, options.repeat) / options.elements * 1e9
        print(f"{name:<24}{cost:>12.2f}{cost / tensors:>12.2f}")

    print("\nthe k-th largest magnitude of a whole tensor, k = half")
    for name, run in selections(inputs.deltas[0]).items():
        print(f"{name:<24}{best(run, 2) / options.elements * 1e9:>12.2f}")


if __name__ == "__main__":
    main()
