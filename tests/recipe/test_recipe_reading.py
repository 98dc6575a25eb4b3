"""Files that cannot be read, sizes, nearest names, and what importing this room costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_texts import DESIGN, MERGEKIT, messages, places, read

from mergeflow.errors import Position
from mergeflow.recipe import text as recipe_text
from mergeflow.recipe.describe import describe
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import AdapterReference
from mergeflow.recipe.references import parse_reference
from mergeflow.recipe.sizes import parse_size


class TestFiles:
    def test_a_file(self, tmp_path: Path) -> None:
        """A recipe is read from its file; positions carry the name as it was given."""
        path = tmp_path / "r.yml"
        path.write_text(DESIGN)
        recipe = read_recipe(path)
        assert (recipe.file, recipe.text, recipe.problems) == (str(path), DESIGN, ())
        assert recipe.step("final").positions[""] == Position(str(path), 16, 3)

    def test_a_relative_file(self, tmp_path: Path) -> None:
        """A relative path starts in the working folder."""
        (tmp_path / "r.yml").write_text(DESIGN)
        recipe = read_recipe("r.yml", working_folder=tmp_path)
        assert (recipe.file, recipe.folder, recipe.problems) == ("r.yml", tmp_path, ())

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        """A byte order mark before the text is no part of it."""
        path = tmp_path / "r.yml"
        path.write_bytes(b"\xef\xbb\xbf" + MERGEKIT.encode())
        recipe = read_recipe(path)
        assert (recipe.text, recipe.problems) == (MERGEKIT, ())

    @pytest.mark.parametrize(
        ("content", "message", "place"),
        [
            (b"", "the file is empty", (1, 1)),
            (b"# nothing\n", "the file is empty", (1, 1)),
            (b"---\n", "the file is empty", (1, 1)),
            (b"null", "the file is empty", (1, 1)),
            (b"\n\n  - a\n", "a recipe is a mapping of fields to values, not a list", (3, 3)),
            (b"hello", "a recipe is a mapping of fields to values, not a text", (1, 1)),
            (b"merge: \xff", "the file is not UTF-8 text: byte 0xff", (1, 8)),
            ("a: 1\né: ".encode() + b"\xe9", "the file is not UTF-8 text: byte 0xe9", (2, 4)),
            (MERGEKIT.encode("utf-16"), "the file is not UTF-8 text: byte 0xff", (1, 1)),
            (b"\x89PNG\r\n\x1a\n", "the file is not UTF-8 text: byte 0x89", (1, 1)),
            (b"merge: \x00", "the character '\\x00' is not allowed", (1, 8)),
            (b"a: [", "not YAML", (1, 5)),
        ],
    )
    def test_no_recipe(self, tmp_path: Path, content: bytes, message: str, place: tuple[int, int]) -> None:
        """A file that holds no recipe is one error with a place, and a recipe without steps."""
        path = tmp_path / "r.yml"
        path.write_bytes(content)
        recipe = read_recipe(path)
        assert len(recipe.problems) == 1
        assert message in recipe.problems[0].message
        assert places(recipe) == [place]
        assert (recipe.steps, recipe.outputs) == ((), ())

    def test_missing(self, tmp_path: Path) -> None:
        """A file that is not there is an error at its first line."""
        recipe = read_recipe(tmp_path / "no.yml")
        assert messages(recipe) == ["there is no such file"]
        assert places(recipe) == [(1, 1)]

    def test_a_folder(self, tmp_path: Path) -> None:
        """A folder is no recipe."""
        assert messages(read_recipe(tmp_path)) == ["a recipe is a YAML file; this is a folder"]

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "r.yml/x"])
    def test_impossible_names(self, tmp_path: Path, name: str) -> None:
        """A name that no file can have is an error like any other."""
        (tmp_path / "r.yml").write_text(DESIGN)
        recipe = read_recipe(name, working_folder=tmp_path)
        assert len(recipe.problems) == 1
        assert "the file cannot be read" in recipe.problems[0].message

    def test_a_file_that_is_far_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of gigabytes is refused without being read."""
        monkeypatch.setattr(recipe_text, "MOST_BYTES", 1024)
        path = tmp_path / "model.safetensors"
        with path.open("wb") as stream:
            stream.truncate(2**40)
        assert "this file is larger" in messages(read_recipe(path))[0]

    def test_a_folder_that_is_gone(self, tmp_path: Path) -> None:
        """A recipe is read even when the current folder was deleted."""
        path = tmp_path / "r.yml"
        path.write_text(MERGEKIT)
        gone = tmp_path / "gone"
        gone.mkdir()
        before = Path.cwd()
        os.chdir(gone)
        try:
            gone.rmdir()
            assert read_recipe(path).problems == ()
        finally:
            os.chdir(before)


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("0", 0),
            ("5", 5),
            ("5GB", 5 * 10**9),
            ("5 gb", 5 * 10**9),
            ("500MB", 5 * 10**8),
            ("2.5G", 2_500_000_000),
            ("1KiB", 1024),
            ("1GiB", 2**30),
            ("5B", 5 * 10**9),
            ("500M", 5 * 10**8),
            ("10k", 10**4),
            ("1TB", 10**12),
        ],
    )
    def test_sizes(self, text: str, size: int) -> None:
        """Units are decimal, also mergekit's K, M and B (a billion); KiB, MiB and GiB are binary."""
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "GB", "-5", "5XB", "5 5", "1e9", "five", "5GBs", "9" * 30, "0x10", "٣"])
    def test_no_sizes(self, text: str) -> None:
        """Anything else is refused."""
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("./a", ("./a", None, ())),
            ("org/a@v1", ("org/a", "v1", ())),
            ("org/a@v1+org/b", ("org/a", "v1", (AdapterReference("org/b"),))),
            ("org/a+org/b@v2", ("org/a", None, (AdapterReference("org/b", "v2"),))),
        ],
    )
    def test_parts(self, text: str, parts: tuple[object, ...]) -> None:
        """MODEL[@REV][+ADAPTER[@REV]], and back again."""
        reference = parse_reference(text)
        assert (reference.path, reference.revision, reference.adapters) == parts
        assert str(reference) == text

    @pytest.mark.parametrize("text", ["", "a@", "@v", "a+", "+a", "a@b@c", "a+b+c", "a+b@", "+"])
    def test_refused(self, text: str) -> None:
        """Parts may not be empty, nor stand twice."""
        with pytest.raises(ValueError, match=r"is not a model|more than one"):
            parse_reference(text)


