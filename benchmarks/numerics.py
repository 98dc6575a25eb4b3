"""How far each method is from exact on bfloat16 models, beside mergekit: ``python -m benchmarks.numerics``.

    exact      the formula on whole tensors in float64 (benchmarks/exact)
    unit       the most that rounding the exact value once to bfloat16 can be off: half the distance of its neighbours
    error      |what was written - exact| / unit

A result is written in bfloat16 by both tools, so that errors of up to 1 are what no tool can avoid. Where inputs
cancel, the result is small, and so would be its unit, while float32 sums are only as good as their largest term: so
2^-22 of the largest input at that element is added to the unit. It shows where a result is less than some thousandth of
its inputs.

Weights are sums of a few powers of two: with others, votes that cancel exactly would be decided by the rounding of the
weights.

Figures are written to benchmarks/results/numerics.json, from which docs/numerics.md is made (``make docs``). Models:
the four tiny ones that mergekit's golden outputs were made from, and synthetic fine-tunes of a Llama 256 wide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import mergeflow
from benchmarks.exact import FORMULAS, exact
from benchmarks.masks import SEED, Masks, is_random, masks_of_mergeflow, masks_of_mergekit
from benchmarks.numerics_page import SOURCE
from benchmarks.recipes import Merge, merge_recipe_of
from mergeflow.methods.schema import REQUIRED, Parameter
from mergeflow.methods.table import METHODS

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "models" / "llama_bf16"

SUM_ERROR = 2.0**-22  # of float32 sums of a few terms, beside the largest term
BITS = 8  # of a bfloat16 number, the leading one included
SMALLEST = 2.0**-126  # the first bfloat16 number with fewer bits

WEIGHTS = (0.5, 0.375, 0.75)
HALVES = {"density": 0.5}

MERGES: tuple[Merge, ...] = (
    Merge("linear", base=None, weights=WEIGHTS, shared={"normalize": True}),
    Merge("passthrough", tunes=1, base=None, own={"scale": 0.7}),
    Merge("slerp", tunes=2, base="tune-1", shared={"t": 0.35}),
    Merge("nuslerp", tunes=2, base=None, weights=WEIGHTS),
    Merge("nuslerp", tunes=2, weights=WEIGHTS, shared={"nuslerp_flatten": False}),
    Merge("multislerp", base=None, weights=WEIGHTS),
    Merge("multislerp", weights=WEIGHTS),
    Merge("karcher", base=None),
    Merge("model_stock"),
    Merge("model_stock", shared={"filter_wise": True}),
    Merge("task_arithmetic", weights=WEIGHTS, shared={"lambda": 0.75}),
    Merge("ties", weights=WEIGHTS, own=HALVES),
    Merge("ties", weights=WEIGHTS, own=HALVES, shared={"rescale": True, "normalize": False}),
    Merge("breadcrumbs", weights=WEIGHTS, own=HALVES | {"gamma": 0.125}),
    Merge("breadcrumbs_ties", weights=WEIGHTS, own=HALVES | {"gamma": 0.125}),
    Merge("dare_linear", weights=WEIGHTS, own=HALVES),
    Merge("dare_ties", weights=WEIGHTS, own=HALVES, shared={"normalize": True}),
    Merge("della_linear", weights=WEIGHTS, own=HALVES | {"epsilon": 0.125}),
    Merge("della", weights=WEIGHTS, own=HALVES | {"epsilon": 0.125}),
    Merge("sce", shared={"select_topk": 0.5}),
    Merge("ram"),
    Merge("ramplus_tl"),
    Merge("nearswap", tunes=1, shared={"t": 0.02}),
    Merge("arcee_fusion", tunes=1),
    # What mergekit does not have
    Merge("arithmetic", base=None, weights=(0.5, 0.375, 0.125)),
    Merge("geometric_median", base=None, weights=(0.5, 0.5, 0.5)),
    Merge("consensus_ta", weights=WEIGHTS),
    Merge("consensus_ties", weights=WEIGHTS, own=HALVES, shared={"normalize": True}),
    Merge("magmax", weights=WEIGHTS),
    Merge("emr", weights=WEIGHTS),
    Merge("add_difference", tunes=2, shared={"alpha": 0.75}),
    Merge("perpendicular", tunes=2, shared={"alpha": 0.75}),
)


@dataclass(frozen=True, slots=True)
class Exact:
    """One tensor of a merge, in float64, and at each of its elements the largest magnitude among the inputs."""

    name: str
    value: Tensor
    largest: Tensor


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one merge by one tool, over all elements of a model: in units, and the share of more than one rounding."""

    largest: float
    mean: float
    beyond: float


