"""The first law: how a recipe is run cannot change a byte of what comes out, nor a key.

Not the length of blocks, what fits into memory, the number of threads, processes or machines, the cache and the state
it is in, the hash seed; nor how inputs are split into files, what steps are called, in which order the YAML stands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from dask_cluster import Cluster, dask_cluster
from three_steps import CACHED, RECIPE, options, three_models, weights, write_recipe
from tiny_checkpoints import raw_bytes

import mergeflow
from mergeflow.execute.records import Settings
from mergeflow.execute.task import compute_tensor
from mergeflow.graph.memory import Budget, MiB, allocate
from mergeflow.workflow.report import RunReport

ROOT = Path(__file__).parents[2]
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


@dataclass(frozen=True)
class Made:
    """What a recipe gave: the model's folder as a whole, and the report."""

    files: dict[str, bytes]
    report: RunReport


@dataclass(frozen=True)
class Case:
    """Models of one dtype and a recipe in `folder`, and what an ordinary run of it gave."""

    folder: Path
    dtype: torch.dtype
    expected: Made

    def run(self, place: Path, recipe: Path | None = None, **wishes: object) -> Made:
        """The recipe run into an empty folder below `place`, by default without a cache."""
        stated: dict[str, object] = {"cache": None}
        return run(recipe or self.folder / "recipe.yaml", place, options(self.folder, **(stated | wishes)))


def run(recipe: Path, place: Path, how: mergeflow.Options) -> Made:
    report = mergeflow.run(recipe, place / "out", options=how)
    return Made(raw_bytes(place / "out"), report)


def make_case(folder: Path, dtype: torch.dtype) -> Case:
    three_models(folder, dtype)
    recipe = write_recipe(folder)
    expected = run(recipe, folder / "expected", options(folder, cache=None))
    assert expected.report.tensors.computed == len(expected.report.keys)
    return Case(folder, dtype, expected)


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), request.param)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask") / "cluster") as running:
        yield running


@pytest.mark.parametrize("memory", [1, 40 * MiB, 4096 * MiB])
def test_any_memory(case: Case, tmp_path: Path, memory: int) -> None:
    """Shorter blocks, inputs read again and values kept in scratch files change no byte of the folder."""
    assert case.run(tmp_path, memory=memory).files == case.expected.files


def test_the_least_memory_needs_scratch_files(bf16: Case) -> None:
    """The law above is about something: with no memory to share, values go through files."""
    roomy, tight = (
        mergeflow.plan(bf16.folder / "recipe.yaml", options=options(bf16.folder, memory=m)) for m in (None, 1)
    )
    assert tight.budget.block_elements < roomy.budget.block_elements
    kept = [allocate(p, tight.budget.share_bytes) for task in tight.tasks for p in task.programs]
    assert any(storage.file_bytes for storage in kept)
    assert all(storage.arena_bytes == 0 for storage in kept)
    assert tight.peak_bytes < roomy.peak_bytes


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 6, 64])
@pytest.mark.parametrize("share", [0, 3 * MiB, 1024 * MiB])
def test_any_block_length(case: Case, tmp_path: Path, blocks: int, share: int) -> None:
    """Any block of whole 65536s, be it longer than the tensors, gives each tensor's bytes."""
    settings = Settings(Budget(1, share, blocks * 65536), "cpu", None, str(tmp_path))
    plan = mergeflow.plan(case.folder / "recipe.yaml", options=options(case.folder, cache=None))
    expected = tensor_bytes(case.expected)
    for program in (program for task in plan.tasks for program in task.programs):
        for sink in program.sinks:
            found = compute_tensor(replace(program, sinks=(sink,)), settings)
            assert torch.equal(found.view(-1).view(torch.uint8), expected[sink.name]), sink.name


def tensor_bytes(made: Made) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's one shard, as bytes."""
    content = made.files["model.safetensors"]
    length = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:length])
    data = torch.frombuffer(bytearray(content[length:]), dtype=torch.uint8)
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: data[start:stop] for name, (start, stop) in spans.items()}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_threads(case: Case, tmp_path: Path, workers: int) -> None:
    """One, two or four tasks at a time change no byte."""
    assert case.run(tmp_path, workers=workers).files == case.expected.files


def test_a_local_cluster_of_processes(bf16: Case, tmp_path: Path) -> None:
    """`--scheduler processes` gives what threads give, with a cache and scratch files too."""
    found = bf16.run(tmp_path, scheduler="processes", memory=1, cache=tmp_path / "cache")
    assert found.files == bf16.expected.files


def test_a_real_cluster(case: Case, cluster: Cluster, tmp_path: Path) -> None:
    """A dask scheduler and two workers, in processes of their own, give what threads here give."""
    found = case.run(tmp_path, scheduler=cluster.address, cache=tmp_path / "cache")
    assert found.files == case.expected.files
    warm = case.run(tmp_path / "warm", scheduler=cluster.address, cache=tmp_path / "cache")
    assert warm.files == case.expected.files
    assert warm.report.statistics["computed"] == 0


def test_fp8(cluster: Cluster, tmp_path: Path) -> None:
    """Models in fp8 come out the same from long and short blocks, threads and a cluster."""
    fp8 = make_case(tmp_path / "fp8", torch.float8_e4m3fn)
    assert fp8.run(tmp_path / "short", memory=1, workers=1).files == fp8.expected.files
    assert fp8.run(tmp_path / "cluster", scheduler=cluster.address).files == fp8.expected.files