class TestNearest:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("densty", "density"), ("DENSITY", "density"), ("wieght", "weight"), ("xyzzy", None), ("", None)],
    )
    def test_nearest(self, name: str, expected: str | None) -> None:
        """The nearest name is found, whatever its case; where none is near there is none."""
        assert nearest(name, ["density", "weight", "lambda"]) == expected

    def test_case_decides_before_likeness(self) -> None:
        """A name that differs in case alone is the nearest."""
        assert nearest("Ties", ["tied", "ties"]) == "ties"

    def test_endings(self) -> None:
        """A message ends with the nearest name, with all of them, or with there being none."""
        assert did_you_mean("densty", ["density"], "parameters") == "; did you mean 'density'?"
        assert did_you_mean("x", ["density", "weight"], "parameters") == "; the parameters are density, weight"
        assert did_you_mean("x", [], "parameters") == "; there are no parameters"
        assert did_you_mean("q", [f"n{i}" for i in range(99)], "names").endswith("n19, ...")

    def test_no_name_is_too_long(self) -> None:
        """A text of a megabyte is near nothing, and is quoted short and on one line."""
        assert nearest("x" * 10**6, ["x" * 10**6 + "y"]) is None
        assert len(quoted("\n" * 10**6)) < 150
        assert "\n" not in quoted("\n")


def test_describe_says_what_was_understood() -> None:
    """A recipe can be printed: its models, steps, parameters and outputs."""
    lines = describe(read(DESIGN)).splitlines()
    assert lines == [
        "recipe.yml (native form, seed 0)",
        "  model base = ./models/base",
        "  model math = ./models/math",
        "  model chat = org/chat-7b@5a1c2e9",
        "  variable density = 0.5",
        "  step math_skill = task_vector, base ./models/base",
        "    ./models/math",
        "  step skills = ties, base ./models/base",
        "    math_skill weight=0.6 density=0.5",
        "    ./models/code weight=0.4 density=0.3",
        "  step final = slerp, base org/chat-7b@5a1c2e9",
        "    org/chat-7b@5a1c2e9",
        "    skills",
        "    all t=[0, 0.5, 1]",
        "  output final -> ./out/final",
    ]
    conditions = "merge_method: l\nmodels: [{model: a}]\nparameters: {t: [{filter: x, value: 1}, {value: 2}]}"
    assert "all t=1 where 'x'; 2" in describe(read(conditions))


def test_reading_imports_no_heavy_library() -> None:
    """`validate` starts fast: reading a recipe imports no torch, no dask, no zarr, no pydantic, no numpy."""
    code = (
        "import sys; import mergeflow.recipe.read, mergeflow.recipe.resolve, mergeflow.recipe.schema;"
        "heavy = {'torch', 'dask', 'zarr', 'pydantic', 'numpy', 'huggingface_hub', 'networkx', 'difflib'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
