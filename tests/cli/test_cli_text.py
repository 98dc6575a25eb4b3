"""What is printed is what is meant: no name becomes markup or a command to the terminal, and no error a traceback."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome, mergeflow, write
from recipes import LINEAR
from tiny_checkpoints import llama_tensors, write_model
from typer.testing import CliRunner

from mergeflow.cli.main import app
from mergeflow.cli.units import parse_memory, seconds_text, size_text
from mergeflow.errors import counted

pytestmark = pytest.mark.usefixtures("workplace")


class TestNames:
    """Names that a terminal, or the library that writes to it, could take for something else."""

    @pytest.mark.parametrize(
        "name", ["[bold]r.yaml", "[red]", "[link=x]", ":smile:.yaml", "r\\[red].yaml", "r\\", "wörld ✓.yaml"]
    )
    def test_a_recipe_of_any_name(self, name: str) -> None:
        """The name is printed as it is, in errors and where all is well."""
        done = mergeflow("validate", write(LINEAR.replace("linear", "lineer"), name))
        assert done.err.startswith(f"{name}:5:19: error: steps.soup.merge_method: there is no")
        assert mergeflow("validate", write(LINEAR, name)).out == f"{name} is valid: 1 step, makes soup (9 tensors)\n"

    def test_an_output_of_any_name(self) -> None:
        """In what a plan and a run say."""
        recipe = write(LINEAR)
        assert "output soup -> [red]out[/]: 9 tensors" in mergeflow("plan", recipe, "[red]out[/]").out
        assert mergeflow("run", recipe, "[red]out[/]").out.startswith(f"soup -> {Path('[red]out[/]').absolute()}\n")

    @pytest.mark.parametrize("line", [100, 1234])
    def test_a_line_whose_number_is_an_emoji(self, line: int) -> None:
        """`recipe.yaml:100:1` stays what it is."""
        done = mergeflow("validate", write("\n" * line + "- 1\n"))
        assert done.lines == [f"recipe.yaml:{line}:1: error: a recipe is a mapping of fields to values, not a list"]

    def test_a_tensor_that_speaks_to_the_terminal(self) -> None:
        """Control characters in a stranger's checkpoint are printed as escapes."""
        write_model(Path("x"), llama_tensors(1) | {"\x1b[2J[red]w\n": llama_tensors(1)["model.norm.weight"]})
        text = "merge_method: passthrough\nmodels: [{model: ./x}]\n"
        done = mergeflow("explain", write(text), "--tensor", "*[[]red*")
        assert done.code == 0
        assert done.out.startswith("\\x1b[2J[red]w\\n: ./x\n  float32 [16], to compute\n")
        assert "\x1b" not in done.out

    def test_a_name_that_is_not_unicode(self) -> None:
        """A path of any bytes can be read, and is printed with escapes."""
        name = os.fsdecode(b"r\xff.yaml")
        done = mergeflow("validate", write(LINEAR, name))
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("r\\udcff.yaml is valid")
        assert mergeflow("run", name, os.fsdecode(b"out\xff"), "-q").code == 0


