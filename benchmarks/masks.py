"""Which entries the random methods kept, so that an exact merge can keep the same.

Ours: the step `sparsify` over the same task vectors draws the same masks, as they depend on the tensor and the seed
alone. mergekit's: torch's generator, seeded once, gives a Bernoulli mask for each tensor in plain string order of the
names, and within a tensor for each model in listed order; in bfloat16 for bfloat16 models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import mergeflow
from benchmarks.recipes import Merge

# A tensor's name -> for each model, 1 where an entry was kept.
Masks = Mapping[str, Sequence[Tensor]]

SPARSIFIERS = {"dare": "random", "della": "della"}
SEED = 0


def is_random(merge: Merge) -> bool:
    """Whether a merge drops entries by chance."""
    return merge.method.partition("_")[0] in SPARSIFIERS


def masks_of_mergeflow(merge: Merge, models: Path, folder: Path) -> Masks:
    """The masks of our merge of the models in a folder; `folder` is for the recipe."""
    method = SPARSIFIERS[merge.method.partition("_")[0]]
    own = "".join(f", {name}: {value}" for name, value in merge.own.items())
    lines = ["mergeflow: 1", f"seed: {SEED}", "steps:"]
    for index in range(1, merge.tunes + 1):
        lines.append(f"  skill_{index}: {{task_vector: {{model: {models}/tune-{index}, base: {models}/base}}}}")
        lines.append(f"  kept_{index}: {{sparsify: {{delta: skill_{index}, method: {method}{own}}}}}")
    # A recipe writes something, and a delta is no model.
    lines += [f"  model: {{merge_method: passthrough, models: [{{model: {models}/base}}]}}", "outputs: {model: {}}"]
    recipe = folder / f"masks-{merge.method}.yaml"
    recipe.write_text("\n".join([*lines, ""]))

    options = mergeflow.Options(cache=None)
    found: dict[str, list[Tensor]] = {}
    for index in range(1, merge.tunes + 1):
        skills = dict(mergeflow.tensors(recipe, f"skill_{index}", options=options))
        for name, kept in mergeflow.tensors(recipe, f"kept_{index}", options=options):
            found.setdefault(name, []).append(((kept != 0) | (skills[name] == 0)).double())
    return found


def masks_of_mergekit(merge: Merge, deltas: Mapping[str, Sequence[Tensor]]) -> Masks:
    """The masks that mergekit draws for these task vectors (bfloat16, by the tensor's name) with `--random-seed`."""
    torch.manual_seed(SEED)
    return {name: [_drawn(merge, delta) for delta in deltas[name]] for name in sorted(deltas)}


def _drawn(merge: Merge, delta: Tensor) -> Tensor:
    density = merge.own["density"]
    if "epsilon" not in merge.own:
        return torch.bernoulli(torch.full_like(delta, density)).double()
    rows = delta if delta.ndim > 1 else delta.unsqueeze(0)
    ranks = (torch.argsort(torch.argsort(rows.abs(), dim=1), dim=1) + 1).to(delta.dtype)
    lowest, highest = ranks.amin(1, keepdim=True), ranks.amax(1, keepdim=True)
    places = ((ranks - lowest) / (highest - lowest)).clamp(0, 1)
    epsilon = merge.own["epsilon"]
    return torch.bernoulli((density - epsilon) + places * 2 * epsilon).reshape(delta.shape).double()
