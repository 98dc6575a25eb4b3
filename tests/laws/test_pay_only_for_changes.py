"""The second law: a run pays for what has changed since the last one, and gives what a run from nothing gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from three_steps import CACHED, RECIPE, let_settle, options, three_models, weights, write_recipe

import mergeflow
from mergeflow.cache.care import entries
from mergeflow.cache.store import Cache
from mergeflow.graph.nodes import Graph, Node
from mergeflow.workflow.report import RunReport

SMALL = (40, 64)
LAYER_1 = [
    f"model.layers.1.{name}"
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight", "mlp.gate.bias")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small models with every shape, and the recipe."""
    write_recipe(three_models(tmp_path, large=SMALL))
    return tmp_path


def run(folder: Path, text: str = RECIPE, **wishes: object) -> RunReport:
    """Write the recipe and run it into `folder`/out, with the folder's cache."""
    return mergeflow.run(write_recipe(folder, text), options=options(folder, **wishes))


def edited(old: str, new: str, text: str = RECIPE) -> str:
    """The recipe with one thing said otherwise."""
    assert text.count(old) == 1
    return text.replace(old, new)


def computed(report: RunReport) -> set[str]:
    return {name for name, fate in report.fates.items() if fate == "computed"}


def changed(before: RunReport, after: RunReport) -> set[str]:
    """The tensors whose keys differ."""
    return {name for name, key in after.keys.items() if before.keys.get(name) != key}


def cached(folder: Path) -> dict[str, str]:
    """What is in the cache: key -> operation."""
    return {info.key: str(info.about["op"]) for info in entries(Cache(folder / "cache"))}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file, by path."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): (status.st_ino, status.st_mtime_ns) for path, status in found.items()}


def from_nothing(folder: Path, text: str) -> dict[str, bytes]:
    """The weights of a run without a cache into an empty folder."""
    place = folder / "fresh"
    shutil.rmtree(place, ignore_errors=True)
    mergeflow.run(write_recipe(folder, text, "fresh.yaml"), place, options=options(folder, cache=None))
    return weights(place)


def statistics_of(graph: Graph, deltas: set[int], op: str) -> list[Node]:
    """The statistics called `op` that are taken of one of the values `deltas`."""
    return [node for node in graph if node.op == op and node.inputs[0] in deltas]


def test_nothing_changed(folder: Path) -> None:
    """The same recipe again reads no weights, writes nothing, and leaves every file of the output as it is."""
    first = run(folder)
    before = identities(folder / "out")
    again = run(folder)
    assert (again.tensors.kept, again.tensors.total) == (first.tensors.total, first.tensors.total)
    assert (again.bytes.read, again.bytes.written, again.bytes.cache_read, again.bytes.cache_written) == (0, 0, 0, 0)
    assert again.statistics["computed"] == 0
    assert set(again.outputs[0].shards.values()) == {"kept"}
    assert identities(folder / "out") == before


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_another_t(folder: Path, shard_size: str) -> None:
    """Another t computes no threshold and no angle again, and only the tensors whose t it is; the rest is kept."""
    text = edited("path: ./out", f"path: ./out, max_shard_size: {shard_size}")
    first = run(folder, text)
    before = cached(folder)
    other = edited("[0.1, 0.5, 1]", "[0.1, 0.6, 1]", text)
    second = run(folder, other)
    assert cached(folder) == before
    assert second.statistics["computed"] == 0
    assert computed(second) == changed(first, second) == {name for name in LAYER_1 if "mlp" not in name}
    assert second.tensors.kept == second.tensors.total - second.tensors.computed
    assert weights(folder / "out") == from_nothing(folder, other)


def test_another_density_of_one_model(folder: Path) -> None:
    """Another density of one model computes that model's thresholds, and none of the other's."""
    run(folder)
    before = cached(folder)
    text = edited("density: 0.5", "density: 0.6")
    report = run(folder, text)
    new = {key: op for key, op in cached(folder).items() if key not in before}

    compiled = mergeflow.plan(folder / "recipe.yaml", options=options(folder)).compiled
    graph, deltas = compiled.graph, {t.node for t in compiled.results["math_skill"].tensors.values()}
    expected = {node.key for node in statistics_of(graph, deltas, "kth_magnitude")}
    thresholds = {key for key, op in new.items() if op == "kth_magnitude"}
    assert thresholds
    assert thresholds == expected - before.keys()
    assert set(new.values()) == {"kth_magnitude", "gram"}
    assert report.statistics["computed"] == len(new)


def test_a_weight_leaves_every_threshold(folder: Path) -> None:
    """Another weight in TIES changes every angle after it, and no threshold before it."""
    run(folder)
    before = cached(folder)
    run(folder, edited("weight: 0.4", "weight: 0.7"))
    assert {op for key, op in cached(folder).items() if key not in before} == {"gram"}


def test_a_parameter_of_one_layer(folder: Path) -> None:
    """A filter that gives one layer another value has that layer's tensors computed, and no others."""
    text = edited("        - {filter: mlp,", "        - {filter: layers.1., value: 0.25}\n        - {filter: mlp,")
    first = run(folder)
    second = run(folder, text)
    assert computed(second) == changed(first, second) == set(LAYER_1)
    assert second.tensors.kept == second.tensors.total - len(LAYER_1)
    assert weights(folder / "out") == from_nothing(folder, text)


def test_one_tensor_of_an_input(folder: Path) -> None:
    """One tensor of an input changed: the tensors that depend on it are computed, and no others."""
    first = run(folder)
    file = folder / "code" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 2
    save_file(tensors, file)
    let_settle(folder)
    second = run(folder)
    assert computed(second) == changed(first, second) == {"model.layers.1.mlp.down_proj.weight"}
    assert weights(folder / "out") == from_nothing(folder, RECIPE)