class TestColour:
    """Colour is for terminals, and for those who want it."""

    def test_none_in_a_file(self) -> None:
        """Output that is not a terminal's has no escapes."""
        done = mergeflow("validate", write(LINEAR.replace("linear", "lineer")))
        assert "\x1b" not in done.out + done.err

    def test_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The word error is red."""
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert "\x1b[1;31merror:\x1b[0m" in mergeflow("validate", write(LINEAR.replace("linear", "lineer"))).err

    def test_none_when_it_is_not_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """NO_COLOR, even on a terminal: no colour (https://no-color.org)."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        for done in (mergeflow("validate", write(LINEAR.replace("linear", "lineer"))), mergeflow("run", "--help")):
            assert not re.search(r"\x1b\[[\d;]*[34]\d", done.out + done.err)

    def test_progress_is_drawn_on_a_terminal_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file keeps no trace of a bar; warnings are shown in both."""
        write(LINEAR + "  more: {merge_method: passthrough, models: [{model: a}]}\noutputs: {soup: }\n")
        warning = "recipe.yaml:9:3: warning: steps.more: no output uses this step: it is not computed"
        done = mergeflow("run", "recipe.yaml", "out")
        assert done.lines == [warning]
        monkeypatch.setenv("FORCE_COLOR", "1")
        done = mergeflow("run", "recipe.yaml", "elsewhere")
        assert done.code == 0
        assert warning in done.err
        assert "merging" in done.err


class TestFailures:
    """What nobody foresaw: still a sentence and an exit code."""

    def failing(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., object]) -> Outcome:
        monkeypatch.setattr("mergeflow.workflow.validating.compile_from_headers", fail)
        done = CliRunner().invoke(app, ["validate", write(LINEAR)])
        return Outcome(done.exit_code, done.stdout, done.stderr)

    def test_a_mistake_of_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is called one; the traceback is in a file, and not on the screen."""

        def fail(*_: object, **__: object) -> None:
            raise ValueError("no [red]thing[/]")

        done = self.failing(monkeypatch, fail)
        assert (done.code, done.out) == (3, "")
        mistake, report = done.lines
        assert mistake == "error: this is a mistake in mergeflow, not in your recipe: ValueError: no [red]thing[/]"
        file = Path(report.removeprefix("please report it with "))
        assert "Traceback" in file.read_text()
        file.unlink()

    def test_a_mistake_of_ours_on_a_full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When even the file cannot be written, how to see more."""

        def fail(*_: object, **__: object) -> None:
            raise ValueError("nothing")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
        done = self.failing(monkeypatch, fail)
        assert done.code == 3
        assert done.lines[1] == "run it again with MERGEFLOW_DEBUG=1 to see where"

    def test_the_traceback_for_who_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MERGEFLOW_DEBUG=1 shows it on the screen; the exit code is the same."""

        def fail(*_: object, **__: object) -> None:
            raise ValueError("nothing")

        monkeypatch.setenv("MERGEFLOW_DEBUG", "1")
        done = self.failing(monkeypatch, fail)
        assert done.code == 3
        assert done.err.startswith("Traceback (most recent call last):")
        assert "ValueError: nothing" in done.err

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.EMFILE, "Too many open files", "x"), "the system reports: Too many open files: x"),
            (OSError("odd"), "the system reports: odd"),
            (MemoryError(), "not enough memory: give --memory less, or --workers 1"),
        ],
        ids=["files", "unknown", "memory"],
    )
    def test_what_the_system_refuses(self, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
        """Neither the recipe's fault nor ours: what it said, exit code 3."""

        def fail(*_: object, **__: object) -> None:
            raise error

        done = self.failing(monkeypatch, fail)
        assert (done.code, done.out, done.err) == (3, "", f"error: {message}\n")

    def test_a_memory_that_cannot_be_kept(self, workplace: Path) -> None:
        """What the rooms log is shown as a warning, and the run is done."""
        (workplace / "home").write_text("a file")
        done = mergeflow("run", write(LINEAR), "out")
        assert done.code == 0
        assert len(done.lines) == 1
        assert done.err.startswith("warning: digests are not remembered")

    def test_a_cache_that_cannot_be_used(self, workplace: Path) -> None:
        """A file where the cache should be: said when it is needed, exit code 1, nothing written."""
        (workplace / "cache").write_text("a file")
        text = "merge_method: slerp\nbase_model: ./a\nmodels: [{model: ./b}]\nparameters: {t: 0.5}\n"
        done = mergeflow("run", write(text), "out")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: the cache folder {workplace / 'cache'} cannot be written")
        assert not Path("out").exists()


class TestUnits:
    """Sizes, times and counts."""

    @pytest.mark.parametrize(
        ("text", "size"),
        [("512MB", 512 * 10**6), ("1.5GiB", 3 << 29), ("800M", 8 * 10**8), ("2k", 2000), ("7", 7), (" 1 kib ", 1024)],
    )
    def test_sizes_are_read(self, text: str, size: int) -> None:
        """K, M, G and T are powers of ten, with an i of two; a number alone counts bytes."""
        assert parse_memory(text) == size

    @pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "1 2", "5X", "1i", "nan", "1,5GB"])
    def test_what_is_no_size(self, text: str) -> None:
        """The message says how sizes are written."""
        with pytest.raises(ValueError, match=r"is not a size: write 512MB, 1\.5GiB or a number of bytes"):
            parse_memory(text)

    def test_numbers_are_written_for_people(self) -> None:
        """Three digits or so, and a unit; one of a thing, two things."""
        assert [size_text(count) for count in (0, 999, 1000, 1234567, 5 * 10**9, 10**13)] == [
            "0 B",
            "999 B",
            "1.0 kB",
            "1.2 MB",
            "5.0 GB",
            "10.0 TB",
        ]
        assert [seconds_text(seconds) for seconds in (0.123, 12.34, 185)] == ["0.12 s", "12.3 s", "3 min 05 s"]
        assert [counted(count, "tensor") for count in (0, 1, 2)] == ["0 tensors", "1 tensor", "2 tensors"]
