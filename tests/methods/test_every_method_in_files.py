"""Every method from files to files, in every float format: what is written is what the kernels compute, rounded once.

One recipe has a step for each case of the table, over models whose tensors have every shape there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from method_cases import Case, cases, inputs
from tiny_checkpoints import read_model, write_model
from torch import Tensor

import mergeflow
from mergeflow.methods.table import METHODS

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (63,), (7, 9), (3, 4, 5), (2, 0))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What is written as a model: deltas are not.
WRITTEN = [case for case in cases() if METHODS[case.method].gives != "delta"]
# Their masks depend on the keys of the tensors, which those of a test's tensors are not.
RANDOM = ("dare", "della")


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether both are the same bytes; numpy has no bfloat16, so they are compared as integers."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return torch.equal(left.view(whole), right.view(whole))


def models(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """A base and three models, a tensor of every shape in each."""
    tensors = [inputs(4, shape, seed, dtype) for seed, shape in enumerate(SHAPES)]
    return [
        {f"model.layers.{seed}.mlp.weight": tensor[index] for seed, tensor in enumerate(tensors)} for index in range(4)
    ]


def recipe(folder: Path) -> str:
    """A step and an output for each case."""
    lines = ["mergeflow: 1", "steps:"]
    for number, case in enumerate(WRITTEN):
        lines += [f"  step_{number}:", *(f"    {line}" for line in step(case, folder))]
    return "\n".join([*lines, "outputs:", *(f"  step_{number}: {{}}" for number in range(len(WRITTEN))), ""])


def step(case: Case, folder: Path) -> Iterator[str]:
    """The body of a case's step."""
    first = 1 if case.base else 0
    yield f"merge_method: {case.method}"
    if case.base:
        yield f"base_model: {folder}/m0"
    yield "models:"
    for index in range(case.models):
        yield f"  - {{model: {folder}/m{first + index}, parameters: {json.dumps(case.weighed(index))}}}"
    if case.shared:
        yield f"parameters: {json.dumps(dict(case.shared))}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_what_the_kernels_compute(dtype: torch.dtype, tmp_path: Path) -> None:
    """Inputs widened, merged in float32 (float64 for float64), rounded once: bit for bit, whatever the shape."""
    stored = models(dtype)
    for index, tensors in enumerate(stored):
        write_model(tmp_path / f"m{index}", tensors)
    (tmp_path / "recipe.yaml").write_text(recipe(tmp_path))
    mergeflow.run(tmp_path / "recipe.yaml", tmp_path / "out", options=mergeflow.Options(cache=None))

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for number, case in enumerate(WRITTEN):
        made = read_model(tmp_path / "out" / f"step_{number}")
        for name, tensor in made.items():
            assert (tensor.dtype, tensor.shape) == (dtype, stored[0][name].shape), case
            assert bool(tensor.isfinite().all()), case
            if not case.method.startswith(RANDOM):
                expected = case.merge([model[name].to(wide) for model in stored[: case.inputs]]).to(dtype)
                assert equal(tensor, expected), (str(case), name)