def test_a_renamed_step(folder: Path) -> None:
    """Another name for a step, or for the output, computes nothing and reads nothing."""
    run(folder)
    before = {name: identity for name, identity in identities(folder / "out").items() if "model" in name}
    for text in (RECIPE.replace("skills", "talents"), RECIPE.replace("final", "result")):
        report = run(folder, text)
        assert report.tensors.kept == report.tensors.total
        assert (report.bytes.read, report.statistics["computed"]) == (0, 0)
        after = {name: identity for name, identity in identities(folder / "out").items() if "model" in name}
        assert after == before


def test_cache_always(folder: Path) -> None:
    """A step with `cache: always` is read from the cache by a later run, and what it was made of is not read."""
    run(folder, CACHED)
    report = run(folder, edited("[0.1, 0.5, 1]", "[0.2, 0.6, 1]", edited("[0.2, 0.9]", "0.3", CACHED)))
    assert report.bytes.cache_read == report.bytes.written > 0
    assert report.bytes.read < 1.5 * report.bytes.written  # base, and not math and code, which are as large
    assert report.statistics["computed"] == 0


def test_cache_always_of_equal_values(folder: Path) -> None:
    """Tied tensors and steps that say the same are one value, and are put into the cache once."""
    for name in ("base", "math", "code"):
        file = folder / name / "model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    skills = RECIPE[RECIPE.index("  skills:\n") : RECIPE.index("  final:\n")].replace(
        "  skills:\n", "  skills:\n    cache: always\n"
    )
    final = "  final:\n    merge_method: linear\n    models: [{model: skills}, {model: twin}]\n    parameters: {weight: 1}\n"
    text = RECIPE[: RECIPE.index("  skills:\n")] + skills + skills.replace("skills:", "twin:") + final
    text += RECIPE[RECIPE.index("outputs:") :]
    report = run(folder, text)
    assert weights(folder / "out") == from_nothing(folder, text)
    kept = [key for key, op in cached(folder).items() if op not in ("gram", "kth_magnitude")]
    assert len(kept) < report.tensors.total  # embeddings and head are tied


def test_a_deleted_output(folder: Path) -> None:
    """An output that was deleted comes back with the same bytes, from statistics that are known."""
    run(folder)
    before = weights(folder / "out")
    shutil.rmtree(folder / "out")
    report = run(folder)
    assert weights(folder / "out") == before
    assert (report.tensors.computed, report.statistics["computed"]) == (report.tensors.total, 0)


def test_two_outputs_share_their_work(folder: Path) -> None:
    """A recipe with two outputs reads its inputs once and computes what they share once."""
    text = edited("  final: {path: ./out}", "  final: {path: ./out}\n  skills: {path: ./skills}")
    single = run(folder, cache=None)
    shutil.rmtree(folder / "out")
    both = run(folder, text, cache=None)
    assert both.bytes.read < 1.3 * single.bytes.read
    assert both.statistics == single.statistics
    assert weights(folder / "out") == from_nothing(folder, RECIPE)
    alone = edited("  final: {path: ./out}", "  skills: {path: ./skills}")
    assert weights(folder / "skills") == from_nothing(folder, alone)


@dataclass(frozen=True)
class Wording:
    """What a small recipe says."""

    densities: tuple[float, float] = (0.5, 0.3)
    weights: tuple[float, float] = (0.6, 0.4)
    t: tuple[float, ...] = (0.1, 0.5, 1)
    mlp: float = 0.2
    policy: str = "auto"
    dtype: str = ""
    shard_size: str = "5GB"
    outputs: tuple[str, ...] = ("final",)

    def text(self) -> str:
        pairs = [
            ("weight: 0.6, density: 0.5", f"weight: {self.weights[0]}, density: {self.densities[0]}"),
            ("weight: 0.4, density: 0.3", f"weight: {self.weights[1]}, density: {self.densities[1]}"),
            ("[0.1, 0.5, 1]", str(list(self.t))),
            ("[0.2, 0.9]", str(self.mlp)),
            (
                "  skills:\n",
                f"  skills:\n    cache: {self.policy}\n" + (f"    dtype: {self.dtype}\n" if self.dtype else ""),
            ),
            ("  final: {path: ./out}\n", "".join(self.output(step) for step in self.outputs)),
        ]
        text = RECIPE
        for old, new in pairs:
            text = edited(old, new, text)
        return text

    def output(self, step: str) -> str:
        return f"  {step}: {{path: ./{step}, max_shard_size: {self.shard_size}}}\n"


numbers = st.sampled_from([0, 0.25, 0.5, 1])
wordings = st.builds(
    Wording,
    densities=st.tuples(numbers, numbers),
    weights=st.tuples(numbers, numbers),
    t=st.lists(numbers, min_size=1, max_size=3).map(tuple),
    mlp=numbers,
    policy=st.sampled_from(["auto", "always", "never"]),
    dtype=st.sampled_from(["", "bfloat16"]),
    shard_size=st.sampled_from(["5GB", "10KB"]),
    outputs=st.sampled_from([("final",), ("skills",), ("final", "skills")]),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models, a cache and outputs that one edit after the other finds as the last one left them."""
    return three_models(tmp_path_factory.mktemp("workshop"), large=(16, 24), layers=2)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(wording=wordings)
def test_any_edit(workshop: Path, wording: Wording) -> None:
    """Whatever the last recipe was, and whatever is cached: a run gives what a run from nothing gives."""
    report = run(workshop, wording.text())
    assert report.tensors.computed + report.tensors.cached + report.tensors.kept == report.tensors.total
    for step in wording.outputs:
        assert weights(workshop / step) == from_nothing(workshop, replace(wording, outputs=(step,)).text())
