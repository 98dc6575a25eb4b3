"""mergekit's command lines: its options do what they did, or say what replaces them; its files become native ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import mergeflow, write

from mergeflow.cli.mergekit_options import MERGEKIT_OPTIONS
from mergeflow.recipe.read import read_recipe

pytestmark = pytest.mark.usefixtures("workplace")

MERGEKIT = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1, density: 1}}  # kept
  - {model: b, parameters: {weight: 3}}
dtype: float32
"""
TWO = """
name: halfway
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: halfway
models: [{model: halfway}, {model: c}]
parameters: {t: 0.5}
"""


@pytest.fixture
def merge() -> str:
    return write(MERGEKIT, "merge.yml")


class TestOptions:
    def test_a_whole_command_line(self, merge: str) -> None:
        """A mergekit-yaml command line runs as it is: a warning for each option that has nothing to do here."""
        flags = "--no-cuda --lazy-unpickle --copy-tokenizer --allow-crimes --low-cpu-memory --trust-remote-code"
        values = "--out-shard-size 1M --random-seed 7 -j 1 --lora-merge-cache ./x --transformers-cache ./y -vv"
        done = mergeflow("run", merge, "out", *flags.split(), *values.split(), "--no-cache", "--quiet")
        assert done.code == 0
        about = [line for line in done.lines if line.startswith("warning: --")]
        assert [line.split()[1] for line in about] == [
            "--lora-merge-cache:",
            "--low-cpu-memory:",
            "--allow-crimes:",
            "--trust-remote-code:",
            "--transformers-cache:",
        ]
        assert (Path("out") / "config.json").is_file()

    def test_shards(self, merge: str) -> None:
        """--out-shard-size is the most bytes in a file, with mergekit's K, M and B."""
        assert mergeflow("run", merge, "one", "--no-cache", "--quiet").code == 0
        assert mergeflow("run", merge, "more", "--out-shard-size", "1K", "--no-cache", "--quiet").code == 0
        assert len(list(Path("one").glob("*.safetensors"))) == 1
        assert len(list(Path("more").glob("*.safetensors"))) > 1

    def test_out_path(self, merge: str) -> None:
        """--out-path names the folder, as mergekit-multi has it; OUT counts more."""
        assert mergeflow("run", merge, "--out-path", "there", "--no-cache", "--quiet").code == 0
        assert Path("there/config.json").is_file()
        assert mergeflow("run", merge, "here", "--out-path", "nowhere", "--no-cache", "--quiet").code == 0
        assert (Path("here/config.json").is_file(), Path("nowhere").exists()) == (True, False)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--unsafe-truncate-embeddings",), "tokenizer: {source: base}"),
            (("--out-shard-size", "5X"), "is not a size"),
            (("--random-seed", "-1"), "an integer from 0"),
            (("-j", "0"), "at least 1"),
            (("--num-threads", "many"), "'many'"),
            (("--cudda",), "No such option"),
        ],
    )
    def test_refused(self, merge: str, arguments: tuple[str, ...], message: str) -> None:
        """An option that would cut rows off says what to do; a value that means nothing is a mistake of usage."""
        done = mergeflow("run", merge, "out", *arguments)
        assert (done.code, Path("out").exists()) == (2, False)
        assert message in " ".join(done.err.replace("│", " ").split())

    @pytest.mark.parametrize("row", MERGEKIT_OPTIONS, ids=lambda row: row.name)
    def test_every_option_is_known(self, row: object, merge: str) -> None:
        """Each option of the table is taken by `run`, which then finds what is wrong with the recipe."""
        assert hasattr(row, "flags")
        wrong = write(MERGEKIT.replace("linear", "linnear"), "wrong.yml")
        value = {"text": ["x"], "integer": ["2"]}.get(row.takes, [])
        for flag in row.flags.split():
            done = mergeflow("run", wrong, "out", flag, *value, "--no-cache")
            expected = 2 if row.refused else 1
            assert done.code == expected, done.err
            assert row.refused or "did you mean 'linear'?" in done.err


class TestSeveralDocuments:
    def test_only_what_nobody_reads_is_written(self) -> None:
        """The final merge goes to OUT; a result between is nowhere but in the cache."""
        done = mergeflow("run", write(TWO, "two.yml"), "out", "-I", "between", "--no-cache", "--quiet")
        assert done.code == 0
        assert "results between the steps are not written" in done.err
        assert Path("out/config.json").is_file()
        assert not Path("between").exists()
        assert not list(Path("out").glob("*/config.json"))


class TestConvert:
    def test_prints_a_recipe_that_is_valid(self, merge: str) -> None:
        """What comes out is a native recipe, in which nothing is left that has no effect."""
        done = mergeflow("convert", merge)
        assert done.code == 0
        assert "{model: a, parameters: {weight: 1}}  # kept" in done.out
        assert mergeflow("validate", write(done.out, "native.yaml"), "--strict").code == 0

    def test_writes_a_file_once(self, merge: str) -> None:
        """A recipe that is there is kept, unless --force says otherwise."""
        assert mergeflow("convert", merge, "native.yaml").code == 0
        again = mergeflow("convert", merge, "native.yaml")
        assert (again.code, "--force" in again.err) == (1, True)
        assert mergeflow("convert", merge, "native.yaml", "--force").code == 0
        assert mergeflow("convert", merge, "no/such/folder.yaml").code == 1

    def test_in_another_folder_it_means_the_same(self) -> None:
        """The converted recipe makes the tensors of the file it is from, wherever it stands: same keys."""
        Path("sub").mkdir()
        assert mergeflow("convert", write(TWO, "two.yml"), "sub/native.yaml").code == 0
        reports = []
        for recipe in ("two.yml", "sub/native.yaml"):
            out = f"out{len(reports)}"
            assert mergeflow("run", recipe, out, "--quiet", "--no-cache", "--report", f"{out}.json").code == 0
            reports.append(json.loads(Path(f"{out}.json").read_text()))
        first, second = reports
        assert first["keys"] == second["keys"]
        assert len(first["keys"]) > 0

    def test_mistakes(self) -> None:
        """A file with mistakes is not converted: they are listed, each at its place."""
        done = mergeflow("convert", write("merge_method: linear\nmodels: [a]\n", "bad.yml"), "native.yaml")
        assert done.code == 1
        assert done.lines[0].startswith("bad.yml:2:10: error: models[0]:")
        assert not Path("native.yaml").exists()

    def test_a_missing_model_is_no_mistake(self) -> None:
        """Models are not opened: a file can be converted where they are not."""
        path = write(MERGEKIT.replace("model: a", "model: org/a"), "far.yml")
        done = mergeflow("convert", path)
        assert done.code == 0
        assert read_recipe("native.yaml", text=done.out).problems == ()
