"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.checkpoints import Shape, write_checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = Shape(layers=2, hidden=32, intermediate=48, heads=4, kv_heads=2, vocabulary=64)
MERGEFLOW = [sys.executable, "-c", "from mergeflow.cli.main import main; main()"]


def fenced(language: str) -> str:
    """The one block of code in this language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(block)


def commands() -> Iterator[list[str]]:
    """Every `mergeflow ...` that stands in an indented block, without its comment."""
    for line in re.findall(r"^    mergeflow (.*)$", README, re.MULTILINE):
        yield shlex.split(line, comments=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README describes it: recipe.yaml, and three models beside it."""
    for folder, model in (("base", "base"), ("math", "tune-1"), ("chat", "tune-2")):
        write_checkpoint(tmp_path / "models" / folder, TINY, model)
    (tmp_path / "recipe.yaml").write_text(fenced("yaml"))
    for variable, place in (("PYTHONPATH", ROOT), ("MERGEFLOW_HOME", "home"), ("MERGEFLOW_CACHE", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / place))
    return tmp_path


def test_the_commands_run_on_the_recipe_in_their_order(folder: Path) -> None:
    """validate, plan, run, run with another number: each ends well, and the model is where the README says."""
    ran = []
    for arguments in commands():
        done = subprocess.run([*MERGEFLOW, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        ran.append(arguments[0])
    assert ran == ["validate", "plan", "run", "run"]
    assert {"model.safetensors", "config.json", "README.md", "mergeflow.lock.json"} <= {
        path.name for path in (folder / "out" / "final").iterdir()
    }


def test_the_python_example_runs(folder: Path) -> None:
    """The same words in Python, on the same recipe; one line for each tensor of the step."""
    program = [sys.executable, "-c", fenced("python")]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(TINY.tensors())


def test_every_page_and_folder_it_links_to_is_there() -> None:
    """No dead link."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