@dataclass(frozen=True, slots=True)
class Row:
    """One merge of one set of models. `mergekit` is None where it was not asked, or does not have the method."""

    merge: str
    models: str
    mergeflow: Errors
    mergekit: Errors | None


def available() -> list[Merge]:
    """The merges of methods that are there."""
    return [merge for merge in MERGES if merge.method in METHODS and merge.method in FORMULAS]


def name_of(merge: Merge) -> str:
    """A merge in words: its method, and the shared parameters that are not the default."""
    settings = [f"{name}: {json.dumps(value)}" for name, value in merge.shared.items()]
    optional = METHODS[merge.method].base == "optional"
    settings += ["on a base"] if optional and merge.base else []
    return f"{merge.method} ({', '.join(settings)})" if settings else merge.method


def errors_of(made: Mapping[str, Tensor], wanted: Iterable[Exact]) -> Errors:
    """The errors of a model's tensors."""
    found = torch.cat([in_units(made[tensor.name], tensor).reshape(-1) for tensor in wanted])
    return Errors(float(found.max()), float(found.mean()), float((found > 1.0).double().mean()))


def in_units(made: Tensor, wanted: Exact) -> Tensor:
    """|made - exact|, in units of what rounding once is off by at most."""
    exponent = torch.frexp(wanted.value.abs().clamp(min=SMALLEST)).exponent.double() - 1  # of the leading bit
    unit = torch.exp2(exponent - BITS) + SUM_ERROR * wanted.largest
    return (made.double() - wanted.value).abs() / unit


def exact_model(merge: Merge, models: Path, masks: Masks | None = None) -> Iterator[Exact]:
    """Each tensor of a merge; `masks` say what the methods kept that drop entries by chance."""
    base, *others = [_weights(models / name) for name in _inputs(merge)]
    if merge.base is None:
        base, others = {}, [base, *others]
    for name in others[0]:
        tensors = [model[name] for model in others]
        kept = masks[name] if masks is not None else ()
        value = exact(merge.method, tensors, base.get(name), *_parameters(merge, len(others)), kept)
        largest = torch.stack([*tensors, *([base[name]] if base else [])]).double().abs().amax(0)
        yield Exact(name, value, largest)


def masks_for(merge: Merge, models: Path, folder: Path) -> Masks | None:
    """What our merge of the models keeps, when it drops entries by chance; `folder` is for a recipe."""
    return masks_of_mergeflow(merge, models, folder) if is_random(merge) else None


def task_vectors(merge: Merge, models: Path) -> dict[str, list[Tensor]]:
    """By a tensor's name, what each model of a merge adds to its base, in bfloat16 as mergekit has it."""
    base, *others = [_weights(models / name) for name in _inputs(merge)]
    return {name: [model[name] - tensor for model in others] for name, tensor in base.items()}


def _inputs(merge: Merge) -> list[str]:
    """The models of a merge, its base first."""
    tunes = [f"tune-{index + 1}" for index in range(merge.tunes)]
    return tunes if merge.base is None else [merge.base, *(name for name in tunes if name != merge.base)]


