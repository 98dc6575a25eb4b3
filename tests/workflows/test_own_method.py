"""The example of a plug-in in workflows/own_method, and every piece of code of docs/your-own-method.md, run as they are."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import llama, read_model

from mergeflow.methods import registry

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "workflows" / "own_method"
PAGE = (ROOT / "docs" / "your-own-method.md").read_text(encoding="utf-8")
COMMAND = [sys.executable, "-c", "from mergeflow.cli.main import main; main()"]


def fenced(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return [str(block) for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


def installed(site: Path) -> None:
    """What `pip install` makes of the example: its modules, and its entry points beside them."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    for module in project["tool"]["setuptools"]["py-modules"]:
        shutil.copy(EXAMPLE / f"{module}.py", site)
    info = site / f"{project['project']['name']}-{project['project']['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 0.1.0\n")
    points = project["project"]["entry-points"]["mergeflow.methods"]
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mergeflow.methods]", *lines, ""]))


def test_the_example_runs_once_it_is_installed(tmp_path: Path) -> None:
    """Task vectors are added and rows of matrices keep the base's length, with `--set strength=0.5` half of the way."""
    (tmp_path / "site").mkdir()
    installed(tmp_path / "site")
    (tmp_path / "own_method").mkdir()
    shutil.copy(EXAMPLE / "recipe.yaml", tmp_path / "own_method")
    for seed, name in enumerate(("original", "docs", "languages")):
        llama(tmp_path / "models" / name, seed)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    arguments = ["run", "own_method/recipe.yaml", "--set", "strength=0.5", "--quiet"]
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    original, docs, languages = (read_model(tmp_path / "models" / name) for name in ("original", "docs", "languages"))
    for name, made in read_model(tmp_path / "out" / "own-method").items():
        base = original[name].double().numpy()
        weight = 0.4 + 0.4 * float(name.split(".")[2]) if "layers" in name else 0.4
        added = base + 0.6 * (docs[name].double().numpy() - base) + weight * (languages[name].double().numpy() - base)
        if base.ndim > 1:
            ratio = np.linalg.norm(base, axis=-1, keepdims=True) / np.linalg.norm(added, axis=-1, keepdims=True)
            added *= 1 + 0.5 * (ratio - 1)
        np.testing.assert_allclose(made.numpy(), added, rtol=1e-5, atol=1e-6)


def test_the_pages_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it, one after the other, on the page's recipe."""
    for seed, name in enumerate(("base", "math", "chat")):
        llama(tmp_path / "models" / name, seed)
    monkeypatch.chdir(tmp_path)
    (recipe,) = fenced("yaml")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "page.py").write_text("\n".join(fenced("python")))
    made = runpy.run_path(str(tmp_path / "page.py"), run_name="page")

    assert (tmp_path / "out" / "model.safetensors").exists()
    assert capsys.readouterr().out == "keep_norm\n"
    for result in (made["tried"], made["merged"]):
        torch.testing.assert_close(result, torch.tensor([3.0, 4.0]))
    median = registry.find_method("median")
    assert median is not None
    assert median.summary.startswith("The median of the models")


def test_the_page_shows_the_entry_point_of_the_example() -> None:
    """Its toml is the example's but for the package's name."""
    (block,) = fenced("toml")
    (point,) = tomllib.loads(block)["project"]["entry-points"]["mergeflow.methods"].items()
    (own,) = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"][
        "mergeflow.methods"
    ].items()
    assert point[0] == own[0]
    assert point[1].partition(":")[2] == own[1].partition(":")[2]


def test_every_link_of_the_page_leads_somewhere() -> None:
    """No dead link."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