def entries(cache: Path) -> list[Path]:
    """The folders of a cache's entries, sorted."""
    return sorted(path.parent for path in cache.glob("v1/??/*/zarr.json"))


def test_any_state_of_the_cache(case: Case, tmp_path: Path) -> None:
    """Cold, warm, with half of its entries gone: the cache changes what is computed and no byte."""
    recipe = write_recipe(case.folder, CACHED, "cached.yaml")
    cache = tmp_path / "cache"
    cold = case.run(tmp_path / "cold", recipe, cache=cache)
    warm = case.run(tmp_path / "warm", recipe, cache=cache)
    for entry in entries(cache)[::2]:
        shutil.rmtree(entry)
    partial = case.run(tmp_path / "partial", recipe, cache=cache)

    assert weights(tmp_path / "cold" / "out") == weights(case.folder / "expected" / "out")
    assert cold.files == warm.files == partial.files
    assert (cold.report.keys, cold.report.tensors.cached) == (warm.report.keys, 0)
    assert (warm.report.statistics["computed"], warm.report.bytes.cache_read > 0) == (0, True)
    assert 0 < partial.report.statistics["computed"] < cold.report.statistics["computed"]


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["zarr.json", "c.*"])
@pytest.mark.parametrize("memory", [None, 1])
def test_damaged_entries(bf16: Case, tmp_path: Path, kind: str, memory: int | None) -> None:
    """Flipped bits in every record, or in every tensor: each is reported, dropped, computed again; no byte changes."""
    recipe = write_recipe(bf16.folder, CACHED, "cached.yaml")
    cache = tmp_path / "cache"
    first = bf16.run(tmp_path / "first", recipe, cache=cache)
    before = len(entries(cache))
    damaged = sorted(cache.glob(f"v1/??/*/{kind}"))
    assert len(damaged) > 5
    for path in damaged:
        flip(path)

    again = bf16.run(tmp_path / "again", recipe, cache=cache, memory=memory)
    assert again.files == first.files
    assert [warning for warning in again.report.warnings if "damaged" in warning]
    third = bf16.run(tmp_path / "third", recipe, cache=cache)
    assert (third.report.warnings, third.report.statistics["computed"]) == ((), 0)
    assert len(entries(cache)) <= before


RUN_IN_A_PROCESS = """
import sys, json
from pathlib import Path
import mergeflow
folder, place = Path(sys.argv[1]), Path(sys.argv[2])
how = mergeflow.Options(cache=place / "cache", state=place / "state", workers=2, device="cpu")
report = mergeflow.run(folder / "recipe.yaml", place / "out", options=how)
print(json.dumps(dict(report.keys)))
"""


@pytest.mark.parametrize("seed", ["1", "4711"])
def test_any_hash_seed(bf16: Case, tmp_path: Path, seed: str) -> None:
    """Another PYTHONHASHSEED, in a process of its own, changes neither a byte of the folder nor a key."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_IN_A_PROCESS, bf16.folder, tmp_path],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == dict(bf16.expected.report.keys)
    assert raw_bytes(tmp_path / "out") == bf16.expected.files


def test_any_sharding_of_the_inputs(case: Case, tmp_path: Path) -> None:
    """Inputs in three files each give the same weights and the same keys as inputs in one."""
    other = three_models(tmp_path / "sharded", case.dtype, shards=3)
    found = case.run(tmp_path, write_recipe(other))
    assert weights(tmp_path / "out") == weights(case.folder / "expected" / "out")
    assert found.report.keys == case.expected.report.keys


def renamed(text: str) -> str:
    """Other names for steps and aliases."""
    for old, new in (("math_skill", "m"), ("code_skill", "zz"), ("skills", "both"), ("final", "last")):
        text = text.replace(old, new)
    return (
        text.replace("models: {base: ./base,", "models: {origin: ./base,")
        .replace("base: base", "base: origin")
        .replace("base_model: base", "base_model: origin")
        .replace("{model: base}", "{model: origin}")
    )


def reordered(text: str) -> str:
    """The steps from last to first, and the mappings of a step from end to beginning."""
    document = yaml.safe_load(text)
    document["steps"] = {name: backwards(step) for name, step in reversed(document["steps"].items())}
    return yaml.safe_dump(backwards(document), sort_keys=False)


def backwards(value: object) -> object:
    """Mappings in reverse order at every level; lists keep theirs, which has a meaning."""
    if isinstance(value, dict):
        return {key: backwards(entry) for key, entry in reversed(value.items())}
    return [backwards(entry) for entry in value] if isinstance(value, list) else value


def commented(text: str) -> str:
    """A comment after every line, and longer indents where they are free."""
    return "# from here on\n" + "".join(f"{line}   # note {n}\n" for n, line in enumerate(text.splitlines()))


@pytest.mark.parametrize("change", [renamed, reordered, commented])
def test_how_the_recipe_is_written(bf16: Case, tmp_path: Path, change: Callable[[str], str]) -> None:
    """Names of steps and aliases, the order of the YAML and comments change neither weights nor keys."""
    text = change(RECIPE)
    assert text != RECIPE
    found = bf16.run(tmp_path, write_recipe(bf16.folder, text, f"{change.__name__}.yaml"))
    assert weights(tmp_path / "out") == weights(bf16.folder / "expected" / "out")
    assert found.report.keys == bf16.expected.report.keys


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("memory", [None, 1])
def test_cuda(case: Case, tmp_path: Path, memory: int | None) -> None:
    """A CUDA device gives what the processor gives, so that one cache serves both."""
    assert case.run(tmp_path, device="cuda", memory=memory).files == case.expected.files