def _parameters(merge: Merge, models: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every model's parameters and the shared ones, with their defaults."""

    def completed(given: Mapping[str, Any], wanted: Iterable[Parameter]) -> dict[str, Any]:
        return {p.name: p.default for p in wanted if p.default is not REQUIRED} | dict(given)

    declared = METHODS[merge.method].parameters
    shared = completed(merge.shared, [p for p in declared if p.scope == "shared"])
    weights = [{"weight": weight} for weight in merge.weights] or [{}] * models
    own = [p for p in declared if p.scope != "shared"]
    return [completed({**merge.own, **weight}, own) for weight in weights[:models]], shared


def _weights(folder: Path) -> dict[str, Tensor]:
    return dict(sorted(load_file(folder / "model.safetensors").items()))


def merge_by_mergeflow(merges: Sequence[Merge], models: Path, out: Path) -> list[dict[str, Tensor]]:
    """What we write for each merge, in one run."""
    lines = ["mergeflow: 1", "steps:"]
    for index, merge in enumerate(merges):
        lines += [f"  step_{index}:", *(f"    {line}" for line in merge_recipe_of(merge, models).splitlines())]
    lines += ["outputs:", *(f"  step_{index}: {{dtype: bfloat16}}" for index in range(len(merges)))]
    out.mkdir()
    recipe = out / "recipe.yaml"
    recipe.write_text("\n".join([*lines, ""]).replace("    dtype: bfloat16\n", ""))
    mergeflow.run(recipe, out / "merged", options=mergeflow.Options(cache=None))
    folders = [out / "merged" / f"step_{index}" for index in range(len(merges))]
    return [_weights(folder if len(merges) > 1 else out / "merged") for folder in folders]


def merge_by_mergekit(merge: Merge, models: Path, out: Path, command: str) -> dict[str, Tensor] | None:
    """What mergekit writes for a merge; None when it does not."""
    out.mkdir()
    recipe = out / "merge.yml"
    # Two methods write float32 unless they are told a second time.
    recipe.write_text(merge_recipe_of(merge, models) + "out_dtype: bfloat16\n")
    options = ["--quiet", "--random-seed", str(SEED)]
    done = subprocess.run([command, str(recipe), str(out / "merged"), *options], check=False, capture_output=True)
    return None if done.returncode else _weights(out / "merged")


def measured(name: str, models: Path, place: Path, command: str | None) -> Iterator[Row]:
    """The errors of every merge on one set of models."""
    merges = available()
    ours = merge_by_mergeflow(merges, models, place / f"{name}-mergeflow")
    for index, merge in enumerate(merges):
        masks = masks_for(merge, models, place)
        wanted = list(exact_model(merge, models, masks))
        row = Row(name_of(merge), name, errors_of(ours[index], wanted), None)
        if command is not None:
            theirs = merge_by_mergekit(merge, models, place / f"{name}-mergekit-{index}", command)
            if masks is not None:
                wanted = list(exact_model(merge, models, masks_of_mergekit(merge, task_vectors(merge, models))))
            row = replace(row, mergekit=errors_of(theirs, wanted) if theirs is not None else None)
        yield row


def golden_models(place: Path) -> Path:
    """The golden models under the names that recipes use here."""
    folder = place / "golden"
    folder.mkdir()
    for name, like in (("base", "base"), ("tune-1", "a"), ("tune-2", "b"), ("tune-3", "c")):
        (folder / name).symlink_to(GOLDEN / like)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="mergekit's command (else its figures are left out)")
    parser.add_argument("--results", type=Path, default=SOURCE, help="the file to write (%(default)s)")
    given = parser.parse_args()

    from benchmarks.checkpoints import SIZES, make_checkpoints

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        synthetic = place / "synthetic"
        make_checkpoints(synthetic, SIZES["tiny"])
        command = str(given.mergekit) if given.mergekit else None
        for name, models in (("golden", golden_models(place)), ("synthetic", synthetic)):
            for row in measured(name, models, place, command):
                print(row, flush=True)
                rows.append(row)
    given.results.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
