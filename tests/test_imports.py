"""The way of the data has one direction: which room may import which, and what stays unloaded until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mergeflow"

# Each room may import those that stand before it, and itself.
TABLES = ("errors", "dtypes")
ROOMS = ("recipe", "models", "methods", "graph", "cache", "execute", "output")
ON_TOP = ("inspect", "workflow", "api", "cli")
ORDER = (*TABLES, *ROOMS, *ON_TOP)
# These stand alone: the maths and the two tables know nothing else of ours.
ALONE = ("errors", "dtypes", "methods")
HEAVY = ("torch", "zarr", "zarrs", "dask", "distributed", "transformers", "obstore")

# The package itself is no room (it has a test of its own), nor is what runs it as a module.
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py", PACKAGE / "__main__.py"})


def dotted_name(path: Path) -> str:
    """The name a module is imported by."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that `tree` imports, inside functions too; relative names made absolute from `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            # `from mergeflow import graph` names a room in its list, not in its source.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room a dotted name lies in; None for what is not ours, and for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "mergeflow" and len(parts) > 1 else None


def rooms_imported(path: Path) -> set[str]:
    name = dotted_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {room(imported) for imported in imported_names(tree, package)}
    # `from mergeflow import load` names a function of the top level: not a room.
    return {entry for entry in found if entry in ORDER}


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_no_module_imports_a_later_room(path: Path) -> None:
    """Imports follow recipe, models, methods, graph, cache, execute, output and never point back."""
    own = room(dotted_name(path))
    assert own is not None
    allowed = {own} if own in ALONE else set(ORDER[: ORDER.index(own) + 1])
    assert rooms_imported(path) <= allowed


def test_every_room_has_its_place() -> None:
    """A new room is put into the order before anything is built in it."""
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if (path.is_dir() or path.suffix == ".py")}
    assert rooms - {"__init__", "__main__", "__pycache__"} <= set(ORDER)


def test_the_package_loads_none_of_its_rooms() -> None:
    """`import mergeflow` is cheap: what it offers is imported when it is first used."""
    assert loaded_by("import mergeflow") & {f"mergeflow.{entry}" for entry in ORDER} == set()


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    """validate and plan start fast: torch, zarr, Dask and transformers are loaded only when numbers are needed."""
    assert loaded_by("import mergeflow.cli.main") & set(HEAVY) == set()


def test_a_plain_recipe_is_validated_without_arrays_and_tokenizers(tmp_path: Path) -> None:
    """A merge that asks for no vocabulary loads no library for one, nor numpy, nor what speaks to the hub."""
    folder = PACKAGE.parent / "tests" / "golden" / "adapters" / "bases" / "llama"
    recipe = tmp_path / "merge.yml"
    recipe.write_text(f"merge_method: linear\nmodels: [{{model: {folder}, parameters: {{weight: 1}}}}]\n")
    command = (
        f"from mergeflow.cli.main import main\nimport sys\nsys.argv = ['mergeflow', 'validate', {str(recipe)!r}]\n"
    )
    loaded = loaded_by(f"{command}try:\n    main()\nexcept SystemExit as end:\n    assert not end.code")
    assert "mergeflow.workflow.validating" in loaded
    assert loaded & {*HEAVY, "numpy", "ml_dtypes", "tokenizers", "huggingface_hub"} == set()


def loaded_by(statement: str) -> set[str]:
    """The names of all modules that are loaded after `statement` ran in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(done.stdout.split())


def test_relative_imports_and_rooms_named_in_a_list_are_seen() -> None:
    """The reading of imports above misses neither `from .. import graph` nor one inside a function."""
    source = "def later():\n    from .. import graph\n    from .keys import key\n    import mergeflow.cache.store\n"
    found = set(imported_names(ast.parse(source), "mergeflow.execute"))
    assert found == {"mergeflow.graph", "mergeflow.execute.keys.key", "mergeflow.cache.store"}
