"""`export`, `verify` and `lineage` as a person or a script types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import mergeflow, write
from recipes import TIES

RECIPE = TIES.replace(
    "steps:\n", "vars: {density: 0.5}\nsteps:\n  skill: {task_vector: {model: b, base: a}}\n"
).replace(
    "{model: b, parameters: {weight: 0.6, density: 0.5}}",
    '{model: skill, parameters: {weight: 0.6, density: "${density}"}}',
)

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def recipe() -> str:
    return write(RECIPE)


@pytest.fixture
def made(recipe: str) -> Path:
    assert mergeflow("run", recipe, "made", "--quiet").code == 0
    return Path("made")


def test_export_says_how_much_it_computed(recipe: str) -> None:
    """The path and the counts on stdout, nothing on stderr, the report as a file."""
    done = mergeflow("export", recipe, "skill", "skill.safetensors", "--report", "report.json")
    assert (done.code, done.err) == (0, "")
    assert "skill.safetensors" in done.out
    assert "9 tensors: 9 computed, 0 from the cache" in done.out
    assert json.loads(Path("report.json").read_text())["tensors"]["computed"] == 9
    assert mergeflow("export", recipe, "skill", "other.safetensors", "--quiet").out == ""


def test_export_of_an_unknown_step_names_the_nearest(recipe: str) -> None:
    """Exit code 1, one line."""
    done = mergeflow("export", recipe, "skil", "x")
    assert (done.code, done.out) == (1, "")
    assert done.lines == ["error: recipe.yaml has no step 'skil'; did you mean 'skill'?"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--dtype", "int8", "is not a number format"), ("--max-shard-size", "5XB", "is not a size")],
)
def test_export_refuses_flags_that_mean_nothing(recipe: str, option: str, value: str, message: str) -> None:
    """A mistake of usage, before anything is read: exit code 2."""
    done = mergeflow("export", recipe, "skill", "x", option, value)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not Path("x").exists()


def test_export_takes_variables(recipe: str) -> None:
    """--set gives other weights; an unknown variable is an error."""
    for density in ("0.5", "0.25"):
        assert mergeflow("export", recipe, "final", f"d{density}", "--set", f"density={density}", "-q").code == 0
    assert Path("d0.5/model.safetensors").read_bytes() != Path("d0.25/model.safetensors").read_bytes()
    assert mergeflow("export", recipe, "final", "x", "--set", "dens=1").code == 1


def test_verify_of_an_intact_output(made: Path) -> None:
    """One line on stdout, exit code 0; --quick claims no more than it looked at."""
    done = mergeflow("verify", made)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "made: verified; 9 tensors: 9 have the keys of their recipe; 9 were computed again and are the same, "
        "byte for byte\n"
    )
    quick = mergeflow("verify", made, "--quick")
    assert (quick.code, quick.out) == (0, "made: verified; 9 tensors: 9 have the keys of their recipe\n")


def test_verify_lists_all_that_differs(made: Path) -> None:
    """A line each on stderr, exit code 3; --json has the same for scripts."""
    content = bytearray((made / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (made / "model.safetensors").write_bytes(content)
    (made / "config.json").write_text("{}")
    done = mergeflow("verify", made)
    assert done.code == 3
    assert done.lines[0] == "differs: model.safetensors has other bytes than were written"
    assert done.lines[1] == "differs: config.json was edited since it was written"
    assert "has other bytes than its recipe gives, from element" in done.lines[2]
    scripted = mergeflow("verify", made, "--json")
    found = json.loads(scripted.out)
    assert (scripted.code, found["ok"]) == (3, False)
    assert [it["kind"] for it in found["differences"]] == ["shard", "file", "tensor"]
    assert found["tensors"] == {"total": 9, "keys_equal": 9, "bytes_equal": 8}


def test_verify_without_inputs(made: Path) -> None:
    """Exit code 1, and what could be checked is said."""
    Path("b").unlink()
    done = mergeflow("verify", made)
    assert done.code == 1
    assert len(done.lines) == 1
    assert done.lines[0].startswith("missing: ./b: no such folder")
    assert "headers, samples and small files were looked at" in done.out


@pytest.mark.parametrize("command", ["verify", "lineage"])
@pytest.mark.parametrize("place", ["a", "nothing", "recipe.yaml"])
def test_what_is_no_output_is_an_error(recipe: str, command: str, place: str) -> None:
    """Exit code 1 and one line on stderr."""
    done = mergeflow(command, place)
    assert (done.code, done.out, len(done.lines)) == (1, "", 1)
    assert done.err.startswith("error: ")


def test_lineage_is_a_plain_tree_when_piped(made: Path) -> None:
    """Steps in the words of the recipe, inputs with path and digest, no colours."""
    done = mergeflow("lineage", made)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("made  weights, 9 tensors in 1 file; mergeflow ")
    assert lines[1] == "├── final = ties(skill weight=0.6 density=0.5, ./c weight=0.4 density=0.5, base=./a)"
    assert lines[2] == "│   ├── skill = task_vector(./b, base=./a)"
    assert lines[3].startswith("│   │   ├── b: ./b  digest ")
    assert lines[-1] == "└── variables: density=0.5"
    assert "\x1b" not in done.out


def test_lineage_as_json(made: Path) -> None:
    """The recipe, the variables and the inputs, for scripts."""
    found = json.loads(mergeflow("lineage", made, "--json").out)
    assert (found["step"], found["variables"], found["tensors"]) == ("final", {"density": 0.5}, 9)
    assert set(found["models"]) == {"./a", "./b", "./c"}


def test_names_out_of_a_strangers_lock_send_nothing_to_the_terminal(made: Path) -> None:
    """Control characters are shown as what they are."""
    path = made / "mergeflow.lock.json"
    lock = json.loads(path.read_text())
    lock["recipe"], lock["steps"] = "{", {"\x1b]0;x\x07": "[red]\x1b[2J"}
    lock["models"] = {"\x1b[31m": {"path": "\x1b[5m", "revision": None, "digest": "\x1b", "tensors": {}}}
    path.write_text(json.dumps(lock))
    done = mergeflow("lineage", made)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "[red]\\x1b[2J" in done.out
    assert "\x1b" not in mergeflow("verify", made).err
